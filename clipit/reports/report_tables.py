"""Read reports from tables: csv, tsv, xlsx, jsonl, parquet and Hugging Face data sets."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, counted, shortlist
from clipit.input_files.csv_tables import CsvTable, check_column_names, joined_rows, read_csv
from clipit.input_files.data_files import (
    MISSING_VALUES,
    cell_text,
    count_suffixes,
    hub_id,
    is_saved_dataset,
    load_huggingface,
)
from clipit.input_files.dataset_paths import split_files
from clipit.input_files.folder_files import list_files, reject_unlisted
from clipit.input_files.git_lfs import check_pointer
from clipit.input_files.mangled_names import check_exact_columns, check_mangled
from clipit.input_files.numbered_files import missing_data_files, unfinished_data_files, unread_data_files
from clipit.input_files.parquet_classes import check_arrow, class_names, name_class
from clipit.output_files.json_record import unique_keys
from clipit.patients import leading_patient
from clipit.reports.barcodes import tcga_names
from clipit.reports.encodings import decoding
from clipit.reports.textfiles import RawReport, text_lines
from clipit.reports.workbooks import read_workbook

_Split = TypeVar("_Split")

_BATCH = 1024  # number of Parquet rows in memory at once
DELIMITERS = {"csv": ",", "tsv": "\t"}
"""Delimiters of text tables by format."""
TABLE_FORMATS = {
    ".csv": "csv", ".tsv": "tsv", ".xlsx": "xlsx", ".json": "jsonl", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet",
}  # fmt: skip
"""Formats of tables by suffix."""
_TEXTS = ("string", "large_string", "string_view")  # Arrow types of text
_MAX_NAME_LENGTH = 60  # maximum length of a column name; a longer name is probably a report


class OptionalColumn(str):
    """Name of a column that the reports may lack, because a metadata table provides it."""

    __slots__ = ()


def read_table_reports(path: Path, config: ReportsConfig, format_name: str, problems: list[str]) -> Iterator[RawReport]:
    """Read a csv, tsv or xlsx file; csv cells that may contain additional rows are listed in `problems`.

    The first row is the header, unless `config.columns` names the columns by position.

    Raises:
        DataError: The file cannot be read, its first row repeats `config.columns`, or a configured column is missing.
    """
    columns = config.columns or None
    if format_name == "xlsx":
        table = read_workbook(path, config.sheet, columns, "reports.sheet")
        problems += table.notes
        return csv_reports(table, path, config)
    table = read_csv_table(path, config.encoding, DELIMITERS[format_name], columns)
    for row, _ in joined_rows(table):
        problems.append(
            f"{path}, line {table.lines[row]}: this report spans several lines that look like rows of the table; if "
            "they are, remove or double the stray quotation mark"
        )
    return csv_reports(table, path, config)


def read_csv_table(path: Path, encoding: str, delimiter: str = ",", columns: Sequence[str] | None = None) -> CsvTable:
    """Read a csv file in the given encoding; `columns` names the columns of a file without a header."""
    with decoding(path, encoding) as name:
        return read_csv(path, delimiter, name, columns)


def csv_reports(table: CsvTable, path: Path, config: ReportsConfig) -> Iterator[RawReport]:
    """Yield the reports of a table."""
    unit = table.unit
    if config.columns and table.rows and [cell.strip() for cell in table.rows[0]] == list(config.columns):
        raise DataError(
            "the first row is a header, but reports.columns is for tables without a header",
            where=f"{path}, {unit} {table.lines[0]}",
            fix="remove reports.columns",
        )
    spelled = {name.strip(): name for name in _columns(config).values()}  # earlier versions needed the header's spaces
    table = replace(table, header=[spelled.get(name, name) for name in table.header])
    missing = [name for name in _columns(config).values() if name not in table.header]
    _check_columns(config, table.header, path, table.hint(missing) or _header_hint(config, table))
    for column in (config.id_column, config.group_column):
        if column in table.header:
            position = table.header.index(column)
            names = [cells[position].strip() for cells in table.rows]
            check_mangled(names, column, lambda row: f"{unit} {table.lines[row]}", path)
    for line, cells in zip(table.lines, table.rows, strict=True):
        if [cell.strip(" \ufeff") for cell in cells] == [name.strip() for name in table.header]:
            raise DataError(
                "this row repeats the header, as happens when files are joined",
                where=f"{path}, {unit} {line}",
                fix="remove the row",
            )
        yield _raw_report(config, dict(zip(table.header, cells, strict=True)), f"{path}, {unit} {line}")


def _header_hint(config: ReportsConfig, table: CsvTable) -> str:
    """Suggest `reports.columns` if the first row looks like data: it has a long cell, a number or a TCGA barcode."""
    first_row = table.header
    if config.columns or not any(
        len(cell) > _MAX_NAME_LENGTH or leading_patient(cell) or cell.strip().replace(".", "", 1).isdecimal()
        for cell in first_row
    ):
        return ""
    longest = max(range(len(first_row)), key=lambda index: len(first_row[index]))
    names = [config.text_column if index == longest else f"c{index + 1}" for index in range(len(first_row))]
    return f"if the table has no header, name its columns by position, such as --reports.columns='{json.dumps(names)}'"


def read_jsonl(path: Path, config: ReportsConfig) -> Iterator[RawReport]:
    """Read one report per JSON object that has all configured keys: one object per line, or an array of objects."""
    with decoding(path, config.encoding) as name, path.open(encoding=name, newline="\n") as stream:
        lines, seen = text_lines(stream), False
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            is_array = line.lstrip().startswith("[")
            value = _parse_json("\n".join([line, *lines]) if is_array else line, where)
            for index, cells in enumerate(value, 1) if is_array else [(0, value)]:
                place = f"{where}, item {index}" if is_array else where
                if not isinstance(cells, dict):
                    raise DataError("not a JSON object", where=place, fix='write objects such as {"text": "..."}')
                _check_columns(config, list(cells), place, _missing_key_hint(config, cells, is_first=not seen))
                seen = True
                yield _raw_report(config, cells, place)


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        fix = "write one JSON object per line, or an array of objects"
        raise DataError(f"invalid JSON: {error}", where=where, fix=fix) from error


def read_parquet_reports(path: Path, config: ReportsConfig, problems: list[str]) -> Iterator[RawReport]:
    """Read the reports of a parquet file, or of all parquet files in a folder, in batches.

    Numbered files that seem to be missing from a folder are listed in `problems`.
    """
    if not path.is_dir():
        yield from _read_parquet_file(path, config)
        return
    files = list_files(path, lambda file: file.suffix.lower() == ".parquet" and not file.name.startswith(("_", ".")))
    reject_unlisted([*files.dangling, *files.undecodable], path)
    if not files.files:
        raise DataError("no parquet file in this folder", where=path, fix="correct reports.path")
    problems += [*missing_data_files(str(path)), *unfinished_data_files(str(path), files.files)]
    for file in files.files:
        yield from _read_parquet_file(file, config)


def _read_parquet_file(path: Path, config: ReportsConfig) -> Iterator[RawReport]:
    number, batch = 0, None
    check_pointer(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            check_column_names(names, path)
            _check_columns(config, names, path)
            classes = class_names(file.schema_arrow.metadata or {})
            texts = {field.name for field in file.schema_arrow if _is_text(field.type)}
            for batch in file.iter_batches(batch_size=_BATCH, columns=_read_columns(config, names, {*texts, *classes})):
                check_exact_columns(batch, path)
                for cells in batch.to_pylist():
                    number += 1
                    yield _raw_report(config, _name_classes(cells, classes), f"{path}, row {number}")
    except UnicodeDecodeError as error:
        row = "" if batch is None else f", row {number + 1 + _first_not_utf8(batch)}"  # otherwise, a column name
        raise _not_utf8(error, f"{path}{row}") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"cannot read this parquet file: {error}", where=path, fix="copy it again, or correct reports.format"
        ) from error
    except (ValueError, OverflowError) as error:
        raise _not_convertible(error, f"{path}, after row {number}") from error


def _first_not_utf8(batch: pa.RecordBatch) -> int:
    """Return the first row of a batch with text that is not UTF-8."""
    for row in range(batch.num_rows):
        try:
            batch.slice(row, 1).to_pylist()
        except UnicodeDecodeError:
            return row
    return 0


def _not_utf8(error: UnicodeDecodeError, where: object) -> DataError:
    return DataError(f"the text is not valid UTF-8: {error.reason}", where=where, fix="save the table again as UTF-8")


def _not_convertible(error: Exception, where: object) -> DataError:
    """Build the error for a date or duration that Python cannot represent, such as a date in the year 29349."""
    fix = "correct the value, or write it as text"
    return DataError(f"cannot read a date or duration: {error}", where=where, fix=fix)


def read_huggingface_reports(config: ReportsConfig, problems: list[str]) -> Iterator[RawReport]:
    """Read the configured split of a Hugging Face data set; other splits are listed in `problems`.

    The `datasets` package assigns the files of a folder to splits. Tables in folders are read like single tables,
    because `datasets` would infer types: it reads the id 007 as 7, and 2024-01-02 as a time.

    Raises:
        DataError: The data set cannot be loaded, lacks the split or a column, or mixes file formats.
    """
    folder = Path(config.path).expanduser()
    if hub_id(config.path) is None and folder.is_dir() and not is_saved_dataset(folder):
        _check_one_format(folder)
        files = split_files(config.path, "reports.path")
        if files and all(file.suffix.lower() in TABLE_FORMATS for part in files.values() for file in part):
            problems += [*missing_data_files(config.path), *unread_data_files(config.path)]
            for file in _select_split(files, config, lambda part: counted(len(part), "file"), problems):
                check_pointer(file)
                yield from read_table_file(file, config, TABLE_FORMATS[file.suffix.lower()], problems)
            return
    dataset = load_huggingface(config.path, "reports.path", texts=sorted({*_columns(config).values()}))
    problems += [*missing_data_files(config.path), *unread_data_files(config.path)]
    if isinstance(dataset, dict):
        dataset = _select_split(dataset, config, lambda rows: counted(rows.num_rows, "report"), problems)
    check_arrow(dataset, f"{config.path}, {config.split}")
    _check_columns(config, dataset.column_names, config.path)
    classes = {name: feature.names for name, feature in dataset.features.items() if hasattr(feature, "names")}
    texts = {name for name, feature in dataset.features.items() if getattr(feature, "dtype", "") in _TEXTS}
    columns = _read_columns(config, dataset.column_names, {*texts, *classes})
    number = 0
    try:
        for batch in dataset.select_columns(columns).with_format("arrow").iter(_BATCH):
            check_exact_columns(batch, f"{config.path}, {config.split}")
            for cells in batch.to_pylist():
                number += 1
                yield _raw_report(config, _name_classes(cells, classes), f"{config.path}, {config.split} row {number}")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, f"{config.path}, {config.split} row {number + 1}") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _not_convertible(error, f"{config.path}, {config.split} row {number + 1}") from error


def read_table_file(path: Path, config: ReportsConfig, format_name: str, problems: list[str]) -> Iterator[RawReport]:
    """Read a csv, tsv, xlsx, jsonl or parquet file."""
    match format_name:
        case "jsonl":
            return read_jsonl(path, config)
        case "parquet":
            return read_parquet_reports(path, config, problems)
        case _:
            return read_table_reports(path, config, format_name, problems)


def _select_split(
    parts: Mapping[str, _Split], config: ReportsConfig, size: Callable[[_Split], str], problems: list[str]
) -> _Split:
    """Return the configured split; the others are listed in `problems`, with their size."""
    if config.split not in parts:
        raise DataError(
            f"no split {config.split!r}; the splits are: {', '.join(map(repr, parts))}",
            where=config.path,
            fix="set reports.split to one of these splits",
        )
    others = [f"{name} ({size(part)})" for name, part in parts.items() if name != config.split]
    if others:
        problems.append(f"{config.path}: other splits skipped (reports.split): {shortlist(others)}")
    return parts[config.split]


def _name_classes(cells: dict[str, Any], classes: Mapping[str, Sequence[str] | None]) -> dict[str, Any]:
    """Replace class indices with class names; see `name_class`."""
    return cells | {
        column: name_class(cells[column], names) for column, names in classes.items() if names and column in cells
    }


def _check_one_format(folder: Path) -> None:
    """Reject a folder of tables in several formats: the datasets package would read only the most frequent one."""
    formats = [f"{count} {suffix}" for suffix, count in count_suffixes(folder).most_common() if suffix in TABLE_FORMATS]
    if len(formats) > 1:
        raise DataError(
            f"tables in several formats: {', '.join(formats)}",
            where=folder,
            fix="convert them to one format, or move the files that are not reports to a different folder",
        )


def _columns(config: ReportsConfig) -> dict[str, str]:
    keys = ("text_column", "id_column", "organ_column", "group_column", "label_column", "date_column")
    return {key: getattr(config, key) for key in keys if getattr(config, key) is not None}


def _read_columns(config: ReportsConfig, names: Sequence[str], texts: Collection[str]) -> list[str]:
    """Select the columns to read: the configured ones, and all with text or classes if TCGA barcodes are recognised."""
    read = {*_columns(config).values(), *(texts if config.tcga_barcodes else ())}
    return [name for name in names if name in read]


def _is_text(kind: pa.DataType) -> bool:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind) in _TEXTS


def _shown_name(column: str) -> str:
    """Quote the name of a column; a long name is probably a report, and is truncated."""
    return repr(column if len(column) <= _MAX_NAME_LENGTH else f"{column[:_MAX_NAME_LENGTH]}...")


def _missing_key_hint(config: ReportsConfig, cells: Mapping[str, Any], *, is_first: bool) -> str:
    """Return the fix for an object that lacks a key, which the other objects may have."""
    missing = {key: column for key, column in _columns(config).items() if column not in cells}
    null = f"add {', '.join(f'{json.dumps(column)}: null' for column in missing.values())} to this object"
    if not is_first:
        return null
    return f"if other objects have this key, {null}; otherwise set {' and '.join(f'reports.{key}' for key in missing)}"


def _check_columns(config: ReportsConfig, columns: Sequence[str], where: object, hint: str = "") -> None:
    for key, column in _columns(config).items():
        if column not in columns and not isinstance(column, OptionalColumn):
            raise DataError(
                f"no column {column!r}; the columns are: {', '.join(map(_shown_name, columns)) or 'none'}",
                where=where,
                fix=hint or f"set reports.{key} to one of these columns (--reports.{key}=...)",
            )


def _raw_report(config: ReportsConfig, cells: Mapping[str, Any], where: str) -> RawReport:
    """Build a report from the cells of one row.

    Raises:
        DataError: The text column does not contain text, the id is missing, or a cell is invalid.
    """
    text = cells.get(config.text_column)
    if text is None or text != text:  # NaN is the only value that differs from itself
        text = ""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise _not_utf8(error, f"{where}, column {config.text_column!r}") from error
    if not isinstance(text, str):
        raise DataError(
            f"column {config.text_column!r} contains {type(text).__name__}, not text",
            where=where,
            fix="set reports.text_column to the column with the report text",
        )
    report_id, organ, group, label, date = (
        None if column is None else _cell(cells.get(column), column, where)
        for column in (
            config.id_column, config.organ_column, config.group_column, config.label_column, config.date_column
        )
    )  # fmt: skip
    if config.id_column and (report_id is None or report_id in MISSING_VALUES):
        raise DataError(
            f"missing id in column {config.id_column!r}" + ("" if report_id is None else f" ({report_id!r})"),
            where=where,
            fix="fill in the id, or remove reports.id_column",
        )
    names = tcga_names(cells, config.text_column) if config.tcga_barcodes else ()
    return RawReport(where, text, report_id, organ, group, label, date, names)


def _cell(value: Any, column: str, where: str) -> str | None:
    """Convert the id, organ, group, label or date of a report to text; None if it is empty, null or NaN.

    Raises:
        DataError: The value is a list, or contains a line break, another control character or invalid Unicode.
    """
    try:
        return cell_text(value) or None
    except ValueError as error:
        raise DataError(
            f"column {column!r} contains {error}",
            where=where,
            fix="correct the cell; in csv files, an unclosed quotation mark joins rows",
        ) from None
