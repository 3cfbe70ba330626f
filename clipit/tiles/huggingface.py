"""Tiles from a Hugging Face data set: a local folder, or `hf:owner/name` on the hub."""

import io
from pathlib import Path
from typing import Any

from PIL import Image

from clipit.config.run import TilesConfig
from clipit.data_files import check_arrow, load_huggingface
from clipit.errors import DataError, is_limit, shortlist
from clipit.images import ImageError, decode
from clipit.tiles.cells import parse_mpp, read_cells, resolve_missing
from clipit.tiles.groups import names_groups
from clipit.tiles.source import ALIASES, SourceTiles
from clipit.tiles.splits import configured_parts, part_map

_DEFAULTS = {"path": "image", "label": "label"}


class DatasetReader:
    """Decodes an image column over several parts of a data set; rows are numbered across the parts."""

    def __init__(self, parts: dict[str, Any], column: str) -> None:
        """Index the rows of the parts (name -> `datasets.Dataset` with undecoded images)."""
        self._parts = parts
        self._column = column
        self._places = [(name, row) for name, part in parts.items() for row in range(part.num_rows)]

    def read(self, row: int) -> Image.Image:
        """Decode the image of a row."""
        name, part_row = self._places[row]
        try:
            value = self._parts[name][part_row][self._column] or {}
        except Exception as error:  # of pyarrow, for damaged files
            if is_limit(error):
                raise
            raise ImageError(f"{type(error).__name__}: {error}") from error
        if value.get("bytes") is not None:
            return decode(io.BytesIO(value["bytes"]))
        if not value.get("path"):
            raise ImageError("the row has no image")
        return decode(Path(value["path"]))

    def where(self, row: int) -> str:
        """Return part and row, for messages."""
        name, part_row = self._places[row]
        return f"part {name}, row {part_row}"


def read_huggingface(config: TilesConfig) -> SourceTiles:
    """Read the tiles of a data set; the id is the `id` column if tiles.columns names one, else `<part>/<row>`.

    The image column is `image` and the label column `label` unless tiles.columns says otherwise (`path` names the image
    column). Parts that tiles.splits, if given, does not map are dropped. A data set without parts is used as train.

    Raises:
        DataError: The data set cannot be loaded, or lacks parts or columns.
    """
    loaded = load_huggingface(config.path, "tiles.path")
    parts = _select_parts(dict(loaded) if isinstance(loaded, dict) else {"train": loaded}, config)
    names = {key: config.columns.get(key, _DEFAULTS.get(key, key)) for key in ("id", "path", "label", "group", "mpp")}
    labelled = config.labels.kind != "none" and config.annotations is None
    required = {"path"} | set(config.columns) - {"split"} | ({"label"} if labelled else set())
    columns: dict[str, list[str]] = {key: [] for key in names}
    part_of_row: list[str] = []
    stamps: list[str] = []
    classes: tuple[str, ...] | None = None
    present = {name for rows in parts.values() for name in rows.column_names}
    others: dict[str, list[str]] = {
        name: [] for name in sorted(present - {*names.values()}) if names_groups(name) and names["group"] not in present
    }
    undecoded: dict[str, Any] = {}
    for part, rows in parts.items():
        missing = sorted(names[key] for key in required if names[key] not in rows.column_names)
        if missing:
            raise DataError(
                f"missing columns: {', '.join(missing)}; part {part} has: {', '.join(rows.column_names)}",
                where=config.path,
                fix="set the column names in tiles.columns (path: the image column)",
            )
        check_arrow(rows, f"{config.path}, part {part}")
        undecoded[part] = _undecoded_images(rows, names["path"], config.path)
        part_classes = tuple(getattr(rows.features.get(names["label"]), "names", None) or ()) or None
        if classes is not None and part_classes != classes:
            raise DataError("the parts have different class names", where=config.path, fix="repair the data set")
        classes = part_classes
        part_of_row += [part] * rows.num_rows
        stamps += [str(rows._fingerprint)] * rows.num_rows
        for key in ("id", "label", "group", "mpp"):
            columns[key] += _column_as_text(
                rows, names[key], part_classes if key == "label" else None, f"{config.path}, part {part}"
            )
        for name, values in others.items():
            values += _column_as_text(rows, name, None, f"{config.path}, part {part}")
    if not part_of_row:
        raise DataError("the data set has no rows", where=config.path, fix="choose another")
    row_ids = [f"{part}/{row:06d}" for part, rows in parts.items() for row in range(rows.num_rows)]
    ids = columns["id"] if "id" in config.columns else row_ids
    without_id = [row_ids[row] for row, name in enumerate(ids) if not name]
    if without_id:
        raise DataError(f"tiles without an id: {shortlist(without_id)}", where=config.path, fix="choose another column")
    labels, label_notes = columns["label"], tuple[str, ...]()
    if classes is None:
        labels, label_notes = resolve_missing(labels, "label", config, config.path, row_ids.__getitem__)
    groups, group_notes = resolve_missing(columns["group"], "group", config, config.path, row_ids.__getitem__)
    return SourceTiles(
        ids=ids,
        labels=labels,
        parts=part_of_row,
        groups=groups,
        mpp=parse_mpp(columns["mpp"], config.path, row_ids.__getitem__),
        stamps=stamps,
        reader=DatasetReader(undecoded, names["path"]),
        where=config.path,
        classes=classes,
        notes=(*label_notes, *group_notes),
        columns=others,
    )


def _select_parts(parts: dict[str, Any], config: TilesConfig) -> dict[str, Any]:
    absent = sorted(set(configured_parts(config.splits)) - set(parts))
    if absent:
        raise DataError(
            f"no part {shortlist(absent)}; the data set has: {', '.join(parts)}",
            where=config.path,
            fix="correct tiles.splits",
        )
    if not config.splits:
        return parts
    mapping = part_map(config.splits, ALIASES)
    return {name: rows for name, rows in parts.items() if name in mapping}


def _undecoded_images(rows: Any, column: str, where: str) -> Any:
    """Select the image column as bytes or paths, because clipit's own decoding detects truncated images."""
    import datasets

    if not isinstance(rows.features[column], datasets.Image):
        raise DataError(
            f"column {column} contains {rows.features[column]}, not images",
            where=where,
            fix="name the image column: tiles.columns.path",
        )
    return rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _column_as_text(rows: Any, column: str, classes: tuple[str, ...] | None, where: str) -> list[str]:
    """Read a column as text: "" where absent or missing, class names in place of class numbers."""
    if column not in rows.column_names:
        return [""] * int(rows.num_rows)
    try:
        values = list(rows[column])
        if classes is not None:
            values = [None if value is None or value < 0 else classes[value] for value in values]
    except Exception as error:  # of pyarrow, for damaged files
        raise DataError(
            f"cannot read column {column}: {type(error).__name__}: {error}", where=where, fix="download it again"
        ) from error
    return read_cells(values, column, where, lambda row: f"row {row}")
