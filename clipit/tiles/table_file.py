"""Reading a table of tiles (csv, tsv, parquet) as text columns."""

import csv
from pathlib import Path

from clipit.config import TilesConfig
from clipit.errors import DataError, explain, shortlist

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_columns(path: Path, config: TilesConfig) -> dict[str, list[str]]:
    """The columns that we know, by our names, as text; absent optional ones are left out.

    `path` is needed; `label`, too, unless tiles.labels.kind is none; id, split, group and mpp are optional. One that
    tiles.columns names must be there.

    Raises:
        DataError: No such file, another format, not UTF-8, a row of the wrong length, or a missing column.
    """
    if not path.is_file():
        raise DataError(explain("the table of tiles is not there", where=path, fix="correct tiles.path"))
    if path.suffix.lower() == ".parquet":
        table = _read_parquet(path)
    elif path.suffix.lower() in _DELIMITERS:
        table = _read_text(path, _DELIMITERS[path.suffix.lower()])
    else:
        raise DataError(explain("not a table that can be read", where=path, fix="use .csv, .tsv or .parquet"))
    needed = {"path"} | set(config.columns) | ({"label"} if config.labels.kind != "none" else set())
    names = {ours: config.columns.get(ours, ours) for ours in ("id", "path", "label", "split", "group", "mpp")}
    missing = sorted(names[ours] for ours in needed if names[ours] not in table)
    if missing:
        raise DataError(
            explain(
                f"missing columns: {', '.join(missing)}; the table has: {', '.join(table) or 'none'}",
                where=path,
                fix="name the right ones in tiles.columns, e.g. --tiles.columns.label=diagnosis",
            )
        )
    columns = {ours: table[theirs] for ours, theirs in names.items() if theirs in table}
    if not columns["path"]:
        raise DataError(explain("the table has no rows", where=path, fix="add a row per tile"))
    return columns


def line_of(path: Path, row: int) -> str:
    """How to call a row in a message: the line of a text file (with its header), or the row counted from 1."""
    return f"row {row + 1}" if path.suffix.lower() == ".parquet" else f"record {row + 1} (line {row + 2})"


def _read_text(path: Path, delimiter: str) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=delimiter)
            header = next(rows, [])
            body = [row for row in rows if row]
    except UnicodeDecodeError as error:
        raise DataError(
            explain(f"not UTF-8 text (byte {error.start} of a block)", where=path, fix="save the table as UTF-8")
        ) from error
    except csv.Error as error:
        raise DataError(explain(f"not a readable table: {error}", where=path, fix="save it again as csv")) from error
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(explain(f"two columns have one name: {shortlist(doubled)}", where=path, fix="rename one"))
    ragged = [row for row, values in enumerate(body) if len(values) != len(header)]
    if ragged:
        first = ragged[0]
        raise DataError(
            explain(
                f"{line_of(path, first)} has {len(body[first])} fields, the header {len(header)}"
                f" ({len(ragged)} such rows)",
                where=path,
                fix="quote fields that contain the delimiter",
            )
        )
    return {name.strip(): [values[place].strip() for values in body] for place, name in enumerate(header)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(explain(f"not a readable parquet file: {error}", where=path, fix="write it again")) from error
    return {
        name: ["" if value is None else str(value).strip() for value in table.column(name).to_pylist()]
        for name in table.column_names
    }
