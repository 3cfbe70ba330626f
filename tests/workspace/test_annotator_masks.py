"""Masks by several annotators: consensus of hand-made 4 x 4 masks, and files that segmentation can read."""

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import clipit
from clipit.annotators.pixels import PixelPatterns
from clipit.api.labels import MergedMasksResult
from clipit.cli.main import main
from clipit.config.file import ConfigFile
from clipit.config.load import merge, validate_file
from clipit.errors import ConfigError, DataError
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.mask_files import MaskClasses
from clipit.tiles.masks import open_masks

# The gland is the left half. Cleo draws it one column too wide, and dan only annotates the first tile.
TRUTH = np.tile(np.array([1, 1, 0, 0], dtype=np.uint8), (4, 1))
WIDE = np.tile(np.array([1, 1, 1, 0], dtype=np.uint8), (4, 1))
DRAWN = {"ann": TRUTH, "ben": TRUTH, "cleo": WIDE}
Make = Callable[..., tuple[ConfigFile, Path]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write three 4 x 4 tiles with masks by three or four annotators; the masks of tile b have 16 bits."""
    (tmp_path / "masks").mkdir()
    rows = []
    for tile in ("a", "b", "c/d"):
        image = tmp_path / "images" / f"{tile}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (90, 0, 90)).save(image)
        for name, mask in (DRAWN | ({"dan": TRUTH} if tile == "a" else {})).items():
            file = f"masks/{tile.replace('/', '_')}-{name}.png"
            Image.fromarray(mask.astype(np.uint16) if tile == "b" else mask).save(tmp_path / file)
            rows.append((f"{tile}.png", name, file))
    splits = {"a": "train", "b": "train", "c/d": "test"}
    table = [f"{tile}.png,{split},p-{tile}" for tile, split in splits.items()]
    (tmp_path / "tiles.csv").write_text("path,split,group\n" + "\n".join(table) + "\n", encoding="utf-8")

    def values(more: Sequence[tuple[str, str, str]] = (), **keys: Any) -> tuple[ConfigFile, Path]:
        path = tmp_path / "masks.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("tile", "annotator", "mask"), *rows, *more])
        tiles = {"source": "table", "path": str(tmp_path / "tiles.csv"), "images": str(tmp_path / "images")}
        config = {
            "name": "drawn",
            "output": str(tmp_path / "out"),
            "tiles": tiles | {"labels": {"kind": "none"}},
            "segmentation": {"classes": {"stroma": 0, "gland": 1}},
        }
        return validate_file(merge(config, keys), "test"), path

    return values


def read_png(path: Path) -> list[list[int]]:
    with Image.open(path) as image:
        values: list[list[int]] = np.asarray(image).tolist()
        return values


def test_the_consensus_outvotes_an_annotator_with_wide_masks(make: Make) -> None:
    file, table = make()
    leftover = file.run.output / "annotators" / file.run.name / "masks" / ".masks.json.99999999.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    merged: MergedMasksResult = clipit.merge_masks(file, table)
    assert not leftover.exists(), "leftovers of a killed process are deleted"
    (first,) = (merged.folder / "consensus").glob("a-*.png")
    assert read_png(first) == TRUTH.tolist()
    record = merged.record
    assert record["facts"]["labelled pixels"] == 48 and record["facts"]["masks"] == 10
    # Training pixels have three patterns (both classes, and cleo's extra column), each with and without dan.
    training, test = record["parts"]
    assert (training["tiles"], training["patterns"], test["tiles"], test["patterns"]) == (2, 6, 1, 3)
    assert (
        [annotator["annotator"] for annotator in test["annotators"]]
        == ["ann", "ben", "cleo"]
        == record["shared_annotators"]
    )
    assert "WARNING: annotators of the test tiles also annotated" in " ".join(record["notes"])
    by_annotator = {annotator["annotator"]: annotator for annotator in training["annotators"]}
    assert by_annotator["ann"]["dice"] == {"stroma": 1.0, "gland": 1.0} and by_annotator["dan"]["pixels"] == 16
    # Cleo labels 24 gland and 8 stroma training pixels, of which 16 and 8 agree with the others.
    assert by_annotator["cleo"]["dice"]["gland"] == pytest.approx(2 * 16 / (24 + 16))
    assert by_annotator["cleo"]["dice"]["stroma"] == pytest.approx(2 * 8 / (8 + 16))
    assert by_annotator["cleo"]["confusion"][0][1] == pytest.approx(0.5, abs=0.05)
    assert "cleo: probability of each label" in merged.page.read_text(encoding="utf-8")


def test_masks_of_test_tiles_do_not_change_those_of_training_tiles(make: Make, tmp_path: Path) -> None:
    file, table = make()

    def training_posteriors() -> bytes:
        merged = clipit.merge_masks(file, table)
        return b"".join(path.read_bytes() for path in sorted((merged.folder / "posterior").glob("[ab]-*.npy")))

    expected = training_posteriors()
    Image.fromarray(1 - TRUTH).save(tmp_path / "masks/c_d-ann.png")
    assert training_posteriors() == expected
    # Only eve labels the test tile, so her mask is the consensus, and she is independent.
    rows = [row for row in table.read_text(encoding="utf-8").splitlines() if "c/d" not in row]
    table.write_text("\n".join([*rows, "c/d.png,eve,masks/c_d-cleo.png"]) + "\n", encoding="utf-8")
    merged = clipit.merge_masks(file, table)
    (last,) = (merged.folder / "consensus").glob("c-d-*.png")
    assert read_png(last) == WIDE.tolist() and merged.record["shared_annotators"] == []
    assert "no pixel has labels from two annotators" in merged.page.read_text(encoding="utf-8")


def test_segmentation_reads_the_consensus_masks(make: Make) -> None:
    file, table = make()
    merged = clipit.merge_masks(file, table, confidence=1.0)
    keys = {"path": str(merged.table), "images": str(merged.images), "columns": {"mask": "mask_consensus"}}
    config = file.run.tiles.model_copy(update=keys)
    classes = MaskClasses(("stroma", "gland"), {0: 0, 1: 1})
    masks = open_masks(config, read_tiles(config, hold_out=False), classes)
    assert len(masks) == 3 and all((masks.read(row)[1] == TRUTH).all() for row in range(3))
    # No posterior reaches 1, so every pixel of the confident masks is ignored.
    confident = config.model_copy(update={"columns": {"mask": "mask_confident"}})
    assert (open_masks(confident, read_tiles(config, hold_out=False), classes).read(0)[1] == -1).all()
    posterior = np.load(next((merged.folder / "posterior").glob("a-*.npy")), allow_pickle=False)
    assert posterior.shape == (2, 4, 4) and np.allclose(posterior.astype(float).sum(axis=0), 1, atol=1e-3)


def test_mask_paths_are_relative_to_their_folder_if_images_are_zipped(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file, table = make()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "images").as_posix())
    config = tmp_path / "config.yaml"
    tiles = {"source": "table", "path": file.run.tiles.path, "images": str(tmp_path / "images.zip")}
    classes = {"classes": {"stroma": 0, "gland": 1}}
    values = {"name": "zipped", "output": str(tmp_path / "out"), "tiles": tiles, "segmentation": classes}
    config.write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["clipit", "annotators", f"--config={config}", f"--masks={table}", "--shown=0"])
    main()
    assert "first unpack it into this folder" in capsys.readouterr().out
    rows = (tmp_path / "out/annotators/zipped/masks/tiles.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1].split(",")[3].startswith("consensus/a-")


def test_columns_that_are_not_text_are_left_out_of_the_written_table(make: Make, tmp_path: Path) -> None:
    table = pd.read_csv(tmp_path / "tiles.csv").assign(box=[[1, 2]] * 3, comment="two\nlines", site=["x", "y", "z"])
    table.to_parquet(tmp_path / "tiles.parquet")
    merged = clipit.merge_masks(*make(tiles={"path": str(tmp_path / "tiles.parquet")}))
    written = pd.read_csv(merged.table)
    assert written.columns.tolist() == ["path", "split", "group", "site", "mask_consensus", "mask_confident"]
    (note,) = [note for note in merged.record["notes"] if "columns" in note]
    assert note.startswith("tiles.csv lacks 2 columns (box, comment), because a cell contains a list, a line break")


@pytest.mark.parametrize("masked", ["test", "train"])
def test_masks_of_one_split_do_not_hide_the_test_split(make: Make, masked: str) -> None:
    file, table = make()
    rows = pd.read_csv(table)
    rows[(rows["tile"] == "c/d.png") == (masked == "test")].to_csv(table, index=False)
    record = clipit.merge_masks(file, table).record
    assert [part["part"] for part in record["parts"]] == [
        "test tiles" if masked == "test" else "training and validation tiles"
    ]
    assert record["shared_annotators"] == [] and not any("no test split" in note for note in record["notes"])
    expected = "no annotator of the test tiles" if masked == "test" else "the masks are those of training"
    assert any(note.startswith(expected) for note in record["notes"])


def test_unreadable_images_are_quarantined_if_configured(make: Make, tmp_path: Path) -> None:
    image = tmp_path / "images/b.png"
    image.write_bytes(image.read_bytes()[:45])
    with pytest.raises(DataError, match=r"(?s)b\.png cannot be decoded.*tiles\.unreadable: quarantine"):
        clipit.merge_masks(*make())
    merged = clipit.merge_masks(*make(tiles={"unreadable": "quarantine"}))
    assert merged.record["facts"]["tiles"] == 2
    assert any("dropped 1 of 3 images" in note for note in merged.record["notes"])


def test_unlabelled_pixels_are_ignored(make: Make, tmp_path: Path) -> None:
    for path in (tmp_path / "masks").glob("a-*.png"):
        Image.fromarray(np.where(np.arange(4) == 3, 255, np.asarray(Image.open(path))).astype(np.uint8)).save(path)
    merged = clipit.merge_masks(*make())
    (first,) = (merged.folder / "consensus").glob("a-*.png")
    assert read_png(first) == np.where(np.arange(4) == 3, 255, TRUTH).tolist()
    assert merged.record["facts"]["labelled pixels"] == 44
    assert "4 of 10 masks contain ignored pixels (255), 10.00% of all mask pixels" in merged.record["notes"]


def test_pixels_with_equally_probable_classes_are_counted(make: Make, tmp_path: Path) -> None:
    file, table = make()
    rows = [line for line in table.read_text(encoding="utf-8").splitlines() if not line.startswith("a.png,dan")]
    table.write_text("\n".join(row for row in rows if ",ben," not in row) + "\n", encoding="utf-8")
    for path in (tmp_path / "masks").glob("*-cleo.png"):  # ann and cleo disagree equally often in both directions
        Image.fromarray(np.tile(np.array([0, 1, 1, 0], dtype=np.uint8), (4, 1))).save(path)
    merged = clipit.merge_masks(file, table)
    note = "training and validation tiles: several classes are equally probable on 16 pixels (50.0%), whose consensus"
    assert note in " ".join(merged.record["notes"]) and note in merged.page.read_text(encoding="utf-8")
    assert [part["ties"] for part in merged.record["parts"]] == [16, 8]


def test_patterns_count_pixels_of_any_number_of_images() -> None:
    patterns = PixelPatterns(("a", "b", "c"), ("x", "y"))
    rng = np.random.default_rng(0)
    for _ in range(3):
        patterns.add(patterns.encode(rng.integers(-1, 2, size=(3, 64, 64)).astype(np.int16)))
    consensus = patterns.consensus()
    assert len(consensus.votes) == 3**3 - 1 and consensus.pixels.sum() == pytest.approx(3 * 64 * 64 * 26 / 27, rel=0.02)
    labels = np.array([[[1]], [[-1]], [[0]]], dtype=np.int16)
    (row,) = np.flatnonzero(np.asarray(consensus.votes.items) == str(patterns.encode(labels)[0, 0]))
    assert consensus.votes.table()[row].tolist() == [1, -1, 0]
    with pytest.raises(DataError, match="too many label patterns"):
        PixelPatterns([str(n) for n in range(40)], ("x", "y"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            [("a.png", "ann", "masks/b-ann.png")],
            "1 tile with several masks by one annotator: ann on a.png (record 1 (line 2), record",
        ),
        ([("a.png", "", "masks/b-ann.png")], "1 row with an empty cell"),
        ([(".\\a.png", "eve", "masks/b-ann.png")], "1 tile name is written in more than one way: a.png"),
        ([("a.png", "Ann", "masks/b-ann.png")], "annotators with almost the same name: 'Ann' and 'ann'"),
        ([("a.png", "eve", "masks/none.png")], "masks/none.png"),
        ([("a.png", "eve", "masks/small.png")], "the mask has 2 x 2 pixels, its image 4 x 4"),
        ([("a.png", "eve", "masks/seven.png"), ("b.png", "eve", "masks/small.png")], "2 tiles have masks that cannot"),
    ],
)
def test_invalid_annotator_masks_are_errors(
    make: Make, tmp_path: Path, more: list[tuple[str, str, str]], message: str
) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "masks/small.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "masks/seven.png")
    with pytest.raises(DataError) as error:
        clipit.merge_masks(*make(more))
    assert message in str(error.value) and "fix:" in str(error.value)


def test_one_annotator_per_tile_is_an_error_and_masks_of_unknown_tiles_are_noted(make: Make, tmp_path: Path) -> None:
    file, table = make([("elsewhere.png", "ann", "masks/b-ann.png")])
    assert "dropped masks for 1 tile outside the data set: elsewhere.png" in " ".join(
        clipit.merge_masks(file, table).record["notes"]
    )
    table.write_text("tile,annotator,mask\na.png,ann,masks/a-ann.png\nb.png,ben,masks/b-ben.png\n", encoding="utf-8")
    with pytest.raises(DataError, match="no pixel has labels from two annotators"):
        clipit.merge_masks(file, table)
    with pytest.raises(ConfigError, match=r"segmentation\.classes"):
        clipit.merge_masks(*make(segmentation={"classes": {}}))
    with pytest.raises(ConfigError, match="out of range"):
        clipit.merge_masks(*make(), confidence=2.0)


def test_overruled_labels_and_repeated_mask_files_are_listed(make: Make, tmp_path: Path) -> None:
    # Ann labels half of the pixels stroma, which ben and cleo label gland.
    counter = PixelPatterns(("ann", "ben", "cleo"), ("stroma", "gland"))
    ann, ben, cleo = (np.array([pattern], dtype=np.int16) for pattern in ([0] * 8 + [1] * 8, [1] * 16, [1] * 16))
    counter.add(counter.encode(np.stack([ann, ben, cleo])))
    consensus = replace(counter.consensus(), probabilities=np.array([[0.9, 0.1], [0.0, 1.0]]))
    assert consensus.overruled() == [(8, "stroma by ann (consensus); gland by ben, cleo")]
    assert replace(consensus, probabilities=np.array([[0.1, 0.9], [0.0, 1.0]])).overruled() == []
    file, table = make([("a.png", "eve", "masks/b-ann.png")])
    merged = clipit.merge_masks(file, table)
    assert "WARNING: 1 mask file is given for several tiles or annotators" in " ".join(merged.record["notes"])
    assert "masks/b-ann.png (2 times)" in merged.page.read_text(encoding="utf-8")
    assert [part["overruled"] for part in merged.record["parts"]] == [[], []]


def test_the_error_for_missing_masks_names_the_option_for_masks(make: Make) -> None:
    file, table = make([("a.png", "eve", "masks/gone.png")])
    with pytest.raises(DataError, match=r"(?s)missing: masks/gone\.png.*set --mask-files to the folder or zip"):
        clipit.merge_masks(file, table)


def test_a_mask_file_used_for_several_tiles_is_noted(make: Make, tmp_path: Path) -> None:
    rows = ["path,mask", "a.png,../masks/a-ann.png", "b.png,../masks/a-ann.png", "c/d.png,../masks/c_d-ann.png"]
    (tmp_path / "tiles.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = make()[0].run.tiles
    masks = open_masks(config, read_tiles(config, hold_out=False), MaskClasses(("stroma", "gland"), {0: 0, 1: 1}, ()))
    assert masks.notes[0].startswith("1 mask file is given for several tiles")
    assert "../masks/a-ann.png (2 times)" in masks.notes[0]
