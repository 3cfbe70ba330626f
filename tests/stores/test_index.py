"""Indexes of both backends against a reference implementation, and their errors."""

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import Float32
from tiny_models import write_store

from clipit.distributed import Processes
from clipit.errors import ArtifactError, ConfigError, DataError
from clipit.output_files.artifacts import file_sha256
from clipit.pairing.pairs import search
from clipit.stores.approximate import SearchSettings
from clipit.stores.embed import Store
from clipit.stores.index import Index, build_index, has_faiss
from clipit.vectors import centred, unit

needs_faiss = pytest.mark.skipif(not has_faiss(), reason="faiss is not installed")
BACKENDS = ["torch", pytest.param("faiss", marks=needs_faiss)]
DIM = 16


def random_unit(n: int, seed: int) -> Float32[np.ndarray, "n d"]:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32) + 0.5)


def reference(store: Store, queries: np.ndarray, k: int, *, centring: bool) -> tuple[list[list[str]], np.ndarray]:
    """Reference search: distinct vectors under their lowest id, sorted by cosine and then by id."""
    vectors = store.rows(np.arange(len(store.ids)))
    lowest: dict[bytes, str] = {}
    for vector, name in zip(vectors, store.ids.tolist(), strict=True):
        key = vector.astype(np.float16).tobytes()
        lowest[key] = min(name, lowest.get(key, name))
    names = np.array(sorted(lowest.values()))
    if centring:
        vectors = centred(vectors, vectors.astype(np.float64).mean(axis=0).astype(np.float32))
    scores = (queries.astype(np.float64) @ vectors[store.positions(names)].astype(np.float64).T).round(6)
    order = np.stack([np.lexsort((names, -row)) for row in scores])[:, :k]
    return names[order].tolist(), np.take_along_axis(scores, order, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    vectors = random_unit(5000, 0)  # two shards
    vectors[100:140] = vectors[100]
    vectors[4500] = vectors[3]
    ids = [f"s{number:05d}" for number in np.random.default_rng(1).permutation(5000)]
    return write_store(tmp_path_factory.mktemp("store"), ids, vectors)


def search_ids(index: Index, queries: np.ndarray, k: int) -> tuple[list[list[str]], np.ndarray]:
    rows, scores = search(index, queries, k)
    return index.ids[rows].tolist(), scores


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("centring", [True, False])
def test_exact_search_breaks_ties_by_lowest_id(store: Store, tmp_path: Path, backend: Any, centring: bool) -> None:
    index = build_index(tmp_path, store, centring=centring, backend=backend)
    vectors = store.rows(np.array([100, 3, 7]))
    queries = np.concatenate([random_unit(50, 2), unit(vectors)])
    names, scores = search_ids(index, queries, 5)
    expected, expected_scores = reference(store, queries, 5, centring=centring)
    assert names == expected
    assert np.allclose(scores, expected_scores, atol=2e-6)


@needs_faiss
def test_backends_agree(store: Store, tmp_path: Path) -> None:
    queries = random_unit(200, 3)
    ids = [search_ids(build_index(tmp_path, store, backend=backend), queries, 3)[0] for backend in ("torch", "faiss")]
    assert ids[0] == ids[1]


def test_equal_embeddings_are_merged_under_the_lowest_id(store: Store, tmp_path: Path) -> None:
    index = build_index(tmp_path, store, centring=False)
    same = store.ids[100:140]
    assert index.artifact.manifest.facts["equal_embeddings"] == 39 + 1
    assert len(index.ids) == 5000 - 40
    assert set(index.ids.tolist()) & set(same.tolist()) == {min(same.tolist())}
    assert index.ids.tolist() == sorted(index.ids.tolist())


def test_mean_of_the_index_is_the_mean_of_the_texts(store: Store, tmp_path: Path) -> None:
    index = build_index(tmp_path, store)
    everything = store.rows(np.arange(len(store.ids)))
    assert index.mean is not None and np.allclose(index.mean, everything.mean(axis=0), atol=1e-6)
    assert build_index(tmp_path, store, centring=False).mean is None
    assert np.allclose(np.linalg.norm(index.vectors(np.arange(20)), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_k_above_the_number_of_snippets(tmp_path: Path, backend: Any) -> None:
    index = build_index(tmp_path, write_store(tmp_path, ["b", "a", "c"], random_unit(3, 0)), backend=backend)
    rows, _ = search(index, random_unit(2, 1), 10)
    assert [sorted(row) for row in rows.tolist()] == [[0, 1, 2], [0, 1, 2]]


@needs_faiss
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps")
@pytest.mark.parametrize("key", ["IVF16,Flat", "HNSW16"])
def test_an_approximate_index_is_memory_mapped_once(store: Store, tmp_path: Path, key: str) -> None:
    index = build_index(tmp_path, store, key=key)
    assert search_ids(index, random_unit(3, 5), 2)[1].shape == (3, 2)
    path = index.artifact.file("index.faiss")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    assert [flags for _, flags, *_ in maps] == ["r--s"], "one mapping, whose pages are shared between processes"
    start, end = (int(address, 16) for address in maps[0][0].split("-"))
    assert end - start >= path.stat().st_size


@needs_faiss
def test_recall_of_inverted_lists(store: Store, tmp_path: Path) -> None:
    exact = build_index(tmp_path, store)
    index = build_index(tmp_path, store, key="IVF8,Flat")
    queries = random_unit(100, 5)
    first, best = search_ids(index, queries, 1)[0], search_ids(exact, queries, 1)[0]
    assert np.mean([a == b for a, b in zip(first, best, strict=True)]) > 0.3
    assert index.artifact.folder != exact.artifact.folder


@needs_faiss
@pytest.mark.parametrize("key", ["IVF32,Flat", "PCA16,IVF32,Flat", "IVF32,PQ8x4,RFlat"])
def test_recall_increases_with_nprobe(store: Store, tmp_path: Path, key: str) -> None:
    exact = search_ids(build_index(tmp_path, store), random_unit(100, 5), 1)[0]

    def recall(nprobe: int | None) -> float:
        first = search_ids(
            build_index(tmp_path, store, key=key, search=SearchSettings(nprobe=nprobe)), random_unit(100, 5), 1
        )[0]
        return float(np.mean([a == b for a, b in zip(first, exact, strict=True)]))

    assert recall(None) == recall(1) < recall(4) < recall(32)
    assert len(list(tmp_path.glob("index-*[0-9a-f]"))) == 2  # the fingerprint does not depend on search settings


@pytest.mark.parametrize("key", ["Flat", "HNSW32"])
def test_nprobe_requires_inverted_lists(store: Store, tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=r"no lists(?s:.*)pairing\.nprobe"):
        build_index(
            tmp_path, store, key=key, backend="faiss" if has_faiss() else "torch", search=SearchSettings(nprobe=2)
        )


@needs_faiss
@pytest.mark.parametrize("supported", [True, False])
def test_search_uses_the_gpu_of_the_process_if_faiss_supports_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    import faiss
    import torch

    devices: list[int] = []
    moved: list[Any] = []

    def to_gpu(resources: object, device: int, index: Any) -> Any:
        devices.append(device)
        if not supported:
            raise RuntimeError("this index type is not implemented on GPU")
        moved.append(index)
        return index

    queries = random_unit(20, 5)
    index = build_index(tmp_path, store, key="IVF8,Flat", search=SearchSettings(nprobe=3))
    expected = search_ids(index, queries, 2)[0]
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    assert search_ids(Index(index.artifact, store, SearchSettings(nprobe=3)), queries, 2)[0] == expected
    assert devices == []  # the process itself runs on the CPU
    second = Processes(rank=1, count=2, device=torch.device("cuda", 1))
    monkeypatch.setattr("clipit.stores.approximate.get_processes", lambda: second)
    assert search_ids(Index(index.artifact, store, SearchSettings(nprobe=3)), queries, 2)[0] == expected
    assert devices == [1]
    assert all(faiss.extract_index_ivf(each).nprobe == 3 for each in moved) and len(moved) == supported


@needs_faiss
@pytest.mark.parametrize("key", ["IVF40,Flat", "PCA16,IVF40,Flat", "IVF40,Flat,RFlat"])
def test_more_lists_are_searched_if_they_contain_too_few_snippets(tmp_path: Path, key: str) -> None:
    store = write_store(tmp_path, [f"{i:03d}" for i in range(200)], random_unit(200, 0))
    index = build_index(tmp_path, store, key=key)
    queries = random_unit(20, 1)
    first = search(index, queries, 1)[0]
    rows, scores = search(index, queries, 30)
    assert (rows >= 0).all() and np.isfinite(scores).all()
    assert all(len(set(row)) == 30 for row in rows.tolist())
    assert np.array_equal(search(index, queries, 1)[0], first)  # one list is searched where it suffices


def test_memory_of_exact_search_does_not_depend_on_the_number_of_snippets(tmp_path: Path) -> None:
    def peak(n: int) -> int:
        vectors = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)
        store = write_store(tmp_path, [f"{i:06d}" for i in range(n)], unit(vectors))
        index = build_index(tmp_path, store)
        queries = unit(vectors[:50])
        search(index, queries, 3)  # caches the ids and their order
        tracemalloc.start()
        try:
            assert search(index, queries, 3)[0][:, 0].tolist() == list(range(50))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60_000) < 1.1 * peak(20_000)


def test_a_flat_index_does_not_copy_the_vectors(store: Store, tmp_path: Path) -> None:
    assert set(build_index(tmp_path, store).artifact.manifest.files) == {
        "ids.parquet",
        "mean.npy",
        "positions.npy",
        "rows.npy",
    }


@needs_faiss
@pytest.mark.parametrize("key", ["Nonsense", "IVF5000,Flat", "PQ7", "IDMap,Flat"])
def test_invalid_index_keys_are_errors(tmp_path: Path, key: str) -> None:
    store = write_store(tmp_path, [f"{i:03d}" for i in range(50)], random_unit(50, 0))
    with pytest.raises(ConfigError, match=r"(?s)faiss cannot build index.*pairing\.index.*Flat"):
        build_index(tmp_path, store, key=key)
    assert not list(tmp_path.glob("index-*[0-9a-f]"))


def test_approximate_keys_require_faiss(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs faiss"):
        build_index(tmp_path, store, key="IVF8,Flat", backend="torch")
    monkeypatch.setattr("clipit.stores.index.has_faiss", lambda: False)
    with pytest.raises(ConfigError, match="faiss is not installed"):
        build_index(tmp_path, store, backend="faiss")
    assert build_index(tmp_path, store).artifact.manifest.facts["backend"] == "torch"


def test_an_empty_text_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text store is empty"):
        build_index(tmp_path, write_store(tmp_path, [], np.zeros((0, DIM))))


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("count", [1, 3])
def test_centring_requires_distinct_snippets(tmp_path: Path, backend: Any, count: int) -> None:
    store = write_store(tmp_path, [f"s{i}" for i in range(count)], np.repeat(random_unit(1, 0), count, axis=0))
    with pytest.raises(DataError, match=r"(?s)centring needs snippets with different.*pairing\.centring=false"):
        build_index(tmp_path, store, backend=backend)
    index = build_index(tmp_path, store, backend=backend, centring=False)
    assert len(index.ids) == 1


def test_search_uses_float32_under_autocast(store: Store, tmp_path: Path) -> None:
    import torch

    index = build_index(tmp_path, store, backend="torch")
    queries = random_unit(500, 6)
    plain = search_ids(index, queries, 1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert search_ids(index, queries, 1)[0] == plain


@needs_faiss
def test_damaged_and_foreign_index_files_are_errors(store: Store, tmp_path: Path) -> None:
    index = build_index(tmp_path / "own", store, key="IVF8,Flat", search=SearchSettings(nprobe=8))
    path, queries = index.artifact.file("index.faiss"), random_unit(3, 5)
    data = path.read_bytes()

    def with_file_content(content: bytes) -> Index:
        """Index whose file is replaced, with a matching digest in the manifest."""
        path.write_bytes(content)
        manifest = index.artifact.manifest
        files = {**manifest.files, "index.faiss": file_sha256(path)}
        return Index(replace(index.artifact, manifest=replace(manifest, files=files)), store, index.settings)

    few = write_store(tmp_path / "few", [f"t{number}" for number in range(600)], random_unit(600, 8))
    other = build_index(tmp_path / "other", few, key="IVF8,Flat").artifact.file("index.faiss").read_bytes()
    with pytest.raises(ArtifactError, match="600 rows of 16 dimensions, not 4,960 of 16"):
        with_file_content(other).candidates(queries, 5)
    last = data.rindex(np.int64(4959).tobytes())  # the id of the last row in its list
    with pytest.raises(ArtifactError, match="contains rows that do not exist"):
        with_file_content(data[:last] + np.int64(10**15).tobytes() + data[last + 8 :]).candidates(queries, index.size)
    for content in (data[: len(data) // 2], bytes(len(data)), data[:80] + b"\xff" * 8 + data[88:], b""):
        with pytest.raises(ArtifactError, match=r"(?s)(unreadable|rows of).*delete the folder"):
            with_file_content(content).candidates(queries, 5)
    path.write_bytes(other)
    with pytest.raises(ArtifactError, match="a file is missing or changed"):
        Index(index.artifact, store).candidates(queries, 5)
