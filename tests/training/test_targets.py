"""Distillation targets: vectors to which the projection of a tile is distilled."""

from collections.abc import Callable

import numpy as np
import pytest

from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.stores.embed import Store
from clipit.training.terms.target_vectors import (
    PairedSnippets,
    Targets,
    class_targets,
    derangement,
    draw_random_snippets,
    image_targets,
    mean_targets,
    paired_snippets,
    random_codes,
    shuffle_snippets,
    stored_vectors,
    sum_targets,
)
from clipit.vectors import centred, unit
from clipit.workspace.workspace import Workspace


@pytest.fixture
def workspace(configure: Callable[..., RunConfig]) -> Workspace:
    return Workspace(configure({"pairing.k": 2}))


def targets_of(workspace: Workspace, shuffle: int | None = None) -> Targets:
    return text_targets(workspace, workspace.all_tiles.of_split("train").ids, shuffle=shuffle)


def text_targets(
    workspace: Workspace, ids: np.ndarray, store: Store | None = None, shuffle: int | None = None
) -> Targets:
    store = store or workspace.index.store
    paired = paired_snippets(ids, workspace.pairs, store)
    if shuffle is not None:
        paired = shuffle_snippets(paired, shuffle)
    return mean_targets(paired, stored_vectors(store, workspace.index), store.dim)


def test_text_targets_are_means_of_the_paired_snippets(workspace: Workspace) -> None:
    targets, store = targets_of(workspace), workspace.index.store
    ids = workspace.all_tiles.of_split("train").ids.tolist()
    rows = workspace.pairs.table.to_pylist()
    for tile in (0, 17, 71):
        snippets = [row["snippet_id"] for row in rows if row["tile_id"] == ids[tile]]
        assert len(snippets) == 2
        vectors = centred(store.rows(store.positions(np.array(snippets))), workspace.index.mean)
        assert np.allclose(targets.vectors[tile].astype(np.float32), unit(vectors.sum(axis=0)), atol=2e-3)
    assert targets.valid.all()


def test_targets_do_not_depend_on_the_order_of_tiles(workspace: Workspace) -> None:
    ids = workspace.all_tiles.of_split("train").ids
    targets = targets_of(workspace)
    reversed_targets = text_targets(workspace, ids[::-1])
    assert np.array_equal(reversed_targets.vectors[::-1], targets.vectors)


def test_tiles_without_a_pair_are_not_distilled(workspace: Workspace) -> None:
    ids = np.concatenate([workspace.all_tiles.of_split("test").ids, workspace.all_tiles.of_split("train").ids[:5]])
    targets = text_targets(workspace, ids)
    assert targets.valid.tolist() == [False] * 24 + [True] * 5
    assert not targets.vectors[:24].any()
    with pytest.raises(DataError, match="no training tile has a pair"):
        text_targets(workspace, ids[:24])


def test_shuffled_targets_are_a_permutation_of_the_targets(workspace: Workspace) -> None:
    targets, shuffled = targets_of(workspace), targets_of(workspace, shuffle=0)
    order = derangement(72, 0)
    assert np.array_equal(shuffled.vectors, targets.vectors[order])
    assert not np.array_equal(targets_of(workspace, shuffle=1).vectors, shuffled.vectors)


@pytest.mark.parametrize("n", [2, 3, 10, 1001])
@pytest.mark.parametrize("seed", range(5))
def test_derangement_is_reproducible_and_has_no_fixed_point(n: int, seed: int) -> None:
    order = derangement(n, seed)
    assert sorted(order) == list(range(n))
    assert (order != np.arange(n)).all()
    assert np.array_equal(order, derangement(n, seed))


def test_image_targets_are_tile_embeddings(workspace: Workspace) -> None:
    store = workspace.tile_store("train")
    ids = workspace.all_tiles.of_split("train").ids[5:15]
    targets = image_targets(ids, store, workspace.tile_mean)
    expected = centred(store.rows(np.arange(5, 15)), workspace.tile_mean)
    assert np.allclose(targets.vectors.astype(np.float32), expected, atol=2e-3)
    assert targets.valid.all()


def test_word_drop_changes_the_targets(workspace: Workspace) -> None:
    ids = workspace.all_tiles.of_split("train").ids
    dropped = text_targets(workspace, ids, workspace.text_store(0.3, 0))
    assert not np.allclose(dropped.vectors, targets_of(workspace).vectors, atol=1e-2)


def test_targets_are_weighted_means() -> None:
    vectors = np.eye(4, dtype=np.float32)
    paired = PairedSnippets(np.array([[0, 1], [2, -1], [-1, -1]]), np.array([[3, 1], [1, 0], [0, 0]], dtype=np.float32))
    targets = mean_targets(paired, lambda positions: vectors[positions], 4)
    assert np.allclose(targets.vectors[0].astype(np.float32), np.array([3, 1, 0, 0]) / np.sqrt(10), atol=1e-3)
    assert targets.vectors[1].tolist() == [0, 0, 1, 0]
    assert targets.valid.tolist() == [True, True, False]


def test_sum_of_two_targets_is_normalised() -> None:
    first = Targets(np.array([[1, 0], [0, 0]], dtype=np.float16), np.array([True, False]))
    second = Targets(np.array([[0, 1], [0, 1]], dtype=np.float16), np.array([True, True]))
    summed = sum_targets(first, second)
    assert np.allclose(summed.vectors.astype(np.float32), [[2**-0.5, 2**-0.5], [0, 1]], atol=1e-3)
    assert summed.valid.all()


def test_class_targets_are_embeddings_of_the_most_probable_class() -> None:
    classes = np.array([[1, 0], [0, 1]], dtype=np.float32)
    targets = class_targets(np.array([[0.2, 0.8], [0.9, 0.1]], dtype=np.float32), classes)
    assert targets.vectors.tolist() == [[0, 1], [1, 0]]


def test_random_snippets_keep_the_number_of_snippets_per_tile() -> None:
    paired = PairedSnippets(np.array([[5, 6], [7, -1]]), np.ones((2, 2), dtype=np.float32))
    drawn = draw_random_snippets(paired, 100, seed=0)
    assert (drawn.positions >= 0).tolist() == [[True, True], [True, False]]
    assert drawn.positions.tolist() != draw_random_snippets(paired, 100, seed=1).positions.tolist()


def test_random_codes_are_one_unit_vector_per_snippet(workspace: Workspace) -> None:
    codes = random_codes(workspace.index.store, seed=0)
    vectors = codes(np.array([[0, 1], [1, 2]]))
    assert np.array_equal(vectors[0, 1], vectors[1, 0]) and not np.allclose(vectors[0, 0], vectors[0, 1])
    assert np.allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    assert not np.allclose(vectors, random_codes(workspace.index.store, seed=1)(np.array([[0, 1], [1, 2]])))
