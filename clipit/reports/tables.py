"""Reports in tables: csv, tsv, jsonl and parquet, read row by row."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, explain
from clipit.reports.rows import Row, check_columns, needed_columns, table_row
from clipit.reports.textfiles import codec, decoding
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
                        explain(
                            f"a row with {len(cells)} cells under a header of {len(header)}",
                            where=where,
                            fix="put cells that hold the delimiter or a line end into double quotes",
                        )
                    )
                yield table_row(config, dict(zip(header, cells, strict=True)), where)
        except csv.Error as error:
            raise DataError(
                explain(
                    f"broken row: {error}",
                    where=f"{path}, line {reader.line_num}",
                    fix="close the quotes, and double those within a quoted cell",
                )
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
                raise DataError(
                    explain(f"no JSON: {error}", where=where, fix="write one JSON object per line")
                ) from error
            if not isinstance(cells, dict):
                raise DataError(explain("no JSON object", where=where, fix='write lines such as {"text": "..."}'))
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
            explain(
                f"cannot read this parquet file: {error}", where=path, fix="copy it again, or correct reports.format"
            )
        ) from error
