import numpy as np
import pytest

from rolellm_utils.stats import interval, verdict


def test_a_clear_difference_is_more_than_noise_and_a_coin_toss_is_not():
    generator = np.random.default_rng(1)
    clusters = [f"q{i // 3}" for i in range(60)]
    clear = interval(generator.normal(0.10, 0.05, 60), clusters, np.random.default_rng(0))
    assert clear[1] > 0 and "better by more than noise" in verdict("CUS", *clear)
    worse = interval(generator.normal(-0.10, 0.05, 60), clusters, np.random.default_rng(0))
    assert "worse by more than noise" in verdict("CUS", *worse)
    noise = interval(generator.normal(0.0, 0.20, 60) - 0.01, clusters, np.random.default_rng(0))
    assert noise[1] < 0 < noise[2] and "no more than noise" in verdict("CUS", *noise)


def test_the_interval_resamples_clusters_not_rows():
    """Copies of the same row within a question add nothing: the interval must not narrow."""
    values = np.random.default_rng(2).normal(size=20)
    names = [f"q{i}" for i in range(20)]
    once = interval(values, names, np.random.default_rng(0))
    thrice = interval(np.repeat(values, 3), np.repeat(names, 3), np.random.default_rng(0))
    assert once == pytest.approx(thrice)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        mean, low, high = interval(generator.normal(0, 1, 40), range(40), generator, draws=400)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_one_question_gives_no_interval():
    mean, low, _ = interval([0.5, 0.7], ["q", "q"], np.random.default_rng(0))
    assert mean == pytest.approx(0.6) and np.isnan(low)
    assert "nothing can be said" in verdict("SPE", mean, low, low)
    assert np.isnan(interval([], [], np.random.default_rng(0))[0])
