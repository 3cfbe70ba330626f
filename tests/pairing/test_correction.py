"""Test hubness corrections against dense formulas, for several block sizes and numbers of processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import write_store

import clipit.pairing.correction as module
from clipit.config.run import PairingConfig
from clipit.distributed import Processes
from clipit.pairing.correction import TileBlocks, inverted_softmax_biases, nearest_tiles, sinkhorn_biases
from clipit.pairing.nearest import Keys, nearest
from clipit.pairing.pairs import pair_tiles
from clipit.stores.embed import Store
from clipit.stores.index import Index, build_index
from clipit.vectors import centred, unit

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
    """Cosine similarities of all tiles (rows) and snippets (columns) in double precision."""
    queries = centred(tiles.rows(np.arange(TILES)), tiles.mean())
    return queries.astype(np.float64) @ index.vectors(np.arange(SNIPPETS)).astype(np.float64).T


def ranking(correction: str, cos: np.ndarray) -> np.ndarray:
    """Published score of every tile with every snippet, or its logarithm."""
    if correction == "csls":
        r_tile = -np.sort(-cos, axis=1)[:, :10].mean(axis=1)
        r_snippet = -np.sort(-cos, axis=0)[:10].mean(axis=0)
        return 2 * cos - r_tile[:, None] - r_snippet[None]
    powers = np.exp(cos / T)
    if correction == "inverted_softmax":
        return np.log(powers / powers.sum(axis=0))
    for _ in range(10):  # normalise rows, then columns
        powers /= powers.sum(axis=1, keepdims=True) * TILES
        powers /= powers.sum(axis=0, keepdims=True) * SNIPPETS
    return np.log(powers)


@pytest.mark.parametrize("correction", ["csls", "inverted_softmax", "sinkhorn"])
@pytest.mark.parametrize("block", [7, 4096])
def test_pairs_have_the_highest_published_scores(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray, correction: str, block: int
) -> None:
    rules = PairingConfig(correction=correction, correction_temperature=T)  # type: ignore[arg-type]
    table = pair_tiles(tmp_path, index, tiles, k=3, block=block, rules=rules).table
    best = np.argsort(-ranking(correction, cosines), axis=1)[:, :3]
    assert table.column("snippet_id").to_pylist() == index.ids[best.reshape(-1)].tolist()
    assert np.allclose(table.column("score"), np.take_along_axis(cosines, best, 1).reshape(-1), atol=1e-5)
    assert (best != np.argsort(-cosines, axis=1)[:, :3]).any(), "the correction changed no pair"


def test_sinkhorn_gives_all_snippets_equal_mass(index: Index, tiles: Store, cosines: np.ndarray) -> None:
    blocks = TileBlocks(tiles, tiles.mean(), 16)
    biases = sinkhorn_biases(index.stored(), blocks, T, 200, quiet)
    powers = np.exp((cosines - biases) / T)
    powers /= powers.sum(axis=1, keepdims=True)
    assert np.allclose(powers.sum(axis=0), TILES / SNIPPETS, rtol=1e-3)


def test_a_small_temperature_does_not_underflow(index: Index, tiles: Store, cosines: np.ndarray) -> None:
    blocks = TileBlocks(tiles, tiles.mean(), 16)
    biases = inverted_softmax_biases(index.stored(), blocks, 1e-3, quiet)
    assert np.allclose(biases, cosines.max(axis=0), atol=0.01)


def quiet(units: int = 1, note: str = "") -> None:
    """Report no progress."""


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use shards of 32 rows and keep at most two in memory."""
    for name in ("stores.embed", "pairing.correction"):
        monkeypatch.setattr(f"clipit.{name}.SHARD", 32)
    monkeypatch.setattr("clipit.stores.exact.values_per_pass", lambda: 2 * 32 * DIM)


@pytest.mark.parametrize(("count", "size"), [(2, 16), (3, 16), (2, 4096), (4, 35)])
def test_several_processes_compute_the_same_statistics(
    small_shards: None, index: Index, tiles: Store, count: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes share the blocks of tiles, or the shards of snippets if there are too few blocks."""
    snippets, blocks = index.stored(), TileBlocks(tiles, tiles.mean(), size)

    def statistics() -> list[np.ndarray]:
        near = np.empty((SNIPPETS, 5))
        for rows, rows_nearest in nearest_tiles(snippets, blocks, 5, quiet):
            near[rows] = rows_nearest
        return [near, inverted_softmax_biases(snippets, blocks, T, quiet)]

    def run_as(processes: Processes) -> list[np.ndarray]:
        for name in ("clipit.pairing.correction", "clipit.pairing.blocks", "clipit.stores.exact"):
            monkeypatch.setattr(f"{name}.get_processes", lambda: processes)
        return statistics()

    expected = statistics()
    parts: list[list[np.ndarray]] = []
    for rank in range(count):  # record what each process sends
        sent: list[np.ndarray] = []

        class Recording(Processes):
            def gather(self, value: np.ndarray, sent: list[np.ndarray] = sent) -> list[np.ndarray]:  # type: ignore[override]
                sent.append(value)
                return [value]

        run_as(Recording(rank, count, torch.device("cpu")))
        parts.append(sent)
    assert not np.array_equal(parts[0][0], parts[1][0])
    calls = iter(range(len(parts[0])))

    class Joining(Processes):  # returns what all processes sent
        def gather(self, value: np.ndarray) -> list[np.ndarray]:  # type: ignore[override]
            place = next(calls)
            return [part[place] for part in parts]

    for joined, single in zip(run_as(Joining(0, count, torch.device("cpu"))), expected, strict=True):
        assert np.array_equal(joined, single)


def test_sinkhorn_gives_equal_biases_if_snippets_do_not_fit_in_memory(
    small_shards: None, index: Index, tiles: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets, blocks = index.stored(), TileBlocks(tiles, tiles.mean(), 16)
    monkeypatch.setattr(module, "fits_in_memory", lambda snippets: False)
    streamed = sinkhorn_biases(snippets, blocks, T, 10, quiet)
    monkeypatch.setattr(module, "fits_in_memory", lambda snippets: True)
    assert np.allclose(sinkhorn_biases(snippets, blocks, T, 10, quiet), streamed, atol=2e-6)
    assert np.abs(streamed).max() > 0.01


def test_nearest_over_shards_matches_a_dense_search(small_shards: None, index: Index) -> None:
    queries, bias = vectors(9, 3), np.random.default_rng(0).random(SNIPPETS) / 5
    owners = np.arange(SNIPPETS) % 9
    bias[5] = np.inf
    rows = nearest(queries, np.arange(9), Keys(index.stored(), bias, owners), 4, block=2)
    scores = queries @ index.vectors(np.arange(SNIPPETS)).T - bias
    scores[np.arange(9)[:, None] == owners] = -np.inf
    assert np.array_equal(np.sort(rows), np.sort(np.argsort(-scores, axis=1)[:, :4]))
