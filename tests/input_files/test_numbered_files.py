"""Test the detection of gaps in numbered files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipit.config.run import ReportsConfig
from clipit.input_files.numbered_files import missing_data_files, missing_parts
from clipit.reports.readers import read_reports


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("train-00000-of-00003.parquet", "train-00002-of-00003.parquet"), ["train-00001-of-00003.parquet"]),
        (("a-00001-of-00002.arrow", "a-00002-of-00002.arrow"), []),
        (("train-000000.tar", "train-000003.tar", "train-000001.tar"), ["train-000002.tar"]),
        (("train-000000.tar", "train-000001.tar", "test-000000.tar"), []),
        (("p-0001.tar", "p-0900.tar"), []),
        (("2019.parquet", "2021.parquet"), []),
        (("12.tar", "15.tar"), []),
        (("slides-01.tar", "slides-02.tar", "slides-04.tar"), ["slides-03.tar"]),
        (("train.parquet", "test.parquet"), []),
    ],
    ids=str,
)
def test_missing_numbers_are_listed(names: "tuple[str, ...]", missing: "list[str]", tmp_path: Path) -> None:
    note = missing_parts([tmp_path / name for name in names])
    assert [name for name in missing if f"{tmp_path / name}" in note] == missing
    assert bool(note) == bool(missing)
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "000.png").touch()
    (tmp_path / "001.png").touch()
    (tmp_path / "003.png").touch()
    assert missing_data_files(str(tmp_path)) == ((note,) if note else ())
    assert missing_data_files("hf:owner/name") == ()


def test_hidden_data_files_are_counted(tmp_path: Path) -> None:
    for name in ("a-00000.parquet", "a-00001.parquet", "._a-00001.parquet", ".cache/b.parquet", ".cache/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": [f"Report {name}."]}), tmp_path / name)
    (tmp_path / ".snapshot" / "daily").mkdir(parents=True)  # snapshots of earlier versions are not searched
    (tmp_path / ".snapshot" / "daily" / "a.parquet").write_bytes(b"")
    note = "skipped 2 hidden data files: ._a-00001.parquet, .cache/b.parquet"
    for format_name in ("parquet", "huggingface"):
        reports = read_reports(ReportsConfig(path=str(tmp_path), format=format_name))
        assert len(reports.reports) == 2 and reports.problems == (note,)
