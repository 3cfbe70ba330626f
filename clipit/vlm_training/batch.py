"""The batch of a contrastive step: which tiles and texts are encoded, and how they form bags."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from clipit.tiles.pixel_source import PixelSource


@dataclass(frozen=True)
class ContrastBatch:
    """A global batch: distinct images and texts, each encoded once, and the bags that they form.

    Attributes:
        tiles: Rows of the distinct tiles of the tile bags.
        image_members: Places in `tiles` of each bag's members; -1 for no member.
        texts: Rows of the distinct texts of the text bags; empty if images are contrasted with images.
        others: Rows of the distinct tiles on the other side, seen through another augmentation; empty with texts.
        other_members: Places in `texts` or `others` of each bag's members on the other side; -1 for no member.
        same: Mask of the bags that are not each other's negatives; the diagonal does not matter.
    """

    tiles: Int[np.ndarray, "t"]
    image_members: Int[np.ndarray, "b m"]
    texts: Int[np.ndarray, "x"]
    others: Int[np.ndarray, "y"]
    other_members: Int[np.ndarray, "b n"]
    same: Bool[np.ndarray, "b b"]


@runtime_checkable
class Examples(Protocol):
    """Examples of a split: a pure function of seed and step gives each batch, whatever the number of processes."""

    @property
    def source(self) -> PixelSource:
        """Pixels of the tiles that the batches name."""

    @property
    def tile_ids(self) -> list[str]:
        """Ids of these tiles, which key their augmentation."""

    @property
    def texts(self) -> list[str]:
        """Texts that the batches name, each within the context length."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """What determines the examples beside the configuration, for the fingerprint of an adaptation."""

    @property
    def summary(self) -> dict[str, Any]:
        """Counts of what was used, dropped, split and masked (JSON-serialisable), for training.json."""

    def batch(self, step: int) -> ContrastBatch:
        """Return the global batch of a step, counted from 0."""
