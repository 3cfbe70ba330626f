"""Tests of p-values, Holm's correction and the paired bootstrap."""

import numpy as np
import pytest
from evaluation_worlds import predictions_of
from scipy.stats import ttest_rel

from clipit.errors import DataError
from clipit.evaluation.intervals import Estimate, paired_bootstrap
from clipit.evaluation.metrics import METRICS, compute_metrics
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.significance import Significance, holm, paired_t_test


@pytest.mark.parametrize("n", [5, 6, 20])
def test_p_value_matches_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.normal(size=n), rng.normal(0.4, size=n)
    test = paired_t_test((second - first).tolist())
    assert test.p == pytest.approx(ttest_rel(second, first).pvalue, rel=1e-9)
    assert paired_t_test((first - second).tolist()).p == pytest.approx(test.p), "two-sided"


def test_no_p_value_for_few_seeds_or_equal_differences() -> None:
    few = paired_t_test([0.1, 0.2, 0.15, 0.3])
    assert few.p is None
    assert "4 of the 5 seeds" in few.reason
    same = paired_t_test([0.1 + 0.2, 0.3, 0.3, 0.3, 0.3])
    assert same.p is None, "rounding errors must not count as spread"
    assert same.reason == "no spread over seeds"
    assert paired_t_test([0.0] * 5).p is None
    with pytest.raises(DataError, match="undefined"):
        paired_t_test([0.1, float("nan"), 0.1, 0.2, 0.3])


def slow_holm(values: list[float]) -> list[float]:
    """Holm-adjusted p-values by definition: running maximum of the corrected smaller p-values."""
    ranks = [sorted(values).index(p) for p in values]
    raw = {p: min(1.0, (len(values) - rank) * p) for p, rank in zip(values, ranks, strict=True)}
    return [max(raw[q] for q in values if q <= p) for p in values]


def test_holm_matches_its_definition() -> None:
    values = [0.01, 0.04, 0.03, 0.005, 0.8, 0.03]
    family = {("arm", i): Significance(p) for i, p in enumerate(values)} | {("few", 0): Significance(None, "3 seeds")}
    corrected = holm(family)
    assert [corrected["arm", i].p for i in range(6)] == pytest.approx(slow_holm(values))
    assert corrected["few", 0] == Significance(None, "3 seeds")
    assert list(corrected) == list(family)
    assert holm({"one": Significance(0.02)})["one"].p == 0.02
    assert holm({i: Significance(p) for i, p in enumerate([0.01, 0.04, 0.03])})[0].p == pytest.approx(0.03)


def bootstrap_one(
    pairs: list[tuple[Predictions, Predictions]], metric: str = "accuracy", resamples: int = 1000, seed: int = 0
) -> Estimate:
    return paired_bootstrap(pairs, (metric,), resamples, seed)[metric]


def test_interval_of_a_metric_does_not_depend_on_other_metrics() -> None:
    baseline, arm = predictions_of(60, 3, seed=1, skill=0.5), predictions_of(60, 3, seed=2, skill=2.0)
    all_metrics = paired_bootstrap([(baseline, arm)], resamples=200, seed=4)
    assert list(all_metrics) == list(METRICS)
    assert bootstrap_one([(baseline, arm)], "macro_f1", 200, 4) == all_metrics["macro_f1"]


@pytest.mark.parametrize("metric", ["accuracy", "auroc"])
def test_bootstrap_averages_seeds_and_matches_tiles_by_id(metric: str) -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (predictions_of(50, 2, seed=s, skill=0.3), predictions_of(50, 2, seed=10 + s, skill=1.0)) for s in range(3)
    ]
    differences = [
        compute_metrics(b.labels, b.probabilities)[metric] - compute_metrics(a.labels, a.probabilities)[metric]
        for a, b in pairs
    ]
    estimate = bootstrap_one(pairs, metric, 300, 0)
    assert estimate.value == pytest.approx(np.mean(differences))
    assert estimate.interval.low < estimate.value < estimate.interval.high
    permuted = [(a.take(rng.permutation(50)), b.take(rng.permutation(50))) for a, b in pairs]
    assert bootstrap_one(permuted, metric, 300, 0) == estimate
    single = bootstrap_one(pairs[:1], metric, 300, 0)
    assert estimate.interval.high - estimate.interval.low < single.interval.high - single.interval.low


def test_groups_are_resampled_jointly_for_all_seeds() -> None:
    grouped = [(predictions_of(40, 2, seed=s, groups=10), predictions_of(40, 2, seed=9 + s, groups=10)) for s in (0, 1)]
    estimate = bootstrap_one(grouped, "accuracy", 400, 0)
    tables = [(first.by_id(), second.by_id()) for first, second in grouped]
    hits = np.mean(
        [1.0 * (b.probabilities.argmax(1) == b.labels) - (a.probabilities.argmax(1) == a.labels) for a, b in tables],
        axis=0,
    )
    groups = grouped[0][0].by_id().groups
    means = np.array([hits[groups == g].mean() for g in np.unique(groups)])
    assert means.min() - 1e-9 <= estimate.interval.low < estimate.interval.high <= means.max() + 1e-9
    one = [(predictions_of(40, 2, seed=1, groups=1), predictions_of(40, 2, seed=2, groups=1))]
    assert "1 independent unit" in bootstrap_one(one, "accuracy", 100, 0).interval.reason


def test_incompatible_predictions_raise_an_error() -> None:
    first = predictions_of(20, 2, seed=1)
    with pytest.raises(DataError, match="cover different tiles"):
        bootstrap_one([(first, first.take(np.arange(19)))])
    with pytest.raises(DataError, match="several splits: test, validation"):
        bootstrap_one([(first, predictions_of(20, 2, seed=1, split="validation"))])
    with pytest.raises(DataError, match="differ in their labels"):
        bootstrap_one([(first, predictions_of(20, 2, seed=1, shift_labels=True))])
    with pytest.raises(DataError, match="unknown metric loss"):
        bootstrap_one([(first, first)], "loss")
    with pytest.raises(DataError, match="no predictions"):
        bootstrap_one([])
