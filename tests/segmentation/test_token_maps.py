"""Token maps stitched from windows, their cells, and the token store."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from token_fixtures import colour_model, open_images, write_images

from clipit import distributed
from clipit.segmentation.mask_draws import draw_order, nested_counts
from clipit.segmentation.stitching import window_starts
from clipit.segmentation.token_maps import Lattice, lattice_of, token_map, token_rows
from clipit.segmentation.token_store import store_tokens


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 40), (72, 56), (20, 50)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_token_map_of_images_of_any_shape(height: int, width: int, overlap: float) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)
    tokens = colour_model()
    lattice = lattice_of(height, width, float("nan"), tokens)
    stitched = token_map(Image.fromarray(pixels), lattice, tokens, overlap, batch_size=3)
    padding = ((0, lattice.rows * 8 - height), (0, lattice.columns * 8 - width), (0, 0))
    whole = np.pad(pixels, padding, mode="symmetric") / 255
    expected = whole.reshape(lattice.rows, 8, lattice.columns, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(stitched, expected, atol=1e-5)
    parts = list(token_rows(Image.fromarray(pixels), lattice, tokens, overlap, batch_size=3))
    assert max(map(len, parts)) <= tokens.side  # at most one row of windows at a time
    assert sum(map(len, parts)) == lattice.rows


def test_images_are_resampled_to_the_resolution_of_the_model() -> None:
    tokens = colour_model(mpp=1.0)
    lattice = lattice_of(128, 96, 0.5, tokens)
    assert (lattice.rows, lattice.columns, lattice.cell) == (8, 6, 16.0)
    left_red = np.zeros((128, 96, 3), dtype=np.uint8)
    left_red[:, :48, 0] = 255
    resampled = token_map(Image.fromarray(left_red), lattice, tokens)
    np.testing.assert_allclose(resampled[:, [0, 1, 4, 5], 0], np.tile([1.0, 1.0, 0.0, 0.0], (8, 1)), atol=0.02)
    assert lattice_of(128, 96, float("nan"), tokens).cell == 8.0


def test_class_shares_of_cells() -> None:
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, -1], [2, 2, -1, -1], [2, 2, -1, -1]])
    shares = Lattice(4, 4, 2.0, 2, 2).to_cells(mask, 3)
    expected = [[[0.75, 0.25, 0], [0, 0.75, 0]], [[0, 0, 1], [0, 0, 0]]]
    np.testing.assert_allclose(shares, expected)


def test_cells_at_the_border_count_only_pixels_of_the_image() -> None:
    shares = Lattice(3, 3, 2.0, 2, 2).to_cells(np.ones((3, 3), dtype=np.int64), 2)
    np.testing.assert_allclose(shares[:, :, 1], 1)


def test_values_are_interpolated_between_cell_centres() -> None:
    lattice = Lattice(4, 4, 2.0, 2, 2)
    values = np.array([[[0.0], [1.0]], [[0.0], [1.0]]], dtype=np.float32)
    np.testing.assert_allclose(lattice.to_pixels(values)[0], np.tile([0, 0.25, 0.75, 1], (4, 1)))
    codes = np.array([[0, 1], [2, 3]])
    assert lattice.expand(codes).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_window_starts() -> None:
    assert window_starts(4, 4, 2) == [0]
    assert window_starts(8, 4, 2) == [0, 2, 4]
    assert window_starts(9, 4, 4) == [0, 4, 5]


def test_store_resumes_at_the_next_image_and_finds_images_by_their_pixels(tmp_path: Path) -> None:
    tiles, _ = open_images(write_images(tmp_path, patients=4))
    with pytest.raises(RuntimeError, match="killed"):
        store_tokens(tmp_path / "out", colour_model(fail_after=7), tiles, batch_size=64)
    resumed = store_tokens(
        tmp_path / "out", colour_model(fail_after=18), tiles, batch_size=64
    )  # 3 rows of windows each
    whole = store_tokens(tmp_path / "other", colour_model(), tiles, batch_size=64)
    assert resumed.ids == whole.ids == tiles.ids.tolist()
    for name in resumed.ids:
        np.testing.assert_array_equal(resumed.tokens(name), whole.tokens(name))
    stored = whole.find(tiles.read(3), 1.0)
    assert stored is not None
    np.testing.assert_array_equal(stored, whole.tokens(whole.ids[3]))
    assert whole.find(tiles.read(3), 0.5) is None
    assert resumed.fingerprint == whole.fingerprint
    assert store_tokens(tmp_path / "out", colour_model(), tiles, overlap=0.25).fingerprint != whole.fingerprint


def test_store_killed_before_its_manifest_is_written_resumes_without_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles, _ = open_images(write_images(tmp_path, patients=4))

    def kill(*arguments: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(distributed, "finish_partial", kill)
        store_tokens(tmp_path / "out", colour_model(), tiles)
    partial = next((tmp_path / "out").glob("token_store-*.partial"))
    (partial / "tokens-000000.npy.pixels").write_text("a leftover file", encoding="utf-8")
    store = store_tokens(tmp_path / "out", colour_model(fail_after=1), tiles)
    assert store.find(tiles.read(0), 1.0) is not None
    assert not list(store.artifact.folder.glob("*.pixels"))


def test_draws_are_nested_and_alternate_between_patients() -> None:
    ids = np.array([f"i{n}" for n in range(12)], dtype=object)
    groups = np.array([f"p{n // 4}" for n in range(12)], dtype=object)
    orders = [draw_order(ids, groups, seed).tolist() for seed in range(4)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert all(len({groups[row] for row in order[:3]}) == 3 for order in orders)
    assert all(len({groups[row] for row in order[3:6]}) == 3 for order in orders)
    assert len({tuple(order[:3]) for order in orders}) > 1
    assert draw_order(ids, np.full(12, "", dtype=object), 0)[:12].size == 12
    assert nested_counts((1, 2, 5, 10, None), 5) == [1, 2, 5]
