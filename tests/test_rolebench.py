import random

import pytest
from datasets import load_dataset

from rolellm_utils import rolebench
from rolellm_utils.records import InputError, Profile, Sample


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


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("As an AI language model, I have no feelings.", "AI identity"),
        ("I was trained by OpenAI.", "AI identity"),
        ("作为一个人工智能，我没有感情。", "AI identity"),
        ("In my script I never say that.", "role identity"),
        ("我的角色是一个船夫。", "role identity"),
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("I’m sorry, but I can’t assist with that.", "refusal"),
        ("I can't help but laugh at you, lass.", ""),
        ("抱歉，我不能回答这个问题。", "refusal"),
        ("", "incomplete"),
        ("one, two, ", "incomplete"),
        ("...", "incomplete"),
        ("Aye, lass. The sea keeps her own books.", ""),
        ("俺老孙来也！", ""),
        ("42", ""),
        ('It said "Go home."', ""),
    ],
)
def test_the_four_cleaning_rules(text, rule):
    assert rolebench.broken_rule(text) == rule


def test_cleaning_drops_references_then_rows_and_says_why():
    rows = answers(("A",), 2, 0)
    rows[0]["generated"] = ["As an AI, no.", "Aye."]
    rows[1]["generated"] = ["", "I cannot answer that."]
    samples, drops = rolebench.clean(rows)
    assert [(sample.question, sample.generated) for sample in samples] == [("general 0?", ["Aye."])]
    assert [drop["reason"] for drop in drops] == ["AI identity", "incomplete", "refusal"]


def test_no_test_question_is_trained_on_and_every_role_has_test_rows():
    parts, _ = rolebench.assemble(answers(), 0.4, random.Random(0))
    for files in parts.values():
        trained = {sample.question for sample in files["train"]}
        assert trained and trained.isdisjoint(sample.question for sample in files["test"])
        assert {sample.role for sample in files["test"]} == {"A", "B", "C"}
        asked = [(sample.role, sample.question) for sample in files["test"]]
        assert sorted(asked) == sorted((sample.role, sample.question) for sample in files["rolegpt_baseline"])
    assert len(parts["general"]["test"]) == 12 and len(parts["role_specific"]["test"]) == 6
    assert all(sample.type == ["script_based"] for sample in parts["role_specific"]["train"])


def test_the_general_share_holds_when_cleaning_took_some_roles_rows():
    rows = answers(tuple("ABCDEFGH"), general=40, specific=0)
    for i in range(0, len(rows), 7):
        rows[i]["generated"] = [""]
    parts, _ = rolebench.assemble(rows, 0.25, random.Random(0))
    assert len({sample.question for sample in parts["general"]["test"]}) == 10


def test_a_question_in_both_parts_is_on_one_side_of_the_split():
    rows = answers(("A",), 6, 0) + [row | {"kind": "script_based"} for row in answers(("B",), 6, 0)]
    parts, _ = rolebench.assemble(rows, 0.5, random.Random(1))
    trained = {sample.question for files in parts.values() for sample in files["train"]}
    assert trained.isdisjoint(sample.question for files in parts.values() for sample in files["test"])


def test_source_lines_reach_train_and_test():
    rows = [row | {"id": 3, "file": "a.txt", "lines": [4, 9]} for row in answers(("A",), 0, 4)]
    parts, _ = rolebench.assemble(rows, 0.5, random.Random(0))
    assert all((s.id, s.file, s.lines) == (3, "a.txt", (4, 9)) for s in parts["role_specific"]["train"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_written_comes_back_from_our_loader_and_from_datasets(tmp_path, language):
    parts, drops = rolebench.assemble(answers(("孙悟空", "B")), 0.4, random.Random(3))
    written = rolebench.save(parts, drops, tmp_path, language)
    bench = rolebench.load(tmp_path / "rolebench", language)
    assert bench.general == parts["general"] and bench.role_specific == parts["role_specific"]
    assert bench.missing == [f"instructions-{'eng' if language == 'en' else 'zh'}/instructions-general.jsonl"]
    again, _ = rolebench.assemble(answers(("孙悟空", "B")), 0.4, random.Random(3))
    before = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in rolebench.save(again, drops, tmp_path, language)] == before
    train = load_dataset("json", data_files=str(written[0]), cache_dir=str(tmp_path / "cache"))["train"]
    assert train.num_rows == len(parts["general"]["train"])
    assert rolebench.counts(bench)[0]["rows"] == train.num_rows


def test_published_defects_are_survived(tmp_path):
    folder = tmp_path / "rolebench-eng/role-generalization/role_specific"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(
        '{"role": "A", "question": " Q?", "generated": [" a "], "type": "x"}\n'
        '{"role": "A", "question": "R?", "generated": ["b"], "type": ["y"]}\n'
    )
    bench = rolebench.load(tmp_path, "en", "role-generalization")
    assert bench.role_specific["test"] == [
        Sample(role="A", question="Q?", generated=["a"], type=["x"]),
        Sample(role="A", question="R?", generated=["b"], type=["y"]),
    ]
    assert len(bench.missing) == 6


def test_a_folder_without_rolebench_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no RoleBench files"):
        rolebench.load(tmp_path)
    with pytest.raises(InputError, match="split is 'x'"):
        rolebench.load(tmp_path, split="x")


def test_tiles_count_rows_by_role(tmp_path):
    parts, drops = rolebench.assemble(answers(("A",)), 0.4, random.Random(0))
    rolebench.save(parts, drops, tmp_path, "en")
    bench = rolebench.load(tmp_path / "rolebench")
    tile = rolebench.tiles(bench, [Profile(role="A", description="d", catchphrases=["so"])], "words")[0]
    assert (tile["train"], tile["test"], tile["catchphrase"]) == (9, 6, "so") and tile["mean_length"] > 1
