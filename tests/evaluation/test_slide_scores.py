"""Tests of pooling tile scores to slide scores and of smoothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipit.errors import DataError
from clipit.evaluation.slide_scores import POOLINGS, TOP_K, PooledScore, pool_slide, slide_table, smooth_scores

# Two rows of three cells; the middle cell of the second row has no tissue.
CELLS = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 2]], dtype=np.int64)
SCORES = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)


def by_name(pooled: list[PooledScore], smoothed: bool = False) -> dict[str, PooledScore]:
    return {entry.pooling: entry for entry in pooled if entry.smoothed == smoothed}


def slow_smoothing(scores: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return np.stack([scores[(np.abs(cells - cell) <= 1).all(axis=1)].astype(np.float64).mean(axis=0) for cell in cells])


def test_poolings_of_a_small_slide() -> None:
    pooled = by_name(pool_slide(SCORES, CELLS))
    assert tuple(pooled) == POOLINGS
    np.testing.assert_allclose(pooled["top1"].scores, [0.9, 0.8], rtol=1e-6)
    np.testing.assert_allclose(pooled["top5"].scores, [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(pooled["mean"].scores, [0.5, 0.5], rtol=1e-6)
    # The third tile is tied and counts for the first class.
    assert pooled["share"].scores == pytest.approx([0.6, 0.4])
    assert pooled["top1"].predicted == 0 and not pooled["top1"].tied
    assert pooled["mean"].tied


def test_top_k_tiles_are_selected_for_each_class() -> None:
    scores = np.zeros((7, 3), dtype=np.float32)
    scores[0, 0], scores[1, 1], scores[2, 2] = 1.0, 0.5, 0.75
    cells = np.stack([np.arange(7), np.zeros(7, dtype=np.int64)], axis=1)
    pooled = by_name(pool_slide(scores, cells))
    assert pooled["top1"].scores.tolist() == [1.0, 0.5, 0.75]
    assert pooled["top5"].scores == pytest.approx([0.2, 0.1, 0.15])


def test_k_is_limited_to_the_number_of_tiles() -> None:
    pooled = by_name(pool_slide(SCORES, CELLS))
    assert [pooled[f"top{k}"].pooled for k in TOP_K] == [1, 5, 5, 5, 5]
    np.testing.assert_allclose(pooled["top100"].scores, pooled["mean"].scores)
    assert {entry.tiles for entry in pooled.values()} == {5}


def test_smoothing_of_a_small_slide() -> None:
    smoothed = smooth_scores(SCORES, CELLS)[:, 0]
    expected = [(0.9 + 0.6 + 0.2) / 3, 0.5, (0.6 + 0.5 + 0.3) / 3, (0.9 + 0.6 + 0.2) / 3, (0.6 + 0.5 + 0.3) / 3]
    np.testing.assert_allclose(smoothed, expected, rtol=1e-6)
    pooled = by_name(pool_slide(SCORES, CELLS), smoothed=True)
    np.testing.assert_allclose(pooled["top1"].scores[0], 1.7 / 3, rtol=1e-6)
    np.testing.assert_allclose(pooled["share"].scores, [3 / 5, 2 / 5], rtol=1e-6)


def test_tile_without_neighbours_keeps_its_scores() -> None:
    cells = np.array(
        [[0, 2], [1, 0], [5, 5]], dtype=np.int64
    )  # the end of a row and the start of the next are not neighbours
    np.testing.assert_array_equal(smooth_scores(SCORES[:3], cells), SCORES[:3].astype(np.float64))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60))
def test_smoothing_matches_a_slow_reference(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    chosen = generator.permutation(81)[: min(n, 81)]
    cells = np.stack([chosen // 9, chosen % 9], axis=1).astype(np.int64)
    scores = generator.random((len(cells), 3)).astype(np.float32)
    np.testing.assert_allclose(smooth_scores(scores, cells), slow_smoothing(scores, cells), rtol=1e-12)


def test_tile_order_does_not_change_top_k_means() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((300, 2)).astype(np.float32).round(1)  # many ties
    cells = np.stack([np.arange(300) // 20, np.arange(300) % 20], axis=1)
    order = generator.permutation(300)
    first, second = by_name(pool_slide(scores, cells)), by_name(pool_slide(scores[order], cells[order]))
    for k in TOP_K:
        np.testing.assert_array_equal(first[f"top{k}"].scores, second[f"top{k}"].scores)


def test_tied_classes_are_recorded_and_the_first_is_predicted() -> None:
    scores = np.array([[0.75, 0.25], [0.25, 0.75]], dtype=np.float32)
    pooled = by_name(pool_slide(scores, CELLS[:2]))
    assert pooled["mean"].tied and pooled["share"].tied
    assert pooled["mean"].predicted == 0


def test_single_class_has_a_share_of_one() -> None:
    pooled = by_name(pool_slide(SCORES[:, :1], CELLS))
    assert pooled["share"].scores.tolist() == [1.0]
    assert pooled["top1"].scores == pytest.approx([0.9])


def test_slide_without_tiles_raises_an_error() -> None:
    with pytest.raises(DataError, match="no tiles to score"):
        pool_slide(np.empty((0, 2), dtype=np.float32), np.empty((0, 2), dtype=np.int64))


def test_non_finite_scores_raise_an_error() -> None:
    scores = SCORES.copy()
    scores[3, 0] = np.nan
    with pytest.raises(DataError, match="1 tile has scores that are not finite: rows 3"):
        pool_slide(scores, CELLS)


def test_two_tiles_in_one_cell_raise_an_error() -> None:
    with pytest.raises(DataError, match="same cell"):
        pool_slide(SCORES, np.zeros((5, 2), dtype=np.int64))


def test_table_has_one_row_per_slide_pooling_and_smoothing() -> None:
    table = slide_table({"a": pool_slide(SCORES, CELLS), "b": pool_slide(SCORES[:1], CELLS[:1])}, ("normal", "tumour"))
    assert len(table) == 2 * 2 * len(POOLINGS)
    row = table[(table.slide == "a") & (table.pooling == "top1") & ~table.smoothed].iloc[0]
    assert row["predicted"] == "normal" and row["pooled"] == 1 and row["tiles"] == 5
    assert row["score_tumour"] == pytest.approx(0.8)
    assert slide_table({}, ("normal", "tumour")).columns.tolist() == table.columns.tolist()


def test_scores_of_other_classes_raise_an_error() -> None:
    with pytest.raises(DataError, match="2 scores for 3 classes"):
        slide_table({"a": pool_slide(SCORES, CELLS)}, ("a", "b", "c"))
