import json

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from rolellm_utils import rolebench, scoring
from rolellm_utils.records import Sample
from rolellm_utils.rolebench import RoleBench
from tests.published import rolebench_dir


def bench(roles=("A", "B"), questions=4):
    general = [
        Sample(role=role, question=f"q{i}", generated=[f"{role} says the sea is {i} deep", f"aye {role} {i}"])
        for i in range(questions)
        for role in roles
    ]
    specific = [
        Sample(role=role, question=f"who {role}{i}", generated=[f"it was {role} {i}"])
        for role in roles
        for i in range(3)
    ]
    targets = {f"q{i}": f"the sea is {i} deep" for i in range(questions)}
    return RoleBench("en", "instruction-generalization", {"test": general}, {"test": specific}, targets)


def perfect(data):
    return {(s.role, s.question): s.generated[0] for s in [*data.general["test"], *data.role_specific["test"]]}


def by_name(cells, model, metric, protocol="rouge_score"):
    return next(c for c in cells if (c["model"], c["metric"], c["protocol"]) == (model, metric, protocol))


def test_cells_are_the_mean_of_the_package_and_avg_the_mean_of_three():
    data = bench()
    answers = {key: f"the sea is {i} deep" for i, key in enumerate(perfect(data))}
    cells = scoring.table({"m": answers}, data, np.random.default_rng(0), 200)
    scorer = RougeScorer(["rougeL"])
    expected = np.mean([
        max(scorer.score(text, answers[s.role, s.question])["rougeL"].fmeasure for text in s.generated)
        for s in data.general["test"]
    ])  # fmt: skip
    cus = by_name(cells, "m", "CUS")
    assert cus["mean"] == pytest.approx(expected, abs=1e-12) and cus["low"] <= cus["mean"] <= cus["high"]
    means = [by_name(cells, "m", metric)["mean"] for metric in scoring.METRICS]
    assert by_name(cells, "m", "avg")["mean"] == pytest.approx(np.mean(means))
    assert cus["n"] == 8 and cus["length"] == 5


def test_the_wrong_role_control_scores_answers_against_another_role():
    data = bench()
    cus = by_name(scoring.table({"m": perfect(data)}, data, np.random.default_rng(0), 50), "m", "CUS")
    assert cus["mean"] == 1.0 and 0.3 < cus["wrong_role"] < 1.0


def test_better_answers_are_called_better_and_equal_ones_noise():
    data = bench(questions=12)
    good, bad = perfect(data), {key: "no idea" for key in perfect(data)}
    sentences = [
        c["sentence"] for c in scoring.differences(good, {"untuned": bad}, data, np.random.default_rng(0), 500)
    ]
    assert len(sentences) == 6 and all("better by more than noise" in sentence for sentence in sentences)
    same = [c["sentence"] for c in scoring.differences(good, {"same": good}, data, np.random.default_rng(0), 500)]
    assert all("no more than noise" in sentence for sentence in same)


def test_a_missing_metric_is_none_with_a_reason_not_zero():
    data = bench()
    data.role_specific["test"], data.targets = [], {}
    cells = scoring.table({"m": perfect(data)}, data, np.random.default_rng(0), 50)
    assert by_name(cells, "m", "SPE")["mean"] is None and by_name(cells, "m", "avg")["mean"] is None
    assert [gap.split()[0] for gap in scoring.gaps(data)] == ["RAW", "SPE"]
    assert "n/a" in scoring.wide(cells).to_string()
    json.dumps(cells, allow_nan=False)


def test_an_empty_target_is_no_reference():
    data = bench()
    data.targets = {question: "" for question in data.targets}
    assert by_name(scoring.table({"m": perfect(data)}, data, np.random.default_rng(0), 50), "m", "RAW")["mean"] is None


def test_samples_are_drawn_by_seed_and_carry_every_model():
    data = bench(questions=20)
    models = {"m": perfect(data), "n": {}}
    drawn = scoring.draw_samples(models, data, 5, np.random.default_rng(4))
    assert drawn == scoring.draw_samples(models, data, 5, np.random.default_rng(4))
    assert drawn != scoring.draw_samples(models, data, 5, np.random.default_rng(5))
    assert len(drawn) == 5 and all(set(sample["answers"]) == {"m", "n"} for sample in drawn)


def test_a_sample_of_the_test_rows_keeps_the_roles_of_a_question_together():
    data = bench(questions=30)
    fewer = scoring.sampled(data, 100, np.random.default_rng(0))
    assert len(fewer.general["test"]) == 10 and len({s.question for s in fewer.general["test"]}) == 5
    assert len(fewer.role_specific["test"]) == 6 and len(data.general["test"]) == 60
    assert scoring.sampled(data, 100, np.random.default_rng(0)) == fewer
    assert scoring.sampled(data, 100, np.random.default_rng(1)) != fewer
    assert scoring.sampled(data, 0, None) is data
    assert scoring.wrong_role(fewer)


def test_the_controls_cut_at_the_first_line_and_at_the_mean_reference_length():
    data = bench()
    key, other = ("A", "q0"), ("A", "who A0")
    answers = {key: "\n one two three\nfour five six seven", other: "it was A 0 and more"}
    cut = scoring.shortened(answers, data, "untuned")
    assert list(cut) == ["untuned, first line", "untuned, mean length", "untuned, first line, mean length"]
    assert cut["untuned, first line"][key] == "one two three"
    # General references of this bench have 7 and 3 words, role-specific ones 4.
    assert cut["untuned, mean length"][key].split() == ["one", "two", "three", "four", "five"]
    assert cut["untuned, mean length"][other] == "it was A 0"
    assert cut["untuned, first line, mean length"][key] == "one two three"


@pytest.mark.parametrize(
    ("text", "length", "language", "expected"),
    [("a  b\nc d", 3, "en", "a  b\nc"), ("俺 老孙来也", 3, "zh", "俺 老孙"), ("ab", 9, "en", "ab"), ("", 3, "zh", "")],
)
def test_the_beginning_of_a_text(text, length, language, expected):
    assert scoring.first(text, length, language) == expected


def test_by_role_is_the_mean_of_the_roles_rows():
    data = bench()
    answers = perfect(data) | {(s.role, s.question): "no" for s in data.general["test"] if s.role == "B"}
    table = scoring.by_role({"m": answers}, data, "rouge_score")
    assert table.loc["A", ("CUS", "m")] == 1.0 and table.loc["B", ("CUS", "m")] == 0.0
    assert table.loc["B", ("SPE", "m")] == 1.0 and table.loc["B", ("CUS length", "m")] == 1.0


def test_the_control_is_over_questions_that_other_roles_answer_and_its_right_role_over_the_same_rows():
    data = bench()
    data.general["test"].append(Sample(role="A", question="alone", generated=["only A"]))
    data.general["test"].append(data.general["test"][0].model_copy())
    answers = perfect(data) | {("A", "alone"): "nothing of it"}
    cus = by_name(scoring.table({"m": answers}, data, np.random.default_rng(0), 50), "m", "CUS")
    assert cus["n"] == 10 and cus["wrong_role_n"] == 8 and cus["mean"] == 0.9 and cus["right_role"] == 1.0
    assert cus["wrong_role"] < 1.0


def test_data_of_our_own_has_no_printed_figure_beside_it(tmp_path):
    rows = [Sample(role="A", question="q", generated=["one two"])]
    part = {"test": rows, "rolegpt_baseline": [rows[0].model_copy(update={"generated": ["one"]})]}
    rolebench.save({"general": part}, tmp_path, "en", "instruction-generalization")
    cus = scoring.rescored(tmp_path)[0]
    assert (cus["best_f"], cus["published"], cus["difference"], cus["why"]) == (0.5, None, None, "")


def test_the_released_chinese_baseline_gives_the_published_cells():
    rows = {row["metric"]: row for row in scoring.rescored(rolebench_dir(), "zh")}
    spe, cus = rows["SPE"], rows["CUS"]
    assert (spe["rows"], f"{spe['best_f']:.4f}", f"{spe['max']:.4f}", spe["published"]) == (
        239,
        "0.2477",
        "0.2478",
        0.2478,
    )
    assert (cus["rows"], f"{cus['best_f']:.4f}", f"{cus['max']:.4f}", cus["published"]) == (
        1451,
        "0.5478",
        "0.5707",
        0.5368,
    )
    assert rows["RAW"]["best_f"] is None and "targets" in rows["RAW"]["why"]


def test_the_released_english_baseline_gives_the_published_cell():
    rows = {row["metric"]: row for row in scoring.rescored(rolebench_dir(), "en", "role-generalization")}
    spe = rows["SPE"]
    assert (spe["rows"], spe["of"], f"{spe['best_f']:.4f}", f"{spe['max']:.4f}") == (696, 2534, "0.2981", "0.2982")
    assert spe["published"] == 0.2985 and "696" in spe["why"] and rows["CUS"]["rows"] == 0
