"""Composition and order of batches, and their division among processes and micro-batches."""

from collections.abc import Callable

import numpy as np
import pytest

from clipit.config.run import RunConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ConfigError, DataError
from clipit.training.batches import plan_batches
from clipit.training.step import local_parts, occurrences

HAS_LABEL = np.arange(60) % 5 == 0  # 12 labelled and 48 unlabelled tiles


def test_a_batch_has_the_configured_share_of_labelled_tiles(configure: Callable[..., RunConfig]) -> None:
    plan = plan_batches(configure({"training.tiles_per_step": 16, "training.labelled_share": 0.25}), HAS_LABEL)
    for step in range(30):
        rows = plan.rows(step)
        assert len(rows) == 16
        assert HAS_LABEL[rows[:4]].all() and not HAS_LABEL[rows[4:]].any()


def test_every_tile_is_drawn_once_before_any_is_repeated(configure: Callable[..., RunConfig]) -> None:
    plan = plan_batches(configure({"training.tiles_per_step": 9, "training.labelled_share": 1 / 3}), HAS_LABEL)
    unlabelled = np.concatenate([plan.rows(step)[3:] for step in range(16)])
    assert sorted(unlabelled[:48]) == np.flatnonzero(~HAS_LABEL).tolist()
    assert sorted(unlabelled[48:]) == np.flatnonzero(~HAS_LABEL).tolist()
    labelled = np.concatenate([plan.rows(step)[:3] for step in range(4)])
    assert sorted(labelled) == np.flatnonzero(HAS_LABEL).tolist()


@pytest.mark.parametrize("tiles", ["none", "labelled"])
def test_batches_are_fully_labelled_unless_all_tiles_are_distilled(
    configure: Callable[..., RunConfig], tiles: str
) -> None:
    plan = plan_batches(configure({"distillation.tiles": tiles, "training.tiles_per_step": 16}), HAS_LABEL)
    rows = plan.rows(3)
    assert len(rows) == 16 and HAS_LABEL[rows].all()


def test_batches_of_a_fully_labelled_set_have_no_repeats(configure: Callable[..., RunConfig]) -> None:
    plan = plan_batches(configure({"training.tiles_per_step": 16}), np.ones(60, dtype=bool))
    assert len(plan.rows(0)) == 16 == len(set(plan.rows(0).tolist()))


def test_batches_depend_on_the_seed(configure: Callable[..., RunConfig]) -> None:
    first, repeated, other = (plan_batches(configure(seed=seed), HAS_LABEL).rows(2) for seed in (0, 0, 1))
    assert np.array_equal(first, repeated) and not np.array_equal(first, other)


def test_a_set_without_labels_is_an_error(configure: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match=r"no training tile has a label(?s:.*)tiles\.labels"):
        plan_batches(configure(), np.zeros(5, dtype=bool))


def test_a_set_without_training_tiles_is_an_error(configure: Callable[..., RunConfig]) -> None:
    with pytest.raises(DataError, match=r"(?s)no training tiles.*where: tiles\.splits.*tiles\.splits\.train"):
        plan_batches(configure(), np.zeros(0, dtype=bool))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0])
def test_a_batch_without_room_for_both_kinds_is_an_error(configure: Callable[..., RunConfig], share: float) -> None:
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


def test_occurrences_number_repeated_tiles_of_a_batch() -> None:
    assert occurrences(np.array([5, 3, 5, 5, 3, 1])).tolist() == [0, 0, 1, 2, 1, 0]


def test_the_fix_for_missing_labels_depends_on_their_cause(configure: Callable[..., RunConfig]) -> None:
    has_label = np.zeros(5, dtype=bool)
    with pytest.raises(DataError, match=r"(?s)fix: keep some labels"):
        plan_batches(configure({"tiles.labels": {"kind": "fraction", "value": 0.1}}), has_label)
    with pytest.raises(DataError, match=r"(?s)fix: add labels to the tile source"):
        plan_batches(configure({"tiles.labels": {"kind": "all"}}), has_label)
