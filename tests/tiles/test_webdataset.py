import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.images.decode import ImageError
from clipit.tiles import tar_index
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tar_shards import expand_braces, list_shards
from clipit.tiles.webdataset import _split_in, shard_images

Sample = Mapping[str, Any]


def picture(value: int, kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def pixels(value: int) -> bytes:
    with Image.open(io.BytesIO(picture(value))) as image:
        return image.convert("RGB").tobytes()


def samples(first: int, count: int, split: str = "") -> list[Sample]:
    return [
        {
            "__key__": f"case{number // 2}_{number:04d}",
            "png": picture(number),
            "json": {
                "label": ["gland", "stroma"][number % 2],
                "split": split,
                "patient": f"p{number // 2}",
                "mpp": 0.5,
            },
        }
        for number in range(first, first + count)
    ]


def write_shards(folder: Path, name: str, rows: Sequence[Sample], maxcount: int = 100) -> None:
    """Write samples with the webdataset package."""
    import webdataset as wds

    folder.mkdir(exist_ok=True, parents=True)
    with wds.ShardWriter(str(folder / name), maxcount=maxcount, verbose=0) as writer:
        for row in rows:
            writer.write(dict(row))


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def config(path: Path | str, **more: object) -> TilesConfig:
    return TilesConfig.model_validate(
        {"source": "webdataset", "path": str(path), "columns": {"group": "patient"}, **more}
    )


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write three shards of training samples and one of test samples."""
    write_shards(tmp_path / "set", "train-%03d.tar", samples(0, 10, "train"), maxcount=4)
    write_shards(tmp_path / "set", "test-%03d.tar", samples(10, 4, "test"))
    return tmp_path / "set"


def test_samples_are_read_like_the_webdataset_package_reads_them(shards: Path) -> None:
    import webdataset as wds

    tiles = read_tiles(config(shards))
    assert sorted(path.name for path in shards.iterdir()) == [
        "test-000.tar",
        "train-000.tar",
        "train-001.tar",
        "train-002.tar",
    ]
    pattern = f"{shards}/{{test-000,train-{{000..002}}}}.tar"
    expected = list(wds.WebDataset(pattern, shardshuffle=False, empty_check=False))
    assert [name.partition("/")[2] for name in tiles.ids] == [sample["__key__"] for sample in expected]
    assert tiles.ids[-1] == "train-002/case4_0009"
    for row, sample in enumerate(expected):
        fields = json.loads(sample["json"])
        assert tiles.classes[tiles.truth[row]] == fields["label"]
        assert (tiles.groups[row], tiles.mpp[row]) == (fields["patient"], 0.5)
        with Image.open(io.BytesIO(sample["png"])) as image:
            assert tiles.read(row).tobytes() == image.tobytes()
    assert (tiles.splits == "test").sum() == 4
    named = read_tiles(config(pattern))
    assert named.fingerprint == tiles.fingerprint
    unpickled = pickle.loads(pickle.dumps(tiles))
    assert unpickled.read(3).tobytes() == tiles.read(3).tobytes() == pixels(13)


@pytest.mark.parametrize(
    "pattern",
    ["a-{000..012}.tar", "{a,b}/{1..3}", "x{a,b{1..2},c}y", "{08..11}", "{3..1}", "plain.tar", "{a,}z", "{-2..1}"],
)
def test_braces_expand_as_in_webdataset(pattern: str) -> None:
    from webdataset.shardlists import expand_urls

    assert expand_braces(pattern) == expand_urls(pattern)


@pytest.mark.parametrize("pattern", ["a-{0..3.tar", "a-{0.tar}", "{0..99999999}", "{0..9999}{0..9999}"])
def test_invalid_braces_are_errors(pattern: str) -> None:
    with pytest.raises(DataError):
        expand_braces(pattern)


@pytest.mark.parametrize(
    "path", ["pipe:cat a.tar", "https://host/a.tar", "s3://bucket/{0..3}.tar", "hf://datasets/a/b.tar"]
)
def test_pipes_and_urls_are_refused(path: str) -> None:
    with pytest.raises(DataError, match="not from a pipe or URL"):
        list_shards(path)


def test_missing_shards_are_listed(shards: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 5 shards do not exist: .*train-003.tar, .*train-004.tar"):
        list_shards(f"{shards}/train-{{000..004}}.tar")
    with pytest.raises(DataError, match="named twice"):
        list_shards(f"{shards}/train-000.tar::{shards}/train-{{000..001}}.tar")
    empty = shards.parent / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no .tar files"):
        list_shards(str(empty))
    for name in ("gone.tar", "gone_folder"):
        (empty / name).symlink_to(shards / "absent.tar")
        with pytest.raises(DataError, match=rf"links to missing files.*{name}"):
            list_shards(str(empty))
        (empty / name).unlink()
    for split in ("train", "test"):  # the folders would give the same shards two splits
        (empty / split).symlink_to(shards)
    with pytest.raises(DataError, match=r"links to folders that are also read elsewhere: train"):
        list_shards(str(empty))


def test_the_index_is_cached_until_a_shard_changes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned: list[str] = []
    scan = tar_index._index_shard

    def counted(path: Path, *rest: Any) -> Any:
        scanned.append(path.name)
        return scan(path, *rest)

    monkeypatch.setattr(tar_index, "_index_shard", counted)
    root = shards.parent / "artefacts"
    first = read_tiles(config(shards), root=root)
    assert len(scanned) == 4
    second = read_tiles(config(shards, splits={"test": "test"}), root=root)
    assert len(scanned) == 4
    assert first.fingerprint == second.fingerprint == read_tiles(config(shards)).fingerprint
    assert second.read(0).tobytes() == pixels(10)
    scanned.clear()
    write_shards(shards, "test-%03d.tar", samples(10, 3, "test"))
    assert len(read_tiles(config(shards), root=root)) == 13
    assert len(scanned) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("1.cls", b"0"), ("1.json", b'{"cls": 3}')),
        (("1.json", b'{"label": "gland"}'), ("1.meta.json", b'{"label": "stroma"}')),
        (("1_0.5mpp_a.json", b'{"label": "gland"}'), ("1_0.5mpp_b.json", b'{"label": "stroma"}')),
    ],
)
def test_conflicting_members_of_a_sample_are_errors(
    tmp_path: Path, first: tuple[str, bytes], second: tuple[str, bytes]
) -> None:
    for number, members in enumerate([(first, second), (second, first)]):
        path = write_tar(tmp_path / f"{number}.tar", [*members, (f"{first[0].split('.')[0]}.png", picture(1))])
        with pytest.raises(DataError, match=r"different values for the field (cls: 0, 3|label: gland, stroma)"):
            read_tiles(config(path, columns={}))
    agreeing = [("1.cls", b"0"), ("1.json", b'{"cls": 0, "mpp": null}'), ("1.png", picture(1))]
    other = [("2.cls", b"1"), ("2.json", b'{"cls": null}'), ("2.png", picture(2))]
    tiles = read_tiles(config(write_tar(tmp_path / "s.tar", [*agreeing, *other]), columns={}, classes=["0", "1"]))
    assert tiles.labels.tolist() == [0, 1]


def test_labels_from_cls_splits_from_names_and_images_by_suffix(tmp_path: Path) -> None:
    rows = [
        {"__key__": f"{n:03d}", "img.png": picture(n), "mask.png": picture(0), "cls": n % 2, "txt": "a b", "npy": b"x"}
        for n in range(6)
    ]
    write_shards(tmp_path / "s", "tiles-train-%02d.tar", [{k: v for k, v in row.items() if k != "npy"} for row in rows])
    write_tar(tmp_path / "s" / "tiles-test-00.tar", [("k/1.img.png", picture(9)), ("k/1.cls", b"1"), ("k/1.npy", b"x")])
    with pytest.raises(DataError, match=r"several images: img.png, mask.png"):
        read_tiles(config(tmp_path / "s", columns={}))
    tiles = read_tiles(config(tmp_path / "s", columns={"path": "img.png"}))
    assert tiles.classes == ("0", "1")
    assert tiles.ids[0] == "tiles-test-00/k/1"
    assert tiles.splits.tolist()[0] == "test"
    assert (tiles.splits != "test").sum() == 6
    assert tiles.read(0).tobytes() == pixels(9)
    assert any("unread members, by suffix: npy (1)" in note for note in tiles.notes)
    captions = read_tiles(config(tmp_path / "s" / "tiles-train-00.tar", columns={"path": "img.png", "label": "txt"}))
    assert captions.classes == ("a b",)
    with pytest.raises(DataError, match=r"no sample has the fields: diagnosis; the samples have: cls, txt"):
        read_tiles(config(tmp_path / "s", columns={"path": "img.png", "label": "diagnosis"}))


def test_the_split_is_taken_from_the_folder_of_the_shards(tmp_path: Path) -> None:
    rows = [{"__key__": f"k{n}", "png": picture(n), "cls": n % 2} for n in range(4)]
    write_shards(tmp_path / "set" / "test", "%03d.tar", rows, maxcount=2)
    for path in (tmp_path / "set" / "test", tmp_path / "set" / "test" / "{000..001}.tar"):
        tiles = read_tiles(config(path, columns={}))
        assert (tiles.splits == "test").all()
        assert tiles.ids[0] == "000/k0"
    write_shards(tmp_path / "set" / "train", "%03d.tar", rows)
    all_tiles = read_tiles(config(tmp_path / "set", columns={}), hold_out=False)
    assert all_tiles.ids[[0, -1]].tolist() == ["test/000/k0", "train/000/k3"]
    assert [_split_in(*names) for names in (("val-0", "train"), ("a", "b"), ("a", "train_test"))] == ["val", "", ""]


def test_labels_in_two_fields_are_refused_unless_one_is_configured(tmp_path: Path) -> None:
    rows = [{"__key__": "0", "png": picture(0), "cls": 1}, *samples(0, 3)]
    write_shards(tmp_path / "s", "%d.tar", rows)
    with pytest.raises(DataError, match="1 of 4 samples has a field 'cls' but no field 'label': 0/0"):
        read_tiles(config(tmp_path / "s"))
    chosen = read_tiles(config(tmp_path / "s", columns={"label": "label"}), hold_out=False)
    assert [chosen.classes[label] if label >= 0 else "" for label in chosen.truth] == ["", "gland", "stroma", "gland"]
    assert len(read_tiles(config(tmp_path / "s", labels={"kind": "none"}), hold_out=False)) == 4


def test_labels_that_conflict_with_another_field_are_errors(tmp_path: Path) -> None:
    def shards(name: str, classes: Sequence[int]) -> Path:
        rows = [{**row, "cls": number} for row, number in zip(samples(0, 6), classes, strict=True)]
        write_shards(tmp_path / name, "%d.tar", rows)
        return tmp_path / name

    for name, classes in (("indices", [0, 1] * 3), ("coarser", [0] * 6), ("finer", [0, 1, 2, 3, 0, 1])):
        assert read_tiles(config(shards(name, classes)), hold_out=False).classes == ("gland", "stroma")
    swapped = shards("swapped", [0, 1, 0, 0, 0, 1])
    with pytest.raises(
        DataError, match=r"1 of 6 samples has .* contradict those of other samples: 0/case1_0003 \(label stroma, cls 0"
    ):
        read_tiles(config(swapped))
    assert len(read_tiles(config(swapped, columns={"label": "label"}), hold_out=False)) == 6


def test_shards_that_are_missing_or_empty_are_listed(tmp_path: Path) -> None:
    write_shards(tmp_path, "train-%06d.tar", samples(0, 10, "train"), maxcount=5)
    write_tar(tmp_path / "train-000003.tar", [])
    notes = read_tiles(config(tmp_path), check=False, hold_out=False).notes
    assert any("1 file seems to be missing" in note and "train-000002.tar" in note for note in notes)
    assert any("1 shard contains no sample" in note and "train-000003.tar" in note for note in notes)


def test_samples_without_an_image_are_errors_or_quarantined(tmp_path: Path) -> None:
    members = [pair for n in range(3) for pair in ((f"{n}.json", b'{"label": "a"}'), (f"{n}.png", picture(n)))][:-1]
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"1 of 3 samples lacks an image: a/2"):
        read_tiles(config(path, columns={}))
    tiles = read_tiles(config(path, columns={}, unreadable="quarantine"), hold_out=False)
    assert tiles.quarantined == ("a/2",)
    assert tiles.ids.tolist() == ["a/0", "a/1"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-10240], "no end-of-archive marker"),
        (lambda data: data[: len(data) // 2], "not a complete plain tar file"),
        (lambda data: data[:700], "not a complete plain tar file"),
        (lambda data: b"", "not a complete plain tar file"),
        (lambda data: data.replace(b"2.png", b"2.p\xffg"), "not a complete plain tar file"),
        (lambda data: b"\x1f\x8b" + data, "compressed with gzip"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", picture(n)) for n in range(40)])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        shard_images(path)


def test_shards_that_readers_interpret_differently_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are not consecutive"):
        shard_images(write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("2.png", b"x"), ("1.json", b"{}")]))
    with pytest.raises(DataError, match="two members have the name"):
        shard_images(write_tar(tmp_path / "b.tar", [("1.png", b"x"), ("1.PNG", b"x")]))
    with pytest.raises(DataError, match="not a JSON object"):
        shard_images(write_tar(tmp_path / "c.tar", [("1.png", b"x"), ("1.json", b"[1]")]))
    with pytest.raises(DataError, match="unreadable"):
        shard_images(write_tar(tmp_path / "d.tar", [("1.png", b"x"), ("1.json", b"{")]))
    with tarfile.open(tmp_path / "e.tar", "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        archive.addfile(link)
    with pytest.raises(DataError, match="is a link"):
        shard_images(tmp_path / "e.tar")


def test_hidden_members_are_not_read(tmp_path: Path) -> None:
    """On macOS, tar writes a hidden member for each file with extended attributes."""
    attributes = b"\0\5\x16\7\0\2\0\0Mac OS X        "
    members = [("./d/.DS_Store", attributes), ("__MACOSX/d/._c.png", attributes), (".old/d.png", picture(9))]
    for number, label in enumerate("ab"):
        for name, content in ((f"{label}.cls", label.encode()), (f"{label}.png", picture(number))):
            members += [(f"./d/._{name}", attributes), (f"./d/{name}", content)]
    path = write_tar(tmp_path / "train.tar", members)
    tiles = read_tiles(config(path, columns={}), hold_out=False)
    assert list(tiles.ids) == ["train/./d/a", "train/./d/b"]
    assert tiles.read(1).tobytes() == pixels(1)
    note = "unread members, by suffix: hidden DS_Store (1), hidden cls (2), hidden png (4)"
    assert note in tiles.notes
    path = write_tar(tmp_path / "train.tar", members[2:3])
    for read in (lambda: read_tiles(config(path, columns={})), lambda: shard_images(path)):
        with pytest.raises(DataError, match=r"no samples; unread members, by suffix: hidden png \(1\)"):
            read()
    path = write_tar(tmp_path / "train.tar", [("../d/a.png", picture(0))])
    assert list(shard_images(path).ids) == ["train/../d/a"], "a parent folder is not hidden"


def test_invalid_values_are_errors_only_in_used_fields(tmp_path: Path) -> None:
    rows = [
        {"__key__": str(n), "png": picture(n), "json": {"label": "a", "group": ["x"], "mpp": "wide"}} for n in range(3)
    ]
    write_shards(tmp_path / "s", "%d.tar", rows)
    with pytest.raises(DataError, match=r"0/0 contains a list .* in column group"):
        read_tiles(config(tmp_path / "s", columns={}))
    with pytest.raises(DataError, match=r"invalid mpp 'wide' in 0/0"):
        read_tiles(config(tmp_path / "s", columns={"group": "label"}))


def test_a_shard_truncated_after_indexing_gives_unreadable_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", picture(n)) for n in range(3)])
    images = shard_images(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ImageError, match="shorter than recorded"):
        images.reader.read(2)


def test_compressed_and_unfinished_shards_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path, "a-%03d.tar", samples(0, 6, "train"))
    for name in ("a-001.tar.gz", "a-002.tgz", "a-003.tar.part", "a-000.tar.idx", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    notes = read_tiles(TilesConfig(source="webdataset", path=str(tmp_path))).notes
    names = ", ".join(str(tmp_path / name) for name in ("a-001.tar.gz", "a-002.tgz", "a-003.tar.part"))
    assert f"WARNING: 3 compressed or unfinished files are not read: {names}" in notes


def test_copies_of_a_shard_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, "a-%03d.tar", samples(0, 6, "train"))
    write_shards(tmp_path, "b-%03d.tar", samples(6, 6, "train"))
    config = TilesConfig(source="webdataset", path=str(tmp_path))
    assert len(read_tiles(config)) == 12
    shutil.copy(tmp_path / "a-000.tar", tmp_path / "a-000 (1).tar")
    with pytest.raises(DataError, match=r"1 data file is a copy: \S*a-000 \(1\).tar = \S*a-000.tar"):
        read_tiles(config)
