"""Test recall of approximate indexes: automatic settings, the summary, and the warning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged_lines import capture_log
from tiny_models import write_store

from clipit.pairing.pair_statistics import summary_text
from clipit.pairing.pairs import Pairs, pair_tiles
from clipit.stores.approximate import SearchSettings
from clipit.stores.embed import Store
from clipit.stores.index import build_index, has_faiss
from clipit.vectors import unit

pytestmark = pytest.mark.skipif(not has_faiss(), reason="faiss is not installed")
DIM, SNIPPETS, TILES, K = 32, 6000, 400, 3


def clustered(n: int, seed: int, noise: float) -> np.ndarray:
    """Draw unit vectors around 100 common centres."""
    centres = np.random.default_rng(0).normal(size=(100, DIM))
    rng = np.random.default_rng(seed)
    return unit((centres[rng.integers(0, 100, n)] + noise * rng.normal(size=(n, DIM))).astype(np.float32))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recall")


@pytest.fixture(scope="module")
def texts(root: Path) -> Store:
    return write_store(root, [f"s{i:04d}" for i in range(SNIPPETS)], clustered(SNIPPETS, 1, 0.4))


@pytest.fixture(scope="module")
def tiles(root: Path) -> Store:
    return write_store(root, [f"t{i:03d}" for i in range(TILES)], clustered(TILES, 2, 0.8), kind="tile_store")


@pytest.fixture(scope="module")
def exact(root: Path, texts: Store, tiles: Store) -> Pairs:
    return pair_tiles(root, build_index(root, texts), tiles, k=K)


def measured_recall(pairs: Pairs, exact: Pairs) -> float:
    """Share of the exact pairs that were found, over all tiles."""
    rows = [set(zip(*(table_pairs.table.column(name).to_pylist() for name in ("tile_id", "snippet_id")), strict=True))
            for table_pairs in (pairs, exact)]  # fmt: skip
    return len(rows[0] & rows[1]) / len(rows[1])


@pytest.mark.parametrize("key", ["IVF128,Flat", "HNSW16", "IVF32,PQ8x4fs", "PQ8x4fs,RFlat", "IVF64_HNSW16,SQ8"])
def test_automatic_settings_reach_the_target_recall(
    root: Path, texts: Store, tiles: Store, exact: Pairs, key: str
) -> None:
    pairs = pair_tiles(root, build_index(root, texts, key=key), tiles, k=K)
    figures = pairs.summary["recall"]
    assert figures["recall"] >= 0.97 and figures["advice"] is None, figures
    assert abs(measured_recall(pairs, exact) - figures["recall"]) < 0.02, "the sample should represent all tiles"
    assert figures["tiles"] == TILES // 2 and figures["k"] == K and figures["index"] == key
    chosen = [figures["nprobe"] if "IVF" in key else figures["ef_search"], figures["candidates"]]
    powers = [value for value in chosen if value is not None]
    assert len(powers) == 1 + ("IVF" in key or "HNSW" in key) and all(value & (value - 1) == 0 for value in powers)


def test_fewer_lists_than_chosen_miss_the_target_recall(root: Path, texts: Store, tiles: Store, exact: Pairs) -> None:
    def recall(nprobe: int | None) -> Any:
        index = build_index(root, texts, key="IVF128,Flat", search=SearchSettings(nprobe=nprobe, candidates=8))
        return pair_tiles(root, index, tiles, k=K).summary["recall"]

    chosen = recall(None)
    fewer = recall(chosen["nprobe"] // 2)
    assert chosen["nprobe"] > 1 and fewer["recall"] < 0.995 and fewer["recall"] <= chosen["recall"]


@pytest.mark.parametrize(
    ("key", "given", "advice"),
    [
        ("IVF128,Flat", {"nprobe": 1}, r"raise pairing\.nprobe from 1 to \d+ \(or set to null\) for a recall of [01]"),
        ("PQ8x4fs", {"candidates": 3}, r"raise pairing\.candidates from 3 to \d+ "),
        ("HNSW16", {"ef_search": 1}, r"raise pairing\.ef_search from 1 to \d+"),
    ],
)
def test_a_low_recall_gives_a_warning_with_keys_that_raise_it(
    root: Path, texts: Store, tiles: Store, key: str, given: dict[str, int], advice: str
) -> None:
    import re

    log = capture_log()
    index = build_index(root, texts, key=key, search=SearchSettings(**given))
    pairs = pair_tiles(root, index, tiles, k=K)
    figures = pairs.summary["recall"]
    assert figures["recall"] < 0.95 and re.search(advice, figures["advice"])
    lines = summary_text(pairs.summary, dict.fromkeys(texts.ids.tolist(), "a text")).splitlines()
    assert f"index {key}: recall@3 {figures['recall']:.3f} against exact search on 200 tiles" in lines[3]
    assert figures["advice"] not in "\n".join(lines)
    assert [figures["advice"] in line for line in log].count(True) == 1
    name, raised = re.findall(r"pairing\.(\w+) from \d+ to (\d+)", figures["advice"])[0]
    better = build_index(root, texts, key=key, search=SearchSettings(**(given | {name: int(raised)})))
    assert pair_tiles(root, better, tiles, k=K).summary["recall"]["recall"] >= 0.95, (
        "following the advice should raise the recall"
    )


def test_the_advice_for_coarse_codes_is_another_index(root: Path, tiles: Store) -> None:
    texts = write_store(root, [f"u{i:04d}" for i in range(SNIPPETS)], clustered(SNIPPETS, 3, 3.0))
    figures = pair_tiles(root, build_index(root, texts, key="PQ2x4fs"), tiles, k=K).summary["recall"]
    assert figures["recall"] < 0.95 and "no setting of this index gives a higher recall" in figures["advice"]
    assert "pairing.index=Flat" in figures["advice"]


def test_pairs_record_their_search_settings(root: Path, texts: Store, tiles: Store) -> None:
    index = build_index(root, texts, key="IVF128,Flat")
    pairs = pair_tiles(root, index, tiles, k=K)
    figures = pairs.summary["recall"]
    assert index.settings == SearchSettings()
    assert pairs.as_searched(index).settings == SearchSettings(figures["nprobe"], None, figures["candidates"])
    flat = build_index(root, texts)
    assert pair_tiles(root, flat, tiles, k=K).as_searched(flat) is flat


def test_recall_is_measured_for_a_single_tile(root: Path, texts: Store) -> None:
    one = write_store(root, ["t"], clustered(1, 5, 0.5), kind="tile_store")
    index = build_index(root, texts, key="IVF128,Flat", centring=False)
    assert pair_tiles(root, index, one, k=K).summary["recall"]["tiles"] == 1
