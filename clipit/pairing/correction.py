"""Hubness correction: a bias per snippet, because some snippets (hubs) are close to every tile.

All corrections rank a tile's snippets by `cosine - bias(snippet)`. Terms that depend only on the tile (r_T of CSLS, the
tile factors of Sinkhorn) do not change the order of its snippets and are omitted. A correction therefore takes one or
more passes over all tiles to compute the biases, then one search.

Only one group of snippet shards is in memory at a time; for each group, all tiles are read block by block. The blocks
of tiles are distributed over processes, or the shards if there are fewer blocks than processes. Biases are rounded, so
that pairs do not depend on the number of processes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from clipit.config.run import PairingConfig
from clipit.distributed import get_processes
from clipit.pairing.blocks import distribute
from clipit.pairing.nearest import DECIMALS
from clipit.progress import progress
from clipit.stores.embed import SHARD, Store
from clipit.stores.exact import BLOCK, best_of, blocks_per_pass, full_precision, product
from clipit.stores.stored_rows import StoredRows, centred_rows

if TYPE_CHECKING:
    from clipit.progress import Advance

_SINKHORN_SCORES = 2**25  # maximum number of scores in memory
_SINKHORN_VALUES = 2**24  # maximum number of float32 values of snippet embeddings in memory (64 MiB)


@dataclass(frozen=True)
class TileBlocks:
    """Tile embeddings of a store, read in blocks as queries.

    Attributes:
        mean: Mean to subtract from the embeddings; None for no centring.
    """

    store: Store
    mean: Float32[np.ndarray, "dim"] | None
    size: int

    @property
    def starts(self) -> range:
        """First row of each block."""
        return range(0, self.store.size, self.size)

    def vectors(self, start: int) -> Float32[np.ndarray, "_ dim"]:
        """Read the unit vectors of the block that starts at row `start`."""
        return centred_rows(self.store, np.arange(start, min(start + self.size, self.store.size)), self.mean)


def correction_inputs(rules: PairingConfig) -> dict[str, Any]:
    """Return the keys of the correction that are part of the fingerprint of pairs; empty without a correction."""
    if rules.correction == "none":
        return {}
    inputs: dict[str, Any] = {"correction": rules.correction}
    if rules.correction == "csls":
        inputs["correction_neighbours"] = rules.correction_neighbours
    else:
        inputs["correction_temperature"] = rules.correction_temperature
    if rules.correction == "sinkhorn":
        inputs["correction_iterations"] = rules.correction_iterations
    return inputs


def snippet_statistics(
    snippets: StoredRows, tiles: TileBlocks, rules: PairingConfig, *, shown: bool = True
) -> tuple[Float64[np.ndarray, "s"], Float32[np.ndarray, "s"] | None]:
    """Compute the per-snippet statistics that the pairing rules use, over all tiles.

    Must be called by all processes.

    Args:
        shown: Whether to show a progress bar.

    Returns:
        Bias of each snippet for `rules.correction` (zeros for `none`), and its cosine with the farthest of its
        `rules.mutual_neighbours` nearest tiles (None unless `rules.mutual` is set).
    """
    csls = rules.correction == "csls"
    count = max(rules.correction_neighbours if csls else 0, rules.mutual_neighbours if rules.mutual else 0)
    biases = np.zeros(len(snippets))
    mutual = np.zeros(len(snippets), dtype=np.float32) if rules.mutual else None
    passes = len(_groups(snippets)) * ((count > 0) + (rules.correction == "inverted_softmax"))
    passes += rules.correction_iterations * (rules.correction == "sinkhorn")
    with progress("preparing pairing rules", tiles.store.size * passes, shown=shown) as advance:
        if count:
            for rows, near in nearest_tiles(snippets, tiles, count, advance):
                if csls:
                    biases[rows] = csls_biases(near, rules.correction_neighbours)
                if mutual is not None:
                    mutual[rows] = near[:, min(rules.mutual_neighbours, near.shape[1]) - 1]
        if rules.correction == "inverted_softmax":
            biases = inverted_softmax_biases(snippets, tiles, rules.correction_temperature, advance)
        if rules.correction == "sinkhorn":
            temperature, iterations = rules.correction_temperature, rules.correction_iterations
            biases = sinkhorn_biases(snippets, tiles, temperature, iterations, advance)
    return biases, mutual


def csls_biases(near: Float32[np.ndarray, "s m"], neighbours: int) -> Float64[np.ndarray, "s"]:
    """Compute biases for cross-domain similarity local scaling (CSLS; Conneau et al. 2018, arXiv 1710.04087).

    CSLS is 2 cos(x, y) - r_T(x) - r_S(y), where r_S(y) is the mean cosine of snippet y with its nearest tiles. The bias
    is r_S(y) / 2.

    Args:
        near: Cosines of each snippet with its nearest tiles, highest first.
        neighbours: Number of tiles to average over.
    """
    return np.asarray((near[:, :neighbours].mean(axis=1, dtype=np.float64) / 2).round(DECIMALS), dtype=np.float64)


def inverted_softmax_biases(
    snippets: StoredRows, tiles: TileBlocks, temperature: float, advance: "Advance"
) -> Float64[np.ndarray, "s"]:
    """Compute biases for the inverted softmax, normalised over tiles per snippet (Smith et al. 2017, arXiv 1702.03859).

    P(tile x | snippet y) = exp(cos(x, y) / T) / sum over tiles x' of exp(cos(x', y) / T). Its logarithm times T is the
    cosine minus T log sum exp(cos / T); the bias uses the mean instead of the sum, which does not change the order.
    """
    biases = np.zeros(len(snippets))

    def update(sums: Float[Tensor, "c"], scores: Float[Tensor, "c b"]) -> Float[Tensor, "c"]:
        return torch.logaddexp(sums, scores.div_(temperature).logsumexp(dim=1).double())

    for rows, sums in _over_tiles(snippets, tiles, _empty_sums, update, advance):
        total = _log_total(sums) - np.log(tiles.store.size)
        biases[rows] = (temperature * total).round(DECIMALS)
    return biases


def nearest_tiles(
    snippets: StoredRows, tiles: TileBlocks, count: int, advance: "Advance"
) -> Iterator[tuple[Int[np.ndarray, "_"], Float32[np.ndarray, "_ m"]]]:
    """Compute the cosines of snippets with their `count` nearest tiles (or all, if fewer), highest first.

    Yields:
        Rows of some snippets, and their cosines; every snippet occurs once.
    """
    count = min(count, tiles.store.size)

    def start(n_snippets: int) -> Float[Tensor, "_ m"]:
        return torch.full((n_snippets, count), -torch.inf, device=get_processes().device)

    def update(best: Float[Tensor, "c m"], scores: Float[Tensor, "c b"]) -> Float[Tensor, "c m"]:
        return torch.cat([best, best_of(scores, count)[0]], dim=1).topk(count, dim=1).values

    for rows, best in _over_tiles(snippets, tiles, start, update, advance):
        gathered = get_processes().gather(best.cpu().numpy())
        cosines = np.concatenate(gathered, axis=1)
        yield rows, np.asarray(-np.sort(-cosines, axis=1)[:, :count], dtype=np.float32)


def _over_tiles(
    snippets: StoredRows,
    tiles: TileBlocks,
    start: Callable[[int], Tensor],
    update: Callable[[Tensor, Tensor], Tensor],
    advance: "Advance",
) -> Iterator[tuple[Int[np.ndarray, "_"], Tensor]]:
    """Update a state per snippet with the cosines of this process's share of the tiles, one group of shards at a time.

    Args:
        start: Function that returns the initial state for a number of snippets.
        update: Function that returns the next state, given the state and the cosines with a block of tiles; it may
            overwrite the cosines.
        advance: Progress callback, called with a number of tiles.

    Yields:
        Rows of all snippets in a group of shards, and their states; snippets of shards that another process handles
        keep the initial state.
    """
    processes = get_processes()
    blocks, shards = distribute(len(tiles.starts), snippets.store.shards)
    buffer = torch.empty(min(tiles.size, tiles.store.size) * BLOCK, device=processes.device)
    tiles_per_own = processes.count if len(blocks) < len(tiles.starts) else 1  # for the progress bar
    for group in _groups(snippets):
        rows = {number: snippets.rows_of(number) for number in group}
        states = {number: start(len(rows_of_shard)) for number, rows_of_shard in rows.items()}
        vectors = {number: snippets.shard(number) for number in group if number in shards and len(rows[number])}
        for first_tile in (tiles.starts[number] for number in blocks):
            block = torch.from_numpy(tiles.vectors(first_tile)).to(processes.device)
            with full_precision():
                for number, shard in vectors.items():
                    states[number] = update(states[number], product(shard, block, buffer))
            advance(len(block) * tiles_per_own)
        yield np.concatenate(list(rows.values())), torch.cat(list(states.values()))


def sinkhorn_biases(
    snippets: StoredRows, tiles: TileBlocks, temperature: float, iterations: int, advance: "Advance"
) -> Float64[np.ndarray, "s"]:
    """Compute biases for a balanced assignment with Sinkhorn's algorithm (Cuturi 2013, arXiv 1306.0895).

    P_xy = a_x b_y exp(cos(x, y) / T) with row sums 1 / n and column sums 1 / s; the bias is -T log b_y. Each iteration
    scales the tiles (rows), then the snippets (columns). It multiplies all tiles by all snippets once if the snippets
    fit in memory (`fits_in_memory`), and twice otherwise. All snippets receive equal mass, which suits corpora where
    every snippet describes some tile.
    """
    n, biases = tiles.store.size, np.zeros(len(snippets))
    scale = _scale_dense if fits_in_memory(snippets) else _scale_streamed
    masses = scale(snippets, tiles, temperature, advance)
    for _ in range(iterations):
        subtracted = torch.from_numpy(biases.astype(np.float32)).to(get_processes().device)
        excess = _log_total(masses(subtracted)) - np.log(n / len(snippets))
        biases = (biases + temperature * excess).round(DECIMALS)
    return biases


def fits_in_memory(snippets: StoredRows) -> bool:
    """Return whether Sinkhorn may keep the embeddings of all snippets in memory."""
    return len(snippets) * snippets.store.dim <= _SINKHORN_VALUES


Masses = Callable[[Float[Tensor, "s"]], Float[Tensor, "s"]]
"""Function from biases to the logarithm of each snippet's mass over this process's tiles."""


def _scale_dense(snippets: StoredRows, tiles: TileBlocks, temperature: float, advance: "Advance") -> Masses:
    """Return the function that computes masses with all snippets in memory."""
    processes = get_processes()
    vectors = torch.from_numpy(snippets.vectors(np.arange(len(snippets)))).to(processes.device)
    blocks = TileBlocks(tiles.store, tiles.mean, max(1, min(tiles.size, _SINKHORN_SCORES // max(len(snippets), 1))))
    buffer = torch.empty(blocks.size * len(snippets), device=processes.device)

    def masses(biases: Float[Tensor, "s"]) -> Float[Tensor, "s"]:
        mass = _empty_sums(len(snippets))
        for start in processes.share(blocks.starts):
            block = torch.from_numpy(blocks.vectors(start)).to(processes.device)
            with full_precision():
                logits = product(block, vectors, buffer).sub_(biases).div_(temperature)
            logits -= logits.logsumexp(dim=1, keepdim=True)
            mass = torch.logaddexp(mass, logits.logsumexp(dim=0).double())
            advance(len(block) * processes.count)
        return mass

    return masses


def _scale_streamed(snippets: StoredRows, tiles: TileBlocks, temperature: float, advance: "Advance") -> Masses:
    """Return the function that computes masses in two passes over the shards: scale the tiles, then sum the masses."""
    processes = get_processes()
    own_blocks, shards = distribute(len(tiles.starts), snippets.store.shards)
    shared, per_pass = len(shards) < snippets.store.shards, blocks_per_pass(tiles.size, tiles.store.dim)
    buffer = torch.empty(min(tiles.size, tiles.store.size) * BLOCK, device=processes.device)

    def masses(biases: Float[Tensor, "s"]) -> Float[Tensor, "s"]:
        def logits(
            block: Float[Tensor, "b dim"], rows: Int[Tensor, "_"], vectors: Float[Tensor, "_ dim"]
        ) -> Float[Tensor, "b _"]:
            return product(block, vectors, buffer).sub_(biases[rows]).div_(temperature)

        mass = _empty_sums(len(snippets))
        for first in range(0, len(own_blocks), per_pass):
            starts = [tiles.starts[number] for number in own_blocks[first : first + per_pass]]
            blocks = [torch.from_numpy(tiles.vectors(start)).to(processes.device) for start in starts]
            totals = [_empty_sums(len(block)) for block in blocks]
            with full_precision():
                for rows, vectors in snippets.shards(shards):
                    for i, block in enumerate(blocks):
                        new = logits(block, rows, vectors).logsumexp(dim=1).double()
                        totals[i] = torch.logaddexp(totals[i], new)
                if shared:
                    totals = [torch.from_numpy(_log_total(total)).to(processes.device) for total in totals]
                for rows, vectors in snippets.shards(shards):
                    for block, total in zip(blocks, totals, strict=True):
                        share = logits(block, rows, vectors).sub_(total.float()[:, None]).logsumexp(dim=0)
                        mass[rows] = torch.logaddexp(mass[rows], share.double())
            advance(sum(map(len, blocks)) * (1 if shared else processes.count))
        return mass

    return masses


def _groups(snippets: StoredRows) -> list[range]:
    """Group the shards that are in memory at the same time, with at least one shard per process."""
    per_pass, shards = max(blocks_per_pass(SHARD, snippets.store.dim), get_processes().count), snippets.store.shards
    return [range(first, min(first + per_pass, shards)) for first in range(0, shards, per_pass)]


def _empty_sums(count: int) -> Float[Tensor, "_"]:
    """Return the logarithms of empty sums: minus infinity."""
    return torch.full((count,), -torch.inf, dtype=torch.float64, device=get_processes().device)


def _log_total(logarithms: Float[Tensor, "s"]) -> Float64[np.ndarray, "s"]:
    """Compute the log-sum-exp over processes."""
    return np.asarray(np.logaddexp.reduce(get_processes().gather(logarithms.cpu().numpy()), axis=0), dtype=np.float64)
