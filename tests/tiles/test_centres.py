"""Training on one centre and testing on others, and class maps that join two data sets."""

from pathlib import Path

import numpy as np
import pytest

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.tiles.load_tiles import read_tiles

from .conftest import paint, write_table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 tiles of centre A, 8 of B, 6 of C and one of an unknown centre, in three classes."""
    root = tmp_path_factory.mktemp("centres")
    centres = ["A"] * 40 + ["B"] * 8 + ["C"] * 6 + [""]
    rows: list[dict[str, object]] = []
    for number, centre in enumerate(centres):
        path = paint(root / f"{number:02d}.png", number).name
        label = ("tumour", "normal", "mucus")[number % 3] if number != 44 else ""
        rows.append({"path": path, "label": label, "centre": centre, "patient": f"{centre}{number % 13}"})
    return write_table(root / "tiles.csv", rows)


def centres(table: Path, **keys: object) -> TilesConfig:
    columns = {"split": "centre", "group": "patient"}
    return TilesConfig.model_validate({"source": "table", "path": str(table), "columns": columns, **keys})


def test_train_on_one_centre_and_test_on_another(table: Path) -> None:
    tiles = read_tiles(centres(table, splits={"train": "A", "test": "B"}, other_parts="ignore"))
    assert {split: int((tiles.splits == split).sum()) for split in ("train", "validation", "test")} == {
        "train": 34,
        "validation": 6,
        "test": 8,
    }
    assert {group[0] for group in tiles.groups[tiles.splits != "test"]} == {"A"}
    assert set(tiles.groups[tiles.splits == "test"]) == {f"B{number % 13}" for number in range(40, 48)}
    assert "7 tiles of other splits dropped ((none): 1, C: 6)" in tiles.notes
    assert tiles.read(len(tiles) - 1).size == (8, 8)


def test_a_third_centre_can_be_a_separate_test_set(table: Path) -> None:
    tiles = read_tiles(centres(table, splits={"test": "C"}, other_parts="ignore"))
    assert set(tiles.splits) == {"test"}
    assert len(tiles) == 6
    assert tiles.classes == ("mucus", "normal", "tumour")


def test_other_centres_are_errors_unless_ignored(table: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)unknown split values: C.*tiles.other_parts: ignore"):
        read_tiles(centres(table, splits={"train": "A", "test": "B"}))
    with pytest.raises(DataError, match=r"tiles\.splits has names that do not occur: D"):
        read_tiles(centres(table, splits={"train": "A", "test": "D"}, other_parts="ignore"))
    with pytest.raises(DataError, match="no tiles remain"):
        read_tiles(centres(table, other_parts="ignore"))


def test_a_patient_in_two_centres_is_an_error(table: Path) -> None:
    crossing = centres(table, splits={"train": "A", "test": "B"}, other_parts="ignore")
    columns = {"split": "centre", "group": "label"}
    with pytest.raises(DataError, match="groups are in more than one split"):
        read_tiles(crossing.model_copy(update={"columns": columns}))


def test_labels_are_mapped_and_unmapped_ones_are_dropped_and_counted(table: Path) -> None:
    mapping = {"tumour": "cancer", "normal": "healthy"}
    tiles = read_tiles(centres(table, splits={"train": "A", "test": "B"}, other_parts="ignore", class_map=mapping))
    assert tiles.classes == ("cancer", "healthy")
    before = read_tiles(centres(table, splits={"train": "A", "test": "B"}, other_parts="ignore"))
    names = np.array([*before.classes, ""])[before.truth]
    labels = dict(zip(before.ids[names != "mucus"], names[names != "mucus"], strict=True))
    assert {name: ("", *tiles.classes)[code + 1] for name, code in zip(tiles.ids, tiles.truth, strict=True)} == {
        name: mapping.get(label, "") for name, label in labels.items()
    }
    assert (tiles.truth == -1).sum() == 1, "tiles without a label are kept"
    assert any(
        note.startswith("dropped 17 tiles with labels outside tiles.class_map (mucus: 17)") for note in tiles.notes
    )


def test_two_labels_can_be_mapped_to_one_class(table: Path) -> None:
    keys = {"splits": {"train": "A", "test": "B"}, "other_parts": "ignore"}
    mapping = {"tumour": "AC", "normal": "H", "mucus": "AC"}
    tiles = read_tiles(centres(table, **keys, class_map=mapping, classes=("AC", "H", "V")))
    assert tiles.classes == ("AC", "H", "V")
    assert set(tiles.truth) == {0, 1, -1}
    with pytest.raises(DataError, match="unknown classes H"):
        read_tiles(centres(table, **keys, class_map=mapping, classes=("AC", "V")))
    with pytest.raises(DataError, match=r"names labels that do not occur: tumor; the labels are: mucus, normal"):
        read_tiles(centres(table, **keys, class_map={"tumor": "AC"}))


def test_a_published_set_keeps_its_class_order(tmp_path: Path) -> None:
    for name in ("colon_aca", "colon_n"):
        for number in range(10):
            paint(tmp_path / name / f"{name}{number}.jpeg", number)
    keys = {"source": "lc25000_colon", "path": str(tmp_path), "check_counts": False}
    mapping = {"colon_n": "H", "colon_aca": "AC"}
    tiles = read_tiles(TilesConfig.model_validate(keys | {"class_map": mapping}))
    assert tiles.classes == ("AC", "H")
    first = str(tiles.ids[tiles.truth == 0][0])
    assert "colon_aca" in first
    wide = read_tiles(TilesConfig.model_validate(keys | {"class_map": mapping, "classes": ["H", "AC", "V"]}))
    assert wide.classes == ("H", "AC", "V")
    folders = {"source": "folders", "path": str(tmp_path), "class_map": {"colon_n": "H"}, "classes": ["H", "AC"]}
    assert len(read_tiles(TilesConfig.model_validate(folders))) == 10


def test_real_colon_tiles_of_two_sources_share_two_classes(real_data: Path) -> None:
    def read(name: str, mapping: dict[str, str], classes: tuple[str, ...] | None = None) -> TilesConfig:
        folder = real_data / name
        keys = {"source": "table", "path": str(folder / "labels.csv"), "images": str(folder / f"{name}_tiles.zip")}
        return TilesConfig.model_validate({**keys, "class_map": mapping, "classes": classes})

    polito = read_tiles(read("crc_polito5", {"AC": "AC", "H": "H"}))
    lc25000 = read_tiles(read("lc25000_colon", {"colon_aca": "AC", "colon_n": "H"}))
    assert polito.classes == lc25000.classes == ("AC", "H")
    assert polito.counts()["test"] == {"AC": 80, "H": 80, "(no label)": 0}
    assert lc25000.counts()["test"] == {"AC": 80, "H": 80, "(no label)": 0}
    assert any(
        "dropped 960 tiles with labels outside tiles.class_map (S: 320, T: 320, V: 320)" in n for n in polito.notes
    )
    five = read("lc25000_colon", {"colon_aca": "AC", "colon_n": "H"}, ("AC", "H", "S", "T", "V"))
    assert read_tiles(five).counts()["test"] == {"AC": 80, "H": 80, "S": 0, "T": 0, "V": 0, "(no label)": 0}
