"""What is wrong with a RoleBench, counted, with examples by file and line; beside the counts measured before.

Nobody has published what RoleBench's defects are. Here they are as rows of a table, for the published data, whole or
in part, and for runs of our own.
"""

import re
from collections import Counter

from rolellm_utils import paper, rouge
from rolellm_utils.cleaning import AI, REFUSAL, ROLE, broken_rules
from rolellm_utils.files import read_lines, shown
from rolellm_utils.records import InputError
from rolellm_utils.rolebench import (
    FILES,
    PARTS,
    SPLITS,
    checked,
    described,
    folder_of,
    locate,
    normal,
    present,
    role_key,
)
from rolellm_utils.splits import leaks
from rolellm_utils.stage import LANGUAGES, check_language

EXAMPLES = 3
HAN, LATIN = re.compile(f"[{rouge.HAN}]"), re.compile("[A-Za-z]")
CLOSED = re.compile(r"[.!?。！？…~～\"'”’」』)）\]】*:：\U0001f300-\U0001faff]")

AI_TALK, REFUSES, ROLE_TALK = "discloses an AI or language model", "reads as a refusal", "talks of its script or role"
RULES = {AI: AI_TALK, REFUSAL: REFUSES, ROLE: ROLE_TALK}
OF_ROWS = ("type", "role", "question", "reference padded", "reference repeated", "first reference", "repeats")
NEUTRAL = ("rows", "references", "row with", "row that", "distinct (role", "type is a list")
CUT_CUE = re.compile(r"(O\.? ?S|V\.? ?O|O\.? ?C|CONT['’]?D)\.?\)", re.IGNORECASE)


def row_defects(row, sample):
    """What is wrong with a row as published: names of defects."""
    texts = sample.generated
    bare = [text.strip() for text in texts]
    found = {
        "type is a text": isinstance(row.get("type"), str),
        "type is a list": isinstance(row.get("type"), list),
        "role padded with white space": sample.role != sample.role.strip(),
        "question padded with white space": sample.question != sample.question.strip(),
        "reference padded with white space": bare != texts,
        "reference repeated in its row": len(set(bare)) < len(bare),
        "first reference of three words or fewer": _words(bare[0]) <= 3,
    }
    return [defect for defect, there in found.items() if there]


def text_defects(text, role, language):
    """What is wrong with one reference: names of defects."""
    text = text.strip()
    if not text:
        return ["reference is empty"]
    found = {
        "starts with the role's name and a colon": text.startswith(role) and text[len(role) :][:1] in ":：",
        "starts in the middle of a stage direction": CUT_CUE.match(text),
        "does not end like a sentence": not CLOSED.match(text[-1]),
        "in another script than the language's": HAN.search(text) if language == "en" else only_latin(text),
    }
    rules = [RULES[rule] for rule in broken_rules(text, tuple(RULES))]
    return rules + [defect for defect, there in found.items() if there]


# Counts measured on the published data, {(file, defect): count}. "about": the count depends on the pattern.
ENG, ROLES = "rolebench-eng/instruction-generalization", "rolebench-eng/role-generalization"
MEASURED = {
    (f"{ENG}/general/train.jsonl", "rows"): 112_142,
    (f"{ENG}/general/test.jsonl", "rows"): 28_083,
    (f"{ENG}/role_specific/train.jsonl", "rows"): 18_949,
    (f"{ENG}/role_specific/test.jsonl", "rows"): 4_750,
    (f"{ENG}/role_specific/train.jsonl", "question padded with white space"): 18_949,
    (f"{ENG}/role_specific/test.jsonl", "question padded with white space"): 4_750,
    (f"{ENG}/role_specific/train.jsonl", "reference padded with white space"): 18_949,
    (f"{ENG}/role_specific/test.jsonl", "reference padded with white space"): 4_750,
    (f"{ENG}/role_specific/test.jsonl", "row that the RoleGPT baseline answers"): 4_750,
    (f"{ROLES}/general/test.jsonl", "rows"): 5_000,
    (f"{ROLES}/general/test.jsonl", "question padded with white space"): 1_532,
    (f"{ROLES}/general/test.jsonl", "references"): 20_765,
    (f"{ROLES}/general/test.jsonl", "row with 5 references"): 3_265,
    (f"{ROLES}/general/test.jsonl", "row with 4 references"): 523,
    (f"{ROLES}/general/test.jsonl", "row with 3 references"): 370,
    (f"{ROLES}/general/test.jsonl", "row with 2 references"): 396,
    (f"{ROLES}/general/test.jsonl", "row with 1 reference"): 446,
    (f"{ROLES}/general/test.jsonl", "discloses an AI or language model"): "about 50",
    (f"{ROLES}/general/test.jsonl", "reads as a refusal"): "about 150",
    (f"{ROLES}/general/test.jsonl", "first reference of three words or fewer"): 420,
    (f"{ROLES}/role_specific/test.jsonl", "rows"): 2_534,
    (f"{ROLES}/role_specific/test.jsonl", "type is a text"): 2_034,
    (f"{ROLES}/role_specific/test.jsonl", "type is a list"): 500,
    (f"{ROLES}/role_specific/test.jsonl", "repeats the role and question of an earlier row"): 213,
    (f"{ROLES}/role_specific/test.jsonl", "distinct (role, question)"): 2_321,
    (f"{ROLES}/role_specific/test.jsonl", "row that the RoleGPT baseline answers"): 696,
    (f"{ROLES}/role_specific/rolegpt_baseline.jsonl", "rows"): 4_750,
    (f"{ROLES}/role_specific/rolegpt_baseline.jsonl", "starts with the role's name and a colon"): 401,
    ("rolebench-zh/general/train.jsonl", "rows"): 5_933,
    ("rolebench-zh/general/test.jsonl", "rows"): 1_451,
    ("rolebench-zh/general/test.jsonl", "row with 5 references"): 1_289,
    ("rolebench-zh/general/test.jsonl", "row with 4 references"): 82,
    ("rolebench-zh/general/test.jsonl", "row with 3 references"): 52,
    ("rolebench-zh/general/test.jsonl", "row with 2 references"): 25,
    ("rolebench-zh/general/test.jsonl", "row with 1 reference"): 3,
    ("rolebench-zh/general/test.jsonl", "distinct question that occurs in train"): 970,
    ("rolebench-zh/general/test.jsonl", "(role, question) that occurs in train"): 0,
    ("rolebench-zh/general/rolegpt_baseline.jsonl", "rows"): 7_395,
    ("rolebench-zh/role_specific/train.jsonl", "rows"): 1_535,
    ("rolebench-zh/role_specific/train.jsonl", "repeats the role and question of an earlier row"): 2,
    ("rolebench-zh/role_specific/test.jsonl", "rows"): 239,
    ("rolebench-zh/role_specific/test.jsonl", "(role, question) that occurs in train"): 7,
    ("rolebench-zh/role_specific/test.jsonl", "(role, question) that occurs in train, with an answer"): 5,
}  # fmt: skip


def only_latin(text):
    """True for a text with Latin letters and no Han character."""
    return not HAN.search(text) and LATIN.search(text)


def audit(directory=None, language="en", split=SPLITS[0]):
    """The findings of a RoleBench in one language, all the splits in its folder: a list of dicts, file by file.

    {"file", "defect", "count", "of" (rows or references looked at), "measured", "agrees", "examples": [{"line",
    "text"}]}. directory, split: as `rolebench.load` takes them (of the hub, that split). For the published data, known
    by its roles, "measured" is the count measured before, and one whose file this copy lacks is listed with count None
    and agrees "needs the hub".
    Raises InputError as `rolebench.load` does.
    """
    findings, spellings = [], {}
    check_language(language)
    root = locate(directory, language, split)
    for each in SPLITS:
        for part in PARTS:
            paths = {name: folder_of(root, language, each) / part / f"{name}.jsonl" for name in FILES}
            findings += _part({name: path for name, path in paths.items() if path.exists()}, root, language, spellings)
    if not findings:
        present(root, language, split)  # says that nothing is there, and the way out
    _other_spellings(root, language, spellings)
    findings.append(_spelled(spellings))
    published = {role_key(role) for role in paper.ROLES[language]} <= set(spellings)
    return _beside_measured(findings, language) if published else [found | _unmeasured() for found in findings]


def table(findings):
    """The findings to read: defects and whatever was measured before, with the first example by line."""
    import pandas as pd

    rows = [
        {
            "file": found["file"].removesuffix(".jsonl").removeprefix("rolebench-"),
            "defect": found["defect"],
            "count": "" if found["count"] is None else f"{found['count']:,} of {found['of'] or 0:,}",
            "measured": "" if found["measured"] is None else str(found["measured"]),
            "agrees": found["agrees"],
            "example": "".join(f"line {example['line']}: {example['text']}" for example in found["examples"][:1]),
        }
        for found in findings
        if found["measured"] is not None or not found["defect"].startswith(NEUTRAL)
    ]
    return pd.DataFrame(rows, columns=["file", "defect", "count", "measured", "agrees", "example"])


def _part(paths, root, language, spellings):
    """The findings of the files of one part of a split, alone and beside each other."""
    findings, rows, lines = [], {}, {}
    for name, path in paths.items():
        found, rows[name], lines[name] = _file(path, _name(path, root), language, spellings)
        findings += found
    if "test" not in paths:
        return findings
    name = _name(paths["test"], root)
    if "train" in paths:
        findings += _leaks(rows["test"], rows["train"], name, lines["test"])
    if "rolegpt_baseline" in paths:
        answered = {(sample.role, sample.question) for sample in rows["rolegpt_baseline"]}
        covered = sum((sample.role, sample.question) in answered for sample in rows["test"])
        findings.append(_finding(name, "row that the RoleGPT baseline answers", covered, len(rows["test"])))
    return findings


def _file(path, name, language, spellings):
    """(findings of one file, its Samples, {(role, question): its first line}); adds to spellings."""
    counts, examples, samples, lines = Counter(), {}, [], {}

    def hit(defect, line, text):
        counts[defect] += 1
        if len(examples.setdefault(defect, [])) < EXAMPLES:
            examples[defect].append({"line": line, "text": " ".join(text.split())[:200]})

    for line, row in read_lines(path, ("role", "question", "generated")):
        published = checked(row, path, line)
        spellings.setdefault(role_key(published.role), {}).setdefault(published.role.strip(), (name, line))
        for defect in row_defects(row, published):
            hit(defect, line, f"{published.role}: {published.question}")
        for text in published.generated:
            for defect in text_defects(text, published.role.strip(), language):
                hit(defect, line, f"{published.role}: {text}")
        sample = normal(published)
        key = (sample.role, sample.question)
        if key in lines:
            hit("repeats the role and question of an earlier row", line, f"{': '.join(key)} (as in line {lines[key]})")
        lines.setdefault(key, line)
        samples.append(sample)
    if not samples:
        raise InputError(f"{shown(path)}, line 1: the file is empty; get it again, or delete it if it has no rows")
    sizes = Counter(len(sample.generated) for sample in samples)
    references = sum(size * count for size, count in sizes.items())
    found = [
        _finding(name, "rows", len(samples), len(samples)),
        _finding(name, "distinct (role, question)", len(lines), len(samples)),
        _finding(name, "references", references, references),
    ]
    for size in sorted(sizes, reverse=True):
        found.append(_finding(name, f"row with {size} reference{'s' * (size > 1)}", sizes[size], len(samples)))
    for defect, count in counts.items():
        of = len(samples) if defect.startswith(OF_ROWS) else references
        found.append(_finding(name, defect, count, of, examples[defect]))
    return found, samples, lines


def _leaks(test, train, name, lines):
    shared = leaks(test, train)
    example = shared["example"]
    examples = [{"line": lines[example], "text": ": ".join(example)}] if example else []
    counts = {
        "distinct question that occurs in train": shared["distinct questions"],
        "(role, question) that occurs in train": shared["role and question"],
        "(role, question) that occurs in train, with an answer": shared["answer too"],
    }
    return [_finding(name, defect, count, len(test), examples * bool(count)) for defect, count in counts.items()]


def _other_spellings(root, language, spellings):
    """Add how desc.json and the names of files spell the roles."""
    code = LANGUAGES[language]
    description = root / f"profiles-{code}" / "desc.json"
    places = [(role, description) for role in (described(description) if description.exists() else ())]
    for folder, prefix in ((f"instructions-{code}", "role-specific-"), (f"profiles-{code}", f"profiles-{code}-")):
        paths = sorted((root / folder).glob(f"{prefix}*.jsonl"))
        places += [(path.stem.removeprefix(prefix), path) for path in paths]
    for role, path in places:
        spellings.setdefault(role_key(role), {}).setdefault(role, (_name(path, root), 1))


def _spelled(spellings):
    several = [places for places in spellings.values() if len(places) > 1]
    examples = [
        {"line": line, "text": f"{role} in {file}"} for places in several for role, (file, line) in places.items()
    ]
    return _finding("all files", "role spelled in more than one way", len(several), len(spellings), examples[:EXAMPLES])


def _beside_measured(findings, language):
    ours = {key: count for key, count in MEASURED.items() if f"rolebench-{LANGUAGES[language]}/" in key[0]}
    for found in findings:
        measured = ours.pop((found["file"], found["defect"]), None)
        found |= {"measured": measured, "agrees": _agrees(found["count"], measured)}
    # A count of nothing is no row above, so what is left is either a file that is not here or a count of 0.
    present = {found["file"] for found in findings}
    for (file, defect), measured in ours.items():
        here = file in present
        found = _finding(file, defect, 0 if here else None, None) | {"measured": measured}
        findings.append(found | {"agrees": _agrees(0, measured) if here else "needs the hub"})
    return findings


def _agrees(count, measured):
    if measured is None:
        return ""
    if isinstance(measured, str):
        return "depends on the pattern"
    return "yes" if count == measured else "NO"


def _unmeasured():
    return {"measured": None, "agrees": ""}


def _finding(file, defect, count, of, examples=()):
    return {"file": file, "defect": defect, "count": count, "of": of, "examples": list(examples)}


def _name(path, root):
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else shown(path)


def _words(text):
    """White-space words, or a third of the characters where it is Chinese, which has no blanks between words."""
    return len(text) / 3 if HAN.search(text) else len(text.split())
