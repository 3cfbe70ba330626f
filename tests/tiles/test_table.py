import os
import re
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_tiles import load_tiles

from clipit.config.run import TilesConfig
from clipit.errors import DataError
from clipit.patients import patients
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.overview import tiles_overview

from .conftest import paint, write_table


def config(path: Path, **more: object) -> TilesConfig:
    return TilesConfig.model_validate({"source": "table", "path": str(path), **more})


def rows(folder: Path, count: int = 12) -> list[dict[str, object]]:
    """Write images in `folder/img` and return their rows: two classes, and patients with two tiles each."""
    table: list[dict[str, object]] = []
    for index in range(count):
        paint(folder / "img" / f"{index}.png", index)
        table.append(
            {
                "path": f"img/{index}.png",
                "label": index % 2,
                "split": "train" if index < 8 else "test",
                "group": f"p{index // 2}",
                "mpp": 0.5,
            }
        )
    return table


def test_csv_and_parquet_give_the_same_tiles(tmp_path: Path) -> None:
    table = rows(tmp_path)
    from_csv = load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    from_parquet = load_tiles(config(tmp_path / "t.parquet"), seed=0)
    assert from_csv.classes == from_parquet.classes == ("0", "1")
    assert from_csv.fingerprint == from_parquet.fingerprint
    np.testing.assert_array_equal(from_csv.truth, from_parquet.truth)
    assert (from_csv.mpp == 0.5).all()


def test_class_indices_in_parquet_files_become_names(tmp_path: Path) -> None:
    import datasets

    table = [{**row, "label": [-1, 0, 1][index % 3]} for index, row in enumerate(rows(tmp_path))]
    rows_with_names = datasets.Dataset.from_list(table)
    rows_with_names = rows_with_names.cast_column("label", datasets.ClassLabel(names=["normal", "tumour"]))
    rows_with_names.to_parquet(tmp_path / "t.parquet")
    tiles = load_tiles(config(tmp_path / "t.parquet"), seed=0)
    labels = ["" if label < 0 else tiles.classes[label] for label in tiles.truth.tolist()]
    assert labels == ["", "normal", "tumour"] * 4


def test_a_row_that_names_a_folder_is_an_error(tmp_path: Path) -> None:
    table = [*rows(tmp_path), {"path": "img", "label": 0, "split": "train", "group": "p9", "mpp": 0.5}]
    with pytest.raises(DataError, match=r"(?s)this is a folder, not a file.*/img.*remove the row"):
        read_tiles(config(write_table(tmp_path / "t.csv", table), unreadable="quarantine"))


def test_the_error_for_a_column_id_of_patients_names_the_way_out(tmp_path: Path) -> None:
    table = [{"id": row["group"], **row} for row in rows(tmp_path)]
    path = write_table(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=r"(?s)6 tile ids occur more than once.*--tiles\.columns\.id=path \("):
        read_tiles(config(path))
    assert len(read_tiles(config(path, columns={"id": "path"}))) == 12
    with pytest.raises(DataError, match=r"(?s)more than once.*fix: make the ids unique$"):
        read_tiles(config(path, columns={"id": "group"}))


def test_the_validation_split_keeps_groups_together(tmp_path: Path) -> None:
    tiles = load_tiles(config(write_table(tmp_path / "t.csv", rows(tmp_path)), validation_fraction=0.25), seed=0)
    validation = set(tiles.groups[tiles.splits == "validation"])
    assert len(validation) == 1
    assert not validation & set(tiles.groups[tiles.splits == "train"])


def test_other_spellings_of_splits_are_listed_with_their_meaning(tmp_path: Path) -> None:
    table = rows(tmp_path)
    for row in table:
        row["split"] = {"train": "Training", "test": "TEST"}[str(row["split"])]
    path = write_table(tmp_path / "t.csv", table)
    notes = load_tiles(config(path), seed=0).notes
    assert any("TEST (4 tiles) as test, Training (8 tiles) as train; set tiles.splits" in note for note in notes)
    mapped = load_tiles(config(path, splits={"train": "Training", "test": "TEST"}), seed=0).notes
    plain = load_tiles(config(write_table(tmp_path / "u.csv", rows(tmp_path))), seed=0).notes
    assert not [note for note in (*mapped, *plain) if "split values" in note]


@pytest.mark.parametrize("unreadable", ["error", "quarantine"])
def test_pipes_listed_in_a_table_are_refused_without_blocking(tmp_path: Path, unreadable: str) -> None:
    table = rows(tmp_path)
    (tmp_path / "img/3.png").unlink()
    os.mkfifo(tmp_path / "img/3.png")
    with pytest.raises(DataError, match=r"(?s)this is a pipe, not a file.*img/3\.png.*save its content to a file"):
        load_tiles(config(write_table(tmp_path / "t.csv", table), unreadable=unreadable), seed=0)


def test_zip_and_folder_give_the_same_pixels(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        for index in range(12):
            archive.write(tmp_path / "img" / f"{index}.png", f"img/{index}.png")
    folder = load_tiles(config(path), seed=0)
    packed = load_tiles(config(path, images=str(tmp_path / "tiles.zip")), seed=0)
    assert folder.fingerprint != packed.fingerprint
    for index in range(12):
        assert folder.read(index).tobytes() == packed.read(index).tobytes()


def test_errors_for_missing_columns_list_the_existing_ones(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    with pytest.raises(DataError, match=r"missing columns: diagnosis, slide; the table has: path, label, split, group"):
        load_tiles(config(path, columns={"label": "diagnosis", "group": "slide"}), seed=0)


def test_a_table_without_a_header_and_a_workbook_are_errors(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)missing columns: label, path.*the first row is not a header"):
        load_tiles(config(path), seed=0)
    workbook = tmp_path / "t.xlsx"
    workbook.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"(?s)unknown table format \.xlsx.*save the sheet as \.csv"):
        load_tiles(config(workbook), seed=0)


def test_a_label_column_is_required_unless_labels_are_disabled(tmp_path: Path) -> None:
    table = [{"path": row["path"]} for row in rows(tmp_path)]
    path = write_table(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=r"(?s)missing columns: label.*if no tile is labelled"):
        load_tiles(config(path), seed=0)
    tiles = load_tiles(config(path, labels={"kind": "none"}, classes=("a", "b")), seed=0)
    assert (tiles.truth == -1).all()
    assert tiles.classes == ("a", "b")
    assert set(tiles.splits) == {"train", "validation"}


def test_a_file_listed_twice_is_an_error(tmp_path: Path) -> None:
    table = rows(tmp_path)
    table.append(table[2] | {"path": "./img/2.png"})
    with pytest.raises(DataError, match=r"img/2.png \(record 3 \(line 4\), record 13 \(line 14\)\)"):
        load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)


def test_missing_files_are_counted(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    for index in (3, 5):
        (tmp_path / "img" / f"{index}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 12 files .*: img/3.png, img/5.png"):
        load_tiles(config(path), seed=0)
    with pytest.raises(DataError, match=r"elsewhere"):
        load_tiles(config(path, images=str(tmp_path / "elsewhere")), seed=0)
    (tmp_path / "bad.zip").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match=r"not a readable zip"):
        load_tiles(config(path, images=str(tmp_path / "bad.zip")), seed=0)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, {"split": "fold3"}, "unknown split values: fold3"),
        (1, {"split": ""}, "1 of 12 rows has no split"),
        (1, {"group": "p5"}, r"(?s)1 group is in more than one split: p5 \(test, train\).*where: .*t\.csv"),
        (1, {"label": "9"}, "unknown classes 9 in 1 tile: img/1.png"),
        (1, {"mpp": "half"}, r"invalid mpp 'half' in record 2 \(line 3\)"),
        (1, {"mpp": "-1"}, "invalid mpp '-1'"),
        (1, {"mpp": "1,000"}, "invalid mpp '1,000'"),  # ambiguous: a decimal comma or a thousands separator
        (1, {"mpp": 5e-07}, "(?s)invalid mpp '5e-07'.*not metres or nanometres"),
        (1, {"mpp": 500}, "(?s)invalid mpp '500.*from 0.01 to 100"),
        (1, {"path": ""}, "1 row has no file name; the first is record 2"),
    ],
)
def test_inconsistent_rows_are_errors(tmp_path: Path, index: int, change: dict[str, object], message: str) -> None:
    table = rows(tmp_path)
    table[index] = table[index] | change
    with pytest.raises(DataError, match=message):
        load_tiles(config(write_table(tmp_path / "t.csv", table), classes=("0", "1")), seed=0)


def test_missing_value_markers_are_not_ids(tmp_path: Path) -> None:
    table = [{**row, "id": "nan" if index == 1 else f"tile {index}"} for index, row in enumerate(rows(tmp_path))]
    with pytest.raises(DataError, match=r"tiles without an id: record 2 \(line 3\)"):
        load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)


def test_unreadable_tables_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with pytest.raises(DataError, match="does not exist"):
        load_tiles(config(path), seed=0)
    path.write_bytes("path,label\nä.png,a\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"(?s)not UTF-8 text.*line 2\n"):
        load_tiles(config(path), seed=0)
    pq.write_table(pa.table({"path": ["1.png"], "label": ["a"]}), path)
    with pytest.raises(DataError, match=r"(?s)is a parquet file.*fix: name the file \.parquet"):
        load_tiles(config(path), seed=0)
    path.write_text("path,label\n1.png,a,b\n")
    with pytest.raises(DataError, match=r"record 1 \(line 2\) has 3 fields, but the header has 2"):
        load_tiles(config(path), seed=0)
    path.write_text("path,label\n")
    with pytest.raises(DataError, match="no rows"):
        load_tiles(config(path), seed=0)
    path.write_text("path,label,label\n1.png,a,b\n")
    with pytest.raises(DataError, match="several columns have the same name: label"):
        load_tiles(config(path), seed=0)
    (tmp_path / "t.parquet").write_text("no")
    with pytest.raises(DataError, match="not a readable parquet"):
        load_tiles(config(tmp_path / "t.parquet"), seed=0)
    (tmp_path / "t.xlsx").write_text("no")
    with pytest.raises(DataError, match=r"save the sheet as \.csv"):
        load_tiles(config(tmp_path / "t.xlsx"), seed=0)


def test_the_error_names_a_table_from_which_no_validation_split_can_be_held_out(tmp_path: Path) -> None:
    table = [row | {"group": "p0"} for row in rows(tmp_path) if row["split"] == "train"]
    path = write_table(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=r"(?s)no validation tiles can be held out.*where: .*t\.csv"):
        load_tiles(config(path), seed=0)


def test_ids_in_a_separate_column_must_be_unique(tmp_path: Path) -> None:
    table = [row | {"name": f"n{min(index, 10)}"} for index, row in enumerate(rows(tmp_path))]
    path = write_table(tmp_path / "t.csv", table)
    with pytest.raises(
        DataError, match=r"(?s)1 tile id occurs more than once: n10 \(record \d+ \(line \d+\), record.*where: .*t\.csv"
    ):
        load_tiles(config(path, columns={"id": "name"}), seed=0)


def test_ids_rounded_by_a_spreadsheet_program_are_errors(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{**row, "id": f"{n}.2E+11"} for n, row in enumerate(rows(tmp_path, 3), 1)])
    with pytest.raises(DataError, match=r"a spreadsheet program has probably changed 3 values in column id"):
        load_tiles(config(table), seed=0)


def test_replacing_a_file_changes_the_fingerprint(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    before = load_tiles(config(path), seed=0).fingerprint
    assert load_tiles(config(path), seed=5).fingerprint == before
    paint(tmp_path / "img" / "4.png", 99, size=(9, 9))
    assert load_tiles(config(path), seed=0).fingerprint != before


def test_a_replaced_file_of_the_same_size_changes_the_fingerprint(tmp_path: Path) -> None:
    for index in range(10):
        paint(tmp_path / f"{index}.bmp", index)
    table = [{"path": f"{index}.bmp", "label": index % 2} for index in range(10)]
    path = write_table(tmp_path / "t.csv", table)
    before = load_tiles(config(path), seed=0).fingerprint
    size = (tmp_path / "4.bmp").stat().st_size
    paint(tmp_path / "4.bmp", 99)
    assert (tmp_path / "4.bmp").stat().st_size == size
    assert load_tiles(config(path), seed=0).fingerprint != before


def test_the_error_for_a_missing_demo_world_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = "outputs/demo/world/tiles.csv"
    with pytest.raises(DataError, match=r"(?s)the table does not exist.*clipit demo writes this file"):
        load_tiles(TilesConfig.model_validate({"source": "table", "path": path}), seed=0)


def test_column_names_that_differ_only_in_spaces_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("path,label,split,group, label\n1.png,a,train,p,b\n")
    with pytest.raises(DataError, match="several columns have the same name: label"):
        load_tiles(config(path), seed=0)
    duplicated = pa.table([["1.png"], ["a"], ["b"]], names=["path", "label", "label "])
    pq.write_table(duplicated, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="several columns have the same name: label"):
        load_tiles(config(tmp_path / "t.parquet"), seed=0)


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    path.write_text("".join(f"{line},,\n" for line in path.read_text().splitlines()))
    assert len(load_tiles(config(path), seed=0)) == 12


def test_semicolons_and_decimal_commas_of_european_spreadsheets_are_read(tmp_path: Path) -> None:
    table = rows(tmp_path)
    plain = load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)
    lines = [";".join(table[0]), *(";".join(str(cell).replace("0.5", "0,5") for cell in row.values()) for row in table)]
    (tmp_path / "e.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    tiles = load_tiles(config(tmp_path / "e.csv"), seed=0)
    assert tiles.fingerprint == plain.fingerprint
    assert (tiles.mpp == 0.5).all()


@pytest.mark.parametrize("mark", [",", ";"])
def test_rows_without_a_value_are_skipped_and_counted(
    tmp_path: Path, mark: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = rows(tmp_path)
    plain = load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)
    lines = [mark.join(table[0]), *(mark.join(map(str, row.values())) for row in table)]
    lines[3:3] = [mark * 4]
    path = tmp_path / "e.csv"
    path.write_text("\r\n".join([mark * 4, *lines, *[mark * 4] * 20, mark * 9, ""]), encoding="utf-8-sig")
    with caplog.at_level("INFO"):
        tiles = load_tiles(config(path), seed=0)
    assert tiles.fingerprint == plain.fingerprint
    assert f"note: {path}: skipped 22 rows without a value: line 5, line 16, " in caplog.text
    path.write_text("\n".join([*lines, f"{mark}1{mark * 3}"]))
    with pytest.raises(DataError, match=r"1 row has no file name; the first is record 13 \(line 15\)"):
        load_tiles(config(path), seed=0)


@pytest.mark.parametrize("lines", ["1.png;a;train\n2.png;b", "1.png;a,b;train\n2.png;a;b;train", "1.png"])
def test_a_table_with_semicolons_in_only_some_rows_is_an_error(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"path;label;split\n{lines}\n")
    with pytest.raises(DataError, match=r"one column that contains ';': save the table as comma-separated \.csv"):
        load_tiles(config(path), seed=0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1.png;a;b;train\n2.png;b;train\n3.png;b;train", r"(?s)\(line 2\) has 4 fields, but the header has 3.*quote"),
        ('1.png;a;train\n"2.png;b;train', r"(?s)malformed row: .*row that starts on line 3.*close the quot"),
        ("", "the table has no rows"),
    ],
)
def test_invalid_rows_of_a_table_with_semicolons_are_errors(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(f"path;label;split\n{lines}\n")
    with pytest.raises(DataError, match=message):
        load_tiles(config(tmp_path / "t.csv"), seed=0)


@pytest.mark.parametrize(
    ("first", "rest"), [("sep=;", ""), ("sep=,", ""), ("sep=|", ", and save the table as comma-separated .csv")]
)
def test_a_first_line_that_declares_the_delimiter_is_an_error(tmp_path: Path, first: str, rest: str) -> None:
    (tmp_path / "t.csv").write_text(f"{first}\npath{first[-1]}label\n1.png{first[-1]}a\n")
    with pytest.raises(DataError, match=rf"the first line declares a delimiter: remove this line{rest}(,|$)") as error:
        load_tiles(config(tmp_path / "t.csv"), seed=0)
    assert bool(rest) == ("comma-separated" in str(error.value))


@pytest.mark.parametrize(
    ("header", "columns", "example"),
    [
        ("Datei,label", {}, "columns.path=NAME"),
        ("Datei,Befund", {}, "columns.path=NAME"),
        ("path,Befund", {}, "columns.label=diagnosis"),
        ("file_name,Befund", {}, "columns.path=file_name"),
        ("path,label", {"path": "Datei"}, "columns.path=NAME"),
        ("path,label", {"mpp": "um"}, "columns.mpp=NAME"),
    ],
)
def test_the_suggested_option_names_a_missing_column(
    tmp_path: Path, header: str, columns: dict[str, str], example: str
) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n1,a\n")
    with pytest.raises(DataError, match=rf"missing columns: (.|\n)*e\.g\. --tiles\.{example} "):
        load_tiles(config(tmp_path / "t.csv", columns=columns), seed=0)


def test_a_stray_quotation_mark_in_a_table_with_semicolons_is_an_error(tmp_path: Path) -> None:
    rows(tmp_path)
    path = tmp_path / "t.csv"
    path.write_text('path;label;note\nimg/0.png;a;"x\nimg/1.png;b;"\nimg/2.png;b;z\n')
    with pytest.raises(DataError, match=r"record 1 \(line 2\) contains 1 additional row in column note"):
        load_tiles(config(path), seed=0)


def test_line_numbers_match_those_of_a_text_editor(tmp_path: Path) -> None:
    rows(tmp_path)
    path = tmp_path / "t.csv"
    head = 'path,label,split,mpp,note\n\nimg/0.png,a,train,0.5,"two\nlines"\n\n\n'
    path.write_text(head + "img/1.png,b,train,half,\n")
    with pytest.raises(DataError, match=r"record 2 \(line 7\)"):
        load_tiles(config(path), seed=0)
    path.write_text(head + "img/1.png,b,train\n")
    with pytest.raises(DataError, match=r"record 2 \(line 7\) has 3 fields"):
        load_tiles(config(path), seed=0)
    path.write_text(head + "img/0.png,b,train,0.5,\n")
    with pytest.raises(DataError, match=r"record 1 \(line 3\), record 2 \(line 7\)"):
        load_tiles(config(path), seed=0)


@pytest.mark.parametrize("name", ["img/" + "x" * 300 + ".png", "img/0.png/1.png"])
def test_impossible_file_names_are_reported_as_missing(tmp_path: Path, name: str) -> None:
    table = rows(tmp_path)
    table[1] = table[1] | {"path": name}
    with pytest.raises(DataError, match="1 of 12 files in the table is missing"):
        load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)


@pytest.mark.parametrize("column", ["path", "label", "split", "group", "mpp"])
def test_the_error_for_a_quotation_mark_that_joins_rows_names_the_row(tmp_path: Path, column: str) -> None:
    table = [row | {"note": "ok"} for row in rows(tmp_path)]
    path = write_table(tmp_path / "t.csv", table)
    lines = path.read_text().splitlines()
    index = list(table[0]).index(column)
    opened, closed = lines[3].split(","), lines[8].split(",")
    opened[index], closed[index] = '"' + opened[index], closed[index] + '"'
    lines[3], lines[8] = ",".join(opened), ",".join(closed)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"record 3 \(line 4\) .*(line break|additional rows).* in column {column}"):
        load_tiles(config(path), seed=0)
    lines[8] = lines[8].replace('"', "")  # leave the quotation mark unclosed
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"(?s)malformed row: .* on line \d+.*t\.csv, row that starts on line 4"):
        load_tiles(config(path), seed=0)


def test_the_error_for_a_line_break_in_parquet_names_the_row(tmp_path: Path) -> None:
    table = [row | {"label": "a\nb" if index == 4 else "a"} for index, row in enumerate(rows(tmp_path))]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"row 5 contains a line break .* in column label"):
        load_tiles(config(tmp_path / "t.parquet"), seed=0)


@pytest.mark.parametrize("text", ["NA", "nan", "None", "NULL", "#N/A", "#REF!", "#NAME?"])
def test_missing_value_markers_are_neither_classes_nor_patients(tmp_path: Path, text: str) -> None:
    table = rows(tmp_path)
    for column in ("label", "group"):
        changed = [row | ({column: text} if index in (1, 3) else {}) for index, row in enumerate(table)]
        path = write_table(tmp_path / "t.csv", changed)
        with pytest.raises(
            DataError, match=rf"2 tiles have the {column} '{re.escape(text)}'.*record 2 \(line 3\), record 4"
        ):
            load_tiles(config(path), seed=0)
    labelled = [row | ({"label": text} if index in (1, 3) else {}) for index, row in enumerate(table)]
    tiles = load_tiles(config(write_table(tmp_path / "t.csv", labelled), classes=("0", "1", text)), seed=0)
    assert (tiles.truth == 2).sum() == 2


def test_groups_that_may_denote_an_unknown_patient_are_named(tmp_path: Path) -> None:
    texts = {0: "Unknown", 1: "Unknown", 2: "Unknown", 3: "-", 4: "-", 5: "?"}
    table = [
        row | {"split": "train", "group": texts.get(index, f"p{index}")} for index, row in enumerate(rows(tmp_path))
    ]
    notes = load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0).notes
    assert [note.partition(";")[0] for note in notes if "WARNING" in note] == [
        "WARNING: 2 tiles with the group '-' count as one patient or slide",
        "WARNING: 3 tiles with the group 'Unknown' count as one patient or slide",
    ]


def test_lower_case_none_is_a_class(tmp_path: Path) -> None:
    table = [row | ({"label": "none"} if index in (1, 3) else {}) for index, row in enumerate(rows(tmp_path))]
    assert "none" in load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0).classes


def test_null_nan_and_bytes_in_parquet_labels(tmp_path: Path) -> None:
    table = rows(tmp_path)
    numbers = [row | {"label": float("nan") if index < 2 else float(index % 2)} for index, row in enumerate(table)]
    pq.write_table(pa.Table.from_pylist(numbers), tmp_path / "t.parquet")
    tiles = load_tiles(config(tmp_path / "t.parquet"), seed=0)
    assert tiles.classes == ("0.0", "1.0")
    assert (tiles.truth == -1).sum() == 2
    named = [row | {"label": b" mucin" if index % 2 else b"stroma"} for index, row in enumerate(table)]
    pq.write_table(pa.Table.from_pylist(named), tmp_path / "t.parquet")
    assert load_tiles(config(tmp_path / "t.parquet"), seed=0).classes == ("mucin", "stroma")
    named[5]["label"] = b"\xff"
    pq.write_table(pa.Table.from_pylist(named), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 6 contains bytes that are not UTF-8 in column label"):
        load_tiles(config(tmp_path / "t.parquet"), seed=0)
    pq.write_table(pa.Table.from_pylist([row | {"label": [1, 2]} for row in table]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 1 contains a list"):
        load_tiles(config(tmp_path / "t.parquet"), seed=0)


def test_the_error_for_parquet_text_that_is_not_utf8_names_the_row(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(tmp_path))
    labels = pa.array([b"a"] * 6 + [b"\xe4"] + [b"b"] * 5, pa.binary())
    invalid = pa.StringArray.from_buffers(12, labels.buffers()[1], labels.buffers()[2])
    index = table.column_names.index("label")
    pq.write_table(table.set_column(index, "label", invalid), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="row 7 contains text that is not UTF-8 in column label"):
        load_tiles(config(tmp_path / "t.parquet"), seed=0)


def test_minus_one_among_integers_is_not_a_class(tmp_path: Path) -> None:
    table = [row | {"label": -1 if index in (0, 5) else index % 2} for index, row in enumerate(rows(tmp_path))]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    tiles = load_tiles(config(tmp_path / "t.parquet", validation_fraction=0.4), seed=0)
    assert tiles.classes == ("0", "1")
    assert (tiles.truth == -1).sum() == 2
    assert any("2 tiles with the label -1 treated as unlabelled" in note for note in tiles.notes)
    configured = load_tiles(config(tmp_path / "t.parquet", validation_fraction=0.4, classes=("-1", "0", "1")), seed=0)
    assert (configured.truth == 0).sum() == 2
    two_classes = [row | {"label": 1 if index % 2 else -1} for index, row in enumerate(table)]
    pq.write_table(pa.Table.from_pylist(two_classes), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="-1 may be a class or mark unlabelled tiles"):
        load_tiles(config(tmp_path / "t.parquet", validation_fraction=0.4), seed=0)
    assert (
        load_tiles(config(tmp_path / "t.parquet", validation_fraction=0.4, classes=("-1", "1")), seed=0).truth == 0
    ).sum() == 6


def test_minus_one_and_signed_one_may_be_classes(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "t.csv", [row | {"label": "+1" if index % 2 else "-1"} for index, row in enumerate(rows(tmp_path))]
    )
    with pytest.raises(
        DataError, match=r"(?s)-1 may be a class or mark unlabelled tiles.*tiles\.classes: \['-1', '\+1'\]"
    ):
        load_tiles(config(path), seed=0)
    assert load_tiles(config(path, classes=("-1", "+1")), seed=0).classes == ("-1", "+1")


def test_minus_one_among_integers_is_not_a_patient(tmp_path: Path) -> None:
    table = [row | {"group": -1 if index % 6 == 0 else index // 2} for index, row in enumerate(rows(tmp_path))]
    tiles = load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)
    assert (tiles.groups == "").sum() == 2
    assert any("2 tiles with the group -1" in note for note in tiles.notes)


def test_integer_patients_stored_as_decimals_are_read_as_integers(tmp_path: Path) -> None:
    numbers = [None if index % 6 == 0 else float(index // 2) for index in range(12)]
    table = [row | {"group": number} for row, number in zip(rows(tmp_path), numbers, strict=True)]
    patients_of_rows = ["" if number is None else f"{number:.0f}" for number in numbers]
    write_table(tmp_path / "t.csv", table)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        tiles = load_tiles(config(tmp_path / name), seed=0)
        expected = [patients_of_rows[int(name.split("/")[-1].removesuffix(".png"))] for name in tiles.ids.tolist()]
        assert tiles.groups.tolist() == expected


def test_a_folder_in_place_of_a_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)the table path is a folder.*tiles\.source=huggingface"):
        load_tiles(config(tmp_path), seed=0)


def packed(folder: Path, rename: Callable[[str], str]) -> str:
    """Zip the images of `rows` with renamed members."""
    with zipfile.ZipFile(folder / "tiles.zip", "w") as archive:
        for file in sorted((folder / "img").iterdir()):
            archive.writestr(rename(f"img/{file.name}"), file.read_bytes())
    return str(folder / "tiles.zip")


def test_zips_with_backslashes_or_decomposed_names_are_read(tmp_path: Path) -> None:
    table = rows(tmp_path)
    path = write_table(tmp_path / "t.csv", table)
    plain = load_tiles(config(path), seed=0)
    backslashes = packed(tmp_path, lambda name: name.replace("/", "\\"))
    assert load_tiles(config(path, images=backslashes), seed=0).read(7).tobytes() == plain.read(7).tobytes()
    accented = [row | {"path": str(row["path"]).replace("img/", "größe/")} for row in table]
    path = write_table(tmp_path / "t.csv", accented)
    decomposed = packed(tmp_path, lambda name: unicodedata.normalize("NFD", name.replace("img/", "größe/")))
    tiles = load_tiles(config(path, images=decomposed), seed=0)
    assert "größe/7.png" in tiles.ids
    assert tiles.read(7).tobytes() == plain.read(7).tobytes()


def test_decomposed_names_in_a_folder_are_read(tmp_path: Path) -> None:
    table = [row | {"path": str(row["path"]).replace("img/", "größe/")} for row in rows(tmp_path)]
    (tmp_path / "img").rename(tmp_path / unicodedata.normalize("NFD", "größe"))
    assert load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0).read(3).size == (8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name: name.upper(), "all missing files match if differences in letter case are corrected"),
        (lambda name: name.removesuffix(".png"), "differences in the suffix are corrected"),
        (lambda name: name.replace("png", "TIF"), "differences in the suffix are corrected"),
        (lambda name: f"tiles/{name}", "'tiles/' is removed from the start of the paths"),
        (lambda name: f"C:\\data\\{name}", "'C:/data/' is removed from the start of the paths"),
        (lambda name: name.removeprefix("img/"), "'img/' is prepended to the paths"),
        (lambda name: f"https://host/{name}", "the paths are URLs"),
        (lambda name: f"{Path(name).stem}/{Path(name).name}", "differences in the folders are corrected"),
        (lambda name: f"other-{Path(name).stem}.jpg", r"contains 12 files, such as img/0\.png"),
    ],
)
def test_missing_files_are_compared_with_those_that_exist(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    table = [row | {"path": change(str(row["path"]))} for row in rows(tmp_path)]
    path = write_table(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=message):
        load_tiles(config(path, images=packed(tmp_path, str)), seed=0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "img").rename(tmp_path / "folder" / "img")
    with pytest.raises(DataError, match=message):
        load_tiles(config(path, images=str(tmp_path / "folder")), seed=0)


def test_operating_system_files_are_not_listed_as_examples(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [row | {"path": f"x/{row['path']}"} for row in rows(tmp_path)])
    archive = packed(tmp_path, str)
    with zipfile.ZipFile(archive, "a") as writer:
        for name in ("__MACOSX/img/._0.png", ".DS_Store", "img/Thumbs.db"):
            writer.writestr(name, b"x")
    with pytest.raises(DataError, match=r"contains 12 files, such as img/0\.png, img/1\.png, img/10\.png;"):
        load_tiles(config(path, images=archive), seed=0)
    (tmp_path / "folder" / "__MACOSX").mkdir(parents=True)
    (tmp_path / "folder" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "folder" / "__MACOSX" / "._0.png").write_bytes(b"x")
    (tmp_path / "img").rename(tmp_path / "folder" / "img")
    with pytest.raises(DataError, match=r"contains 12 files, such as img/0\.png, img/1\.png, img/10\.png;"):
        load_tiles(config(path, images=str(tmp_path / "folder")), seed=0)


def test_ambiguous_file_names_without_their_folder_are_errors(tmp_path: Path) -> None:
    for index, name in enumerate(("A/1.png", "B/1.png")):
        paint(tmp_path / "img" / name, index)
    path = write_table(tmp_path / "t.csv", [{"path": "1.png", "label": label} for label in "ab"])
    with pytest.raises(
        DataError,
        match=r"(?s)1 file occurs more than once: 1\.png \(record \d.* \(line \d\).*prefix each name with its folder",
    ):
        load_tiles(config(path, images=str(tmp_path / "img")), seed=0)


def test_archives_among_the_files_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(packed(tmp_path, str), "inner.zip")
    with pytest.raises(DataError, match=r"12 of 12 files .* among them are archives: inner\.zip"):
        load_tiles(config(path, images=str(tmp_path / "outer.zip")), seed=0)


def test_one_long_cell_does_not_increase_the_memory_of_other_rows(tmp_path: Path) -> None:
    table = [row | {"id": "i" * 4000 if index == 3 else f"i{index}"} for index, row in enumerate(rows(tmp_path))]
    table[5]["group"] = "g" * 4000
    tiles = load_tiles(config(write_table(tmp_path / "t.csv", table), validation_fraction=0.4), seed=0)
    assert tiles.ids.itemsize <= 8 and tiles.groups.itemsize <= 8
    assert patients(tiles.groups, tiles.ids).itemsize <= 8
    groups = np.array([f"g{index}" for index in range(11)] + ["g" * 10**6], dtype=object)
    tracemalloc.start()
    try:
        assert "patient" in tiles_overview(replace(tiles, groups=groups), config(tmp_path / "t.csv"), "t")
        assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
    finally:
        tracemalloc.stop()


def test_links_to_missing_images_are_errors_or_quarantined(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    (tmp_path / "img" / "3.png").unlink()
    (tmp_path / "img" / "3.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"1 link points to files that do not exist: img/3\.png"):
        load_tiles(config(path), seed=0)
    assert load_tiles(config(path, unreadable="quarantine"), seed=0).quarantined == ("img/3.png",)


@pytest.mark.parametrize("closed", [4, 9])
def test_quotation_marks_that_join_rows_in_an_unread_column_are_errors(tmp_path: Path, closed: int) -> None:
    path = write_table(tmp_path / "t.csv", [row | {"note": "fine, really\nyes"} for row in rows(tmp_path)])
    assert len(load_tiles(config(path), seed=0)) == 12
    write_table(path, [row | {"note": "fine"} for row in rows(tmp_path)])
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace("fine", '"fine')
    lines[closed] = lines[closed].replace("fine", 'fine"')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"record 3 \(line 4\) contains {closed - 3} additional rows? in column note"):
        load_tiles(config(path), seed=0)


@pytest.mark.parametrize("index", [0, 1])
def test_quotation_marks_that_join_rows_in_a_leading_unread_column_are_errors(tmp_path: Path, index: int) -> None:
    table = [dict([*list(row.items())[:index], ("note", "fine"), *list(row.items())[index:]]) for row in rows(tmp_path)]
    path = write_table(tmp_path / "t.csv", table)
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace("fine", '"fine')
    lines[9] = lines[9].replace("fine", 'fine"')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"record 3 \(line 4\) contains 6 additional rows in column note"):
        load_tiles(config(path), seed=0)


@pytest.mark.parametrize("change", [{"\n": "\n\n"}, {"\n": "\r"}, {"img/5.png,": "img/5.png,x,"}])
def test_joined_rows_are_detected_among_empty_and_longer_lines(tmp_path: Path, change: dict[str, str]) -> None:
    path = write_table(tmp_path / "t.csv", [row | {"note": "fine"} for row in rows(tmp_path)])
    lines = path.read_text().splitlines()
    lines[3], lines[9] = lines[3].replace("fine", '"fine'), lines[9].replace("fine", 'fine"')
    text = "\n".join(lines) + "\n"
    for old, new in change.items():
        text = text.replace(old, new)
    path.write_bytes(text.encode())
    with pytest.raises(DataError, match=r"record 3 \(line \d\) contains 6 additional rows in column note"):
        load_tiles(config(path), seed=0)


@pytest.mark.parametrize("columns", [["path", "label", "group"], ["path", "label", "note"], ["label", "path"]])
def test_a_quotation_mark_in_the_header_that_joins_rows_is_an_error(tmp_path: Path, columns: list[str]) -> None:
    table = [{name: (row | {"note": "fine"})[name] for name in columns} for row in rows(tmp_path)]
    path = write_table(tmp_path / "t.csv", table)
    lines = path.read_text().splitlines()
    lines[0], lines[4] = lines[0].replace(f",{columns[-1]}", f',"{columns[-1]}'), lines[4] + '"'
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"the header contains 4 additional rows in name {len(columns)}\n"):
        load_tiles(config(path), seed=0)
    path.write_text("\n".join([lines[0].rpartition('"')[0] + '"grade\n(1, 2)"', *lines[1:4]]) + "\n")
    with pytest.raises(DataError, match="missing columns") if columns[-1] == "path" else nullcontext():
        read_tiles(config(path), hold_out=False)


@pytest.mark.parametrize(
    ("columns", "note"),
    [
        (["path"], "Adenocarcinoma\nsize 1,5 cm"),
        (["path"], "cells:\n3,000 per field"),
        (["path", "label"], "Microscopy:\nglands irregular, crowded, and atypical."),
        (["path", "label"], "size\n1,5 x 12,5 cm"),
        (["path", "label", "group"], "Report\none, two, three, four"),
    ],
)
def test_texts_with_line_breaks_and_commas_are_accepted(tmp_path: Path, columns: list[str], note: str) -> None:
    table = [{name: row[name] for name in columns} | {"note": note} for row in rows(tmp_path)]
    section = config(write_table(tmp_path / "t.csv", table), labels={"kind": "none"})
    assert len(read_tiles(section, hold_out=False)) == 12


@pytest.mark.parametrize("index", [0, 1])
def test_quotation_marks_that_join_rows_of_a_two_column_table_are_errors(tmp_path: Path, index: int) -> None:
    names = [row["path"] for row in rows(tmp_path)]
    section = config(tmp_path / "t.csv", labels={"kind": "none"})

    def write(note: str) -> None:
        cells = [[note, f"{name}"] if index == 0 else [f"{name}", note] for name in names]
        cells.insert(0, ["note", "path"] if index == 0 else ["path", "note"])
        section_path.write_text("".join(",".join(row) + "\n" for row in cells))

    section_path = tmp_path / "t.csv"
    write('"pink, cut\nonce"')
    assert len(read_tiles(section, hold_out=False)) == 12
    write("fine")
    lines = section_path.read_text().splitlines()
    lines[3], lines[5] = lines[3].replace("fine", '"fine'), lines[5].replace("fine", 'fine"')
    section_path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"record 3 \(line 4\) contains 2 additional rows in column note"):
        read_tiles(section, hold_out=False)


@pytest.mark.parametrize("value", ["NAN", "Null", "na", "#NV", "-1", "-1.0"])
@pytest.mark.parametrize("kind", ["label", "group"])
def test_other_missing_value_markers_among_names_are_errors(tmp_path: Path, value: str, kind: str) -> None:
    table = [row | {"label": "ab"[number % 2]} for number, row in enumerate(rows(tmp_path))]
    for number in (0, 5):
        table[number][kind] = value
    path = write_table(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=rf"2 tiles have the {kind} '{value}', which marks a missing value.*line 2"):
        load_tiles(config(path), seed=0)
    if kind == "label":
        assert load_tiles(config(path, classes=["a", "b", value]), seed=0).classes == ("a", "b", value)


def test_minus_one_among_decimals_is_not_a_class(tmp_path: Path) -> None:
    table = [row | {"label": -1.0 if index in (0, 5) else float(index % 2)} for index, row in enumerate(rows(tmp_path))]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    tiles = load_tiles(config(tmp_path / "t.parquet", validation_fraction=0.4), seed=0)
    assert tiles.classes == ("0.0", "1.0")
    assert (tiles.truth == -1).sum() == 2


@pytest.mark.parametrize(
    ("key", "one", "other"),
    [("label", "1", "1.0"), ("label", "a", '"a"'), ("group", "P9", "p9"), ("group", "9", "9.0")],
)
def test_different_spellings_of_a_class_or_patient_are_errors(tmp_path: Path, key: str, one: str, other: str) -> None:
    table = rows(tmp_path)
    table[0][key], table[11][key] = one, other
    with pytest.raises(DataError, match=f"almost the same name: .*{one}.*"):
        load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)


def test_groups_that_differ_only_in_separators_give_a_warning(tmp_path: Path) -> None:
    table = rows(tmp_path)
    for index, row in enumerate(table):
        row["group"] = f"A{'-' * (index % 4 < 2)}{index // 4}"
    tiles = load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)
    assert len({*tiles.groups}) == 6
    (note,) = [note for note in tiles.notes if "A-0" in note]
    assert note.startswith("WARNING: groups that differ only in separators or leading zeros")
    assert "'A-1' and 'A1'" in note


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("label", "\0dropped", "a null character"),
        ("path", "img/a\0b.png", "a null character"),
        ("label", "\x1b[31mred", r"a control character \(\\x1b\[31mred\)"),
        ("group", "P\u20287", "a control character"),
        ("label", "tu\tmour", r"a class contains a control character: 'tu\\tmour'"),
    ],
)
def test_a_control_character_in_a_cell_is_an_error(tmp_path: Path, key: str, value: str, problem: str) -> None:
    table = rows(tmp_path)
    table[3][key] = value
    with pytest.raises(DataError, match=problem):
        load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)


def test_two_zip_members_with_the_same_name_are_an_error(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", rows(tmp_path))
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for index in [*range(12), 5]:
            archive.write(tmp_path / "img" / f"{index}.png", f"img/{index}.png")
    with pytest.raises(DataError, match=r"1 name occurs more than once in the zip: img/5\.png"):
        load_tiles(config(path, images=str(tmp_path / "tiles.zip")), seed=0)


def test_patients_changed_by_a_spreadsheet_program_are_refused(tmp_path: Path) -> None:
    table = rows(tmp_path)
    table[2]["group"], table[5]["group"] = "1.2E+12", "3-Mar"
    with pytest.raises(DataError, match=r"2 values in column group: '1\.2E\+12' in .*line 4\), '3-Mar' in .*line 7\)"):
        load_tiles(config(write_table(tmp_path / "t.csv", table)), seed=0)


@pytest.mark.parametrize(("kind", "first"), [("float16", 2048), ("float32", 2**24), ("float64", 2**53)])
def test_groups_in_a_column_of_inexact_floats_are_refused(tmp_path: Path, kind: str, first: int) -> None:
    import datasets

    for number in range(4):
        paint(tmp_path / "set" / f"{number}.png", number)
    names = [f"{number}.png" for number in range(4)]
    for start, is_exact in ((first - 4, True), (first, False)):
        groups = pa.array(np.arange(start, start + 4).astype(kind))
        table = pa.table({"path": names, "file_name": names, "label": ["a", "b"] * 2, "group": groups})
        pq.write_table(table, tmp_path / "set" / "metadata.parquet")
        images = [{"path": str(tmp_path / "set" / name), "bytes": None} for name in names]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        saved = datasets.Dataset.from_dict({"image": images, "label": ["a", "b"] * 2}, features=features)
        saved.add_column("group", groups).save_to_disk(str(tmp_path / f"saved-{start}"))
        for options in (
            {"source": "table", "path": str(tmp_path / "set/metadata.parquet")},
            {"source": "huggingface", "path": str(tmp_path / "set")},
            {"source": "huggingface", "path": str(tmp_path / f"saved-{start}")},
            {"source": "huggingface", "path": str(tmp_path / f"saved-{start}"), "streaming": True},
        ):
            section = TilesConfig.model_validate(options)
            if is_exact:
                tiles = read_tiles(section, hold_out=False, root=tmp_path / "kept")
                assert tiles.groups.tolist() == [str(start + number) for number in range(4)]
            else:
                with pytest.raises(DataError, match=r"stores whole numbers exactly only up to"):
                    read_tiles(section, hold_out=False, root=tmp_path / "kept")


def test_absolute_paths_are_refused_if_an_image_folder_is_configured(tmp_path: Path) -> None:
    table = rows(tmp_path / "old")
    for row in table:
        row["path"] = str(tmp_path / "old" / str(row["path"]))
    path = write_table(tmp_path / "t.csv", table)
    assert len(read_tiles(config(path))) == len(table)
    (tmp_path / "new").mkdir()
    with pytest.raises(DataError, match=r"paths are absolute, so tiles.images has no effect on them: .*0"):
        read_tiles(config(path, images=str(tmp_path / "new")))


@pytest.mark.parametrize("label", ["2-Mar", "02.03.2024", "2024-03-02", "1.20E+11", "03:04:00"])
def test_labels_changed_by_a_spreadsheet_program_are_refused(tmp_path: Path, label: str) -> None:
    table = rows(tmp_path)
    for row in table[::2]:
        row["label"] = label
    path = write_table(tmp_path / "t.csv", table)
    expected = rf"probably changed 6 values in column label: '{re.escape(label)}' in record 1"
    with pytest.raises(DataError, match=expected):
        read_tiles(config(path))
    others = sorted({str(row["label"]) for row in table} - {label})
    assert label in read_tiles(config(path, classes=(label, *others))).classes
    assert read_tiles(config(path, class_map=dict.fromkeys((label, *others), "a"))).classes == ("a",)
