"""Candidate snippets of each tile, and the rules that keep or drop each pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Float64, Int, Int8

from clipit.config.run import PairingConfig
from clipit.errors import ConfigError, DataError, counted
from clipit.pairing.correction import TileBlocks, correction_inputs, snippet_statistics
from clipit.pairing.nearest import SPARE, Keys, best_first, exact_cosines, nearest, nearest_among, search
from clipit.pairing.sources import OwnSnippets, allowed_snippets, number_owners, own_snippets
from clipit.stores.embed import Store
from clipit.stores.exact import BLOCK
from clipit.stores.index import Index

REASONS = ("kept", "threshold", "margin", "mutual")
"""Outcomes of a candidate pair: kept, or the first rule that drops it."""
_TIE = 1e-6  # scores closer than this count as equal


@dataclass(frozen=True)
class Selection:
    """Pairing rules, and statistics over all tiles of a store that the rules use.

    Attributes:
        keys: Snippets for exact search; None to search the index.
        mutual: Cosine of each snippet with the farthest of its mutual neighbours; None without the `mutual` rule.
        owners: Index of each tile's patient, -1 if unknown; all -1 unless `exclude_same_group` or `reports` is set.
        own: Snippets of each patient; None unless `reports` is set.
    """

    rules: PairingConfig
    index: Index
    keys: Keys | None
    mutual: Float32[np.ndarray, "s"] | None
    owners: Int[np.ndarray, "n"]
    own: OwnSnippets | None = None


@dataclass(frozen=True)
class Candidates:
    """Best k + 1 snippets of each tile, best first, padded with cosine -inf."""

    rows: Int[np.ndarray, "q k1"]
    cosines: Float32[np.ndarray, "q k1"]
    ranking: Float64[np.ndarray, "q k1"]
    """Ranking score: cosine minus bias."""

    def part(self, tiles: slice) -> "Candidates":
        """Return the candidates of a range of tiles."""
        return Candidates(self.rows[tiles], self.cosines[tiles], self.ranking[tiles])


def rule_inputs(rules: PairingConfig) -> dict[str, Any]:
    """Return the inputs that the rules add to the fingerprint of pairs; empty without rules."""
    inputs = correction_inputs(rules)
    if rules.mutual:
        inputs["mutual_neighbours"] = rules.mutual_neighbours
    if rules.organs:
        inputs["organs"] = sorted({organ.strip().casefold() for organ in rules.organs})
    if rules.exclude_same_group:
        inputs["exclude_same_group"] = True
    if rules.reports != "any":
        inputs["reports"] = rules.reports
    return inputs | {
        name: value
        for name in ("threshold", "margin", "score_temperature")
        if (value := getattr(rules, name)) is not None
    }


def prepare_selection(
    index: Index,
    tiles: Store,
    rules: PairingConfig,
    *,
    block: int,
    sources: pa.Table | None = None,
    groups: Mapping[str, str] | None = None,
    shown: bool = True,
) -> Selection:
    """Compute the statistics over all tiles and snippets that the rules use; must be called by all processes.

    Args:
        rules: Pairing rules; their k, block and index are ignored.
        sources: The table `snippet_sources`, for `organs`, `exclude_same_group` and `reports`.
        groups: Tile id -> group, for `exclude_same_group` and `reports`.
        shown: Whether to show a progress bar.

    Raises:
        ConfigError: The index is not Flat, and a rule needs all scores.
        DataError: `organs` leaves no snippets, no group is known, or `reports` is set and no tile's patient has a
            report.
    """
    no_owners: Int[np.ndarray, "n"] = np.full(tiles.size, -1, dtype=np.int64)
    if not rules.exact:
        return Selection(rules, index, None, None, no_owners)
    if not index.flat:
        raise ConfigError(
            f"index {index.artifact.manifest.facts['key']!r} does not compute all scores, which correction, mutual, "
            "organs, exclude_same_group and reports require",
            where="pairing.index",
            fix="use pairing.index=Flat, or remove these rules",
        )
    allowed = allowed_snippets(index, sources, rules.organs)
    snippet_owners: Int[np.ndarray, "s"] = np.full(index.size, -1, dtype=np.int64)
    tile_owners = no_owners
    if rules.exclude_same_group:
        snippet_owners, tile_owners = number_owners(index, sources, tiles, groups)
    own = own_snippets(index, sources, tiles, groups) if rules.reports != "any" else None
    stored = index.stored()
    blocks = TileBlocks(tiles, tiles.mean() if index.mean is not None else None, block)
    biases, mutual = snippet_statistics(stored, blocks, rules, shown=shown)
    keys = Keys(stored, np.where(allowed, biases, np.inf), snippet_owners)
    return Selection(rules, index, keys, mutual, tile_owners if own is None else own.owners, own)


def find_candidates(
    selection: Selection,
    queries: Float32[np.ndarray, "q dim"],
    owners: Int[np.ndarray, "q"],
    k: int,
    *,
    block: int = BLOCK,
    shared: bool = False,
) -> Candidates:
    """Find the candidate snippets of tiles.

    Args:
        selection: Rules and statistics from `prepare_selection`.
        queries: Unit-norm tile embeddings, centred like the index.
        owners: Patients of the tiles (`selection.owners`); -1 for tiles of other splits, which may be paired with any
            report.
        block: Tiles per matrix product.
        shared: Whether each process searches a part of the snippets, with the same tiles in all processes.
    """
    index, keys = selection.index, selection.keys
    if keys is None:
        rows, scores = search(index, queries, k + 1, block=block, shared=shared)
        ranking = scores.astype(np.float64)
    else:
        n_candidates = min(k + 1 + SPARE, index.size)
        rows = nearest(queries, owners, keys, n_candidates, block=block, shared=shared)
        if selection.own is not None:
            rows = _among_own(selection.own, selection.rules.reports == "own", queries, owners, keys, rows, block)
        scores = exact_cosines(queries, keys.stored, rows)
        ranking = np.where(rows >= 0, scores.astype(np.float64) - keys.bias[rows], -np.inf)
        order = best_first(rows, ranking, k + 1)
        rows, scores, ranking = (np.take_along_axis(values, order, 1) for values in (rows, scores, ranking))
    missing = k + 1 - rows.shape[1]
    if missing > 0:
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        ranking = np.pad(ranking, ((0, 0), (0, missing)), constant_values=-np.inf)
    return Candidates(rows, scores, ranking)


def _among_own(
    own: OwnSnippets,
    own_only: bool,
    queries: Float32[np.ndarray, "q dim"],
    owners: Int[np.ndarray, "q"],
    keys: Keys,
    rows: Int[np.ndarray, "q n"],
    block: int,
) -> Int[np.ndarray, "q n"]:
    """For tiles whose patient has a report, replace the candidates with snippets of this patient.

    Args:
        own_only: Whether to remove all candidates of tiles whose patient has no report; otherwise, they are kept.
        queries: Unit-norm tile embeddings.
        owners: Patients of the tiles; tiles with -1 keep their candidates.
        rows: Candidates among all snippets.
        block: Tiles per matrix product.
    """
    rows = rows.copy()
    for owner in np.unique(owners[owners >= 0]).tolist():
        tiles, snippets = np.flatnonzero(owners == owner), own.rows[owner]
        allowed = snippets[np.isfinite(keys.bias[snippets])]
        if not len(allowed) and not own_only:
            continue
        count = min(rows.shape[1], len(allowed))
        rows[tiles] = -1
        if count:
            rows[tiles, :count] = nearest_among(queries[tiles], keys, allowed, count, block)
    return rows


def judge_candidates(
    candidates: Candidates, rules: PairingConfig, mutual: Float32[np.ndarray, "s"] | None
) -> Int8[np.ndarray, "q k"]:
    """Return the outcome of each candidate as its index in `REASONS`, or -1 for padding.

    Args:
        candidates: k + 1 candidates per tile.
        mutual: Cosine of each snippet with the farthest of its mutual neighbours; None without the `mutual` rule.
    """
    scores, rows, ranking = candidates.cosines[:, :-1], candidates.rows[:, :-1], candidates.ranking[:, :-1]
    reasons = np.zeros(scores.shape, dtype=np.int8)
    if mutual is not None:
        reasons[scores < mutual[rows] - _TIE] = REASONS.index("mutual")
    if rules.margin is not None:
        runner_up = candidates.ranking[:, -1:]  # the (k + 1)-th snippet; -inf if there is none
        reasons[ranking < runner_up + rules.margin - _TIE] = REASONS.index("margin")
    if rules.threshold is not None:
        reasons[scores < rules.threshold] = REASONS.index("threshold")
    reasons[~np.isfinite(scores)] = -1
    return reasons


def snippet_weights(
    scores: Float32[np.ndarray, "q k"], kept: Bool[np.ndarray, "q k"], temperature: float
) -> Float32[np.ndarray, "q k"]:
    """Weight the kept snippets of each tile by the softmax of cosine / temperature; 0 for others."""
    logits = np.where(kept, scores.astype(np.float64) / temperature, -np.inf)
    highest = logits.max(axis=1, initial=-np.inf, keepdims=True)
    powers = np.exp(logits - np.where(np.isfinite(highest), highest, 0.0))
    total = powers.sum(axis=1, keepdims=True)
    return np.asarray(powers / np.where(total > 0, total, 1.0), dtype=np.float32)


def check_pairs_left(judged: pa.Table, rules: PairingConfig) -> None:
    """Check that the rules keep at least one pair.

    Args:
        judged: Candidate pairs with the columns `score` and `reason`.

    Raises:
        DataError: The rules keep no pairs; the message states quantiles of the cosines and suggests changes.
    """
    reasons = np.asarray(judged.column("reason"))
    if (reasons == 0).any():
        return
    if not len(reasons):
        raise DataError(
            "the rules exclude all snippets for every tile",
            where="pairing",
            fix="relax pairing.organs, or remove pairing.exclude_same_group or pairing.reports",
        )
    scores = np.asarray(judged.column("score"))
    low, middle, high = (float(value) for value in np.quantile(scores, (0.05, 0.5, 0.95)))
    dropped = _count_dropped(reasons)
    hints = {
        "threshold": f"set pairing.threshold to {middle:.3f} to keep about half of the candidates",
        "margin": f"lower pairing.margin (currently {rules.margin})",
        "mutual": f"raise pairing.mutual_neighbours (currently {rules.mutual_neighbours})",
    }
    raise DataError(
        f"the rules drop all {counted(len(reasons), 'candidate pair')}; dropped by "
        + ", ".join(f"{name}: {count}" for name, count in dropped.items())
        + f"; cosines of the candidates: lowest {scores.min():.3f}, 5th percentile {low:.3f}, "
        f"median {middle:.3f}, 95th percentile {high:.3f}, highest {scores.max():.3f}",
        where="pairing",
        fix="; ".join(hints[name] for name in dropped),
    )


def pair_table(
    tile_ids: np.ndarray, index: Index, rows: Int[np.ndarray, "q k"], scores: Float32[np.ndarray, "q k"]
) -> pa.Table:
    """Tabulate pairs by tile and rank, except pairs with score -inf."""
    valid = np.isfinite(scores)
    tile, rank = np.nonzero(valid)
    return pa.table(
        {
            "tile_id": pa.array(tile_ids[tile].tolist(), pa.string()),
            "rank": pa.array(rank, pa.int16()),
            "snippet_id": pa.array(index.ids_of(rows[valid]).tolist(), pa.string()),
            "score": pa.array(scores[valid], pa.float32()),
        }
    )


def judged_table(tile_ids: np.ndarray, selection: Selection, candidates: Candidates) -> pa.Table:
    """Tabulate candidates with the column `reason` (index in `REASONS`), and `weight` if configured.

    The kept pairs of each tile are ranked from 0 without gaps; dropped pairs have rank -1.
    """
    reasons = judge_candidates(candidates, selection.rules, selection.mutual)
    rows, scores = candidates.rows[:, :-1], candidates.cosines[:, :-1]
    exists, kept = reasons >= 0, reasons == 0
    table = pair_table(tile_ids, selection.index, rows, scores)
    ranks = np.where(kept, np.cumsum(kept, axis=1) - 1, -1)[exists]
    table = table.set_column(1, "rank", pa.array(ranks, pa.int16()))
    if selection.rules.score_temperature is not None:
        weights = snippet_weights(scores, kept, selection.rules.score_temperature)[exists]
        table = table.append_column("weight", pa.array(weights, pa.float32()))
    return table.append_column("reason", pa.array(reasons[exists], pa.int8()))


def kept_pairs(judged: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return the kept pairs, and the number of dropped pairs by reason."""
    reasons = np.asarray(judged.column("reason"))
    return judged.filter(pa.array(reasons == 0)).drop_columns(["reason"]), _count_dropped(reasons)


def _count_dropped(reasons: np.ndarray) -> dict[str, int]:
    """Count the dropped pairs by rule, omitting rules that drop none."""
    counts = {name: int((reasons == number).sum()) for number, name in enumerate(REASONS) if number}
    return {name: count for name, count in counts.items() if count}
