"""The batch of a contrastive step: which tiles and texts are encoded, and how they form bags."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


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
