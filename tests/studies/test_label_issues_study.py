"""The label issues study on a small world with flipped labels: files, page and errors."""

import csv
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, HOSTILE, opened
from logged_lines import capture_log

import clipit
from clipit.api.labels import LabelIssuesResult
from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested, validate_file
from clipit.errors import DataError
from clipit.evaluation.intervals import Estimate, Interval
from clipit.output_files.artifacts import locked
from clipit.reporting.label_issues_page import LabelledTile, SuspiciousTile, label_issues_page
from clipit.studies.label_issues.verified import read_verified
from clipit.workspace.workspace import Workspace

FLIPPED = [f"images/train-{number:03d}.png" for number in (3, 16, 29, 44, 57)]


@pytest.fixture(scope="module")
def table(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of the small world in which some training tiles have a different class."""
    with Path(world["tiles"]["path"]).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    following = {"gland": "stroma", "stroma": "tumour", "tumour": "gland"}
    path = tmp_path_factory.mktemp("flipped") / "tiles.csv"
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            row | {"label": following[row["label"]] if row["path"] in FLIPPED else row["label"]} for row in rows
        )
    return path


@pytest.fixture(scope="module")
def file(world: dict[str, Any], table: Path, tmp_path_factory: pytest.TempPathFactory) -> ConfigFile:
    """Configuration of the check, with the true labels as the verified ones."""
    root = Path(world["tiles"]["path"]).parent
    verified = table.parent / "verified.csv"
    lines = (root / "tiles.csv").read_text(encoding="utf-8").replace("path,", "id,", 1)
    verified.write_text(lines, encoding="utf-8")
    keys = {
        "tiles.path": str(table),
        "tiles.images": str(root),
        "tiles.labels": {"kind": "all"},
        "output": str(tmp_path_factory.mktemp("checked")),
        "evaluation.bootstrap": 50,
        "label_issues.verified": str(verified),
        "label_issues.shown": 4,
    }
    return validate_file(merge(world, nested(keys)), "test")


@pytest.fixture(scope="module")
def checked(file: ConfigFile) -> LabelIssuesResult:
    return clipit.find_label_issues(file)


def test_flipped_labels_are_ranked_first(checked: LabelIssuesResult) -> None:
    tiles = checked.tiles
    assert len(tiles) == 96 and set(tiles["split"]) == {"train", "validation"}
    assert set(tiles["tile"][:5]) == set(FLIPPED)
    assert tiles["suspicious"][:5].all() and (tiles["label"] != tiles["suggested"])[:5].all()
    assert (tiles.groupby("group")["fold"].nunique() == 1).all()


def test_a_second_check_waits_while_another_process_writes_the_same_files(
    file: ConfigFile, checked: LabelIssuesResult, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    record = checked.folder / "label_issues.json"
    before = record.stat().st_mtime_ns
    with ThreadPoolExecutor(1) as pool:
        with locked(checked.folder):
            waiting = pool.submit(clipit.find_label_issues, file)
            while "waiting: another process" not in caplog.text:
                assert not waiting.done()
                time.sleep(0.02)
            assert record.stat().st_mtime_ns == before
        assert waiting.result().folder == checked.folder
    assert record.stat().st_mtime_ns > before


def test_the_ranking_is_scored_against_verified_labels(checked: LabelIssuesResult) -> None:
    record = json.loads((checked.folder / "label_issues.json").read_text(encoding="utf-8"))
    assert record["verified"]["share of wrong labels"]["value"] == pytest.approx(5 / 96)
    assert record["verified"]["recall of the wrong labels"]["value"] == 1.0
    assert record["verified"]["AUROC of the ranking"]["value"] == 1.0
    assert sum(row["checked"] for row in record["classes"]) == 96
    suspicious = int(checked.tiles["suspicious"].sum())
    assert sum(row["suspicious"] for row in record["classes"]) == suspicious == record["facts"]["suspicious labels"]


def test_the_page_shows_the_requested_number_of_tiles(checked: LabelIssuesResult) -> None:
    text = checked.page.read_text(encoding="utf-8")
    assert "The ranking is by the probability of the given label alone" in text
    assert text.count('<tr><th scope="row"><img alt="tile ') == 4
    assert f'alt="tile {checked.tiles["tile"][0]}"' in text
    assert len(re.findall(r'<img alt="" loading="lazy" src="data:image/jpeg', text)) == 4 * 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tile,class\na,b\n", "missing columns: label"),
        ("tile,label\nelsewhere,gland\n", "no checked tile"),
        (f"tile,label\n{FLIPPED[0]},other\n", "unknown classes: other"),
        (f"tile,label\n{FLIPPED[0]},gland\n{FLIPPED[0]},stroma\n", r"more than once: .* \(line 2, line 3\)"),
        (f"tile,label\n{FLIPPED[0]},\n", r"(?s)no checked tile has a verified label.*write the class"),
    ],
)
def test_invalid_verified_labels_are_errors(file: ConfigFile, tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "verified.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        read_verified(path, Workspace(file.run).all_tiles)


def test_empty_verified_labels_and_whole_numbers_with_decimals(file: ConfigFile, tmp_path: Path) -> None:
    tiles = Workspace(file.run).all_tiles
    tiles = replace(tiles, classes=tuple(str(number) for number in range(len(tiles.classes))))
    path = tmp_path / "verified.csv"
    rows = [f"{FLIPPED[0]},1.0", f"{FLIPPED[1]},", f"{FLIPPED[2]} , 0", "elsewhere,1"]
    path.write_text("\n".join(["tile,label", *rows]) + "\n", encoding="utf-8")
    log_lines = capture_log()
    verified = dict(zip(tiles.ids.tolist(), read_verified(path, tiles).tolist(), strict=True))
    assert [verified[name] for name in FLIPPED[:3]] == [1, -1, 0]
    assert any("ignored labels for 1 tile that is not among the checked tiles: elsewhere" in line for line in log_lines)


def test_verified_labels_of_tiles_whose_paths_are_written_in_another_way(file: ConfigFile, tmp_path: Path) -> None:
    tiles = Workspace(file.run).all_tiles
    ids = [f"set/{name}" for name in tiles.ids.tolist()]
    tiles = replace(tiles, ids=np.asarray(ids, dtype=object))
    path = tmp_path / "verified.csv"
    rows = [ids[0].replace("/", "\\"), f"./{ids[1]}", ids[2]]
    path.write_text("\n".join(["tile,label", *(f"{name},{tiles.classes[1]}" for name in rows)]), encoding="utf-8")
    assert read_verified(path, tiles).tolist() == [1] * 3 + [-1] * (len(ids) - 3)
    path.write_text(f"tile,label\n./{ids[0]},{tiles.classes[1]}\n{ids[0]},{tiles.classes[0]}\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 tile name is written in more than one way"):
        read_verified(path, tiles)


def test_verified_labels_are_validated_before_embedding(file: ConfigFile, tmp_path: Path) -> None:
    path = tmp_path / "verified.csv"
    path.write_text("tile,label\nelsewhere,gland\n", encoding="utf-8")
    keys = {"output": str(tmp_path / "out"), "label_issues.verified": str(path)}
    with pytest.raises(DataError, match="no checked tile"):
        clipit.find_label_issues(clipit.load_config(file, keys))
    assert not list((tmp_path / "out").rglob("tile_store-*"))


def test_splits_without_labels_are_an_error(file: ConfigFile) -> None:
    keys = {"tiles.labels": {"kind": "none"}}
    with pytest.raises(DataError, match="no labelled tiles in train, validation"):
        clipit.find_label_issues(clipit.load_config(file, keys))


@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
def test_the_page_escapes_user_text_and_can_be_filtered(tmp_path: Path) -> None:
    near = [LabelledTile(HOSTILE, HOSTILE, HOSTILE, None)]
    tiles = [
        SuspiciousTile(LabelledTile(f"tile{n}", HOSTILE, "P1", None), "train", 0.01, "gland", 0.9, near)
        for n in range(3)
    ]
    by_class = [{"class": HOSTILE, "checked": 3, "suspicious": 3, "estimated_wrong": None, "suggested_most": "gland"}]
    scores = {"AUROC of the ranking": Estimate(None, Interval(None, None, "none"))}
    text = label_issues_page("checked", HOSTILE, {"suspicious labels": 3}, by_class, tiles, scores, [HOSTILE])
    then = """addEventListener("load", () => {
      const input = document.querySelector(".filter input");
      input.value = "tile1"; input.dispatchEvent(new Event("input"));
      document.body.dataset.count = document.querySelector(".filter output").textContent; });"""
    dom = opened(text, tmp_path, then=then)
    title = re.search("<title>(.*?)</title>", dom)
    assert title and title[1] == "checked"
    assert 'data-count="1 of 3 rows"' in dom


def test_backbone_features_find_the_same_tiles(file: ConfigFile) -> None:
    keys = {"label_issues.features": "backbone", "name": "backbone", "label_issues.verified": None}
    tiles = clipit.find_label_issues(clipit.load_config(file, keys)).tiles
    assert len(tiles) == 96 and np.isin(FLIPPED, tiles["tile"][:8]).all()
