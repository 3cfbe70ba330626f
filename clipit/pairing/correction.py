"""Hubness correction: a bias per snippet, because some snippets (hubs) are close to every tile.

All corrections rank a tile's snippets by `cosine - bias(snippet)`. Terms that depend only on the tile (r_T of CSLS, the
tile factors of Sinkhorn) cannot change the order of its snippets and are omitted. A correction therefore takes one or
more passes over all tiles to compute the biases, then one search.

Blocks of tiles are distributed over processes. Biases are rounded, so that pairs do not depend on the number of
processes.
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
from clipit.pairing.nearest import DECIMALS
from clipit.stores.embed import Store, centred
from clipit.stores.exact import BLOCK, product

if TYPE_CHECKING:
    from clipit.progress import Advance

_SINKHORN_SCORES = 2**25  # maximum number of scores that Sinkhorn holds in memory


@dataclass(frozen=True)
class TileBlocks:
    """Tile embeddings of a store as queries, in blocks.

    Attributes:
        store: Tile store.
        mean: Mean to subtract from the embeddings; None for no centring.
        size: Number of tiles per block.
    """

    store: Store
    mean: Float32[np.ndarray, "dim"] | None
    size: int

    def vectors(self, start: int) -> Float32[np.ndarray, "_ dim"]:
        """Read the unit vectors of the block that starts at row `start`."""
        return centred(self.store.rows(np.arange(start, min(start + self.size, len(self.store.ids)))), self.mean)


def snippet_biases(
    snippets: Float[Tensor, "s dim"],
    tiles: TileBlocks,
    rules: PairingConfig,
    near: Float32[np.ndarray, "s _"] | None,
    advance: "Advance",
) -> Float64[np.ndarray, "s"]:
    """Compute the bias of each snippet for `rules.correction`; zeros for `none`.

    Args:
        snippets: Unit vectors of all snippets, one row per snippet.
        tiles: Embeddings of all training tiles.
        rules: Pairing configuration with the correction and its parameters.
        near: Cosines of each snippet with its nearest tiles (from `nearest_tiles`), for csls.
        advance: Progress callback, called with a number of tiles.
    """
    if rules.correction == "csls" and near is not None:
        return csls_biases(near, rules.correction_neighbours)
    if rules.correction == "inverted_softmax":
        return inverted_softmax_biases(snippets, tiles, rules.correction_temperature, advance)
    if rules.correction == "sinkhorn":
        return sinkhorn_biases(snippets, tiles, rules.correction_temperature, rules.correction_iterations, advance)
    return np.zeros(len(snippets))


def csls_biases(near: Float32[np.ndarray, "s m"], neighbours: int) -> Float64[np.ndarray, "s"]:
    """Compute biases of cross-domain similarity local scaling (CSLS; Conneau et al. 2018, arXiv 1710.04087).

    CSLS is 2 cos(x, y) - r_T(x) - r_S(y), where r_S(y) is the mean cosine of snippet y with its nearest tiles. The bias
    is r_S(y) / 2.
    """
    return np.asarray((near[:, :neighbours].mean(axis=1, dtype=np.float64) / 2).round(DECIMALS), dtype=np.float64)


def inverted_softmax_biases(
    snippets: Float[Tensor, "s dim"], tiles: TileBlocks, temperature: float, advance: "Advance"
) -> Float64[np.ndarray, "s"]:
    """Compute biases of the inverted softmax (Smith et al. 2017, arXiv 1702.03859), normalised over tiles per snippet.

    P(tile x | snippet y) = exp(cos(x, y) / T) / sum over tiles x' of exp(cos(x', y) / T). Its logarithm times T is the
    cosine minus T log sum exp(cos / T); the bias uses the mean instead of the sum, which does not change the order.
    """
    sums = torch.full((len(snippets),), -torch.inf, dtype=torch.float64, device=snippets.device)

    def fold(part: slice, scores: Float[Tensor, "c b"]) -> None:
        sums[part] = torch.logaddexp(sums[part], scores.div_(temperature).logsumexp(dim=1).double())

    _over_tiles(snippets, tiles, fold, advance)
    total = _log_total(sums) - np.log(len(tiles.store.ids))
    return np.asarray((temperature * total).round(DECIMALS), dtype=np.float64)


def sinkhorn_biases(
    snippets: Float[Tensor, "s dim"], tiles: TileBlocks, temperature: float, iterations: int, advance: "Advance"
) -> Float64[np.ndarray, "s"]:
    """Compute biases of a balanced assignment by Sinkhorn's algorithm (Cuturi 2013, arXiv 1306.0895).

    P_xy = a_x b_y exp(cos(x, y) / T) with row sums 1 / n and column sums 1 / s; the bias is -T log b_y. Each iteration
    scales the tiles (rows), then the snippets (columns), and takes one product of all tiles with all snippets. All
    snippets receive equal mass, which suits corpora in which every snippet describes some tile.
    """
    size = max(1, min(tiles.size, _SINKHORN_SCORES // max(len(snippets), 1)))
    blocks = TileBlocks(tiles.store, tiles.mean, size)
    processes, n = get_processes(), len(tiles.store.ids)
    biases: Float64[np.ndarray, "s"] = np.zeros(len(snippets))
    buffer = torch.empty(size * len(snippets), device=snippets.device)
    for _ in range(iterations):
        subtracted = torch.from_numpy(biases.astype(np.float32)).to(snippets.device)
        mass = torch.full((len(snippets),), -torch.inf, dtype=torch.float64, device=snippets.device)
        for start in processes.share(range(0, n, size)):
            block = torch.from_numpy(blocks.vectors(start)).to(snippets.device)
            logits = product(block, snippets, buffer).sub_(subtracted).div_(temperature)
            logits -= logits.logsumexp(dim=1, keepdim=True)
            mass = torch.logaddexp(mass, logits.logsumexp(dim=0).double())
            advance(len(block) * processes.count)
        excess = _log_total(mass) - np.log(n / len(snippets))
        biases = (biases + temperature * excess).round(DECIMALS)
    return biases


def nearest_tiles(
    snippets: Float[Tensor, "s dim"], tiles: TileBlocks, count: int, advance: "Advance"
) -> Float32[np.ndarray, "s m"]:
    """Compute the cosines of each snippet with its `count` nearest tiles (or all, if fewer), highest first."""
    count = min(count, len(tiles.store.ids))
    best = torch.full((len(snippets), count), -torch.inf, device=snippets.device)

    def fold(part: slice, scores: Float[Tensor, "c b"]) -> None:
        top = scores.topk(min(count, scores.shape[1]), dim=1).values
        best[part] = torch.cat([best[part], top], dim=1).topk(count, dim=1).values

    _over_tiles(snippets, tiles, fold, advance)
    gathered = get_processes().gather(best.cpu().numpy())
    cosines = np.concatenate(gathered, axis=1)
    return np.asarray(-np.sort(-cosines, axis=1)[:, :count], dtype=np.float32)


def _over_tiles(
    snippets: Float[Tensor, "s dim"], tiles: TileBlocks, fold: Callable[[slice, Tensor], None], advance: "Advance"
) -> None:
    """Call `fold` with the cosines of each chunk of snippets with each block of tiles; it may overwrite them."""
    processes = get_processes()
    buffer = torch.empty(min(tiles.size, len(tiles.store.ids)) * BLOCK, device=snippets.device)
    for start in processes.share(range(0, len(tiles.store.ids), tiles.size)):
        block = torch.from_numpy(tiles.vectors(start)).to(snippets.device)
        for first in range(0, len(snippets), BLOCK):
            part = slice(first, first + BLOCK)
            fold(part, product(snippets[part], block, buffer))
        advance(len(block) * processes.count)


def _log_total(logarithms: Float[Tensor, "s"]) -> Float64[np.ndarray, "s"]:
    """Compute the log-sum-exp over processes."""
    return np.asarray(np.logaddexp.reduce(get_processes().gather(logarithms.cpu().numpy()), axis=0), dtype=np.float64)
