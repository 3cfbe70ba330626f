import io
import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipit import distributed
from clipit.config.run import TilesConfig
from clipit.distributed import Processes
from clipit.errors import ArtifactError, ConfigError, DataError
from clipit.images.decode import ImageError, Unreadable
from clipit.input_files.data_files import hub_revision
from clipit.tiles import kept_tiles, streaming
from clipit.tiles.kept_tiles import Block, KeptSize, SourceTile, keep_image, keep_tiles
from clipit.tiles.load_tiles import read_tiles


def picture(value: int, kind: str = "JPEG", size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def config(path: Path | str, **more: object) -> TilesConfig:
    base = {"source": "huggingface", "path": str(path), "columns": {"group": "patient"}, "other_parts": "ignore"}
    return TilesConfig.model_validate({**base, **more})


def rows(first: int, count: int) -> list[dict[str, Any]]:
    """Return rows that include a missing label, a damaged image and a large one."""
    table = []
    for number in range(first, first + count):
        data = picture(number, size=(40, 30) if number == 3 else (8, 8))
        data = data[:200] if number == 5 else data
        label = None if number == 6 else number % 2
        table.append({"image": {"bytes": data, "path": None}, "label": label, "patient": f"p{number}", "mpp": 0.25})
    return table


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data set with three files of training rows and one of test rows."""
    import datasets

    folder = tmp_path_factory.mktemp("set")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["normal", "tumour"]),
            "patient": datasets.Value("string"),
            "mpp": datasets.Value("float64"),
        }
    )
    parts = {f"train-{n:05d}-of-00003": rows(4 * n, 4) for n in range(3)} | {"test-00000-of-00001": rows(12, 4)}
    for name, part in parts.items():
        datasets.Dataset.from_list(part, features=features).to_parquet(str(folder / f"{name}.parquet"))
    return folder


def test_a_streamed_set_equals_the_downloaded_one(parquet: Path, tmp_path: Path) -> None:
    downloaded = read_tiles(config(parquet))
    streamed = read_tiles(config(parquet, streaming=True), root=tmp_path)
    for name in ("ids", "labels", "splits", "groups", "mpp"):
        assert getattr(streamed, name).tolist() == getattr(downloaded, name).tolist(), name
    assert streamed.classes == downloaded.classes
    assert (downloaded.truth == -1).sum() == 1
    for row in range(len(downloaded)):
        expected, actual = downloaded.try_read(row), streamed.try_read(row)
        if isinstance(expected, Unreadable):
            assert isinstance(actual, Unreadable)
            assert expected.reason == actual.reason
        else:
            assert not isinstance(actual, Unreadable)
            assert expected.tobytes() == actual.tobytes()
    assert isinstance(downloaded.try_read(downloaded.ids.tolist().index("train/000005")), Unreadable)
    quarantined = read_tiles(config(parquet, streaming=True, unreadable="quarantine"), root=tmp_path)
    assert quarantined.quarantined == ("train/000005",)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir() if path.is_dir()) == [
        "kept_tiles", "kept_tiles", "streamed_set",
    ]  # fmt: skip


def test_large_tiles_are_resized_and_their_mpp_is_scaled(parquet: Path, tmp_path: Path) -> None:
    tiles = read_tiles(config(parquet, streaming=True, keep_pixels=16, keep_quality=None), root=tmp_path)
    row = tiles.ids.tolist().index("train/000003")
    with Image.open(io.BytesIO(picture(3, size=(40, 30)))) as image:
        resized = image.convert("RGB").resize((21, 16), Image.Resampling.BICUBIC)
    assert tiles.read(row).tobytes() == resized.tobytes()
    assert tiles.mpp[row] == 0.25 * 30 / 16
    assert (np.delete(tiles.mpp, row) == 0.25).all()
    assert any("1 of 16 tiles is stored at 16 px, lossless" in note for note in tiles.notes)
    assert tiles.fingerprint != read_tiles(config(parquet, streaming=True), root=tmp_path).fingerprint


def test_a_cached_set_is_not_opened_again(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = config(parquet, streaming=True)
    first = read_tiles(section, root=tmp_path)
    opened: list[str] = []
    open_set = streaming._open_set
    monkeypatch.setattr(
        streaming, "_open_set", lambda config, revision: opened.append(config.path) or open_set(config, revision)
    )
    assert read_tiles(section, root=tmp_path).fingerprint == first.fingerprint
    other = read_tiles(config(parquet, streaming=True, columns={"label": "patient"}), root=tmp_path, hold_out=False)
    assert len(other.classes) == 16
    assert not opened


def test_streaming_raises_the_same_errors_as_downloading(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        streaming, "_set_blocks", lambda *_: pytest.fail("tiles are read before the columns are checked")
    )
    for keys, message in (
        (
            {"columns": {"label": "diagnosis"}},
            "missing columns: diagnosis; split train has: image, label, patient, mpp",
        ),
        ({"columns": {"path": "patient"}}, "column patient contains .* not images"),
        ({"splits": {"validation": "val"}}, "no split val; the data set has: test, train|no split val"),
    ):
        with pytest.raises(DataError, match=message):
            read_tiles(config(parquet, **keys))
        with pytest.raises(DataError, match=message):
            read_tiles(config(parquet, streaming=True, **keys), root=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_tiles(config(tmp_path / "absent", streaming=True), root=tmp_path)
    with pytest.raises(ConfigError, match="streamed tiles are cached"):
        read_tiles(config(parquet, streaming=True))
    with pytest.raises(ConfigError, match=r"tiles.streaming \(huggingface and webdataset only\)"):
        read_tiles(config(parquet, source="folders", columns={}, streaming=True), root=tmp_path)
    with pytest.raises(ConfigError, match=r"tiles.keep_pixels \(only with tiles.streaming\)"):
        read_tiles(config(parquet, keep_pixels=32))


def test_a_set_saved_with_save_to_disk_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = [{"image": {"bytes": picture(n), "path": None}, "label": "ab"[n % 2], "patient": f"p{n}"} for n in range(7)]
    saved = datasets.Dataset.from_list(table).cast_column("image", datasets.Image())
    saved.save_to_disk(str(tmp_path / "saved"))
    monkeypatch.setattr(streaming, "_ROWS", 3)
    downloaded = read_tiles(config(tmp_path / "saved"))
    tiles = read_tiles(config(tmp_path / "saved", streaming=True), root=tmp_path / "kept")
    assert tiles.ids.tolist() == downloaded.ids.tolist()
    assert [tiles.read(row).tobytes() for row in range(7)] == [downloaded.read(row).tobytes() for row in range(7)]


def test_a_set_on_the_hub_is_read_from_one_revision(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub

    newest = iter("abc")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha=f"{name}@{next(newest)}")
    )
    load, revisions = datasets.load_dataset, list[object]()

    def load_dataset(name: str, revision: object = None, **options: Any) -> Any:
        revisions.append(revision)
        return load(str(parquet), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(streaming, "hub_parquet", lambda name, revision: [])
    section = config("hf:lab/tiles", streaming=True)
    tiles = read_tiles(section, root=tmp_path)
    assert len(revisions) == 2  # once to describe the splits and once to read them
    assert set(revisions) == {"lab/tiles@a"}
    assert read_tiles(section, root=tmp_path).fingerprint == tiles.fingerprint
    for folder in tmp_path.glob("streamed_set-*"):
        shutil.rmtree(folder)
    read_tiles(section, root=tmp_path)
    assert revisions[2:] == ["lab/tiles@b"] * 2  # cached tiles are not mixed with those of another revision


def test_hub_files_with_different_class_orders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import fsspec
    import huggingface_hub

    hub = fsspec.filesystem("memory")
    root = "hf://datasets/lab/tiles@abc"
    opened = fsspec.open
    monkeypatch.setattr(fsspec, "open", lambda url, mode: opened(url.replace("hf://", "memory://"), mode))
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: SimpleNamespace(sha="abc"))
    for split, names in (("train", ["benign", "tumour"]), ("test", ["tumour", "benign"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        part = [{"image": {"bytes": picture(row), "path": None}, "label": row % 2} for row in range(4)]
        with hub.open(f"memory://datasets/lab/tiles@abc/{split}.parquet", "wb") as stream:
            datasets.Dataset.from_list(part, features=features).to_parquet(stream)
    files = {split: [f"{root}/{split}.parquet"] for split in ("train", "test")}

    def builder(name: str, revision: str | None) -> Any:
        assert (name, revision) == ("lab/tiles", "abc")
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    message = (
        r"(?s)classes of the column label are benign, tumour, but tumour, benign in test.parquet.*abc/train.parquet"
    )
    with pytest.raises(DataError, match=message):
        read_tiles(config("hf:lab/tiles", columns={}, streaming=True), root=tmp_path)
    files["train"].append(f"{root}/gone.parquet")
    with pytest.raises(DataError, match="FileNotFoundError"):
        read_tiles(config("hf:lab/tiles", columns={}, streaming=True), root=tmp_path)


def test_the_cached_revision_is_used_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(self: object, name: str) -> None:
        raise OfflineModeIsEnabled

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", offline)
    assert hub_revision("hf:lab/tiles", "tiles.path") is None
    assert hub_revision("folder", "tiles.path") is None
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name: 1 / 0)
    with pytest.raises(DataError, match="cannot load this data set"):
        hub_revision("hf:lab/tiles", "tiles.path")


def test_a_missing_image_file_is_an_error_with_and_without_streaming(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": None, "path": str(tmp_path / "gone.png")}], kind)
    features = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "set").mkdir()
    pq.write_table(
        pa.table({"image": image, "label": ["a"]}).replace_schema_metadata(metadata), tmp_path / "set" / "train.parquet"
    )
    for streaming_too in (False, True):
        section = config(tmp_path / "set", columns={}, unreadable="quarantine", streaming=streaming_too)
        with pytest.raises(DataError, match=r"cannot open the image .*No such file") as caught:
            read_tiles(section, root=tmp_path)
        assert "restore the file" in caught.value.fix


def numbered_blocks(skips: list[int], broken: int | None = None) -> list[Block]:
    def read(block: int, skipped: int) -> Iterator[SourceTile]:
        skips.append(skipped)
        for row in range(skipped, 10):
            if broken is not None and (block, row) == (1, broken):
                raise DataError("the network is gone")
            yield SourceTile(picture(100 * block + row, "PNG"), {"row": f"{block}/{row}"})

    return [Block(f"block {block}", lambda skipped, block=block: read(block, skipped)) for block in range(2)]


def test_an_interrupted_stream_resumes_after_the_last_complete_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_tiles, "_SHARD", 4)
    monkeypatch.setattr(kept_tiles, "_BATCH", 1)
    skips: list[int] = []
    size = KeptSize(None, 95)
    with pytest.raises(DataError, match="the network is gone"):
        keep_tiles(tmp_path, {}, lambda: numbered_blocks(skips, broken=7), ["row"], size, "set")
    resumed = keep_tiles(tmp_path, {}, lambda: numbered_blocks(skips), ["row"], size, "set")
    assert skips == [0, 0, 4]
    uninterrupted = keep_tiles(tmp_path / "other", {}, lambda: numbered_blocks([]), ["row"], size, "set")
    assert resumed.artifact.manifest.files == uninterrupted.artifact.manifest.files
    assert resumed.rows(["field.row"]).column(0).to_pylist() == [f"{b}/{r}" for b in range(2) for r in range(10)]
    assert [resumed.reader().content(row) for row in (0, 13, 19)] == [picture(n, "PNG") for n in (0, 103, 109)]


class OneOfTwo(Processes):
    """One of two processes, which this test runs one after the other."""

    def barrier(self) -> None:
        pass

    def broadcast(self, value: Any) -> Any:
        return value


def test_two_processes_store_the_same_tiles_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    size, skips = KeptSize(None, 95), list[int]()
    single = keep_tiles(tmp_path / "one", {}, lambda: numbered_blocks([]), ["row"], size, "set")
    for rank in (1, 0):
        process = OneOfTwo(rank, 2, torch.device("cpu"))
        for module in (distributed, kept_tiles):
            monkeypatch.setattr(module, "get_processes", lambda process=process: process)
        with pytest.raises(ArtifactError, match="no complete kept_tiles") if rank else nullcontext():
            shared = keep_tiles(tmp_path / "two", {}, lambda: numbered_blocks(skips), ["row"], size, "set")
    assert skips == [0, 0]  # each block is read by one process only
    assert shared.artifact.manifest.files == single.artifact.manifest.files


def test_a_damaged_stored_image_is_unreadable(tmp_path: Path) -> None:
    kept = keep_tiles(tmp_path, {}, lambda: numbered_blocks([]), ["row"], KeptSize(None, 95), "set")
    (shard, _) = sorted(kept.artifact.folder.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 255
    shard.write_bytes(bytes(data))
    with pytest.raises(ImageError, match="the checksum is wrong"):
        kept.reader().content(0)
    assert kept.reader().content(1) == picture(1, "PNG")


def test_only_images_that_are_too_large_are_re_encoded() -> None:
    small, broken = picture(1, size=(16, 40)), picture(1, size=(40, 40))[:300]
    for data in (small, broken, b"", b"no image"):
        kept = keep_image(data, KeptSize(16, 95))
        assert (kept.data, kept.scale) == (data, 1.0)
    kept = keep_image(picture(1, size=(64, 32)), KeptSize(16, 95))
    with Image.open(io.BytesIO(kept.data)) as image:
        assert (image.format, image.size, kept.scale) == ("JPEG", (32, 16), 2.0)
    deep = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(deep, "PNG")
    assert keep_image(deep.getvalue(), KeptSize(16, 95)).data == deep.getvalue()


def test_streamed_webdataset_shards_equal_plain_ones(tmp_path: Path) -> None:
    import webdataset as wds

    folder = tmp_path / "shards"
    folder.mkdir()
    with wds.ShardWriter(str(folder / "train-%02d.tar"), maxcount=3, verbose=0) as writer:
        for n in range(8):
            size = (32, 32) if n == 2 else (8, 8)
            fields = {"label": "ab"[n % 2], "patient": f"p{n}"}
            writer.write({"__key__": f"{n}", "jpg": picture(n, size=size), "json": fields})
    plain = config(folder, source="webdataset")
    tiles = read_tiles(plain)
    streamed = read_tiles(config(folder, source="webdataset", streaming=True, keep_pixels=16, mpp=0.5), root=tmp_path)
    assert streamed.ids.tolist() == tiles.ids.tolist()
    assert streamed.truth.tolist() == tiles.truth.tolist()
    assert streamed.splits.tolist() == tiles.splits.tolist()
    (resized,) = np.flatnonzero(streamed.mpp == 1.0)
    assert streamed.ids[resized] == "train-00/2"
    assert streamed.read(resized).size == (16, 16)
    others = [row for row in range(8) if row != resized]
    assert [streamed.read(row).tobytes() for row in others] == [tiles.read(row).tobytes() for row in others]
    facts = json.loads(next(tmp_path.glob("kept_tiles-*/manifest.json")).read_text())["facts"]
    assert facts == {"tiles": 8, "resized": 1, "blocks": 3}
