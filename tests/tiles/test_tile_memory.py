"""Memory use of a table of tiles, and the behaviour of its compact parts."""

import gc
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from labelled_tiles import load_tiles
from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.images.image_readers import ZipReader
from clipit.tiles.tileset import TileSet

from .conftest import paint, write_table

COUNT = 4000


def test_a_tile_in_a_zip_takes_less_than_300_bytes(tmp_path: Path) -> None:
    names = [f"tiles/slide_{row // 100:03d}/tile_{row:06d}.jpg" for row in range(COUNT)]
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"no image")
    splits = ("train", "train", "val", "test")
    rows = [
        {"path": name, "label": "ab"[row % 2], "split": splits[row // 1000], "group": f"patient {row // 100}"}
        for row, name in enumerate(names)
    ]
    config = TilesConfig(
        source="table", path=str(write_table(tmp_path / "t.csv", rows)), images=str(tmp_path / "tiles.zip")
    )

    def open_tiles() -> TileSet:
        tiles = load_tiles(config, seed=0)
        with pytest.raises(DataError, match="cannot be decoded"):
            tiles.read(COUNT - 1)  # open the zip
        gc.collect()
        return tiles

    open_tiles()  # exclude one-time imports and caches
    tracemalloc.start()
    try:
        tiles = open_tiles()
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(tiles) == COUNT and allocated / COUNT < 300


def test_tiles_of_a_group_share_one_string(tmp_path: Path) -> None:
    for row in range(8):
        paint(tmp_path / f"{row}.png", row)
    rows = [{"path": f"{row}.png", "label": row % 2, "group": f"patient {row // 4}"} for row in range(8)]
    tiles = load_tiles(
        TilesConfig(source="table", path=str(write_table(tmp_path / "t.csv", rows)), validation_fraction=0.5), seed=0
    )
    assert len({id(name) for name in tiles.groups.tolist()}) == 2
    assert sorted(tiles.groups.tolist()) == ["patient 0"] * 4 + ["patient 1"] * 4


def test_members_are_read_by_their_stored_names_and_absent_ones_are_unreadable(tmp_path: Path) -> None:
    names = ["a.png", "ü/b.png", "deflated.png"]
    path = tmp_path / "tiles.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            paint(tmp_path / "tile.png", value)
            method = zipfile.ZIP_DEFLATED if name == "deflated.png" else zipfile.ZIP_STORED
            archive.write(tmp_path / "tile.png", name, method)
    reader = ZipReader(path, [names[2], names[0], "absent.png", names[1]])
    for row, value in ((0, 2), (1, 0), (3, 1)):
        paint(tmp_path / "tile.png", value)
        with Image.open(tmp_path / "tile.png") as image:
            assert np.array_equal(np.asarray(reader.read(row)), np.asarray(image.convert("RGB")))
    with pytest.raises(ImageError, match="no longer in the zip"):
        reader.read(2)
