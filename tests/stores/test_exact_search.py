"""Exact search over shards: results match a plain search, memory is bounded, and damaged shards are errors."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import write_store

from clipit.config.run import PairingConfig
from clipit.errors import ArtifactError
from clipit.output_files.artifacts import Artifact
from clipit.pairing.nearest import exact_cosines, search
from clipit.pairing.pair_rules import find_candidates, prepare_selection
from clipit.pairing.pairs import pair_tiles
from clipit.stores import stored_rows
from clipit.stores.check import check_shards
from clipit.stores.embed import Store
from clipit.stores.exact import best_of, full_precision, nearest_rows
from clipit.stores.index import Index, build_index
from clipit.stores.stored_rows import centred_rows
from clipit.vectors import centred, unit

DIM, ROWS = 8, 9000  # three shards


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32) + 0.3)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder, embeddings = tmp_path_factory.mktemp("texts"), vectors(ROWS, 0)
    embeddings[4200] = embeddings[17]  # in two shards
    ids = [f"s{i:04d}" for i in np.random.default_rng(1).permutation(ROWS)]
    return build_index(folder, write_store(folder, ids, embeddings), backend="torch")


def without_files(artifact: Artifact, *names: str) -> Artifact:
    """Copy of an artefact whose manifest lacks the given files."""
    files = {name: digest for name, digest in artifact.manifest.files.items() if name not in names}
    return Artifact(artifact.folder, replace(artifact.manifest, files=files))


@pytest.fixture
def shards_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List that records the numbers of the shards that are read."""
    numbers: list[int] = []
    shard = Store.shard

    def record_shard(self: Store, number: int) -> np.ndarray:
        numbers.append(number)
        return shard(self, number)

    monkeypatch.setattr(Store, "shard", record_shard)
    return numbers


@pytest.mark.parametrize("width", [3, 200, 4096, 4100])
@pytest.mark.parametrize("k", [1, 5, 300])
def test_best_of_matches_topk(width: int, k: int) -> None:
    scores = torch.from_numpy(np.random.default_rng(width).permutation(7 * width).reshape(7, width).astype(np.float32))
    values, columns = best_of(scores, k)
    expected = scores.topk(min(k, width), dim=1)
    assert torch.equal(values, expected.values) and torch.equal(columns, expected.indices)


def test_rows_do_not_depend_on_the_order_of_the_store(index: Index) -> None:
    stored, everything = index.stored(), np.arange(index.size)
    assert np.array_equal(stored.inverse[stored.positions], everything)
    assert (np.asarray(stored.inverse) < 0).sum() == 1
    parts = ((rows, block.numpy().copy()) for rows, block in stored.shards())
    vector_of = {int(row): vector for rows, block in parts for row, vector in zip(rows, block, strict=True)}
    assert sorted(vector_of) == everything.tolist()
    assert np.allclose(stored.vectors(everything), np.stack([vector_of[row] for row in everything.tolist()]), atol=1e-6)
    assert np.array_equal(stored.vectors(stored.rows_of(2)), stored.shard(2).numpy())


def test_an_index_of_an_earlier_version_has_the_same_rows(index: Index) -> None:
    earlier = Index(without_files(index.artifact, "positions.npy", "rows.npy"), index.store).stored()
    current = index.stored()
    assert np.array_equal(earlier.positions, current.positions) and np.array_equal(earlier.inverse, current.inverse)


def test_ids_are_read_shard_by_shard(index: Index) -> None:
    store, rows = Store(index.store.artifact), np.array([8998, 3, 4097, 3])
    assert store.ids_at(rows).tolist() == index.store.ids[rows].tolist()
    assert "ids" not in vars(store)
    assert Index(index.artifact, store).ids_of(rows).tolist() == index.ids[rows].tolist()


def test_more_shards_than_open_files_allowed(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.stores.embed._MAX_MAPPED", 2)
    store, rows = Store(index.store.artifact), np.random.default_rng(2).permutation(ROWS)
    assert np.array_equal(store.rows(rows)[np.argsort(rows)], np.concatenate([block for _, block in store.blocks()]))
    assert len(store._mapped) <= 2


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_each_shard_is_read_once_for_several_blocks(
    index: Index, tmp_path: Path, shards_read: list[int], backend: Any
) -> None:
    index = build_index(tmp_path, index.store, backend=backend)
    queries = vectors(90, 3)
    shards_read.clear()
    rows, scores = search(index, queries, 4, block=7)
    assert shards_read[:3] == [0, 1, 2] and len(shards_read) <= 6  # plus each shard at most once for the exact scores
    cosines = queries @ index.vectors(np.arange(index.size)).T
    assert np.array_equal(rows, np.argsort(-cosines.round(6), axis=1, kind="stable")[:, :4])
    assert np.allclose(scores, -np.sort(-cosines, axis=1)[:, :4], atol=2e-6)


def test_pairing_rules_keep_no_vectors_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.stores.exact.values_per_pass", lambda: 4096 * 64)
    rules = PairingConfig(correction="csls", mutual=True)

    def peak(n: int) -> int:
        embeddings = unit(np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32))
        index = build_index(tmp_path, write_store(tmp_path, [f"{i:06d}" for i in range(n)], embeddings))
        tiles = write_store(tmp_path, [f"t{i:03d}" for i in range(100)], embeddings[:100], kind="tile_store")
        queries = centred(tiles.rows(np.arange(50)), tiles.mean())
        tracemalloc.start()
        try:
            find_candidates(prepare_selection(index, tiles, rules, block=50), queries, np.full(50, -1), 2, block=50)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    vector = 64 * 4
    assert peak(24_000) - peak(8_000) < 16_000 * vector / 3  # a third of the vectors, to allow for allocator noise


def test_shards_that_fit_stay_on_the_device(
    index: Index, shards_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_rows, "bytes_to_keep", lambda device: 2 * 4096 * DIM * 4)
    stored, queries = index.stored(), vectors(9, 3)
    shards_read.clear()
    first, second = (nearest_rows(queries, stored.shards(), 3) for _ in range(2))
    assert shards_read == [0, 1, 2, 2]
    assert np.array_equal(first, second)


def test_exact_cosines_do_not_depend_on_the_batch(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, rows = vectors(40, 3), np.random.default_rng(3).integers(-1, index.size, (40, 6))
    whole = exact_cosines(queries, index.stored(), rows)
    expected = np.einsum("qd,qkd->qk", queries, index.vectors(np.maximum(rows, 0))).round(6)
    assert np.array_equal(whole, np.where(rows >= 0, expected, -np.inf))
    monkeypatch.setattr("clipit.pairing.nearest._RESCORED", 3 * DIM)
    assert np.array_equal(exact_cosines(queries, index.stored(), rows), whole)


def test_full_precision_overrides_reduced_precision_and_autocast() -> None:
    left = torch.ones(2, 2)
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert (left @ left).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_centred_rows_are_read_in_parts(index: Index) -> None:
    rows, mean = np.random.default_rng(4).integers(0, ROWS, 5000), index.store.mean()
    assert np.array_equal(centred_rows(index.store, rows, mean), centred(index.store.rows(rows), mean))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: np.save(folder / "emb-00001.npy", np.zeros((4096, DIM + 1), np.float16)), "9.*instead of .*8"),
        (
            lambda folder: np.save(folder / "emb-00001.npy", np.zeros((4095, DIM), np.float16)),
            "4095.*instead of .*4096",
        ),
        (lambda folder: (folder / "emb-00001.npy").unlink(), "emb-00001.npy is unreadable"),
        (lambda folder: (folder / "emb-00002.npy").write_bytes(b"\x93NUMPY"), "emb-00002.npy is unreadable"),
    ],
)
def test_inconsistent_shards_are_an_error(tmp_path: Path, change: Any, message: str) -> None:
    store = write_store(tmp_path, [f"{i:04d}" for i in range(ROWS)], vectors(ROWS, 0))
    check_shards(store)
    change(store.artifact.folder)
    with pytest.raises(ArtifactError, match=rf"(?s)inconsistent: .*{message}.*embed again"):
        build_index(tmp_path, store)


def test_a_shard_missing_from_the_manifest_is_an_error(index: Index) -> None:
    store = Store(without_files(index.store.artifact, "emb-00001.npy"))
    with pytest.raises(ArtifactError, match=r"emb-00001\.npy is missing"):
        check_shards(store)


def test_a_damaged_shard_of_tiles_is_an_error_before_the_search(index: Index, tmp_path: Path) -> None:
    tiles = write_store(tmp_path, [f"t{i:04d}" for i in range(5000)], vectors(5000, 5), kind="tile_store")
    (tiles.artifact.folder / "emb-00001.npy").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"emb-00001.npy is unreadable"):
        pair_tiles(tmp_path, index, tiles)
    assert not list(tmp_path.glob("pairs-*/.part-*"))
