"""Pairing rules side by side, computed in memory: a table to choose from. Nothing is written, nothing is chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from clipit.config import PairingConfig
from clipit.distributed import processes
from clipit.embedding import Store, centred
from clipit.index import Index
from clipit.pairing.agreement import agreement
from clipit.pairing.pair_tables import judged_table, kept_pairs
from clipit.pairing.pairs import check_same_encoder
from clipit.pairing.search import check_finite
from clipit.pairing.selection import Selection, find, prepare
from clipit.pairing.summary import summarise

CORRECTIONS = ("none", "csls", "inverted_softmax", "sinkhorn")
_COLUMNS = {
    "without_pair": "no pair",
    "snippets_used": "snippets used",
    "hub_share": "top 1 % hold",
    "skewness": "skewness",
    "score_mean": "mean cosine",
    "neighbours": "label of neighbours",
    "neighbours_tiles": "(on tiles)",
    "zero_shot": "label of text",
    "score_auroc": "score AUROC",
}


@dataclass(frozen=True)
class Option:
    """One line of the table.

    Attributes:
        name: The rules in short.
        rules: To be copied into the configuration.
        summary: Of `summarise`, with `agreement` where labels were given.
    """

    name: str
    rules: PairingConfig
    summary: Mapping[str, Any]

    def figure(self, column: str) -> float | int | None:
        """One of the table's figures; None where it is undefined."""
        key = "share_without_pair" if column == "without_pair" else column
        found: float | int | None = self.summary.get(key, self.summary.get("agreement", {}).get(key))
        return found


def compare_options(
    index: Index,
    tiles: Store,
    rules: PairingConfig,
    *,
    thresholds: Sequence[float] | None = None,
    sources: pa.Table | None = None,
    groups: Mapping[str, str] | None = None,
    labels: Mapping[str, int] | None = None,
    class_vectors: Float32[np.ndarray, "classes dim"] | None = None,
) -> list[Option]:
    """Every correction with and without a threshold and mutual neighbours, the other rules as configured.

    Args:
        index: Flat index over the snippets.
        tiles: Training tiles.
        rules: The configuration; its correction, threshold and mutual are varied, all else (k, block, ...) holds.
        thresholds: Cosines to try; by default the configured one, else the lower quartile and the median of the
            uncorrected nearest snippets' cosines.
        sources: As for `pair_tiles`.
        groups: As for `pair_tiles`.
        labels: Tile id -> class of the tiles whose label training may see; others negative or absent.
        class_vectors: Class prompts, centred as the snippets are.

    Raises:
        ConfigError: The index is not Flat.
        DataError: As `pair_tiles`, but rules that leave no pair are shown, not refused.
    """
    check_same_encoder(index, tiles)
    check_finite(tiles, "tiles")
    check_finite(index.store, "snippets")
    tried = thresholds if thresholds is not None else [] if rules.threshold is None else [rules.threshold]
    found: list[Option] = []
    for correction in CORRECTIONS:
        base = rules.model_copy(update={"correction": correction, "threshold": None, "mutual": True})
        prepared = prepare(index, tiles, base, block=rules.block, sources=sources, groups=groups)
        plain = rules.model_copy(update={"correction": correction, "threshold": None, "mutual": False})
        if not tried and correction == "none":
            tried = _quartiles(_tables(prepared, [plain], tiles)[0])
        variants = [plain, *(plain.model_copy(update={"threshold": value}) for value in tried), base]
        tables = _tables(prepared, variants, tiles)
        for variant, judged in zip(variants, tables, strict=True):
            kept, dropped = kept_pairs(judged)
            seen = agreement(kept, labels, index=index, class_vectors=class_vectors) if labels is not None else None
            summary = summarise(kept, len(index.ids), n_tiles=len(tiles.ids), dropped=dropped, agreement=seen)
            found.append(Option(_name(variant), variant, summary))
    return found


def options_text(options: Sequence[Option]) -> str:
    """The table for people; `n/a` where a figure is undefined."""
    columns = [c for c in _COLUMNS if any(option.figure(c) is not None for option in options)]
    rows = [["rules", *(_COLUMNS[column] for column in columns)]]
    for option in options:
        figures = [option.figure(column) for column in columns]
        rows.append([option.name, *(_cell(figure) for figure in figures)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _tables(prepared: Selection, variants: Sequence[PairingConfig], tiles: Store) -> list[pa.Table]:
    """The judged candidates of all tiles under several rules that share correction and k, in all processes."""
    here, rules = processes(), prepared.rules
    mean = tiles.mean() if prepared.index.mean is not None else None
    selections = [replace(prepared, rules=v, mutual=prepared.mutual if v.mutual else None) for v in variants]
    own: dict[int, list[pa.Table]] = {}
    for start in here.share(range(0, len(tiles.ids), rules.block)):
        rows = np.arange(start, min(start + rules.block, len(tiles.ids)))
        candidates = find(prepared, centred(tiles.rows(rows), mean), prepared.owners[rows], rules.k)
        own[start] = [judged_table(tiles.ids[rows], selection, candidates) for selection in selections]
    merged: dict[int, list[pa.Table]] = {}
    for part in here.gather(own):
        merged |= part
    return [pa.concat_tables([merged[start][i] for start in sorted(merged)]) for i in range(len(variants))]


def _quartiles(judged: pa.Table) -> list[float]:
    scores = np.asarray(judged.column("score"))[np.asarray(judged.column("rank")) == 0]
    return [round(float(value), 3) for value in np.quantile(scores, (0.25, 0.5))] if len(scores) else []


def _name(rules: PairingConfig) -> str:
    parts: list[str] = [rules.correction]
    if rules.threshold is not None:
        parts.append(f"threshold {rules.threshold:g}")
    if rules.mutual:
        parts.append(f"mutual {rules.mutual_neighbours}")
    return ", ".join(parts)


def _cell(figure: float | int | None) -> str:
    if figure is None:
        return "n/a"
    return f"{figure:.3f}" if isinstance(figure, float) else str(figure)
