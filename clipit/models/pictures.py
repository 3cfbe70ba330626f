"""Pictures as users hand them over."""

from pathlib import Path

import numpy as np
from PIL import Image

from clipit.errors import DataError, explain

Picture = Image.Image | np.ndarray | str | Path
"""A picture: PIL, uint8 array [h,w,3], or the path of a file."""


def check_several(images: object) -> None:
    """A list was given, not one picture.

    Raises:
        DataError: It is one picture.
    """
    if isinstance(images, str | Path | Image.Image):
        raise DataError(
            explain("one picture where a list is due", where=repr(images), fix="put it into a list: [picture]")
        )


def open_picture(image: Picture, position: int) -> Image.Image:
    """An RGB picture of any of the three forms.

    Raises:
        DataError: It cannot be read whole; it is named by its path, or by its position in the caller's list.
    """
    if isinstance(image, Image.Image):
        where: object = getattr(image, "filename", "") or f"images[{position}]"
    else:
        where = image if isinstance(image, str | Path) else f"images[{position}]"
    try:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(
                    explain(
                        f"an array of type {image.dtype} and shape {image.shape}",
                        where=where,
                        fix="give uint8 arrays of shape [height, width, 3]",
                    )
                )
            return Image.fromarray(image)
        if isinstance(image, Image.Image):
            return image.convert("RGB")
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        raise DataError(
            explain(f"unreadable picture: {error}", where=where, fix="replace the file, or leave it out")
        ) from error
