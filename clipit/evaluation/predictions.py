"""Predictions table, one row per tile: the source of all scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int64, Shaped

from clipit.errors import DataError, counted, repeats, shortlist
from clipit.output_files.artifacts import file_sha256
from clipit.output_files.run_files import read_run_json
from clipit.output_files.whole_files import text_array, write_parquet
from clipit.patients import patients
from clipit.tiles.tileset import TileSet

PREDICTIONS, RESULTS = "predictions.parquet", "results.json"
"""Files of a run that contain its predictions and their scores."""
NO_LABEL = -1
_CLASSES_KEY = b"clipit_classes"
_SUM_TOLERANCE = 1e-3
_REBUILD = "delete this file and run clipit evaluate again"


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of each tile, with its id, split, label and group.

    Attributes:
        splits: Split of each tile: train, validation or test.
        labels: True class indices; -1 where unknown.
        groups: Patient or slide of each tile; "" where unknown.
        classes: Class names, in the order of the class indices.
        probabilities: Class probabilities, one column per class; rows sum to 1.
        zero_shot: Class probabilities predicted zero-shot with class prompts; None for a classifier without prompts.
    """

    ids: Shaped[np.ndarray, " n"]
    splits: Shaped[np.ndarray, " n"]
    labels: Int64[np.ndarray, " n"]
    groups: Shaped[np.ndarray, " n"]
    classes: tuple[str, ...]
    probabilities: Float32[np.ndarray, "n c"]
    zero_shot: Float32[np.ndarray, "n c"] | None = None

    @property
    def patients(self) -> Shaped[np.ndarray, " n"]:
        """Patient (or slide) of each tile, also recognised from TCGA barcodes; "" where unknown."""
        return patients(self.groups, self.ids)

    def select(self, split: str) -> "Predictions":
        """Return the rows of one split."""
        return self.take(self.splits == split)

    def by_id(self) -> "Predictions":
        """Return the rows sorted by id, so that no result depends on their order."""
        return self.take(np.argsort(self.ids, kind="stable"))

    def take(self, rows: Shaped[np.ndarray, " k"]) -> "Predictions":
        """Select rows by a mask or by their positions."""
        return Predictions(
            self.ids[rows],
            self.splits[rows],
            self.labels[rows],
            self.groups[rows],
            self.classes,
            self.probabilities[rows],
            None if self.zero_shot is None else self.zero_shot[rows],
        )


def align_predictions(tables: Sequence[Predictions]) -> list[Predictions]:
    """Sort tables of the same tiles by id and drop unlabelled tiles, so that rows match across tables.

    Raises:
        DataError: There is no table, a table has more than one split, the tables differ in tiles, splits, labels,
            groups or classes, or no tile has a label.
    """
    if not tables:
        raise DataError("no predictions given", fix="pass at least one table of predictions")
    aligned = [table.by_id() for table in tables]
    first = aligned[0]
    splits = sorted({str(split) for table in aligned for split in np.unique(table.splits)})
    if len(splits) > 1:
        raise DataError(
            f"the predictions cover several splits: {', '.join(splits)}",
            fix="select the same split from every table, for example with predictions.select('test')",
        )
    for table in aligned[1:]:
        if not np.array_equal(table.ids, first.ids):
            differing = np.setxor1d(table.ids, first.ids).tolist()
            raise DataError(
                "the predictions cover different tiles; "
                f"{counted(len(differing), 'tile occurs', 'tiles occur')} in only one of them: {shortlist(differing)}",
                fix="compare runs with the same tiles.* keys",
            )
        for name in ("labels", "groups", "classes"):
            if not np.array_equal(getattr(table, name), getattr(first, name)):
                raise DataError(
                    f"the predictions for the same tiles differ in their {name}",
                    fix="compare runs with the same tiles.* keys",
                )
    known = first.labels >= 0
    if not known.any():
        raise DataError("none of the predicted tiles has a label", fix="pass predictions for labelled tiles")
    return [table.take(known) for table in aligned]


def softmax(logits: Float[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
    """Convert logits to probabilities, row by row and in double precision; minus infinity gives 0."""
    from scipy import special

    return np.asarray(special.softmax(logits.astype(np.float64), axis=1), dtype=np.float32)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the table as Parquet, sorted by id, atomically.

    Raises:
        DataError: The predictions are invalid (see `read_predictions`).
    """
    _check(predictions, path)
    predictions = predictions.by_id()
    columns: dict[str, pa.Array] = {
        "id": pa.array(predictions.ids.tolist(), pa.string()),
        "split": pa.array(predictions.splits.tolist(), pa.string()),
        "label": pa.array(predictions.labels, pa.int64()),
        "group": pa.array(predictions.groups.tolist(), pa.string()),
    }
    for prefix, values in (("p_", predictions.probabilities), ("zs_", predictions.zero_shot)):
        if values is not None:
            columns |= {prefix + name: pa.array(values[:, c]) for c, name in enumerate(predictions.classes)}
    metadata = {_CLASSES_KEY: json.dumps(predictions.classes).encode()}
    write_parquet(path, pa.table(columns).replace_schema_metadata(metadata), checksums=True)


def read_predictions(
    path: Path,
    sha256: str | None = None,
    tiles: TileSet | None = None,
    *,
    changed_fix: str = "run clipit evaluate again",
) -> Predictions:
    """Read and check a predictions table.

    Args:
        sha256: SHA-256 of the file when it was scored; None if it is not recorded.
        tiles: Tiles that the predictions are compared with; None to skip the comparison.
        changed_fix: What to do if the SHA-256 differs, for the error message.

    Raises:
        DataError: The file is missing, damaged or changed, lacks a column, has a column of a different type, repeats an
            id, has a label that is not a class, has probabilities that are not finite, are negative or do not sum to 1,
            or covers different tiles.
    """
    try:
        changed = sha256 is not None and file_sha256(path) != sha256
        table = None if changed else pq.read_table(path, page_checksum_verification=True)
        present = [] if table is None else table.column_names
    except FileNotFoundError as error:
        raise DataError("the predictions file does not exist", where=path, fix="run clipit evaluate first") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"unreadable predictions: {error}", where=path, fix=_REBUILD) from error
    if table is None:
        raise DataError("the predictions have changed since they were scored", where=path, fix=changed_fix)
    try:
        classes = tuple(json.loads((table.schema.metadata or {})[_CLASSES_KEY]))
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            "the table does not name its classes", where=path, fix="write it with write_predictions"
        ) from error
    names = ["id", "split", "label", "group", *(f"p_{name}" for name in classes)]
    zero_shot = [f"zs_{name}" for name in classes]
    has_zero_shot = len(present) > len(names)
    names += zero_shot if has_zero_shot else []
    missing = [name for name in names if name not in present]
    if missing or len(present) > len(names):
        unknown = [name for name in present if name not in names]
        problems = [
            f"{kind} columns: {shortlist(differing)}"
            for kind, differing in (("missing", missing), ("unknown", unknown))
            if differing
        ]
        raise DataError("; ".join(problems) or "repeated columns", where=path, fix=_REBUILD)
    if any(table[name].null_count for name in names):
        raise DataError("empty cells in the table", where=path, fix=_REBUILD)
    differing = [name for name in names if not _has_type(name, table.schema.field(name).type)]
    if differing:
        raise DataError(f"columns of the wrong type: {shortlist(differing)}", where=path, fix=_REBUILD)
    predictions = Predictions(
        ids=_texts(table["id"]),
        splits=_texts(table["split"]),
        labels=table["label"].to_numpy().astype(np.int64),
        groups=_texts(table["group"]),
        classes=classes,
        probabilities=_matrix(table, [f"p_{name}" for name in classes]),
        zero_shot=_matrix(table, zero_shot) if has_zero_shot else None,
    )
    _check(predictions, path)
    if tiles is not None:
        _check_tiles(predictions, tiles, path)
    return predictions


def read_run_predictions(run: Path, tiles: TileSet | None = None) -> Predictions:
    """Read the predictions of a finished run, and check that its results were computed from them.

    Args:
        tiles: Tiles of the run's configuration; None to skip the comparison with them.

    Raises:
        DataError: See `read_predictions`; or the folder does not contain a finished run.
        ArtifactError: results.json is damaged or belongs to a different run.
    """
    if not (run / RESULTS).is_file():
        raise DataError("this folder does not contain a finished run", where=run, fix="run clipit train first")
    results = read_run_json(
        run / RESULTS, run, "delete this file and run clipit train again; the run is re-evaluated without training"
    )
    return read_predictions(run / PREDICTIONS, results.get("predictions_sha256"), tiles)


def _has_type(name: str, kind: pa.DataType) -> bool:
    """Check whether a column has the expected type: texts, class indices or probabilities."""
    if name in ("id", "split", "group"):
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
    return bool(pa.types.is_integer(kind) or (name != "label" and pa.types.is_floating(kind)))


def _texts(column: pa.ChunkedArray) -> Shaped[np.ndarray, " n"]:
    return text_array(column.to_pylist())


def _matrix(table: pa.Table, names: Sequence[str]) -> Float32[np.ndarray, "n c"]:
    return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32)


def _check_tiles(predictions: Predictions, tiles: TileSet, where: Path) -> None:
    """Check that the predictions cover whole splits of these tiles, with the same classes and labels."""
    fix = "use a run with this configuration, or delete the file and run clipit evaluate again"
    if predictions.classes != tiles.classes:
        raise DataError(
            f"the predictions have the classes {', '.join(predictions.classes)}; the tiles have "
            f"{', '.join(tiles.classes)}",
            where=where,
            fix=fix,
        )
    rows = np.isin(tiles.splits, predictions.splits)
    order, by_id = np.argsort(tiles.ids[rows], kind="stable"), predictions.by_id()
    ids, splits, labels = (values[rows][order] for values in (tiles.ids, tiles.splits, tiles.truth))
    if not np.array_equal(by_id.ids, ids):
        differing = np.setxor1d(by_id.ids, ids).tolist()
        raise DataError(
            "the predictions and the configuration have different tiles; "
            f"{counted(len(differing), 'tile occurs', 'tiles occur')} in only one of them: {shortlist(differing)}",
            where=where,
            fix=fix,
        )
    hidden = (by_id.labels == NO_LABEL) | (labels == NO_LABEL)
    differing = ids[(by_id.splits != splits) | ((by_id.labels != labels) & ~hidden)].tolist()
    if differing:
        raise DataError(
            f"the splits or labels of {counted(len(differing), 'tile')} differ from those in the configuration: "
            f"{shortlist(differing)}",
            where=where,
            fix=fix,
        )


def _check(predictions: Predictions, where: Path) -> None:
    ids, n, n_classes = predictions.ids, len(predictions.ids), len(predictions.classes)
    if repeated := repeats(ids.tolist(), lambda row: f"row {row + 1}"):
        problem = f"duplicate tile ids: {shortlist(repeated, 3)}"
        raise DataError(problem, where=where, fix="keep one prediction per tile")
    outside = (predictions.labels < NO_LABEL) | (predictions.labels >= n_classes)
    if outside.any():
        raise DataError(
            f"labels outside the {n_classes} classes: tiles {shortlist(ids[outside].tolist())}",
            where=where,
            fix="use 0 for the first class and -1 for an unknown label",
        )
    for name, values in (("probabilities", predictions.probabilities), ("zero-shot", predictions.zero_shot)):
        if values is None:
            continue
        if values.shape != (n, n_classes):
            shape = " x ".join(map(str, values.shape))
            raise DataError(
                f"{name}: {shape}, expected {n} x {n_classes}", where=where, fix="pass one column per class"
            )
        invalid = ~np.isfinite(values).all(axis=1) | (values < 0).any(axis=1)
        invalid |= ~(np.abs(values.sum(axis=1) - 1) < _SUM_TOLERANCE)
        if invalid.any():
            raise DataError(
                f"{name}: not finite, negative or not summing to 1 for {counted(int(invalid.sum()), 'tile')}: "
                f"{shortlist(ids[invalid].tolist())}",
                where=where,
                fix="apply a softmax; NaN means that the training diverged",
            )
