"""Gain by pairing score goes by the snippets that the rules of the pairing give; published figures by their metric."""

from typing import Any

import numpy as np
import pytest
from conftest import MakeConfig

from clipit.embedding import centred
from clipit.experiments.cells import Setting, settings_of
from clipit.experiments.comparison_report import _published
from clipit.experiments.materials import Materials
from clipit.experiments.published import fits, published
from clipit.experiments.why import _own_rules, first_cosines


def quiet(line: str) -> None:
    """Nobody listens."""


def all_cosines(materials: Materials, split: str) -> np.ndarray:
    """Every tile with every snippet."""
    store, index = materials.tile_store(split), materials.index
    tiles = store.rows(store.positions(materials.some_tiles.of_split(split).ids))
    return centred(tiles, materials.tile_mean) @ index.vectors(np.arange(len(index.ids))).T


def test_first_cosines_are_those_of_the_rules(configure: MakeConfig) -> None:
    plain = Materials(configure(), quiet)
    ids = plain.some_tiles.of_split("test").ids
    every = all_cosines(plain, "test")
    np.testing.assert_allclose(first_cosines(plain, ids), every.max(axis=1), atol=1e-3)
    np.testing.assert_allclose(first_cosines(plain, ids[::-1]), every.max(axis=1)[::-1], atol=1e-3)

    middle = float(np.median(every.max(axis=1)))
    some = first_cosines(Materials(configure({"pairing.threshold": middle}), quiet), ids)
    assert np.isnan(some).sum() == (every.max(axis=1) < middle).sum() > 0

    rules = {"pairing.k": 3, "pairing.mutual": True, "pairing.mutual_neighbours": 3, "pairing.block": 7}
    found = first_cosines(Materials(configure(rules), quiet), ids)
    last = np.sort(all_cosines(plain, "train"), axis=0)[-3]
    for tile, cosine in zip(every, found, strict=True):
        mutual = [tile[s] for s in np.argsort(-tile)[:3] if tile[s] >= last[s] - 1e-6]
        assert np.isnan(cosine) if not mutual else cosine == pytest.approx(mutual[0], abs=1e-3)
    assert np.isnan(found).any() and np.isfinite(found).any()


def test_arms_with_pairing_keys_of_their_own_are_named(configure: MakeConfig) -> None:
    (one,) = settings_of(configure(**{"comparison.arms": ["image_only", "clip_it_all", "top5"]}))
    assert "(top5)" in _own_rules(one)
    (other,) = settings_of(configure(**{"comparison.arms": ["image_only", "clip_it_all"]}))
    assert _own_rules(other) == ""


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
def test_published_figures_stand_beside_their_own_metric_alone(
    configure: MakeConfig, source: str, metric: str, shown: bool
) -> None:
    keys: dict[str, Any] = {"comparison.arms": ["image_only", "clip_it_paper"], "comparison.metric": metric}
    config = configure(keys)
    (found,) = settings_of(config)
    labels = config.tiles.labels.model_copy(update={"kind": "all"})
    tiles = config.tiles.model_copy(update={"source": source, "labels": labels})
    setting = Setting("d", "uni", found.config.model_copy(update={"tiles": tiles}), found.arms)
    known, notes = _published(config, [setting])
    assert fits(source, metric) is shown
    assert list(known.values()) == ([published(source, "uni", arm) for arm in setting.arms] if shown else [])
    assert bool(notes) is not shown
    assert all(f"not {metric.replace('_', ' ')}" in note for note in notes)
