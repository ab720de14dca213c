"""What is in a RoleBench: rows by file, role and type, lengths, and Table 1 beside the paper's."""

import re
from collections import Counter

from rolellm_utils.files import read_lines
from rolellm_utils.paper import TABLE_1
from rolellm_utils.rolebench import PARTS, role_key
from rolellm_utils.rouge import answer_lengths
from rolellm_utils.stage import LANGUAGES

UNITS = {"en": "words", "zh": "characters"}
TYPES = ("script_agnostic", "script_based")
QUOTED = re.compile(r"[\"“「『]([^\"”」』]{2,80})[\"”」』]")
# How questions ask; the first that fits counts. English by its first words, Chinese by a word anywhere.
ASKS = {
    "en": {
        "what": r"what\b",
        "how": r"how\b",
        "why": r"why\b",
        "who": r"who(m|se)?\b",
        "when, where": r"whe(n|re)\b",
        "which": r"which\b",
        "yes or no": r"(is|are|was|were|do|does|did|can|could|will|would|have|has|had|should)\b",
    },
    "zh": {
        "why": "为什么|为何|为啥",
        "how": "如何|怎么|怎样",
        "who": "谁",
        "how many": "多少|几",
        "when, where": "何时|什么时候|哪里|哪儿|何处",
        "which": "哪",
        "what": "什么|何",
        "yes or no": "吗|是否",
    },
}


REST = "an order or statement"


def counts(bench):
    """Rows for a table: part, file, rows, roles, distinct questions, references, mean length of a reference."""
    table = []
    for part, name, samples in bench.files():
        references = sum(len(sample.generated) for sample in samples)
        lengths = (answer_lengths(sample.generated, bench.language).sum() for sample in samples)
        table.append({
            "part": part,
            "file": name,
            "rows": len(samples),
            "roles": len({sample.role for sample in samples}),
            "questions": len({sample.question for sample in samples}),
            "references": references,
            "mean length": round(float(sum(lengths)) / max(references, 1), 1),
        })  # fmt: skip
    return table


def lengths(bench):
    """{"part file": lengths of its references (n,)}, and of the distinct questions; words (en) or characters (zh)."""
    found, questions = {}, {}
    for part, name, samples in bench.files():
        texts = (text for sample in samples for text in sample.generated)
        found[f"{part} {name}"] = answer_lengths(texts, bench.language)
        questions.update(dict.fromkeys(sample.question for sample in samples))
    return found | {"questions": answer_lengths(questions, bench.language)}


def references_per_row(bench):
    """{"part file": {number of references: rows}} of train and test files."""
    return {
        f"{part} {name}": dict(Counter(len(sample.generated) for sample in samples))
        for part, name, samples in bench.files()
        if name != "rolegpt_baseline"
    }


def rows_by_role(bench):
    """{role: {"general": rows, "script_agnostic": ..., "script_based": ...}} of train and test together, most first."""
    found = {}
    for part, name, samples in bench.files():
        if name == "rolegpt_baseline":
            continue
        for sample in samples:
            row = found.setdefault(sample.role, Counter({"general": 0} | dict.fromkeys(TYPES, 0)))
            row["general" if part == "general" else kind_of(sample)] += 1
    return dict(sorted(((role, dict(row)) for role, row in found.items()), key=lambda entry: -sum(entry[1].values())))


def kind_of(sample):
    """The type of a role-specific Sample: that of its first reference."""
    return sample.type[0] if sample.type else "role_specific"


def question_kinds(bench):
    """Rows for a table: how the distinct questions of each part ask, {"asks", "general", "role_specific"}, most first.

    A label of ours: Table 1's open, commonsense and knowledge-intensive questions are not marked in the data.
    """
    found = {}
    for part in PARTS:
        questions = dict.fromkeys(s.question for samples in getattr(bench, part).values() for s in samples)
        for question in questions:
            row = found.setdefault(_asks(question, bench.language), dict.fromkeys(PARTS, 0))
            row[part] += 1
    return sorted(
        ({"asks": kind} | row for kind, row in found.items()), key=lambda row: -row["general"] - row[PARTS[1]]
    )


def _asks(question, language):
    if language == "zh":
        return next((kind for kind, pattern in ASKS["zh"].items() if re.search(pattern, question)), REST)
    # "Jack Sparrow, what ..." addresses the role first.
    text = question.lower()
    beginnings = (text, text.partition(", ")[2])
    return next((kind for part in beginnings for kind, pattern in ASKS["en"].items() if re.match(pattern, part)), REST)


def tiles(bench, pairs=None):
    """One dict a role for the panorama: rows, mean reference length, a catchphrase; `pairs` as `pairs()` gives them.

    The catchphrase is what the role's description quotes last, as the published ones do.
    """
    found = {}
    for _, name, samples in bench.files():
        for sample in samples:
            tile = found.setdefault(sample.role, {"train": 0, "test": 0, "length": 0, "references": 0})
            if name in tile:
                tile[name] += 1
                tile["length"] += int(answer_lengths(sample.generated, bench.language).sum())
                tile["references"] += len(sample.generated)
    return [
        {
            "role": role,
            "pairs": pairs.get(role_key(role)) if pairs else None,
            "train": tile["train"],
            "test": tile["test"],
            "mean_length": tile["length"] / tile["references"],
            "unit": UNITS[bench.language],
            "catchphrase": next(iter(QUOTED.findall(bench.descriptions.get(role, ""))[-1:]), ""),
        }
        for role, tile in found.items()
        if tile["references"]
    ]


def pairs(directory, language):
    """{role_key: dialogue pairs} of the profiles in a RoleBench folder, None when it has none."""
    prefix = f"profiles-{LANGUAGES[language]}"
    paths = sorted((directory / prefix).glob(f"{prefix}-*.jsonl"))
    return {role_key(path.stem.removeprefix(f"{prefix}-")): sum(1 for _ in read_lines(path)) for path in paths} or None


def table_1(benches):
    """Table 1 of the paper for any RoleBenches, one a language: rows "statistic | published | computed | difference".

    Counted as the paper did: general samples over train and test, role-specific ones over train alone; a sample is a
    (role, instruction) pair, a row. A published figure over both languages stands beside ours only when both are given.
    None is computed where the data does not say (categories, question kinds), for dialogue rounds, and for the mean
    lengths in words, which are printed for both languages together.
    """
    computed, languages = {}, [bench.language for bench in benches]
    for bench in benches:
        computed.update(_table_1_of(bench))
    if sorted(languages) == ["en", "zh"]:
        for name in (
            "roles",
            "samples",
            "instructions",
            "general samples",
            "general instructions",
            "role-specific samples",
            *TYPE_ROWS,
        ):
            computed[name] = sum(computed[f"{name}, {language}"] for language in languages)
    rows = []
    for name, published in TABLE_1.items():
        ours = computed.pop(name, None)
        difference = round(ours - published, 2) if published is not None and ours is not None else None
        rows.append({"statistic": name, "published": published, "computed": ours, "difference": difference})
    rest = [
        {"statistic": name, "published": None, "computed": ours, "difference": None} for name, ours in computed.items()
    ]
    return [row for row in rows + rest if row["statistic"].rpartition(", ")[2] not in {"en", "zh"} - set(languages)]


TYPE_ROWS = ("script-agnostic samples", "script-based samples")


def _table_1_of(bench):
    language, rows = bench.language, {part: getattr(bench, part) for part in PARTS}
    general = [*rows["general"].get("train", []), *rows["general"].get("test", [])]
    specific = rows["role_specific"].get("train", [])
    samples = [*general, *specific]
    texts = [text for sample in samples for text in sample.generated]
    types = Counter(kind_of(sample) for sample in specific)
    found = {
        "roles": len({sample.role for sample in samples}),
        "samples": len(samples),
        "general samples": len(general),
        "general instructions": len({sample.question for sample in general}),
        "instructions": len({sample.question for sample in general}) + len(specific),
        "role-specific samples": len(specific),
        "script-agnostic samples": types["script_agnostic"],
        "script-based samples": types["script_based"],
    }
    unit = UNITS[language]
    for name, all_texts in (("instruction", [sample.question for sample in samples]), ("response", texts)):
        found[f"mean {name} length in {unit}"] = (
            round(float(answer_lengths(all_texts, language).mean()), 2) if samples else None
        )
    return {f"{name}, {language}": value for name, value in found.items()}
