"""Stage 4, RoleBench (paper, section 4): clean, split, count and write the samples in the published layout."""

import re
from dataclasses import dataclass, field

from rolellm_utils.files import read_jsonl, resolve, shown, write_jsonl
from rolellm_utils.records import InputError, Sample
from rolellm_utils.rouge import answer_lengths
from rolellm_utils.stage import LANGUAGES

SPLITS = ("instruction-generalization", "role-generalization")
PARTS = ("general", "role_specific")
FILES = ("train", "test", "rolegpt_baseline")

# The paper's four cleaning rules (section 4) as patterns of what breaks them, English and Chinese together.
BREAKS = {
    "AI identity": re.compile(
        r"\b(an? )?(AI|artificial intelligence|language|chat)[ -]?(language )?(model|assistant|bot)\b|\bas an AI\b|"
        r"\b(ChatGPT|OpenAI|GPT-?\d|SmolLM|Hugging Face)\b|人工智能|语言模型|AI助手|智能助手",
        re.IGNORECASE,
    ),
    "role identity": re.compile(
        r"\b(my|the|this|a) (script|screenplay|fictional character|character in)\b|\bI am (playing|acting) |"
        r"\b(my|the) role (as|of|in) the (play|film|movie|script)\b|(我的|这个|扮演的)(角色|剧本|人设)|剧本(里|中)",
        re.IGNORECASE,
    ),
    "refusal": re.compile(
        r"\bI(?:'m| am) sorry,? (?:but )?I (?:can(?:'|no)t|am unable|do not)|\bI (?:cannot|can't|am unable to) "
        r"(?:answer|help(?! but)|assist|provide|fulfil)|"
        r"(抱歉|对不起)[，,]?我?(不能|无法)|我(不能|无法)(回答|提供|帮助)",
        re.IGNORECASE,
    ),
}


@dataclass
class RoleBench:
    """A loaded RoleBench split: `general` and `role_specific` map train/test/rolegpt_baseline to Samples.

    `targets` maps a general instruction to its RAW reference; `missing` lists files that this copy does not have.
    """

    language: str
    split: str
    general: dict[str, list[Sample]]
    role_specific: dict[str, list[Sample]]
    targets: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def folder_of(directory, language, split):
    """The folder of a split in the published layout; Chinese has one split and no folder for it."""
    root = directory / f"rolebench-{LANGUAGES[language]}"
    return root if language == "zh" else root / split


def load(directory, language="en", split="instruction-generalization"):
    """The RoleBench in `directory` (published layout, whole or partial) as a RoleBench record.

    Text is stripped and `type` is always a list or None. Raises InputError when nothing is there or a row is broken.
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; set it to one of {', '.join(SPLITS)}")
    directory = resolve(directory)
    folder = folder_of(directory, language, split)
    bench = RoleBench(language, split, {}, {})
    for part in PARTS:
        for name in FILES:
            path = folder / part / f"{name}.jsonl"
            if path.exists():
                getattr(bench, part)[name] = [
                    _sample(row) for row in read_jsonl(path, ("role", "question", "generated"))
                ]
            else:
                bench.missing.append(path.relative_to(directory).as_posix())
    if not bench.general and not bench.role_specific:
        raise InputError(
            f"{shown(folder)} holds no RoleBench files; give the folder that contains rolebench-eng or -zh"
        )
    path = directory / f"instructions-{LANGUAGES[language]}" / "instructions-general.jsonl"
    if path.exists():
        rows = read_jsonl(path, ("instruction", "target"))
        bench.targets = {row["instruction"].strip(): row["target"].strip() for row in rows if row["target"]}
    else:
        bench.missing.append(path.relative_to(directory).as_posix())
    return bench


def _sample(row):
    kind = row.get("type")
    return Sample(
        role=row["role"].strip(),
        question=row["question"].strip(),
        generated=[text.strip() for text in row["generated"]],
        type=[kind] if isinstance(kind, str) else kind,
    )


def broken_rule(text):
    """The name of the first cleaning rule an answer breaks, "" when it breaks none.

    Complete: it says something and does not break off at a comma, hyphen or open bracket (whether it ran into
    the token limit, stage 3 knows, and shortens it). The other three are patterns (BREAKS).
    """
    text = text.strip().replace("’", "'")
    if not re.search(r"\w", text) or re.search(r"[,，、;；(（-]$", text):
        return "incomplete"
    return next((name for name, pattern in BREAKS.items() if pattern.search(text)), "")


def clean(rows):
    """The Samples of rows whose references break no rule, and the drops: ([Sample], [drop]).

    A row loses the references that break one and goes itself when it loses all; every drop names its rule.
    """
    samples, drops = [], []
    for row in rows:
        kept = []
        for text in row["generated"]:
            rule = broken_rule(text)
            if rule:
                drops.append({"role": row["role"], "question": row["question"], "text": text, "reason": rule})
            elif text not in kept:
                kept.append(text)
        if kept:
            kind = None if row["kind"] == "general" else [row["kind"]]
            source = {key: row.get(key) for key in ("role", "question", "id", "file", "lines")}
            samples.append(Sample(**source, generated=kept, type=kind))
    return samples, drops


def test_questions(samples, test_share, generator):
    """The questions that go to test: `test_share` of the general ones, and of each role's own."""
    groups = {}
    for sample in samples:
        groups.setdefault(sample.role if sample.type else "", {})[sample.question] = None
    chosen = set()
    for questions in groups.values():
        count = max(1, round(test_share * len(questions))) if len(questions) > 1 else 0
        chosen.update(generator.sample(list(questions), count))
    return chosen


def assemble(answers, test_share, generator):
    """The RoleBench parts from stage 3's answers, split by instruction: ({part: {file: [Sample]}}, drops).

    No test question occurs in train, under any role, in either part (instruction generalisation, section 4).
    Baseline rows keep RoleGPT's one held-out answer uncleaned: it is scored as it is.
    """
    samples, drops = clean(answers)
    chosen = test_questions(samples, test_share, generator)
    baselines = {(row["role"], row["question"]): row["baseline"] for row in answers}
    parts = {}
    for part in PARTS:
        rows = [sample for sample in samples if bool(sample.type) == (part == "role_specific")]
        test = [sample for sample in rows if sample.question in chosen]
        parts[part] = {
            "train": [sample for sample in rows if sample.question not in chosen],
            "test": test,
            "rolegpt_baseline": [
                Sample(role=s.role, question=s.question, generated=[baselines[s.role, s.question]]) for s in test
            ],
        }
    return parts, drops


def save(parts, drops, run_dir, language, split="instruction-generalization"):
    """Write the parts in the published layout and the drops with their reasons; the files written."""
    folder = folder_of(run_dir / "rolebench", language, split)
    written = [
        write_jsonl(folder / part / f"{name}.jsonl", (sample.model_dump(exclude_none=True) for sample in samples))
        for part, files in parts.items()
        for name, samples in files.items()
    ]
    return [*written, write_jsonl(run_dir / "rejected" / "04_rolebench.jsonl", drops)]


def counts(bench):
    """Rows for a table: part, file, rows, roles, distinct questions, references, mean words a reference."""
    table = []
    for part in PARTS:
        for name, samples in getattr(bench, part).items():
            references = [text for sample in samples for text in sample.generated]
            lengths = answer_lengths(references, bench.language)
            table.append(
                {
                    "part": part,
                    "file": name,
                    "rows": len(samples),
                    "roles": len({sample.role for sample in samples}),
                    "questions": len({sample.question for sample in samples}),
                    "references": len(references),
                    "mean length": round(float(lengths.mean()), 1) if len(lengths) else 0.0,
                }
            )
    return table


def tiles(bench, profiles, unit):
    """One dict a role for `plots.panorama`: pairs, train and test rows, mean reference length, a catchphrase."""
    found = []
    for profile in profiles:
        rows = {
            name: [sample for part in (bench.general, bench.role_specific) for sample in part.get(name, [])
                   if sample.role == profile.role]
            for name in ("train", "test")
        }  # fmt: skip
        texts = [text for samples in rows.values() for sample in samples for text in sample.generated]
        lengths = answer_lengths(texts, bench.language)
        found.append({
            "role": profile.role,
            "pairs": len(profile.pairs),
            "train": len(rows["train"]),
            "test": len(rows["test"]),
            "mean_length": float(lengths.mean()) if len(lengths) else 0.0,
            "unit": unit,
            "catchphrase": profile.catchphrases[0] if profile.catchphrases else "",
        })  # fmt: skip
    return found
