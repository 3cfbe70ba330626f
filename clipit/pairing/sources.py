"""Where snippets come from: which organs' and which groups' reports hold what a row of the index stands for."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from clipit.errors import DataError, explain, shortlist
from clipit.stores.embed import Store
from clipit.stores.index import Index


def allowed_snippets(index: Index, sources: pa.Table | None, organs: Sequence[str]) -> Bool[np.ndarray, "s"]:
    """Rows of the index with a source among these organs (any case); all rows when no organ is given.

    Raises:
        DataError: An organ that no report has, or no organ is known at all.
    """
    if not organs:
        return np.ones(len(index.ids), dtype=np.bool_)
    rows, found = _sources(index, sources, "organ")
    found = np.char.lower(np.char.strip(found))
    wanted = sorted({organ.strip().lower() for organ in organs})
    known = sorted(set(found.tolist()) - {""})
    unknown = [organ for organ in wanted if organ not in known]
    if unknown:
        raise DataError(
            explain(
                f"no snippet comes from a report of {shortlist(unknown)}",
                where="pairing.organs",
                fix=f"use organs that the reports have: {shortlist(known, 20)}"
                if known
                else "the reports name no organ: set reports.organ_column, or leave pairing.organs out",
            )
        )
    allowed = np.zeros(len(index.ids), dtype=np.bool_)
    allowed[rows[np.isin(found, wanted)]] = True
    return allowed


def sole_groups(index: Index, sources: pa.Table | None) -> np.ndarray:
    """The group that alone holds each row of the index; "" where there are several or it is unknown."""
    rows, found = _sources(index, sources, "group")
    sole = np.full(len(index.ids), "", dtype=found.dtype)
    several = np.zeros(len(index.ids), dtype=np.bool_)
    sole[rows] = found  # the last source of each row, whichever it is
    several[rows[sole[rows] != found]] = True
    sole[several] = ""
    return sole


def owners(
    snippet_groups: np.ndarray, tiles: Store, groups: Mapping[str, str] | None
) -> tuple[Int[np.ndarray, "s"], Int[np.ndarray, "n"]]:
    """Groups of snippets and of tiles as numbers, equal for equal groups; -1 where unknown.

    Raises:
        DataError: The groups of all tiles, or those of all reports, are unknown.
    """
    tile_groups = np.asarray([(groups or {}).get(tile, "") for tile in tiles.ids.tolist()], dtype=np.str_)
    for whose, found, fix in (
        ("the tiles", tile_groups, "give the tiles a group column (tiles.columns)"),
        ("the reports", snippet_groups, "set reports.group_column"),
    ):
        if not (found != "").any():
            raise DataError(
                explain(
                    f"{whose} have no group of their own that is known",
                    where="pairing.exclude_same_group",
                    fix=f"{fix}, or leave pairing.exclude_same_group out",
                )
            )
    names, numbers = np.unique(np.concatenate([snippet_groups, tile_groups]), return_inverse=True)
    numbers = np.where(names[numbers] == "", -1, numbers).astype(np.int64)
    return numbers[: len(snippet_groups)], numbers[len(snippet_groups) :]


def _sources(index: Index, sources: pa.Table | None, column: str) -> tuple[Int[np.ndarray, "_"], np.ndarray]:
    """Row of the index and value of this column, for each source of each snippet.

    A row that stands for several snippets of equal embedding has the sources of them all.
    """
    if sources is None:
        raise DataError(
            explain("the sources of the snippets are not known", where="pairing", fix="cut the reports again")
        )
    row_of = dict(zip(index.store.ids.tolist(), row_of_each(index).tolist(), strict=True))
    rows = [row_of[snippet] for snippet in sources.column("snippet_id").to_pylist()]
    values = ["" if value is None else str(value) for value in sources.column(column).to_pylist()]
    return np.asarray(rows, dtype=np.int64), np.asarray(values, dtype=np.str_)


def row_of_each(index: Index) -> Int[np.ndarray, "_"]:
    """For each snippet of the store the row of the index that stands for it."""
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
