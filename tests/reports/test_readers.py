"""Readers: every format gives the same reports, every mistake a message with its place."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipit.config.run import ReportsConfig
from clipit.errors import ClipitError, ConfigError, DataError
from clipit.reports.readers import read_reports

TEXTS = ["Colon with carcinoma.", 'Café "glands",\nsecond line', "Liver without tumor."]
ROWS = [
    {"body": text, "case": f"c{i}", "site": ["colon", None, "liver"][i], "patient": f"p{i % 2}"}
    for i, text in enumerate(TEXTS)
]
COLUMNS = {"text_column": "body", "id_column": "case", "organ_column": "site", "group_column": "patient"}


def read(path: Path, **keys: Any) -> Any:
    return read_reports(ReportsConfig(path=str(path), **keys))


def write_table(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    found = read(write_table(tmp_path / f"reports.{suffix}"), **COLUMNS)
    assert [report.text for report in found.reports] == TEXTS
    assert [report.report_id for report in found.reports] == ["c0", "c1", "c2"]
    assert [report.organ for report in found.reports] == ["colon", None, "liver"]
    assert [report.group for report in found.reports] == ["p0", "p1", "p0"]
    assert found.problems == () and found.empty == 0


def test_lines_get_ids_from_their_content(tmp_path: Path) -> None:
    path = tmp_path / "reports.txt"
    path.write_bytes(b"\xef\xbb\xbfColon.\r\n\r\nLiver.\nColon.\n")
    first = read(path)
    assert [report.text for report in first.reports] == ["Colon.", "Liver.", "Colon."]
    colon, liver, again = (report.report_id for report in first.reports)
    assert again == f"{colon}-2" and len(colon) == 12
    assert first.empty == 1 and "line 2: empty report" in first.problems[0]
    path.write_text("Liver.\nColon.\n", encoding="utf-8")
    assert {report.report_id for report in read(path).reports} == {colon, liver}


def test_folder_and_zip_of_texts_agree(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_text("Liver.", encoding="utf-8")
    (folder / "deep" / "a.TXT").write_text("Colon.\nTumor.", encoding="utf-8")
    (folder / "scan.pdf").write_bytes(b"%PDF")
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/._b.txt", b"\xff")
    from_folder, from_zip = read(folder, format="texts"), read(tmp_path / "texts.zip")
    assert [(r.report_id, r.text) for r in from_folder.reports] == [("b", "Liver."), ("deep/a", "Colon.\nTumor.")]
    assert from_zip.reports == from_folder.reports
    assert "1 other files skipped" in from_folder.problems[0]
    assert from_zip.fingerprint == from_folder.fingerprint


def test_huggingface_folders(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "parts")
    for folder in ("one", "parts"):
        assert [report.text for report in read(tmp_path / folder, **COLUMNS).reports] == TEXTS
    assert len(read(tmp_path / "parts", **COLUMNS, split="test").reports) == 1
    with pytest.raises(DataError, match=r"no split 'validation'; the splits are: 'train', 'test'"):
        read(tmp_path / "parts", **COLUMNS, split="validation")
    with pytest.raises(DataError, match=r"no column 'text'; the columns are: 'body'"):
        read(tmp_path / "one")


def test_huggingface_folder_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    write_table(tmp_path / "tables" / "train.parquet")
    assert [report.text for report in read(tmp_path / "tables", **COLUMNS).reports] == TEXTS


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = write_table(tmp_path / "reports.csv")
    before = read(path, **COLUMNS).fingerprint
    assert read(path, **COLUMNS).fingerprint == before
    for key in ("body", "site", "patient"):
        changed = [dict(ROWS[0], **{key: "other"}), *ROWS[1:]]
        assert read(write_table(tmp_path / "reports.csv", changed), **COLUMNS).fingerprint != before


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_wrong_column_names_those_that_exist(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=r"no column 'text'; the columns are: 'body', 'case', 'site', 'patient'"):
        read(write_table(tmp_path / f"reports.{suffix}"))


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_text_in_another_encoding_is_located(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"reports.{suffix}"
    lines = {"txt": "ok\nCaf\xe9\n", "csv": "text\nCaf\xe9\n", "jsonl": '{"text": "a"}\n{"text": "\xe9"}\n'}[suffix]
    path.write_bytes(lines.encode("latin-1"))
    place = r"line 2, byte 11" if suffix == "jsonl" else r"line 2, byte 4"
    with pytest.raises(DataError, match=rf"not valid utf-8\n.*reports\.{suffix}, {place} \(0xe9\)\n.*latin-1"):
        read(path)
    assert "\xe9" in read(path, encoding="latin-1").reports[-1].text


def test_undecodable_file_of_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", b"\xef\xbb\xbfok\nno\xe9")
    with pytest.raises(DataError, match=r"texts\.zip, a\.txt, line 2, byte 3 \(0xe9\)"):
        read(tmp_path / "texts.zip")


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("empty.txt", "", {}, "empty corpus"),
        ("blank.txt", "\n \n--\n", {}, r"empty corpus: no report with text \(3 empty reports\)"),
        ("head.csv", "text\n", {}, "empty corpus"),
        ("nothing.csv", "", {}, "the columns are: none"),
        ("cells.csv", "id,text\n1,colon, liver\n", {}, r"record 1 \(line 2\) has 3 fields, the header 2"),
        ("quote.csv", 'text\n"colon\n', {}, r"broken row"),
        (
            "twice.csv",
            "id,text\n1,a\n1,b\n",
            {"id_column": "id"},
            r"two reports have the id '1'\n.*line 2 and .*line 3",
        ),
        ("noid.csv", "id,text\n,a\n", {"id_column": "id"}, r"no id in column 'id'\n.*line 2"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n', {}, r"invalid JSON: .*\n.*line 2"),
        ("list.jsonl", "[1]\n", {}, "not a JSON object"),
        ("number.jsonl", '{"text": 3}\n', {}, "holds int, not text"),
        ("bad.parquet", "PAR1", {}, "cannot read this parquet file"),
        ("bad.zip", "PK", {}, "cannot read this zip file"),
        ("reports.docx", "x", {}, "cannot infer the format"),
    ],
)
def test_bad_input(tmp_path: Path, name: str, content: str, keys: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, **keys)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["gone.txt", "gone.csv", "gone"])
def test_missing_source(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file or folder of reports"):
        read(tmp_path / name)


def test_other_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="empty corpus"):
        read(tmp_path)
    with pytest.raises(DataError, match="the path is a folder"):
        read(tmp_path, format="csv")
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown encoding 'utf-9'"):
        read(tmp_path / "a.txt", encoding="utf-9")
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.load_dataset", lambda path: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(ClipitError, match=r"cannot load this data set: ConnectionError: offline\n.*hf:nobody/none"):
        read_reports(ReportsConfig(path="hf:nobody/none"))


@pytest.mark.parametrize("header", ["text,id,text", "text,id, text"])
def test_a_column_that_stands_there_twice(tmp_path: Path, header: str) -> None:
    path = tmp_path / "reports.csv"
    path.write_text(f"{header}\nColon.,1,Liver.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)several columns have the same name: text.*reports\.csv"):
        read(path)
    twice = pa.table([["Colon."], ["1"], ["Liver."]], names=header.split(","))
    pq.write_table(twice, tmp_path / "reports.parquet")
    with pytest.raises(DataError, match=r"(?s)several columns have the same name: text.*reports\.parquet"):
        read(tmp_path / "reports.parquet")


def test_columns_without_a_name_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("text,,\nColon.,,\n", encoding="utf-8")
    assert [report.text for report in read(path).reports] == ["Colon."]


def test_a_table_with_another_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    for mark, said in ((";", "';'"), ("\t", "tabs")):
        path.write_text(f"id{mark}text\n1{mark}Colon, with carcinoma.\n", encoding="utf-8")
        with pytest.raises(DataError, match=rf"one column that holds {said}: save the table with commas, or as \.tsv"):
            read(path)
    path.write_text("a;b\nColon.\n", encoding="utf-8")
    assert [report.text for report in read(path, text_column="a;b").reports] == ["Colon."]


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["reports.csv", "reports.txt", "reports.jsonl"])
def test_utf_16_is_recognised(tmp_path: Path, codec: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(("\ufeff" + "text\nColon.\n").encode(codec))
    with pytest.raises(DataError, match=r"utf-16 \(from its byte order mark\) \(--reports\.encoding=utf-16\)"):
        read(path)
    if name != "reports.jsonl":
        assert read(path, encoding="utf-16").reports[-1].text == "Colon."
