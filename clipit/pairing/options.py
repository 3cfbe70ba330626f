"""Compare pairing rules in a table, without writing pairs or selecting a rule."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Float64, Int

from clipit.config.run import Correction, PairingConfig
from clipit.distributed import get_processes
from clipit.errors import counted, printable
from clipit.pairing.pair_rules import (
    Candidates,
    Selection,
    find_candidates,
    judged_table,
    kept_pairs,
    prepare_selection,
)
from clipit.pairing.pair_statistics import agreement, summarise
from clipit.pairing.pairs import check_same_encoder
from clipit.pairing.sources import sole_groups
from clipit.stores.check import check_finite
from clipit.stores.embed import Store
from clipit.stores.index import Index
from clipit.vectors import centred

T = TypeVar("T")

_MAX_ORGANS = 4  # maximum number of organs that get a row each
_MAX_NAMED_ORGANS = 2  # longer lists are shown as a count
_COLUMNS = {
    "without_pair": "no pair",
    "snippets_used": "snippets used",
    "hub_share": "hubness",
    "skewness": "skewness",
    "score_mean": "mean cosine",
    "neighbours": "neighbour accuracy",
    "neighbours_tiles": "(on tiles)",
    "zero_shot": "zero-shot accuracy",
    "score_auroc": "score AUROC",
}


@dataclass(frozen=True)
class Option:
    """One row of the table: pairing rules and their statistics.

    Attributes:
        name: Short description of the rules.
        rules: Rules, which can be copied into the configuration.
        summary: Statistics from `summarise`, with `agreement` if labels were given.
    """

    name: str
    rules: PairingConfig
    summary: Mapping[str, Any]

    def statistic(self, column: str) -> float | int | None:
        """Return one statistic; None if it is undefined."""
        key = "share_without_pair" if column == "without_pair" else column
        value: float | int | None = self.summary.get(key, self.summary.get("agreement", {}).get(key))
        return value


@dataclass(frozen=True)
class _Inputs:
    """Inputs that all rows share; see `compare_options`."""

    tiles: Store
    sources: pa.Table | None
    groups: Mapping[str, str] | None
    labels: Mapping[str, int] | None

    def prepare(self, index: Index, rules: PairingConfig) -> Selection:
        """Prepare the selection of snippets with these rules."""
        return prepare_selection(index, self.tiles, rules, block=rules.block, sources=self.sources, groups=self.groups)

    def compute_rows(
        self,
        prepared: Selection,
        variants: Sequence[PairingConfig],
        class_vectors: Float32[np.ndarray, "classes dim"] | None,
    ) -> list[Option]:
        """Compute one row per variant, with one search: the variants share correction, filters and k."""
        index, options = prepared.index, list[Option]()
        for rules, judged in zip(variants, _judge_variants(prepared, variants, self.tiles), strict=True):
            kept, dropped = kept_pairs(judged)
            measured = None
            if self.labels is not None:
                measured = agreement(kept, self.labels, index=index, class_vectors=class_vectors)
            summary = summarise(kept, index.size, n_tiles=self.tiles.size, dropped=dropped, agreement=measured)
            options.append(Option(_name(rules), rules, summary))
        return options


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
    """Compare pairing rules: each correction alone, with thresholds and with mutual neighbours.

    For the configured correction, additional rows vary the margin, the organs, the exclusion of own groups and
    centring.

    Args:
        index: Flat index over the snippets.
        rules: Configured rules. All rows use k, block and the keys of the correction. The rows that do not vary organs
            and exclude_same_group use the configured values.
        thresholds: Cosine thresholds to try; by default the configured one, or else the lower quartile and the median
            of the tiles' uncorrected cosines with their nearest snippets.
        margins: Margins to try; by default the configured one, or else the lower quartile and the median of the lead
            of each tile's best snippet over its (k+1)-th.
        sources: The table `snippet_sources`; the four organs with the most snippets get one row each.
        groups: Tile id -> group; if both tiles and snippets have groups, one row excludes each tile's own group.
        labels: Tile id -> class index, for tiles whose label may be used; negative or missing for others.
        class_vectors: Unit-norm class prompt embeddings, centred like the snippets.
        other: Index over the same snippets with the opposite centring, and its class prompt embeddings.

    Raises:
        ConfigError: The index is not Flat.
        DataError: As in `pair_tiles`, but rules that leave no pairs get a row instead of an error.
    """
    check_same_encoder(index, tiles)
    check_finite(tiles, "tiles")
    check_finite(index.store, "snippets")
    inputs = _Inputs(tiles, sources, groups, labels)
    if thresholds is None and rules.threshold is not None:
        thresholds = (rules.threshold,)
    if margins is None and rules.margin is not None:
        margins = (rules.margin,)
    base = rules.model_copy(update={"threshold": None, "margin": None, "mutual": False})
    options: list[Option] = []
    for correction in get_args(Correction):
        plain = base.model_copy(update={"correction": correction})
        mutual = plain.model_copy(update={"mutual": True})
        prepared = inputs.prepare(index, mutual)
        if thresholds is None:  # the first correction is "none"
            thresholds = _quartiles(_best_and_lead(prepared, tiles)[0])
        variants = [plain, *(plain.model_copy(update={"threshold": value}) for value in thresholds), mutual]
        if correction == rules.correction:
            tried_margins = _quartiles(_best_and_lead(prepared, tiles)[1]) if margins is None else margins
            variants += [plain.model_copy(update={"margin": value}) for value in tried_margins]
        options += inputs.compute_rows(prepared, variants, class_vectors)
    for filtered in _other_filters(base, index, inputs):
        options += inputs.compute_rows(inputs.prepare(index, filtered), [filtered], class_vectors)
    if other is not None:
        check_same_encoder(other[0], tiles)
        flipped = base.model_copy(update={"centring": not base.centring})
        options += inputs.compute_rows(inputs.prepare(other[0], flipped), [flipped], other[1])
    return options


def options_text(options: Sequence[Option]) -> str:
    """Format the table as text, with `n/a` for undefined statistics."""
    columns = [c for c in _COLUMNS if any(option.statistic(c) is not None for option in options)]
    rows = [["rules", *(_COLUMNS[column] for column in columns)]]
    for option in options:
        rows.append([option.name, *(_format_statistic(option.statistic(column)) for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _judge_variants(prepared: Selection, variants: Sequence[PairingConfig], tiles: Store) -> list[pa.Table]:
    """Apply rules that share correction and k to the candidates of all tiles; must be called by all processes."""
    selections = [replace(prepared, rules=v, mutual=prepared.mutual if v.mutual else None) for v in variants]

    def judge_block(rows: Int[np.ndarray, "_"], candidates: Candidates) -> list[pa.Table]:
        return [judged_table(tiles.ids[rows], selection, candidates) for selection in selections]

    blocks = _map_candidates(prepared, tiles, judge_block)
    return [pa.concat_tables(tables) for tables in zip(*blocks, strict=True)]


def _best_and_lead(prepared: Selection, tiles: Store) -> Float64[np.ndarray, "2 n"]:
    """Compute the cosine of each tile's best snippet, and its lead over the (k+1)-th snippet in ranking score."""

    def compute(_: Int[np.ndarray, "_"], candidates: Candidates) -> np.ndarray:
        matched = np.isfinite(candidates.ranking[:, 0])
        leads = candidates.ranking[matched, 0] - candidates.ranking[matched, -1]  # infinite without a (k+1)-th snippet
        return np.stack([candidates.cosines[matched, 0].astype(np.float64), leads])

    return np.concatenate([np.empty((2, 0)), *_map_candidates(prepared, tiles, compute)], axis=1)


def _map_candidates(
    prepared: Selection, tiles: Store, compute: Callable[[Int[np.ndarray, "_"], Candidates], T]
) -> list[T]:
    """Apply a function to the rows and candidates of each block of tiles; must be called by all processes."""
    rules, mean = prepared.rules, tiles.mean() if prepared.index.mean is not None else None

    def search_block(rows: Int[np.ndarray, "_"]) -> T:
        return compute(rows, find_candidates(prepared, centred(tiles.rows(rows), mean), prepared.owners[rows], rules.k))

    return get_processes().map_blocks(len(tiles.ids), rules.block, search_block)


def _quartiles(values: Float64[np.ndarray, "n"]) -> tuple[float, ...]:
    """Return the lower quartile and the median of the finite values, rounded; only one value if they are equal."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ()
    return tuple(dict.fromkeys(float(f"{value:.3g}") for value in np.quantile(finite, (0.25, 0.5))))


def _other_filters(base: PairingConfig, index: Index, inputs: _Inputs) -> list[PairingConfig]:
    """Return variants of the rules with one filter changed: the organs, or the exclusion of own groups.

    If organs are configured, this filter is removed. Otherwise, each frequent organ is tried alone.
    """
    variants = []
    if base.organs:
        variants.append(base.model_copy(update={"organs": ()}))
    elif inputs.sources is not None:
        variants += [base.model_copy(update={"organs": (organ,)}) for organ in _frequent_organs(inputs.sources)]
    has_groups = inputs.sources is not None and any((inputs.groups or {}).values())
    if base.exclude_same_group or (has_groups and bool((sole_groups(index, inputs.sources) != "").any())):
        variants.append(base.model_copy(update={"exclude_same_group": not base.exclude_same_group}))
    return variants


def _frequent_organs(sources: pa.Table) -> list[str]:
    """Return the four organs with the most snippets; ties are broken by name."""
    organs = ["" if organ is None else str(organ).strip().lower() for organ in sources.column("organ").to_pylist()]
    pairs = {pair for pair in zip(organs, sources.column("snippet_id").to_pylist(), strict=True) if pair[0]}
    counts = Counter(organ for organ, _ in pairs)
    return sorted(counts, key=lambda organ: (-counts[organ], organ))[:_MAX_ORGANS]


def _name(rules: PairingConfig) -> str:
    parts: list[str] = [rules.correction]
    if not rules.centring:
        parts.append("not centred")
    if rules.organs:
        few = len(rules.organs) <= _MAX_NAMED_ORGANS
        parts.append(
            f"organs {' and '.join(map(printable, rules.organs))}" if few else counted(len(rules.organs), "organ")
        )
    if rules.exclude_same_group:
        parts.append("excluding own group")
    if rules.threshold is not None:
        parts.append(f"threshold {rules.threshold:g}")
    if rules.margin is not None:
        parts.append(f"margin {rules.margin:g}")
    if rules.mutual:
        parts.append(f"mutual {rules.mutual_neighbours}")
    return ", ".join(parts)


def _format_statistic(statistic: float | int | None) -> str:
    if statistic is None:
        return "n/a"
    return f"{statistic:.3f}" if isinstance(statistic, float) else str(statistic)
