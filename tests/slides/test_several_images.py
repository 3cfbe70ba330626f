"""Files with several images and slides stored with a rotation are errors."""

import logging
import struct
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tifffile
from PIL import Image
from slide_files import PURPLE, levels_of, picture
from vendor_slides import write_scn

import clipit
from clipit.config.data import SlidesConfig
from clipit.errors import DataError
from clipit.slides.level_check import check_tile_level
from clipit.slides.opening import count_levels, is_pyramid, open_slide
from clipit.slides.prepare import FailedSlide, PreparedSlide, SlidePath, prepare_slides

PIXELS = picture()  # 600 x 400
TILED: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
STRIPS: dict[str, Any] = {"rowsperstrip": 16, "photometric": "rgb"}
REDUCED, APERIO_MACRO = 1, 9


def write_images(path: Path, *images: tuple[str, np.ndarray, float | None], levels: int = 1) -> Path:
    """Write an OME-TIFF of several images, each with a name, pixels and micrometres per pixel."""
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, pixels, mpp in images:
            sizes = {} if mpp is None else {f"PhysicalSize{axis}": mpp for axis in "XY"}
            metadata = {"axes": "YXS", "Name": name, **sizes}
            file.write(pixels, subifds=levels - 1, metadata=metadata, **TILED)
            for level in levels_of(pixels, levels)[1:]:
                file.write(level, subfiletype=REDUCED, **TILED)
    return path


def write_pages(path: Path, *pages: tuple[np.ndarray, dict[str, Any]], first: dict[str, Any] = TILED) -> Path:
    """Write a TIFF with the picture as its first page, followed by `pages`."""
    with tifffile.TiffWriter(path) as file:
        for pixels, options in ((PIXELS, first), *pages):
            file.write(pixels, metadata=None, resolution=(1e4, 1e4), resolutionunit="CENTIMETER", **options)
    return path


def test_several_scenes_of_an_ome_tiff_are_an_error(tmp_path: Path) -> None:
    path = write_images(
        tmp_path / "a.ome.tif", ("left", PIXELS[:300], 1.0), ("macro", PIXELS[:50], 8.0), ("right", PIXELS[100:], 1.0),
        levels=2,
    )  # fmt: skip
    message = (
        r"contains 2 images instead of one slide: series 0 'left' \(600 x 300 pixels\), series 2 'right' "
        r"\(600 x 300 pixels\)[\s\S]*bfconvert -noflat -series 0"
    )
    with pytest.raises(DataError, match=message):
        open_slide(path)
    assert count_levels(path) == 2 and is_pyramid(path)  # still recognised as a slide among images


def test_scenes_without_names_or_of_proportional_size_are_an_error(tmp_path: Path) -> None:
    unnamed = write_images(tmp_path / "a.ome.tif", ("1", PIXELS, None), ("2", PIXELS[:, :300], None))
    content = unnamed.read_bytes()
    unnamed.write_bytes(content.replace(b'Name="1"', b" " * 8).replace(b'Name="2"', b" " * 8))
    with pytest.raises(DataError, match=r"series 0 \(600 x 400 pixels\), series 1 \(300 x 400 pixels\)"):
        open_slide(unnamed)
    half = write_images(tmp_path / "b.ome.tif", ("1", PIXELS, 0.5), ("2", PIXELS[:200, :300], 0.5))
    with pytest.raises(DataError, match="contains 2 images"):
        open_slide(half)


@pytest.mark.parametrize("name", ["macro", "Label Image", "slide.svs - overview", "thumbnail_1", "macro mask image"])
def test_macro_and_label_images_are_ignored(name: str, tmp_path: Path) -> None:
    macro = np.full((80, 200, 3), 90, np.uint8)
    path = write_images(tmp_path / "a.ome.tif", (name, macro, 9.0), ("tissue", PIXELS, 0.5), ("label", macro, None))
    slide = open_slide(path)
    assert (slide.levels[0].width, slide.levels[0].height, slide.mpp) == (600, 400, 0.5)
    assert slide.read_region(300, 200, 0, 1, 1).getpixel((0, 0)) == PURPLE


def test_names_that_merely_contain_macro_or_label_are_slides(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.ome.tif", ("macrophages", PIXELS, 1.0), ("unlabelled", PIXELS[:, :300], 1.0))
    with pytest.raises(DataError, match="contains 2 images"):
        open_slide(path)
    assert len(open_slide(write_images(tmp_path / "b.ome.tif", ("label", PIXELS, 1.0), levels=2)).levels) == 2


def test_levels_stored_as_separate_images_belong_to_the_slide(tmp_path: Path) -> None:
    """Bio-Formats stores levels this way by default."""
    levels = levels_of(PIXELS, 3)
    for sizes in ((0.5, None, None), (0.5, 1.0, 2.0), (None, None, None)):
        images = [(f"a.svs #{number}", *image) for number, image in enumerate(zip(levels, sizes, strict=True))]
        slide = open_slide(write_images(tmp_path / "a.ome.tif", *images, ("label", PIXELS[:90, :70], None)))
        assert (slide.levels[0].width, slide.mpp) == (600, sizes[0])


def test_each_file_of_a_multi_file_ome_tiff_is_read_as_one_image(tmp_path: Path) -> None:
    """The metadata of each file describe the images of all files."""
    uuids = ["urn:uuid:" + digit * 8 + "-0000-4000-8000-" + digit * 12 for digit in "12"]
    sizes = ((600, 300), (600, 200))
    images = "".join(
        f'<Image ID="Image:{n}" Name="scene {n}"><Pixels ID="Pixels:{n}" DimensionOrder="XYCZT" Type="uint8" '
        f'SizeX="{sizes[n][0]}" SizeY="{sizes[n][1]}" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="{n + 1}" '
        f'PhysicalSizeY="{n + 1}"><Channel ID="Channel:{n}:0" SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1">'
        f'<UUID FileName="{n}.ome.tif">{uuids[n]}</UUID></TiffData></Pixels></Image>'
        for n in (0, 1)
    )
    for n, pixels in enumerate((PIXELS[:300], PIXELS[200:])):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[n]}">'
            f"{images}</OME>"
        )
        tifffile.imwrite(tmp_path / f"{n}.ome.tif", pixels, description=xml.encode(), metadata=None, **TILED)
    for n, pixels in enumerate((PIXELS[:300], PIXELS[200:])):
        slide = open_slide(tmp_path / f"{n}.ome.tif")
        assert (slide.levels[0].height, slide.mpp) == (pixels.shape[0], n + 1)
        assert np.array_equal(np.asarray(slide.read_region(0, 0, 0, 600, 200)), pixels[:200])


@pytest.mark.parametrize("first", [TILED, STRIPS])
@pytest.mark.parametrize("size", [(600, 300), (400, 350), (700, 500), (595, 398)])
def test_another_image_in_a_plain_tiff_is_an_error(
    size: tuple[int, int], first: dict[str, Any], tmp_path: Path
) -> None:
    path = write_pages(tmp_path / "a.tif", (np.zeros((*size[::-1], 3), np.uint8), first), first=first)
    message = rf"one slide: page 0 \(600 x 400 pixels\).*page 1 \({size[0]} x {size[1]} pixels\)[\s\S]*vips"
    with pytest.raises(DataError, match=message):
        open_slide(path)


def test_a_flat_slide_may_have_a_label_without_a_name(tmp_path: Path) -> None:
    label = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    slide = open_slide(write_pages(tmp_path / "a.tif", (label, STRIPS), first=STRIPS))
    assert np.array_equal(np.asarray(slide.read_region(0, 0, 0, 600, 400)), PIXELS)


def test_another_image_among_the_levels_of_an_aperio_slide_is_an_error(tmp_path: Path) -> None:
    aperio = TILED | {"description": "Aperio Image Library v11\n600x400|MPP = 0.5"}
    other = (PIXELS[:, :500], aperio)
    with pytest.raises(DataError, match=r"page 2 \(500 x 400 pixels\)"):
        open_slide(write_pages(tmp_path / "a.svs", (PIXELS[:200, :200], STRIPS), other, first=aperio))


def test_pages_that_belong_to_a_slide_are_accepted(tmp_path: Path) -> None:
    def blank(width: int, height: int) -> np.ndarray:
        return np.full((height, width, 3), 200, np.uint8)

    aperio = TILED | {"description": "Aperio Image Library v11\n600x400|MPP = 0.5"}
    svs = write_pages(
        tmp_path / "a.svs", (blank(573, 382), STRIPS), (blank(150, 100), TILED), (blank(387, 463), STRIPS),
        (blank(580, 431), STRIPS | {"subfiletype": APERIO_MACRO}), first=aperio,
    )  # fmt: skip
    assert [level.width for level in open_slide(svs).levels] == [600, 150]
    for name, pages in {
        "ragged": [(blank(200, 133), TILED), (blank(86, 57), TILED), (blank(6, 4), TILED)],
        "reduced": [(blank(300, 200), TILED | {"subfiletype": REDUCED})],
        "scanner": [(blank(300, 200), TILED), (blank(90, 120), STRIPS), (blank(300, 120), STRIPS)],
        "macro": [(blank(500, 400), TILED | {"description": "Macro"}), (blank(90, 90), STRIPS)],
        "label": [(blank(90, 90), TILED | {"description": "Label"})],
        "mask": [(np.ones((400, 600), bool), {"photometric": "minisblack", "subfiletype": 4})],
    }.items():  # fmt: skip
        slide = open_slide(write_pages(tmp_path / f"{name}.tif", *pages))
        assert (slide.levels[0].width, slide.format) == (600, "generic-tiff"), name


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["generic", "aperio", "ome", "level"])
def test_a_rotated_slide_is_an_error(kind: str, orientation: int, tmp_path: Path) -> None:
    rotated: dict[str, Any] = TILED | {"extratags": [(274, 3, 1, orientation, True)]}
    path = tmp_path / ("a.svs" if kind == "aperio" else "a.ome.tif" if kind == "ome" else "a.tif")
    if kind == "ome":
        tifffile.imwrite(path, PIXELS, metadata={"axes": "YXS"}, **rotated)
    elif kind == "level":
        write_pages(path, (PIXELS[::2, ::2], rotated | {"subfiletype": REDUCED}))
    else:
        write_pages(path, first=rotated | ({"description": "Aperio Image Library"} if kind == "aperio" else {}))
    size = "300 x 200" if kind == "level" else "600 x 400"
    message = rf"tag Orientation is {orientation}, not 1, on the page of {size} pixels[\s\S]*vips autorot"
    with pytest.raises(DataError, match=message):
        open_slide(path)


def test_a_rotated_slide_in_a_vendor_format_is_an_error(tmp_path: Path) -> None:
    path = write_scn(tmp_path / "a.scn", PIXELS)
    open_slide(path).close()
    with tifffile.TiffFile(path) as file:
        entry = file.pages.first.tags["ResolutionUnit"].offset  # its value is 3
    with path.open("r+b") as stream:
        stream.seek(entry)
        stream.write((274).to_bytes(2, "little"))
    with pytest.raises(DataError, match="tag Orientation is 3, not 1, on the page of 600 x 400 pixels"):
        open_slide(path)


def test_a_rotated_label_is_accepted_and_flat_images_are_rotated(tmp_path: Path) -> None:
    def at(orientation: int) -> dict[str, Any]:
        return {"extratags": [(274, 3, 1, orientation, True)]}

    label = (np.zeros((90, 60, 3), np.uint8), STRIPS | at(6))
    assert len(open_slide(write_pages(tmp_path / "a.tif", label, first=TILED | at(1))).levels) == 1
    flat = open_slide(write_pages(tmp_path / "flat.tif", first=STRIPS | at(6)))
    assert np.array_equal(np.asarray(flat.read_region(0, 0, 0, 400, 600)), np.rot90(PIXELS, -1))


def test_unreadable_slides_are_listed_as_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    write_pages(folder / "good.tif")
    write_pages(folder / "turned.tif", first=TILED | {"extratags": [(274, 3, 1, 3, True)]})
    write_images(folder / "scenes.ome.tif", ("1", PIXELS, 1.0), ("2", PIXELS, 1.0))
    with caplog.at_level(logging.WARNING):
        slides = clipit.tile_slides(folder, tmp_path / "out", tile_mpp=1.0, tile_pixels=20).slides.set_index("slide")
    assert slides["status"].to_dict() == {"good": "ok", "turned": "failed", "scenes": "failed"}


@pytest.mark.parametrize("kind", ["aperio", "generic"])
@pytest.mark.parametrize("mpp", [1.0, 2.0])
def test_a_level_that_shows_another_image_is_an_error(kind: str, mpp: float, tmp_path: Path) -> None:
    def write(name: str, *levels: np.ndarray) -> Path:
        first = TILED | {"description": "Aperio Image Library v11\n600x400|MPP = 1"} if kind == "aperio" else TILED
        options = TILED if kind == "aperio" else TILED | {"subfiletype": REDUCED}
        return write_pages(tmp_path / name, *((level, options) for level in levels), first=first)

    suffix = ".svs" if kind == "aperio" else ".tif"
    half, quarter = levels_of(PIXELS, 3)[1:]
    config = SlidesConfig(mpp=mpp, pixels=32, grids=str(tmp_path / "grids"))
    good = write(f"good{suffix}", half, quarter)
    wrong = write(f"wrong{suffix}", half, np.roll(quarter, 75, axis=1))
    slides = [SlidePath(path.stem, path) for path in (good, wrong)]
    first, second = prepare_slides(slides, config)
    assert isinstance(first, PreparedSlide)
    assert isinstance(second, FailedSlide) and "150 x 100 pixels, used to find tissue" in second.reason


@pytest.mark.parametrize(("other", "maximum"), [(False, 6), (True, 32)])
def test_levels_are_compared_in_a_few_areas(other: bool, maximum: int, tmp_path: Path) -> None:
    half, quarter = levels_of(PIXELS, 3)[1:]
    last = np.full_like(quarter, 100) if other else quarter
    options = TILED | {"subfiletype": REDUCED}
    slide = open_slide(write_pages(tmp_path / "s.tif", (half, options), (last, options)))
    with patch.object(slide, "read_region", wraps=slide.read_region) as spy:
        if other:
            with pytest.raises(DataError, match="show different images"):
                check_tile_level(slide, Image.fromarray(last), 4.0, 1.0, tmp_path)
        else:
            check_tile_level(slide, Image.fromarray(last), 4.0, 1.0, tmp_path)
    assert 0 < spy.call_count <= maximum


@pytest.mark.parametrize("ome", [False, True])
def test_a_page_in_the_shape_of_a_level_with_another_image_is_an_error(ome: bool, tmp_path: Path) -> None:
    half = levels_of(PIXELS, 2)[1]
    other = np.roll(half, 150, axis=1)
    slides = []
    for name, page in (("same", half), ("other", other)):
        path = tmp_path / f"{name}.tif"
        if ome:
            write_images(path, ("a", PIXELS, 1.0), ("b", page, 2.0))
        else:
            write_pages(path, (page, TILED))
        slides.append(SlidePath(name, path))
    config = SlidesConfig(mpp=1.0, pixels=32, grids=str(tmp_path / "grids"))
    first, second = prepare_slides(slides, config)
    assert isinstance(first, PreparedSlide)
    assert isinstance(second, FailedSlide) and "page 1 of the TIFF (300 x 200 pixels)" in second.reason


@pytest.mark.parametrize("name", ["generic.tif", "big.tif", "aperio.svs", "image.ome.tif"])
def test_a_cycle_of_pages_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with tifffile.TiffWriter(path, bigtiff=name == "big.tif", ome=name.endswith(".ome.tif")) as file:
        for number, level in enumerate(levels_of(PIXELS, 2)):
            description = "Aperio Image Library v1" if name == "aperio.svs" else None
            file.write(level, description=description, subfiletype=REDUCED * bool(number), **TILED)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[-1]
        layout = tiff.tiff
        after = last.offset + layout.tagnosize + len(last.tags) * layout.tagsize
    content = bytearray(path.read_bytes())
    struct.pack_into(layout.offsetformat, content, after, first)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"page \d is followed by an earlier page"):
        open_slide(path).close()
    assert count_levels(path) in (1, 2)
