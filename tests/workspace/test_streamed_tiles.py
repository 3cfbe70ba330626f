import csv
from pathlib import Path
from typing import Any

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
    """The tiles of the small world in shards, with their ids."""
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


def test_pairs_and_leaks_of_a_streamed_set_are_those_of_its_files(
    configure: MakeConfig, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"tiles.source": "webdataset", "tiles.path": str(shards), "tiles.columns": {"id": "id"}}
    streamed = configure(**keys, **{"tiles.streaming": True, "output": str(tmp_path)})
    own, other = Workspace(configure()), Workspace(streamed)
    for name in ("ids", "truth", "splits", "groups"):
        assert getattr(other.all_tiles, name).tolist() == getattr(own.all_tiles, name).tolist(), name
    assert other.pairs.table.equals(own.pairs.table)
    assert check_leaks(streamed, "exact")[1] == check_leaks(configure(output=str(tmp_path / "own")), "exact")[1]
    fresh = streamed.model_copy(update={"output": tmp_path / "fresh"})
    assert [check.status for check in check_tiles("tiles", fresh.tiles, fresh)] == ["PASS"]
    assert not fresh.output.exists()
    stored = streamed.tiles.model_copy(update={"keep_pixels": 64, "keep_quality": 80})
    assert [check.status for check in check_tiles("tiles", stored, fresh)] == ["PASS"]
    with monkeypatch.context() as patch:  # the index that is kept is used
        patch.setattr(tar_index, "_index_shard", lambda *_: pytest.fail("shards are indexed again"))
        (check,) = check_tiles("tiles", streamed.tiles, streamed)
        assert check.status == "PASS", check


def test_the_kept_size_is_the_largest_input_of_the_models(configure: MakeConfig) -> None:
    section = TilesConfig.model_validate({"source": "webdataset", "path": "x.tar", "streaming": True})
    own = configure()
    pixels = {input_pixels(own.vlm), input_pixels(own.backbone)}
    vlm, backbone = Workspace(own).vlm, own.backbone
    assert input_pixels(own.vlm) == vlm.preprocess.size
    assert with_kept_size(section, own).keep_pixels == max(size for size in pixels if size is not None)
    larger = own.model_copy(update={"backbone": backbone.model_copy(update={"pixels": 448})})
    assert with_kept_size(section, larger).keep_pixels == 448
    assert input_pixels(BackboneConfig(name="uni")) == 224
    assert input_pixels(BackboneConfig()) == input_pixels(VLMConfig()) == 64
    unknown = own.model_copy(update={"vlm": VLMConfig(name="python:module:function")})
    with pytest.raises(ConfigError, match="the input size of python:module:function is known only after loading"):
        with_kept_size(section, unknown)
    kept = section.model_copy(update={"keep_pixels": 100})
    assert with_kept_size(kept, unknown) == kept
