"""Folders of tables: cells as they are written, and no file or split that is ignored without a word."""

import csv
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


def test_ids_and_patients_of_csv_files_in_a_folder_are_not_read_as_numbers(tmp_path: Path) -> None:
    write(tmp_path / "r" / "a.csv", ROWS[:2])
    write(tmp_path / "r" / "b.csv", ROWS[2:])
    found = read(tmp_path / "r")
    assert [(report.report_id, report.text, report.group) for report in found.reports] == [
        (row["id"], row["text"], row["patient"]) for row in ROWS
    ]
    assert not found.problems


def test_splits_that_are_not_read_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "r" / "train.csv", ROWS[:3])
    write(tmp_path / "r" / "test.csv", ROWS[3:])
    found = read(tmp_path / "r")
    assert len(found.reports) == 3
    assert any("other splits skipped (reports.split): test (1 report)" in line for line in found.problems)
    assert len(read(tmp_path / "r", split="test").reports) == 1


def test_tables_of_two_kinds_are_an_error(tmp_path: Path) -> None:
    write(tmp_path / "r" / "a.csv", ROWS)
    (tmp_path / "r" / "b.jsonl").write_text('{"id": "x", "text": "Adenoma.", "patient": "1"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"tables in several formats: 1 \.csv, 1 \.jsonl"):
        read(tmp_path / "r")
    (tmp_path / "r" / "b.jsonl").unlink()
    (tmp_path / "r" / "README.md").write_text("About these reports.", encoding="utf-8")
    assert len(read(tmp_path / "r").reports) == 4
