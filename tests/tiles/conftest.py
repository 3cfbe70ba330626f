"""Fixtures and helpers for tests of tiles: small images, tables and tile sets."""

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from labelled_tiles import load_tiles
from PIL import Image

from clipit.config.run import TilesConfig
from clipit.tiles.tileset import TileSet


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real tiles, from CLIPIT_TEST_DATA; skip the test if it is not set."""
    folder = os.environ.get("CLIPIT_TEST_DATA")
    if not folder:
        pytest.skip("CLIPIT_TEST_DATA is not set")
    return Path(folder)


def paint(path: Path, value: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    """Write an image of random noise with `value` as the seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    """Write rows as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def painted_tiles(folder: Path, count: int) -> TileSet:
    """Load a table of noise images: the first is a validation tile, the others are training tiles."""
    rows: list[dict[str, object]] = [
        {"path": paint(folder / f"{n}.png", n).name, "label": n % 2, "split": "train" if n else "validation"}
        for n in range(count)
    ]
    write_table(folder / "t.csv", rows)
    return load_tiles(TilesConfig(source="table", path=str(folder / "t.csv")), seed=0)


def channels_first(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image as [3, h, w], without resizing."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


class NoReader:
    """Reader for tests that need no images."""

    def read(self, row: int) -> Image.Image:
        raise OSError("no images here")

    def where(self, row: int) -> str:
        return f"row {row}"


@pytest.fixture
def make_tiles() -> Callable[..., TileSet]:
    """Return a function that builds a `TileSet` from labels, splits and groups."""

    def build(labels: Sequence[int], splits: Sequence[str], groups: Sequence[str] | None = None) -> TileSet:
        n = len(labels)
        truth = np.asarray(labels, dtype=np.int64)
        return TileSet(
            ids=np.asarray([f"t{number:04d}" for number in range(n)], dtype=object),
            labels=truth.copy(),
            truth=truth,
            splits=np.asarray(splits, dtype="<U10"),
            groups=np.asarray(groups if groups is not None else [""] * n, dtype=object),
            mpp=np.full(n, np.nan),
            classes=tuple(f"c{code}" for code in range(int(truth.max()) + 1)),
            reader=NoReader(),
            rows=np.arange(n, dtype=np.int64),
            stamps=np.asarray(["s"] * n, dtype=np.str_),
        )

    return build
