"""Pages of TIFF slides: check that they are bright-field slides, and find the page of each level.

The checks are needed because libraries that read slides show the first 8-bit RGB page of any TIFF.
"""

import os
import struct
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from clipit.errors import DataError, counted
from clipit.slides.slide_file import Level

T = TypeVar("T")

FORMATS = frozenset({"aperio", "generic-tiff"})
"""Openslide's formats in which each level is one page of a TIFF, without overlap or gaps."""
_REDUCED_OR_MASK = 0b101  # bits of the subfile type
_MAX_PIXELS = 2**26  # per internal tile or strip, because each is decoded as a whole
TO_PYRAMID = (
    "convert it to a tiled, pyramidal TIFF, with libvips (vips tiffsave SLIDE OUT.tif --tile --pyramid --bigtiff "
    "--compression jpeg --Q 90) or with QuPath (Export images, OME-TIFF)"
)
"""Fix shown in errors about slides without smaller levels."""
_ORIENTATION = 274  # number of the TIFF tag
_TURNED = range(2, 9)  # values of this tag for images that are stored rotated or mirrored
_FIX = "clipit reads 8-bit RGB slides; export fluorescence images and stacks as RGB first"


class TiffPage(NamedTuple):
    """Properties of a page, from its tags.

    Attributes:
        size: Width and height in pixels.
        is_tiled: Whether the pixels are stored in tiles, not in strips.
        is_reduced: Whether the subfile type marks the page as a smaller copy of another, or as a transparency mask.
        description: Text of the tag ImageDescription; "" if there is none.
        orientation: Value of the tag Orientation; 1 if there is none.
        bits: Bits per channel.
        channels: Number of channels.
    """

    size: tuple[int, int]
    is_tiled: bool
    is_reduced: bool
    description: str
    orientation: int
    bits: int
    channels: int


def read_pages(path: Path) -> list[TiffPage]:
    """Read the tags of all pages of a TIFF; an empty list if it is damaged or of another format."""
    try:
        import tifffile
    except ImportError:
        return []
    try:
        with tifffile.TiffFile(path) as file:
            return [_facts(page) for page in file.pages]
    except Exception:  # tifffile raises many kinds of exceptions for corrupt data; reading reports the error later
        return []


def check_page_chain(path: Path) -> None:
    """Check that no page of a TIFF refers to an earlier page as the next one, because tifffile would never finish.

    Raises:
        DataError: The file is damaged in this way.
    """
    try:
        import tifffile
    except ImportError:
        return
    pages: set[int] = set()
    try:
        with tifffile.TiffFile(path) as file:
            tiff, stream, offset = file.tiff, file.filehandle, file.pages.first.offset
            while offset and offset not in pages:
                pages.add(offset)
                stream.seek(offset)
                (tags,) = struct.unpack(tiff.tagnoformat, stream.read(tiff.tagnosize))
                stream.seek(offset + tiff.tagnosize + tags * tiff.tagsize)
                (offset,) = struct.unpack(tiff.offsetformat, stream.read(tiff.offsetsize))
    except Exception:  # tifffile raises many kinds of exceptions for corrupt data; reading reports the error later
        return
    if offset:
        raise DataError(
            f"the TIFF is damaged: page {len(pages) - 1} is followed by an earlier page",
            where=path,
            fix="copy it again",
        )


def check_pages(path: Path) -> None:
    """Check that a tiled TIFF has 8 bits per channel, grey or RGB channels, and no stack of pages.

    Raises:
        DataError: The TIFF has other channels, or a stack of pages.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            pages = [_facts(page) for page in file.pages]
            check_tile_sizes(file.pages.first, path)
    except DataError:
        raise
    except Exception:  # tifffile raises many kinds of exceptions for corrupt data; reading reports the error later
        return
    first = pages[0]
    if first.bits != 8 or first.channels not in (1, 3, 4):
        raise DataError(
            f"not a bright-field RGB image: {counted(first.channels, 'channel')} of {counted(first.bits, 'bit')}",
            where=path,
            fix=_FIX,
        )
    equal = sum(page.size == first.size and not page.is_reduced for page in pages)
    if equal > 1:
        raise DataError(f"not one image, but a stack of {equal} pages of equal size", where=path, fix=_FIX)


def check_level_orientations(path: Path, levels: Sequence[Level]) -> None:
    """Check that no level of a TIFF is stored rotated; files of other formats are not checked.

    Openslide rotates each internal tile separately, which scrambles the slide.

    Args:
        path: Slide.
        levels: Levels that openslide finds.

    Raises:
        DataError: A level is stored rotated or mirrored.
    """
    sizes = {(level.width, level.height) for level in levels}
    for page in read_pages(path):
        if page.is_tiled or page.size in sizes:
            _check_orientation(page, path)


def check_orientation(page: Any, path: Path) -> None:
    """Check that a tifffile page is not stored rotated or mirrored.

    Raises:
        DataError: The tag Orientation of the page is not 1.
    """
    _check_orientation(_facts(page), path)


def _check_orientation(page: TiffPage, path: Path) -> None:
    if page.orientation in _TURNED:
        raise DataError(
            f"the slide is stored rotated or mirrored: its tag Orientation is {page.orientation}, not 1, on the page "
            f"of {page.size[0]} x {page.size[1]} pixels",
            where=path,
            fix="rewrite it with orientation 1, for example with libvips: vips autorot SLIDE "
            "'OUT.tif[tile,pyramid,bigtiff,compression=jpeg,Q=90]'",
        )


def check_tile_sizes(page: Any, path: Path) -> None:
    """Check that the internal tiles or strips of a page are small enough, because each is decoded as a whole.

    Raises:
        DataError: A tile or strip has more than 67 million pixels.
    """
    width, height = (
        (page.tilewidth, page.tilelength)
        if page.is_tiled
        else (page.imagewidth, min(page.rowsperstrip, page.imagelength))
    )
    if width * height > _MAX_PIXELS:
        raise DataError(
            f"the image is not stored in small tiles, but in parts of {width} x {height} pixels",
            where=path,
            fix=TO_PYRAMID,
        )


def _facts(page: Any) -> TiffPage:
    """Read the tags of a tifffile page."""
    bits, orientation = page.bitspersample, page.tags.get(_ORIENTATION)
    return TiffPage(
        size=(int(page.imagewidth), int(page.imagelength)),
        is_tiled=bool(page.is_tiled),
        is_reduced=bool(int(page.subfiletype) & _REDUCED_OR_MASK),
        description=str(page.description),
        orientation=int(orientation.value) if orientation is not None else 1,
        bits=max(bits) if isinstance(bits, tuple) else int(bits),
        channels=int(page.samplesperpixel),
    )


class TiffBytes:
    """A file that several threads can read at any offset; closed when the last level that uses it is freed."""

    def __init__(self, path: Path) -> None:
        """Open the file."""
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes at an offset."""
        return os.pread(self._descriptor, count, offset)


def open_levels(
    path: Path, levels: Sequence[Level], accept: Callable[[Any], bool], opener: Callable[[TiffBytes, Any], T]
) -> dict[int, T]:
    """Open the levels of a slide whose pages are complete and accepted; openslide reads the other levels.

    Args:
        path: TIFF in one of `FORMATS`.
        levels: Levels that openslide finds.
        accept: Function that decides whether the level of a tifffile page is opened.
        opener: Function that opens the level of an accepted page.
    """
    try:
        import tifffile
    except ImportError:
        return {}
    if not hasattr(os, "pread"):
        return {}
    try:
        with tifffile.TiffFile(path) as slide:
            by_size: dict[tuple[int, int], list[Any]] = {}
            for page in slide.pages:
                if page.is_tiled:
                    by_size.setdefault((page.imagewidth, page.imagelength), []).append(page)
            file = TiffBytes(path)
            opened = {}
            for number, level in enumerate(levels):
                pages = by_size.get((level.width, level.height), [])
                if len(pages) == 1 and _is_complete(pages[0]) and accept(pages[0]):
                    opened[number] = opener(file, pages[0])
    except Exception:  # tifffile raises many kinds of exceptions for corrupt data; openslide reports the error later
        return {}
    return opened


def _is_complete(page: Any) -> bool:
    """Return whether the file contains each tile of a page exactly once, with all channels."""
    tiles = -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
    return int(page.planarconfig) == 1 and len(page.dataoffsets) == len(page.databytecounts) == tiles
