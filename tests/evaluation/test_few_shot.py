"""Tests of few-shot evaluation."""

import numpy as np
import pytest
from evaluation_worlds import features_of

from clipit.evaluation.features import Features
from clipit.evaluation.few_shot import few_shot
from clipit.evaluation.intervals import t_interval
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.neighbours import simple_shot


def test_episodes_depend_on_the_seed_but_not_on_row_order() -> None:
    train, test = features_of(80, 3, seed=1), features_of(50, 3, seed=2, prefix="u")
    permuted = train.take(np.random.default_rng(0).permutation(80))
    first, second = few_shot(train, test, 3, 2, 20, 5), few_shot(permuted, test, 3, 2, 20, 5)
    assert first == second
    assert first.scores != few_shot(train, test, 3, 2, 20, 6).scores
    assert few_shot(train, test, 3, 2, 8, 5).scores == first.scores[:8], (
        "the first episodes must not depend on the number of episodes"
    )
    assert len(set(first.scores)) > 5


def test_all_tiles_as_shots_equals_simple_shot() -> None:
    train, test = features_of(90, 3, seed=1), features_of(60, 3, seed=2, spread=3.0, prefix="u")
    rows = np.concatenate([np.flatnonzero(train.labels == c)[:20] for c in range(3)])
    balanced = train.take(rows)
    result = few_shot(balanced, test, 3, 20, 3, metric="accuracy")
    expected = simple_shot(balanced, 3).probabilities(test.vectors)
    assert result.mean == pytest.approx(compute_metrics(test.labels, expected)["accuracy"])
    assert result.spread == pytest.approx((result.mean, result.mean))


def test_more_shots_improve_the_score() -> None:
    train, test = features_of(300, 3, seed=1, spread=2.5), features_of(200, 3, seed=2, spread=2.5, prefix="u")
    few, many = few_shot(train, test, 3, 1, 60), few_shot(train, test, 3, 30, 60)
    assert few.mean is not None and many.mean is not None
    assert many.mean > few.mean + 0.05
    assert few.interval == t_interval(few.scores)
    assert few.interval.low > few.spread[0]
    assert np.quantile(few.scores, 0.025) == pytest.approx(few.spread[0])


def test_undefined_scores_have_a_reason() -> None:
    train, test = features_of(40, 3, seed=1), features_of(20, 3, seed=2, prefix="u")
    few = train.take((train.labels != 2) | (np.cumsum(train.labels == 2) <= 3))
    result = few_shot(few, test, 3, 4, 5)
    assert (result.mean, result.scores) == (None, ())
    assert result.reason == "fewer than 4 labelled training tiles of class 2"
    unlabelled = Features(test.ids, test.vectors, np.full(20, -1, dtype=np.int64), test.groups)
    assert few_shot(train, unlabelled, 3, 1, 5).reason == "no labelled test tile"
    one_class = test.take(test.labels == 0)
    assert "undefined" in few_shot(train, one_class, 3, 1, 5, metric="auroc").reason
