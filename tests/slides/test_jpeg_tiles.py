"""JPEG tiles match openslide, are decoded once each, and are errors if damaged."""

import io
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image
from slide_files import picture, write_slide

from benchmarks.inputs import write_jpeg_slide
from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.slides.jpeg_tiles import JpegLevel, TileCache, open_jpeg_levels
from clipit.slides.opening import open_slide, over_white
from clipit.slides.reading import read_tile

EDGE = 64
LEVELS = [(300, 200), (150, 100)]


def jpegs(*, rgb: bool = False) -> Callable[[int, int, int], bytes]:
    """Function that encodes the tile of a noisy picture at a level, row and column as JPEG."""
    rng = np.random.default_rng(0)
    noisy = (picture(320, 256).astype(int) + rng.integers(-40, 40, (256, 320, 3))).clip(0, 255).astype(np.uint8)
    whole = Image.fromarray(noisy)

    def tile(level: int, row: int, column: int) -> bytes:
        part = whole.resize((320 >> level, 256 >> level)).crop(
            (column * EDGE, row * EDGE, (column + 1) * EDGE, (row + 1) * EDGE)
        )
        stream = io.BytesIO()
        part.save(stream, "JPEG", quality=80, keep_rgb=rgb)
        return stream.getvalue()

    return tile


def assert_equals_openslide(path: Path, levels: int) -> None:
    ours, theirs = open_slide(path), openslide.OpenSlide(str(path))
    assert len(open_jpeg_levels(path, ours.levels)) == levels
    for level in range(levels):
        factor = round(ours.levels[level].downsample)
        for x, y, width, height in [(0, 0, 64, 64), (50, 30, 100, 90), (-20, -10, 60, 50), (110, 70, 120, 90)]:
            region = ours.read_region(x * factor, y * factor, level, width, height)
            expected = over_white(theirs.read_region((x * factor, y * factor), level, (width, height)))
            assert np.abs(np.asarray(region).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("rgb", [False, True])
def test_pixels_match_openslide_and_are_white_outside(tmp_path: Path, rgb: bool) -> None:
    assert_equals_openslide(write_jpeg_slide(tmp_path / "s.tif", LEVELS, jpegs(rgb=rgb), edge=EDGE, rgb=rgb), 2)


@pytest.mark.skipif(
    not os.environ.get("CLIPIT_TEST_DATA"), reason="CLIPIT_TEST_DATA is not set: no real slide to test with"
)
def test_pixels_of_a_real_slide_with_shared_tables_match_openslide() -> None:
    assert_equals_openslide(Path(os.environ["CLIPIT_TEST_DATA"]) / "slides/CMU-1-Small-Region.svs", 1)


def test_other_compressions_and_slides_with_gaps_are_read_by_openslide(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "deflate.tiff", picture(), levels=2)
    assert open_jpeg_levels(path, open_slide(path).levels) == {}
    tile = jpegs()
    path = write_jpeg_slide(
        tmp_path / "gap.tif", LEVELS, lambda *place: b"" if place == (0, 1, 1) else tile(*place), edge=EDGE
    )
    assert [*open_jpeg_levels(path, open_slide(path).levels)] == [1]
    (tmp_path / "no.tif").write_bytes(b"II*\0broken")
    assert open_jpeg_levels(tmp_path / "no.tif", []) == {}


def test_corrupt_data_in_the_middle_of_a_tile_is_an_error(tmp_path: Path) -> None:
    """Pillow and openslide return wrong pixels for such tiles without an error."""
    pytest.importorskip("simplejpeg")
    tile = jpegs()
    middle = len(tile(0, 1, 1)) // 2
    corrupt = tile(0, 1, 1)[:middle] + bytes(64) + tile(0, 1, 1)[middle + 64 :]
    path = write_jpeg_slide(
        tmp_path / "s.tif", LEVELS, lambda *place: corrupt if place == (0, 1, 1) else tile(*place), edge=EDGE
    )
    slide = open_slide(path)
    with pytest.raises(ImageError, match="tile 6 of the slide is damaged, so some of its pixels are wrong"):
        read_tile(slide, EDGE, EDGE, float(EDGE), EDGE)
    assert read_tile(slide, 0, 0, float(EDGE), EDGE).size == (EDGE, EDGE)


def test_a_damaged_tile_is_an_error_and_others_stay_readable(tmp_path: Path) -> None:
    tile = jpegs()
    other = io.BytesIO()
    Image.new("RGB", (2 * EDGE, EDGE)).save(other, "JPEG")
    damaged = {(0, 0, 0): tile(0, 0, 0)[:200], (0, 0, 1): other.getvalue(), (0, 0, 2): b"not a JPEG at all"}
    path = write_jpeg_slide(
        tmp_path / "s.tif", LEVELS, lambda *place: damaged.get(place, b"") or tile(*place), edge=EDGE
    )
    slide = open_slide(path)
    for column in range(3):
        with pytest.raises(ImageError, match=f"tile {column} of the slide is damaged"):
            read_tile(slide, column * EDGE, 0, float(EDGE), EDGE)
    assert read_tile(slide, 3 * EDGE, 0, float(EDGE), EDGE).size == (EDGE, EDGE)


def test_threads_decode_each_tile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(write_jpeg_slide(tmp_path / "s.tif", LEVELS, jpegs(), edge=EDGE))
    decode, counts, lock = JpegLevel._decode, Counter[int](), threading.Lock()

    def slow(self: JpegLevel, index: int) -> Image.Image:
        with lock:
            counts[index] += 1
        time.sleep(0.01)
        return decode(self, index)

    monkeypatch.setattr(JpegLevel, "_decode", slow)
    with ThreadPoolExecutor(8) as pool:
        places = [(x, y) for y in range(0, 150, 50) for x in range(0, 300, 50)]
        tiles = [*pool.map(lambda place: read_tile(slide, *place, 50.0, 50), places)]
    assert set(counts) == set(range(15)) and set(counts.values()) == {1}
    whole = slide.read_region(0, 0, 0, 300, 200)
    for (x, y), tile in zip(places, tiles, strict=True):
        assert np.array_equal(np.asarray(tile), np.asarray(whole.crop((x, y, x + 50, y + 50))))


def test_the_cache_is_bounded_and_evicts_the_least_recently_used_tile() -> None:
    cache = TileCache(3 * 4 * 10 * 10)
    for number in (0, 1, 2, 0, 3):
        cache.get((0, number), lambda: Image.new("RGB", (10, 10)))

    def unexpected() -> Image.Image:
        raise DataError("decoded again", fix="")

    for number in (0, 2, 3):
        cache.get((0, number), unexpected)
    with pytest.raises(DataError, match="decoded again"):
        cache.get((0, 1), unexpected)
