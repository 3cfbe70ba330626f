"""Reports in tables: csv, tsv, jsonl, parquet and Hugging Face data sets."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.config.run import ReportsConfig
from clipit.data_files import check_column_names, delimiter_hint, load_huggingface, read_csv
from clipit.errors import DataError
from clipit.reports.textfiles import RawReport, codec, decoding

_BATCH = 1024  # rows of parquet in memory at once


def read_csv_reports(path: Path, config: ReportsConfig, delimiter: str) -> Iterator[RawReport]:
    """Read a csv or tsv file with a header."""
    with decoding(path, config.encoding):
        table = read_csv(path, delimiter, codec(config.encoding))
    _check_columns(config, table.header, path, delimiter_hint(table.header))
    for line, cells in zip(table.lines, table.rows, strict=True):
        yield _raw_report(config, dict(zip(table.header, cells, strict=True)), f"{path}, line {line}")


def read_jsonl(path: Path, config: ReportsConfig) -> Iterator[RawReport]:
    """Read one JSON object per line; every line must have the configured keys."""
    with decoding(path, config.encoding), path.open(encoding=codec(config.encoding)) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                cells = json.loads(line)
            except ValueError as error:
                raise DataError(f"invalid JSON: {error}", where=where, fix="write one JSON object per line") from error
            if not isinstance(cells, dict):
                raise DataError("not a JSON object", where=where, fix='write lines such as {"text": "..."}')
            _check_columns(config, list(cells), where)
            yield _raw_report(config, cells, where)


def read_parquet(path: Path, config: ReportsConfig) -> Iterator[RawReport]:
    """Read the configured columns of a parquet file, in batches."""
    try:
        with pq.ParquetFile(path) as file:
            check_column_names(file.schema_arrow.names, path)
            _check_columns(config, file.schema_arrow.names, path)
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH, columns=sorted(set(_columns(config).values()))):
                for cells in batch.to_pylist():
                    number += 1
                    yield _raw_report(config, cells, f"{path}, row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"cannot read this parquet file: {error}", where=path, fix="copy it again, or correct reports.format"
        ) from error


def read_huggingface_reports(config: ReportsConfig) -> Iterator[RawReport]:
    """Read the configured split of a Hugging Face data set."""
    dataset = load_huggingface(config.path, "reports.path")
    if isinstance(dataset, dict):
        if config.split not in dataset:
            raise DataError(
                f"no split {config.split!r}; the splits are: {', '.join(map(repr, dataset))}",
                where=config.path,
                fix="set reports.split to one of them",
            )
        dataset = dataset[config.split]
    _check_columns(config, dataset.column_names, config.path)
    for number, cells in enumerate(dataset.select_columns(sorted(set(_columns(config).values()))), 1):
        yield _raw_report(config, cells, f"{config.path}, {config.split} row {number}")


def _columns(config: ReportsConfig) -> dict[str, str]:
    """Return the configured columns by configuration key."""
    keys = ("text_column", "id_column", "organ_column", "group_column", "label_column")
    return {key: getattr(config, key) for key in keys if getattr(config, key) is not None}


def _check_columns(config: ReportsConfig, columns: Sequence[str], where: object, hint: str = "") -> None:
    for key, column in _columns(config).items():
        if column not in columns:
            raise DataError(
                f"no column {column!r}; the columns are: {', '.join(map(repr, columns)) or 'none'}",
                where=where,
                fix=hint or f"set reports.{key} to one of them (--reports.{key}=...)",
            )


def _raw_report(config: ReportsConfig, cells: Mapping[str, Any], where: str) -> RawReport:
    """Make a report from the cells of one row.

    Raises:
        DataError: The text column does not hold text, or the id is missing.
    """
    text = cells.get(config.text_column)
    if text is None or (isinstance(text, float) and math.isnan(text)):
        text = ""
    if not isinstance(text, str):
        raise DataError(
            f"column {config.text_column!r} holds {type(text).__name__}, not text",
            where=where,
            fix="set reports.text_column to the column with the reports' text",
        )

    def cell(column: str | None) -> str | None:
        value = cells.get(column) if column else None
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        return str(value).strip() or None

    report_id = cell(config.id_column)
    if config.id_column and report_id is None:
        raise DataError(
            f"no id in column {config.id_column!r}", where=where, fix="fill it in, or remove reports.id_column"
        )
    return RawReport(
        where, text, report_id, cell(config.organ_column), cell(config.group_column), cell(config.label_column)
    )
