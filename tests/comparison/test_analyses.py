"""Tests of the pairing scores of test tiles and of published scores."""

from typing import Any

import numpy as np
import pytest
from tiny_models import MakeConfig, MakeFile

from clipit.comparison.analyses.pairing import _arms_with_other_rules, first_cosines
from clipit.comparison.plan import Plan, plan_comparison
from clipit.comparison.published_scores import collect_published, published_score
from clipit.vectors import centred
from clipit.workspace.workspace import Workspace


def all_cosines(workspace: Workspace, split: str) -> np.ndarray:
    """Cosine similarity of each tile with each snippet."""
    store, index = workspace.tile_store(split), workspace.index
    tiles = store.rows(store.positions(workspace.all_tiles.of_split(split).ids))
    return centred(tiles, workspace.tile_mean) @ index.vectors(np.arange(len(index.ids))).T


def test_first_cosines_follow_the_pairing_rules(configure: MakeConfig) -> None:
    plain = Workspace(configure())
    ids = plain.all_tiles.of_split("test").ids
    all_pairs = all_cosines(plain, "test")
    np.testing.assert_allclose(first_cosines(plain, ids), all_pairs.max(axis=1), atol=1e-3)
    np.testing.assert_allclose(first_cosines(plain, ids[::-1]), all_pairs.max(axis=1)[::-1], atol=1e-3)

    median = float(np.median(all_pairs.max(axis=1)))
    thresholded = first_cosines(Workspace(configure({"pairing.threshold": median})), ids)
    assert np.isnan(thresholded).sum() == (all_pairs.max(axis=1) < median).sum() > 0

    rules = {"pairing.k": 3, "pairing.mutual": True, "pairing.mutual_neighbours": 3, "pairing.block": 7}
    cosines = first_cosines(Workspace(configure(rules)), ids)
    last = np.sort(all_cosines(plain, "train"), axis=0)[-3]
    for tile, cosine in zip(all_pairs, cosines, strict=True):
        mutual = [tile[s] for s in np.argsort(-tile)[:3] if tile[s] >= last[s] - 1e-6]
        assert np.isnan(cosine) if not mutual else cosine == pytest.approx(mutual[0], abs=1e-3)
    assert np.isnan(cosines).any() and np.isfinite(cosines).any()


def test_arms_with_different_pairing_rules_are_named(configure_file: MakeFile) -> None:
    three = configure_file(**{"comparison.arms": ["image_only", "clip_it_all", "top5"]})
    (plan,) = plan_comparison(three.run, three.comparison)
    assert "(top5)" in _arms_with_other_rules(plan)
    two = configure_file(**{"comparison.arms": ["image_only", "clip_it_all"]})
    (other,) = plan_comparison(two.run, two.comparison)
    assert _arms_with_other_rules(other) == ""


@pytest.mark.parametrize(
    ("source", "metric", "shown"),
    [
        ("pcam", "accuracy", True),
        ("pcam", "balanced_accuracy", True),
        ("bach", "accuracy", False),
        ("bach", "balanced_accuracy", True),
        ("nct_crc", "auroc", False),
    ],
)
def test_published_scores_are_shown_only_for_their_metric(
    configure_file: MakeFile, source: str, metric: str, shown: bool
) -> None:
    keys: dict[str, Any] = {"comparison.arms": ["image_only", "clip_it_paper"], "comparison.metric": metric}
    file = configure_file(keys)
    config = file.run
    (planned,) = plan_comparison(config, file.comparison)
    labels = config.tiles.labels.model_copy(update={"kind": "all"})
    tiles = config.tiles.model_copy(update={"source": source, "labels": labels})
    plan = Plan("d", "uni", planned.config.model_copy(update={"tiles": tiles}), file.comparison, planned.arms)
    published, notes = collect_published([plan], metric)
    assert list(published.values()) == ([published_score(source, "uni", arm) for arm in plan.arms] if shown else [])
    assert bool(notes) is not shown
    assert all(f"not {metric.replace('_', ' ')}" in note for note in notes)


def test_published_scores_are_matched_by_recipe_not_by_name(configure_file: MakeFile) -> None:
    arms = {
        "ours": {"base": "clip_it_paper", "training.learning_rate": 0.01, "distillation.weight": 3.0},
        "clip_it_paper_frozen": {"base": "clip_it_paper", "pairing.k": 5},
    }
    file = configure_file({"comparison.arms": ["image_only", *arms], "arms": arms})
    (planned,) = plan_comparison(file.run, file.comparison)
    labels = planned.config.tiles.labels.model_copy(update={"kind": "all"})
    tiles = planned.config.tiles.model_copy(update={"source": "pcam", "labels": labels})
    plan = Plan("d", "uni", planned.config.model_copy(update={"tiles": tiles}), file.comparison, planned.arms)
    published, _ = collect_published([plan], "accuracy")
    assert published == {("d", "uni", "image_only"): "94.24", ("d", "uni", "ours"): "95.49"}
