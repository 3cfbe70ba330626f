"""Reports in a Hugging Face data set: an id, a local data set folder, or one written by save_to_disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, explain
from clipit.reports.rows import Row, check_columns, needed_columns, table_row

_SAVED_MARKS = ("dataset_dict.json", "state.json")


def is_dataset_folder(path: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((path / mark).is_file() for mark in _SAVED_MARKS)


def _load(config: ReportsConfig) -> Any:
    """The data set, or the dictionary of its splits."""
    import datasets

    path = Path(config.path).expanduser()
    if path.is_dir() and is_dataset_folder(path):
        return datasets.load_from_disk(str(path))
    return datasets.load_dataset(str(path) if path.is_dir() else config.path)


def read_huggingface(config: ReportsConfig) -> Iterator[Row]:
    """Rows of the configured split; rows are named by their number in it."""
    try:
        found = _load(config)
    except Exception as error:  # the library raises its own, its dependencies' and the network's errors
        raise DataError(
            explain(
                f"cannot load this data set: {type(error).__name__}: {error}",
                where=config.path,
                fix="if it is a file or folder, correct reports.path; if it is a Hugging Face id, "
                "check its spelling, the network and HF_HUB_OFFLINE, or give a local folder",
            )
        ) from error
    if isinstance(found, dict):
        if config.split not in found:
            raise DataError(
                explain(
                    f"no split {config.split!r}; the splits are: {', '.join(map(repr, found))}",
                    where=config.path,
                    fix="set reports.split to one of them",
                )
            )
        found = found[config.split]
    check_columns(config, found.column_names, config.path)
    columns = found.select_columns(sorted(set(needed_columns(config).values())))
    for number, cells in enumerate(columns, 1):
        yield table_row(config, cells, f"{config.path}, {config.split} row {number}")
