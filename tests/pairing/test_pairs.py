"""Test pairs: nearest snippets, independence of block size and interruptions, and mismatched encoders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged_lines import capture_log
from tiny_models import write_store

import clipit.pairing.pairs as module
from clipit.errors import ArtifactError
from clipit.output_files.artifacts import open_artifact
from clipit.pairing.pair_statistics import summarise, summary_text
from clipit.pairing.pairs import Pairs, pair_tiles
from clipit.stores.approximate import SearchSettings
from clipit.stores.embed import Store
from clipit.stores.index import Index, build_index, has_faiss
from clipit.vectors import centred, unit

DIM, SNIPPETS, TILES = 12, 300, 90


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32) + 1)


@pytest.fixture
def texts(tmp_path: Path) -> Store:
    return write_store(tmp_path, [f"s{i:03d}" for i in range(SNIPPETS)], vectors(SNIPPETS, 0))


@pytest.fixture
def tiles(tmp_path: Path) -> Store:
    return write_store(tmp_path, [f"t{i:03d}" for i in range(TILES)], vectors(TILES, 1), kind="tile_store")


@pytest.fixture
def index(tmp_path: Path, texts: Store) -> Index:
    return build_index(tmp_path, texts)


def file_hash(pairs: Pairs) -> str:
    return pairs.artifact.manifest.files["pairs.parquet"]


def test_pairs_are_the_nearest_snippets_after_centring(
    tmp_path: Path, index: Index, texts: Store, tiles: Store
) -> None:
    table = pair_tiles(tmp_path, index, tiles, k=3).table
    a, b = tiles.rows(np.arange(TILES)), texts.rows(np.arange(SNIPPETS))
    cosines = centred(a, a.mean(axis=0)) @ centred(b, b.mean(axis=0)).T
    best = np.argsort(-cosines, axis=1)[:, :3]
    assert table.column("tile_id").to_pylist() == np.repeat(tiles.ids, 3).tolist()
    assert table.column("rank").to_pylist() == [0, 1, 2] * TILES
    assert table.column("snippet_id").to_pylist() == texts.ids[best.reshape(-1)].tolist()
    assert np.allclose(table.column("score"), np.take_along_axis(cosines, best, 1).reshape(-1), atol=1e-5)


def test_without_centring_there_is_no_mean(tmp_path: Path, texts: Store, tiles: Store) -> None:
    pairs = pair_tiles(tmp_path, build_index(tmp_path, texts, centring=False), tiles)
    assert pairs.tile_mean is None
    assert pair_tiles(tmp_path, build_index(tmp_path, texts), tiles).tile_mean is not None


@pytest.mark.skipif(not has_faiss(), reason="faiss is not installed")
def test_pairs_of_different_search_settings_are_stored_separately(tmp_path: Path, texts: Store, tiles: Store) -> None:
    pairs = {
        nprobe: pair_tiles(
            tmp_path, build_index(tmp_path, texts, key="IVF16,Flat", search=SearchSettings(nprobe=nprobe)), tiles
        )
        for nprobe in (1, 16)
    }
    assert pairs[1].artifact.folder != pairs[16].artifact.folder
    assert file_hash(pairs[1]) != file_hash(pairs[16])
    assert file_hash(pairs[16]) == file_hash(pair_tiles(tmp_path, build_index(tmp_path, texts), tiles))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_pairs_do_not_depend_on_the_block_size(tmp_path: Path, index: Index, tiles: Store, block: int) -> None:
    expected = pair_tiles(tmp_path / "a", index, tiles, k=2)
    assert file_hash(pair_tiles(tmp_path / "b", index, tiles, k=2, block=block)) == file_hash(expected)


@pytest.mark.parametrize("blocks_done", [0, 1, 4])
@pytest.mark.parametrize("next_block", [10, 16])
def test_a_resumed_pairing_gives_the_same_pairs(
    tmp_path: Path, index: Index, tiles: Store, blocks_done: int, next_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pair_tiles(tmp_path / "a", index, tiles, k=2, block=10)
    searched = 0

    def interrupted(*arguments: Any, **keys: Any) -> object:
        nonlocal searched
        if searched == blocks_done:
            raise KeyboardInterrupt
        searched += 1
        return original(*arguments, **keys)

    original = module.search
    monkeypatch.setattr(module, "blocks_per_pass", lambda block, dim: 1)
    monkeypatch.setattr(module, "search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair_tiles(tmp_path / "b", index, tiles, k=2, block=10)
    monkeypatch.setattr(module, "search", original)
    resumed = pair_tiles(tmp_path / "b", index, tiles, k=2, block=next_block)
    assert file_hash(resumed) == file_hash(expected)
    assert not list(resumed.artifact.folder.glob(".*"))


def test_fewer_snippets_than_requested(tmp_path: Path, tiles: Store) -> None:
    small_index = build_index(tmp_path, write_store(tmp_path, ["b", "a"], vectors(2, 3)))
    table = pair_tiles(tmp_path, small_index, tiles, k=5).table
    assert table.num_rows == 2 * TILES
    assert set(table.column("rank").to_pylist()) == {0, 1}


def test_different_encoders_are_an_error_that_names_both(tmp_path: Path, index: Index) -> None:
    other = write_store(tmp_path, ["t"], vectors(1, 1), vlm="encoder-b", kind="tile_store")
    with pytest.raises(ArtifactError, match=r"name of encoder-a \(encoder-a\).*name of encoder-b \(encoder-b\)"):
        pair_tiles(tmp_path, index, other)


def test_summary_counts_tiles_and_hubs(tmp_path: Path, index: Index, tiles: Store, texts: Store) -> None:
    pairs = pair_tiles(tmp_path, index, tiles, k=2)
    summary = pairs.summary
    first = pairs.table.filter(np.asarray(pairs.table.column("rank")) == 0)
    names, counts = np.unique(first.column("snippet_id").to_numpy().astype(str), return_counts=True)
    assert summary["tiles"] == TILES and summary["snippets"] == SNIPPETS and summary["snippets_used"] == len(names)
    assert summary["hub_share"] == pytest.approx(np.sort(counts)[::-1][:3].sum() / TILES)
    assert summary["most_used"][0]["tiles"] == counts.max()
    assert summary["score_quantiles"]["0.5"] == pytest.approx(np.median(first.column("score")))
    text = summary_text(summary, dict.fromkeys(texts.ids.tolist(), "a text"))
    assert f"{TILES} tiles paired; {len(names)} of {SNIPPETS} snippets used as first snippet" in text
    assert len(set(pairs.table.column("snippet_id").to_pylist())) > len(names), (
        "second snippets are not counted as used"
    )
    assert "have one of the 3 most used snippets (1%) as their first snippet; skewness" in text
    assert "(all pairs)" in text
    assert "most used as first snippet:" in text


def test_summary_of_no_pairs(tmp_path: Path, index: Index, tiles: Store) -> None:
    empty = pair_tiles(tmp_path, index, tiles).table.slice(0, 0)
    assert summary_text(summarise(empty, 5), {}) == "no tile was paired"


@pytest.mark.parametrize(
    "name", ["emb-00000.npy", "ids-00000.parquet", "mean.npy", "rows.npy", "positions.npy", "pairs.parquet"]
)
def test_a_flipped_bit_in_a_large_file_is_an_error(
    tmp_path: Path, index: Index, texts: Store, tiles: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pair_tiles(tmp_path, index, tiles)
    monkeypatch.setattr("clipit.output_files.artifacts._SMALL", 0)
    for file in tmp_path.glob(f"*/{name}"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    stores = [Store(open_artifact(store.artifact.folder, store.artifact.manifest.kind)) for store in (texts, tiles)]
    with pytest.raises(ArtifactError, match=rf"(?s)changed.*{name}.*delete the folder"):
        assert pair_tiles(tmp_path, build_index(tmp_path, stores[0]), stores[1], k=2).table.num_rows
        assert pair_tiles(tmp_path, build_index(tmp_path, stores[0]), stores[1]).table.num_rows


def test_a_damaged_part_of_an_interrupted_pairing_is_an_error(
    tmp_path: Path, index: Index, tiles: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_count_outcomes", kill)
        with pytest.raises(KeyboardInterrupt):
            pair_tiles(tmp_path, index, tiles)
    (part,) = tmp_path.glob("pairs-*.partial/.part-*")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"(?s)unreadable.*part-.*delete this file"):
        pair_tiles(tmp_path, index, tiles)
    part.unlink()
    assert pair_tiles(tmp_path, index, tiles).table.num_rows == TILES


@pytest.mark.skipif(not has_faiss(), reason="faiss is not installed")
def test_an_index_that_returns_too_few_candidates_is_logged(
    tmp_path: Path, texts: Store, tiles: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = capture_log()
    index = build_index(tmp_path, texts, key="IVF4,Flat")
    assert pair_tiles(tmp_path, index, tiles, k=100).table.num_rows == 100 * TILES
    assert not any("fewer candidates" in line for line in log)

    def find_one(self: Index, queries: np.ndarray, k: int, needed: int) -> np.ndarray:
        return np.pad(np.zeros((len(queries), 1), dtype=np.int64), ((0, 0), (0, k - 1)), constant_values=-1)

    monkeypatch.setattr(Index, "candidates", find_one)
    assert pair_tiles(tmp_path, index, tiles, k=2).table.num_rows == TILES
    assert any(f"returned {TILES} fewer candidates than requested (2 per tile)" in line for line in log)
