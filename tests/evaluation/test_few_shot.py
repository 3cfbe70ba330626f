"""Few-shot episodes: reproducible draws, the interval, and undefined scores."""

import numpy as np
import pytest
from evaluation_worlds import features_of

from clipit.evaluation.features import Features
from clipit.evaluation.few_shot import few_shot
from clipit.evaluation.intervals import t_interval
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.neighbours import simple_shot


def test_episodes_are_seeded_and_do_not_depend_on_the_order_of_rows() -> None:
    train, test = features_of(80, 3, seed=1), features_of(50, 3, seed=2, prefix="u")
    mixed = train.take(np.random.default_rng(0).permutation(80))
    first, again = few_shot(train, test, 3, 2, 20, 5), few_shot(mixed, test, 3, 2, 20, 5)
    assert first == again
    assert first.scores != few_shot(train, test, 3, 2, 20, 6).scores
    assert few_shot(train, test, 3, 2, 8, 5).scores == first.scores[:8], "more episodes leave the others as they are"
    assert len(set(first.scores)) > 5


def test_all_tiles_as_shots_is_simple_shot_itself() -> None:
    train, test = features_of(90, 3, seed=1), features_of(60, 3, seed=2, spread=3.0, prefix="u")
    rows = np.concatenate([np.flatnonzero(train.labels == c)[:20] for c in range(3)])
    balanced = train.take(rows)
    found = few_shot(balanced, test, 3, 20, 3, metric="accuracy")
    whole = simple_shot(balanced, 3).probabilities(test.vectors)
    assert found.mean == pytest.approx(compute_metrics(test.labels, whole)["accuracy"])
    assert found.spread == pytest.approx((found.mean, found.mean))


def test_more_shots_help_and_the_interval_is_that_of_the_mean() -> None:
    train, test = features_of(300, 3, seed=1, spread=2.5), features_of(200, 3, seed=2, spread=2.5, prefix="u")
    one, many = few_shot(train, test, 3, 1, 60), few_shot(train, test, 3, 30, 60)
    assert one.mean is not None and many.mean is not None
    assert many.mean > one.mean + 0.05
    assert one.interval == t_interval(one.scores)
    assert one.interval.low > one.spread[0]
    assert np.quantile(one.scores, 0.025) == pytest.approx(one.spread[0])


def test_too_few_tiles_of_a_class_and_no_test_label_are_reported() -> None:
    train, test = features_of(40, 3, seed=1), features_of(20, 3, seed=2, prefix="u")
    few = train.take((train.labels != 2) | (np.cumsum(train.labels == 2) <= 3))
    found = few_shot(few, test, 3, 4, 5)
    assert (found.mean, found.scores) == (None, ())
    assert found.reason == "fewer than 4 labelled training tiles of class 2"
    blind = Features(test.ids, test.vectors, np.full(20, -1, dtype=np.int64), test.groups)
    assert few_shot(train, blind, 3, 1, 5).reason == "no labelled test tile"
    one_class = test.take(test.labels == 0)
    assert "undefined" in few_shot(train, one_class, 3, 1, 5, metric="auroc").reason
