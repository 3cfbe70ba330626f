"""Check that a TIFF is a bright-field slide: libraries that read slides show the first 8-bit RGB page of any TIFF."""

from pathlib import Path
from typing import Any

from clipit.errors import DataError

_REDUCED_OR_MASK = 0b101  # bits of the subfile type: a smaller copy of another page, a transparency mask
_MOST_PIXELS = 2**26  # of an internal tile or strip, which is decoded as a whole
TO_PYRAMID = (
    "convert it to a tiled, pyramidal TIFF, with libvips (vips tiffsave SLIDE OUT.tif --tile --pyramid --bigtiff "
    "--compression jpeg --Q 90) or with QuPath (Export images, OME-TIFF)"
)
"""What to do with a slide that lacks smaller levels."""
_FIX = "clipit reads 8-bit RGB slides; export fluorescence and stacks as RGB first"


def check_pages(path: Path) -> None:
    """Check that a TIFF has 8 bits per channel, grey or RGB channels, and no stack of pages.

    Raises:
        DataError: It does not.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            pages = [_facts(page) for page in file.pages]
            check_tiles(file.pages.first, path)
    except DataError:
        raise
    except Exception:  # tifffile raises many kinds of exceptions for damaged bytes; reading then explains
        return
    size, bits, channels, _ = pages[0]
    if bits != 8 or channels not in (1, 3, 4):
        raise DataError(f"not a bright-field RGB image: {channels} channels of {bits} bits", where=path, fix=_FIX)
    equal = sum(other == size and not kind & _REDUCED_OR_MASK for other, _, _, kind in pages)
    if equal > 1:
        raise DataError(f"not one image, but a stack of {equal} pages of equal size", where=path, fix=_FIX)


def check_tiles(page: Any, path: Path) -> None:
    """Check that the internal tiles or strips of a page are small enough to be decoded for every region.

    Raises:
        DataError: They have more than 67 million pixels.
    """
    width, height = (
        (page.tilewidth, page.tilelength)
        if page.is_tiled
        else (page.imagewidth, min(page.rowsperstrip, page.imagelength))
    )
    if width * height > _MOST_PIXELS:
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
