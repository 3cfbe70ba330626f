"""Interface of an open slide: levels, micrometres per pixel, and the pixels of a rectangle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image

from clipit.errors import DataError

MPP_TOLERANCE = 0.02
"""Maximum relative difference between two mpp values that count as equal."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        width: Width in pixels of this level.
        height: Height in pixels of this level.
        downsample: Level-0 pixels per pixel of this level.
    """

    width: int
    height: int
    downsample: float


@runtime_checkable
class SlideFile(Protocol):
    """An open slide.

    Attributes:
        levels: Resolutions, finest first.
        mpp: Micrometres per level-0 pixel, as stated in the file; None if it states none.
        magnification: Objective power, as stated in the file; None if it states none.
        origin: Left and top edge of the scanned area in level-0 pixels; the origin of viewers such as QuPath.
        remark: Remark on content of the file that is not read; "" if everything is read.
    """

    levels: list[Level]
    mpp: float | None
    magnification: float | None
    format: str
    origin: tuple[int, int]
    remark: str

    def read_region(self, x: int, y: int, level: int, width: int, height: int) -> Image.Image:
        """Read a rectangle as RGB; pixels outside the scanned area are white.

        Args:
            x: Left edge in level-0 pixels.
            y: Upper edge in level-0 pixels.
            level: Index in `levels`.
            width: Width in pixels of this level.
            height: Height in pixels of this level.

        Raises:
            ImageError: The pixels are damaged.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def check_square(x: float, y: float, path: Path) -> None:
    """Check that pixels are square.

    Args:
        x: Width of a pixel in micrometres.
        y: Height of a pixel in micrometres.

    Raises:
        DataError: The pixels are not square.
    """
    if abs(x - y) > MPP_TOLERANCE * max(x, y):
        raise DataError(
            f"the pixels are not square: {x:g} by {y:g} micrometres",
            where=path,
            fix="convert the slide to square pixels",
        )
