"""What a tile's projection is taught."""

from collections.abc import Callable

import numpy as np
import pytest

from clipit.config import Config
from clipit.embedding import centred, unit
from clipit.errors import DataError
from clipit.experiments.materials import Materials
from clipit.training.targets import Targets, derangement, image_targets, text_targets


@pytest.fixture
def materials(configure: Callable[..., Config]) -> Materials:
    return Materials(configure({"pairing.k": 2}), say=lambda line: None)


def taught(materials: Materials, shuffle: int | None = None) -> Targets:
    ids = materials.some_tiles.of_split("train").ids
    return text_targets(ids, materials.pairs, materials.index, materials.index.store, shuffle)


def test_the_mean_of_the_paired_snippets(materials: Materials) -> None:
    targets, store = taught(materials), materials.index.store
    ids = materials.some_tiles.of_split("train").ids.tolist()
    rows = materials.pairs.table.to_pylist()
    for tile in (0, 17, 71):
        snippets = [row["snippet_id"] for row in rows if row["tile_id"] == ids[tile]]
        assert len(snippets) == 2
        vectors = centred(store.rows(store.positions(np.array(snippets))), materials.index.mean)
        assert np.allclose(targets.vectors[tile].astype(np.float32), unit(vectors.sum(axis=0)), atol=2e-3)
    assert targets.valid.all()


def test_order_of_the_tiles_does_not_matter(materials: Materials) -> None:
    ids = materials.some_tiles.of_split("train").ids
    straight = taught(materials)
    turned = text_targets(ids[::-1], materials.pairs, materials.index, materials.index.store, None)
    assert np.array_equal(turned.vectors[::-1], straight.vectors)


def test_tiles_without_a_pair_are_not_distilled(materials: Materials) -> None:
    ids = np.concatenate([materials.some_tiles.of_split("test").ids, materials.some_tiles.of_split("train").ids[:5]])
    targets = text_targets(ids, materials.pairs, materials.index, materials.index.store, None)
    assert targets.valid.tolist() == [False] * 24 + [True] * 5
    assert not targets.vectors[:24].any()
    with pytest.raises(DataError, match="no training tile has a pair"):
        text_targets(ids[:24], materials.pairs, materials.index, materials.index.store, None)


def test_shuffled_targets_are_the_same_targets_for_other_tiles(materials: Materials) -> None:
    own, shuffled = taught(materials), taught(materials, shuffle=0)
    order = derangement(72, 0)
    assert np.array_equal(shuffled.vectors, own.vectors[order])
    assert not np.array_equal(taught(materials, shuffle=1).vectors, shuffled.vectors)


@pytest.mark.parametrize("n", [2, 3, 10, 1001])
@pytest.mark.parametrize("seed", range(5))
def test_derangement(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert sorted(order) == list(range(n))
    assert (order != np.arange(n)).all()
    assert np.array_equal(order, derangement(n, seed))


def test_image_targets_are_the_tiles_own_embeddings(materials: Materials) -> None:
    store = materials.tile_store("train")
    ids = materials.some_tiles.of_split("train").ids[5:15]
    targets = image_targets(ids, store, materials.tile_mean)
    wanted = centred(store.rows(np.arange(5, 15)), materials.tile_mean)
    assert np.allclose(targets.vectors.astype(np.float32), wanted, atol=2e-3)
    assert targets.valid.all()


def test_word_drop_changes_targets_and_leaves_pairs(materials: Materials) -> None:
    ids = materials.some_tiles.of_split("train").ids
    dropped = text_targets(ids, materials.pairs, materials.index, materials.text_store(0.3, 0), None)
    assert not np.allclose(dropped.vectors, taught(materials).vectors, atol=1e-2)
