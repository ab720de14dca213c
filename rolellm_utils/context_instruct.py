"""Stage 2, Context-Instruct (paper, section 3.3): question, confidence, answer from segments of a role's profile."""

import json

from rolellm_utils.files import write_json, write_jsonl
from rolellm_utils.profiles import describe, file_name
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
    """The role's dialogue cut into segments of at least `words` words: [(text, (first, last) source line)].

    A segment never crosses a scene or file; a short rest joins the segment before it in the same scene.
    """
    found, scene = [], None
    for pair in profile.pairs:
        text = f"{pair.speaker}: {pair.cue}\n{profile.role}: {pair.reply}"
        place = (pair.file, pair.scene)
        if place == scene and len(tokens(found[-1][0], language)) < words:
            found[-1] = (f"{found[-1][0]}\n{text}", (found[-1][1][0], pair.lines[1]))
        else:
            found.append((text, pair.lines))
        scene = place
    return found


def requests(profile, language, script_based=8, script_agnostic=2, count=2, words=120, **sampling):
    """The questions to the teacher about one role: [(Request, type, segment number, source lines)].

    The `script_based` segments are spread evenly over the script; `script_agnostic` ones ask about the description,
    each with its own seed.
    """
    seed = sampling.pop("seed", 0)
    cut = segments(profile, language, words)
    chosen = [i * len(cut) // script_based for i in range(script_based)] if len(cut) > script_based else range(len(cut))
    asked = []
    for number in chosen:
        text, lines = cut[number]
        messages = with_example(language, "script_based", role=profile.role, segment=text, count=count)
        asked.append((_request(messages, profile, count, seed, sampling), "script_based", number, lines))
    text = describe(profile, language)
    for number in range(script_agnostic):
        messages = with_example(language, "script_agnostic", role=profile.role, description=text, count=count)
        asked.append((_request(messages, profile, count, seed + number, sampling), "script_agnostic", number, None))
    return asked


def _request(messages, profile, count, seed, sampling):
    return Request(messages=messages, json_schema=schema(count), role=profile.role, seed=seed, **sampling)


def candidates(reply, role, kind, segment, lines, count):
    """The triplets of one reply and its reject, if any: ([Triplet], [reject]). An unreadable reply is a reject."""
    data = parse_json(reply.text, schema(count))
    if data is None:
        why = "cut off" if reply.finish_reasons[0] == "length" else "not valid JSON"
        return [], [{"role": role, "reason": why, "type": kind, "segment": segment, "text": reply.text}]
    place = {"role": role, "type": kind, "segment": segment, "lines": lines}
    for triplet in data["triplets"]:
        if len(triplet["answer"]) >= LONGEST_ANSWER:  # the schema broke it off
            triplet["answer"] = whole_sentences(triplet["answer"]) or triplet["answer"]
    return [Triplet(**triplet, **place) for triplet in data["triplets"]], []


def select(triplets, language, similarity=0.7, most=None):
    """The triplets worth keeping and the rejects with their reason: ([Triplet], [reject]), one role at a time.

    Kept: a real question with an answer that does not go in circles, both confidences High, like no question kept
    before nor one of the prompt's worked example (BM25 score of at least `similarity` of what the question scores
    against itself), at most `most`.
    """
    if not triplets:
        return [], []
    shown_questions = example_questions(language)
    questions = [triplet.question for triplet in triplets] + shown_questions
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
    if len(triplet.answer) >= LONGEST_ANSWER:
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
                "segment": triplet.segment,
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
