"""Batches: the mix, the order, and how processes and micro-batches share them."""

from collections.abc import Callable

import numpy as np
import pytest

from clipit.config.run import RunConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ConfigError, DataError
from clipit.training.batches import plan_batches
from clipit.training.step import local_parts, occurrences

HAS_LABEL = np.arange(60) % 5 == 0  # 12 labelled, 48 not


def test_a_batch_mixes_at_the_stated_share(configure: Callable[..., RunConfig]) -> None:
    plan = plan_batches(configure({"training.tiles_per_step": 16, "training.labelled_share": 0.25}), HAS_LABEL)
    for step in range(30):
        rows = plan.rows(step)
        assert len(rows) == 16
        assert HAS_LABEL[rows[:4]].all() and not HAS_LABEL[rows[4:]].any()


def test_each_tile_once_before_any_twice(configure: Callable[..., RunConfig]) -> None:
    plan = plan_batches(configure({"training.tiles_per_step": 9, "training.labelled_share": 1 / 3}), HAS_LABEL)
    unlabelled = np.concatenate([plan.rows(step)[3:] for step in range(16)])
    assert sorted(unlabelled[:48]) == np.flatnonzero(~HAS_LABEL).tolist()
    assert sorted(unlabelled[48:]) == np.flatnonzero(~HAS_LABEL).tolist()
    labelled = np.concatenate([plan.rows(step)[:3] for step in range(4)])
    assert sorted(labelled) == np.flatnonzero(HAS_LABEL).tolist()


@pytest.mark.parametrize("tiles", ["none", "labelled"])
def test_without_distillation_of_all_a_batch_is_labelled(configure: Callable[..., RunConfig], tiles: str) -> None:
    plan = plan_batches(configure({"distillation.tiles": tiles, "training.tiles_per_step": 16}), HAS_LABEL)
    rows = plan.rows(3)
    assert len(rows) == 16 and HAS_LABEL[rows].all()


def test_all_labelled(configure: Callable[..., RunConfig]) -> None:
    plan = plan_batches(configure({"training.tiles_per_step": 16}), np.ones(60, dtype=bool))
    assert len(plan.rows(0)) == 16 == len(set(plan.rows(0).tolist()))


def test_seed_decides(configure: Callable[..., RunConfig]) -> None:
    first, again, other = (plan_batches(configure(seed=seed), HAS_LABEL).rows(2) for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_no_label_at_all(configure: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match=r"no training tile has a label(?s:.*)tiles\.labels"):
        plan_batches(configure(), np.zeros(5, dtype=bool))


def test_no_training_tiles_at_all(configure: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match=r"(?s)no training tiles.*where: tiles\.splits.*tiles\.splits\.train"):
        plan_batches(configure(), np.zeros(0, dtype=bool))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0])
def test_no_room_for_both_kinds(configure: Callable[..., RunConfig], share: float) -> None:
    with pytest.raises(ConfigError, match="no room"):
        plan_batches(configure({"training.labelled_share": share}), HAS_LABEL)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_processes_and_micro_batches_share_a_batch(
    configure: Callable[..., RunConfig], count: int, accumulation: int
) -> None:
    batch = plan_batches(configure({"training.tiles_per_step": 16}), HAS_LABEL).rows(5)
    parts = [
        part
        for rank in range(count)
        for part in local_parts(batch, Processes(rank, count, get_processes().device), accumulation)
    ]
    assert len(parts) == count * accumulation and all(len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == sorted(batch)


def test_copies_in_a_batch_are_told_apart() -> None:
    assert occurrences(np.array([5, 3, 5, 5, 3, 1])).tolist() == [0, 0, 1, 2, 1, 0]


def test_advice_about_missing_labels_fits_their_cause(configure: Callable[..., RunConfig]) -> None:
    none = np.zeros(5, dtype=bool)
    with pytest.raises(DataError, match=r"(?s)fix: keep some labels"):
        plan_batches(configure({"tiles.labels": {"kind": "fraction", "value": 0.1}}), none)
    with pytest.raises(DataError, match=r"(?s)fix: add labels to the tile source"):
        plan_batches(configure({"tiles.labels": {"kind": "all"}}), none)
