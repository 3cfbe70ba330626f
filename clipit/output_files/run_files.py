"""Bind the files of a run to the run: each contains the fingerprint of `run.json`, which is verified on every read.

Files of earlier versions of clipit, which lack the fingerprint, are accepted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipit.errors import ArtifactError
from clipit.output_files.artifacts import read_json, write_record
from clipit.output_files.json_record import JsonRecord

RUN_FINGERPRINT = "run_fingerprint"
"""Key or metadata entry that contains the fingerprint of `run.json` in the run's other files."""


def recorded_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint in a folder's `run.json`; None if the folder does not belong to a run.

    Raises:
        ArtifactError: run.json is damaged.
    """
    run = folder / "run.json"
    if not run.is_file():
        return None
    fix = f"restore run.json from a copy, or delete the folder {folder} and run clipit train again"
    fingerprint = read_json(run, fix).get("fingerprint")
    if not isinstance(fingerprint, str):
        raise ArtifactError("the fingerprint of the run is missing", where=run, fix=fix)
    return fingerprint


def check_same_run(file: Path, recorded: str | None, folder: Path, fix: str) -> None:
    """Check that a file was written by the run in whose folder it is stored.

    Args:
        recorded: Fingerprint of the run that wrote the file; None if an earlier version of clipit wrote it.
        folder: Folder of the run.

    Raises:
        ArtifactError: The file belongs to a different run, or run.json is damaged.
    """
    claimed = None if recorded is None else recorded_fingerprint(folder)
    if claimed not in (None, recorded):
        raise ArtifactError(
            f"this file belongs to a different run: its fingerprint is {recorded}, but the fingerprint in run.json is "
            f"{claimed}",
            where=file,
            fix=fix,
        )


def write_run_json(path: Path, value: Mapping[str, Any], folder: Path) -> None:
    """Write a JSON object with a checksum and the fingerprint of the run in `folder`, atomically."""
    fingerprint = recorded_fingerprint(folder)
    write_record(path, {**value} if fingerprint is None else {**value, RUN_FINGERPRINT: fingerprint})


def read_run_json(path: Path, folder: Path, fix: str) -> JsonRecord:
    """Read a JSON object written by `write_run_json`, without its checksum and fingerprint.

    Args:
        folder: Folder of the run.
        fix: What to do if the file is damaged or belongs to a different run, for the error message.

    Raises:
        ArtifactError: The file is missing, damaged, or belongs to a different run.
    """
    record = read_json(path, fix)
    check_same_run(path, record.pop(RUN_FINGERPRINT, None), folder, fix)
    return record
