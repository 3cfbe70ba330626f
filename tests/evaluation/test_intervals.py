"""Tests of bootstrap and t intervals."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from clipit.errors import DataError
from clipit.evaluation import intervals
from clipit.evaluation.predictions import Predictions, softmax


def binary_predictions(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Alternating binary labels, and probabilities that predict them correctly where `correct` is true."""
    labels = np.arange(len(correct)) % 2
    chosen = np.where(correct, labels, 1 - labels)
    return labels.astype(np.int64), np.where(chosen[:, None] == np.arange(2), 0.9, 0.1).astype(np.float32)


def no_groups(n: int) -> np.ndarray:
    return np.full(n, "")


def test_coverage_is_about_95_percent() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        labels, probabilities = binary_predictions(generator.random(150) < 0.8)
        interval = intervals.bootstrap_intervals(labels, probabilities, no_groups(150), 200, trial)["accuracy"]
        assert interval.low is not None and interval.high is not None
        held += interval.low <= 0.8 <= interval.high
    assert 0.89 <= held / 200 <= 0.99


def test_bootstrap_matches_a_plain_loop() -> None:
    labels, probabilities = binary_predictions(np.random.default_rng(0).random(400) < 0.7)
    correct = probabilities.argmax(1) == labels
    generator = np.random.default_rng(5)
    slow = [correct[generator.integers(0, 400, 400)].mean() for _ in range(4000)]
    fast = intervals.bootstrap_intervals(labels, probabilities, no_groups(400), 4000, 1)["accuracy"]
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.004)


def test_groups_widen_the_interval_of_clustered_tiles() -> None:
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 25)
    correct = generator.random(1000) < generator.uniform(0.5, 1.0, 40)[group]
    labels, probabilities = binary_predictions(correct)
    tiles = intervals.bootstrap_intervals(labels, probabilities, no_groups(1000))["accuracy"]
    groups = intervals.bootstrap_intervals(labels, probabilities, np.array([f"p{g}" for g in group]))["accuracy"]
    assert (groups.high - groups.low) > 1.5 * (tiles.high - tiles.low)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounding_errors_do_not_move_a_bound_away_from_zero(sign: float) -> None:
    """Differences that cancel exactly can average to 3e-17 in floating point."""
    difference = sign * (0.1 + 0.2 - 0.3)

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"difference": np.where(weights[0] > 0, sign * 0.3, difference)}

    interval = intervals.bootstrap(statistics, no_groups(20), 200)["difference"]
    assert difference and {interval.low, interval.high} == {0.0, sign * 0.3}
    t = intervals.t_interval([sign * 0.1, sign * 0.3])
    assert t.low is not None and t.high is not None
    half = (t.high - t.low) / 2
    shifted = intervals.t_interval([sign * (half - 0.1), sign * (half + 0.1)])
    assert 0.0 in (shifted.low, shifted.high)


def test_tiles_without_a_group_are_resampled_individually() -> None:
    labels, probabilities = binary_predictions(np.random.default_rng(0).random(60) < 0.7)
    individual = intervals.bootstrap_intervals(labels, probabilities, np.array([f"g{i:02}" for i in range(60)]))
    assert individual == intervals.bootstrap_intervals(labels, probabilities, no_groups(60))
    numbers = intervals.group_numbers(np.array(["a", "", "b", "a", ""]))
    assert len(set(numbers.tolist())) == 4 and numbers[0] == numbers[3]


def test_bootstrap_depends_on_the_seed() -> None:
    labels, probabilities = binary_predictions(np.random.default_rng(0).random(90) < 0.7)
    runs = [intervals.bootstrap_intervals(labels, probabilities, no_groups(90), 300, seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def table(labels: np.ndarray, probabilities: np.ndarray) -> Predictions:
    n = len(labels)
    ids, classes = np.array([f"t{i:04d}" for i in range(n)]), tuple("abc"[: probabilities.shape[1]])
    return Predictions(ids, np.full(n, "test"), labels, no_groups(n), classes, probabilities)


def test_paired_interval_is_signed_and_narrower_than_an_unpaired_one() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(800) < 0.7
    better = right | (generator.random(800) < 0.1)
    labels, first = binary_predictions(right)
    _, second = binary_predictions(better)
    difference = intervals.paired_bootstrap([(table(labels, first), table(labels, second))])["accuracy"]
    assert difference.value == pytest.approx(better.mean() - right.mean())
    assert difference.interval.low > 0
    unpaired = intervals.bootstrap_intervals(labels, first, no_groups(800))["accuracy"]
    assert difference.interval.high - difference.interval.low < 0.7 * (unpaired.high - unpaired.low)
    same = intervals.paired_bootstrap([(table(labels, first), table(labels, first))])["macro_f1"]
    assert same.value == 0 and same.interval.low is None and intervals.NO_VARIATION in same.interval.reason


def test_missing_interval_has_a_reason() -> None:
    labels, probabilities = binary_predictions(np.ones(10, bool))
    one = intervals.bootstrap_intervals(labels, probabilities, np.full(10, "patient"))["accuracy"]
    assert one.low is None and "1 independent unit" in one.reason
    two = intervals.bootstrap_intervals(labels, probabilities, np.repeat(["a", "b"], 5))["accuracy"]
    assert two == intervals.Interval(None, None, "2 independent units to resample; a 95% interval needs 10")
    none = intervals.bootstrap_intervals(labels, probabilities, no_groups(10), 0)["accuracy"]
    assert none.low is None and "no resamples" in none.reason
    rare = np.array([1] + [0] * 9)
    auroc = intervals.bootstrap_intervals(rare, probabilities, no_groups(10))["auroc"]
    assert auroc.low is None and "of 1000 resamples" in auroc.reason
    empty = intervals.bootstrap_intervals(labels[:0], probabilities[:0], no_groups(0))
    assert empty["accuracy"].low is None


@pytest.mark.parametrize(("tiles", "unseen"), [(10, "26%"), (300, "0.99%")])
@pytest.mark.parametrize("right", [False, True])
def test_constant_correctness_has_no_interval(tiles: int, unseen: str, right: bool) -> None:
    labels, probabilities = binary_predictions(np.full(tiles, right))
    for score in ("accuracy", "balanced_accuracy", "macro_f1"):
        interval = intervals.bootstrap_intervals(labels, probabilities, no_groups(tiles))[score]
        assert (interval.low, interval.high) == (None, None)
        assert f"in up to {unseen} of all units" in interval.reason, "exact binomial bound, about 3 / n"
    assert stats.binomtest(0, 10, alternative="less").proportion_ci(0.95).high == pytest.approx(1 - 0.05**0.1)
    one_wrong = np.arange(tiles) > 0
    labels, probabilities = binary_predictions(one_wrong if right else ~one_wrong)
    interval = intervals.bootstrap_intervals(labels, probabilities, no_groups(tiles))["accuracy"]
    assert interval.low is not None and interval.high is not None and interval.low < interval.high


def test_t_interval() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    interval = intervals.t_interval(values)
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert intervals.t_interval([0.7]).low is None
    with pytest.raises(DataError):
        intervals.t_interval([0.7, float("nan")])


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.02] * 5, [0.1 + 0.2, 0.3, 0.3]])
def test_equal_scores_of_seeds_have_no_interval(values: list[float]) -> None:
    interval = intervals.t_interval(values)
    assert interval == intervals.Interval(None, None, "no spread over seeds"), (
        "rounding errors must not count as spread"
    )
    almost = intervals.t_interval([0.02, 0.02, 0.0201])
    assert almost.low is not None and almost.high is not None and almost.low < almost.high
    assert intervals.t_interval([0.7]).reason == "only one seed"


def test_resamples_are_scored_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring the resamples of a large test set one by one would take minutes."""
    generator = np.random.default_rng(0)
    labels, widths = generator.integers(0, 2, 300), []
    score = intervals.weighted_scores

    def count_resamples(*args: Any, **keys: Any) -> Any:
        widths.append(args[2].shape[1])
        return score(*args, **keys)

    monkeypatch.setattr(intervals, "weighted_scores", count_resamples)
    intervals.bootstrap_intervals(labels, softmax(generator.normal(size=(300, 2))), no_groups(300))
    assert sum(widths) >= 1000 and len(widths) <= 50
