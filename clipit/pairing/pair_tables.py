"""The table of pairs: one row per tile and snippet; candidates that were dropped, until they are counted."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int

from clipit.pairing.selection import REASONS, Candidates, Selection, judge, weights


def pair_table(
    tile_ids: np.ndarray, snippet_ids: np.ndarray, rows: Int[np.ndarray, "q k"], scores: Float32[np.ndarray, "q k"]
) -> pa.Table:
    """Pairs by tile, then rank; where the score is -inf there is none."""
    valid = np.isfinite(scores)
    tile, rank = np.nonzero(valid)
    return pa.table(
        {
            "tile_id": pa.array(tile_ids[tile].tolist(), pa.string()),
            "rank": pa.array(rank, pa.int16()),
            "snippet_id": pa.array(snippet_ids[rows[valid]].tolist(), pa.string()),
            "score": pa.array(scores[valid], pa.float32()),
        }
    )


def judged_table(tile_ids: np.ndarray, selection: Selection, candidates: Candidates) -> pa.Table:
    """Candidates as pairs, with the column `reason` (number in `REASONS`) and, if asked for, `weight`.

    The kept ones of each tile are ranked from 0 without gaps; the others have rank -1.
    """
    reasons = judge(candidates, selection.rules, selection.mutual)
    rows, scores = candidates.rows[:, :-1], candidates.cosines[:, :-1]
    there, kept = reasons >= 0, reasons == 0
    table = pair_table(tile_ids, selection.index.ids, rows, scores)
    ranks = np.where(kept, np.cumsum(kept, axis=1) - 1, -1)[there]
    table = table.set_column(1, "rank", pa.array(ranks, pa.int16()))
    if selection.rules.score_temperature is not None:
        share = weights(scores, kept, selection.rules.score_temperature)[there]
        table = table.append_column("weight", pa.array(share, pa.float32()))
    return table.append_column("reason", pa.array(reasons[there], pa.int8()))


def kept_pairs(judged: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The pairs that were kept, and how many were dropped for which reason."""
    reasons = np.asarray(judged.column("reason"))
    dropped = {name: int((reasons == number).sum()) for number, name in enumerate(REASONS) if number}
    kept = judged.filter(pa.array(reasons == 0)).drop_columns(["reason"])
    return kept, {name: count for name, count in dropped.items() if count}
