"""Reports in tables: csv, tsv, jsonl, parquet and Hugging Face data sets."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.reports.textfiles import Row, check_columns, codec, decoding, needed_columns, table_row
from clipit.table_header import check_names, delimiter_hint

_LONGEST_CELL = 2**31 - 1  # the csv module's default of 128 KiB is too short for some reports
_BATCH = 1024  # rows of parquet in memory at once


def read_csv(path: Path, config: ReportsConfig, delimiter: str) -> Iterator[Row]:
    """Rows of a csv or tsv file with a header; cells may hold line ends when quoted."""
    csv.field_size_limit(_LONGEST_CELL)
    with decoding(path, config.encoding), path.open(encoding=codec(config.encoding), newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            check_names(header, path)
            check_columns(config, header, path, delimiter_hint(header))
            for cells in reader:
                if not cells:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(header):
                    raise DataError(
                        f"a row with {len(cells)} cells under a header of {len(header)}",
                        where=where,
                        fix="put cells that hold the delimiter or a line end into double quotes",
                    )
                yield table_row(config, dict(zip(header, cells, strict=True)), where)
        except csv.Error as error:
            raise DataError(
                f"broken row: {error}",
                where=f"{path}, line {reader.line_num}",
                fix="close the quotes, and double those within a quoted cell",
            ) from error


def read_jsonl(path: Path, config: ReportsConfig) -> Iterator[Row]:
    """One JSON object per line; the configured keys must be in every line."""
    with decoding(path, config.encoding), path.open(encoding=codec(config.encoding)) as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                cells = json.loads(line)
            except ValueError as error:
                raise DataError(f"no JSON: {error}", where=where, fix="write one JSON object per line") from error
            if not isinstance(cells, dict):
                raise DataError("no JSON object", where=where, fix='write lines such as {"text": "..."}')
            check_columns(config, list(cells), where)
            yield table_row(config, cells, where)


def read_parquet(path: Path, config: ReportsConfig) -> Iterator[Row]:
    """Rows of a parquet file, read in batches and only the columns that are needed."""
    try:
        with pq.ParquetFile(path) as file:
            check_names(file.schema_arrow.names, path)
            check_columns(config, file.schema_arrow.names, path)
            columns = sorted(set(needed_columns(config).values()))
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                for cells in batch.to_pylist():
                    number += 1
                    yield table_row(config, cells, f"{path}, row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"cannot read this parquet file: {error}", where=path, fix="copy it again, or correct reports.format"
        ) from error


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
            f"cannot load this data set: {type(error).__name__}: {error}",
            where=config.path,
            fix="if it is a file or folder, correct reports.path; if it is a Hugging Face id, "
            "check its spelling, the network and HF_HUB_OFFLINE, or give a local folder",
        ) from error
    if isinstance(found, dict):
        if config.split not in found:
            raise DataError(
                f"no split {config.split!r}; the splits are: {', '.join(map(repr, found))}",
                where=config.path,
                fix="set reports.split to one of them",
            )
        found = found[config.split]
    check_columns(config, found.column_names, config.path)
    columns = found.select_columns(sorted(set(needed_columns(config).values())))
    for number, cells in enumerate(columns, 1):
        yield table_row(config, cells, f"{config.path}, {config.split} row {number}")
