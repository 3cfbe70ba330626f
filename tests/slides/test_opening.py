"""Opening of slides in several formats, their resolution, and errors for files that cannot be read."""

import io
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_files import PINK, levels_of, picture, write_dicom, write_ome, write_slide

from clipit.config.data import SlidesConfig
from clipit.errors import ConfigError, DataError
from clipit.slides.dicom import one_per_slide, series_of, slide_key
from clipit.slides.opening import count_levels, open_slide, over_white, slide_name
from clipit.slides.prepare import FailedSlide, SlidePath, prepare_slides
from clipit.slides.resolution import check_mpp, explain_doubtful_mpp, resolve_mpp
from clipit.slides.slide_file import Level

REAL = "slides"


@pytest.fixture
def real_data() -> Path:
    place = os.environ.get("CLIPIT_TEST_DATA")
    if not place:
        pytest.skip("CLIPIT_TEST_DATA is not set: no real slides to test with")
    return Path(place)


@pytest.mark.parametrize("kind", ["generic", "ome", "png"])
def test_pixels_of_regions_at_their_level(kind: str, tmp_path: Path) -> None:
    pixels = picture()
    if kind == "generic":
        slide = open_slide(write_slide(tmp_path / "a.tiff", pixels, mpp=0.5))
    elif kind == "ome":
        slide = open_slide(write_ome(tmp_path / "a.ome.tiff", pixels, mpp=0.5, levels=3))
    else:
        Image.fromarray(pixels).save(tmp_path / "a.png")
        slide = open_slide(tmp_path / "a.png")
    assert (slide.levels[0].width, slide.levels[0].height) == (600, 400)
    assert np.array_equal(np.asarray(slide.read_region(90, 70, 0, 200, 100)), pixels[70:170, 90:290])
    if kind != "png":
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert slide.mpp == pytest.approx(0.5)
        small = np.asarray(slide.read_region(200, 160, 1, 20, 20))
        assert (small == PINK).all()
    outside = np.asarray(slide.read_region(590, 390, 0, 20, 20))
    assert (outside == 255).all()
    slide.close()


def test_pixels_outside_the_scanned_area_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    composed = over_white(image)
    assert [composed.getpixel((x, 0)) for x in range(2)] == [(10, 20, 30), (255, 255, 255)]


def test_files_that_are_not_slides_are_errors(tmp_path: Path) -> None:
    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "bytes.svs").write_bytes(b"no slide at all" * 50)
    Image.fromarray(picture()).save(tmp_path / "photo.jpg")
    shutil.copy(tmp_path / "photo.jpg", tmp_path / "photo.svs")
    tifffile.imwrite(tmp_path / "deep.tif", np.zeros((64, 64, 3), np.uint16))
    write_ome(tmp_path / "fluo.ome.tif", np.zeros((5, 64, 64), np.uint16), axes="CYX")
    whole = write_slide(tmp_path / "whole.tiff", picture())
    (tmp_path / "cut.svs").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "cut.tiff").write_bytes(whole.read_bytes()[:3000])
    (tmp_path / "alone.mrxs").write_bytes(b"\xff\xd8\xff")
    shutil.copy(whole, tmp_path / "olympus.vsi")
    for name, message in {
        "olympus.vsi": "VSI slides .Olympus. cannot be read",
        "missing.svs": "no such slide",
        "empty.svs": "the file is empty",
        "bytes.svs": "damaged, truncated or of a different format",
        "photo.svs": "not a slide, but a JPEG image with the suffix .svs",
        "deep.tif": "16 bits per channel",
        "fluo.ome.tif": "not a bright-field RGB image",
        "cut.svs": "slide",
        "cut.tiff": "cannot be read as a slide: the file is damaged or truncated",
        "alone.mrxs": "the folder alone with the pixels of the slide is missing",
    }.items():
        with pytest.raises(DataError, match=message):
            open_slide(tmp_path / name)


@pytest.mark.parametrize(("kind", "channels"), [("ycbcr", 3), ("cielab", 3), ("separated", 4)])
def test_other_colour_spaces_of_an_ome_tiff_are_an_error(kind: str, channels: int, tmp_path: Path) -> None:
    pixels = np.full((64, 64, channels), 120, np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tiff", pixels, photometric=kind, tile=(64, 64), metadata={"axes": "YXS"})
    with pytest.raises(DataError, match=rf"stored as {kind.upper()}, not as RGB"):
        open_slide(tmp_path / "a.ome.tiff")


def test_pixels_that_are_not_square_are_an_error(tmp_path: Path) -> None:
    sizes = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tiff", picture(), photometric="rgb", tile=(64, 64), metadata=sizes)
    per_centimetre = {"resolution": (20000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "b.tif", picture(), photometric="rgb", **per_centimetre)
    for name in ("a.ome.tiff", "b.tif"):
        with pytest.raises(DataError, match=r"the pixels are not square: 0\.5 by 0\.25 micrometres"):
            open_slide(tmp_path / name)


def test_resolutions_of_a_tiff_that_differ_by_rounding_are_averaged(tmp_path: Path) -> None:
    per_centimetre = {"resolution": (40000, 39999), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", **per_centimetre)
    assert open_slide(tmp_path / "a.tif").mpp == pytest.approx(0.25, rel=1e-4)


def test_regions_of_smaller_ome_tiff_levels_start_at_the_nearest_pixel(tmp_path: Path) -> None:
    pixels = picture(601, 401)
    slide = open_slide(write_ome(tmp_path / "s.ome.tiff", pixels))
    level = levels_of(pixels, 2)[1]
    x, y = 2 * 90, 2 * 60  # 89.9 and 59.9 pixels of level 1
    assert int(x / slide.levels[1].downsample) == 89
    read = np.asarray(slide.read_region(x, y, 1, 40, 30))
    assert np.array_equal(read, level[60:90, 90:130])


def test_the_resolution_comes_from_the_file_or_the_user(tmp_path: Path) -> None:
    with_mpp = open_slide(write_slide(tmp_path / "stated.tiff", picture(), mpp=0.5))
    without_mpp = open_slide(write_slide(tmp_path / "silent.tiff", picture(), mpp=None))
    print_mpp = open_slide(write_slide(tmp_path / "printed.tiff", picture(), mpp=352.8))
    assert resolve_mpp(with_mpp, None, "a") == (pytest.approx(0.5), "")
    assert resolve_mpp(with_mpp, 0.505, "a")[0] == pytest.approx(0.5)
    assert resolve_mpp(without_mpp, 0.25, "a")[0] == 0.25
    with pytest.raises(DataError, match=r"the table states 0.25 µm per pixel, but the file states 0.5"):
        resolve_mpp(with_mpp, 0.25, "a")
    assert resolve_mpp(with_mpp, None, "a", default=0.505) == (pytest.approx(0.5), "")
    value, note = resolve_mpp(with_mpp, None, "a", default=0.25)
    assert value == pytest.approx(0.5) and note == "the file states 0.5 µm per pixel, used instead of 0.25"
    assert resolve_mpp(without_mpp, None, "a", default=0.25)[0] == 0.25
    assert resolve_mpp(without_mpp, 0.3, "a", default=0.25)[0] == 0.3
    with pytest.raises(DataError, match=r"(?s)neither a plausible pixel size nor a magnif.*`mpp` column"):
        resolve_mpp(without_mpp, None, "a")
    with pytest.raises(DataError, match=r"it states 352\.8 µm per pixel, a print resolution"):
        resolve_mpp(print_mpp, None, "a")
    without_mpp.magnification = 20.0
    assert resolve_mpp(without_mpp, None, "a") == (0.5, "0.5 µm per pixel from the objective power of 20")


def test_resolutions_in_other_units_and_of_flatbed_scanners(tmp_path: Path) -> None:
    without_mpp = open_slide(write_slide(tmp_path / "silent.tiff", picture(), mpp=None))
    for mpp, unit in ((250.0, r" \(nanometres"), (0.00025, r" \(millimetres"), (42.3, "")):
        with pytest.raises(DataError, match=rf"(?s)between 0\.05 and 20, not [\d.e-]+{unit}.*correct tiles\.mpp"):
            resolve_mpp(without_mpp, None, "a", default=mpp)
        with pytest.raises(DataError, match="correct the `mpp` column"):
            resolve_mpp(without_mpp, mpp, "a")
        with pytest.raises(ConfigError, match=f"between 0.05 and 20, not .*{unit}"):
            check_mpp(mpp)
    scanned = open_slide(write_slide(tmp_path / "flatbed.tiff", picture(), mpp=42.3))
    value, note = resolve_mpp(scanned, None, "a", default=0.5)
    assert value == 0.5 and "the file's value of 42.3 is implausible" in note


def test_implausible_resolutions_are_reported(tmp_path: Path) -> None:
    slide = open_slide(write_slide(tmp_path / "a.tiff", picture(), mpp=0.25))
    slide.levels = [Level(60_000, 40_000, 1.0)]
    assert explain_doubtful_mpp(slide, 0.25, "a") == ""
    assert explain_doubtful_mpp(slide, 2.5, "a") == (
        "2.5 µm per pixel: the slide would be 150 mm long, more than a standard glass slide (76 mm)"
    )
    assert "finer than a 100x objective" in explain_doubtful_mpp(slide, 0.051, "a")
    slide.levels = [Level(200_000, 100_000, 1.0)]
    with pytest.raises(
        DataError, match=r"(?s)200,000 pixels would be 500 mm, longer than any glass slide.*`mpp` column"
    ):
        explain_doubtful_mpp(slide, 2.5, "a")
    slide.levels, slide.magnification = [Level(9_000, 8_000, 1.0)], 40.0
    assert explain_doubtful_mpp(slide, 0.5, "a") == ""
    assert "power of 40 implies about 0.25" in explain_doubtful_mpp(slide, 2.5, "a")


def test_a_dicom_slide_can_be_opened_from_any_file_of_its_series(tmp_path: Path) -> None:
    for number, level in enumerate(levels_of(picture(), 2)):
        write_dicom(tmp_path / f"{number}.dcm", level, mpp=0.5 * 2**number)
    assert one_per_slide([tmp_path / "0.dcm", tmp_path / "1.dcm"]) == [tmp_path / "0.dcm"]
    for name in ("0.dcm", "1.dcm"):
        slide = open_slide(tmp_path / name)
        assert (slide.format, slide.mpp, [level.width for level in slide.levels]) == ("dicom", 0.5, [600, 300])
        assert np.array_equal(np.asarray(slide.read_region(0, 0, 0, 600, 400)), picture())
    (tmp_path / "none.dcm").write_bytes(b"no series")
    assert series_of(tmp_path / "none.dcm") == "" and slide_key(tmp_path / "none.dcm") == tmp_path / "none.dcm"


def test_the_name_of_a_slide_has_no_suffix() -> None:
    assert [slide_name(Path(name)) for name in ("a.b.svs", "c.ome.tiff")] == ["a.b", "c"]


def test_real_slides(real_data: Path) -> None:
    aperio = open_slide(real_data / REAL / "CMU-1-Small-Region.svs")
    assert (aperio.levels[0].width, aperio.mpp, aperio.magnification) == (2220, 0.499, 20)
    tcga = open_slide(real_data / REAL / "tcga-cr-7395-01a-01-ts1.svs")
    assert [round(level.downsample, 4) for level in tcga.levels] == [1, 2.0005]
    with pytest.raises(DataError, match="neither a plausible pixel size nor a magnification"):
        resolve_mpp(tcga, None, "tcga")
    with pytest.raises(DataError, match="not a slide"):
        open_slide(real_data / REAL / "broken.svs")


def test_unsupported_channels_stacks_and_bit_depths_are_errors(tmp_path: Path) -> None:
    tiled: dict[str, Any] = {"tile": (64, 64), "metadata": None}
    tifffile.imwrite(tmp_path / "deep.tiff", picture().astype(np.uint16), photometric="rgb", **tiled)
    tifffile.imwrite(tmp_path / "stack.tiff", np.stack([picture()] * 3), photometric="rgb", **tiled)
    five = np.zeros((200, 200, 5), np.uint8)
    tifffile.imwrite(tmp_path / "five.tiff", five, photometric="minisblack", planarconfig="contig", **tiled)
    tifffile.imwrite(tmp_path / "grey.tiff", five[..., 0].astype(np.uint16), photometric="minisblack", **tiled)
    for name, message in {
        "deep.tiff": "3 channels of 16 bits",
        "grey.tiff": "1 channel of 16 bits",
        "stack.tiff": "a stack of 3 pages of equal size",
        "five.tiff": "5 channels of 8 bits",
    }.items():
        with pytest.raises(DataError, match=message):
            open_slide(tmp_path / name)
    assert len(open_slide(write_slide(tmp_path / "pyramid.tiff", picture())).levels) == 3


def test_folders_and_files_without_read_permission_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_slide(tmp_path / "a.tiff", picture())

    def forbidden(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with pytest.raises(DataError, match="no such slide"):
        open_slide(tmp_path)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(DataError, match="cannot open the slide: Permission denied"):
        open_slide(path)


def test_a_truncated_slide_is_reported_as_damaged(real_data: Path, tmp_path: Path) -> None:
    whole = (real_data / REAL / "CMU-1-Small-Region.svs").read_bytes()
    for length in (len(whole) * 9 // 10, len(whole) - 2000):  # in the latter case Pillow warns about corrupt tags
        (tmp_path / "cut.svs").write_bytes(whole[:length])
        with warnings.catch_warnings(), pytest.raises(DataError, match="the TIFF is damaged, truncated"):
            warnings.simplefilter("error")
            open_slide(tmp_path / "cut.svs")


def test_tiles_with_an_unsupported_compression_are_to_be_converted(tmp_path: Path) -> None:
    pixels = np.zeros((512, 512, 3), dtype=np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="lzma")
    with pytest.raises(
        DataError, match=r"(?s)Unsupported TIFF compression.*fix: convert it, for example: vips tiffsave"
    ):
        open_slide(path)


def write_jpeg_ome_tiff(path: Path, pixels: np.ndarray, edge: int = 64) -> Path:
    tiles = []
    for top in range(0, pixels.shape[0], edge):
        for left in range(0, pixels.shape[1], edge):
            tile, stream = Image.fromarray(pixels[top : top + edge, left : left + edge]), io.BytesIO()
            tile.save(stream, "JPEG", quality=95)
            tiles.append(stream.getvalue())
    tifffile.imwrite(
        path, iter(tiles), shape=pixels.shape, dtype=np.uint8, tile=(edge, edge), photometric="ycbcr",
        compression="jpeg", subsampling=(2, 2), ome=True,
    )  # fmt: skip
    return path


def test_a_jpeg_compressed_ome_tiff_is_read_with_imagecodecs(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    smooth = np.asarray(Image.fromarray(picture(48, 32)).resize((384, 256)))
    slide = open_slide(write_jpeg_ome_tiff(tmp_path / "s.ome.tif", smooth))
    read = np.asarray(slide.read_region(0, 0, 0, 384, 256)).astype(int)
    assert slide.format == "ome-tiff" and np.abs(read - smooth).mean() < 2


def test_a_missing_codec_is_not_reported_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(path, picture(), tile=(64, 64), photometric="rgb", compression="zlib", ome=True)
    monkeypatch.setattr(tifffile.TIFF, "DECOMPRESSORS", {})
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    result = prepare_slides(
        [SlidePath("s", path, 1.0)], SlidesConfig(mpp=1.0, pixels=32, grids=str(tmp_path / "grids"))
    )[0]
    assert isinstance(result, FailedSlide) and result.fix == "pip install imagecodecs"
    assert "compressed as ADOBE_DEFLATE, which needs the package imagecodecs" in result.reason


def test_transparent_pixels_of_an_ome_tiff_are_white(tmp_path: Path) -> None:
    pixels = np.concatenate([picture(), np.full((400, 600, 1), 255, np.uint8)], axis=-1)
    pixels[100:150, 120:200] = 0
    metadata = {"axes": "YXS", "PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0}
    tifffile.imwrite(
        tmp_path / "a.ome.tiff", pixels, tile=(64, 64), photometric="rgb", extrasamples=["unassalpha"],
        metadata=metadata, ome=True,
    )  # fmt: skip
    region = open_slide(tmp_path / "a.ome.tiff").read_region(100, 80, 0, 100, 100)
    assert region.getpixel((50, 40)) == (255, 255, 255) and region.getpixel((5, 5)) == PINK


@pytest.mark.parametrize("kind", ["ome", "generic"])
@pytest.mark.parametrize(
    ("meaning", "channel", "shown"),
    [
        ("unassalpha", "", (161, 130, 100)),  # 100 * 155/255 + 255 * 100/255 = 161 for the first channel
        ("assocalpha", "", (200, 150, 100)),
        ("unspecified", "Alpha", (161, 130, 100)),
        ("unspecified", "", (100, 50, 0)),
        ("unspecified", "autofluorescence", (100, 50, 0)),
    ],
)
def test_a_fourth_channel_is_transparency_only_if_declared(
    meaning: str, channel: str, shown: tuple[int, int, int], kind: str, tmp_path: Path
) -> None:
    pixels = np.full((300, 400, 4), (100, 50, 0, 155), np.uint8)
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "extrasamples": [meaning]}
    if kind == "ome":
        path, names = tmp_path / "a.ome.tiff", {"Channel": {"Name": channel}} if channel else {}
        tifffile.imwrite(path, pixels, metadata={"axes": "YXS"} | names, ome=True, **options)
    elif channel:
        pytest.skip("other TIFFs do not name channels")
    else:
        path = tmp_path / "a.tiff"
        tifffile.imwrite(path, pixels, metadata=None, resolution=(2e4, 2e4), resolutionunit="CENTIMETER", **options)
    slide = open_slide(path)
    assert kind == "ome" or (slide.format == "generic-tiff" and slide.mpp == pytest.approx(0.5))
    assert np.abs(np.subtract(slide.read_region(10, 10, 0, 2, 2).getpixel((1, 1)), shown)).max() <= 1
    assert slide.remark == ("a fourth channel without a stated meaning" if shown == (100, 50, 0) else "")


@pytest.mark.parametrize("kind", ["ome", "generic"])
def test_a_large_image_without_small_tiles_is_an_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipit.slides.tiff_pages._MAX_PIXELS", 1000)
    path = (
        write_ome(tmp_path / "a.ome.tiff", picture()) if kind == "ome" else write_slide(tmp_path / "a.tiff", picture())
    )
    with pytest.raises(DataError, match="not stored in small tiles, but in parts of 64 x 64 pixels"):
        open_slide(path)


def test_levels_are_counted_and_empty_ome_tiff_tiles_are_white(tmp_path: Path) -> None:
    assert count_levels(write_ome(tmp_path / "a.ome.tiff", picture(), levels=3)) == 3
    assert count_levels(write_slide(tmp_path / "b.tiff", picture(), levels=2)) == 2
    (tmp_path / "c.tiff").write_bytes(b"nothing")
    assert count_levels(tmp_path / "c.tiff") == 1
    slide = open_slide(tmp_path / "a.ome.tiff")
    slide._pages[0].databytecounts = (0, *slide._pages[0].databytecounts[1:])  # type: ignore[attr-defined]
    assert (np.asarray(slide.read_region(0, 0, 0, 64, 64)) == 255).all()


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("ImageWidth", 0, "is damaged: it has no pixels"),
        ("TileWidth", 0, "is damaged: it has no pixels"),
        ("TileLength", 16, "is damaged: it has fewer than 65 tiles"),
        ("ImageLength", 90, "has a different shape from the first: 300 x 90 pixels"),
    ],
)
def test_a_damaged_level_of_an_ome_tiff_is_an_error(tag: str, value: int, message: str, tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tiff", picture())
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.series[0].levels[1].keyframe.tags[tag].overwrite(value)
    with pytest.raises(DataError, match=f"level 1 of the OME-TIFF {message}"):
        open_slide(path)


def test_a_row_of_a_wide_slide_stays_cached(tmp_path: Path) -> None:
    """The file is overwritten with zeros after reading a row, so that its tiles can only come from the cache."""
    path, columns, edge = tmp_path / "wide.tif", 200, 256  # 50 MiB of decoded tiles
    row = np.full((edge, columns * edge, 3), PINK, dtype=np.uint8)
    tifffile.imwrite(path, row, tile=(edge, edge), photometric="rgb", compression="deflate", metadata=None)
    slide = open_slide(path)
    for column in range(columns):
        slide.read_region(column * edge, 0, 0, edge, edge)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert np.asarray(slide.read_region(0, 0, 0, edge, edge))[0, 0].tolist() == list(PINK)
    slide.close()
