"""Test rules that drop pairs: threshold, margin, mutual neighbours, organs and groups."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_models import write_store

from clipit.config.run import PairingConfig
from clipit.errors import ConfigError, DataError
from clipit.pairing.pair_statistics import summary_text
from clipit.pairing.pairs import Pairs, pair_tiles
from clipit.stores.approximate import SearchSettings
from clipit.stores.embed import Store
from clipit.stores.index import Index, build_index, has_faiss
from clipit.vectors import centred, unit

DIM, SNIPPETS, TILES = 8, 60, 40
IDS = [f"s{i:03d}" for i in range(SNIPPETS)]


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32))


@pytest.fixture
def tiles(tmp_path: Path) -> Store:
    return write_store(tmp_path, [f"t{i:03d}" for i in range(TILES)], vectors(TILES, 1), kind="tile_store")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return build_index(tmp_path, write_store(tmp_path, IDS, vectors(SNIPPETS, 0)))


@pytest.fixture
def cosines(index: Index, tiles: Store) -> np.ndarray:
    return centred(tiles.rows(np.arange(TILES)), tiles.mean()) @ index.vectors(np.arange(SNIPPETS)).T


def sources(**columns: list[str]) -> pa.Table:
    """Make a table with one source per snippet, and two for snippet s000."""
    rows = {"snippet_id": [*IDS, "s000"], "report_id": [f"r{i}" for i in range(SNIPPETS + 1)]}
    rows |= {"organ": [""] * (SNIPPETS + 1), "group": [""] * (SNIPPETS + 1)}
    return pa.table({**rows, **columns})


def snippets_by_tile(pairs: Pairs) -> dict[str, list[tuple[str, float]]]:
    snippets: dict[str, list[tuple[str, float]]] = {}
    for row in pairs.table.to_pylist():
        snippets.setdefault(row["tile_id"], []).append((row["snippet_id"], row["score"]))
        assert row["rank"] == len(snippets[row["tile_id"]]) - 1, "ranks should have no gaps"
    return snippets


def nearest_snippets(cosines: np.ndarray, k: int) -> dict[str, list[str]]:
    return {f"t{i:03d}": [IDS[j] for j in np.argsort(-row)[:k]] for i, row in enumerate(cosines)}


def test_default_rules_do_not_change_the_artefact(tmp_path: Path, index: Index, tiles: Store) -> None:
    expected = pair_tiles(tmp_path / "a", index, tiles, k=2)
    default = pair_tiles(tmp_path / "b", index, tiles, k=2, rules=PairingConfig(correction_neighbours=3))
    assert default.artifact.folder.name == expected.artifact.folder.name
    assert default.artifact.manifest.files["pairs.parquet"] == expected.artifact.manifest.files["pairs.parquet"]
    assert set(expected.artifact.manifest.inputs) == {"index", "tiles", "k", "nprobe"}
    assert expected.table.column_names == ["tile_id", "rank", "snippet_id", "score"]


def test_threshold_drops_pairs_and_counts_tiles_without_one(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray
) -> None:
    threshold = float(np.quantile(cosines.max(axis=1), 0.3))
    pairs = pair_tiles(tmp_path, index, tiles, k=3, rules=PairingConfig(threshold=threshold))
    expected = {
        tile: [s for s in snippets if cosines[int(tile[1:]), int(s[1:])] >= threshold]
        for tile, snippets in nearest_snippets(cosines, 3).items()
    }
    assert {t: [s for s, _ in pairs_of_tile] for t, pairs_of_tile in snippets_by_tile(pairs).items()} == {
        t: s for t, s in expected.items() if s
    }
    without = sum(not s for s in expected.values())
    assert pairs.summary["tiles_without_pair"] == without == 12
    assert pairs.summary["dropped"] == {"threshold": 3 * TILES - sum(map(len, expected.values()))}
    assert "12 tiles without a pair (30.0%)" in summary_text(pairs.summary, dict.fromkeys(IDS, "a text"))


def test_the_margin_is_relative_to_the_best_snippet_outside_the_bag(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray
) -> None:
    pairs = pair_tiles(tmp_path, index, tiles, k=2, rules=PairingConfig(margin=0.05))
    sorted_cosines = -np.sort(-cosines, axis=1)
    expected = (sorted_cosines[:, :2] - sorted_cosines[:, 2:3] >= 0.05).sum()
    assert pairs.table.num_rows == expected and 0 < expected < 2 * TILES


def test_no_pair_is_dropped_if_the_bag_contains_all_snippets(tmp_path: Path, tiles: Store) -> None:
    small_index = build_index(tmp_path, write_store(tmp_path, ["a", "b"], vectors(2, 3)))
    assert pair_tiles(tmp_path, small_index, tiles, k=2, rules=PairingConfig(margin=0.5)).table.num_rows == 2 * TILES


@pytest.mark.parametrize("block", [7, 4096])
def test_mutual_pairs_are_neighbours_in_both_directions(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray, block: int
) -> None:
    rules = PairingConfig(mutual=True, mutual_neighbours=2)
    pairs = pair_tiles(tmp_path, index, tiles, k=1, block=block, rules=rules)
    nearest = {(f"t{t:03d}", IDS[s]) for s in range(SNIPPETS) for t in np.argsort(-cosines[:, s])[:2]}
    expected = {(t, s[0]) for t, s in nearest_snippets(cosines, 1).items()} & nearest
    assert {(t, s[0][0]) for t, s in snippets_by_tile(pairs).items()} == expected and 0 < len(expected) < TILES


def test_weights_are_a_softmax_of_the_kept_scores(tmp_path: Path, index: Index, tiles: Store) -> None:
    rules = PairingConfig(score_temperature=0.1, threshold=0.3)
    table = pair_tiles(tmp_path, index, tiles, k=3, rules=rules).table
    tile, score = np.asarray(table.column("tile_id").to_pylist()), np.asarray(table.column("score"))
    for name in np.unique(tile):
        powers = np.exp(score[tile == name].astype(np.float64) / 0.1)
        assert np.allclose(np.asarray(table.column("weight"))[tile == name], powers / powers.sum(), atol=1e-6)


@pytest.mark.parametrize("last", ["breast", pytest.param("breast " * 20_000, id="long")])
def test_snippets_of_other_organs_are_excluded(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray, last: str
) -> None:
    organs = ["Breast" if i % 3 else "colon" for i in range(SNIPPETS)]
    rules = PairingConfig(organs=("COLON ",))
    pairs = pair_tiles(tmp_path, index, tiles, rules=rules, sources=sources(organ=[*organs, last]))
    allowed = np.where(np.arange(SNIPPETS) % 3 == 0, cosines, -1)
    assert [s[0][0] for s in snippets_by_tile(pairs).values()] == [IDS[j] for j in allowed.argmax(axis=1)]


@pytest.mark.parametrize(("organs", "words"), [(["breast"] * 61, "use organs.*breast"), ([""] * 61, "organ_column")])
def test_an_organ_without_reports_is_an_error(
    tmp_path: Path, index: Index, tiles: Store, organs: list[str], words: str
) -> None:
    with pytest.raises(DataError, match=f"(?s)no snippet comes from a report with the organ colon.*{words}"):
        pair_tiles(tmp_path, index, tiles, rules=PairingConfig(organs=("colon",)), sources=sources(organ=organs))


def test_snippets_that_occur_only_in_the_group_of_the_tile_are_excluded(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray
) -> None:
    first = cosines.argmax(axis=1)
    groups = {tile: f"g{j}" for tile, j in zip(tiles.ids.tolist(), first, strict=True)} | {"t003": ""}
    of_snippets = [*(f"g{j}" for j in range(SNIPPETS)), "another"]  # s000 has two groups and is not excluded
    rules = PairingConfig(exclude_same_group=True)
    snippets = snippets_by_tile(
        pair_tiles(tmp_path, index, tiles, rules=rules, sources=sources(group=of_snippets), groups=groups)
    )
    second = np.argsort(-cosines, axis=1)[:, 1]
    for i, tile in enumerate(tiles.ids.tolist()):
        excluded = first[i] != 0 and groups[tile] != ""
        assert snippets[tile][0][0] == IDS[second[i] if excluded else first[i]]


@pytest.mark.parametrize("by_slide", ["tiles", "reports"])
def test_snippets_of_the_same_patient_are_excluded_if_groups_are_slides(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray, by_slide: str
) -> None:
    tile_suffix, report_suffix = ("-S1", "") if by_slide == "tiles" else ("", "/R1")
    groups = {tile: f"g{i % 4}{tile_suffix}" for i, tile in enumerate(tiles.ids.tolist())}
    table = sources(group=[*(f"g{j % 4}{report_suffix}" for j in range(SNIPPETS)), f"g0{report_suffix}"])
    rules = PairingConfig(exclude_same_group=True)
    snippets = snippets_by_tile(pair_tiles(tmp_path, index, tiles, rules=rules, sources=table, groups=groups))
    assert all(IDS.index(snippets[tile][0][0]) % 4 != int(groups[tile][1]) for tile in snippets)


@pytest.mark.parametrize(("reports", "column"), [("own", "group"), ("own", "report_id"), ("own_then_any", "group")])
def test_tiles_are_paired_with_snippets_of_the_same_patient(
    tmp_path: Path, index: Index, tiles: Store, cosines: np.ndarray, reports: str, column: str
) -> None:
    owner = [f"TCGA-AA-000{i % 4}" for i in range(SNIPPETS)]  # patients 0 to 3
    groups = {tile: f"TCGA-AA-000{i % 5}-01Z" for i, tile in enumerate(tiles.ids.tolist())}  # slides of 0 to 4
    groups["t003"] = ""
    rules = PairingConfig(reports=reports)
    table = sources(**{column: [*owner, owner[0]]})  # reports without a group may have the barcode in their id
    snippets = snippets_by_tile(
        pair_tiles(tmp_path, index, tiles, k=2, block=7, rules=rules, sources=table, groups=groups)
    )
    for i, tile in enumerate(tiles.ids.tolist()):
        same_patient = np.array([f"{name}-01Z" == groups[tile] for name in owner])
        if not same_patient.any() and reports == "own":
            assert tile not in snippets
            continue
        order = np.argsort(-np.where(same_patient if same_patient.any() else True, cosines[i], -2))[:2]
        assert [s for s, _ in snippets[tile]] == [IDS[j] for j in order]


def test_reports_of_other_patients_only_are_an_error(tmp_path: Path, index: Index, tiles: Store) -> None:
    rules, groups = PairingConfig(reports="own"), dict.fromkeys(tiles.ids.tolist(), "P1")
    with pytest.raises(DataError, match="tile groups are P1, the report groups Q1"):
        pair_tiles(tmp_path, index, tiles, rules=rules, sources=sources(group=["Q1"] * 61), groups=groups)
    with pytest.raises(ValueError, match="exclude_same_group would exclude the patients' own reports"):
        PairingConfig(reports="own", exclude_same_group=True)


def test_snippets_with_equal_embeddings_share_their_sources(tmp_path: Path, tiles: Store) -> None:
    embeddings = vectors(2, 5)
    index = build_index(tmp_path, write_store(tmp_path, ["a", "b", "c"], embeddings[[0, 0, 1]]), centring=False)
    table = pa.table({"snippet_id": ["a", "b", "c"], "organ": ["breast", "colon", "breast"], "group": [""] * 3})
    pairs = pair_tiles(tmp_path, index, tiles, k=2, rules=PairingConfig(organs=("colon",)), sources=table)
    assert set(pairs.table.column("snippet_id").to_pylist()) == {"a"}, "a represents b, too"


def test_excluding_unknown_groups_is_an_error(tmp_path: Path, index: Index, tiles: Store) -> None:
    rules = PairingConfig(exclude_same_group=True)
    with pytest.raises(DataError, match="the reports have no groups"):
        pair_tiles(
            tmp_path, index, tiles, rules=rules, sources=sources(), groups=dict.fromkeys(tiles.ids.tolist(), "g")
        )
    with pytest.raises(DataError, match="the tiles have no groups"):
        pair_tiles(tmp_path, index, tiles, rules=rules, sources=sources(group=["g"] * 61), groups=None)


def test_rules_that_drop_all_pairs_are_an_error_with_the_scores(tmp_path: Path, index: Index, tiles: Store) -> None:
    with pytest.raises(DataError, match=r"(?s)all 40 candidate pairs.*threshold: 40.*median 0\.\d+.*set pairing"):
        pair_tiles(tmp_path, index, tiles, rules=PairingConfig(threshold=1.0))
    with pytest.raises(DataError, match="the rules exclude all snippets for every tile"):
        same_group = sources(group=["g"] * 61)
        groups = dict.fromkeys(tiles.ids.tolist(), "g")
        pair_tiles(
            tmp_path, index, tiles, rules=PairingConfig(exclude_same_group=True), sources=same_group, groups=groups
        )


@pytest.mark.skipif(not has_faiss(), reason="faiss is not installed")
def test_rules_that_need_all_scores_require_a_flat_index(tmp_path: Path, index: Index, tiles: Store) -> None:
    ivf_index = build_index(tmp_path, index.store, key="IVF4,Flat", search=SearchSettings(nprobe=4))
    with pytest.raises(ConfigError, match=r"IVF4,Flat.*does not compute all scores(?s:.*)pairing\.index=Flat"):
        pair_tiles(tmp_path, ivf_index, tiles, rules=PairingConfig(correction="csls"))
    table = pair_tiles(tmp_path, ivf_index, tiles, rules=PairingConfig(threshold=0.3)).table
    assert table.equals(pair_tiles(tmp_path, index, tiles, rules=PairingConfig(threshold=0.3)).table)


@pytest.mark.parametrize(
    "keys",
    [
        {"correction": "csls"},
        {"mutual": True},
        {"organs": ("colon",)},
        {"exclude_same_group": True},
        {"reports": "own"},
    ],
)
def test_the_configuration_rejects_these_rules_with_other_indexes(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use index=Flat, not index=IVF16"):
        PairingConfig(index="IVF16,Flat", **keys)


@pytest.mark.parametrize("kind", ["text_store", "tile_store"])
def test_embeddings_that_are_not_finite_are_an_error(tmp_path: Path, index: Index, tiles: Store, kind: str) -> None:
    broken = vectors(3, 9)
    broken[1, 2] = np.nan
    store = write_store(tmp_path, ["x0", "x1", "x2"], broken, kind=kind)
    with pytest.raises(DataError, match=r"(tiles|snippets): 1 embedding is not finite: x1"):
        if kind == "tile_store":
            pair_tiles(tmp_path, index, store)
        else:
            pair_tiles(tmp_path, build_index(tmp_path, store, backend="torch"), tiles)


def test_an_interrupted_pairing_with_rules_is_resumed(
    tmp_path: Path, index: Index, tiles: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clipit.pairing.pairs as module

    rules = PairingConfig(correction="csls", threshold=0.3, score_temperature=0.1)
    expected = pair_tiles(tmp_path / "a", index, tiles, k=2, block=10, rules=rules)
    original, calls = module.find_candidates, iter([True, True, False])

    def interrupted(*arguments: Any, **keys: Any) -> Any:
        if not next(calls):
            raise KeyboardInterrupt
        return original(*arguments, **keys)

    monkeypatch.setattr(module, "blocks_per_pass", lambda block, dim: 1)
    monkeypatch.setattr(module, "find_candidates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair_tiles(tmp_path / "b", index, tiles, k=2, block=10, rules=rules)
    monkeypatch.setattr(module, "find_candidates", original)
    resumed = pair_tiles(tmp_path / "b", index, tiles, k=2, block=10, rules=rules)
    assert resumed.artifact.manifest.files["pairs.parquet"] == expected.artifact.manifest.files["pairs.parquet"]
