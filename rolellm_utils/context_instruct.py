"""Stage 2, Context-Instruct (paper, section 3.3): question, confidence, answer from segments of a role's profile."""

import json
from itertools import zip_longest

from rolellm_utils.files import write_json, write_jsonl
from rolellm_utils.profiles import file_name
from rolellm_utils.prompts import templates, with_example
from rolellm_utils.records import Triplet
from rolellm_utils.retrieval import scores, tokens, whole_sentences
from rolellm_utils.stage import LANGUAGES
from rolellm_utils.teacher import Request, parse_json

LONGEST_ANSWER = 220  # characters


def schema(count):
    """The JSON schema of one reply: up to `count` triplets. The reason stands before the answer, as in the paper."""
    level = {"type": "string", "enum": ["High", "Low"]}
    properties = {
        "question": {"type": "string", "minLength": 5, "maxLength": 160},
        "completeness": level,
        "factualness": level,
        "rationale": {"type": "string", "maxLength": 80},
        "answer": {"type": "string", "minLength": 2, "maxLength": LONGEST_ANSWER},
    }
    triplet = {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip
    triplets = {"type": "array", "items": triplet, "minItems": 1, "maxItems": count}
    return {
        "type": "object", "properties": {"triplets": triplets}, "required": ["triplets"], "additionalProperties": False,
    }  # fmt: skip


def segments(profile, language, words=120):
    """The role's dialogue in segments of at least `words` words, about twice that at most: [{"text", "file", "lines"}].

    A segment never crosses a scene; what is left of a scene joins the segment before it, so that only a scene with
    fewer words than that gives a shorter one. `lines` run from the first cue to the last reply.
    """
    found, place = [], None
    for pair in profile.pairs:
        exchange = f"{pair.speaker}: {pair.cue}\n{profile.role}: {pair.reply}"
        new = {"text": exchange, "file": pair.file, "lines": (pair.cue_lines[0], pair.lines[1])}
        if (pair.file, pair.scene) != place:
            _join_rest(found, language, words)
            found.append(new | {"place": (pair.file, pair.scene)})
        elif _is_full(found[-1], language, words):
            found.append(new | {"place": place})
        else:
            found[-1] = _joined(found[-1], new)
        place = (pair.file, pair.scene)
    _join_rest(found, language, words)
    return [{key: value for key, value in segment.items() if key != "place"} for segment in found]


def _is_full(segment, language, words):
    return len(tokens(segment["text"], language)) >= words


def _joined(first, second):
    return first | {"text": f"{first['text']}\n{second['text']}", "lines": (first["lines"][0], second["lines"][1])}


def _join_rest(found, language, words):
    if len(found) > 1 and found[-1]["place"] == found[-2]["place"] and not _is_full(found[-1], language, words):
        rest = found.pop()
        found[-1] = _joined(found[-1], rest)


def requests(profile, language, script_based=8, script_agnostic=2, count=2, words=120, **sampling):
    """The questions to the teacher about one role: [(Request, where)], where = {"role", "type", "file"?, "lines"?}.

    The `script_based` segments are spread evenly over the script; the one `script_agnostic` request asks about the
    description and takes that many samples.
    """
    cut = segments(profile, language, words)
    if len(cut) > script_based:
        cut = [cut[i * len(cut) // script_based] for i in range(script_based)]
    asked = []
    for segment in cut:
        messages = with_example(language, "script_based", role=profile.role, segment=segment["text"], count=count)
        where = {"role": profile.role, "type": "script_based", "file": segment["file"], "lines": segment["lines"]}
        asked.append((_request(messages, profile, count, sampling), where))
    if script_agnostic:
        text = profile.description
        messages = with_example(language, "script_agnostic", role=profile.role, description=text, count=count)
        request = _request(messages, profile, count, sampling | {"n": script_agnostic})
        asked.append((request, {"role": profile.role, "type": "script_agnostic"}))
    return asked


def _request(messages, profile, count, sampling):
    return Request(messages=messages, json_schema=schema(count), role=profile.role, **sampling)


def candidates(reply, where, count):
    """The triplets of a reply's samples, and a reject for each sample that is not of the form asked for."""
    found, rejects = [], []
    for text, status in zip(reply.texts, reply.statuses, strict=True):
        data = parse_json(text, schema(count))
        if data is None:
            why = "not of the form asked for" if status == "invalid" else status.replace("_", " ")
            rejects.append({"reason": why, **where, "text": text})
            continue
        for triplet in data["triplets"]:
            if len(triplet["answer"]) >= LONGEST_ANSWER:  # the schema may have broken it off
                triplet["answer"] = whole_sentences(triplet["answer"]) or triplet["answer"]
            found.append(Triplet(**triplet, **where))
    return found, rejects


def select(triplets, language, similarity=0.7, most=None):
    """The triplets worth keeping and the rejects with their reason: ([Triplet], [reject]), one role at a time.

    Kept: a real question with an answer that does not go in circles, both confidences High, like no question kept
    before nor one of the prompt's worked example (BM25 score of at least `similarity` of what the question scores
    against itself), at most `most`, the two types in turn.
    """
    if not triplets:
        return [], []
    triplets = in_turn(triplets)
    questions = [triplet.question for triplet in triplets] + example_questions(language)
    # Scores of different queries are comparable only relative to the query's own.
    table = scores(questions, questions, language)
    words = [tokens(question, language) for question in questions]
    kept, rejects = [], []
    for index, triplet in enumerate(triplets):
        like = [
            other
            for other in [*kept, *range(len(triplets), len(questions))]
            if words[other] == words[index] or table[index, other] >= similarity * table[index, index] > 0
        ]
        reason = _objection(triplet, language)
        if not reason and like:
            reason = "duplicate" if like[0] < len(triplets) else "copied from the example"
        if not reason and most and len(kept) >= most:
            reason = "over the limit"
        if reason:
            rejects.append({"reason": reason, **triplet.model_dump(mode="json")})
        else:
            kept.append(index)
    return [triplets[index] for index in kept], rejects


def in_turn(triplets):
    """The triplets with their types in turn, so that a limit does not cut one type off."""
    groups = {}
    for triplet in triplets:
        groups.setdefault(triplet.type, []).append(triplet)
    return [triplet for row in zip_longest(*groups.values()) for triplet in row if triplet]


def example_questions(language):
    """The questions of the prompts' worked examples, which a small teacher likes to copy."""
    replies = (templates(language)[f"{kind}_example"]["reply"] for kind in ("script_based", "script_agnostic"))
    return [triplet["question"] for reply in replies for triplet in json.loads(reply)["triplets"]]


def goes_in_circles(text, language, share=0.6):
    """True when fewer than `share` of a text's three-word runs are distinct: what small models fall into."""
    words = tokens(text, language)
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(runs) > 5 and len(set(runs)) < share * len(runs)


def _objection(triplet, language):
    if triplet.completeness != "High" or triplet.factualness != "High":
        return "low confidence"
    if not triplet.question.rstrip(' "”').endswith(("?", "？")):
        return "not a question"
    if not triplet.answer.strip() or triplet.answer.strip().casefold() == triplet.question.strip().casefold():
        return "no answer"
    if len(triplet.answer) >= LONGEST_ANSWER and not whole_sentences(triplet.answer):
        return "cut off"
    return "goes in circles" if goes_in_circles(triplet.answer, language) else ""


def save(kept, rejects, profiles, run_dir, language, words):
    """Write the kept triplets in RoleBench's layout and the rejects with their reasons; the files written.

    kept: {role: [Triplet]}. `metrics` holds the verbal confidence, as the published column does.
    """
    folder = run_dir / "rolebench" / f"instructions-{LANGUAGES[language]}"
    written = []
    for role, triplets in kept.items():
        rows = [
            {
                "id": number,
                "instruction": triplet.question,
                "metrics": {"completeness": triplet.completeness, "factualness": triplet.factualness,
                            "rationale": triplet.rationale},
                "answer": triplet.answer,
                "type": triplet.type,
                "file": triplet.file,
                "lines": triplet.lines,
            }
            for number, triplet in enumerate(triplets)
        ]  # fmt: skip
        written.append(write_jsonl(folder / f"role-specific-{file_name(role)}.jsonl", rows))
    counts = {profile.role: len(segments(profile, language, words)) for profile in profiles}
    return [
        *written,
        write_jsonl(folder / "nums.jsonl", [{"role": role, "num": len(rows)} for role, rows in kept.items()]),
        write_json(folder / "split_info.txt", counts),
        write_jsonl(run_dir / "rejected" / "02_context_instruct.jsonl", rejects),
    ]
