"""Training of approximate indexes: number of rows, keys that need more rows, and memory."""

from pathlib import Path

import numpy as np
import pytest
from logged_lines import capture_log
from tiny_models import write_store

from clipit.errors import ConfigError
from clipit.stores.approximate_build import build_bytes, check_index_memory, check_key, fitting_key, training_rows
from clipit.stores.index import build_index, has_faiss
from clipit.vectors import unit

needs_faiss = pytest.mark.skipif(not has_faiss(), reason="faiss is not installed")


@pytest.mark.parametrize(
    ("centroids", "dim", "rows", "trained"),
    [
        (0, 512, 1_000_000, 65_536),
        (256, 512, 1_000_000, 65_536),
        (4096, 512, 1_000_000, 1_000_000),
        (4096, 512, 10_000_000, 4096 * 256),
        (65_536, 512, 10_000_000, 65_536 * 39),  # 256 rows per list would take 34 GB
        (16, 512, 300, 300),
    ],
)
def test_training_rows_follow_the_recommendation_of_faiss(centroids: int, dim: int, rows: int, trained: int) -> None:
    assert training_rows(centroids, dim, rows) == trained


@pytest.mark.parametrize(
    ("key", "rows", "fitting"),
    [
        ("IVF4096,Flat", 10_000, "IVF256,Flat"),
        ("IVF16,Flat", 10_000, "IVF16,Flat"),
        ("IVF64,PQ16", 1000, "IVF16,PQ16x4"),
        ("PQ8x10", 20_000, "PQ8x9"),
        ("OPQ16,IVF8,PQ16x4fs", 1000, "OPQ16,IVF8,PQ16x4fs"),
        ("IVF8_HNSW32,SQ8", 200, "IVF4_HNSW32,SQ8"),
        ("IVF8,Flat", 5, "IVF1,Flat"),
    ],
)
def test_fitting_key_reduces_a_key_to_the_number_of_rows(key: str, rows: int, fitting: str) -> None:
    assert fitting_key(key, rows) == fitting


@needs_faiss
@pytest.mark.parametrize(
    ("key", "rows", "message"),
    [
        (
            "PQ8",
            200,
            r"for 200 snippets: it has 256 lists or codes(?s:.*)use PQ8x2, HNSW32 .*or Flat",
        ),
        ("IVF300,Flat", 299, r"has 300 lists or codes(?s:.*)use IVF4,Flat"),
        ("OPQ8,PQ8x4", 255, r"has 256 lists or codes(?s:.*)use PQ8x2,"),
        ("IVF4,PQ8x4,RFlat", 15, r"has 16 lists or codes"),
        ("PQ7", 1000, r"dimension(?s:.*)pairing\.index(?s:.*)PQ<m> needs an m that divides 16"),
        ("IVF0,Flat", 1000, r"it has no lists(?s:.*)use a key with lists"),
    ],
)
def test_keys_that_need_more_rows_are_an_error_before_training(key: str, rows: int, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"faiss cannot build index '{key}'(?s:.*){message}"):
        check_key(key, 16, rows)


@needs_faiss
@pytest.mark.parametrize("key", ["IVF32,SQ8", "IVF32_HNSW8,PQ4x4", "HNSW16", "PQ8x4,RFlat", "PCA8,IVF16,Flat"])
def test_estimated_memory_of_an_index(tmp_path: Path, key: str) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32))
    store = write_store(tmp_path, [f"{i:04d}" for i in range(3000)], vectors)
    index = build_index(tmp_path, store, key=key)
    training, whole = build_bytes(key, 16, 3000)
    assert training == (0 if key == "HNSW16" else 3000 * 16 * 4)
    assert whole == pytest.approx(index.artifact.file("index.faiss").stat().st_size, rel=0.2)


@needs_faiss
def test_an_index_that_does_not_fit_into_memory_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.stores.approximate_build.device_memory", lambda device: 8_000_000_000)
    training, whole = build_bytes("IVF262144,SQ8", 512, 100_000_000)
    assert round(training / 1e9) == 21 and round(whole / 1e9, 1) == 52.5
    with pytest.raises(ConfigError, match=r"needs about 73\.5 GB of memory \(20\.9 GB for training.* 8\.0 GB are free"):
        check_index_memory("IVF262144,SQ8", 512, 100_000_000)
    check_index_memory("IVF16384,PQ32", 512, 10_000_000)


@needs_faiss
def test_few_rows_per_list_are_noted(tmp_path: Path) -> None:
    log = capture_log()
    vectors = unit(np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32))
    store = write_store(tmp_path, [f"{i:03d}" for i in range(300)], vectors)
    build_index(tmp_path, store, key="IVF4,Flat")
    assert not log
    build_index(tmp_path, store, key="IVF16,Flat")
    assert any("trains 16 centroids on 300 snippets" in line and "'IVF4,Flat'" in line for line in log)
