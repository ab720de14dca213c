"""Stage 4: the splits of RoleBench (paper, section 4), and what leaks from one file into another."""

from rolellm_utils import cleaning
from rolellm_utils.records import Sample
from rolellm_utils.rolebench import PARTS, SPLITS, RoleBench


def test_questions(general, role_specific, test_share, generator):
    """The questions that go to test: `test_share` of the general ones, and of each role's own."""
    groups = {"": {sample.question: None for sample in general}}
    for sample in role_specific:
        groups.setdefault(f"role {sample.role}", {})[sample.question] = None
    chosen = set()
    for questions in groups.values():
        count = max(1, round(test_share * len(questions))) if len(questions) > 1 else 0
        chosen.update(generator.sample(list(questions), count))
    return chosen


def by_question(general, role_specific, baselines, test_share, generator):
    """{part: {file: [Sample]}} with no test question in train, under any role, in either part.

    Rows go by their question: instruction generalisation (section 4). baselines: {part: [Sample]}, kept where they
    answer a test row.
    """
    chosen = test_questions(general, role_specific, test_share, generator)
    return _parts(general, role_specific, baselines, lambda sample: sample.question in chosen)


def by_role(general, role_specific, baselines, held_out):
    """{part: {file: [Sample]}} with every row of the held-out roles in test: role generalisation (section 4)."""
    return _parts(general, role_specific, baselines, lambda sample: sample.role in held_out)


def _parts(general, role_specific, baselines, in_test):
    parts = {}
    for part, samples in zip(PARTS, (general, role_specific), strict=True):
        test = [sample for sample in samples if in_test(sample)]
        asked = {(sample.role, sample.question) for sample in test}
        parts[part] = {
            "train": [sample for sample in samples if not in_test(sample)],
            "test": test,
            "rolegpt_baseline": [row for row in baselines[part] if (row.role, row.question) in asked],
        }
    return parts


def by_instruction(bench, test_share, generator):
    """A RoleBench of the same rows, split anew so that no test question is trained on.

    For the published Chinese split, whose test questions all occur in train under other roles, and for a partial copy
    that has test rows only. Rows of one (role, question) become one, so that none is on both sides; `drops` says which.
    """
    rows, baselines, drops = {}, {}, list(bench.drops)
    for part in PARTS:
        files = getattr(bench, part)
        pooled = [*files.get("train", []), *files.get("test", [])]
        rows[part], merged = cleaning.repair(pooled, f"{part}/train and test.jsonl", rules=())
        drops += merged
        baselines[part] = files.get("rolegpt_baseline", [])
    parts = by_question(rows["general"], rows["role_specific"], baselines, test_share, generator)
    kept = {part: {name: samples for name, samples in files.items() if samples} for part, files in parts.items()}
    return RoleBench(
        bench.language, "by-instruction", kept["general"], kept["role_specific"], bench.targets, bench.descriptions,
        bench.missing, drops, bench.notes,
    )  # fmt: skip


def remade(bench, split, test_share, generator):
    """({split: {part: {file: [Sample]}}}, drops): a given RoleBench as it is, and `by-instruction` when asked for."""
    drops = bench.drops
    made = {bench.split: {part: getattr(bench, part) for part in PARTS}}
    if split == "by-instruction" != bench.split:
        anew = by_instruction(bench, test_share, generator)
        made[split], drops = {part: getattr(anew, part) for part in PARTS}, anew.drops
    return made, drops


def assemble(answers, test_share, held_out, generator):
    """RoleBench from stage 3's answers: ({split: {part: {file: [Sample]}}}, drops, verdicts).

    Both splits of the paper: by instruction, and by role with `held_out` roles drawn for test (none when that would
    leave no role to train on). Baseline rows keep RoleGPT's one held-out answer uncleaned: it is scored as it is.
    """
    samples, drops, verdicts = cleaning.clean(answers)
    general = [sample for sample in samples if not sample.type]
    role_specific = [sample for sample in samples if sample.type]
    baselines = {part: [] for part in PARTS}
    for row in answers:
        part = PARTS[0] if row["kind"] == "general" else PARTS[1]
        baselines[part].append(Sample(role=row["role"], question=row["question"], generated=[row["baseline"]]))
    splits = {SPLITS[0]: by_question(general, role_specific, baselines, test_share, generator)}
    roles = sorted({sample.role for sample in samples})
    if 0 < held_out < len(roles):
        splits[SPLITS[1]] = by_role(general, role_specific, baselines, set(generator.sample(roles, held_out)))
    return splits, drops, verdicts


def leaks(first, second):
    """What two lists of Samples share: counts of rows of `first` by what of them occurs in `second`, and an example.

    {"rows", "roles", "question", "distinct questions", "role and question", "answer too", "example"}; "roles" counts
    distinct roles, "example" is the (role, question) of the worst of these rows, None when nothing is shared.
    """
    questions, pairs, answers = set(), set(), set()
    for sample in second:
        questions.add(sample.question)
        pairs.add((sample.role, sample.question))
        answers.update((sample.role, sample.question, text) for text in sample.generated)
    shared = [sample for sample in first if sample.question in questions]
    exact = [sample for sample in shared if (sample.role, sample.question) in pairs]
    same = [s for s in exact if any((s.role, s.question, text) in answers for text in s.generated)]
    example = next(iter([*same, *exact, *shared]), None)
    return {
        "rows": len(first),
        "roles": len({sample.role for sample in first} & {sample.role for sample in second}),
        "question": len(shared),
        "distinct questions": len({sample.question for sample in shared}),
        "role and question": len(exact),
        "answer too": len(same),
        "example": example and (example.role, example.question),
    }


def leak_table(benches):
    """`leaks` of every test file against every train file of the splits: a dict a pair, "test", "train" and its counts.

    benches: RoleBenches, one a split.
    """
    files = [(f"{b.split}/{part}", name, samples) for b in benches for part, name, samples in b.files()]
    return [
        {"test": tested, "train": trained} | leaks(test, train)
        for tested, name, test in files
        if name == "test"
        for trained, theirs, train in files
        if theirs == "train"
    ]


def broken_promises(table, splits):
    """The rows of a leak table in which one of these splits leaks what it promises not to.

    Role generalisation: no role of test in train; the others: no test question in train, under any role, in any part.
    """
    own = [row for row in table if row["test"].split("/")[0] == row["train"].split("/")[0]]
    what = {split: "roles" if split == "role-generalization" else "question" for split in splits}
    return [row for row in own if (key := what.get(row["test"].split("/")[0])) and row[key]]
