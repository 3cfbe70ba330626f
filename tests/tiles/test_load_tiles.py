import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelled_tiles import load_tiles
from pydantic import ValidationError

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.config.segmentation import SegmentationConfig
from clipit.errors import ConfigError, DataError
from clipit.images.image_readers import FileReader
from clipit.tiles.hidden_labels import hide_labels
from clipit.tiles.load_tiles import read_tiles

from .conftest import paint, write_table


def test_hiding_labels_of_read_tiles_equals_loading_for_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = [
        {"path": f"{index}.png", "label": index % 2, "split": "train" if index < 9 else "test"} for index in range(12)
    ]
    for row in table:
        paint(tmp_path / str(row["path"]))
    (tmp_path / "10.png").write_bytes(b"no image")
    section = TilesConfig(
        source="table",
        path=str(write_table(tmp_path / "t.csv", table)),
        labels=LabelsConfig(kind="per_class", value=1),
        unreadable="quarantine",
    )
    all_tiles = read_tiles(section)
    np.testing.assert_array_equal(all_tiles.labels, all_tiles.truth)
    assert (all_tiles.truth >= 0).all()
    assert set(all_tiles.splits) == {"train", "validation", "test"}
    assert all_tiles.quarantined == ("10.png",)
    for seed in range(4):
        loaded, hidden = load_tiles(section, seed), hide_labels(all_tiles, section.labels, seed)
        assert ((loaded.labels >= 0) & (loaded.splits == "train")).sum() == 2
        for column in ("ids", "labels", "truth", "splits", "groups", "rows"):
            np.testing.assert_array_equal(getattr(loaded, column), getattr(hidden, column))
        assert (loaded.fingerprint, loaded.notes, loaded.quarantined) == (
            hidden.fingerprint,
            hidden.notes,
            hidden.quarantined,
        )
    monkeypatch.setattr(FileReader, "read", None)  # hiding labels reads no image
    hide_labels(all_tiles, section.labels, 9)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("source", ["folders", "table"])
def test_classes_may_be_named_in_composed_or_decomposed_characters(tmp_path: Path, source: str, form: str) -> None:
    """Zips and copies from macOS have decomposed names, and keyboards write composed ones."""
    label, name = "no\u0308dule" if form == "NFC" else "n\u00f6dule", unicodedata.normalize(form, "n\u00f6dule")
    rows = [{"path": f"{('x', label)[row % 2]}/{row}.png", "label": ("x", label)[row % 2]} for row in range(8)]
    for row in rows:
        paint(tmp_path / "set" / row["path"])
    path = tmp_path / "set" if source == "folders" else write_table(tmp_path / "set/t.csv", rows)
    tiles = read_tiles(TilesConfig(source=source, path=str(path), classes=(name, "x")), hold_out=False)
    assert tiles.classes == (name, "x") and sorted(tiles.truth.tolist()) == [0] * 4 + [1] * 4
    mapping = {name: "a", "x": "b"}
    tiles = read_tiles(TilesConfig(source=source, path=str(path), class_map=mapping), hold_out=False)
    assert tiles.classes == ("a", "b") and sorted(tiles.truth.tolist()) == [0] * 4 + [1] * 4


def bare_table(folder: Path, splits: list[str] | None = None) -> str:
    """Write a table of 40 tiles in two classes without groups, and without splits by default."""
    rows: list[dict[str, object]] = []
    for index in range(40):
        paint(folder / f"{index}.png", index)
        rows.append({"path": f"{index}.png", "label": index % 2})
        rows[-1] |= {"split": splits[index]} if splits else {}
    return str(write_table(folder / "bare.csv", rows))


def test_a_table_without_splits_gets_a_test_split_or_folds_on_request(tmp_path: Path) -> None:
    table = bare_table(tmp_path)
    assert set(read_tiles(TilesConfig(source="table", path=table)).splits) == {"train", "validation"}
    with_test = read_tiles(TilesConfig(source="table", path=table, test_fraction=0.25))
    assert with_test.counts()["test"] == {"0": 5, "1": 5, "(no label)": 0}
    assert with_test.counts()["validation"] == {"0": 3, "1": 3, "(no label)": 0}
    other = read_tiles(TilesConfig(source="table", path=table, test_fraction=0.25, split_seed=1))
    assert set(other.ids[other.splits == "test"]) != set(with_test.ids[with_test.splits == "test"])
    folds = [read_tiles(TilesConfig(source="table", path=table, folds=4, fold=fold)) for fold in range(4)]
    tested = [name for tiles in folds for name in tiles.ids[tiles.splits == "test"]]
    assert sorted(tested) == sorted(with_test.ids), "each tile is tested once"
    assert all(set(tiles.splits) == {"train", "validation", "test"} for tiles in folds)


def test_a_second_test_split_is_not_held_out(tmp_path: Path) -> None:
    table = bare_table(tmp_path, ["labelled"] * 20 + ["unlabelled"] * 10 + ["test"] * 10)
    keys: dict[str, Any] = {"source": "table", "path": table, "splits": {"train": ["labelled", "unlabelled"]}}
    assert (read_tiles(TilesConfig(**keys)).splits == "test").sum() == 10
    for cut in ({"test_fraction": 0.2}, {"folds": 2}):
        with pytest.raises(ConfigError, match=r"already has a test split \(10 tiles\)(?s:.*)train: \[train, test\]"):
            read_tiles(TilesConfig(**keys, **cut))
    pooled = {**keys, "splits": {"train": ["labelled", "unlabelled", "test"]}, "folds": 2}
    assert (read_tiles(TilesConfig(**pooled)).splits == "test").sum() == 20


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fold": 1}, "fold requires the key folds"),
        ({"folds": 3, "fold": 3}, "no fold 3: the 3 folds are numbered from 0 to 2"),
        ({"folds": 3, "test_fraction": 0.2}, "set folds or test_fraction, not both"),
        ({"splits": {"train": []}}, "empty list for train"),
        ({"splits": {"train": ["a", 1]}}, "names must be text, not 1"),
        ({"group_pattern": "("}, "not a valid regular expression"),
    ],
)
def test_conflicting_split_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TilesConfig.model_validate({"source": "table", "path": "t.csv", **keys})


@pytest.mark.parametrize("source", ["folders", "table", "huggingface", "slides", "webdataset", "pcam", "bach", "mhist"])
def test_the_error_for_a_missing_path_shows_what_exists(tmp_path: Path, source: Any) -> None:
    (tmp_path / "Tiles").mkdir()
    for path, message in (("tiles", "contains Tiles"), (r"C:\tiles", "Windows path"), ("https://host/tiles", "a URL")):
        if source == "webdataset" and path.startswith("https"):
            continue  # URLs of shards have a separate error
        missing = str(tmp_path / path) if path == "tiles" else path
        with pytest.raises(DataError, match=message):
            read_tiles(TilesConfig(source=source, path=missing))


def test_the_error_for_a_missing_image_folder_shows_what_exists(tmp_path: Path) -> None:
    paint(tmp_path / "Images" / "a.png")
    table = write_table(tmp_path / "t.csv", [{"path": "a.png", "label": "a", "split": "train"}])
    with pytest.raises(DataError, match=r"images does not exist(?s:.*)contains Images"):
        read_tiles(TilesConfig(source="table", path=str(table), images=str(tmp_path / "images")))


def test_the_error_for_a_missing_published_set_shows_what_the_folder_contains(tmp_path: Path) -> None:
    (tmp_path / "NCT").mkdir()
    with pytest.raises(DataError, match=r"NCT-CRC-HE-100K is missing; .* contains NCT"):
        read_tiles(TilesConfig(source="nct_crc", path=str(tmp_path)))


@pytest.mark.parametrize("keys", [{"classes": ["a\0", "b"]}, {"class_map": {"0": "\0dropped", "1": "b"}},
                                  {"class_map": {"0": "two\nlines"}}, {"classes": ["a", " "]}])  # fmt: skip
def test_class_names_must_be_visible_and_on_one_line(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="empty or contain a control character"):
        TilesConfig(source="table", path="t.csv", **keys)
    with pytest.raises(ValidationError, match=r"empty or contain a control character: 'a\\x85b'"):
        SegmentationConfig(classes={"a\x85b": 0, "c": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": {"value": 4}}, r"table: tiles.labels.value \(only with tiles.labels.kind=fraction or per_class\)"),
        ({"labels": {"seed": 4}}, r"table: tiles.labels.seed \(only with"),
        ({"keep_quality": 90}, r"table: tiles.keep_quality \(only with tiles.streaming\)"),
        ({"validation_fraction": 0.4}, r"(?s)already has a validation split \(3 tiles\).*tiles.validation_fraction \("),
        ({"split_seed": 4}, r"(?s)already has a validation split \(3 tiles\).*tiles.split_seed \("),
        (
            {"source": "huggingface", "columns": {"split": "part"}},
            r"huggingface: tiles.columns.split \(not huggingface",
        ),
    ],
)
def test_options_without_effect_are_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    rows = [
        {"path": f"{number}.png", "label": "ab"[number % 2], "split": ("train", "validation", "test")[number % 3]}
        for number in range(9)
    ]
    for number, row in enumerate(rows):
        paint(tmp_path / row["path"], number)
    table = {"source": "table", "path": str(write_table(tmp_path / "t.csv", rows))}
    assert len(read_tiles(TilesConfig.model_validate(table))) == 9
    with pytest.raises(ConfigError, match=message):
        read_tiles(TilesConfig.model_validate({**table, **options}))
