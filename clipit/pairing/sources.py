"""Pairing rules based on reports: organs and patients of the reports that contain a snippet."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from clipit.errors import DataError, shortlist
from clipit.output_files.whole_files import text_array
from clipit.patients import patient, patient_in, slides_of_patients
from clipit.stores.embed import Store
from clipit.stores.index import Index


def allowed_snippets(index: Index, sources: pa.Table | None, organs: Sequence[str]) -> Bool[np.ndarray, "s"]:
    """Return a mask of the snippets that occur in reports with these organs, ignoring case; all if `organs` is empty.

    Raises:
        DataError: No report has one of the organs, or no organ is known.
    """
    if not organs:
        return np.ones(len(index.ids), dtype=np.bool_)
    rows, organ_names = _sources(index, sources, "organ")
    values = text_array(name.strip().lower() for name in organ_names.tolist())
    selected = sorted({organ.strip().lower() for organ in organs})
    known = sorted(set(values.tolist()) - {""})
    unknown = [organ for organ in selected if organ not in known]
    if unknown:
        raise DataError(
            f"no snippet comes from a report with the organ {shortlist(unknown)}",
            where="pairing.organs",
            fix=f"use organs that occur in the reports: {shortlist(known, 20)}"
            if known
            else "the reports have no organs: set reports.organ_column, or remove pairing.organs",
        )
    allowed = np.zeros(len(index.ids), dtype=np.bool_)
    allowed[rows[np.isin(values, selected)]] = True
    return allowed


def joined_slides(sources: pa.Table | None, tiles: Store, groups: Mapping[str, str] | None) -> dict[str, str]:
    """Map slides named by the tiles to patients named by the reports, or vice versa (`slides_of_patients`)."""
    if sources is None:
        return {}
    reports = sources.group_by(["group", "report_id"]).aggregate([]).to_pylist()
    names = [patient(report["group"] or "") or patient_in(report["report_id"] or "") for report in reports]
    return slides_of_patients(names, _tile_patients(tiles, groups).tolist())


def sole_groups(index: Index, sources: pa.Table | None, joined: Mapping[str, str] | None = None) -> np.ndarray:
    """Return the only patient whose reports contain each snippet; "" if there are several, or if one is unknown.

    Args:
        joined: Patient of each slide that the reports name (`joined_slides`); None if reports name patients.
    """
    rows, values = _source_patients(index, sources)
    values = _replaced(values, joined or {})
    sole = np.full(len(index.ids), "", dtype=values.dtype)
    several = np.zeros(len(index.ids), dtype=np.bool_)
    sole[rows] = values  # keeps the last source of each row
    several[rows[sole[rows] != values]] = True
    sole[several] = ""
    return sole


def number_owners(
    index: Index, sources: pa.Table | None, tiles: Store, groups: Mapping[str, str] | None
) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "n"]]:
    """Number the patients of snippets (`sole_groups`) and tiles consistently; -1 if unknown.

    Raises:
        DataError: All tiles, or all reports, lack a group.
    """
    joined = joined_slides(sources, tiles, groups)
    snippet_groups = sole_groups(index, sources, joined)
    tile_groups = _replaced(_tile_patients(tiles, groups), joined)
    _check_known(tile_groups, snippet_groups, "pairing.exclude_same_group")
    names, numbers = np.unique(np.concatenate([snippet_groups, tile_groups]), return_inverse=True)
    numbers = np.where(names[numbers] == "", -1, numbers).astype(np.int64)
    return numbers[: len(snippet_groups)], numbers[len(snippet_groups) :]


@dataclass(frozen=True)
class OwnSnippets:
    """Snippets from the reports of each tile's patient.

    Attributes:
        rows: Rows of the index for each patient, ascending; the last entry is empty, for tiles of unknown patients.
        owners: Index into `rows` of each tile's patient.
    """

    rows: tuple[Int[np.ndarray, "_"], ...]
    owners: Int[np.ndarray, "n"]


def own_snippets(index: Index, sources: pa.Table | None, tiles: Store, groups: Mapping[str, str] | None) -> OwnSnippets:
    """Find the snippets of each tile's patient.

    Raises:
        DataError: All tiles, or all reports, lack a group, or no tile has a snippet.
    """
    tile_patients = _tile_patients(tiles, groups)
    rows, patients = _source_patients(index, sources)
    _check_known(tile_patients, patients, "pairing.reports")
    names = sorted(set(tile_patients.tolist()) - {""})
    rows_of: dict[str, set[int]] = {name: set() for name in names}
    for row, name in zip(rows.tolist(), patients.tolist(), strict=True):
        if name in rows_of:
            rows_of[name].add(row)
    if not any(rows_of.values()):
        raise DataError(
            f"no training tile has a report of its patient; the tile groups are {shortlist(names, 3)}, "
            f"the report groups {shortlist(sorted(set(patients.tolist()) - {''}), 3)}",
            where="pairing.reports",
            fix="use the same patient ids in both (reports.group_column, reports.metadata), or set pairing.reports=any",
        )
    number = {name: position for position, name in enumerate(names)} | {"": len(names)}
    return OwnSnippets(
        (*(np.array(sorted(rows_of[name]), dtype=np.int64) for name in names), np.empty(0, dtype=np.int64)),
        np.asarray([number[name] for name in tile_patients.tolist()], dtype=np.int64),
    )


def _tile_patients(tiles: Store, groups: Mapping[str, str] | None) -> np.ndarray:
    known = groups or {}
    return text_array(patient(known.get(tile, "")) or patient_in(tile) for tile in tiles.ids.tolist())


def _replaced(names: np.ndarray, joined: Mapping[str, str]) -> np.ndarray:
    return text_array(joined.get(name, name) for name in names.tolist()) if joined else names


def _check_known(tile_patients: np.ndarray, report_patients: np.ndarray, key: str) -> None:
    for kind, names, fix in (
        ("tiles", tile_patients, "add a `group` column to the tile table (tiles.columns)"),
        ("reports", report_patients, "set reports.group_column"),
    ):
        if not (names != "").any():
            raise DataError(f"the {kind} have no groups", where=key, fix=f"{fix}, or remove {key}")


def _source_patients(index: Index, sources: pa.Table | None) -> tuple[Int[np.ndarray, "_"], np.ndarray]:
    """Return the row of the index and the patient for each source of each snippet; "" if unknown."""
    rows, groups = _sources(index, sources, "group")
    _, reports = _sources(index, sources, "report_id")
    pairs = zip(groups.tolist(), reports.tolist(), strict=True)
    return rows, text_array(patient(group) or patient_in(report) for group, report in pairs)


def _sources(index: Index, sources: pa.Table | None, column: str) -> tuple[Int[np.ndarray, "_"], np.ndarray]:
    """Return the row of the index and the value of a column for each source of each snippet.

    A row that represents several snippets with equal embeddings has the sources of all these snippets.
    """
    if sources is None:
        raise DataError(
            "it is unknown which reports the snippets come from",
            where="pairing",
            fix="delete the snippets artefact; it is then rebuilt",
        )
    row_of = dict(zip(index.store.ids.tolist(), representative_rows(index).tolist(), strict=True))
    rows = [row_of[snippet] for snippet in sources.column("snippet_id").to_pylist()]
    values = ["" if value is None else str(value) for value in sources.column(column).to_pylist()]
    return np.asarray(rows, dtype=np.int64), text_array(values)


def representative_rows(index: Index) -> Int[np.ndarray, "_"]:
    """Return the row of the index that represents each snippet of the store."""
    row_of = np.full(len(index.store.ids), -1, dtype=np.int64)
    row_of[index.rows_in_store] = np.arange(len(index.ids))
    if not (row_of < 0).any():
        return row_of
    digests = [
        hashlib.blake2b(vector.tobytes(), digest_size=16).digest()
        for _, block in index.store.blocks()
        for vector in block.astype(np.float16)
    ]
    row_of_digest = {digests[store_row]: row for row, store_row in enumerate(index.rows_in_store.tolist())}
    return np.asarray([row_of_digest[digest] for digest in digests], dtype=np.int64)
