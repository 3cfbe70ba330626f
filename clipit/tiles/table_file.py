"""Reading a table of tiles (csv, tsv, parquet) as text columns."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, explain
from clipit.table_header import check_names, delimiter_hint

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class TileTable:
    """The columns of a table as text, and where its rows stand.

    Attributes:
        columns: Name -> one text per row.
        lines: Line of a text file in which each row starts; None: the file has rows, not lines.
    """

    columns: dict[str, list[str]]
    lines: list[int] | None = None

    def place(self, row: int) -> str:
        """How to call a row in a message: counted from 1, with its line in a text file."""
        return f"row {row + 1}" if self.lines is None else f"record {row + 1} (line {self.lines[row]})"


def read_columns(path: Path, config: TilesConfig) -> TileTable:
    """The columns that we know, by our names; absent optional ones are left out.

    `path` is needed; `label`, too, unless tiles.labels.kind is none; id, split, group and mpp are optional. One that
    tiles.columns names must be there.

    Raises:
        DataError: No such file, another format, not UTF-8, a row of the wrong length, or a missing column.
    """
    if not path.is_file():
        fix = "correct tiles.path"
        if "outputs" in path.parts:
            fix += (
                "; clipit writes what lies below outputs/ itself: first run the command that the head of the "
                "configuration names (make demo for the demo's world)"
            )
        raise DataError(explain("the table of tiles is not there", where=path, fix=fix))
    if path.suffix.lower() == ".parquet":
        table = _read_parquet(path)
    elif path.suffix.lower() in _DELIMITERS:
        table = _read_text(path, _DELIMITERS[path.suffix.lower()])
    else:
        raise DataError(explain("not a table that can be read", where=path, fix="use .csv, .tsv or .parquet"))
    needed = {"path"} | set(config.columns) | ({"label"} if config.labels.kind != "none" else set())
    names = {ours: config.columns.get(ours, ours) for ours in ("id", "path", "label", "split", "group", "mpp")}
    given = table.columns
    missing = sorted(names[ours] for ours in needed if names[ours] not in given)
    if missing:
        raise DataError(
            explain(
                f"missing columns: {', '.join(missing)}; the table has: {', '.join(given) or 'none'}",
                where=path,
                fix=delimiter_hint(list(given))
                or "name the right ones in tiles.columns, e.g. --tiles.columns.label=diagnosis",
            )
        )
    columns = {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    if not columns["path"]:
        raise DataError(explain("the table has no rows", where=path, fix="add a row per tile"))
    return TileTable(columns, table.lines)


def _read_text(path: Path, delimiter: str) -> TileTable:
    body: list[list[str]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=delimiter)
            header = [name.strip() for name in next(rows, [])]
            before = rows.line_num
            for row in rows:
                if row:
                    body.append(row)
                    lines.append(before + 1)
                before = rows.line_num
    except UnicodeDecodeError as error:
        raise DataError(
            explain(f"not UTF-8 text (byte {error.start} of a block)", where=path, fix="save the table as UTF-8")
        ) from error
    except csv.Error as error:
        raise DataError(explain(f"not a readable table: {error}", where=path, fix="save it again as csv")) from error
    check_names(header, path)
    bare = TileTable({}, lines)
    ragged = [row for row, values in enumerate(body) if len(values) != len(header)]
    if ragged:
        first = ragged[0]
        raise DataError(
            explain(
                f"{bare.place(first)} has {len(body[first])} fields, the header {len(header)}"
                f" ({len(ragged)} such rows)",
                where=path,
                fix=delimiter_hint(header) or "quote fields that contain the delimiter",
            )
        )
    return replace(bare, columns={name: [values[at].strip() for values in body] for at, name in enumerate(header)})


def _read_parquet(path: Path) -> TileTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(explain(f"not a readable parquet file: {error}", where=path, fix="write it again")) from error
    check_names(table.column_names, path)
    return TileTable(
        {
            name: ["" if value is None else str(value).strip() for value in table.column(name).to_pylist()]
            for name in table.column_names
        }
    )
