"""Intervals: coverage, groups, pairing, and saying so when there is none."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from clipit.errors import DataError
from clipit.evaluation import intervals
from clipit.evaluation.predictions import Predictions, softmax


def two_columns(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels alternate; a tile is predicted rightly where `correct`."""
    labels = np.arange(len(correct)) % 2
    chosen = np.where(correct, labels, 1 - labels)
    return labels.astype(np.int64), np.where(chosen[:, None] == np.arange(2), 0.9, 0.1).astype(np.float32)


def no_groups(n: int) -> np.ndarray:
    return np.full(n, "")


def test_coverage_is_about_95_percent() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        labels, probabilities = two_columns(generator.random(150) < 0.8)
        found = intervals.bootstrap_intervals(labels, probabilities, no_groups(150), 200, trial)["accuracy"]
        assert found.low is not None and found.high is not None
        held += found.low <= 0.8 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_equal_to_resampling_one_by_one() -> None:
    labels, probabilities = two_columns(np.random.default_rng(0).random(400) < 0.7)
    correct = probabilities.argmax(1) == labels
    generator = np.random.default_rng(5)
    slow = [correct[generator.integers(0, 400, 400)].mean() for _ in range(4000)]
    fast = intervals.bootstrap_intervals(labels, probabilities, no_groups(400), 4000, 1)["accuracy"]
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=0.004)


def test_groups_make_it_wider_on_clustered_tiles() -> None:
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 25)
    correct = generator.random(1000) < generator.uniform(0.5, 1.0, 40)[group]
    labels, probabilities = two_columns(correct)
    tiles = intervals.bootstrap_intervals(labels, probabilities, no_groups(1000))["accuracy"]
    groups = intervals.bootstrap_intervals(labels, probabilities, np.array([f"p{g}" for g in group]))["accuracy"]
    assert (groups.high - groups.low) > 1.5 * (tiles.high - tiles.low)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounding_error_does_not_turn_a_bound_of_0_into_a_difference(sign: float) -> None:
    """A difference of seeds averages to 3e-17 where their exact differences cancel."""
    difference = sign * (0.1 + 0.2 - 0.3)

    def statistics(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"difference": np.where(weights[0] > 0, sign * 0.3, difference)}

    found = intervals.bootstrap(statistics, no_groups(20), 200)["difference"]
    assert difference and {found.low, found.high} == {0.0, sign * 0.3}
    t = intervals.t_interval([sign * 0.1, sign * 0.3])
    assert t.low is not None and t.high is not None
    half = (t.high - t.low) / 2
    shifted = intervals.t_interval([sign * (half - 0.1), sign * (half + 0.1)])
    assert 0.0 in (shifted.low, shifted.high)


def test_groups_of_one_tile_are_tiles_and_unknown_groups_stand_alone() -> None:
    labels, probabilities = two_columns(np.random.default_rng(0).random(60) < 0.7)
    alone = intervals.bootstrap_intervals(labels, probabilities, np.array([f"g{i:02}" for i in range(60)]))
    assert alone == intervals.bootstrap_intervals(labels, probabilities, no_groups(60))
    numbers = intervals.group_numbers(np.array(["a", "", "b", "a", ""]))
    assert len(set(numbers.tolist())) == 4 and numbers[0] == numbers[3]


def test_seeded() -> None:
    labels, probabilities = two_columns(np.random.default_rng(0).random(90) < 0.7)
    runs = [intervals.bootstrap_intervals(labels, probabilities, no_groups(90), 300, seed) for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def table(labels: np.ndarray, probabilities: np.ndarray) -> Predictions:
    n = len(labels)
    ids, classes = np.array([f"t{i:04d}" for i in range(n)]), tuple("abc"[: probabilities.shape[1]])
    return Predictions(ids, np.full(n, "test"), labels, no_groups(n), classes, probabilities)


def test_paired_difference_is_narrower_than_two_intervals_and_signed() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(800) < 0.7
    better = right | (generator.random(800) < 0.1)
    labels, first = two_columns(right)
    _, second = two_columns(better)
    found = intervals.paired_bootstrap([(table(labels, first), table(labels, second))])["accuracy"]
    assert found.value == pytest.approx(better.mean() - right.mean())
    assert found.interval.low > 0
    alone = intervals.bootstrap_intervals(labels, first, no_groups(800))["accuracy"]
    assert found.interval.high - found.interval.low < 0.7 * (alone.high - alone.low)
    same = intervals.paired_bootstrap([(table(labels, first), table(labels, first))])["macro_f1"]
    assert same.value == 0 and same.interval.low is None and intervals.NO_VARIATION in same.interval.reason


def test_no_interval_says_why() -> None:
    labels, probabilities = two_columns(np.ones(10, bool))
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
def test_tiles_that_are_all_right_or_all_wrong_have_no_interval_of_width_0(
    tiles: int, unseen: str, right: bool
) -> None:
    labels, probabilities = two_columns(np.full(tiles, right))
    for score in ("accuracy", "balanced_accuracy", "macro_f1"):
        found = intervals.bootstrap_intervals(labels, probabilities, no_groups(tiles))[score]
        assert (found.low, found.high) == (None, None)
        assert f"in up to {unseen} of all units" in found.reason, "the exact binomial bound, about 3 / n"
    assert stats.binomtest(0, 10, alternative="less").proportion_ci(0.95).high == pytest.approx(1 - 0.05**0.1)
    one_wrong = np.arange(tiles) > 0
    labels, probabilities = two_columns(one_wrong if right else ~one_wrong)
    found = intervals.bootstrap_intervals(labels, probabilities, no_groups(tiles))["accuracy"]
    assert found.low is not None and found.high is not None and found.low < found.high


def test_t_interval() -> None:
    values = [0.71, 0.74, 0.69, 0.75]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = intervals.t_interval(values)
    assert (found.low, found.high) == pytest.approx(expected)
    assert intervals.t_interval([0.7]).low is None
    with pytest.raises(DataError):
        intervals.t_interval([0.7, float("nan")])


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.02] * 5, [0.1 + 0.2, 0.3, 0.3]])
def test_equal_seeds_have_no_interval_of_width_0(values: list[float]) -> None:
    found = intervals.t_interval(values)
    assert found == intervals.Interval(None, None, "no spread over seeds"), "float error is no spread"
    almost = intervals.t_interval([0.02, 0.02, 0.0201])
    assert almost.low is not None and almost.high is not None and almost.low < almost.high
    assert intervals.t_interval([0.7]).reason == "only one seed"


def test_resamples_are_scored_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over single resamples of a large test set would take minutes."""
    generator = np.random.default_rng(0)
    labels, widths = generator.integers(0, 2, 300), []
    score = intervals.weighted_scores

    def counted(*args: Any, **keys: Any) -> Any:
        widths.append(args[2].shape[1])
        return score(*args, **keys)

    monkeypatch.setattr(intervals, "weighted_scores", counted)
    intervals.bootstrap_intervals(labels, softmax(generator.normal(size=(300, 2))), no_groups(300))
    assert sum(widths) >= 1000 and len(widths) <= 50
