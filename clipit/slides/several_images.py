"""Reject TIFFs with several images, because only one would be read as the slide."""

from pathlib import Path

from clipit.errors import DataError, shortlist
from clipit.images.tiff_copies import is_auxiliary
from clipit.slides.tiff_pages import TiffPage, read_pages

_DESCRIPTION = 100  # characters at the start of a description that may name the image
_MIN_FACTOR = 1.3  # smallest downsample between two levels of a pyramid
_TOLERANCE = 0.02  # relative difference in shape between levels, in addition to rounding


def check_one_image(path: Path, strips_are_images: bool = True) -> None:
    """Check that all other pages of a TIFF belong to its first page: smaller levels, masks, label, macro, thumbnail.

    Pages of equal size are a stack, which is not checked here.

    Args:
        path: TIFF without OME metadata.
        strips_are_images: Whether to check pages stored in strips; in Aperio's files, these are thumbnail, label
            and macro.

    Raises:
        DataError: A page shows another image, which would not be read.
    """
    pages = read_pages(path)
    if not pages:
        return
    whole = pages[0].size
    others = [
        f"page {number} ({page.size[0]} x {page.size[1]} pixels)"
        for number, page in enumerate(pages)
        if page.size != whole and (page.is_tiled or strips_are_images) and not _belongs(page, whole)
    ]
    if others:
        raise DataError(
            f"the TIFF contains several images instead of one slide: page 0 ({whole[0]} x {whole[1]} pixels), and "
            f"pages that are not smaller levels of it: {shortlist(others)}",
            where=path,
            fix="save each image as a separate file, for example with libvips: vips tiffsave 'SLIDE[page=0]' "
            "OUT_0.tif --tile --pyramid --bigtiff --compression jpeg --Q 90",
        )


def _belongs(page: TiffPage, whole: tuple[int, int]) -> bool:
    """Return whether a page may accompany an image of the given size.

    Unnamed pages stored in strips count as a label or macro image if they are less than half as large.
    """
    width, height = page.size
    return (
        page.is_reduced
        or is_auxiliary(page.description[:_DESCRIPTION])
        or is_smaller_copy(page.size, whole)
        or (not page.is_tiled and 2 * width * height < whole[0] * whole[1])
    )


def is_smaller_copy(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Return whether an image has the shape of a smaller level of another; sizes are width and height in pixels.

    The downsample may be any value of 1.3 or more, and levels may be rounded or slightly padded.
    """
    factor = whole[0] / max(1, size[0])
    rounding = 2 + size[1] / max(1, size[0])  # pixels; width and height are rounded
    return factor >= _MIN_FACTOR and abs(size[1] - whole[1] / factor) <= rounding + _TOLERANCE * size[1]
