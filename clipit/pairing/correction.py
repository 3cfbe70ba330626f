"""Hubness correction: some snippets are near to every tile; a bias per snippet takes that away again.

Every correction here ranks a tile's snippets by `cosine - bias(snippet)`. What a formula adds per tile (r_T of CSLS,
a tile's own factor in Sinkhorn) cannot change the order of that tile's snippets and is left out. So a correction costs
passes over all tiles for the biases, then one search.

Tiles go by in blocks, which the processes share; the biases are rounded, so that any number of processes finds the
same pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from clipit.config.run import PairingConfig
from clipit.distributed import get_processes
from clipit.pairing.nearest import CHUNK, DECIMALS, product
from clipit.stores.embed import Store, centred

if TYPE_CHECKING:
    from clipit.progress import Advance

_WHOLE_ROWS = 2**25  # scores of a few tiles with all snippets that Sinkhorn holds at once


@dataclass(frozen=True)
class TileBlocks:
    """The tiles of a store as queries, block by block.

    Attributes:
        store: Tiles.
        mean: Subtracted from them, if any.
        size: Tiles in a block.
    """

    store: Store
    mean: Float32[np.ndarray, "dim"] | None
    size: int

    def vectors(self, start: int) -> Float32[np.ndarray, "_ dim"]:
        """Unit vectors of the block that starts at this row."""
        return centred(self.store.rows(np.arange(start, min(start + self.size, len(self.store.ids)))), self.mean)


def snippet_biases(
    snippets: Float[Tensor, "s dim"],
    tiles: TileBlocks,
    rules: PairingConfig,
    near: Float32[np.ndarray, "s _"] | None,
    advance: "Advance",
) -> Float64[np.ndarray, "s"]:
    """The bias of each snippet under `rules.correction`; zeros for `none`.

    Args:
        snippets: Vectors of all snippets.
        tiles: All training tiles.
        rules: Correction and its settings.
        near: Cosines of each snippet's nearest tiles (`nearest_tiles`), for csls.
        advance: Moves a bar by tiles.
    """
    if rules.correction == "csls" and near is not None:
        return csls_biases(near, rules.correction_neighbours)
    if rules.correction == "inverted_softmax":
        return inverted_softmax_biases(snippets, tiles, rules.correction_temperature, advance)
    if rules.correction == "sinkhorn":
        return sinkhorn_biases(snippets, tiles, rules.correction_temperature, rules.correction_iterations, advance)
    return np.zeros(len(snippets))


def csls_biases(near: Float32[np.ndarray, "s m"], neighbours: int) -> Float64[np.ndarray, "s"]:
    """Cross-domain similarity local scaling: 2 cos(x, y) - r_T(x) - r_S(y) (Conneau et al. 2018, arXiv 1710.04087).

    r_S(y) is the mean cosine of snippet y with its nearest tiles; the bias is half of it.
    """
    return np.asarray((near[:, :neighbours].mean(axis=1, dtype=np.float64) / 2).round(DECIMALS), dtype=np.float64)


def inverted_softmax_biases(
    snippets: Float[Tensor, "s dim"], tiles: TileBlocks, temperature: float, advance: "Advance"
) -> Float64[np.ndarray, "s"]:
    """Inverted softmax (Smith et al. 2017, arXiv 1702.03859): each snippet's mass of 1 is spread over the tiles.

    P(tile x | snippet y) = exp(cos(x, y) / T) / sum over tiles x' of exp(cos(x', y) / T). Its logarithm times T is the
    cosine minus T log sum exp(cos / T); the bias takes the mean instead of the sum, which is the same order.
    """
    sums = torch.full((len(snippets),), -torch.inf, dtype=torch.float64, device=snippets.device)

    def fold(part: slice, scores: Float[Tensor, "c b"]) -> None:
        """Add a block of tiles to the sums of some snippets."""
        sums[part] = torch.logaddexp(sums[part], scores.div_(temperature).logsumexp(dim=1).double())

    _over_tiles(snippets, tiles, fold, advance)
    total = _log_total(sums) - np.log(len(tiles.store.ids))
    return np.asarray((temperature * total).round(DECIMALS), dtype=np.float64)


def sinkhorn_biases(
    snippets: Float[Tensor, "s dim"], tiles: TileBlocks, temperature: float, iterations: int, advance: "Advance"
) -> Float64[np.ndarray, "s"]:
    """Balanced assignment (Sinkhorn's algorithm; Cuturi 2013, arXiv 1306.0895): equal mass per tile and per snippet.

    P_xy = a_x b_y exp(cos(x, y) / T) with row sums 1 / n and column sums 1 / s; the bias is -T log b_y. Each iteration
    scales the tiles (rows), then the snippets (columns), and costs one product of all tiles with all snippets. It
    forces mass upon every snippet: fit for a corpus of which every snippet describes some tile, not for others.
    """
    size = max(1, min(tiles.size, _WHOLE_ROWS // max(len(snippets), 1)))
    blocks = TileBlocks(tiles.store, tiles.mean, size)
    processes, n = get_processes(), len(tiles.store.ids)
    biases: Float64[np.ndarray, "s"] = np.zeros(len(snippets))
    buffer = torch.empty(size * len(snippets), device=snippets.device)
    for _ in range(iterations):
        taken = torch.from_numpy(biases.astype(np.float32)).to(snippets.device)
        mass = torch.full((len(snippets),), -torch.inf, dtype=torch.float64, device=snippets.device)
        for start in processes.share(range(0, n, size)):
            block = torch.from_numpy(blocks.vectors(start)).to(snippets.device)
            logits = product(block, snippets, buffer).sub_(taken).div_(temperature)
            logits -= logits.logsumexp(dim=1, keepdim=True)
            mass = torch.logaddexp(mass, logits.logsumexp(dim=0).double())
            advance(len(block) * processes.count)
        excess = _log_total(mass) - np.log(n / len(snippets))
        biases = (biases + temperature * excess).round(DECIMALS)
    return biases


def nearest_tiles(
    snippets: Float[Tensor, "s dim"], tiles: TileBlocks, count: int, advance: "Advance"
) -> Float32[np.ndarray, "s m"]:
    """Cosines of each snippet with its `count` nearest tiles (all tiles when there are fewer), highest first."""
    count = min(count, len(tiles.store.ids))
    best = torch.full((len(snippets), count), -torch.inf, device=snippets.device)

    def fold(part: slice, scores: Float[Tensor, "c b"]) -> None:
        """Keep the highest of what there was and of a block of tiles."""
        top = scores.topk(min(count, scores.shape[1]), dim=1).values
        best[part] = torch.cat([best[part], top], dim=1).topk(count, dim=1).values

    _over_tiles(snippets, tiles, fold, advance)
    gathered = get_processes().gather(best.cpu().numpy())
    every = np.concatenate(gathered, axis=1)
    return np.asarray(-np.sort(-every, axis=1)[:, :count], dtype=np.float32)


def _over_tiles(
    snippets: Float[Tensor, "s dim"],
    tiles: TileBlocks,
    fold: Callable[[slice, Tensor], None],
    advance: "Advance",
) -> None:
    """Call `fold` with cosines of some snippets and a block of this process's tiles (it may overwrite them)."""
    processes = get_processes()
    buffer = torch.empty(min(tiles.size, len(tiles.store.ids)) * CHUNK, device=snippets.device)
    for start in processes.share(range(0, len(tiles.store.ids), tiles.size)):
        block = torch.from_numpy(tiles.vectors(start)).to(snippets.device)
        for first in range(0, len(snippets), CHUNK):
            part = slice(first, first + CHUNK)
            fold(part, product(snippets[part], block, buffer))
        advance(len(block) * processes.count)


def _log_total(own: Float[Tensor, "s"]) -> Float64[np.ndarray, "s"]:
    """Logarithm of the sum over processes, given each one's logarithm."""
    return np.asarray(np.logaddexp.reduce(get_processes().gather(own.cpu().numpy()), axis=0), dtype=np.float64)
