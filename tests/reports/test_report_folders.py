"""Folders of tables: cells are read as written, and skipped files and splits are reported."""

import csv
import json
import os
from pathlib import Path

import pytest

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.reports.readers import Reports, read_reports

ROWS = [{"id": f"1E{n}", "text": f"Tubular adenoma number {n}.", "patient": f"00{n}"} for n in range(4)]


def write(path: Path, rows: "list[dict[str, str]]") -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def read(folder: Path, **keys: str) -> Reports:
    return read_reports(ReportsConfig(path=str(folder), id_column="id", group_column="patient", **keys))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_ids_and_patients_in_csv_files_are_not_parsed_as_numbers(tmp_path: Path) -> None:
    write(tmp_path / "r" / "a.csv", ROWS[:2])
    write(tmp_path / "r" / "b.csv", ROWS[2:])
    corpus = read(tmp_path / "r")
    assert [(report.report_id, report.text, report.group) for report in corpus.reports] == [
        (row["id"], row["text"], row["patient"]) for row in ROWS
    ]
    assert not corpus.problems


def test_skipped_splits_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "r" / "train.csv", ROWS[:3])
    write(tmp_path / "r" / "test.csv", ROWS[3:])
    corpus = read(tmp_path / "r")
    assert len(corpus.reports) == 3
    assert any("other splits skipped (reports.split): test (1 file)" in line for line in corpus.problems)
    assert len(read(tmp_path / "r", split="test").reports) == 1


def test_hidden_folders_with_reports_are_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "._a.txt", ".old/b.txt", ".old/deep/c.TXT", "sub/.old/d.txt", ".empty/notes.md"):
        (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / name).write_text("Tubular adenoma of the colon.", encoding="utf-8")
    corpus = read_reports(ReportsConfig(path=str(tmp_path / "r")))
    assert [report.report_id for report in corpus.reports] == ["a"]
    assert any(
        "skipped 4 hidden reports: ._a.txt, .old/b.txt, .old/deep/c.TXT and 1 more" in line for line in corpus.problems
    )


def test_tables_in_two_formats_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "r" / "a.csv", ROWS)
    (tmp_path / "r" / "b.jsonl").write_text('{"id": "x", "text": "Adenoma.", "patient": "1"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"tables in several formats: 1 \.csv, 1 \.jsonl"):
        read(tmp_path / "r")
    (tmp_path / "r" / "b.jsonl").unlink()
    (tmp_path / "r" / "README.md").write_text("About these reports.", encoding="utf-8")
    assert len(read(tmp_path / "r").reports) == 4


def test_upper_case_suffixes_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "r" / "A.CSV", ROWS)
    with pytest.raises(DataError, match=r"write the suffixes of the files in lower case: A\.CSV"):
        read(tmp_path / "r")


def outcome(path: Path) -> object:
    """Reports and problems of a file or folder, or the first line of the error."""
    try:
        corpus = read(path)
    except DataError as error:
        return error.what
    return corpus.reports, [problem.split(": ", 1)[1] for problem in corpus.problems]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,text,patient\n007,Colon adenoma, tubular,1\n"),
        ("a.csv", 'id,text,patient\n007,"Colon adenoma,1\n008,skin nevus",2\n'),
        ("a.csv", "id,text,patient\n007,Colon adenoma\n"),
        ("a.csv", "id;text;patient\n007;Colon adenoma;01\n"),
        ("a.csv", "id,text,patient\n007,Colon adenoma,1e3\n008,NA,1000\n"),
        ("a.tsv", "id\ttext\tpatient\n007\tColon adenoma\t01\n"),
        ("a.jsonl", '{"id": "2024-01-02", "text": "Adenoma", "patient": "2024-01-02T10:00:00Z"}\n'),
        ("a.json", '[{"id": "1", "text": "2024-01-02", "patient": 7},\n{"id": "2", "text": "x", "patient": null}]'),
        ("a.json", '{"id": "1", "text": "Adenoma"}\n'),
        ("a.json", '{"data": [\n{"id": "1"}]}'),
    ],
)
def test_a_folder_with_one_file_reads_like_the_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / name).write_text(content)
    assert outcome(tmp_path / "r") == outcome(tmp_path / "r" / name)


def test_ids_and_times_in_json_are_read_as_written(tmp_path: Path) -> None:
    rows = [("2024-01-02T10:00:00Z", "007"), ("2024-01-02T12:00:00+02:00", "2024-01-02")]
    (tmp_path / "a.json").write_text(json.dumps([{"id": i, "text": "Adenoma", "patient": p} for i, p in rows]))
    for path in (tmp_path, tmp_path / "a.json"):
        assert [(report.report_id, report.group) for report in read(path).reports] == rows


def test_a_changed_table_with_the_same_modification_time_is_read_again(tmp_path: Path) -> None:
    for rows in (ROWS[:2], ROWS[1:]):
        write(tmp_path / "r" / "a.csv", rows)
        os.utime(tmp_path / "r" / "a.csv", (1_600_000_000, 1_600_000_000))
        assert [report.report_id for report in read(tmp_path / "r").reports] == [row["id"] for row in rows]


def test_class_indices_in_parquet_files_become_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"id": ["a", "b", "c"], "text": ["Adenoma"] * 3, "patient": [1, 0, -1]}
    patient = datasets.ClassLabel(names=["P1", "P2"])
    features = datasets.Features({"id": datasets.Value("string"), "text": datasets.Value("string"), "patient": patient})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "r.parquet")
    for path in (tmp_path, tmp_path / "r.parquet"):
        assert [report.group for report in read(path).reports] == ["P2", "P1", None]


def test_links_that_the_datasets_package_skips_are_errors(tmp_path: Path) -> None:
    write(tmp_path / "r" / "a.csv", ROWS[:2])
    write(tmp_path / "elsewhere" / "b.csv", ROWS[2:])
    link = tmp_path / "r" / "b.csv"
    link.symlink_to(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"links to missing files.*: b\.csv"):
        read(tmp_path / "r")
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere" / "b.csv")
    assert len(read(tmp_path / "r").reports) == 4
    undecodable = link.rename(tmp_path / "r" / os.fsdecode(b"\xe9.csv"))
    with pytest.raises(DataError, match=r"names that are not UTF-8"):
        read(tmp_path / "r")
    undecodable.unlink()
    (tmp_path / "r" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"does not follow links to folders: more"):
        read(tmp_path / "r")
