import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import MakeConfig

from clipit.config.run import BackboneConfig, TilesConfig, VLMConfig
from clipit.doctor.data_checks import check_tiles
from clipit.errors import ConfigError
from clipit.models.input_size import input_pixels
from clipit.tiles import tar_index
from clipit.workspace.check_leaks import check_leaks
from clipit.workspace.tile_reading import with_kept_size
from clipit.workspace.workspace import Workspace


@pytest.fixture(scope="module")
def shards(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiles of the small world into shards, with their ids."""
    import webdataset as wds

    folder = tmp_path_factory.mktemp("shards")
    table = Path(world["tiles"]["path"])
    with (
        table.open(encoding="utf-8") as stream,
        wds.ShardWriter(str(folder / "tiles-%03d.tar"), maxcount=50, verbose=0) as writer,
    ):
        for row in csv.DictReader(stream):
            fields = {name: row[name] for name in ("label", "split", "group")} | {"id": row["path"]}
            key = Path(row["path"]).stem
            writer.write({"__key__": key, "png": (table.parent / row["path"]).read_bytes(), "json": fields})
    return folder


def test_a_streamed_set_gives_the_same_pairs_and_leaks_as_its_files(
    configure: MakeConfig, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"tiles.source": "webdataset", "tiles.path": str(shards), "tiles.columns": {"id": "id"}}
    streamed = configure(**keys, **{"tiles.streaming": True, "output": str(tmp_path)})
    expected, actual = Workspace(configure()), Workspace(streamed)
    for name in ("ids", "truth", "splits", "groups"):
        assert getattr(actual.all_tiles, name).tolist() == getattr(expected.all_tiles, name).tolist(), name
    assert actual.pairs.table.equals(expected.pairs.table)
    assert check_leaks(streamed, "exact")[1] == check_leaks(configure(output=str(tmp_path / "own")), "exact")[1]
    fresh = streamed.model_copy(update={"output": tmp_path / "fresh"})
    assert [check.status for check in check_tiles("tiles", fresh.tiles, fresh)] == ["PASS"]
    assert not fresh.output.exists()
    stored = streamed.tiles.model_copy(update={"keep_pixels": 64, "keep_quality": 80})
    assert [check.status for check in check_tiles("tiles", stored, fresh)] == ["PASS"]
    with monkeypatch.context() as patch:  # the cached index is used
        patch.setattr(tar_index, "_index_shard", lambda *_: pytest.fail("shards were indexed again"))
        (check,) = check_tiles("tiles", streamed.tiles, streamed)
        assert check.status == "PASS", check


def test_the_stored_size_is_the_largest_input_size_of_the_models(configure: MakeConfig) -> None:
    section = TilesConfig.model_validate({"source": "webdataset", "path": "x.tar", "streaming": True})
    config = configure()
    pixels = {input_pixels(config.vlm), input_pixels(config.backbone)}
    vlm, backbone = Workspace(config).vlm, config.backbone
    assert input_pixels(config.vlm) == vlm.preprocess.size
    assert with_kept_size(section, config).keep_pixels == max(size for size in pixels if size is not None)
    larger = config.model_copy(update={"backbone": backbone.model_copy(update={"pixels": 448})})
    assert with_kept_size(section, larger).keep_pixels == 448
    smaller = BackboneConfig(name=config.vlm.name, pixels=32)  # the same name as the VLM
    same_name = config.model_copy(update={"backbone": smaller})
    assert with_kept_size(section, same_name).keep_pixels == input_pixels(config.vlm)
    assert input_pixels(BackboneConfig(name="uni")) == 224
    assert input_pixels(BackboneConfig()) == input_pixels(VLMConfig()) == 64
    unknown = config.model_copy(update={"vlm": VLMConfig(name="python:module:function")})
    with pytest.raises(ConfigError, match="the input size of python:module:function is known only after loading"):
        with_kept_size(section, unknown)
    explicit = section.model_copy(update={"keep_pixels": 100})
    assert with_kept_size(explicit, unknown) == explicit


def test_models_of_other_input_sizes_do_not_share_streamed_tiles(configure: MakeConfig, tmp_path: Path) -> None:
    import webdataset as wds

    (tmp_path / "shards").mkdir()
    with wds.ShardWriter(str(tmp_path / "shards" / "tiles-%03d.tar"), verbose=0) as writer:
        for number in range(60):
            pixels = np.random.default_rng(number).integers(0, 256, (128, 128, 3), dtype=np.uint8)
            split = ("train", "validation", "test")[number % 3]
            writer.write({"__key__": f"t{number}", "png": pixels, "json": {"label": f"c{number % 2}", "split": split}})
    keys = {"tiles.source": "webdataset", "tiles.path": str(tmp_path / "shards"), "tiles.streaming": True}
    config = configure(**keys, **{"output": str(tmp_path / "out"), "backbone.pixels": 48})
    larger = config.model_copy(update={"backbone": config.backbone.model_copy(update={"pixels": 96})})
    workspace = Workspace(config)
    shared = workspace.for_config(larger)
    sizes = [tiles.read(0).size for tiles in (workspace.all_tiles, shared.all_tiles, shared.tiles(0))]
    assert sizes == [(48, 48), (96, 96), (96, 96)]
    assert workspace.for_config(config) is workspace
