"""Several predictions of the same tiles, row beside row."""

from collections.abc import Sequence

import numpy as np

from clipit.errors import DataError, explain, shortlist
from clipit.evaluation.predictions import Predictions


def same_tiles(tables: Sequence[Predictions]) -> list[Predictions]:
    """The tables sorted by id, without tiles that have no label.

    Raises:
        DataError: There is no table, they hold more than one split, or they differ in tiles, splits, labels, groups or
            classes; or no tile has a label.
    """
    if not tables:
        raise DataError(explain("no predictions given", fix="give at least one table per side"))
    aligned = [table.by_id() for table in tables]
    first = aligned[0]
    splits = sorted({str(split) for table in aligned for split in np.unique(table.splits)})
    if len(splits) > 1:
        raise DataError(
            explain(
                f"predictions of several splits: {', '.join(splits)}",
                fix="compare one split at a time, the same on both sides: predictions.select('test')",
            )
        )
    for table in aligned[1:]:
        if not np.array_equal(table.ids, first.ids):
            odd = np.setxor1d(table.ids, first.ids).tolist()
            raise DataError(
                explain(
                    f"the predictions are not of the same tiles; {len(odd)} are in one table only: {shortlist(odd)}",
                    fix="compare runs with equal tiles.* keys",
                )
            )
        for name in ("labels", "groups", "classes"):
            if not np.array_equal(getattr(table, name), getattr(first, name)):
                raise DataError(
                    explain(
                        f"the predictions of the same tiles differ in their {name}",
                        fix="compare runs with equal tiles.* keys",
                    )
                )
    known = first.labels >= 0
    if not known.any():
        raise DataError(explain("no tile of the predictions has a label", fix="give predictions of labelled tiles"))
    return [table.take(known) for table in aligned]
