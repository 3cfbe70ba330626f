"""Which snippets a tile may have, in which order, and which pairs are good enough: "no pair" is an answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float32, Float64, Int, Int8

from clipit.config.run import PairingConfig
from clipit.errors import ConfigError, DataError, explain
from clipit.pairing.correction import TileBlocks, nearest_tiles, snippet_biases
from clipit.pairing.nearest import SPARE, Keys, best_first, cosines, index_matrix, nearest, search
from clipit.pairing.sources import allowed_snippets, owners, sole_groups
from clipit.progress import progress
from clipit.stores.embed import Store
from clipit.stores.index import Index

REASONS = ("kept", "threshold", "margin", "mutual")
"""What became of a candidate pair, by number; the first reason that applies."""
_TIE = 1e-6  # cosines nearer than this are equal


@dataclass(frozen=True)
class Selection:
    """Rules made ready for an index and a tile store: everything that depends on all tiles is computed.

    Attributes:
        rules: Correction, threshold, margin and the rest.
        index: Snippets.
        keys: Snippets to be searched exactly; None: the index is searched.
        mutual: Cosine of each snippet's last mutual neighbour; None without that rule.
        owners: Group number of each tile (-1: none); all -1 unless own groups are left out.
    """

    rules: PairingConfig
    index: Index
    keys: Keys | None
    mutual: Float32[np.ndarray, "s"] | None
    owners: Int[np.ndarray, "n"]


@dataclass(frozen=True)
class Candidates:
    """The best k + 1 snippets of each tile, best first; cosine -inf where there is none."""

    rows: Int[np.ndarray, "q k1"]
    cosines: Float32[np.ndarray, "q k1"]
    ranking: Float64[np.ndarray, "q k1"]
    """What they are ordered by: the cosine, less the correction."""


def rule_inputs(rules: PairingConfig) -> dict[str, Any]:
    """What the rules add to the inputs of an artefact: nothing when none is set, so that old pairs stay valid."""
    found: dict[str, Any] = {}
    if rules.correction != "none":
        found["correction"] = rules.correction
        if rules.correction == "csls":
            found["correction_neighbours"] = rules.correction_neighbours
        else:
            found["correction_temperature"] = rules.correction_temperature
        if rules.correction == "sinkhorn":
            found["correction_iterations"] = rules.correction_iterations
    if rules.mutual:
        found["mutual_neighbours"] = rules.mutual_neighbours
    if rules.organs:
        found["organs"] = sorted({organ.strip().casefold() for organ in rules.organs})
    if rules.exclude_same_group:
        found["exclude_same_group"] = True
    return found | {
        name: value
        for name in ("threshold", "margin", "score_temperature")
        if (value := getattr(rules, name)) is not None
    }


def prepare(
    index: Index,
    tiles: Store,
    rules: PairingConfig,
    *,
    block: int,
    sources: pa.Table | None = None,
    groups: Mapping[str, str] | None = None,
    shown: bool = True,
) -> Selection:
    """Compute what the rules need to know of all tiles and snippets; call it in all processes.

    Args:
        index: Snippets.
        tiles: Training tiles.
        rules: Of them, the keys from `correction` on count here.
        block: Tiles in a block.
        sources: Table snippet_sources, for `organs` and `exclude_same_group`.
        groups: Tile id -> group, for `exclude_same_group`.
        shown: Whether to show a bar.

    Raises:
        ConfigError: The index is not Flat, and a rule needs all scores.
        DataError: No snippet is left by `organs`, or no group is known for `exclude_same_group`.
    """
    nobody: Int[np.ndarray, "n"] = np.full(len(tiles.ids), -1, dtype=np.int64)
    if not rules.exact:
        return Selection(rules, index, None, None, nobody)
    if index.artifact.manifest.facts["key"] != "Flat":
        raise ConfigError(
            explain(
                f"an index {index.artifact.manifest.facts['key']!r} does not see all scores, which correction, mutual, "
                "organs and exclude_same_group need",
                where="pairing.index",
                fix="use pairing.index=Flat, or leave these rules out",
            )
        )
    allowed = allowed_snippets(index, sources, rules.organs)
    snippet_owners: Int[np.ndarray, "s"] = np.full(len(index.ids), -1, dtype=np.int64)
    tile_owners = nobody
    if rules.exclude_same_group:
        snippet_owners, tile_owners = owners(sole_groups(index, sources), tiles, groups)
    snippets = index_matrix(index)
    blocks = TileBlocks(tiles, tiles.mean() if index.mean is not None else None, block)
    count = max(
        rules.correction_neighbours if rules.correction == "csls" else 0, rules.mutual_neighbours if rules.mutual else 0
    )
    rounds = rules.correction_iterations if rules.correction == "sinkhorn" else rules.correction == "inverted_softmax"
    near = None
    with progress("looking at all tiles", len(tiles.ids) * (int(rounds) + (count > 0)), shown=shown) as advance:
        if count:
            near = nearest_tiles(snippets, blocks, count, advance)
        biases = snippet_biases(snippets, blocks, rules, near, advance)
    mutual = near[:, min(rules.mutual_neighbours, near.shape[1]) - 1] if rules.mutual and near is not None else None
    keys = Keys(snippets, np.where(allowed, biases, np.inf), snippet_owners)
    return Selection(rules, index, keys, mutual, tile_owners)


def find(
    selection: Selection, queries: Float32[np.ndarray, "q dim"], owners: Int[np.ndarray, "q"], k: int
) -> Candidates:
    """The candidates of some tiles.

    Args:
        selection: From `prepare`.
        queries: Unit vectors of the tiles, centred as the index is.
        owners: Their group numbers (`selection.owners`).
        k: Snippets per tile.
    """
    index, keys = selection.index, selection.keys
    if keys is None:
        rows, scores = search(index, queries, k + 1)
        ranking = scores.astype(np.float64)
    else:
        rows = nearest(queries, owners, keys, min(k + 1 + SPARE, len(index.ids)))
        # The vectors are in memory, centred: to read and centre them again cost as much as a third of a plain search.
        scores = cosines(queries, keys.vectors[torch.from_numpy(np.maximum(rows, 0))].cpu().numpy())
        scores[rows < 0] = -np.inf
        ranking = np.where(rows >= 0, scores.astype(np.float64) - keys.bias[rows], -np.inf)
        places = best_first(rows, ranking, k + 1)
        rows, scores, ranking = (np.take_along_axis(values, places, 1) for values in (rows, scores, ranking))
    missing = k + 1 - rows.shape[1]
    if missing > 0:
        rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        ranking = np.pad(ranking, ((0, 0), (0, missing)), constant_values=-np.inf)
    return Candidates(rows, scores, ranking)


def judge(
    candidates: Candidates, rules: PairingConfig, mutual: Float32[np.ndarray, "s"] | None
) -> Int8[np.ndarray, "q k"]:
    """What becomes of each candidate (number in `REASONS`); -1 where there is none.

    Args:
        candidates: k + 1 per tile.
        rules: Threshold and margin.
        mutual: Of the selection.
    """
    scores, rows, ranking = candidates.cosines[:, :-1], candidates.rows[:, :-1], candidates.ranking[:, :-1]
    found = np.zeros(scores.shape, dtype=np.int8)
    if mutual is not None:
        found[scores < mutual[rows] - _TIE] = REASONS.index("mutual")
    if rules.margin is not None:
        rival = candidates.ranking[:, -1:]  # -inf, if there is none: nothing to exceed
        found[ranking < rival + rules.margin - _TIE] = REASONS.index("margin")
    if rules.threshold is not None:
        found[scores < rules.threshold] = REASONS.index("threshold")
    found[~np.isfinite(scores)] = -1
    return found


def weights(
    scores: Float32[np.ndarray, "q k"], kept: Bool[np.ndarray, "q k"], temperature: float
) -> Float32[np.ndarray, "q k"]:
    """Weights of the kept snippets of each tile: softmax of cosine / temperature; 0 for others."""
    logits = np.where(kept, scores.astype(np.float64) / temperature, -np.inf)
    highest = logits.max(axis=1, initial=-np.inf, keepdims=True)
    powers = np.exp(logits - np.where(np.isfinite(highest), highest, 0.0))
    total = powers.sum(axis=1, keepdims=True)
    return np.asarray(powers / np.where(total > 0, total, 1.0), dtype=np.float32)


def check_some_left(judged: pa.Table, rules: PairingConfig) -> None:
    """Stop when the rules leave no pair at all.

    Args:
        judged: Candidate pairs with columns score and reason.
        rules: What was asked for.

    Raises:
        DataError: With the quantiles of the candidates' cosines, and what to set.
    """
    reasons = np.asarray(judged.column("reason"))
    if (reasons == 0).any():
        return
    if not len(reasons):
        raise DataError(
            explain(
                "no snippet is allowed for any tile",
                where="pairing",
                fix="loosen pairing.organs or leave pairing.exclude_same_group out",
            )
        )
    scores = np.asarray(judged.column("score"))
    low, middle, high = (float(value) for value in np.quantile(scores, (0.05, 0.5, 0.95)))
    counts = {name: int((reasons == number).sum()) for number, name in enumerate(REASONS) if number}
    hints = {
        "threshold": f"set pairing.threshold to {middle:.3f} to keep about half of the candidates",
        "margin": f"lower pairing.margin (it is {rules.margin})",
        "mutual": f"raise pairing.mutual_neighbours (it is {rules.mutual_neighbours})",
    }
    raise DataError(
        explain(
            f"the rules leave none of {len(reasons)} candidate pairs; dropped by "
            + ", ".join(f"{name}: {count}" for name, count in counts.items() if count)
            + f"; cosines of the candidates: lowest {scores.min():.3f}, 5 % {low:.3f}, median {middle:.3f}, "
            f"95 % {high:.3f}, highest {scores.max():.3f}",
            where="pairing",
            fix="; ".join(hints[name] for name, count in counts.items() if count),
        )
    )
