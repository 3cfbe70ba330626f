"""Pages of TIFF slides: check that they are bright-field slides, and find the page of each level.

Libraries that read slides show the first 8-bit RGB page of any TIFF.
"""

import os
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from clipit.errors import DataError
from clipit.slides.slide_file import Level

T = TypeVar("T")

FORMATS = frozenset({"aperio", "generic-tiff"})
"""Openslide's formats in which each level is one page of a TIFF, without overlap or gaps."""
_REDUCED_OR_MASK = 0b101  # bits of the subfile type: a smaller copy of another page, a transparency mask
_MAX_PIXELS = 2**26  # of an internal tile or strip, which is decoded as a whole
TO_PYRAMID = (
    "convert it to a tiled, pyramidal TIFF, with libvips (vips tiffsave SLIDE OUT.tif --tile --pyramid --bigtiff "
    "--compression jpeg --Q 90) or with QuPath (Export images, OME-TIFF)"
)
"""What to do with a slide that lacks smaller levels."""
_FIX = "clipit reads 8-bit RGB slides; export fluorescence and stacks as RGB first"


def check_pages(path: Path) -> None:
    """Check that a TIFF has 8 bits per channel, grey or RGB channels, and no stack of pages.

    Raises:
        DataError: The TIFF has other channels, or a stack of pages.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            pages = [_facts(page) for page in file.pages]
            check_tiles(file.pages.first, path)
    except DataError:
        raise
    except Exception:  # tifffile raises many kinds of exceptions for damaged bytes; reading reports the error later
        return
    size, bits, channels, _ = pages[0]
    if bits != 8 or channels not in (1, 3, 4):
        raise DataError(f"not a bright-field RGB image: {channels} channels of {bits} bits", where=path, fix=_FIX)
    equal = sum(other == size and not kind & _REDUCED_OR_MASK for other, _, _, kind in pages)
    if equal > 1:
        raise DataError(f"not one image, but a stack of {equal} pages of equal size", where=path, fix=_FIX)


def check_tiles(page: Any, path: Path) -> None:
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


def _facts(page: Any) -> tuple[tuple[int, int], int, int, int]:
    """Return size, bits per channel, number of channels and subfile type of a page."""
    bits = page.bitspersample
    deepest = max(bits) if isinstance(bits, tuple) else int(bits)
    return (page.imagewidth, page.imagelength), deepest, int(page.samplesperpixel), int(page.subfiletype)


class TiffBytes:
    """A file that several threads read at any offset; closed when the last level that uses it is freed."""

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
    """Open the levels of a slide whose pages are accepted; other levels are left to openslide.

    Args:
        path: TIFF of one of `FORMATS`.
        levels: Levels that openslide finds.
        accept: Function that says whether a level is opened, given its page of tifffile.
        opener: Function that opens an accepted page.
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
                if len(pages) == 1 and accept(pages[0]):
                    opened[number] = opener(file, pages[0])
    except Exception:  # tifffile raises many kinds of exceptions for damaged bytes; openslide reports the error later
        return {}
    return opened
