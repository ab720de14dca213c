"""Stage 3, RoleGPT (paper, section 3.4): a profile and a few of its exchanges make any chat model speak in role."""

import numpy as np

from rolellm_utils.files import read_jsonl, resolve, write_jsonl
from rolellm_utils.profiles import file_name
from rolellm_utils.prompts import render
from rolellm_utils.records import InputError
from rolellm_utils.retrieval import scores, whole_sentences
from rolellm_utils.stage import LANGUAGES
from rolellm_utils.teacher import Request

STRATEGIES = ("zero-shot", "few-shot", "few-shot-dialogue")


def instructions_path(instructions, language):
    """The general instructions file: the parameter, or the starter set of the language when it is empty."""
    return resolve(instructions or f"rolellm_utils/starter/instructions_{language}.jsonl")


def read_instructions(path, count, seed_generator):
    """`count` general instructions drawn from a JSON-lines file, spread over its categories; 0 takes all.

    Rows are {"instruction", "category"?, "target"?}; raises InputError where a line or enough instructions lack.
    """
    rows = read_jsonl(path, needs=("instruction",))
    if len(rows) < max(count, 1):
        raise InputError(
            f"instructions file {path.name} holds {len(rows)} instructions; {count or 1} are wanted: add some"
        )
    if not count:
        return rows
    groups = {}
    for row in rows:
        groups.setdefault(row.get("category", ""), []).append(row)
    for group in groups.values():
        seed_generator.shuffle(group)
    # One of each category in turn, so that a small draw is as mixed as the file.
    turns = [group[i] for i in range(len(rows)) for group in groups.values() if i < len(group)]
    return turns[:count]


def check_strategy(strategy):
    """None for a known prompting strategy; InputError naming the known ones otherwise."""
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}; set it to one of {', '.join(STRATEGIES)}")


def prompts(profile, instructions, language, strategy="few-shot-dialogue", examples=5, example_words=40):
    """The chat messages for every instruction: a list of [{"role", "content"}].

    The examples are the BM25 top pairs of the profile for the instruction, the best one nearest to it;
    `example_words` (Chinese: twice as many characters) caps each side of a pair. Strategies as in the paper's
    ablation: `zero-shot`, `few-shot` (examples inside one user turn), `few-shot-dialogue` (alternating turns).
    """
    check_strategy(strategy)
    system = render(language, "system", role=profile.role, description=profile.description)
    head = [{"role": "system", "content": system}]
    if strategy == "zero-shot" or not profile.pairs or not examples:
        return [[*head, {"role": "user", "content": instruction}] for instruction in instructions]
    table = scores([f"{pair.cue} {pair.reply}" for pair in profile.pairs], instructions, language)
    best = np.argsort(-table, axis=1, kind="stable")[:, :examples]
    built = []
    for instruction, indices in zip(instructions, best, strict=True):
        chosen = [profile.pairs[i] for i in reversed(indices)]
        if strategy == "few-shot-dialogue":
            turns = _dialogue(chosen, language, example_words)
            built.append([*head, *turns, {"role": "user", "content": instruction}])
        else:
            text = _one_turn(profile.role, chosen, instruction, language, example_words)
            built.append([*head, {"role": "user", "content": text}])
    return built


def _dialogue(pairs, language, words):
    turns = []
    for pair in pairs:
        turns.append({"role": "user", "content": clip(pair.cue, language, words)})
        turns.append({"role": "assistant", "content": clip(pair.reply, language, words)})
    return turns


def _one_turn(role, pairs, instruction, language, words):
    lines = []
    for pair in pairs:
        lines.append(render(language, "few_shot_line", speaker=pair.speaker, text=clip(pair.cue, language, words)))
        lines.append(render(language, "few_shot_line", speaker=role, text=clip(pair.reply, language, words)))
    return render(language, "few_shot", role=role, examples="\n".join(lines), instruction=instruction)


def clip(text, language, words):
    """The first `words` words (Chinese: twice as many characters), ended at a sentence where one ends in it."""
    short = text[: 2 * words] if language == "zh" else " ".join(text.split()[:words])
    return text if len(short) >= len(" ".join(text.split())) else whole_sentences(short) or short


def requests(profile, instructions, language, n, strategy, examples, example_words, **sampling):
    """One Request an instruction, each for `n` samples of the role's answer."""
    built = prompts(profile, instructions, language, strategy, examples, example_words)
    return [Request(messages=messages, n=n, role=profile.role, **sampling) for messages in built]


def raw_requests(instructions, language, **sampling):
    """One Request an instruction for an answer of no role: the RAW reference where the data has no plain target."""
    system = {"role": "system", "content": render(language, "raw")}
    return [
        Request(messages=[system, {"role": "user", "content": instruction}], **sampling) for instruction in instructions
    ]


def finished(reply):
    """The samples as (text, shortened): an answer that ran into max_tokens ends at its last whole sentence."""
    samples = []
    for text, status in zip(reply.texts, reply.statuses, strict=True):
        cut = status == "cut_off"
        samples.append(((whole_sentences(text) if cut else text).strip(), cut))
    return samples


def general_row(role, question, reply, references):
    """A row of answers.jsonl: the references apart from the baseline, which is the last sample (paper: 5 + 1)."""
    samples = finished(reply)
    return {
        "role": role,
        "question": question,
        "kind": "general",
        "generated": [text for text, _ in samples[:references]],
        "baseline": samples[-1][0] if len(samples) > references else "",
        "shortened": sum(cut for _, cut in samples),
    }


def specific_row(role, row, reply):
    """A row of answers.jsonl from a row of stage 2: its answer is the reference, the reply the baseline."""
    (text, cut), *_ = finished(reply)
    return {
        "role": role,
        "question": row["instruction"],
        "kind": row["type"],
        "generated": [row["answer"]],
        "baseline": text,
        "shortened": int(cut),
        **{key: row[key] for key in ("id", "file", "lines")},
    }


def save(answers, instructions, targets, run_dir, language):
    """Write the answers and the general instructions with their RAW targets; the files written."""
    rows = [
        {"instruction": row["instruction"], "target": target, "category": row.get("category", "")}
        for row, target in zip(instructions, targets, strict=True)
    ]
    folder = run_dir / "rolebench" / f"instructions-{LANGUAGES[language]}"
    return [
        write_jsonl(run_dir / "rolegpt" / "answers.jsonl", answers),
        write_jsonl(folder / "instructions-general.jsonl", rows),
    ]


def role_questions(run_dir, language, profiles):
    """The kept role-specific rows of stage 2: {role: [{"instruction", "answer", "type", ...}]}."""
    folder = run_dir / "rolebench" / f"instructions-{LANGUAGES[language]}"
    return {
        profile.role: read_jsonl(folder / f"role-specific-{file_name(profile.role)}.jsonl", ("instruction", "answer"))
        for profile in profiles
    }
