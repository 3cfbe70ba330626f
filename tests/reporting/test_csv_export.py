"""Test the CSV export of studies: all rows and columns, without local paths."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from launching import ROOT, run_program
from logged_lines import capture_log

from clipit.errors import ArtifactError, DataError
from clipit.reporting.csv_export import export_study, finish_study, first_table, write_csv

ROWS = [
    {
        "subject": "VLM", "value": 1 / 3, "low": None, "k": 5, "kept": True, "spread": [0.123456789, 1.0],
        "model": "/home/somebody/models/vlm", "command": "scripts/probe.py --run=/home/somebody/out/runs/a-seed0",
        "template": "a {} at 10x/20x, quoted \"so\"",
    },
    {
        "subject": "b", "value": 1.23456789e-7, "low": -0.0123456789, "k": None, "kept": False, "spread": None,
        "model": "outputs/runs/b", "command": "", "template": "two\nlines",
    },
]  # fmt: skip


def study(folder: Path) -> Path:
    """Write a study folder with these rows."""
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "probing.parquet")
    return folder


def test_all_rows_and_columns_of_a_study_are_exported(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    export_study(study(tmp_path / "study"), "probing", path)
    with path.open(encoding="utf-8", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert list(first) == list(ROWS[0])
    assert (first["value"], first["low"], first["k"], first["kept"]) == ("0.333333", "", "5", "True")
    assert (second["value"], second["low"], second["k"]) == ("1.23457e-07", "-0.0123457", "")
    assert json.loads(first["spread"]) == [0.123457, 1.0] and second["spread"] == ""
    assert (first["template"], second["template"]) == (ROWS[0]["template"], "two\nlines")


def test_local_folders_are_removed_from_paths(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    export_study(study(tmp_path / "study"), "probing", path)
    with path.open(encoding="utf-8", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert first["model"] == "vlm" and first["command"] == "scripts/probe.py --run=a-seed0"
    assert second["model"] == "outputs/runs/b", "relative paths should be kept"


def test_exporting_a_study_twice_gives_equal_bytes(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    for name in ("a.csv", "b.csv"):
        export_study(folder, "probing", tmp_path / name)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert b"\r" not in (tmp_path / "a.csv").read_bytes()


def test_invalid_export_targets_are_errors(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    with pytest.raises(ArtifactError, match=r"(?s)not a file.*fix: set --record"):
        export_study(folder, "probing", folder)
    with pytest.raises(DataError, match="no table of prompts results"):
        export_study(folder, "prompts", tmp_path / "rows.csv")
    assert not (tmp_path / "rows.csv").exists()
    write_csv(tmp_path / "few.csv", ("a", "b"), [{"b": 1, "c": 2}])
    assert (tmp_path / "few.csv").read_text(encoding="utf-8") == "a,b\n,1\n"


def test_the_summary_of_a_finished_study_lists_its_files(tmp_path: Path) -> None:
    folder, log_lines = study(tmp_path / "study"), capture_log()
    rows = [f"| {number} |" for number in range(40)]
    blocks = [
        "# Title",
        "> **Note.** Only a proof.",
        "**No gain.**",
        "## Part",
        "All scores.",
        "| a |\n|--|\n" + "\n".join(rows),
    ]
    (folder / "probing.md").write_text("\n\n".join([*blocks, "Text", "| second |"]) + "\n")
    finish_study(folder, "probing", None)
    file_list = f"tables: {folder}/probing.md\npage: {folder}/probing.html\nrows: {folder}/probing.parquet"
    table = "\n".join(["| a |", "|--|", *rows[:30]])
    summary = f"Title\n\nnote: Only a proof.\n\nNo gain.\n\n{table}\n\nand 10 more rows\n\nand 1 more table"
    assert log_lines == [f"\n{summary}\n\n{file_list}"]
    assert first_table("# Title\n\nNothing to tabulate.\n") == "Title"
    assert not list(tmp_path.glob("*.csv"))
    finish_study(folder, "probing", tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").is_file() and len(log_lines) == 2


@pytest.mark.parametrize("script", [["probe.py"], ["robustness.py"], ["prompts.py", "study"]])
def test_an_invalid_record_path_stops_a_script_before_it_runs(
    script: list[str], tmp_path: Path, world: dict[str, object]
) -> None:
    import yaml

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**world, "output": str(tmp_path / "out")}), encoding="utf-8")
    result = run_program(ROOT / "scripts" / script[0], *script[1:], "--config", config, "--record", tmp_path)
    assert result.returncode == 2 and "not a file" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
