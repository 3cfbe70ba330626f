"""Test text bags and tile bags against plain loops, with pruning and groups."""

from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_store

from clipit.config.run import PairingConfig
from clipit.errors import ConfigError
from clipit.pairing.pairs import Pairs, pair_tiles
from clipit.pairing.text_bags import nearest_prompts, text_bags
from clipit.pairing.tile_bags import tile_bags
from clipit.stores.embed import Store
from clipit.stores.index import Index, build_index
from clipit.vectors import centred, unit

DIM, SNIPPETS, TILES, K = 8, 60, 40, 3
IDS = [f"t{(7 * i) % TILES:03d}" for i in range(TILES)]  # not sorted


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32))


@pytest.fixture
def tiles(tmp_path: Path) -> Store:
    return write_store(tmp_path, IDS, vectors(TILES, 1), kind="tile_store")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return build_index(tmp_path, write_store(tmp_path, [f"s{i:03d}" for i in range(SNIPPETS)], vectors(SNIPPETS, 0)))


@pytest.fixture
def pairs(tmp_path: Path, index: Index, tiles: Store) -> Pairs:
    return pair_tiles(tmp_path, index, tiles, k=4, rules=PairingConfig(threshold=0.68, score_temperature=0.1))


def reference_bags(
    tiles: Store, index: Index, pairs: Pairs, groups: dict[str, str], margin: float
) -> dict[tuple[str, str], list[str]]:
    """Return the nearest allowed tiles within the margin of the best one, by (tile, kind)."""
    embeddings = centred(tiles.rows(np.arange(TILES)), tiles.mean())
    first = {row["tile_id"]: row["snippet_id"] for row in pairs.table.to_pylist() if row["rank"] == 0}
    bags: dict[tuple[str, str], list[str]] = {}
    for i, tile in enumerate(IDS):
        queries = {"image": embeddings[i]}
        if tile in first:
            queries["text"] = index.vectors(np.array([int(first[tile][1:])]))[0]
        for kind, query in queries.items():
            others = [j for j in range(TILES) if j != i and groups[IDS[j]] != groups[tile]]
            ordered = sorted(others, key=lambda j: -float(embeddings[j] @ query))[:K]
            best = float(embeddings[ordered[0]] @ query)
            bags[tile, kind] = [IDS[j] for j in ordered if float(embeddings[j] @ query) >= best - margin]
    return bags


@pytest.mark.parametrize("block", [7, 4096])
def test_tile_bags_match_a_plain_loop(tmp_path: Path, index: Index, tiles: Store, pairs: Pairs, block: int) -> None:
    groups = {tile: f"g{int(tile[1:]) // 4}" for tile in IDS}
    bags = tile_bags(
        tmp_path, tiles, K, mean=tiles.mean(), pairs=pairs, index=index, groups=groups, margin=0.1, block=block
    )
    members_of: dict[tuple[str, str], list[str]] = {}
    for row in bags.table.to_pylist():
        members = members_of.setdefault((row["tile_id"], row["kind"]), [])
        assert row["rank"] == len(members)
        members.append(row["member_id"])
    expected = reference_bags(tiles, index, pairs, groups, 0.1)
    assert members_of == expected and 0 < pairs.summary["tiles_without_pair"] < TILES
    assert bags.pruned == K * len(expected) - sum(map(len, expected.values())) > 0
    assert bags.empty == []


def test_rows_of_tile_bags_contain_each_member_once(tmp_path: Path, index: Index, tiles: Store, pairs: Pairs) -> None:
    bags = tile_bags(tmp_path, tiles, K, mean=tiles.mean(), pairs=pairs, index=index)
    requested = np.asarray(IDS[5:15])
    rows = bags.rows(requested, tiles)
    by_tile: dict[str, list[str]] = {}
    for row in bags.table.to_pylist():
        if row["member_id"] not in by_tile.setdefault(row["tile_id"], []):
            by_tile[row["tile_id"]].append(row["member_id"])
    assert [[tiles.ids[r] for r in row if r >= 0] for row in rows] == [by_tile[tile] for tile in requested]
    assert rows.shape[1] > K, "rows contain members of both kinds"


def test_empty_tile_bags_are_listed(tmp_path: Path, tiles: Store) -> None:
    groups = dict.fromkeys(IDS, "a") | {"t003": ""}
    bags = tile_bags(tmp_path, tiles, 1, groups=groups)
    assert bags.table.filter(np.asarray(bags.table.column("tile_id")) == "t003").num_rows == 1
    assert bags.empty == [] and set(bags.table.column("member_id").to_pylist()) - {"t003"} != set()
    one_group = tile_bags(tmp_path, tiles, 1, groups=dict.fromkeys(IDS, "a"))
    assert one_group.empty == IDS and one_group.table.num_rows == 0
    assert (one_group.rows(np.asarray(IDS), tiles) == -1).all()


def test_equally_near_members_are_sorted_by_id(tmp_path: Path) -> None:
    store = write_store(tmp_path, ["d", "b", "c", "a"], vectors(1, 0)[[0, 0, 0, 0]], kind="tile_store")
    table = tile_bags(tmp_path, store, 2).table
    assert table.column("member_id").to_pylist() == ["a", "b", "a", "c", "a", "b", "b", "c"]


@pytest.mark.parametrize("block", [1, 7])
def test_bags_do_not_depend_on_the_block_size(tmp_path: Path, tiles: Store, block: int) -> None:
    single, divided = tile_bags(tmp_path / "a", tiles, 996), tile_bags(tmp_path / "b", tiles, 996, block=block)
    assert single.table.num_rows == TILES * (TILES - 1)
    assert divided.artifact.manifest.files == single.artifact.manifest.files


def test_text_bags_contain_the_pairs_and_their_weights(index: Index, tiles: Store, pairs: Pairs) -> None:
    bag = text_bags(tiles.ids, pairs, index.store, max_snippets=3)
    rows = [row for row in pairs.table.to_pylist() if row["rank"] < 3]
    for i, tile in enumerate(IDS):
        tile_rows = [row for row in rows if row["tile_id"] == tile]
        filled = bag.rows[i] >= 0
        assert index.store.ids[bag.rows[i][filled]].tolist() == [row["snippet_id"] for row in tile_rows]
        total = sum(row["weight"] for row in tile_rows)
        assert np.allclose(bag.weights[i][filled], [row["weight"] / total for row in tile_rows], atol=1e-6)
        assert bag.empty[i] == (not tile_rows) and (bag.weights[i][~filled] == 0).all()
    assert 0 < bag.empty.sum() < TILES and bag.pruned == 0


def test_text_bags_are_pruned_by_the_margin(index: Index, tiles: Store, pairs: Pairs) -> None:
    bag = text_bags(tiles.ids, pairs, index.store, max_snippets=4, margin=0.05)
    best: dict[str, float] = {}
    near = 0
    for row in pairs.table.to_pylist():
        near += row["score"] >= best.setdefault(row["tile_id"], row["score"]) - 0.05
    assert (bag.rows >= 0).sum() == near and bag.pruned == pairs.table.num_rows - near > 0
    assert np.allclose(bag.weights.sum(axis=1)[~bag.empty], 1)


def test_nearest_prompts_match_a_dense_search() -> None:
    tiles, prompts = vectors(30, 2), vectors(12, 3)
    expected = np.argsort(-(tiles @ prompts.T), axis=1)[:, :4]
    assert np.array_equal(nearest_prompts(tiles, prompts, 4, block=7), expected)
    assert nearest_prompts(tiles[:1], prompts[[2, 2, 2]], 2).tolist() == [[0, 1]]
    with pytest.raises(ConfigError, match="13 prompts per tile requested, but there are only 12"):
        nearest_prompts(tiles, prompts, 13)
