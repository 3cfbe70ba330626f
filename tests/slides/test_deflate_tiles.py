"""Deflate-compressed tiles of slides: a wrong checksum is an error, and other tiles stay readable."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from slide_files import levels_of, picture, write_slide

from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.images.deflate import find_deflate_damage
from clipit.slides import deflate_tiles
from clipit.slides.opening import open_slide
from clipit.slides.reading import read_tile


def flip_checksum_bit(path: Path, level: int, index: int) -> None:
    """Flip a bit of the checksum at the end of a tile; openslide still decodes its pixels without an error."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        last = page.dataoffsets[index] + page.databytecounts[index] - 1
    content = bytearray(path.read_bytes())
    content[last] ^= 1
    path.write_bytes(content)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A slide with levels of 600 x 400, 300 x 200 and 150 x 100 pixels in tiles of 64 pixels."""
    return write_slide(tmp_path / "s.tiff", picture(), levels=3)


def test_pixels_of_all_levels(slide: Path) -> None:
    opened = open_slide(slide)
    for number, level in enumerate(levels_of(picture(), 3)):
        whole = opened.read_region(0, 0, number, level.shape[1], level.shape[0])
        assert (np.asarray(whole) == level).all()
    beyond = np.asarray(opened.read_region(-70, -70, 0, 800, 600))
    assert (beyond[:70] == 255).all() and (beyond[70:470, 70:670] == picture()).all()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_regions_with_a_wrong_checksum_are_an_error(slide: Path, level: int) -> None:
    columns = -(-(600 >> level) // 64)
    flip_checksum_bit(slide, level, columns + 1)  # pixels 64 to 128 of the level in both directions
    opened, scale = open_slide(slide), 2**level
    for left, top, size, is_damaged in (
        (64, 64, 64, True), (0, 0, 65, True), (127, 90, 10, True), (0, 0, 64, False), (128, 64, 20, False),
        (64, 0, 64, False), (0, 64, 64, False),
    ):  # fmt: skip
        for _ in range(2):  # the second read fails as well
            if is_damaged:
                with pytest.raises(ImageError, match=f"tile {columns + 1} of the slide is damaged"):
                    opened.read_region(left * scale, top * scale, level, size, size)
            else:
                assert opened.read_region(left * scale, top * scale, level, size, size).size == (size, size)


def test_tiles_are_verified_once(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[int] = []

    def count(data: bytes) -> str:
        verified.append(len(data))
        return find_deflate_damage(data)

    monkeypatch.setattr(deflate_tiles, "find_deflate_damage", count)
    opened = open_slide(slide)
    for _ in range(3):
        read_tile(opened, 10, 10, 100.0, 100)
    assert len(verified) == 4


def test_a_wrong_checksum_in_ome_tiffs_and_flat_images_is_an_error(tmp_path: Path) -> None:
    """Checksums of these files are verified by tifffile."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, picture(), tile=(64, 64), photometric="rgb", compression="zlib", ome=True)
    flip_checksum_bit(path, 0, 11)  # row 1, column 1
    opened = open_slide(path)
    with pytest.raises(ImageError, match="cannot decode a tile of the OME-TIFF"):
        opened.read_region(64, 64, 0, 64, 64)
    assert opened.read_region(0, 0, 0, 64, 64).size == (64, 64)
    path = tmp_path / "flat.tif"
    tifffile.imwrite(path, picture(), rowsperstrip=64, photometric="rgb", compression="zlib")
    flip_checksum_bit(path, 0, 2)
    with pytest.raises(DataError, match="strip or tile 2 of the TIFF are damaged"):
        open_slide(path)


def test_files_without_deflate_tiles_have_no_deflate_levels(slide: Path, tmp_path: Path) -> None:
    opened = open_slide(slide)
    assert [*deflate_tiles.open_deflate_levels(slide, opened.levels)] == [0, 1, 2]
    path = tmp_path / "lzw.tiff"
    tifffile.imwrite(path, picture(), tile=(64, 64), photometric="rgb")
    assert deflate_tiles.open_deflate_levels(path, opened.levels) == {}
    path.write_bytes(b"II*\0broken")
    assert deflate_tiles.open_deflate_levels(path, opened.levels) == {}
