"""Check that reading class folders does not ignore the labels in a Hugging Face metadata file (`metadata.csv`)."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from clipit.config.run import TilesConfig
from clipit.errors import DataError, is_limit, printable, shortlist

_NAMES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
_FILE_COLUMN = "file_name"
_LABELS = frozenset({"label", "labels", "class", "category", "diagnosis", "target"})


def check_metadata(
    config: TilesConfig, root: Path, others: Sequence[str], read: Callable[[str], bytes], *, loose: bool
) -> tuple[str, ...]:
    """Check that labels come from folder names, and not from a metadata file next to the images.

    Args:
        config: Section `tiles`.
        root: Folder or zip of the tiles.
        others: Names of the files in that folder or zip that are not images.
        read: Function that maps the name of such a file to its bytes.
        loose: Whether some images are outside class folders.

    Returns:
        Notes on metadata files without labels, which are not read.

    Raises:
        DataError: There is a metadata file, and some images are outside class folders; or it has labels, and neither
            tiles.classes nor tiles.class_map is set.
    """
    notes: list[str] = []
    for name in sorted(file for file in others if PurePosixPath(file).name in _NAMES):
        columns = _columns(name, read)
        if not any(column == _FILE_COLUMN or column.endswith(f"_{_FILE_COLUMN}") for column in columns):
            continue
        labels = [column for column in columns if column.casefold() in _LABELS]
        listed = shortlist([printable(column) for column in columns], 8)
        if loose or (labels and not config.classes and not config.class_map):
            raise DataError(
                f"{name} describes the images, as in a Hugging Face image folder (columns {listed}), but tiles.source: "
                "folders takes labels only from folder names",
                where=root,
                fix=_fix(root, name, labels),
            )
        notes.append(
            f"{name} is not read (columns {listed}); labels come from folder names (to read the file, set "
            "tiles.source to huggingface or table)"
        )
    return tuple(notes)


def _fix(root: Path, name: str, labels: Sequence[str]) -> str:
    if root.is_file():
        return "unpack the zip and set tiles.source: huggingface; or repack it without this file to use folder names"
    label = "" if "label" in labels else f" and tiles.columns: {{label: {labels[0] if labels else 'COLUMN'}}}"
    return (
        f"set tiles.source: huggingface{label}; or, to also use other columns such as patients, tiles.source: "
        f"table, tiles.path: {root / name} and tiles.columns: {{path: {_FILE_COLUMN}, ...}}; or move the file away to "
        "use the folder names as labels"
    )


def _columns(name: str, read: Callable[[str], bytes]) -> list[str]:
    """Return the column names of a metadata file; an empty list if it cannot be read."""
    try:
        data = read(name)
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return [str(column) for column in pq.read_schema(io.BytesIO(data)).names]
        first = next((line for line in data.decode("utf-8-sig").split("\n") if line.strip()), "")
        if name.endswith(".jsonl"):
            row = json.loads(first)
            return [*row] if isinstance(row, dict) else []
        return next(csv.reader([first]), [])
    except (OSError, ValueError, StopIteration, csv.Error, RecursionError) as error:
        if is_limit(error):
            raise
        return []
