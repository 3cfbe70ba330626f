"""Pairing rules by the report: organs and groups of the reports that contain each snippet of the index."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from clipit.errors import DataError, shortlist
from clipit.stores.embed import Store
from clipit.stores.index import Index


def allowed_snippets(index: Index, sources: pa.Table | None, organs: Sequence[str]) -> Bool[np.ndarray, "s"]:
    """Select rows of the index with a source among these organs (ignoring case); all rows if no organs are given.

    Raises:
        DataError: No report has one of the organs, or no organ is known.
    """
    if not organs:
        return np.ones(len(index.ids), dtype=np.bool_)
    rows, values = _sources(index, sources, "organ")
    values = np.char.lower(np.char.strip(values))
    wanted = sorted({organ.strip().lower() for organ in organs})
    known = sorted(set(values.tolist()) - {""})
    unknown = [organ for organ in wanted if organ not in known]
    if unknown:
        raise DataError(
            f"no snippet comes from a report of organ {shortlist(unknown)}",
            where="pairing.organs",
            fix=f"use organs that the reports have: {shortlist(known, 20)}"
            if known
            else "the reports have no organs: set reports.organ_column, or remove pairing.organs",
        )
    allowed = np.zeros(len(index.ids), dtype=np.bool_)
    allowed[rows[np.isin(values, wanted)]] = True
    return allowed


def sole_groups(index: Index, sources: pa.Table | None) -> np.ndarray:
    """Return the only group that contains each row of the index; "" if there are several or it is unknown."""
    rows, values = _sources(index, sources, "group")
    sole = np.full(len(index.ids), "", dtype=values.dtype)
    several = np.zeros(len(index.ids), dtype=np.bool_)
    sole[rows] = values  # keeps the last source of each row
    several[rows[sole[rows] != values]] = True
    sole[several] = ""
    return sole


def owners(
    snippet_groups: np.ndarray, tiles: Store, groups: Mapping[str, str] | None
) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "n"]]:
    """Number the groups of snippets and tiles consistently; -1 if unknown.

    Raises:
        DataError: No group of a tile, or of a report, is known.
    """
    tile_groups = np.asarray([(groups or {}).get(tile, "") for tile in tiles.ids.tolist()], dtype=np.str_)
    for kind, names, fix in (
        ("tiles", tile_groups, "add a group column to the tiles (tiles.columns)"),
        ("reports", snippet_groups, "set reports.group_column"),
    ):
        if not (names != "").any():
            raise DataError(
                f"no groups of {kind} are known",
                where="pairing.exclude_same_group",
                fix=f"{fix}, or remove pairing.exclude_same_group",
            )
    names, numbers = np.unique(np.concatenate([snippet_groups, tile_groups]), return_inverse=True)
    numbers = np.where(names[numbers] == "", -1, numbers).astype(np.int64)
    return numbers[: len(snippet_groups)], numbers[len(snippet_groups) :]


def _sources(index: Index, sources: pa.Table | None, column: str) -> tuple[Int[np.ndarray, "_"], np.ndarray]:
    """Return the row of the index and the value of a column for each source of each snippet.

    A row that represents several snippets with equal embeddings has the sources of all of them.
    """
    if sources is None:
        raise DataError(
            "the reports of the snippets are not known",
            where="pairing",
            fix="delete the snippets artefact, so that it is built again",
        )
    row_of = dict(zip(index.store.ids.tolist(), row_of_each(index).tolist(), strict=True))
    rows = [row_of[snippet] for snippet in sources.column("snippet_id").to_pylist()]
    values = ["" if value is None else str(value) for value in sources.column(column).to_pylist()]
    return np.asarray(rows, dtype=np.int64), np.asarray(values, dtype=np.str_)


def row_of_each(index: Index) -> Int[np.ndarray, "_"]:
    """Return the row of the index that represents each snippet of the store."""
    import hashlib

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
