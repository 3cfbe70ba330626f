"""Report readers: all formats give the same reports, and errors name the file and row."""

import csv
import json
import os
import shutil
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
    corpus = read(write_table(tmp_path / f"reports.{suffix}"), **COLUMNS)
    assert [report.text for report in corpus.reports] == TEXTS
    assert [report.report_id for report in corpus.reports] == ["c0", "c1", "c2"]
    assert [report.organ for report in corpus.reports] == ["colon", None, "liver"]
    assert [report.group for report in corpus.reports] == ["p0", "p1", "p0"]
    assert corpus.problems == () and corpus.empty == 0


def test_ids_of_text_lines_are_derived_from_their_content(tmp_path: Path) -> None:
    path = tmp_path / "reports.txt"
    path.write_bytes(b"\xef\xbb\xbfColon.\r\n\r\nLiver.\nColon.\n")
    first = read(path)
    assert [report.text for report in first.reports] == ["Colon.", "Liver.", "Colon."]
    colon, liver, duplicate = (report.report_id for report in first.reports)
    assert duplicate == f"{colon}-2" and len(colon) == 12
    assert first.empty == 1 and "line 2: empty report" in first.problems[0]
    path.write_text("Liver.\nColon.\n", encoding="utf-8")
    assert {report.report_id for report in read(path).reports} == {colon, liver}


def test_folder_and_zip_of_texts_give_the_same_reports(tmp_path: Path) -> None:
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
    assert "1 other file skipped" in from_folder.problems[0]
    assert from_zip.fingerprint == from_folder.fingerprint


def test_hugging_face_folders(tmp_path: Path) -> None:
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


def test_class_indices_of_hugging_face_data_sets_become_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["mucin", "colon"])
    features = datasets.Features({"text": datasets.Value("string"), "l": names, "g": datasets.Value("float64")})
    rows = [{"text": f"case {i}", "l": i - 1, "g": [1.5, float("nan"), None][i]} for i in range(3)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "set")
    corpus = read(tmp_path / "set", label_column="l", group_column="g").reports
    assert [(r.label, r.group) for r in corpus] == [(None, "1.5"), ("mucin", None), ("colon", None)]


def test_hugging_face_folder_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    write_table(tmp_path / "tables" / "train.parquet")
    assert [report.text for report in read(tmp_path / "tables", **COLUMNS).reports] == TEXTS


@pytest.mark.parametrize("format_name", ["auto", "parquet"])
def test_missing_shards_of_a_table_are_listed(
    format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    write_table(tmp_path / "tables" / "train-00001-of-00002.parquet")
    corpus = read(tmp_path / "tables", format=format_name, **COLUMNS)
    assert any("1 file seems to be missing" in text and "train-00000-of-00002" in text for text in corpus.problems)


def test_tables_ignored_because_of_split_names_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If one file is named after a split, the datasets package ignores files that are not."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "tables").mkdir()
    for name in ("train.parquet", "more.parquet"):
        write_table(tmp_path / "tables" / name)
    corpus = read(tmp_path / "tables", **COLUMNS)
    assert len(corpus.reports) == len(ROWS)
    assert any("1 file is not read" in text and "more.parquet" in text for text in corpus.problems)
    (tmp_path / "tables" / "train.parquet").rename(tmp_path / "tables" / "b.parquet")
    (tmp_path / "tables" / "more.parquet").unlink()
    assert not read(tmp_path / "tables", **COLUMNS).problems


def test_fingerprint_depends_on_the_content(tmp_path: Path) -> None:
    path = write_table(tmp_path / "reports.csv")
    before = read(path, **COLUMNS).fingerprint
    assert read(path, **COLUMNS).fingerprint == before
    for key in ("body", "site", "patient"):
        changed = [dict(ROWS[0], **{key: "other"}), *ROWS[1:]]
        assert read(write_table(tmp_path / "reports.csv", changed), **COLUMNS).fingerprint != before


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_unknown_column_error_lists_the_columns(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=r"no column 'text'; the columns are: 'body', 'case', 'site', 'patient'"):
        read(write_table(tmp_path / f"reports.{suffix}"))


def test_error_for_a_missing_header_does_not_quote_a_whole_report(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    text = "Adenocarcinoma of the colon. " * 40
    path.write_text(f"TCGA-AA-3500,{text}\nTCGA-AA-3501,Benign.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)no column 'text'.*--reports\.columns='\[\"c1\", \"text\"\]'") as error:
        read(path)
    assert len(str(error.value)) < 400
    assert len(read(path, columns=("c1", "text")).reports) == 2


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_undecodable_bytes_are_located(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"reports.{suffix}"
    lines = {"txt": "ok\nCaf\xe9\n", "csv": "text\nCaf\xe9\n", "jsonl": '{"text": "a"}\n{"text": "\xe9"}\n'}[suffix]
    path.write_bytes(lines.encode("latin-1"))
    place = r"line 2, byte 11" if suffix == "jsonl" else r"line 2, byte 4"
    with pytest.raises(DataError, match=rf"not valid utf-8\n.*reports\.{suffix}, {place} \(0xe9\)\n.*cp1252"):
        read(path)
    assert "\xe9" in read(path, encoding="latin-1").reports[-1].text


def test_undecodable_zip_member_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a.txt", b"\xef\xbb\xbfok\nno\xe9")
    with pytest.raises(DataError, match=r"texts\.zip, a\.txt, line 2, byte 3 \(0xe9\)"):
        read(tmp_path / "texts.zip")


@pytest.mark.parametrize(
    ("name", "content", "keys", "message"),
    [
        ("empty.txt", "", {}, "empty corpus"),
        ("blank.txt", "\n \n--\n", {}, r"empty corpus: no report contains text \(3 empty reports; read in the"),
        ("head.csv", "text\n", {}, "empty corpus"),
        ("nothing.csv", "", {}, "the columns are: none"),
        ("cells.csv", "id,text\n1,colon, liver\n", {}, r"record 1 \(line 2\) has 3 fields, but the header has 2"),
        ("quote.csv", 'text\n"colon\n', {}, r"malformed row"),
        (
            "twice.csv",
            "id,text\n1,a\n1,b\n",
            {"id_column": "id"},
            r"two reports have the id '1'\n.*line 2 and .*line 3",
        ),
        ("noid.csv", "id,text\n,a\n", {"id_column": "id"}, r"missing id in column 'id'\n.*line 2"),
        ("bad.jsonl", '{"text": "a"}\n{"text": \n', {}, r"invalid JSON: .*\n.*line 2"),
        ("list.jsonl", "[1]\n", {}, "not a JSON object"),
        ("number.jsonl", '{"text": 3}\n', {}, "contains int, not text"),
        ("bad.parquet", "PAR1", {}, "cannot read this parquet file"),
        ("bad.zip", "PK", {}, "cannot read this zip file"),
        ("reports.text", "x", {}, "cannot infer the format"),
        ("reports.docx", "x", {}, r"\.docx files are not plain text(.|\n)*pandoc -t plain \(\.docx"),
        ("reports.PDF", "x", {"format": "lines"}, r"\.pdf files are not plain text(.|\n)*pdftotext \(\.pdf\)"),
        ("reports.odt", "PK\3\4", {"format": "xlsx"}, r"\.odt files are not plain text"),
        ("reports.doc", "x", {}, r"\.doc files are not plain text(.|\n)*--convert-to txt \(\.doc\)"),
        ("reports.txt", "%PDF-1.4 x", {}, r"is a PDF file, not plain text(.|\n)*pdftotext"),
        ("reports.txt", "PK\3\4x", {}, r"is a zip file or an Office document(.|\n)*pandoc"),
        ("reports.csv", "PK\3\4x", {}, r"is a zip file or an Office document(.|\n)*pandoc"),
        ("reports.txt", "PAR1\x15\0x", {}, r"is a parquet file(.|\n)*fix: name the file \.parquet"),
        ("reports.tsv", "PAR1\x15\0x", {}, r"is a parquet file(.|\n)*fix: name the file \.parquet"),
        ("reports.txt", "<html><p>Colon.", {}, r"is an HTML page, not plain text(.|\n)*pandoc"),
        ("deep.jsonl", '{"text": ' + "[" * 100_000, {}, "invalid JSON"),
        ("twice.jsonl", '{"text": "a", "text": "b"}\n', {}, r"invalid JSON: repeated key 'text'\n.*line 1"),
        ("half.jsonl", '{"text": "a", "id": "\\ud800"}\n', {"id_column": "id"}, "not valid Unicode"),
        ("joined.csv", 'id,text\n"1,a\n2",b\n', {"id_column": "id"}, r"column 'id' contains a line break"),
        ("joined.csv", 'g,text\n"1,a\n2",b\n', {"group_column": "g"}, r"column 'g' contains a line break"),
        ("rounded.jsonl", '{"text": "a", "g": "1.2E+11"}\n', {"group_column": "g"}, "column group: .*in .*line 1"),
        ("list.jsonl", '{"text": "a", "g": ["1"]}\n', {"group_column": "g"}, "column 'g' contains a list"),
        ("na.csv", "id,text\nNA,a\n", {"id_column": "id"}, r"missing id in column 'id' \('NA'\)\n.*line 2"),
        ("sep.csv", "sep=;\ntext;id\n", {}, "first line declares a delimiter"),
        ("pointer.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {}, "Git LFS pointer"),
        ("pointer.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {}, "git lfs pull"),
        ("pointer.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {}, "git lfs pull"),
        ("pointer.zip", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", {}, "git lfs pull"),
        ("wide.txt", "C\0o\0l\0o\0n\0", {}, "probably utf-16-le"),
    ],
)
def test_invalid_input_is_an_error(tmp_path: Path, name: str, content: str, keys: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path / name, **keys)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["gone.txt", "gone.csv", "gone"])
def test_missing_source_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "Gone.csv").touch()
    with pytest.raises(DataError, match=r"no such report file or folder; .* contains Gone\.csv\n"):
        read(tmp_path / name)


def test_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="empty corpus"):
        read(tmp_path)
    with pytest.raises(DataError, match="the path is a folder"):
        read(tmp_path, format="csv")
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown text encoding 'utf-9'"):
        read(tmp_path / "a.txt", encoding="utf-9")
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.load_dataset", lambda path: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(ClipitError, match=r"cannot load this data set: ConnectionError: offline\n.*hf:nobody/none"):
        read_reports(ReportsConfig(path="hf:nobody/none"))


@pytest.mark.parametrize("header", ["text,id,text", "text,id, text"])
def test_duplicate_column_names_are_an_error(tmp_path: Path, header: str) -> None:
    path = tmp_path / "reports.csv"
    path.write_text(f"{header}\nColon.,1,Liver.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)several columns have the same name: text.*reports\.csv"):
        read(path)
    twice = pa.table([["Colon."], ["1"], ["Liver."]], names=header.split(","))
    pq.write_table(twice, tmp_path / "reports.parquet")
    with pytest.raises(DataError, match=r"(?s)several columns have the same name: text.*reports\.parquet"):
        read(tmp_path / "reports.parquet")


def test_columns_without_a_name_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("text,,\nColon.,,\n", encoding="utf-8")
    assert [report.text for report in read(path).reports] == ["Colon."]


@pytest.mark.parametrize("name", ["reports.csv", "reports.tsv"])
def test_empty_rows_are_skipped(tmp_path: Path, name: str) -> None:
    path, mark = tmp_path / name, "\t" if name.endswith("tsv") else ","
    lines = ["id,text,organ", "1,Colon.,colon", ",,", "2,Rectum.,colon", "3,,colon", ",,", ",,,,"]
    path.write_text("\n".join(lines).replace(",", mark), encoding="utf-8")
    corpus = read(path, id_column="id")
    assert [(report.report_id, report.text) for report in corpus.reports] == [("1", "Colon."), ("2", "Rectum.")]
    assert corpus.empty == 1  # the report with id 3
    path.write_text('text\nColon.\n""\n', encoding="utf-8")
    assert read(path).empty == 1


def test_other_delimiters_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("id\ttext\n1\tColon, with carcinoma.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"one column that contains tabs: save the table as comma-separated \.csv"):
        read(path)
    path.write_text("id;text\n1;Colon, with carcinoma.\n", encoding="utf-8")
    assert [(report.report_id, report.text) for report in read(path, id_column="id").reports] == [
        ("1", "Colon, with carcinoma.")
    ]
    path.write_text("a;b\nColon.\n", encoding="utf-8")
    assert [report.text for report in read(path, text_column="a;b").reports] == ["Colon."]


@pytest.mark.parametrize("codec", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["reports.csv", "reports.txt", "reports.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "utf-16"])
def test_a_byte_order_mark_overrides_the_encoding(tmp_path: Path, codec: str, name: str, encoding: str) -> None:
    path = tmp_path / name
    text = '{"text": "Größe 2 mm."}\n' if name.endswith("jsonl") else "text\nGröße 2 mm.\n"
    path.write_bytes(f"\ufeff{text}".encode(codec))
    assert read(path, encoding=encoding).reports[-1].text == "Größe 2 mm."
    assert not read(path, encoding=encoding).problems
    path.write_bytes(path.read_bytes()[:-1])  # truncates a character of two or four bytes
    if codec.startswith(("utf-16", "utf-32")):
        with pytest.raises(DataError, match=rf"not valid {codec[:6]}\n.*\n.*copy or export the file again"):
            read(path, encoding=encoding)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("ending", ["", "."])
def test_a_folder_of_files_in_utf_8_and_utf_16(tmp_path: Path, zipped: bool, ending: str) -> None:
    """UTF-8 text of even length also decodes as UTF-16, into Chinese characters."""
    texts = {"a.txt": f"Adenoma in situ{ending}".encode(), "b.txt": f"Skin, no naevu{ending}".encode("utf-16")}
    path = tmp_path / ("reports.zip" if zipped else "reports")
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in texts.items():
                archive.writestr(name, data)
    else:
        path.mkdir()
        for name, data in texts.items():
            (path / name).write_bytes(data)
    assert [report.text for report in read(path).reports] == [f"Adenoma in situ{ending}", f"Skin, no naevu{ending}"]
    with pytest.raises(DataError, match=r"a\.txt\n.*--reports\.encoding=utf-8\)") as caught:
        read(path, encoding="utf-16")
    assert "UTF-8 text, not utf-16" in str(caught.value)


def test_utf_16_without_a_byte_order_mark_is_read_if_configured(tmp_path: Path) -> None:
    for text in ("Größe 2 mm.\n", "中分化腺癌浸潤肌層。\n"):
        (tmp_path / "a.txt").write_bytes(text.encode("utf-16-le"))
        assert [report.text for report in read(tmp_path / "a.txt", encoding="utf-16-le").reports] == [text.strip()]


@pytest.mark.parametrize("encoding", ["rot13", "base64", "zip", "undefined", "utf\0"])
def test_codecs_that_are_not_text_encodings_are_an_error(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown text encoding"):
        read(tmp_path / "a.txt", encoding=encoding)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"caf\xe9", "--reports.encoding=cp1252"),
        (b"\x93caf\xe9\x94", "--reports.encoding=cp1252"),
        (b"\x93caf\xe9\x81", "to the encoding in which the file was written"),
    ],
)
def test_the_suggested_encoding_keeps_all_letters(tmp_path: Path, data: bytes, hint: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=hint):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("mark", ["NA", "nan", "None", "NULL", "#N/A", "-1"])
def test_missing_values_are_not_patients_organs_or_classes(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "reports.csv"
    path.write_text(f"text,g,o,l\na colon,1,{mark},2\na liver,{mark},3,{mark}\na lung,2,4,4\nNA,3,5,5\n")
    corpus = read(path, group_column="g", organ_column="o", label_column="l")
    assert [(r.group, r.organ, r.label) for r in corpus.reports] == [
        ("1", None, "2"),
        (None, "3", None),
        ("2", "4", "4"),
    ]
    assert corpus.empty == 1
    assert f"1 report without a value for reports.label_column ({mark}: 1)" in corpus.problems
    assert sum("without a value" in problem for problem in corpus.problems) == 3


def test_reports_of_an_unknown_patient_trigger_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("text,g\na colon,1\na liver,unknown\na lung,unknown\n")
    warning = "WARNING: 2 reports with the group 'unknown' count as one patient or slide"
    assert any(problem.startswith(warning) for problem in read(path, group_column="g").problems)


def test_minus_one_is_missing_beside_names_and_ambiguous_beside_one_number(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("text,l\na colon,-1\na liver,x\n")
    corpus = read(path, label_column="l")
    assert [r.label for r in corpus.reports] == [None, "x"]
    assert corpus.problems == ("1 report without a value for reports.label_column (-1: 1)",)
    path.write_text("text,l\na colon,-1\na liver,1\n")
    with pytest.raises(DataError, match=r"-1 may be a value or mark missing values\n.*reports\.label_column"):
        read(path, label_column="l")


def test_minus_one_is_missing_in_a_column_of_decimals(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_text("text,g,l\na colon,1.0,2.0\na liver,-1.0,-1.0\na lung,2.0,4.0\n")
    corpus = read(path, group_column="g", label_column="l")
    assert [(r.group, r.label) for r in corpus.reports] == [("1", "2.0"), (None, None), ("2", "4.0")]
    path.write_text("text,l\na colon,-1.0\na liver,1.0\n")
    with pytest.raises(DataError, match=r"values are -1\.0, 1\.0: -1 may be a value or mark missing values"):
        read(path, label_column="l")


def test_missing_values_in_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["a colon", "a liver"], "g": [1.5, float("nan")], "l": [b"mucin", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    corpus = read(tmp_path / "a.parquet", group_column="g", label_column="l").reports
    assert [(r.group, r.label) for r in corpus] == [("1.5", "mucin"), (None, None)]


def test_invalid_utf_8_in_parquet_is_an_error(tmp_path: Path) -> None:
    cells = pa.array([b"Adenoma."] * 2000 + [b"caf\xe9"], pa.binary())
    wrong = pa.StringArray.from_buffers(len(cells), *cells.buffers()[1:])
    pq.write_table(pa.table({"text": wrong}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"the text is not valid UTF-8(.|\n)*a\.parquet, row 2001\n"):
        read(tmp_path / "a.parquet")


def test_a_column_name_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS, "stage": TEXTS}), tmp_path / "a.parquet", store_schema=False)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"stage", b"st\xffge"))
    with pytest.raises(DataError, match=r"the text is not valid UTF-8(.|\n)*a\.parquet\n"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", ["date32", "timestamp", "duration"])
@pytest.mark.parametrize("folder", [False, True])
def test_dates_that_python_cannot_represent_are_an_error(tmp_path: Path, kind: str, folder: bool) -> None:
    types = {"date32": pa.date32(), "timestamp": pa.timestamp("ms"), "duration": pa.duration("s")}
    numbers = pa.array([0, 10_000_000 if kind == "date32" else 10**15], pa.int32() if kind == "date32" else pa.int64())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a colon", "a liver"], "g": numbers.cast(types[kind])}), path)
    if folder:
        pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"cannot read a date or duration(.|\n)* row"):
        read(tmp_path if folder else path, group_column="g")


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "table.parquet"
    folder.mkdir()
    for i, row in enumerate(ROWS):
        write_table(folder / f"part-{i}.parquet", [row])
    (folder / "_SUCCESS").touch()
    assert [report.text for report in read(folder, format="parquet", **COLUMNS).reports] == TEXTS
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no parquet file"):
        read(tmp_path / "none", format="parquet")


def test_links_and_odd_names_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "b.txt").write_text("Liver.")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.TXT").write_text("Colon.")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "up").symlink_to(folder)
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("Lung.")
    corpus = read(folder)
    assert [report.report_id for report in corpus.reports] == ["a", "linked/b"]
    assert corpus.problems[0].endswith("1 link to a missing file skipped: gone.txt")
    assert "1 file whose name is not UTF-8 skipped: caf" in corpus.problems[1]
    assert corpus.problems[2].endswith("1 link to a folder also read elsewhere skipped: up")


def test_an_empty_corpus_lists_its_problems(tmp_path: Path) -> None:
    (tmp_path / "scan.jpg").write_bytes(b"x")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"empty corpus(.|\n)*gone\.txt(.|\n)*such as scan\.jpg(.|\n)*only \.txt files"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("text\nNA\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"correct reports\.text_column"):
        read(tmp_path / "a.csv")


def test_report_files_that_differ_only_in_the_case_of_the_suffix_are_an_error(tmp_path: Path) -> None:
    for name in ("a.txt", "a.TXT"):
        (tmp_path / name).write_text("Tubular adenoma.", encoding="utf-8")
    with pytest.raises(DataError, match=r"two reports have the id 'a'(?s:.*)a\.TXT(?s:.*)fix: rename one of the files"):
        read(tmp_path)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("format_name", ["auto", "texts", "tcga"])
def test_a_folder_of_documents_must_be_converted(tmp_path: Path, zipped: bool, format_name: str) -> None:
    for name in ("a.pdf", "b.docx"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    path = Path(shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")) if zipped else tmp_path / "set"
    with pytest.raises(DataError, match=r"no \.txt files, but 2 documents such as a\.pdf(.|\n)*pdftotext \(\.pdf\)"):
        read(path, format=format_name)


def test_git_lfs_pointer_in_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(DataError, match=r"Git LFS pointer(.|\n)*a\.txt(.|\n)*git lfs pull"):
        read(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_zips_name_the_member(tmp_path: Path, method: int) -> None:
    path = tmp_path / "texts.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("good.txt", "Liver.")
        archive.writestr("z/bad.txt", "".join(f"Colon {i} with carcinoma. " for i in range(500)))
    data = bytearray(path.read_bytes())
    start = data.index(b"z/bad.txt") + len(b"z/bad.txt")
    for damage in (0x00, 0xFF, 0x55):
        path.write_bytes(data[: start + 20] + bytes([damage]) * 60 + data[start + 80 :])
        with pytest.raises(DataError, match=r"cannot read this zip file: .+\n.*z/bad\.txt"):
            read(path)


def test_zip_bombs_are_rejected_before_unpacking(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", b"a" * (17 * 2**20))
    with pytest.raises(DataError, match=r"the report takes 17,825,792 bytes(.|\n)*a\.txt"):
        read(tmp_path / "one.zip")
    block = b"a" * (15 * 2**20)
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(20):
            archive.writestr(f"{i}.txt", block)
    with pytest.raises(DataError, match="over 200 times the size of the zip"):
        read(tmp_path / "many.zip")


def test_zip_members_that_differ_only_in_their_slashes_are_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("a/b.txt", "Colon.")
        archive.writestr("a\\b.txt", "Liver.")
    with pytest.raises(DataError, match="two files in the zip have the same name"):
        read(tmp_path / "texts.zip")


def test_git_lfs_pointer_in_a_table_is_an_error(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (tmp_path / "a.csv").write_text(f'id,text,organ\n1,Adenoma.,colon\n2,"{pointer}",colon\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"this report is a Git LFS pointer(?s:.*)line 3(?s:.*)lfs pull"):
        read(tmp_path / "a.csv")


def test_zip_members_with_a_wrong_size_of_zero_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "texts.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "Colon with adenoma. " * 4)
        archive.writestr("empty.txt", "")
    assert read(path).empty == 1
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\1\2")
    for places in ((16, 24), (16, 20)):  # checksum, and size before or after compression
        damaged = data[:]
        for place in places:
            damaged[start + place : start + place + 4] = bytes(4)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot read this zip file: 0 bytes found, .+\n.*a\.txt"):
            read(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (r"{\rtf1\ansi FINAL DIAGNOSIS:\par Adenoma.}", "Rich Text Format"),
        ("%PDF-1.4 Adenoma.", "a PDF file"),
        ("MSH|^~\\&|LIS|\rPID|1||7||Doe", "an HL7 message"),
    ],
)
def test_documents_of_other_programs_are_an_error(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "a.txt").write_text("Adenoma.")
    (tmp_path / "b.txt").write_text(text)
    with pytest.raises(DataError, match=rf"this (report|file) is {kind}(.|\n)*b\.txt(.|\n)*convert"):
        read(tmp_path)


def test_a_zip_with_a_truncated_directory_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "texts.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a", "b", "c"):
            archive.writestr(f"{name}.txt", "Colon.")
    data = bytearray(path.read_bytes())
    comment = data.index(b"PK\1\2") + 32  # length of the first file's comment, which then hides the other files
    data[comment : comment + 2] = (2 * (46 + 5)).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot read this zip file: 1 file found, 3 expected"):
        read(path)


def test_rows_merged_by_a_stray_quotation_mark_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "reports.tsv"
    path.write_text('id\ttext\n1\t"Polyp of colon\n2\tbenign"\n3\tlast one\n', encoding="utf-8")
    corpus = read(path, id_column="id")
    assert len(corpus.reports) == 2
    assert "line 2: this report spans several lines that look like rows" in corpus.problems[0]


def test_characters_that_may_separate_reports_within_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "reports.txt"
    path.write_text("Colon.\u2028Liver.\nLung.\x0cSkin.\x0cBone.\nKidney.\x0c\nBrain.\n", encoding="utf-8")
    corpus = read(path)
    assert [report.text for report in corpus.reports][2:] == ["Kidney.\x0c", "Brain."]
    (problem,) = corpus.problems
    assert "2 of 4 lines contain characters" in problem
    assert "(2 x form feed, 1 x line separator); each line was read as one report" in problem


@pytest.mark.parametrize("char", ["\0", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_reports_not_separated_by_line_breaks_are_an_error(tmp_path: Path, char: str) -> None:
    path = tmp_path / "reports.txt"
    reports = [f"Colon, adenocarcinoma number {number}." for number in range(5)]
    path.write_text(char.join(reports), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)single line, with characters that may separate.*4 x .*line breaks"):
        read(path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/report.txt").write_text(char.join(reports), encoding="utf-8")
    assert len(read(tmp_path / "one").reports) == 1


def test_a_carriage_return_within_a_line_keeps_one_report(tmp_path: Path) -> None:
    path = tmp_path / "reports.txt"
    for end in ("\n", "\r\n", "\r\r\n"):
        path.write_bytes(f"Colon.\rNo metastasis.{end}Liver.{end}Lung.{end}".encode())
        corpus = read(path)
        assert [report.text for report in corpus.reports] == ["Colon.\rNo metastasis.", "Liver.", "Lung."]
        assert corpus.empty == 0
        assert "1 of 3 lines contains characters" in corpus.problems[0] and "1 x carriage return" in corpus.problems[0]
    path.write_bytes(b"Colon.\rLiver.\rLung.\r")
    old_mac = read(path)
    assert [report.text for report in old_mac.reports] == ["Colon.", "Liver.", "Lung."] and not old_mac.problems


def test_line_endings_of_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    for end in ("\n", "\r\n", "\r"):
        first = '{"text": "Colon."}' if end == "\r" else '{"text":\r "Colon."}'
        path.write_bytes(end.join([first, '{"text": "Liver."}', ""]).encode())
        assert [report.text for report in read(path).reports] == ["Colon.", "Liver."]


def test_json_objects_with_a_missing_key_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "reports.jsonl"
    lines = ['{"text": "Colon.", "organ": "colon"}', '{"text": "Liver."}']
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r'(?s)no column \'organ\'.*line 2.*fix: add "organ": null to this object'):
        read(path, organ_column="organ")
    path.write_text("\n".join(reversed(lines)), encoding="utf-8")
    with pytest.raises(DataError, match=r'(?s)line 1.*if other objects have this key, add "organ": null.*organ_column'):
        read(path, organ_column="organ")
    lines[1] = '{"text": "Liver.", "organ": null}'
    path.write_text("\n".join(lines), encoding="utf-8")
    assert len(read(path, organ_column="organ").reports) == 2
    path.write_text("\n".join([*lines, '["a", "b"]']), encoding="utf-8")
    with pytest.raises(DataError, match=r"not a JSON object(?s:.*)line 3, item 1"):
        read(path)


def test_a_csv_row_split_by_a_carriage_return_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "reports.csv"
    path.write_bytes(b"text\nColon.\rNo metastasis.\nLiver.\n")
    with pytest.raises(DataError, match=r"(?s)1 row ends in a carriage return alone, 3 in line feeds.*line 2"):
        read(path)
    path.write_bytes(b'text\n"Colon.\rNo metastasis."\nLiver.\n')
    assert [report.text for report in read(path).reports] == ["Colon.\rNo metastasis.", "Liver."]
    for end in ("\n", "\r\n", "\r", "\r\r\n"):
        path.write_bytes(end.join(["text", '"Colon.\nA polyp."', "Liver.", ""]).encode())
        assert [report.text for report in read(path).reports] == ["Colon.\nA polyp.", "Liver."], repr(end)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet", "txt", ""])
def test_null_characters_in_a_report_are_reported_with_its_row(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"reports.{suffix}"
    texts = [f"Colon {number}, adenocarcinoma." for number in range(4)]
    texts[2] = "Colon 2, " + 512 * "\0" + "adenocarcinoma."
    if suffix == "":
        path = tmp_path / "reports"
        path.mkdir()
        for number, text in enumerate(texts):
            (path / f"{number}.txt").write_text(text, encoding="utf-8")
    elif suffix == "txt":
        path.write_text("\n".join(texts), encoding="utf-8")
    else:
        write_table(path, [{"text": text} for text in texts])
    corpus = read(path)
    assert len(corpus.reports) == 4
    (problem,) = corpus.problems
    row = {"csv": "line 4", "tsv": "line 4", "jsonl": "line 3", "parquet": "row 3", "txt": "line 3", "": "2.txt"}
    assert problem.startswith(f"{path}, {row[suffix]}: this report contains 512 null characters")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.txt", {"text_column": "body"}, r"format lines: reports.text_column \(tables only\)"),
        ("a.txt", {"id_column": "case"}, r"format lines: reports.id_column \(tables only\)"),
        ("texts", {"group_column": "patient", "date_column": "d"}, r"texts: reports.group_column .*, reports.date_col"),
        ("a.csv", {**COLUMNS, "sheet": "x"}, r"format csv: reports.sheet \(xlsx only\)"),
        ("a.csv", {**COLUMNS, "split": "test"}, r"format csv: reports.split \(Hugging Face data sets only\)"),
        ("a.csv", {**COLUMNS, "metadata_sheet": "x"}, r"reports.metadata_sheet \(only with reports.metadata\)"),
        (
            "a.jsonl",
            {**COLUMNS, "columns": ("body", "case")},
            r"format jsonl: reports.columns \(csv, tsv and xlsx only\)",
        ),
        ("a.parquet", {**COLUMNS, "columns": ("body", "case")}, "format parquet: reports.columns"),
    ],
)
def test_options_that_do_not_apply_to_a_format_are_errors(
    tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    path = tmp_path / name
    if name == "texts":
        path.mkdir()
        (path / "1.txt").write_text(TEXTS[0], encoding="utf-8")
    elif name == "a.txt":
        path.write_text("\n".join(TEXTS), encoding="utf-8")
    else:
        write_table(path)
    with pytest.raises(ConfigError, match=message):
        read(path, **options)
    with pytest.raises(DataError, match="no such report file or folder"):
        read(tmp_path / "missing", **options)


def test_columns_of_the_metadata_apply_to_every_format(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "c0.txt").write_text(TEXTS[0], encoding="utf-8")
    metadata = write_table(tmp_path / "a.csv", [{"report_id": "c0", "patient": "p0", "site": "colon"}])
    corpus = read(tmp_path / "texts", metadata=str(metadata), group_column="patient", organ_column="site")
    assert (corpus.reports[0].group, corpus.reports[0].organ) == ("p0", "colon")


def test_labels_altered_by_a_spreadsheet_are_an_error(tmp_path: Path) -> None:
    labelled = [{**row, "grade": f"{number + 1}-Mar"} for number, row in enumerate(ROWS)]
    with pytest.raises(DataError, match=r"(?s)changed 3 values in column label: '1-Mar' in .*csv, .*2"):
        read(write_table(tmp_path / "a.csv", labelled), **COLUMNS, label_column="grade")
    metadata = write_table(tmp_path / "b.csv", [{"report_id": "c0", "grade": "2024-03-02"}])
    with pytest.raises(DataError, match=r"changed 1 value in column label: '2024-03-02'"):
        read(write_table(tmp_path / "c.csv"), **COLUMNS, label_column="grade", metadata=str(metadata))


def test_groups_in_a_column_of_rounded_numbers_are_an_error(tmp_path: Path) -> None:
    import datasets

    table = pa.table({"body": TEXTS, "patient": pa.array([2.0**24, 2.0**24 + 2, 1.0], pa.float32())})
    pq.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "set")
    for name in ("a.parquet", "set"):
        with pytest.raises(
            DataError, match=r"row 1 contains 16777216 in column patient, but the column's type \(float\)"
        ):
            read(tmp_path / name, text_column="body", group_column="patient")


def test_column_names_may_include_the_spaces_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id, text, site\n1,Tubular adenoma.,colon\n", encoding="utf-8")
    for space in ("", " "):
        (report,) = read(tmp_path / "a.csv", text_column=f"{space}text", organ_column=f"{space}site").reports
        assert (report.text, report.organ) == ("Tubular adenoma.", "colon")
