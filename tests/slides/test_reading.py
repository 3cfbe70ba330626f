"""Reading of tiles at an exact resolution, tissue detection, and grids of slides."""

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_files import PEN, PINK, PURPLE, damage_tile, levels_of, picture, write_dicom, write_slide

from clipit.config.data import SlidesConfig
from clipit.errors import ConfigError, DataError
from clipit.images.decode import ImageError
from clipit.images.image_readers import file_stamp
from clipit.slides.geojson import read_contours
from clipit.slides.grid import make_grid, parse_tile_id
from clipit.slides.opening import open_slide
from clipit.slides.option_names import SLIDES_OPTIONS
from clipit.slides.prepare import FailedSlide, PreparedSlide, SlidePath, prepare_slides
from clipit.slides.reading import PlacedSlide, SlidePool, SlideReader, choose_level, read_overview, read_tile
from clipit.slides.slide_file import Level
from clipit.slides.stamps import slide_files, slide_stamp
from clipit.slides.tissue import TissueShare, find_tissue, otsu, remove_small
from clipit.slides.whole import read_whole


class SlideWithoutPixels:
    """A slide with levels but no pixels."""

    mpp = magnification = None
    origin = (0, 0)
    format, remark = "none", ""

    def __init__(self, *downsamples: float) -> None:
        self.levels = [Level(100, 100, downsample) for downsample in downsamples]

    def read_region(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def test_choose_level_tolerates_one_per_cent() -> None:
    slide = SlideWithoutPixels(1.0, 2.0005, 4.3)
    downsamples = (0.5, 1.0, 1.97, 2.0, 4.0, 4.3, 50.0)
    assert [choose_level(slide, downsample) for downsample in downsamples] == [0, 0, 0, 1, 1, 2, 2]


def test_a_tile_is_resampled_to_the_exact_resolution(tmp_path: Path) -> None:
    ramp = np.zeros((400, 600, 3), np.uint8)
    ramp[...] = np.linspace(0, 255, 600).astype(np.uint8)[None, :, None]
    slide = open_slide(write_slide(tmp_path / "ramp.tiff", ramp, mpp=0.5))
    # 0.75 um/px is between levels 0 (0.5) and 1 (1.0): 150 px of level 0 become 100.
    tile = np.asarray(read_tile(slide, 200, 100, 150.0, 100), dtype=float)[..., 0]
    assert tile.shape == (100, 100)
    expected = np.interp(200 + (np.arange(100) + 0.5) * 1.5 - 0.5, np.arange(600), ramp[0, :, 0])
    assert np.abs(tile[50] - expected).max() < 1.5
    exact = np.asarray(read_tile(slide, 200, 100, 128.0, 64))  # level 1, no resampling
    assert np.array_equal(exact, np.asarray(slide.read_region(200, 100, 1, 64, 64)))


def test_the_overview_matches_the_reduced_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = open_slide(write_slide(tmp_path / "a.tiff", picture(), mpp=1, levels=1))
    whole = np.asarray(read_overview(slide, 4.0), dtype=int)
    assert whole.shape == (100, 150, 3)
    assert tuple(whole[40, 40]) == PINK and tuple(whole[40, 80]) == PURPLE and tuple(whole[5, 5]) == (255, 255, 255)
    monkeypatch.setattr("clipit.slides.reading._BLOCK", 100)
    assert np.abs(np.asarray(read_overview(slide, 4.0), dtype=int) - whole).max() <= 40  # differences at block edges


def test_tissue_detection_ignores_ink_small_holes_and_small_fragments() -> None:
    pixels = np.full((200, 300, 3), 240, np.uint8)
    pixels[40:160, 50:200] = PINK
    pixels[90:94, 100:104] = 240  # a small hole
    pixels[10:13, 10:13] = PINK  # a small fragment
    pixels[20:180, 240:260] = PEN
    pixels[165:175, 20:220] = (15, 15, 15)
    mask = find_tissue(Image.fromarray(pixels), mpp=8.0)
    assert mask[100, 102] and mask[60, 60]
    assert not mask[11, 11] and not mask[100, 250] and not mask[170, 100]
    assert mask.mean() == pytest.approx(120 * 150 / 60000, abs=0.02)


def test_tissue_detection_on_pure_glass_and_pure_tissue() -> None:
    noise = np.random.default_rng(0).integers(-3, 4, (100, 100, 3))
    glass = np.clip(240 + noise, 0, 255).astype(np.uint8)
    tissue = np.clip(np.array(PINK) + noise, 0, 255).astype(np.uint8)
    assert not find_tissue(Image.fromarray(glass), 8.0).any()
    assert find_tissue(Image.fromarray(tissue), 8.0).all()


def test_otsus_threshold_lies_between_two_classes() -> None:
    values = np.concatenate([np.full(500, 0.1), np.full(300, 0.6)]).astype(np.float32).reshape(20, 40)
    assert 0.1 < otsu(values) < 0.6


def test_small_parts_are_dropped_before_holes_are_filled() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[5, 5] = False
    mask[16, 16] = True
    cleaned = remove_small(mask, smallest=4.0, hole=4.0)
    assert cleaned[5, 5] and not cleaned[16, 16] and cleaned.sum() == 100


def test_the_share_of_tissue_is_exact_for_fractions_of_pixels() -> None:
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True  # covers 10..30 in both directions at a downsample of 10
    share = TissueShare(mask, 10.0).of_squares(
        np.array([0, 5, 10, 35], np.int32), np.array([0, 5, 10, 35], np.int32), 20.0
    )
    assert share.tolist() == pytest.approx([0.25, 0.5625, 1.0, 0.0])


def test_a_grid_covers_the_slide_and_ids_contain_the_position() -> None:
    config = SlidesConfig(mpp=1.0, pixels=64, overlap=0.5, min_tissue=0.0)
    grid = make_grid("a@b", 300, 150, 0.5, config, lambda x, y, extent: np.ones(len(x), np.float32))
    assert (grid.edge, grid.step) == (128, 64)
    assert grid.x.tolist()[:5] == [0, 64, 128, 192, 256] and len(grid) == 15
    assert grid.ids[6] == "a@b@64,64,128" and parse_tile_id(grid.ids[6]) == ("a@b", 64, 64, 128)
    assert grid.cells[6].tolist() == [1, 1] and grid.shape == (3, 5)
    with pytest.raises(DataError, match="not a tile id"):
        parse_tile_id("tile-1")


def test_prepared_slides_are_cached_and_failures_do_not_stop_others(tmp_path: Path) -> None:
    write_slide(tmp_path / "good.tiff", picture())
    (tmp_path / "empty.svs").write_bytes(b"")
    write_slide(tmp_path / "glass.tiff", np.full((200, 200, 3), 250, np.uint8))
    slides = [SlidePath(name, tmp_path / file) for name, file in
              (("good", "good.tiff"), ("bad", "empty.svs"), ("glass", "glass.tiff"))]  # fmt: skip
    config = SlidesConfig(mpp=1.0, pixels=32, grids=str(tmp_path / "grids"))
    good, bad, glass = prepare_slides(slides, config)
    assert isinstance(good, PreparedSlide) and isinstance(bad, FailedSlide) and isinstance(glass, FailedSlide)
    assert bad.reason == "the file is empty" and glass.reason.startswith("no tissue: none of 49 tiles")
    assert glass.fix == "lower tiles.slides.min_tissue, or add contours of the tissue (tiles.slides.contours)"
    assert prepare_slides(slides[2:], config, SLIDES_OPTIONS)[0].fix == (
        "lower --min-tissue, or add contours of the tissue (--contours)"
    )
    assert len(good.grid) == 10 * 8 - 1  # the upper row is half tissue, except for one of its corners
    assert (good.grid.tissue >= 0.5).all()
    folders = sorted(path.name for path in (tmp_path / "grids").iterdir() if path.is_dir())
    assert len([name for name in folders if not name.endswith(".partial")]) == 1
    cached = prepare_slides(slides[:1], config)[0]
    assert isinstance(cached, PreparedSlide) and cached.grid.ids == good.grid.ids
    few = prepare_slides(slides[:1], config.model_copy(update={"tiles_per_slide": 7}))[0]
    assert isinstance(few, PreparedSlide) and len(few.grid) == few.tiles == 7 and set(few.grid.ids) < set(good.grid.ids)


def test_a_changed_slide_gets_a_new_grid(tmp_path: Path) -> None:
    config = SlidesConfig(mpp=1.0, pixels=32, grids=str(tmp_path / "grids"))
    path = write_slide(tmp_path / "a.tiff", picture())
    before = prepare_slides([SlidePath("a", path)], config)[0]
    moved = np.roll(picture(), 100, axis=1)
    write_slide(path, moved)
    after = prepare_slides([SlidePath("a", path)], config)[0]
    assert isinstance(before, PreparedSlide) and isinstance(after, PreparedSlide)
    assert before.stamp != after.stamp and before.grid.x.min() < after.grid.x.min()


def test_a_wrong_mpp_in_a_table_is_an_error_after_an_option_with_the_same_value(tmp_path: Path) -> None:
    config = SlidesConfig(mpp=1.0, pixels=32, grids=str(tmp_path / "grids"))
    path = write_slide(tmp_path / "a.tiff", picture())
    by_option = prepare_slides([SlidePath("a", path, default_mpp=0.5)], config)[0]
    by_table = prepare_slides([SlidePath("a", path, mpp=0.5)], config)[0]
    assert isinstance(by_option, PreparedSlide) and "used instead of 0.5" in by_option.facts["note"]
    assert isinstance(by_table, FailedSlide) and "the table states 0.5 µm per pixel, but the file" in by_table.reason


def test_the_stamp_of_a_slide_covers_all_of_its_files(tmp_path: Path) -> None:
    def stamp_changes(path: Path, file: Path) -> bool:
        before, content = slide_stamp(path), file.read_bytes()
        file.write_bytes(content + b"x")
        after = slide_stamp(path)
        file.write_bytes(content)
        return before != after

    for number, level in enumerate(levels_of(picture(), 2)):
        write_dicom(tmp_path / f"{number}.dcm", level, mpp=2.0**number)
    (tmp_path / "notes.txt").write_text("x")
    first = tmp_path / "0.dcm"
    assert slide_files(first) == [first, tmp_path / "1.dcm"]
    assert stamp_changes(first, tmp_path / "1.dcm") and not stamp_changes(first, tmp_path / "notes.txt")
    (tmp_path / "m").mkdir()
    for name in ("m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "v-0.jpg", "one.svs"):
        (tmp_path / name).write_text("x")
    (tmp_path / "v.vms").write_text("[Virtual Microscope Specimen]\nImageFile=v-0.jpg\nMacroImage=absent.jpg\n")
    assert stamp_changes(tmp_path / "m.mrxs", tmp_path / "m/Data0000.dat")
    assert stamp_changes(tmp_path / "v.vms", tmp_path / "v-0.jpg") and not stamp_changes(
        tmp_path / "v.vms", tmp_path / "notes.txt"
    )
    before = slide_stamp(tmp_path / "m.mrxs")
    (tmp_path / "m/Data0001.dat").write_text("x")
    assert slide_stamp(tmp_path / "m.mrxs") != before, "a file was added"
    assert slide_stamp(tmp_path / "one.svs") == file_stamp(tmp_path / "one.svs")


def test_contours_replace_tissue_detection(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tiff", picture())
    square = '{"type": "Polygon", "coordinates": [[[0, 0], [64, 0], [64, 64], [0, 64], [0, 0]]]}'
    (tmp_path / "contours").mkdir()
    (tmp_path / "contours" / "a.geojson").write_text(square)
    config = SlidesConfig(mpp=1.0, pixels=32, grids=str(tmp_path / "grids"), contours=str(tmp_path / "contours"))
    kept, other = prepare_slides([SlidePath("a", path), SlidePath("b", path)], config)
    assert isinstance(kept, PreparedSlide) and sorted(zip(kept.grid.x.tolist(), kept.grid.y.tolist(), strict=True)) == [
        (0, 0), (0, 32), (32, 0), (32, 32),
    ]  # fmt: skip
    # Contours may be named after the file or after the slide.
    assert isinstance(other, PreparedSlide)
    one_file = config.model_copy(update={"contours": str(tmp_path / "contours" / "a.geojson")})
    with pytest.raises(ConfigError, match="one contour file is configured for 2 slides"):
        prepare_slides([SlidePath("a", path), SlidePath("b", path)], one_file)
    (tmp_path / "contours" / "a.geojson").unlink()
    missing = prepare_slides([SlidePath("c", path)], config)[0]
    assert isinstance(missing, FailedSlide) and "no contours for this slide" in missing.reason


def test_ambiguous_contours_of_slides_with_the_same_file_name_are_an_error(tmp_path: Path) -> None:
    """A contour file named after the slide file may belong to either slide."""
    for folder in ("north", "south", "contours"):
        (tmp_path / folder).mkdir()
    slides = [SlidePath(name, write_slide(tmp_path / name / "s1.tiff", picture())) for name in ("north", "south")]
    contours = tmp_path / "contours"
    config = SlidesConfig(mpp=1.0, pixels=32, grids=str(tmp_path / "grids"), contours=str(contours))
    square = '{"type": "Polygon", "coordinates": [[[0, 0], [%d, 0], [%d, 64], [0, 64], [0, 0]]]}'
    (contours / "s1.geojson").write_text(square % (64, 64))
    (contours / "s2.json").write_text(square % (64, 64))
    more = [SlidePath(f"{name} 2", write_slide(tmp_path / name / "s2.tiff", picture())) for name in ("north", "south")]
    with pytest.raises(
        DataError,
        match=r"(?s)2 contour files .* s1.geojson \(north: .*, south: .*\), s2.json \(north 2: .*fix: .* "
        "north.geojson and south.geojson",
    ):
        prepare_slides([*slides, *more], config)
    (contours / "north.json").write_text(square % (96, 96))
    sizes = [len(slide.grid) for slide in prepare_slides(slides, config) if isinstance(slide, PreparedSlide)]
    assert sizes == [6, 4]  # a file named after the slide takes precedence


def test_the_tile_reader_can_be_pickled_and_the_pool_closes_old_slides(tmp_path: Path) -> None:
    paths = [write_slide(tmp_path / f"{name}.tiff", picture()) for name in "abc"]
    placed = [PlacedSlide(path.stem, path, 64.0, 64) for path in paths]
    rows = np.arange(3, dtype=np.int32)
    reader = SlideReader(placed, rows, np.full(3, 120, np.int32), np.full(3, 100, np.int32))
    copy = pickle.loads(pickle.dumps(reader))
    assert all(np.array_equal(np.asarray(copy.read(row)), picture()[100:164, 120:184]) for row in range(3))
    assert copy.where(1) == f"{paths[1]}: b@120,100,64"
    pool = SlidePool(max_open=1)
    first = pool.get(paths[0])
    assert pool.get(paths[0]) is first
    pool.get(paths[1])
    assert pool.get(paths[0]) is not first


def test_a_damaged_tile_does_not_affect_the_reading_of_others(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tiff", picture(), levels=1)
    damage_tile(path, 64, 128)
    reader = SlideReader(
        [PlacedSlide("a", path, 64.0, 64)],
        np.zeros(2, np.int32),
        np.array([64, 192], np.int32),
        np.array([128, 128], np.int32),
    )
    broken = reader._pool.get(path)
    broken._deflate.clear()  # let openslide decode the damaged tile, as with other compressions
    with pytest.raises(ImageError, match="openslide cannot read the pixels"):
        broken.read_region(64, 128, 0, 64, 64)
    # Another thread may still hold this handle, with which openslide rejects every read after an error.
    reader._pool._slides[path] = broken
    assert np.array_equal(np.asarray(reader.read(1)), picture()[128:192, 192:256])
    with pytest.raises(ImageError):
        reader.read(0)
    assert np.array_equal(np.asarray(reader.read(1)), picture()[128:192, 192:256])


def test_outlines_of_tissue_at_the_border_stay_within_the_slide(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tiff", np.full((290, 300, 3), PINK, np.uint8), levels=1)
    prepared = prepare_slides([SlidePath("a", path)], SlidesConfig(mpp=1.0, pixels=64, grids=str(tmp_path / "g")))[0]
    assert isinstance(prepared, PreparedSlide)
    (outline,) = read_contours(prepared.tissue, 300, 290)
    assert outline.exterior.max(axis=0).tolist() == [300, 290]


def test_grids_of_too_small_or_too_many_tiles_are_errors() -> None:
    def share(x: np.ndarray, y: np.ndarray, extent: float) -> np.ndarray:
        return np.ones(len(x), np.float32)

    with pytest.raises(DataError, match=r"cover only 6.4 x 6.4 pixels of the slide"):
        make_grid("a", 1000, 1000, 10.0, SlidesConfig(mpp=1.0, pixels=64), share)
    with pytest.raises(DataError, match="a grid of 100000 x 100000 tiles is too large"):
        make_grid("a", 100_000, 100_000, 1.0, SlidesConfig(mpp=1.0, pixels=64, overlap=0.999), share)


def test_a_grid_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(x: np.ndarray, y: np.ndarray, extent: float) -> np.ndarray:
        return ((x + y) % 3 / 2).astype(np.float32)

    whole = make_grid("a", 3000, 2000, 1.0, SlidesConfig(mpp=1.0, pixels=64), share)
    monkeypatch.setattr("clipit.slides.grid._BLOCK", 100)
    blocks = make_grid("a", 3000, 2000, 1.0, SlidesConfig(mpp=1.0, pixels=64), share)
    assert all(np.array_equal(getattr(whole, name), getattr(blocks, name)) for name in ("x", "y", "tissue"))


def test_a_slide_without_read_permission_is_listed_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slide(tmp_path / "a.tiff", picture())
    is_file = Path.is_file

    def forbidden(self: Path) -> bool:
        if self.name == "b.tiff":
            raise PermissionError(13, "Permission denied", str(self))
        return is_file(self)

    monkeypatch.setattr(Path, "is_file", forbidden)
    slides = [SlidePath(name, tmp_path / f"{name}.tiff") for name in "ab"]
    good, bad = prepare_slides(slides, SlidesConfig(mpp=1.0, pixels=64, grids=str(tmp_path / "grids")))
    assert isinstance(good, PreparedSlide) and isinstance(bad, FailedSlide)
    assert bad.reason == "no permission to read the slide"


def test_a_huge_slide_without_smaller_levels_is_an_error_before_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, edge, tile = tmp_path / "empty.tif", 120_000, 4096
    with tifffile.TiffWriter(path) as file:
        absent = iter([b""] * (-(-edge // tile)) ** 2)
        file.write(absent, shape=(edge, edge, 3), dtype="uint8", tile=(tile, tile), compression="zlib",
                   photometric="rgb")  # fmt: skip
    assert path.stat().st_size < 50_000
    config = SlidesConfig(mpp=1.0, pixels=256, grids=str(tmp_path / "grids"))
    begin = time.monotonic()
    (failed,) = prepare_slides([SlidePath("empty", path, mpp=0.5)], config)
    assert time.monotonic() - begin < 20  # reading all pixels would take an hour
    assert isinstance(failed, FailedSlide) and "--tile --pyramid" in failed.fix and "10 minutes" in failed.reason
    assert failed.reason.startswith(
        "the slide has no level between 120,000 x 120,000 pixels and its overview of 4,096 x 4,096"
    )
    caplog.set_level("INFO")
    whole = tmp_path / "a.tiff"
    write_slide(whole, picture(), levels=2)
    (good,) = prepare_slides([SlidePath("a", whole)], config.model_copy(update={"pixels": 64}))
    assert isinstance(good, PreparedSlide) and "this takes minutes" not in caplog.text
    monkeypatch.setattr("clipit.slides.reading._MAX_PIXELS", 300 * 200)
    monkeypatch.setattr("clipit.slides.reading._SLOW_PIXELS", 300 * 200 - 1)
    assert read_whole(good, 300).size == (300, 200)  # from the second level
    assert "reading 300 x 200 pixels" in caplog.text
    with Image.open(good.overview) as overview:
        assert read_whole(good, 600).size == overview.size
    assert "a: its page shows a coarser overview, because the slide has no level between 600 x 400" in caplog.text
