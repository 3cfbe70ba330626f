"""Pairing rules side by side, computed in memory: a table to choose from. No pair is written, nothing is chosen."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64

from clipit.config.run import PairingConfig
from clipit.distributed import get_processes
from clipit.errors import printable
from clipit.pairing.agreement import agreement
from clipit.pairing.nearest import check_finite
from clipit.pairing.pair_tables import judged_table, kept_pairs
from clipit.pairing.pairs import check_same_encoder
from clipit.pairing.selection import Selection, find, prepare
from clipit.pairing.sources import sole_groups
from clipit.pairing.summary import summarise
from clipit.stores.embed import Store, centred
from clipit.stores.index import Index

CORRECTIONS = ("none", "csls", "inverted_softmax", "sinkhorn")
_MOST_ORGANS = 4
_NAMED_ORGANS = 2  # more are counted
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


@dataclass(frozen=True)
class _Asked:
    """What all lines have in common; as in `compare_options`."""

    tiles: Store
    sources: pa.Table | None
    groups: Mapping[str, str] | None
    labels: Mapping[str, int] | None

    def prepared(self, index: Index, rules: PairingConfig) -> Selection:
        """The rules made ready."""
        return prepare(index, self.tiles, rules, block=rules.block, sources=self.sources, groups=self.groups)

    def lines(
        self,
        prepared: Selection,
        variants: Sequence[PairingConfig],
        class_vectors: Float32[np.ndarray, "classes dim"] | None,
    ) -> list[Option]:
        """One line per variant; they share correction, filters and k, so that one search serves them all."""
        index, found = prepared.index, list[Option]()
        for rules, judged in zip(variants, _tables(prepared, variants, self.tiles), strict=True):
            kept, dropped = kept_pairs(judged)
            seen = None
            if self.labels is not None:
                seen = agreement(kept, self.labels, index=index, class_vectors=class_vectors)
            summary = summarise(kept, len(index.ids), n_tiles=len(self.tiles.ids), dropped=dropped, agreement=seen)
            found.append(Option(_name(rules), rules, summary))
        return found


def compare_options(
    index: Index,
    tiles: Store,
    rules: PairingConfig,
    *,
    thresholds: Sequence[float] | None = None,
    margins: Sequence[float] | None = None,
    sources: pa.Table | None = None,
    groups: Mapping[str, str] | None = None,
    labels: Mapping[str, int] | None = None,
    class_vectors: Float32[np.ndarray, "classes dim"] | None = None,
    other: tuple[Index, Float32[np.ndarray, "classes dim"] | None] | None = None,
) -> list[Option]:
    """Every correction alone, with a threshold and with mutual neighbours; then, with the configured correction, one
    line for each further rule: margins, organs, own groups, centring.

    Args:
        index: Flat index over the snippets.
        tiles: Training tiles.
        rules: The configuration: k, block and the correction's own keys hold in all lines, and so do its organs and
            exclude_same_group except in the lines that turn these round.
        thresholds: Cosines to try; by default the configured one, else the lower quartile and the median of the
            uncorrected nearest snippets' cosines.
        margins: Margins to try; by default the configured one, else the lower quartile and the median of what the
            tiles' best snippets exceed the (k+1)-th by.
        sources: As for `pair_tiles`; with it each of the four organs with most snippets gets a line.
        groups: As for `pair_tiles`; with it and `sources`, if both name groups, snippets of the own group get a line.
        labels: Tile id -> class of the tiles whose label training may see; others negative or absent.
        class_vectors: Class prompts, centred as the snippets are.
        other: Index over the same snippets that is centred if `index` is not, and the class prompts for it.

    Raises:
        ConfigError: The index is not Flat.
        DataError: As `pair_tiles`, but rules that leave no pair are shown, not refused.
    """
    check_same_encoder(index, tiles)
    check_finite(tiles, "tiles")
    check_finite(index.store, "snippets")
    asked = _Asked(tiles, sources, groups, labels)
    if thresholds is None and rules.threshold is not None:
        thresholds = (rules.threshold,)
    if margins is None and rules.margin is not None:
        margins = (rules.margin,)
    base = rules.model_copy(update={"threshold": None, "margin": None, "mutual": False})
    found: list[Option] = []
    for correction in CORRECTIONS:
        plain = base.model_copy(update={"correction": correction})
        mutual = plain.model_copy(update={"mutual": True})
        prepared = asked.prepared(index, mutual)
        if thresholds is None:  # the first correction is none
            thresholds = _quartiles(_best(prepared, tiles)[0])
        variants = [plain, *(plain.model_copy(update={"threshold": value}) for value in thresholds), mutual]
        if correction == rules.correction:
            tried = _quartiles(_best(prepared, tiles)[1]) if margins is None else margins
            variants += [plain.model_copy(update={"margin": value}) for value in tried]
        found += asked.lines(prepared, variants, class_vectors)
    for filtered in _other_filters(base, index, asked):
        found += asked.lines(asked.prepared(index, filtered), [filtered], class_vectors)
    if other is not None:
        check_same_encoder(other[0], tiles)
        turned = base.model_copy(update={"centring": not base.centring})
        found += asked.lines(asked.prepared(other[0], turned), [turned], other[1])
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
    processes, rules = get_processes(), prepared.rules
    mean = tiles.mean() if prepared.index.mean is not None else None
    selections = [replace(prepared, rules=v, mutual=prepared.mutual if v.mutual else None) for v in variants]
    own: dict[int, list[pa.Table]] = {}
    for start in processes.share(range(0, len(tiles.ids), rules.block)):
        rows = np.arange(start, min(start + rules.block, len(tiles.ids)))
        candidates = find(prepared, centred(tiles.rows(rows), mean), prepared.owners[rows], rules.k)
        own[start] = [judged_table(tiles.ids[rows], selection, candidates) for selection in selections]
    merged: dict[int, list[pa.Table]] = {}
    for part in processes.gather(own):
        merged |= part
    return [pa.concat_tables([merged[start][i] for start in sorted(merged)]) for i in range(len(variants))]


def _best(prepared: Selection, tiles: Store) -> Float64[np.ndarray, "2 n"]:
    """Cosine of each tile's best snippet, and what that exceeds the (k+1)-th by in the score that ranks."""
    processes, rules = get_processes(), prepared.rules
    mean = tiles.mean() if prepared.index.mean is not None else None
    own: dict[int, np.ndarray] = {}
    for start in processes.share(range(0, len(tiles.ids), rules.block)):
        rows = np.arange(start, min(start + rules.block, len(tiles.ids)))
        candidates = find(prepared, centred(tiles.rows(rows), mean), prepared.owners[rows], rules.k)
        some = np.isfinite(candidates.ranking[:, 0])
        gaps = candidates.ranking[some, 0] - candidates.ranking[some, -1]  # infinite, if there is no (k+1)-th
        own[start] = np.stack([candidates.cosines[some, 0].astype(np.float64), gaps])
    merged: dict[int, np.ndarray] = {}
    for part in processes.gather(own):
        merged |= part
    return np.concatenate([np.empty((2, 0)), *(merged[start] for start in sorted(merged))], axis=1)


def _quartiles(values: Float64[np.ndarray, "n"]) -> tuple[float, ...]:
    """Lower quartile and median of the finite values, to three digits; once if they are equal."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ()
    return tuple(dict.fromkeys(float(f"{value:.3g}") for value in np.quantile(finite, (0.25, 0.5))))


def _other_filters(base: PairingConfig, index: Index, asked: _Asked) -> list[PairingConfig]:
    """The rules with one filter turned round: one organ each (or all, where some are configured), the own group."""
    found = []
    if base.organs:
        found.append(base.model_copy(update={"organs": ()}))
    elif asked.sources is not None:
        found += [base.model_copy(update={"organs": (organ,)}) for organ in _frequent_organs(asked.sources)]
    known = asked.sources is not None and any((asked.groups or {}).values())
    if base.exclude_same_group or (known and bool((sole_groups(index, asked.sources) != "").any())):
        found.append(base.model_copy(update={"exclude_same_group": not base.exclude_same_group}))
    return found


def _frequent_organs(sources: pa.Table) -> list[str]:
    """The organs that most snippets come from, at most four; of equally frequent ones the first by name."""
    organs = ["" if organ is None else str(organ).strip().lower() for organ in sources.column("organ").to_pylist()]
    named = {pair for pair in zip(organs, sources.column("snippet_id").to_pylist(), strict=True) if pair[0]}
    counts = Counter(organ for organ, _ in named)
    return sorted(counts, key=lambda organ: (-counts[organ], organ))[:_MOST_ORGANS]


def _name(rules: PairingConfig) -> str:
    parts: list[str] = [rules.correction]
    if not rules.centring:
        parts.append("not centred")
    if rules.organs:
        few = len(rules.organs) <= _NAMED_ORGANS
        parts.append(f"organs {' and '.join(map(printable, rules.organs))}" if few else f"{len(rules.organs)} organs")
    if rules.exclude_same_group:
        parts.append("not of own group")
    if rules.threshold is not None:
        parts.append(f"threshold {rules.threshold:g}")
    if rules.margin is not None:
        parts.append(f"margin {rules.margin:g}")
    if rules.mutual:
        parts.append(f"mutual {rules.mutual_neighbours}")
    return ", ".join(parts)


def _cell(figure: float | int | None) -> str:
    if figure is None:
        return "n/a"
    return f"{figure:.3f}" if isinstance(figure, float) else str(figure)
