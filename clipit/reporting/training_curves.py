"""Training curves from metrics.jsonl, the training log."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipit.errors import ArtifactError, DataError, counted
from clipit.output_files.artifacts import file_sha256, read_json
from clipit.output_files.run_files import RUN_FINGERPRINT, check_same_run

_LOGGED, _SHA256 = "logged_rows", "log_sha256"  # keys of training.json

Series = Mapping[str, tuple[list[int], list[float]]]
"""Steps and values by name, in the order of the steps."""


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl: JSON objects with the key `step`, without the fingerprint of the run.

    A truncated last line, left by a killed process, is ignored.

    Raises:
        DataError: The file is missing or not UTF-8, or a line before the last is damaged.
        ArtifactError: A line belongs to a different run than `run.json` in the same folder.
    """
    fix = "delete the line, or the whole file: it is only used to draw curves"
    try:
        lines = path.read_bytes().rstrip().split(b"\n")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError("the training log is missing", where=path, fix="pass the folder of a run") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError("no step")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise DataError("not a JSON object with the key step", where=f"{path}, line {number}", fix=fix) from error
        rows.append(row)
    for recorded in {str(row.pop(RUN_FINGERPRINT)) for row in rows if RUN_FINGERPRINT in row}:
        check_same_run(path, recorded, path.parent, "delete this file: it is only used to draw curves")
    return rows


def describe_log(path: Path) -> dict[str, Any]:
    """Return the number of rows and SHA-256 of a metrics.jsonl, for training.json when training has finished."""
    return {_LOGGED: len(read_log(path)), _SHA256: file_sha256(path)} if path.is_file() else {_LOGGED: 0}


def read_finished_log(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl like `read_log`, and check that they are those of the finished run.

    Raises:
        DataError: The file is missing or damaged.
        ArtifactError: Rows are missing or have changed, or the file belongs to a different run.
    """
    rows, record = read_log(path), path.parent / "training.json"
    recorded = read_json(record, f"restore {record.name} from a copy") if record.is_file() else {}
    problem = ""
    if recorded.get(_LOGGED) not in (None, len(rows)):
        problem = f"the training log has {counted(len(rows), 'row')}, but {recorded[_LOGGED]} were written"
    elif recorded.get(_SHA256) not in (None, file_sha256(path)):
        problem = "the training log has changed since training finished"
    if problem:
        fix = "restore this file from a copy, or delete it: it is only used to draw curves"
        raise ArtifactError(problem, where=path, fix=fix)
    return rows


def read_curves(path: Path) -> Series:
    """Read every numeric entry of a metrics.jsonl as a series over steps.

    If a step was logged twice (training resumed from an earlier checkpoint), the last value is used.

    Raises:
        DataError: The file is missing or damaged.
        ArtifactError: Rows are missing or have changed, or the file belongs to a different run.
    """
    logged: dict[str, dict[int, float]] = {}
    for row in read_finished_log(path):
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                logged.setdefault(name, {})[row["step"]] = float(value)
    return {name: (sorted(values), [values[step] for step in sorted(values)]) for name, values in logged.items()}
