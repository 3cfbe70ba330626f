"""Files written by `clipit predict`: the table, the list of unreadable images, and the summary."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipit.errors import ArtifactError, ConfigError, shortlist
from clipit.evaluation.predicted_classes import PredictedClasses
from clipit.images.image_set import ImageSet
from clipit.output_files.artifacts import file_sha256, read_json, whole_file
from clipit.runs.prediction_chunks import REASON

FORMATS = (".csv", ".parquet")
BATCH_SIZE = "batch_size"
"""Recorded input that determines the chunks; a resumed command may have a different batch size."""
UNREADABLE_SHA256 = "unreadable_sha256"
"""Key of the summary; present if there are unreadable images, but not in summaries of earlier versions."""
_DIGITS = 6  # significant digits of the probabilities in a CSV table
_OTHER_FILES = "delete these files, or choose a different --out"


@dataclass(frozen=True)
class PredictionPaths:
    """Paths of the files of a prediction.

    Attributes:
        table: Table of predictions, .csv or .parquet.
    """

    table: Path

    def __post_init__(self) -> None:
        """Check the format of the table.

        Raises:
            ConfigError: The suffix is neither .csv nor .parquet.
        """
        if self.table.suffix.lower() not in FORMATS:
            raise ConfigError("unknown table format", where=f"--out {self.table}", fix=f"use {' or '.join(FORMATS)}")

    @property
    def summary(self) -> Path:
        """Counts, shares and mean confidences, with the inputs of the predictions."""
        return self.table.with_suffix(".summary.json")

    @property
    def unreadable(self) -> Path:
        """List of unreadable images; exists only if there are any."""
        return self.table.with_suffix(".unreadable.csv")

    @property
    def page(self) -> Path:
        """Page with the images of the most and the least certain predictions."""
        return self.table.with_suffix(".html")

    @property
    def partial(self) -> Path:
        """Folder of the finished chunks, while the command runs."""
        return self.table.with_name(f"{self.table.name}.partial")

    @property
    def command(self) -> Path:
        """Record of the inputs of the chunks; written only if no files of a different command exist."""
        return self.partial / "command.json"

    def is_complete(self, inputs: Mapping[str, Any]) -> bool:
        """Check whether the same command has already finished.

        Raises:
            ArtifactError: The files exist, but belong to a different command or have changed.
        """
        if self.command.is_file() and not different_keys(read_json(self.command, _OTHER_FILES), inputs):
            return False  # the command was killed, perhaps while writing the files
        present = [path for path in (self.table, self.summary, self.unreadable, self.page) if path.exists()]
        if not present:
            return False
        problem = f"belong to a different command or have changed: {shortlist(present)}"
        if self.table.is_file() and self.summary.is_file():
            summary = read_json(self.summary, _OTHER_FILES)
            differing = different_keys(summary.get("inputs", {}), inputs)
            if differing:
                raise ArtifactError(
                    f"these predictions were made with other inputs or options: {shortlist(differing)}",
                    where=self.table,
                    fix=_OTHER_FILES,
                )
            needed = [self.page, *([self.unreadable] if summary.get("unreadable") else [])]
            missing = [path for path in needed if not path.is_file()]
            listed = file_sha256(self.unreadable) if self.unreadable.is_file() else None
            is_same = summary.get("sha256") == file_sha256(self.table)
            if is_same and not missing and summary.get(UNREADABLE_SHA256, listed) == listed:
                return True
            if missing:
                problem = f"are incomplete: {shortlist(missing)} is missing"
        raise ArtifactError(f"these files exist, but {problem}", where=self.table, fix=_OTHER_FILES)


def different_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """List the keys with different values, with both values if they are short; the batch size may differ."""
    lines = []
    for key in sorted((old.keys() | new.keys()) - {BATCH_SIZE}):
        before, after = old.get(key), new.get(key)
        if before != after:
            short = all(isinstance(value, int | str | bool) for value in (before, after))
            lines.append(f"{key} (before: {before}, now: {after})" if short else key)
    return lines


def write_table(
    path: Path, chunks: Iterable[pa.Table], images: ImageSet, head_classes: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, PredictedClasses], list[tuple[str, str, str]]]:
    """Write the table of the readable images, chunk by chunk.

    Args:
        path: Table to write, .csv or .parquet.
        chunks: Tables of all chunks, in order.
        head_classes: Classes by prefix of their columns: `p_`, and with zero-shot classes `zs_`.

    Returns:
        Predicted classes by prefix, and the id, file and reason of each unreadable image.
    """
    predicted: dict[str, list[np.ndarray]] = {prefix: [] for prefix in head_classes}
    rows: list[np.ndarray] = []
    unreadable: list[tuple[str, str, str]] = []
    first = 0
    with whole_file(path) as temporary, _open(temporary, path.suffix.lower()) as writer:
        for chunk in chunks:
            reasons = chunk[REASON]
            readable = pc.is_null(reasons).to_numpy(zero_copy_only=False)
            rows.append(first + np.flatnonzero(readable))
            for row in np.flatnonzero(~readable).tolist():
                where = images.reader.where(first + row)
                unreadable.append((images.ids[first + row], where, reasons[row].as_py()))
            table = chunk.filter(pc.is_null(reasons)).drop_columns([REASON])
            for prefix, classes in head_classes.items():
                predicted[prefix].append(np.stack([table[prefix + name].to_numpy() for name in classes], axis=1))
            writer.write(table)
            first += chunk.num_rows
    outcomes = {}
    for prefix, classes in head_classes.items():
        values = np.concatenate(predicted[prefix])
        outcomes[prefix] = PredictedClasses(
            classes, np.concatenate(rows).astype(np.int64), values.argmax(axis=1), values.max(axis=1)
        )
    return outcomes, unreadable


def list_unreadable(path: Path, unreadable: Sequence[tuple[str, str, str]]) -> None:
    """Write the id, file and reason of each unreadable image as CSV, if there are any."""
    if unreadable:
        with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([("id", "file", "reason"), *unreadable])


class _Writer(Protocol):
    def write(self, table: pa.Table) -> None: ...


class _CsvWriter:
    """Append tables to a CSV file; probabilities have six significant digits."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._stream, lineterminator="\n")
        self._has_header = False

    def write(self, table: pa.Table) -> None:
        """Append a table; the first one determines the header."""
        if not self._has_header:
            self._csv.writerow(table.column_names)
            self._has_header = True
        columns = [_cells(table[name]) for name in table.column_names]
        self._csv.writerows(zip(*columns, strict=True))

    def close(self) -> None:
        self._stream.close()


class _ParquetWriter:
    """Append tables to a Parquet file, one row group each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parquet: Any = None

    def write(self, table: pa.Table) -> None:
        """Append a table; the first one determines the schema."""
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._path, table.schema, write_page_checksum=True)
        self._parquet.write_table(table)

    def close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()


@contextmanager
def _open(path: Path, suffix: str) -> Iterator[_Writer]:
    writer = _CsvWriter(path) if suffix == ".csv" else _ParquetWriter(path)
    try:
        yield writer
    finally:
        writer.close()


def _cells(column: pa.ChunkedArray) -> list[object]:
    values = column.to_pylist()
    return [f"{value:.{_DIGITS}g}" for value in values] if pa.types.is_floating(column.type) else values
