import random

from rolellm_utils import rolebench, splits
from rolellm_utils.records import Sample
from rolellm_utils.rolebench import RoleBench
from tests.published import rolebench_dir


def answers(roles=("A", "B", "C"), general=10, specific=5):
    rows = [
        {"role": role, "question": f"general {i}?", "kind": "general", "baseline": f"base {role} {i}.",
         "generated": [f"{role} says {i}.", f"{role}: {i}!"]}
        for role in roles
        for i in range(general)
    ]  # fmt: skip
    rows += [
        {"role": role, "question": f"{role} knows {i}?", "kind": "script_based", "generated": [f"{role} knew {i}."],
         "baseline": f"b {i}."}
        for role in roles
        for i in range(specific)
    ]  # fmt: skip
    return rows


def by_instruction(rows, test_share, seed=0):
    made, _, _ = splits.assemble(rows, test_share, 0, random.Random(seed))
    return made["instruction-generalization"]


def test_no_test_question_is_trained_on_and_every_role_has_test_rows():
    parts = by_instruction(answers(), 0.4)
    for files in parts.values():
        trained = {sample.question for sample in files["train"]}
        assert trained and trained.isdisjoint(sample.question for sample in files["test"])
        assert {sample.role for sample in files["test"]} == {"A", "B", "C"}
        asked = [(sample.role, sample.question) for sample in files["test"]]
        assert sorted(asked) == sorted((sample.role, sample.question) for sample in files["rolegpt_baseline"])
    assert len(parts["general"]["test"]) == 12 and len(parts["role_specific"]["test"]) == 6
    assert all(sample.type == ["script_based"] for sample in parts["role_specific"]["train"])


def test_held_out_roles_are_in_test_alone_with_all_their_rows():
    made, _, _ = splits.assemble(answers(tuple("ABCDE")), 0.4, 2, random.Random(0))
    for files in made["role-generalization"].values():
        held_out = {sample.role for sample in files["test"]}
        assert len(held_out) == 2 and held_out.isdisjoint(sample.role for sample in files["train"])
        assert len(files["test"]) == len(files["rolegpt_baseline"]) == 2 * len(files["train"]) // 3
    again, _, _ = splits.assemble(answers(tuple("ABCDE")), 0.4, 2, random.Random(0))
    assert made == again
    alone, _, _ = splits.assemble(answers(("A",)), 0.4, 1, random.Random(0))
    assert list(alone) == ["instruction-generalization"], "one role cannot be held out from itself"


def test_the_general_share_holds_when_cleaning_took_some_roles_rows():
    rows = answers(tuple("ABCDEFGH"), general=40, specific=0)
    for i in range(0, len(rows), 7):
        rows[i]["generated"] = [""]
    assert len({sample.question for sample in by_instruction(rows, 0.25)["general"]["test"]}) == 10


def test_a_question_in_both_parts_is_on_one_side_of_the_split():
    rows = answers(("A",), 6, 0) + [row | {"kind": "script_based"} for row in answers(("B",), 6, 0)]
    parts = by_instruction(rows, 0.5, seed=1)
    trained = {sample.question for files in parts.values() for sample in files["train"]}
    assert trained.isdisjoint(sample.question for files in parts.values() for sample in files["test"])


def test_source_lines_reach_train_and_test():
    rows = [row | {"id": 3, "file": "a.txt", "lines": [4, 9]} for row in answers(("A",), 0, 4)]
    parts = by_instruction(rows, 0.5)
    assert all((s.id, s.file, s.lines) == (3, "a.txt", (4, 9)) for s in parts["role_specific"]["train"])


def test_leaks_are_counted_from_question_to_answer():
    train = [Sample(role="A", question="q", generated=["x", "y"]), Sample(role="A", question="r", generated=["z"])]
    test = [
        Sample(role="A", question="q", generated=["y"]),
        Sample(role="A", question="r", generated=["other"]),
        Sample(role="B", question="q", generated=["y"]),
        Sample(role="B", question="new", generated=["n"]),
    ]
    found = splits.leaks(test, train)
    assert found == {
        "rows": 4, "roles": 1, "question": 3, "distinct questions": 2, "role and question": 2, "answer too": 1,
        "example": ("A", "q"),
    }  # fmt: skip
    assert splits.leaks(test[3:], train)["example"] is None


def leaking_bench():
    """A RoleBench whose test questions all occur in train, one row of it word for word."""
    rows = [Sample(role=role, question=f"q{i}", generated=[f"{role}{i}"]) for role in "AB" for i in range(10)]
    baseline = [Sample(role=row.role, question=row.question, generated=["b"]) for row in rows]
    general = {"train": rows[:15], "test": [*rows[15:], rows[0].model_copy(update={"generated": ["A0", "new"]})]}
    return RoleBench("zh", "instruction-generalization", general | {"rolegpt_baseline": baseline}, {})


def test_a_split_by_instruction_leaks_nothing_and_loses_no_row():
    given = leaking_bench()
    assert splits.leaks(given.general["test"], given.general["train"])["question"] == 6
    anew = splits.by_instruction(given, 0.3, random.Random(0))
    rows = [*anew.general["train"], *anew.general["test"]]
    assert splits.leaks(anew.general["test"], anew.general["train"])["question"] == 0
    assert len(rows) == 20 and len(anew.general["test"]) == 6
    assert next(row.generated for row in rows if (row.role, row.question) == ("A", "q0")) == ["A0", "new"]
    assert len(anew.general["rolegpt_baseline"]) == 6
    assert {drop["reason"] for drop in anew.drops} == {"duplicate row, merged", "duplicate reference"}
    made, drops = splits.remade(given, "by-instruction", 0.3, random.Random(0))
    assert drops == anew.drops and splits.remade(given, given.split, 0.3, random.Random(0))[1] == []
    assert list(made) == ["instruction-generalization", "by-instruction"] and made["by-instruction"]["general"]["test"]
    assert made["instruction-generalization"]["general"] is given.general


def test_the_published_chinese_split_leaks_and_ours_does_not():
    bench = rolebench.load(rolebench_dir(), "zh")
    published = {(row["test"], row["train"]): row for row in splits.leak_table([bench])}
    name = bench.split
    general = published[f"{name}/general", f"{name}/general"]
    assert (general["distinct questions"], general["question"], general["role and question"]) == (970, 1451, 0)
    specific = published[f"{name}/role_specific", f"{name}/role_specific"]
    assert (specific["role and question"], specific["answer too"]) == (7, 5)
    ours = splits.by_instruction(bench, 0.2, random.Random(0))
    table = splits.leak_table([bench, ours])
    assert len(table) == 16 and not splits.broken_promises(table, ["by-instruction"])
    assert len(splits.broken_promises(table, [name])) == 2
    assert sum(len(samples) for _, name, samples in ours.files() if name != "rolegpt_baseline") == 7384 + 1765


def test_a_broken_promise_is_found_by_question_or_by_role():
    train, test = [Sample(role="A", question="q", generated=["x"])], [Sample(role="B", question="q", generated=["x"])]
    benches = [RoleBench("en", split, {"train": train, "test": test}, {}) for split in rolebench.SPLITS[:2]]
    table = splits.leak_table(benches)
    assert [row["test"] for row in splits.broken_promises(table, rolebench.SPLITS)] == [
        "instruction-generalization/general"
    ]
    benches[1].general["test"] = [Sample(role="A", question="new", generated=["x"])]
    broken = splits.broken_promises(splits.leak_table(benches), ["role-generalization"])
    assert [row["roles"] for row in broken] == [1]
