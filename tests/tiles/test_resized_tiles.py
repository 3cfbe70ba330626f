"""The disk cache of resized tiles."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError
from clipit.models.preprocess import Preprocess
from clipit.tiles import resized_tiles
from clipit.tiles.resized_tiles import resize_tiles, resized_folder, worth_caching
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

from .conftest import channels_first, painted_tiles

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TileSet:
    monkeypatch.setattr(resized_tiles, "_BLOCK", 4)
    monkeypatch.setattr(resized_tiles, "_BATCH", 3)
    return painted_tiles(tmp_path, 10)


def test_an_interrupted_cache_resumes_with_the_missing_blocks(tiles: TileSet, tmp_path: Path) -> None:
    read: Counter[bytes] = Counter()
    images = [tiles.read(row) for row in range(10)]
    fails = True

    def counting(image: Image.Image) -> np.ndarray:
        if fails and image.tobytes() == images[9].tobytes():
            raise RuntimeError("killed")
        read[image.tobytes()] += 1
        return channels_first(image)

    with pytest.raises(DataError, match=r"tile 9\.png"):
        resize_tiles(tmp_path / "out", tiles, counting, 8, "hash", threads=1)
    folder = resized_folder(tmp_path / "out", tiles, 8, "hash")
    assert not folder.exists()
    fails = False
    pixels = resize_tiles(tmp_path / "out", tiles, counting, 8, "hash", threads=1)
    assert isinstance(pixels, np.memmap) and np.array_equal(
        pixels, np.stack([channels_first(image) for image in images])
    )
    assert [read[image.tobytes()] for image in images[:8]] == [1] * 8, "finished blocks are not read again"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "pixels.npy"]
    before = read.total()
    assert np.array_equal(resize_tiles(tmp_path / "out", tiles, counting, 8, "hash"), pixels)
    assert read.total() == before, "an existing cache is reused"


def test_insufficient_disk_space_is_an_error_before_any_tile_is_read(
    tiles: TileSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resized_tiles, "_free", lambda _: 1000)
    with pytest.raises(ArtifactError, match=r"(?s)resized tiles takes 0\.0 GB; .*training\.cache_tiles=none"):
        resize_tiles(tmp_path / "out", tiles, lambda _: pytest.fail("a tile was read"), 8, "hash")


def test_a_damaged_cache_is_an_error(tiles: TileSet, tmp_path: Path) -> None:
    resize_tiles(tmp_path / "out", tiles, channels_first, 8, "hash")
    path = resized_folder(tmp_path / "out", tiles, 8, "hash") / "pixels.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ArtifactError, match="missing or changed"):
        resize_tiles(tmp_path / "out", tiles, channels_first, 8, "hash")


def test_auto_caches_sets_that_are_read_twice_and_fit_the_budget_but_not_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resized_tiles, "_free", lambda _: 10**11)

    def cached(count: int = 100_000, reads: float = 2.0, gigabytes: float = 20.0, total: int = 120_000) -> bool:
        folder = tmp_path / "resized_tiles-0"
        return worth_caching(count, total, 224, reads=reads, gigabytes=gigabytes, folder=folder)

    assert cached()
    assert not cached(count=10_000), "the tiles fit in memory"
    assert not cached(gigabytes=18.0), "the budget applies to all tiles"
    assert not cached(reads=1.9)
    monkeypatch.setattr(resized_tiles, "_free", lambda _: 10**10)
    assert not cached(), "there is not enough disk space"
    (tmp_path / "resized_tiles-0.partial").mkdir()
    assert cached(), "a partial cache is completed"


def test_training_reads_its_tiles_from_disk_if_configured(configure: MakeConfig, tmp_path: Path) -> None:
    preprocess = Preprocess(16, 16, "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
    workspace = Workspace(configure(output=tmp_path, **{"leaks.policy": "off"}))
    rows = np.array([0, 3])
    expected = workspace.pixels("train", preprocess).batch(rows)
    for mode, caches in (("auto", 0), ("none", 0), ("disk", 1)):
        training = workspace.config.training.model_copy(update={"cache_tiles": mode})
        workspace.cache_pixels("train", preprocess, training, reads=100.0)
        assert len(list((tmp_path / "artefacts").glob("resized_tiles-*/manifest.json"))) == caches
        assert np.array_equal(workspace.pixels("train", preprocess).batch(rows), expected)
