"""Corrections against dense formulas, whatever the block and the number of processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_store

import clipit.pairing.correction as module
from clipit.config.run import PairingConfig
from clipit.distributed import Processes
from clipit.pairing.correction import TileBlocks, inverted_softmax_biases, nearest_tiles, sinkhorn_biases
from clipit.pairing.nearest import Keys, index_matrix, nearest
from clipit.pairing.pairs import pair_tiles
from clipit.stores.embed import Store, centred, unit
from clipit.stores.index import Index, build_index

DIM, SNIPPETS, TILES, T = 8, 150, 70, 0.1


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32) + 0.5)


@pytest.fixture
def tiles(tmp_path: Path) -> Store:
    return write_store(tmp_path, [f"t{i:03d}" for i in range(TILES)], vectors(TILES, 1), kind="tile_store")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return build_index(tmp_path, write_store(tmp_path, [f"s{i:03d}" for i in range(SNIPPETS)], vectors(SNIPPETS, 0)))


@pytest.fixture
def cosines(index: Index, tiles: Store) -> np.ndarray:
    """All of them, tiles by snippets, in double precision."""
    queries = centred(tiles.rows(np.arange(TILES)), tiles.mean())
    return queries.astype(np.float64) @ index.vectors(np.arange(SNIPPETS)).astype(np.float64).T


def ranking(correction: str, cos: np.ndarray) -> np.ndarray:
    """The published score of every tile with every snippet, or its logarithm."""
    if correction == "csls":
        r_tile = -np.sort(-cos, axis=1)[:, :10].mean(axis=1)
        r_snippet = -np.sort(-cos, axis=0)[:10].mean(axis=0)
        return 2 * cos - r_tile[:, None] - r_snippet[None]
    powers = np.exp(cos / T)
    if correction == "inverted_softmax":
        return np.log(powers / powers.sum(axis=0))
    for _ in range(10):  # rows, then columns
        powers /= powers.sum(axis=1, keepdims=True) * TILES
        powers /= powers.sum(axis=0, keepdims=True) * SNIPPETS
    return np.log(powers)


@pytest.mark.parametrize("correction", ["csls", "inverted_softmax", "sinkhorn"])
@pytest.mark.parametrize("block", [7, 4096])
def test_pairs_are_those_of_the_published_score(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray, correction: str, block: int
) -> None:
    rules = PairingConfig(correction=correction, correction_temperature=T)  # type: ignore[arg-type]
    table = pair_tiles(tmp_path, index, tiles, k=3, block=block, rules=rules).table
    best = np.argsort(-ranking(correction, cosines), axis=1)[:, :3]
    assert table.column("snippet_id").to_pylist() == index.ids[best.reshape(-1)].tolist()
    assert np.allclose(table.column("score"), np.take_along_axis(cosines, best, 1).reshape(-1), atol=1e-5)
    assert (best != np.argsort(-cosines, axis=1)[:, :3]).any(), "nothing was corrected"


def test_sinkhorn_gives_every_snippet_the_same_mass(index: Index, tiles: Store, cosines: np.ndarray) -> None:
    blocks = TileBlocks(tiles, tiles.mean(), 16)
    biases = sinkhorn_biases(index_matrix(index), blocks, T, 200, lambda units=1, note="": None)
    powers = np.exp((cosines - biases) / T)
    powers /= powers.sum(axis=1, keepdims=True)
    assert np.allclose(powers.sum(axis=0), TILES / SNIPPETS, rtol=1e-3)


def test_a_small_temperature_does_not_underflow(index: Index, tiles: Store, cosines: np.ndarray) -> None:
    blocks = TileBlocks(tiles, tiles.mean(), 16)
    biases = inverted_softmax_biases(index_matrix(index), blocks, 1e-3, lambda units=1, note="": None)
    assert np.allclose(biases, cosines.max(axis=0), atol=0.01)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_find_the_same_statistics(
    index: Index, tiles: Store, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets, blocks = index_matrix(index), TileBlocks(tiles, tiles.mean(), 16)

    def quiet(units: int = 1, note: str = "") -> None:
        """No bar."""

    alone = nearest_tiles(snippets, blocks, 5, quiet), inverted_softmax_biases(snippets, blocks, T, quiet)
    parts: list[list[np.ndarray]] = []
    for rank in range(count):  # what each one would send ...
        sent: list[np.ndarray] = []

        class Recording(Processes):
            def gather(self, value: np.ndarray, sent: list[np.ndarray] = sent) -> list[np.ndarray]:  # type: ignore[override]
                sent.append(value)
                return [value]

        monkeypatch.setattr(module, "get_processes", lambda r=rank, c=Recording: c(r, count, torch.device("cpu")))
        nearest_tiles(snippets, blocks, 5, quiet)
        inverted_softmax_biases(snippets, blocks, T, quiet)
        parts.append(sent)

    class Joining(Processes):
        calls = 0

        def gather(self, value: np.ndarray) -> list[np.ndarray]:  # type: ignore[override]
            Joining.calls += 1
            return [part[Joining.calls - 1] for part in parts]

    monkeypatch.setattr(module, "get_processes", lambda: Joining(0, count, torch.device("cpu")))  # ... put together
    assert np.array_equal(nearest_tiles(snippets, blocks, 5, quiet), alone[0])
    assert np.array_equal(inverted_softmax_biases(snippets, blocks, T, quiet), alone[1])


def test_nearest_over_chunks_is_a_plain_search(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipit.pairing import nearest as search

    monkeypatch.setattr(search, "BLOCK", 64)
    queries, bias = vectors(9, 3), np.random.default_rng(0).random(SNIPPETS) / 5
    owners = np.arange(SNIPPETS) % 9
    bias[5] = np.inf
    found = nearest(queries, np.arange(9), Keys(index_matrix(index), bias, owners), 4)
    scores = queries @ index.vectors(np.arange(SNIPPETS)).T - bias
    scores[np.arange(9)[:, None] == owners] = -np.inf
    assert np.array_equal(np.sort(found), np.sort(np.argsort(-scores, axis=1)[:, :4]))
