"""Small synthetic bags whose class is visible in a few instances only."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32, Int64

from clipit.images.image_readers import FileReader
from clipit.mil.mil_bags import MilBags
from clipit.output_files.artifacts import fingerprint
from clipit.tiles.tileset import TileSet


@dataclass(frozen=True)
class ArrayReader:
    """Reader of features held in memory.

    Attributes:
        arrays: Features of each bag, all of the same dimension.
        names: Ids of the instances of each bag.
    """

    arrays: Sequence[Float32[np.ndarray, "_ d"]]
    names: Sequence[Sequence[str]]

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        return int(self.arrays[0].shape[1])

    def fingerprint(self) -> str:
        """Compute a fingerprint of all features and ids."""
        digest = hashlib.sha256()
        for array in self.arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return fingerprint([digest.hexdigest(), [list(ids) for ids in self.names]])

    def sizes(self) -> Int64[np.ndarray, " b"]:
        """Return the number of instances of each bag."""
        return np.array([len(array) for array in self.arrays], dtype=np.int64)

    def features(self, row: int) -> Float32[np.ndarray, "n d"]:
        """Return the features of one bag."""
        return self.arrays[row]

    def ids(self, row: int) -> list[str]:
        """Return the ids of the instances of one bag."""
        return list(self.names[row])


def bags_with_signal(count: int = 60, size: int = 20, dim: int = 8, seed: int = 0, share: float = 0.15) -> MilBags:
    """Bags of two classes, two per patient: a `share` of the instances of class c is shifted by 4 in dimension c."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) // 2 % 2
    arrays, names = [], []
    for bag, label in enumerate(labels.tolist()):
        values = generator.normal(size=(size, dim)).astype(np.float32)
        values[: max(1, round(share * size)), label] += 4
        arrays.append(values)
        names.append([f"bag{bag:03d}@{row},0,8" for row in range(size)])
    splits = np.array(["train", "validation", "test"])[np.arange(count) * 3 // count]
    return MilBags(
        names=np.array([f"bag{bag:03d}" for bag in range(count)]),
        labels=labels.astype(np.int64),
        patients=np.array([f"p{split}{bag // 2}" for bag, split in enumerate(splits.tolist())]),
        splits=splits,
        classes=("benign", "malignant"),
        reader=ArrayReader(arrays, names),
        rows=np.arange(count, dtype=np.int64),
    )


def write_features(path: Path, features: np.ndarray) -> Path:
    """Write a feature file in TRIDENT's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = features
        file["coords"] = np.stack([np.arange(len(features)) * 256, np.zeros(len(features), int)], axis=1)
    return path


def tiles_of(ids: list[str], groups: list[str], labels: list[int], splits: list[str]) -> TileSet:
    """Tile set of three classes without images."""
    return TileSet(
        ids=np.array(ids, dtype=object),
        labels=np.array(labels),
        truth=np.array(labels),
        splits=np.array(splits),
        groups=np.array(groups, dtype=object),
        mpp=np.full(len(ids), 0.5),
        classes=("a", "b", "c"),
        reader=FileReader(Path(), ids),
        rows=np.arange(len(ids)),
        stamps=np.array(ids),
    )
