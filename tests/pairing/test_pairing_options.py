"""The table of pairing rules: which lines it has, and that each is the pairing that it names."""

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
from clipit.workspace.pairing_report import compare_pairing_rules
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
    """Colon has most snippets, then stomach, liver, lung; skin has one, some have no organ. Groups are the tiles'."""
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


def by_name(options: list[Option]) -> dict[str, Option]:
    named = {option.name: option for option in options}
    assert len(named) == len(options)
    return named


def test_every_line_is_the_pairing_of_its_rules(
    tmp_path: Path, index: Index, texts: Store, tiles: Store, sources: pa.Table
) -> None:
    plain_index = build_index(tmp_path, texts, centring=False)
    found = by_name(
        compare_options(index, tiles, RULES, sources=sources, groups=GROUPS, other=(plain_index, None), thresholds=[])
    )
    margins = [name for name in found if "margin" in name]
    corrections = ("none", "csls", "inverted_softmax", "sinkhorn")
    assert list(found) == [
        "none", "none, mutual 3", *margins,
        *(name for c in corrections[1:] for name in (c, f"{c}, mutual 3")),
        "none, organs colon", "none, organs stomach", "none, organs liver", "none, organs lung",
        "none, excluding own group", "none, not centred",
    ]  # fmt: skip
    for name, option in found.items():
        searched = index if option.rules.centring else plain_index
        made = pair_tiles(tmp_path, searched, tiles, block=16, rules=option.rules, sources=sources, groups=GROUPS)
        assert dict(option.summary) == made.summary, name
    assert [found[name].statistic("without_pair") for name in margins] == pytest.approx([0.25, 0.5], abs=0.03)
    assert found["none, not centred"].rules == RULES.model_copy(update={"centring": False})
    lines = options_text(list(found.values())).splitlines()
    assert lines[0].split()[:2] == ["rules", "no"] and "hubness" in lines[0] and "snippets used" in lines[0]


def test_margins_are_quantiles_of_what_the_best_exceeds_the_next_outside_the_bag_by(index: Index, tiles: Store) -> None:
    rules = RULES.model_copy(update={"k": 3, "correction": "csls", "correction_neighbours": 5})
    found = by_name(compare_options(index, tiles, rules, thresholds=[]))
    tried = [option.rules.margin for name, option in found.items() if "margin" in name]
    assert all(name.startswith("csls") for name in found if "margin" in name)
    # the slow way: cosine less half of the mean of the snippet's five nearest tiles
    centred = [unit(x - x.mean(axis=0)) for x in (tiles.rows(np.arange(TILES)), index.store.rows(np.arange(SNIPPETS)))]
    cosines = centred[0] @ centred[1].T
    scores = np.sort(cosines - np.sort(cosines, axis=0)[-5:].mean(axis=0) / 2, axis=1)[:, ::-1]
    assert tried == pytest.approx(np.quantile(scores[:, 0] - scores[:, 3], (0.25, 0.5)), rel=0.01, abs=1e-4)


def test_what_is_configured_is_turned_round(index: Index, tiles: Store, sources: pa.Table) -> None:
    changes = {"organs": ("colon", "liver", "lung"), "exclude_same_group": True, "margin": 0.02, "threshold": 0.5}
    rules = RULES.model_copy(update=changes)
    found = by_name(compare_options(index, tiles, rules, sources=sources, groups=GROUPS))
    start = "none, 3 organs, excluding own group"
    assert {
        start,
        f"{start}, threshold 0.5",
        f"{start}, margin 0.02",
        "none, excluding own group",
        "none, 3 organs",
    } <= set(found)
    assert not [name for name in found if "threshold 0.5, margin" in name or "organs colon" in name]
    assert found["none, excluding own group"].rules.organs == ()
    assert not found["none, 3 organs"].rules.exclude_same_group


@pytest.mark.parametrize("missing", ["tiles' groups", "reports' groups", "sources", "organs"])
def test_what_is_not_known_has_no_line(index: Index, tiles: Store, sources: pa.Table, missing: str) -> None:
    groups, known = dict(GROUPS), sources
    if missing == "tiles' groups":
        groups = dict.fromkeys(groups, "")
    if missing == "reports' groups":
        known = sources.set_column(2, "group", pa.array([""] * SNIPPETS))
    if missing == "organs":
        known = sources.set_column(1, "organ", pa.array([None] * SNIPPETS, pa.string()))
    given = None if missing == "sources" else known
    found = by_name(compare_options(index, tiles, RULES, thresholds=[], margins=[], sources=given, groups=groups))
    assert ("none, excluding own group" in found) == (missing == "organs")
    assert ("none, organs colon" in found) == (missing in ("tiles' groups", "reports' groups"))


def test_no_margin_where_every_snippet_is_in_the_bag(tmp_path: Path, tiles: Store) -> None:
    few = build_index(tmp_path, write_store(tmp_path, ["s0", "s1"], vectors(2, 3)))
    names = by_name(compare_options(few, tiles, RULES.model_copy(update={"k": 2}), thresholds=[]))
    assert "none" in names and not [name for name in names if "margin" in name]


@pytest.fixture
def known_reports(tmp_path: Path, world: dict[str, Any]) -> dict[str, Any]:
    """Keys of a configuration whose reports have organs, and the groups of tiles."""
    path = tmp_path / "reports.jsonl"
    rows = [json.loads(line) for line in Path(world["reports"]["path"]).read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"organ": ("colon", "lung")[number % 2], "group": f"train-{number % 18}"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"reports.path": str(path), "reports.organ_column": "organ", "reports.group_column": "group"}


def test_the_tiny_world_s_table(configure: Callable[..., Any], known_reports: dict[str, Any]) -> None:
    workspace = Workspace(configure(known_reports))
    before = {path.name for path in workspace.root.glob("pairs-*")}
    text = compare_pairing_rules(workspace)
    assert {path.name for path in workspace.root.glob("pairs-*")} == before
    names = [line.partition("  ")[0] for line in text.splitlines()]
    wanted = {
        "none, organs colon",
        "none, organs lung",
        "none, excluding own group",
        "none, not centred",
        "csls, mutual 10",
    }
    assert wanted <= set(names) and sum(name.startswith("none, margin ") for name in names) == 2
    head = text.splitlines()[0]
    assert all(
        word in head for word in ("no pair", "snippets used", "skewness", "neighbour accuracy", "zero-shot accuracy")
    )
    plain, other = (next(row for row in text.splitlines() if row.startswith(name)) for name in ("none ", "none, not c"))
    assert plain.split()[1:] != other.split()[3:]
    assert "pairing.correction, centring, organs" in text


@pytest.mark.slow
def test_the_script_shows_the_table(
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
