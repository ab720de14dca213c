"""The audit against made-up defects, whose number is known, and against the counts measured on the published data."""

import json

import pytest

from rolellm_utils import audit
from rolellm_utils.audit import MEASURED
from rolellm_utils.records import InputError
from tests.published import rolebench_dir

ZH = "rolebench-zh/general"


def rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def row(role, question, *generated, **more):
    return {"role": role, "question": question, "generated": list(generated)} | more


@pytest.fixture
def damaged(tmp_path):
    rows(tmp_path / f"{ZH}/train.jsonl", [
        row("悟空", "q1", "俺老孙来也！"),
        row("悟空", "q2 ", " 好。", "好。"),
        row("悟空", "q2", "作为AI语言模型，我无法回答。"),
        row(" 悟空", "q3", "悟空：走！", "走了没有"),
        row("悟-空", "q4", "Hello.", type="x"),
    ])  # fmt: skip
    rows(tmp_path / f"{ZH}/test.jsonl", [
        row("悟空", "q1", "俺老孙来也！", type=["x"]),
        row("张飞", "q1", "燕人张翼德在此！"),
        row("张飞", "q9", "  "),
        row("张飞", "q8", "V.O.) 哇呀呀！"),
    ])  # fmt: skip
    rows(tmp_path / f"{ZH}/rolegpt_baseline.jsonl", [row("张飞", "q9", "剧本里没有。")])
    return tmp_path


def counted(findings):
    return {(found["file"].rpartition("/")[2], found["defect"]): found["count"] for found in findings}


def test_each_defect_is_counted_once_with_its_place(damaged):
    findings = audit.audit(damaged, "zh")
    counts = counted(findings)
    expected = {
        ("train.jsonl", "rows"): 5,
        ("train.jsonl", "distinct (role, question)"): 4,
        ("train.jsonl", "references"): 7,
        ("train.jsonl", "row with 2 references"): 2,
        ("train.jsonl", "row with 1 reference"): 3,
        ("train.jsonl", "question padded with white space"): 1,
        ("train.jsonl", "reference padded with white space"): 1,
        ("train.jsonl", "role padded with white space"): 1,
        ("train.jsonl", "reference repeated in its row"): 1,
        ("train.jsonl", "repeats the role and question of an earlier row"): 1,
        ("train.jsonl", "discloses an AI or language model"): 1,
        ("train.jsonl", "reads as a refusal"): 1,
        ("train.jsonl", "starts with the role's name and a colon"): 1,
        ("train.jsonl", "does not end like a sentence"): 1,
        ("train.jsonl", "in another script than the language's"): 1,
        ("train.jsonl", "type is a text"): 1,
        ("test.jsonl", "type is a list"): 1,
        ("test.jsonl", "reference is empty"): 1,
        ("test.jsonl", "starts in the middle of a stage direction"): 1,
        ("test.jsonl", "distinct question that occurs in train"): 1,
        ("test.jsonl", "(role, question) that occurs in train"): 1,
        ("test.jsonl", "(role, question) that occurs in train, with an answer"): 1,
        ("test.jsonl", "row that the RoleGPT baseline answers"): 1,
        ("rolegpt_baseline.jsonl", "talks of its script or role"): 1,
        ("all files", "role spelled in more than one way"): 1,
    }
    assert {key: counts.get(key) for key in expected} == expected
    places = {(f["file"].rpartition("/")[2], f["defect"]): [e["line"] for e in f["examples"]] for f in findings}
    assert places["train.jsonl", "repeats the role and question of an earlier row"] == [3]
    assert places["train.jsonl", "discloses an AI or language model"] == [3]
    assert places["test.jsonl", "reference is empty"] == [3]
    assert all(found["measured"] is None for found in findings)
    json.dumps(findings, allow_nan=False)
    assert "悟空" in audit.table(findings).to_string()


def test_a_clean_file_has_no_finding_but_its_sizes(tmp_path):
    rows(tmp_path / f"{ZH}/train.jsonl", [row("悟空", "q1", "俺老孙来也，尔等退下！", "来得正好，吃俺一棒！")])
    defects = [found["defect"] for found in audit.audit(tmp_path, "zh") if found["count"]]
    assert defects == ["rows", "distinct (role, question)", "references", "row with 2 references"]


def test_what_differs_from_the_measured_count_is_said_and_what_is_absent_needs_the_hub(damaged):
    rows(damaged / f"{ZH}/train.jsonl", [row(role, "q", "好。") for role in ("孙悟空", "张飞", "李白", "华妃", "皇帝")])
    findings = audit.audit(damaged, "zh")
    agrees = {(found["file"], found["defect"]): (found["count"], found["agrees"]) for found in findings}
    assert agrees[f"{ZH}/train.jsonl", "rows"] == (5, "NO")
    assert agrees[f"{ZH}/test.jsonl", "row with 5 references"] == (0, "NO")
    assert agrees["rolebench-zh/role_specific/test.jsonl", "rows"] == (None, "needs the hub")


def test_nothing_to_audit_and_damage_are_refused_as_the_loader_does(tmp_path):
    with pytest.raises(InputError, match="holds no RoleBench files"):
        audit.audit(tmp_path, "zh")
    with pytest.raises(InputError, match="language is 'fr'"):
        audit.audit(tmp_path, "fr")
    rows(tmp_path / f"{ZH}/test.jsonl", [])
    with pytest.raises(InputError, match="test.jsonl, line 1: the file is empty"):
        audit.audit(tmp_path, "zh")
    rows(tmp_path / f"{ZH}/test.jsonl", [row("悟空", "q", "好。")])
    (tmp_path / "profiles-zh").mkdir()
    (tmp_path / "profiles-zh/desc.json").write_text("[1]")
    with pytest.raises(InputError, match="desc.json must be one JSON object"):
        audit.audit(tmp_path, "zh")


@pytest.mark.parametrize(("language", "split"), [("zh", "instruction-generalization"), ("en", "role-generalization")])
def test_counts_of_the_published_copy_equal_the_measured_ones(language, split):
    findings = audit.audit(rolebench_dir(), language, split)
    told = [found["agrees"] for found in findings if found["measured"] is not None]
    assert "NO" not in told and told.count("yes") >= 15
    absent = {found["file"] for found in findings if found["agrees"] == "needs the hub"}
    assert not any((rolebench_dir() / name).exists() for name in absent)
    code = "rolebench-zh" if language == "zh" else "rolebench-eng"
    assert len(told) == sum(file.startswith(code) for file, _ in MEASURED), "none of them is left out"
    pattern = {found["defect"]: found["count"] for found in findings if found["agrees"] == "depends on the pattern"}
    if language == "en":
        assert pattern == {"discloses an AI or language model": 53, "reads as a refusal": 132}
