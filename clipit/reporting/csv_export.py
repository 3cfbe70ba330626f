"""Export rows of comparisons and studies as CSV for version control (`results/*.csv`), without local paths."""

import csv
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.distributed import get_processes
from clipit.errors import ArtifactError, DataError, counted
from clipit.output_files.artifacts import make_folder, whole_file
from clipit.reporting.tables import console_block

if TYPE_CHECKING:
    from clipit.config.file import ConfigFile

logger = logging.getLogger(__name__)

RECORD_OPTION: dict[str, dict[str, Any]] = {
    "--record": {"type": Path, "metavar": "FILE.csv", "help": "also write all rows to this file"}
}
"""Command-line option `--record`, in the form that `clipit.config.command_line.read_command` expects."""
_MAX_LINES = 32  # maximum number of lines of a table on the console
_EXCLUDED = ("batch",)  # rows with these values of `analysis` are not exported; the `guard` rows summarise them


def check_export(path: Path) -> None:
    """Check that a CSV file can be written, before a long computation; folders created for the check are removed.

    Raises:
        ArtifactError: The path is a folder or device, or its folder cannot be created or written to.
    """
    if path.exists() and not path.is_file():
        raise ArtifactError("not a file", where=path, fix="set --record to the name of a .csv file")
    created = [folder for folder in path.absolute().parents if not folder.exists()]
    make_folder(path.parent)
    writable = os.access(path.parent, os.W_OK)
    for folder in created:
        with suppress(OSError):  # another process may have written to the folder
            folder.rmdir()
    if not writable:
        raise ArtifactError("no permission to write here", where=path, fix="choose a different path for --record")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write the given columns of the rows as CSV, atomically; missing values stay empty.

    Raises:
        ArtifactError: The file cannot be written.
    """
    check_export(path)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_strip_folders(row.get(column)) for column in columns] for row in rows)


def export_study(folder: Path, name: str, path: Path) -> None:
    """Export <name>.parquet of a study: all columns, floats with 6 significant digits, lists as JSON.

    Rows for single batches are omitted.

    Raises:
        DataError: The folder does not contain this table.
        ArtifactError: The table is unreadable, or the file cannot be written.
    """
    from clipit.output_files.whole_files import read_parquet

    source = folder / f"{name}.parquet"
    if not source.is_file():
        raise DataError(f"no table of {name} results", where=folder, fix="run the study first")
    table = read_parquet(source, "run the study again")
    rows = (
        {key: _format_cell(value) for key, value in row.items()}
        for row in table.to_pylist()
        if row.get("analysis") not in _EXCLUDED
    )
    write_csv(path, table.column_names, rows)


def finish_study(folder: Path, name: str, record: Path | None) -> None:
    """Log the first table and the files of a study, and export its rows if requested, in the main process only.

    Args:
        folder: Folder of the study.
        name: Name of its files, without suffix.
        record: CSV file for all rows; None for no export.
    """
    if not get_processes().main:
        return
    if record:
        export_study(folder, name, record)
    files = {"tables": f"{name}.md", "page": f"{name}.html", "rows": f"{name}.parquet"}
    main_table = first_table((folder / f"{name}.md").read_text(encoding="utf-8"))
    listed = "\n".join(f"{kind}: {folder / file}" for kind, file in files.items())
    logger.info(f"\n{main_table}\n\n{listed}")


def first_table(text: str) -> str:
    """Return the title, the notes, the verdict and the first table of a Markdown document as text for the console.

    The text ends with the numbers of omitted rows and tables.
    """
    blocks = text.strip().split("\n\n")
    position = next((i for i, block in enumerate(blocks) if block.startswith("|")), len(blocks))
    shown = [console_block(block) for block in blocks[:position] if block.startswith(("# ", ">", "**"))]
    if position < len(blocks):
        lines = blocks[position].splitlines()
        shown.append("\n".join(lines[:_MAX_LINES]))
        shown += [f"and {counted(len(lines) - _MAX_LINES, 'more row')}"] if len(lines) > _MAX_LINES else []
        others = sum(block.startswith("|") for block in blocks[position + 1 :])
        shown += [f"and {counted(others, 'more table')}"] if others else []
    return "\n\n".join(shown)


def run_study(
    description: str | None, section: str, run_help: str, study: Callable[["ConfigFile", Path | None], Path]
) -> None:
    """Run the command of a study: parse `--config`, `--run` and `--record`, run the study, and log the files.

    Args:
        description: Purpose of the command, for `--help`.
        section: Section of the configuration file, which also names the files of the study.
        run_help: Help text of `--run`.
        study: Function from the configuration and the folder of a run, or None, to the folder of the study.
    """
    from clipit.config.command_line import read_file_command
    from clipit.config.paths import run_path
    from clipit.prompts.early_check import check_prompt_files

    run = {"type": run_path, "default": None, "metavar": "FOLDER", "help": run_help}
    extra = {"--run": run, **RECORD_OPTION}
    file, options = read_file_command(description, [section], extra=extra, needs_reports=False)
    check_prompt_files(file)
    if options.record:
        check_export(options.record)
    finish_study(study(file, options.run), section, options.record)


def _format_cell(value: object) -> object:
    if isinstance(value, list | dict):
        return json.dumps(_round(value), sort_keys=True)
    return f"{value:.6g}" if isinstance(value, float) else value


def _round(value: Any) -> Any:
    """Round floats in nested lists and dictionaries to 6 significant digits."""
    if isinstance(value, dict):
        return {key: _round(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_round(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _strip_folders(value: object) -> object:
    """Reduce absolute paths in a text to their last component, to hide the folders of this machine."""
    return re.sub(r"(?<![\w.~-])/(?:[^\s/'\"=]+/)+", "", value) if isinstance(value, str) else value
