import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clipit.errors import DataError
from clipit.images.decode import Unreadable
from clipit.images.image_set import crop_warning
from clipit.tiles.tileset import TileSet
from clipit.tiles.view_warnings import mpp_warning, sample_sizes, view_warnings

Make = Callable[..., TileSet]


def test_tiles_are_selected_by_mask_and_by_indices(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1, 0, 1], ["train", "train", "test", "test"])
    masked = tiles.select(tiles.truth == 1)
    assert masked.ids.tolist() == ["t0001", "t0003"]
    reordered = masked.select(np.asarray([1, 0]))
    assert reordered.ids.tolist() == ["t0003", "t0001"]
    assert reordered.rows.tolist() == [3, 1]  # rows still refer to the source
    assert len(tiles.select([])) == 0
    assert tiles.among(["t0003", "t0001", "other"]).tolist() == [False, True, False, True]
    assert tiles.of_split("test").ids.tolist() == ["t0002", "t0003"]
    assert len(tiles.of_split("validation")) == 0
    with pytest.raises(DataError, match="unknown split 'val'"):
        tiles.of_split("val")


def test_the_fingerprint_depends_only_on_ids_splits_and_content(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1, 0, 1], ["train", "train", "test", "test"])
    assert replace(tiles, labels=np.full(4, -1, dtype=np.int64)).fingerprint == tiles.fingerprint
    assert pickle.loads(pickle.dumps(tiles)).fingerprint == tiles.fingerprint
    others = [
        tiles.select([0, 1, 2]),
        make_tiles([0, 1, 0, 1], ["train", "test", "train", "test"]),
        replace(tiles, stamps=np.asarray(["s", "s", "s", "changed"])),
    ]
    assert len({tiles.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_invalid_tile_sets_are_errors(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1], ["train", "test"])
    with pytest.raises(DataError, match=r"1 tile id occurs more than once: a \(.*, .*\)"):
        replace(tiles, ids=np.asarray(["a", "a"]))
    with pytest.raises(DataError, match="unknown splits: val"):
        replace(tiles, splits=np.asarray(["train", "val"]))
    with pytest.raises(DataError, match="not one of the classes"):
        replace(tiles, labels=np.asarray([0, 2], dtype=np.int64))


def test_warning_for_tiles_with_an_unexpected_resolution(make_tiles: Make) -> None:
    tiles = replace(make_tiles([0, 1, 0], ["train"] * 3), mpp=np.asarray([0.97, 0.5, np.nan]))
    assert mpp_warning(tiles, None, "M") is None
    warning = mpp_warning(tiles, 0.5, "M")
    assert warning is not None
    assert "M expects 0.5" in warning
    assert "1 of 3 tiles" in warning
    assert mpp_warning(tiles.select([0]), 0.5, "M", resize=224 / 96) is None  # resizing changes 0.97 um to 0.42 um
    assert mpp_warning(tiles.select([2]), 0.5, "M") is None


@pytest.mark.parametrize(
    ("edge", "mpp", "pixels", "expected", "text"),
    [
        (256, np.nan, 64, 0.5, "40 of 40 sampled images show 4 times the width"),
        (256, 0.125, 64, 0.5, None),  # the same tissue at a higher resolution
        (64, 0.125, 64, 0.5, "show 0.25 times the width"),
        (64, np.nan, 64, None, None),
        (80, np.nan, 64, 0.5, None),
        (64, 2.0, None, 0.5, "show 4 times the width"),
        (64, 2.0, 64, None, None),
        (256, np.nan, None, 0.5, None),
    ],
)
def test_warning_for_images_with_an_unexpected_field_of_view(
    edge: int, mpp: float, pixels: int | None, expected: float | None, text: str | None
) -> None:
    def read(row: int) -> Image.Image | Unreadable:
        return Unreadable("damaged") if row == 0 else Image.new("RGB", (edge + row % 2, edge))

    mpps = np.full(1000, mpp)
    warnings = view_warnings(read, mpps, pixels=pixels, expected=expected, model="M", crops=True)
    assert warnings == [] if text is None else text.replace("40", "15") in warnings[0]


def test_non_square_images_are_counted() -> None:
    def read(row: int) -> Image.Image | Unreadable:
        return Unreadable("damaged") if row == 0 else Image.new("RGB", (700, 460) if row % 2 else (700, 680))

    warning = crop_warning([*sample_sizes(read, 9).values()])
    assert warning is not None
    assert warning.startswith("4 of 8 sampled images are not square: images of 700 x 460 px are cropped")
    assert "34% of their pixels are lost" in warning and "clipit slides tile" in warning
    mpps = np.full(9, np.nan)
    for crops in (True, False):
        warnings = view_warnings(read, mpps, pixels=None, expected=None, model="M", crops=crops)
        assert warnings == ([warning] if crops else [])
    assert crop_warning([(700, 680), (64, 64)]) is None and crop_warning([]) is None


def test_ids_with_lone_surrogates_are_refused(make_tiles: Make) -> None:
    tiles = make_tiles([0, 1], ["train", "train"])
    with pytest.raises(DataError, match=r"ids or groups that are not UTF-8: a\\udcff"):
        replace(tiles, ids=np.asarray(["a\udcff", "b"], dtype=object))
    with pytest.raises(DataError, match="not UTF-8"):
        replace(tiles, groups=np.asarray(["", "\ud800"], dtype=object))
