"""Rows of comparisons and studies as CSV for keeping beside the code (`results/*.csv`): no path of this machine."""

import csv
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.artifacts import make_folder, whole_file
from clipit.errors import ArtifactError, DataError, explain

logger = logging.getLogger(__name__)

OPTION: dict[str, dict[str, Any]] = {
    "--record": {"type": Path, "metavar": "FILE.csv", "help": "also write all rows to this file"}
}
"""The option of the scripts, as `clipit.config.load.read_command` takes it."""


def check_record(path: Path) -> None:
    """Find out whether a record can be written there; for asking before hours of work.

    Raises:
        ArtifactError: A folder or a device stands there, or the folder for it cannot be made or written.
    """
    if path.exists() and not path.is_file():
        raise ArtifactError(explain("not a file", where=path, fix="give --record the name of a .csv file"))
    make_folder(path.parent)
    if not os.access(path.parent, os.W_OK):
        raise ArtifactError(explain("no permission to write here", where=path, fix="give --record another place"))


def write_record(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write these columns of the rows as CSV, whole or not at all; what a row lacks stays empty.

    Raises:
        ArtifactError: Nothing can be written there.
    """
    check_record(path)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_portable(row.get(column)) for column in columns] for row in rows)


LEFT_OUT = ("batch",)
"""Rows (by their column `what`) that a record leaves out: thousands, of which it holds the counts (`guard`)."""


def record_study(folder: Path, name: str, path: Path) -> None:
    """Write <name>.parquet of a study as CSV: a line per row, all columns, numbers with 6 digits, lists as JSON.

    The rows of batches (`LEFT_OUT`) stay in the parquet.

    Raises:
        DataError: There is no such table in the folder.
        ArtifactError: Nothing can be written there.
    """
    import pyarrow.parquet as pq

    source = folder / f"{name}.parquet"
    if not source.is_file():
        raise DataError(explain(f"no {name} table here", where=folder, fix="measure first"))
    table = pq.read_table(source)
    rows = (
        {key: _cell(value) for key, value in row.items()}
        for row in table.to_pylist()
        if row.get("what") not in LEFT_OUT
    )
    write_record(path, table.column_names, rows)


def finish_study(folder: Path, name: str, record: Path | None) -> None:
    """Say where a study's tables lie and write its record where one is asked for; in the main process only.

    Args:
        folder: Of the study.
        name: Of its files.
        record: CSV for all rows; None: none.
    """
    from clipit.distributed import get_processes

    if not get_processes().main:
        return
    if record:
        record_study(folder, name, record)
    places = {"tables": f"{name}.md", "page": f"{name}.html", "rows": f"{name}.parquet"}
    logger.info("\n".join(f"{what}: {folder / file}" for what, file in places.items()))


def _cell(value: object) -> object:
    """A number with 6 significant digits; a list as JSON of such."""
    if isinstance(value, list | dict):
        return json.dumps(_short(value), sort_keys=True)
    return f"{value:.6g}" if isinstance(value, float) else value


def _short(value: Any) -> Any:
    """The same lists, dictionaries and values, floats with 6 significant digits."""
    if isinstance(value, dict):
        return {key: _short(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _portable(value: object) -> object:
    """Texts without the folders of this machine: of an absolute path only the last part stays."""
    return re.sub(r"(?<![\w.~-])/(?:[^\s/'\"=]+/)+", "", value) if isinstance(value, str) else value
