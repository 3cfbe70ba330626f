"""Slide option names of the running command, for error messages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptionNames:
    """Names of the slide options.

    Attributes:
        mpp: Option for the micrometres per pixel of slides whose metadata lack them.
        tile_mpp: Option for the micrometres per pixel of tiles.
        overlap: Option for the overlap of neighbouring tiles.
        min_tissue: Option for the fraction of a tile that must be tissue.
        contours: Option for the contour files of the tissue.
        elsewhere: Remark that names the command with the options overlap, min_tissue and contours; "" if the running
            command has them.
    """

    mpp: str
    tile_mpp: str
    overlap: str
    min_tissue: str
    contours: str
    elsewhere: str = ""


KEYS = OptionNames(
    "tiles.mpp", "tiles.slides.mpp", "tiles.slides.overlap", "tiles.slides.min_tissue", "tiles.slides.contours"
)
"""Configuration keys."""
SLIDES_OPTIONS = OptionNames("--mpp", "--tile-mpp", "--overlap", "--min-tissue", "--contours")
"""Options of `clipit slides`."""
PREDICT_OPTIONS = OptionNames(
    "--mpp", "--tile-mpp", "--overlap", "--min-tissue", "--contours", "; clipit slides score has these options"
)
"""Options of `clipit predict`, and those of `clipit slides score` that it lacks."""
