"""Test the table of pairing rules: its rows, and that each row matches a pairing with the same rules."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_models import write_store

from clipit.config.run import PairingConfig
from clipit.pairing.options import Option, compare_options, options_text
from clipit.pairing.pairs import pair_tiles
from clipit.stores.embed import Store
from clipit.stores.index import Index, build_index
from clipit.vectors import unit
from clipit.workspace.pairs_page import compare_pairing_rules
from clipit.workspace.workspace import Workspace

ROOT = Path(__file__).parents[2]
SNIPPETS, TILES, DIM = 60, 40, 8
ORGANS = ("Colon", "stomach", " colon", "liver", "lung", "skin")
RULES = PairingConfig(block=16, mutual_neighbours=3)


def vectors(n: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32) + 0.4)


@pytest.fixture
def texts(tmp_path: Path) -> Store:
    return write_store(tmp_path, [f"s{i:03d}" for i in range(SNIPPETS)], vectors(SNIPPETS, 0))


@pytest.fixture
def index(tmp_path: Path, texts: Store) -> Index:
    return build_index(tmp_path, texts)


@pytest.fixture
def tiles(tmp_path: Path) -> Store:
    return write_store(tmp_path, [f"t{i:03d}" for i in range(TILES)], vectors(TILES, 1), kind="tile_store")


@pytest.fixture
def sources() -> pa.Table:
    """Sources of snippets from six organs with different frequencies, some without an organ, and tiles' groups."""
    numbers = range(SNIPPETS)
    shares = {"Colon": range(0, 12), " colon": range(12, 20), "stomach": range(20, 32), "liver": range(32, 40)}
    shares |= {"lung": range(40, 48), "skin": range(48, 49)}
    organ_of = {i: organ for organ, part in shares.items() for i in part}
    return pa.table(
        {
            "snippet_id": [f"s{i:03d}" for i in numbers],
            "organ": [organ_of.get(i) for i in numbers],
            "group": [f"p{i % 4}" for i in numbers],
            "report_id": [f"r{i}" for i in numbers],
        }
    )


GROUPS = {f"t{i:03d}": f"p{i % 4}" for i in range(TILES)}


def options_by_name(options: list[Option]) -> dict[str, Option]:
    option_of = {option.name: option for option in options}
    assert len(option_of) == len(options)
    return option_of


def test_every_row_matches_a_pairing_with_its_rules(
    tmp_path: Path, index: Index, texts: Store, tiles: Store, sources: pa.Table
) -> None:
    plain_index = build_index(tmp_path, texts, centring=False)
    option_of = options_by_name(
        compare_options(index, tiles, RULES, sources=sources, groups=GROUPS, other=(plain_index, None), thresholds=[])
    )
    margins = [name for name in option_of if "margin" in name]
    corrections = ("none", "csls", "inverted_softmax", "sinkhorn")
    assert list(option_of) == [
        "none", "none, mutual 3", *margins,
        *(name for correction in corrections[1:] for name in (correction, f"{correction}, mutual 3")),
        "none, organs colon", "none, organs stomach", "none, organs liver", "none, organs lung",
        "none, excluding own group", "none, not centred",
    ]  # fmt: skip
    for name, option in option_of.items():
        index_of_option = index if option.rules.centring else plain_index
        pairs = pair_tiles(
            tmp_path, index_of_option, tiles, block=16, rules=option.rules, sources=sources, groups=GROUPS
        )
        assert dict(option.summary) == pairs.summary, name
    assert [option_of[name].statistic("without_pair") for name in margins] == pytest.approx([0.25, 0.5], abs=0.03)
    assert option_of["none, not centred"].rules == RULES.model_copy(update={"centring": False})
    lines = options_text(list(option_of.values())).splitlines()
    assert lines[0].split()[:2] == ["rules", "no"] and "hubness" in lines[0] and "snippets used" in lines[0]


def test_margins_are_quantiles_of_the_gap_to_the_best_snippet_outside_the_bag(index: Index, tiles: Store) -> None:
    rules = RULES.model_copy(update={"k": 3, "correction": "csls", "correction_neighbours": 5})
    option_of = options_by_name(compare_options(index, tiles, rules, thresholds=[]))
    margins = [option.rules.margin for name, option in option_of.items() if "margin" in name]
    assert all(name.startswith("csls") for name in option_of if "margin" in name)
    # dense CSLS: cosine minus half the mean over the five nearest tiles of the snippet
    centred = [unit(x - x.mean(axis=0)) for x in (tiles.rows(np.arange(TILES)), index.store.rows(np.arange(SNIPPETS)))]
    cosines = centred[0] @ centred[1].T
    scores = np.sort(cosines - np.sort(cosines, axis=0)[-5:].mean(axis=0) / 2, axis=1)[:, ::-1]
    assert margins == pytest.approx(np.quantile(scores[:, 0] - scores[:, 3], (0.25, 0.5)), rel=0.01, abs=1e-4)


def test_configured_rules_are_switched_off_one_at_a_time(index: Index, tiles: Store, sources: pa.Table) -> None:
    changes = {"organs": ("colon", "liver", "lung"), "exclude_same_group": True, "margin": 0.02, "threshold": 0.5}
    rules = RULES.model_copy(update=changes)
    option_of = options_by_name(compare_options(index, tiles, rules, sources=sources, groups=GROUPS))
    baseline = "none, 3 organs, excluding own group"
    assert {
        baseline,
        f"{baseline}, threshold 0.5",
        f"{baseline}, margin 0.02",
        "none, excluding own group",
        "none, 3 organs",
    } <= set(option_of)
    assert not [name for name in option_of if "threshold 0.5, margin" in name or "organs colon" in name]
    assert option_of["none, excluding own group"].rules.organs == ()
    assert not option_of["none, 3 organs"].rules.exclude_same_group


@pytest.mark.parametrize("missing", ["tiles' groups", "reports' groups", "sources", "organs"])
def test_rules_that_need_missing_columns_have_no_row(
    index: Index, tiles: Store, sources: pa.Table, missing: str
) -> None:
    groups, known = dict(GROUPS), sources
    if missing == "tiles' groups":
        groups = dict.fromkeys(groups, "")
    if missing == "reports' groups":
        known = sources.set_column(2, "group", pa.array([""] * SNIPPETS))
    if missing == "organs":
        known = sources.set_column(1, "organ", pa.array([None] * SNIPPETS, pa.string()))
    known_or_none = None if missing == "sources" else known
    option_of = options_by_name(
        compare_options(index, tiles, RULES, thresholds=[], margins=[], sources=known_or_none, groups=groups)
    )
    assert ("none, excluding own group" in option_of) == (missing == "organs")
    assert ("none, organs colon" in option_of) == (missing in ("tiles' groups", "reports' groups"))


def test_there_is_no_margin_if_the_bag_contains_every_snippet(tmp_path: Path, tiles: Store) -> None:
    small_index = build_index(tmp_path, write_store(tmp_path, ["s0", "s1"], vectors(2, 3)))
    names = options_by_name(compare_options(small_index, tiles, RULES.model_copy(update={"k": 2}), thresholds=[]))
    assert "none" in names and not [name for name in names if "margin" in name]


@pytest.fixture
def known_reports(tmp_path: Path, world: dict[str, Any]) -> dict[str, Any]:
    """Configuration keys of reports with organs and with the groups of the tiles."""
    path = tmp_path / "reports.jsonl"
    rows = [json.loads(line) for line in Path(world["reports"]["path"]).read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"organ": ("colon", "lung")[number % 2], "group": f"train-{number % 18}"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"reports.path": str(path), "reports.organ_column": "organ", "reports.group_column": "group"}


def test_compare_pairing_rules(configure: Callable[..., Any], known_reports: dict[str, Any]) -> None:
    workspace = Workspace(configure(known_reports))
    before = {path.name for path in workspace.root.glob("pairs-*")}
    text = compare_pairing_rules(workspace)
    assert {path.name for path in workspace.root.glob("pairs-*")} == before
    names = [line.partition("  ")[0] for line in text.splitlines()]
    expected = {
        "none, organs colon",
        "none, organs lung",
        "none, excluding own group",
        "none, not centred",
        "csls, mutual 10",
    }
    assert expected <= set(names) and sum(name.startswith("none, margin ") for name in names) == 2
    header = text.splitlines()[0]
    assert all(
        word in header for word in ("no pair", "snippets used", "skewness", "neighbour accuracy", "zero-shot accuracy")
    )
    centred_row, uncentred_row = (
        next(row for row in text.splitlines() if row.startswith(name)) for name in ("none ", "none, not c")
    )
    assert centred_row.split()[1:] != uncentred_row.split()[3:]
    assert "pairing.correction, centring, organs" in text


@pytest.mark.slow
def test_the_script_prints_the_table(
    write_config: Callable[..., Path],
    shared_output: Path,
    known_reports: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(known_reports, shared_output)
    monkeypatch.setattr(sys, "argv", ["pair.py", "--config", str(config), "--compare-rules"])
    runpy.run_path(str(ROOT / "scripts" / "pair.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "none, not centred" in printed and "none, organs lung" in printed
