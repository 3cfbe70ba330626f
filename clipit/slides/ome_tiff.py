"""OME-TIFF slides, whose smaller levels are stored in sub-IFDs that openslide does not read.

A fourth channel is transparency if the file declares it as such (TIFF tag ExtraSamples, or a channel named alpha). A
fourth channel without a stated meaning is not read, as the TIFF specification requires.
"""

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipit.errors import DataError, counted, is_out_of_memory
from clipit.images.decode import ImageError
from clipit.slides.ome_images import choose_image, has_several, read_images
from clipit.slides.slide_file import Level, check_square
from clipit.slides.tiff_pages import check_orientation, check_tile_sizes

_INSTALL = "pip install tifffile"
_ASSOCIATED, _UNASSOCIATED = 1, 2  # TIFF tag ExtraSamples: colours are multiplied by the transparency, or not
UNKNOWN_CHANNEL = "a fourth channel without a stated meaning"
"""Remark on slides whose fourth channel is not read."""


def is_ome_tiff(path: Path) -> bool:
    """Return whether a TIFF contains OME metadata.

    Raises:
        DataError: tifffile is not installed.
    """
    tifffile = _import()
    try:
        with tifffile.TiffFile(path) as file:
            return bool(file.is_ome)
    except Exception:  # tifffile raises many kinds of exceptions for corrupt data; openslide reports the error later
        return False


def _import() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise DataError(f"cannot read this slide without tifffile ({error})", fix=_INSTALL) from error
    return tifffile


class OmeTiff:
    """An open OME-TIFF; only the internal tiles that a region touches are decoded."""

    def __init__(self, path: Path, tiff_format: str = "ome-tiff", mpp: float | None = None) -> None:
        """Open the file and read its metadata.

        Args:
            path: OME-TIFF, or another TIFF whose levels tifffile finds.
            mpp: Micrometres per level-0 pixel if the file has no OME metadata; None if unknown.

        Raises:
            DataError: The file is damaged, not an 8-bit RGB image with square pixels, or contains several images that
                may be the slide.
        """
        tifffile = _import()
        self._lock = threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
        except Exception as error:  # tifffile raises many kinds of exceptions for corrupt data
            raise _unreadable(error, path) from error
        try:
            series, image = choose_image(self._file, path)
            pages = [level.keyframe for level in series.levels]
            _check_levels(pages, series, path)
            if image is not None and image.pixel_size is not None:
                check_square(*image.pixel_size, path)
        except DataError:
            self._file.close()
            raise
        except Exception as error:
            self._file.close()
            raise _unreadable(error, path) from error
        first = pages[0]
        self.format = tiff_format
        self._pages = pages
        self._alpha = _alpha(first, image is not None and image.has_alpha)
        self.remark = UNKNOWN_CHANNEL if first.samplesperpixel == 4 and not self._alpha else ""
        self.levels = [Level(page.imagewidth, page.imagelength, first.imagewidth / page.imagewidth) for page in pages]
        self.mpp = mpp if image is None else image.mpp
        self.magnification: float | None = None
        self.origin = (0, 0)

    def read_region(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        """Read a rectangle as RGB; pixels outside the image are white."""
        page, downsample = self._pages[level], self.levels[level].downsample
        left, top = round(x / downsample), round(y / downsample)
        region = np.full((height, width, 3), 255, dtype=np.uint8)
        (tile_width, tile_height), (columns, rows) = _tile_size(page), _tile_counts(page)
        for row in range(max(0, top // tile_height), min(rows, -(-(top + height) // tile_height))):
            for column in range(max(0, left // tile_width), min(columns, -(-(left + width) // tile_width))):
                pixels = self._tile(page, row * columns + column)
                # Tiles at the border are padded.
                pixels = pixels[: page.imagelength - row * tile_height, : page.imagewidth - column * tile_width]
                _paste(region, pixels, column * tile_width - left, row * tile_height - top)
        return Image.fromarray(region)

    def _tile(self, page: Any, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """Decode one internal tile or strip; a tile without data is one white pixel."""
        if not page.databytecounts[index]:
            return np.full((1, 1, 3), 255, dtype=np.uint8)
        try:
            with self._lock:  # threads share the position of the file handle
                self._file.filehandle.seek(page.dataoffsets[index])
                data = self._file.filehandle.read(page.databytecounts[index])
            pixels = page.decode(data, index, jpegtables=page.jpegtables)[0]
        except Exception as error:  # decoders raise many kinds of exceptions
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            raise ImageError(f"cannot decode a tile of the OME-TIFF: {error}") from error
        if pixels is None:
            return np.full((1, 1, 3), 255, dtype=np.uint8)
        return _over_white(np.asarray(pixels[0], dtype=np.uint8), self._alpha)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _unreadable(error: Exception, path: Path) -> DataError:
    return DataError(f"not a readable OME-TIFF: {error}", where=path, fix="copy it again")


def count_ome_levels(path: Path) -> int:
    """Return the number of levels of an OME-TIFF, or the largest number if several of its images may be the slide.

    Raises:
        DataError: The file is damaged, or not an 8-bit RGB image.
    """
    tifffile = _import()
    try:
        with tifffile.TiffFile(path) as file:
            if has_several(file):
                return max(len(series.levels) for series in file.series)
    except Exception as error:  # tifffile raises many kinds of exceptions for corrupt data
        raise _unreadable(error, path) from error
    ome = OmeTiff(path)
    ome.close()
    return len(ome.levels)


def _check_levels(pages: Sequence[Any], series: Any, path: Path) -> None:
    """Check that the image is 8-bit RGB, and that all levels show the same area and have the same channels.

    Raises:
        DataError: The image is not 8-bit RGB, a package that decodes it is missing, or a level is damaged, differs from
            the first or is stored rotated.
    """
    first = pages[0]
    is_rgb = str(first.dtype) == "uint8" and first.samplesperpixel in (3, 4) and first.planarconfig == 1
    if not is_rgb or len(series.pages) > 1:
        raise DataError(
            f"not a bright-field RGB image: shape {series.shape} (axes {series.axes}), {first.dtype}",
            where=path,
            fix="clipit reads 8-bit RGB slides; export fluorescence images and stacks as RGB first",
        )
    if not _is_decoded_to_rgb(first):
        raise DataError(
            f"the colours of the OME-TIFF are stored as {first.photometric.name}, not as RGB",
            where=path,
            fix="export it as RGB",
        )
    for level, page in enumerate(pages):
        if not _has_decoder(page.compression):
            lacking = find_spec("imagecodecs") is None
            raise DataError(
                f"the pixels of the OME-TIFF are compressed as {getattr(page.compression, 'name', page.compression)}, "
                + ("which needs the package imagecodecs" if lacking else "which tifffile cannot decode"),
                where=path,
                fix="pip install imagecodecs" if lacking else "export it with JPEG or deflate compression",
            )
        check_tile_sizes(page, path)
        check_orientation(page, path)
        problem = _level_problem(page, first)
        if problem:
            raise DataError(f"level {level} of the OME-TIFF {problem}", where=path, fix="copy or export it again")


def _has_decoder(compression: int) -> bool:
    """Return whether tifffile can decode a compression; most of them require imagecodecs."""
    try:
        return callable(_import().TIFF.DECOMPRESSORS[compression])
    except (KeyError, AttributeError):
        return False


def _level_problem(page: Any, first: Any) -> str:
    """Return the reason why a level cannot be used; "" if it can be."""
    if min(page.imagewidth, page.imagelength, *_tile_size(page)) < 1:
        return "is damaged: it has no pixels"
    columns, rows = _tile_counts(page)
    if min(len(page.dataoffsets), len(page.databytecounts)) < columns * rows:
        return f"is damaged: it has fewer than {counted(columns * rows, 'tile or strip', 'tiles or strips')}"
    if str(page.dtype) != "uint8" or page.samplesperpixel != first.samplesperpixel or page.planarconfig != 1:
        return f"has different channels from the first: {page.samplesperpixel} of type {page.dtype}"
    if not _is_decoded_to_rgb(page):
        return f"is stored as {page.photometric.name}, not as RGB"
    downsample = first.imagewidth / page.imagewidth
    rounding = 1 + page.imagelength / page.imagewidth  # pixels; width and height are rounded
    if downsample < 1 or abs(page.imagelength - first.imagelength / downsample) > rounding:
        return f"has a different shape from the first: {page.imagewidth} x {page.imagelength} pixels"
    return ""


def _tile_size(page: Any) -> tuple[int, int]:
    """Return the width and height of the tiles or strips of a page."""
    return (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)


def _tile_counts(page: Any) -> tuple[int, int]:
    """Return the numbers of columns and rows of the tiles or strips of a page."""
    width, height = _tile_size(page)
    return -(-page.imagewidth // width), -(-page.imagelength // height)


def _is_decoded_to_rgb(page: Any) -> bool:
    """Return whether decoding a page gives RGB; YCbCr becomes RGB only in the decoders of JPEG and JPEG 2000."""
    kind = page.photometric.name
    return kind == "RGB" or (kind == "YCBCR" and "JP" in page.compression.name)


def has_unknown_channel(path: Path) -> bool:
    """Return whether a TIFF has a fourth channel without a stated meaning.

    Raises:
        DataError: tifffile is not installed.
    """
    tifffile = _import()
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            named = any(image.has_alpha for image in read_images(file.ome_metadata))
            return page.photometric.name == "RGB" and page.samplesperpixel == 4 and not _alpha(page, named)
    except Exception:  # tifffile raises many kinds of exceptions for corrupt data; reading reports the error later
        return False


def _alpha(page: Any, is_named: bool) -> int:
    """Return the kind of transparency in the fourth channel, as a value of the tag ExtraSamples; 0 if it has none.

    Args:
        page: tifffile page.
        is_named: Whether the OME metadata mark a channel as transparency.
    """
    if page.samplesperpixel != 4:
        return 0
    kind = int(page.extrasamples[0]) if page.extrasamples else 0
    if kind in (_ASSOCIATED, _UNASSOCIATED):
        return kind
    return _UNASSOCIATED if is_named else 0


def _over_white(pixels: UInt8[np.ndarray, "h w channels"], alpha: int) -> UInt8[np.ndarray, "h w 3"]:
    """Composite transparent pixels, which lie outside the scanned area, over white.

    Args:
        pixels: Three or four channels.
        alpha: Meaning of the fourth channel (`_alpha`); 0 if it is not transparency.
    """
    if pixels.shape[-1] == 3 or not alpha or (pixels[..., 3] == 255).all():
        return pixels[..., :3]
    if alpha == _ASSOCIATED:
        composed = pixels[..., :3].astype(np.uint16) + (255 - pixels[..., 3:])
        return np.asarray(np.minimum(composed, 255), dtype=np.uint8)
    image = Image.fromarray(pixels, mode="RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def _paste(region: UInt8[np.ndarray, "h w 3"], pixels: UInt8[np.ndarray, "a b 3"], left: int, top: int) -> None:
    """Copy the part of a tile that lies inside the region; `left` and `top` may be negative."""
    height, width = region.shape[:2]
    first_row, first_column = max(0, -top), max(0, -left)
    last_row, last_column = min(pixels.shape[0], height - top), min(pixels.shape[1], width - left)
    if first_row < last_row and first_column < last_column:
        part = pixels[first_row:last_row, first_column:last_column]
        region[first_row + top : last_row + top, first_column + left : last_column + left] = part
