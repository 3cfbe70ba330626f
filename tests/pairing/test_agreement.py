"""Test statistics of a pairing: label agreement, hubness, and the table of options."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from tiny_models import write_store

from clipit.config.run import PairingConfig
from clipit.pairing.options import compare_options, options_text
from clipit.pairing.pair_statistics import agreement, skewness, summarise, summary_text
from clipit.pairing.pairs import pair_tiles
from clipit.stores.embed import Store
from clipit.stores.index import Index, build_index
from clipit.vectors import unit

DIM, SNIPPETS, TILES = 8, 60, 50


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32) + 0.4)


@pytest.fixture
def tiles(tmp_path: Path) -> Store:
    return write_store(tmp_path, [f"t{i:03d}" for i in range(TILES)], vectors(TILES, 1), kind="tile_store")


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return build_index(tmp_path, write_store(tmp_path, [f"s{i:03d}" for i in range(SNIPPETS)], vectors(SNIPPETS, 0)))


def pairs(snippets: list[str]) -> pa.Table:
    n = len(snippets)
    return pa.table(
        {
            "tile_id": [f"t{i}" for i in range(n)],
            "rank": pa.array([0] * n, pa.int16()),
            "snippet_id": snippets,
            "score": pa.array(np.linspace(0.9, 0.1, n), pa.float32()),
        }
    )


def test_neighbour_accuracy_on_a_small_example() -> None:
    table = pairs(["a", "a", "a", "b", "b", "c", "a"])
    labels = {"t0": 0, "t1": 0, "t2": 1, "t3": 0, "t4": 1, "t5": 0, "t6": -1}
    # One of two neighbours of t0 and t1 has the same label, none of t2, t3 and t4; t5 has no neighbour.
    statistics = agreement(table, labels)
    assert statistics["labelled"] == 6 and statistics["neighbours_tiles"] == 5
    assert statistics["neighbours"] == pytest.approx((0.5 + 0.5 + 0 + 0 + 0) / 5)
    assert statistics["chance"] == pytest.approx(4 / 6)


def test_zero_shot_accuracy_and_auroc_of_the_score(index: Index, tiles: Store, tmp_path: Path) -> None:
    table = pair_tiles(tmp_path, index, tiles).table
    classes = vectors(3, 7)
    label = np.random.default_rng(0).integers(0, 3, TILES)
    statistics = agreement(
        table, dict(zip(tiles.ids.tolist(), label.tolist(), strict=True)), index=index, class_vectors=classes
    )
    rows = [int(s[1:]) for s in table.column("snippet_id").to_pylist()]
    correct = (index.vectors(np.asarray(rows)) @ classes.T).argmax(axis=1) == label
    assert statistics["zero_shot"] == pytest.approx(correct.mean())
    assert statistics["score_auroc"] == pytest.approx(roc_auc_score(correct, np.asarray(table.column("score"))))


def test_undefined_statistics_have_a_reason() -> None:
    table = pairs(["a", "b"])
    assert agreement(table, {})["undefined"]["neighbours"] == "no label is known"
    statistics = agreement(table, {"t0": 0, "t1": 0})
    assert statistics["neighbours"] is None and "no two labelled tiles" in statistics["undefined"]["neighbours"]
    text = summary_text(summarise(table, 5, agreement=statistics), {"a": "one", "b": "two"})
    assert "share the label: undefined (no two labelled tiles have the same snippet)" in text
    assert "undefined (no class prompts given)" in text
    shared = pairs(["a", "a", "b"])
    statistics = agreement(shared, {"t0": 0, "t1": 0, "t2": 1})
    text = summary_text(summarise(shared, 5, agreement=statistics), {"a": "one", "b": "two"})
    assert "share the label: 1.000 (2 tiles)" in text, "no other tile has the snippet of the third"


def test_auroc_is_undefined_if_all_texts_are_correct(index: Index, tiles: Store, tmp_path: Path) -> None:
    table = pair_tiles(tmp_path, index, tiles).table
    snippets = np.searchsorted(index.ids, np.asarray(table.column("snippet_id").to_pylist(), dtype=np.str_))
    classes = vectors(3, 7)
    label = (index.vectors(snippets) @ classes.T).argmax(axis=1)
    labels = dict(zip(table.column("tile_id").to_pylist(), label.tolist(), strict=True))
    statistics = agreement(table, labels, index=index, class_vectors=classes)
    assert statistics["zero_shot"] == 1 and statistics["score_auroc"] is None
    assert "correct for all tiles or for none" in statistics["undefined"]["score_auroc"]


def test_skewness_includes_unused_snippets() -> None:
    uses = np.asarray([1, 1, 2, 9, 3])
    assert skewness(uses, 30) == pytest.approx(stats.skew(np.concatenate([uses, np.zeros(25)])))
    assert skewness(np.asarray([2, 2]), 2) is None


def test_tiles_without_a_pair_are_counted() -> None:
    summary = summarise(pairs(["a", "b", "a"]), 10, n_tiles=12, dropped={"threshold": 4})
    assert (summary["tiles"], summary["tiles_without_pair"], summary["share_without_pair"]) == (3, 9, 0.75)
    text = summary_text(summary, {"a": "one", "b": "two"})
    assert "hubness: 66.7% of the tiles have the most used snippet as their first snippet" in text
    assert "9 tiles without a pair (75.0%)" in text and "dropped candidates: threshold 4" in text


def test_options_match_pairings_with_the_same_rules(tmp_path: Path, index: Index, tiles: Store) -> None:
    labels = {tile: i % 3 for i, tile in enumerate(tiles.ids.tolist())}
    rules = PairingConfig(k=2, block=16, mutual_neighbours=2)
    options = compare_options(index, tiles, rules, labels=labels, class_vectors=vectors(3, 7))
    assert len(options) == 18 and len({option.name for option in options}) == 18
    for option in options:
        pairs_of_option = pair_tiles(tmp_path, index, tiles, k=2, block=16, rules=option.rules)
        expected = pairs_of_option.summary | {"agreement": option.summary["agreement"]}
        assert dict(option.summary) == expected, option.name
    baseline = options[0]
    assert baseline.name == "none" and baseline.rules.threshold is None
    assert options[1].statistic("without_pair") == pytest.approx(0.25, abs=0.03)
    lines = options_text(options).splitlines()
    assert len(lines) == 19 and lines[0].split()[:2] == ["rules", "no"]
    assert lines[1].split()[-1] == f"{baseline.statistic('score_auroc'):.3f}"


def test_rules_that_drop_all_pairs_are_listed(index: Index, tiles: Store) -> None:
    options = compare_options(index, tiles, PairingConfig(), thresholds=[1.0])
    (strict,) = (option for option in options if option.name == "csls, threshold 1")
    assert strict.statistic("without_pair") == 1.0 and strict.statistic("hub_share") is None
    assert "n/a" in options_text(options) and "zero-shot accuracy" not in options_text(options)


def test_control_characters_are_escaped_in_the_summary() -> None:
    table = pa.table({"tile_id": ["t\x1b[2J"], "rank": [0], "snippet_id": ["a"], "score": [0.5]})
    text = summary_text(summarise(table, 1), {"a": "one\x07 two"})
    assert "t\\x1b[2J" in text and text.count("one\\x07 two") == 2
    assert all(line.isprintable() for line in text.splitlines())
