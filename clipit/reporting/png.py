"""Figures as PNG files, whole or not at all."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from clipit.artifacts import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure; a name with signs that the font lacks (an emoji) shows boxes, and no warning fills the screen."""
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        # without the software's version, the same picture has the same bytes
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
