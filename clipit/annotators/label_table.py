"""Read annotators' labels from a table with the columns `tile`, `annotator` and `label`, or from votes per tile."""

import posixpath
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipit.annotators.votes import ANONYMOUS, Votes
from clipit.config.data import MAX_VOTES
from clipit.config.run import AnnotationsConfig
from clipit.errors import DataError, counted, repeats, shortlist
from clipit.input_files.csv_tables import CsvTable, check_column_names, read_utf8_csv
from clipit.input_files.data_files import NO_CLASS, NO_CLASSES, cell_text, is_whole, missing_markers
from clipit.input_files.mangled_names import check_labels, check_rounded
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.zip_files import check_uncompressed, describe_code_page

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_WHERE = "tiles.annotations"


@dataclass(frozen=True)
class AnnotationTable:
    """Labels from a file, without duplicates; each sequence has one entry per label.

    Attributes:
        annotators: Names of the annotators; `ANONYMOUS` for votes without names.
        times: Number of votes for the label; 1 for named annotators.
        notes: Notes on dropped rows, one per reason.
    """

    tiles: Sequence[str]
    annotators: Sequence[str]
    labels: Sequence[str]
    times: Sequence[int]
    where: str
    notes: tuple[str, ...] = ()


def read_annotations(
    config: AnnotationsConfig, class_map: Mapping[str, str], classes: Sequence[str] = ()
) -> AnnotationTable:
    """Read annotators' labels, mapped to classes.

    Args:
        config: Section `tiles.annotations`.
        class_map: Class of each label; other labels are dropped and counted. If empty, the labels are the classes.
        classes: Configured classes. If all labels are whole numbers, -1 marks a missing label unless it is one of these
            classes.

    Raises:
        DataError: The file cannot be read, columns or cells are missing, an annotator gave a tile two labels, or it is
            unclear whether -1 is a class.
    """
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise DataError(
            "the annotation table does not exist",
            where=path,
            fix=f"correct {_WHERE}.path; {similar_names(config.path)}",
        )
    check_uncompressed(path)
    if path.suffix.lower() not in _DELIMITERS:
        raise DataError("unknown format of the annotation table", where=path, fix="use .csv or .tsv")
    table = read_utf8_csv(path, _DELIMITERS[path.suffix.lower()])
    rows = (
        _read_counts(table, config, path) if config.counts else _read_named(table, config, path, {*class_map, *classes})
    )
    return _map_labels(rows, class_map) if class_map else rows


def make_votes(table: AnnotationTable, ids: Sequence[str], classes: Sequence[str]) -> tuple[Votes, tuple[str, ...]]:
    """Match the labels with tiles and classes by name.

    Args:
        ids: Ids of the tiles, which determine the order of the items.

    Returns:
        The votes on these tiles, and notes on labels for other tiles.

    Raises:
        DataError: A label is not a class, no tile in the table is among `ids`, or a tile id is written in two ways.
    """
    code_of = {name: code for code, name in enumerate(classes)}
    unknown = Counter(label for label in table.labels if label not in code_of)
    if unknown:
        listed = shortlist([f"{name!r} in {counted(count, 'row')}" for name, count in sorted(unknown.items())])
        raise DataError(
            f"annotators' labels that are not classes: {listed}",
            where=table.where,
            fix=f"the classes are {', '.join(classes)}: correct the labels, map them in tiles.class_map, or name all "
            "classes in tiles.classes",
        )
    tile_of = match_tiles(table.tiles, ids, table.where)
    tiles = [tile_of[name] for name in table.tiles]
    annotated = set(tiles)
    items = [name for name in ids if name in annotated]
    if not annotated:
        reasons = f": {'; '.join(table.notes)}" if table.notes else ""
        raise DataError(
            f"the annotation table has no label{reasons}",
            where=table.where,
            fix=f"enter the labels or votes, or correct the column names in {_WHERE}.columns and {_WHERE}.counts",
        )
    if not items:
        code_page = describe_code_page(annotated, ids)
        raise DataError(
            f"none of the {counted(len(annotated), 'tile')} in the annotation table is among the "
            f"{counted(len(ids), 'tile')} of the data set; the table has {shortlist(sorted(annotated), 3)}, "
            f"and the data set has {shortlist(list(ids), 3)}{f'; {code_page}' if code_page else ''}",
            where=table.where,
            fix="use tile ids in the table (paths, if the tile table has no `id` column), or name their column in "
            f"{_WHERE}.columns",
        )
    row_of = {name: row for row, name in enumerate(items)}
    others = sorted(annotated - row_of.keys())
    note = f"dropped annotators' labels for {counted(len(others), 'tile')} outside the data set: {shortlist(others)}"
    annotators = sorted(set(table.annotators))
    number_of = {name: number for number, name in enumerate(annotators)}
    kept = [row for row, name in enumerate(tiles) if name in row_of]
    votes = Votes(
        tuple(items),
        tuple(annotators),
        tuple(classes),
        np.asarray([row_of[tiles[row]] for row in kept], dtype=np.int64),
        np.asarray([number_of[table.annotators[row]] for row in kept], dtype=np.int64),
        np.asarray([code_of[table.labels[row]] for row in kept], dtype=np.int64),
        np.asarray([table.times[row] for row in kept], dtype=np.int64),
    )
    return votes.of_active_annotators(), (note,) if others else ()


def match_tiles(names: Sequence[str], ids: Sequence[str], where: object) -> dict[str, str]:
    """Match tile names in a table with tile ids, which are paths with forward slashes if the tile table has no ids.

    Args:
        names: Names in the table; `c\\a.png` and `./c/a.png` also match the id `c/a.png`.

    Returns:
        Id of each name; names that match no tile are returned unchanged.

    Raises:
        DataError: The table writes the name of a tile in two ways.
    """
    known = set(ids)
    paths = {name: posixpath.normpath(name.replace("\\", "/")) for name in dict.fromkeys(names) if name not in known}
    matched = {name: path if (path := paths.get(name, name)) in known else name for name in names}
    if repeated := repeats(list(matched.values()), list(matched).__getitem__):
        raise DataError(
            f"{counted(len(repeated), 'tile name is', 'tile names are')} written in more than one way: "
            f"{shortlist(repeated)}",
            where=where,
            fix="write the path of a tile in the same way in all rows",
        )
    return matched


def read_named_columns(table: CsvTable, names: Mapping[str, str], path: Path, key: str) -> dict[str, list[str]]:
    """Read columns of a table by name.

    Args:
        names: Column name in the table for each field.
        key: Configuration key or option that names the columns, for error messages.

    Raises:
        DataError: A column is missing, or a cell does not contain text.
    """
    header = table.header
    check_column_names(header, path)
    missing = sorted(name for name in names.values() if name not in header)
    if missing:
        raise DataError(
            f"missing columns: {', '.join(missing)}; the table has: {', '.join(header) or 'none'}",
            where=path,
            fix=table.hint(missing) or f"set the column names in {key}",
        )
    columns: dict[str, list[str]] = {}
    for field, column in names.items():
        index = header.index(column)
        cells = []
        for row, line in zip(table.rows, table.lines, strict=True):
            try:
                cells.append(cell_text(row[index]))
            except ValueError as error:
                raise DataError(
                    f"line {line} contains {error} in column {column}", where=path, fix="correct this cell"
                ) from None
        columns[field] = cells
    if not table.rows:
        raise DataError("the table has no rows", where=path, fix="add a row per tile and annotator")
    return columns


def _read_named(
    table: CsvTable, config: AnnotationsConfig, path: Path, class_labels: Collection[str]
) -> AnnotationTable:
    """Read one row per tile and annotator; rows without a label and repeated rows are dropped and counted.

    Args:
        config: Section `tiles.annotations`.
        class_labels: Labels that the configuration lists as classes.
    """
    names = {field: config.columns.get(field, field) for field in ("tile", "annotator", "label")}
    columns = read_named_columns(
        table, {str(field): column for field, column in names.items()}, path, f"{_WHERE}.columns"
    )
    for field in ("tile", "annotator"):
        check_rounded(columns[field], names[field], lambda row: f"line {table.lines[row]}", path)
    check_labels(columns["label"], names["label"], lambda row: f"line {table.lines[row]}", path, class_labels)
    unnamed = [
        f"line {table.lines[row]}"
        for row in range(len(table.rows))
        if not columns["tile"][row] or not columns["annotator"][row]
    ]
    markers = missing_markers({*columns["label"]}) - {*class_labels}
    missing = [
        f"line {line} ({label})" for line, label in zip(table.lines, columns["label"], strict=True) if label in markers
    ]
    if missing:
        raise DataError(
            f"{counted(len(missing), 'label marks', 'labels mark')} a missing value in many programs: "
            f"{shortlist(missing)}",
            where=path,
            fix="leave these cells empty, or name the label in tiles.class_map if it is a class",
        )
    columns["label"] = _without_no_class(columns["label"], class_labels, path)
    label_of: dict[tuple[str, str], str] = {}
    conflicting: dict[tuple[str, str], set[str]] = {}
    empty = repeated = 0
    for tile, annotator, label in zip(columns["tile"], columns["annotator"], columns["label"], strict=True):
        key = (tile, annotator)
        if not label:
            empty += 1
        elif key not in label_of:
            label_of[key] = label
        elif label_of[key] == label:
            repeated += 1
        else:
            conflicting.setdefault(key, {label_of[key]}).add(label)
    problems = []
    if unnamed:
        problems.append(f"{counted(len(unnamed), 'row')} without a tile or an annotator: {shortlist(unnamed)}")
    if conflicting:
        listed = [f"{a} on {t} ({', '.join(sorted(labels))})" for (t, a), labels in sorted(conflicting.items())]
        problems.append(
            f"{counted(len(conflicting), 'tile has', 'tiles have')} several labels from one annotator: "
            f"{shortlist(listed)}"
        )
    if problems:
        raise DataError(
            "; ".join(problems),
            where=path,
            fix="fill in the cells, and keep one label per tile and annotator (enter a second reading as a separate "
            "row with a different annotator name, such as 'A, second reading')",
        )
    notes = []
    if empty:
        notes.append(f"dropped {counted(empty, 'row')} without a label from the annotation table")
    if repeated:
        notes.append(
            f"dropped {counted(repeated, 'repeated row')} (same tile, annotator and label) from the annotation table"
        )
    return AnnotationTable(
        [tile for tile, _ in label_of],
        [annotator for _, annotator in label_of],
        list(label_of.values()),
        [1] * len(label_of),
        str(path),
        tuple(notes),
    )


def _without_no_class(labels: list[str], class_labels: Collection[str], path: Path) -> list[str]:
    """Replace -1 with "" if all labels are whole numbers, as is done for tile labels."""
    no_class = NO_CLASSES - {*class_labels}
    others = {*labels} - no_class - {""}
    if not no_class & {*labels} or not all(map(is_whole, others)):
        return labels
    if len(others) < 2 and not class_labels:
        listed = [NO_CLASS, *sorted(others)]
        raise DataError(
            f"the labels are {shortlist(listed)}: {NO_CLASS} may be a class or mark missing labels",
            where=path,
            fix=f"name the classes, e.g. tiles.classes: {listed}, or leave the cells without a label empty",
        )
    return ["" if label in no_class else label for label in labels]


def _read_counts(table: CsvTable, config: AnnotationsConfig, path: Path) -> AnnotationTable:
    """Read the number of votes per class, one row per tile."""
    tile_column = config.columns.get("tile", "tile")
    columns = read_named_columns(table, {"": tile_column, **config.counts}, path, f"{_WHERE}.columns and counts")
    ids = columns.pop("")
    check_rounded(ids, tile_column, lambda row: f"line {table.lines[row]}", path)
    repeated = repeats(ids, lambda row: f"line {table.lines[row]}")
    problems = [f"tiles with several rows: {shortlist(repeated)}"] if repeated else []
    invalid, large = [], []
    tiles: list[str] = []
    labels: list[str] = []
    times: list[int] = []
    without = 0
    for row, name in enumerate(ids):
        cells = {label: cells[row].removesuffix(".0") for label, cells in columns.items()}
        if not name or not all(cell.isdecimal() for cell in cells.values()):
            invalid.append(f"line {table.lines[row]}")
            continue
        if any(len(cell.lstrip("0")) > len(str(MAX_VOTES)) for cell in cells.values()):
            large.append(f"line {table.lines[row]}")
            continue
        counts = {label: int(cell) for label, cell in cells.items()}
        if config.voters is not None and config.rest is not None:
            counts[config.rest] = config.voters - sum(counts.values())
            if counts[config.rest] < 0:
                invalid.append(f"line {table.lines[row]}")
                continue
        without += not any(counts.values())
        for label, count in counts.items():
            if count:
                tiles.append(name)
                labels.append(label)
                times.append(count)
    if invalid:
        limit = "" if config.voters is None else f" (at most {config.voters} in total)"
        problems.append(
            f"{counted(len(invalid), 'row')} without a tile or without valid vote counts{limit}: {shortlist(invalid)}"
        )
    if large:
        problems.append(f"{counted(len(large), 'row')} with more than {MAX_VOTES:,} votes: {shortlist(large)}")
    if problems:
        raise DataError("; ".join(problems), where=path, fix="write one row per tile, with a whole number per class")
    notes = (f"dropped {counted(without, 'row')} without a vote",) if without else ()
    return AnnotationTable(tiles, [ANONYMOUS] * len(tiles), labels, times, str(path), notes)


def _map_labels(table: AnnotationTable, class_map: Mapping[str, str]) -> AnnotationTable:
    """Replace labels with classes, add up votes for the same class, and drop labels without a class.

    Votes can only be added up for anonymous annotators, because a named annotator has one label per tile.
    """
    others = Counter[str]()
    summed: dict[tuple[str, str, str], int] = {}
    for tile, annotator, label, times in zip(table.tiles, table.annotators, table.labels, table.times, strict=True):
        if label in class_map:
            key = (tile, annotator, class_map[label])
            summed[key] = summed.get(key, 0) + times
        else:
            others[label] += times
    listed = shortlist([f"{name}: {count}" for name, count in sorted(others.items())])
    n_others = counted(sum(others.values()), "label")
    note = f"annotation table: dropped {n_others} that tiles.class_map does not list ({listed})"
    return AnnotationTable(
        [key[0] for key in summed],
        [key[1] for key in summed],
        [key[2] for key in summed],
        list(summed.values()),
        table.where,
        (*table.notes, note) if others else table.notes,
    )
