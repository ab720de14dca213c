import json

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from rolellm_utils import scoring
from rolellm_utils.records import Sample
from rolellm_utils.rolebench import RoleBench


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
    sentences = [c["sentence"] for c in scoring.differences(good, bad, data, np.random.default_rng(0), 500)]
    assert len(sentences) == 6 and all("better by more than noise" in sentence for sentence in sentences)
    same = [c["sentence"] for c in scoring.differences(good, good, data, np.random.default_rng(0), 500)]
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
