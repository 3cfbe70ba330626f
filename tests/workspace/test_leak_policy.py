"""Leaks in a whole job: each policy's effect on training, the report of the command, and unchanged clean data."""

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from launching import ROOT, run_program
from logged_lines import capture_log
from PIL import Image

from clipit.comparison.plan import plan_comparison
from clipit.comparison.rows import model_and_set_notes
from clipit.config.file import ConfigFile
from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet
from clipit.workspace.check_leaks import check_leaks
from clipit.workspace.leak_policy import leak_notes
from clipit.workspace.tile_hashes import tile_digests, tile_hashes
from clipit.workspace.workspace import Workspace

MakeConfig = Callable[..., RunConfig]
MakeFile = Callable[..., ConfigFile]
Leaky = Callable[..., dict[str, Any]]


@pytest.fixture
def leaky(world: dict[str, Any], tmp_path: Path) -> Leaky:
    """Return a function that copies the small world with one leak of each kind and gives its keys."""

    def make(groups: bool = True, pixels: bool = True, reports: bool = True) -> dict[str, Any]:
        source = Path(world["tiles"]["path"])
        with source.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        shutil.copytree(source.parent / "images", tmp_path / "images")
        if groups:
            rows[0]["group"] = rows[1]["group"] = "test-0"
        if pixels:
            shutil.copy(tmp_path / rows[-1]["path"], tmp_path / rows[5]["path"])
        with (tmp_path / "tiles.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        lines = [json.loads(line) for line in Path(world["reports"]["path"]).read_text().splitlines()]
        for number, line in enumerate(lines):
            line["patient"] = {3: "test-1", 4: "validation-0"}.get(number, f"p{number}") if reports else f"p{number}"
        (tmp_path / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {
            "tiles.path": str(tmp_path / "tiles.csv"),
            "reports.path": str(tmp_path / "reports.jsonl"),
            "reports.group_column": "patient",
            "output": str(tmp_path / "out"),
        }

    return make


def open_workspace(config: RunConfig) -> tuple[Workspace, list[str]]:
    log_lines = capture_log()
    return Workspace(config), log_lines


def test_tiles_of_a_test_patient_stop_training(configure: MakeConfig, leaky: Leaky) -> None:
    workspace, _ = open_workspace(configure(leaky()))
    with pytest.raises(
        DataError, match=r"2 train tiles of a patient (?s:.*)1 group: test-0(?s:.*)leaks\.policy=exclude"
    ):
        workspace.tiles(0)


def test_reports_of_test_patients_stop_training(configure: MakeConfig, leaky: Leaky) -> None:
    workspace, _ = open_workspace(configure(leaky(groups=False)))
    with pytest.raises(DataError, match=r"2 reports of patients with validation or test tiles \(r3, r4"):
        workspace.reports  # noqa: B018


@pytest.mark.parametrize(("pixels", "stopped"), [("off", False), (None, True), ("exact", True), ("near", True)])
def test_copies_stop_training_unless_the_search_is_disabled(
    configure: MakeConfig, leaky: Leaky, pixels: str | None, stopped: bool
) -> None:
    keys = leaky(groups=False) | ({} if pixels is None else {"leaks.pixels": pixels})
    workspace, _ = open_workspace(configure(keys))
    if not stopped:
        assert len(workspace.tiles(0)) == 120
        return
    with pytest.raises(DataError, match=r"1 train tile with the same pixels .*images/train-005\.png"):
        workspace.tiles(0)


@pytest.mark.parametrize("job", ["train", "compare", "tune"])
def test_a_copied_test_tile_stops_every_job(configure_file: MakeFile, leaky: Leaky, job: str, tmp_path: Path) -> None:
    from clipit.comparison.compare import compare
    from clipit.comparison.tune import tune
    from clipit.runs.train import train_run

    file = configure_file(leaky(groups=False), **{"comparison.arms": ["image_only"], "training.steps": 2})
    jobs: dict[str, Callable[[], Any]] = {
        "train": lambda: train_run(file.run),
        "compare": lambda: compare(file.run, file.comparison),
        "tune": lambda: tune(file.run, file.comparison),
    }
    with pytest.raises(DataError, match=r"with the same pixels as a tile in a held-out split"):
        jobs[job]()
    assert not list((tmp_path / "out").rglob("classifier"))


def test_missing_patients_of_published_sets_are_reported(configure: MakeConfig, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("NC", "G3", "G4", "G5") * 4):
            file = tmp_path / "set" / split / name / f"{split}{number}_Block_Region_1.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, split == "test"]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    keys = {"tiles.source": "sicapv2", "tiles.path": str(tmp_path / "set"), "tiles.images": None}
    log_lines = capture_log()
    check_leaks(configure(keys, output=str(tmp_path / "out")), "exact")
    assert "not checked: patients: SICAPv2 names only the slide of a tile, which is used as its group" in log_lines[-1]


def test_digests_computed_alone_equal_those_of_tile_hashes(configure: MakeConfig, tmp_path: Path) -> None:
    tiles = read_tiles(configure().tiles)
    digests = tile_digests(tmp_path / "a", tiles)
    assert digests.any(axis=1).all() and (digests == tile_hashes(tmp_path / "b", tiles).digests).all()
    assert tile_digests(tmp_path / "a", tiles.select([])).shape == (0, 16)


def test_copies_are_searched_once_per_data_set(
    configure: MakeConfig, leaky: Leaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = leaky(groups=False, pixels=False)
    assert len(open_workspace(configure(keys))[0].tiles(0)) == 120

    def fail(self: TileSet, index: int) -> None:
        raise AssertionError(index)

    monkeypatch.setattr(TileSet, "read", fail)
    assert len(open_workspace(configure(keys, seed=1))[0].tiles(1)) == 120


def test_excluded_tiles_and_reports_are_counted_and_listed(configure: MakeConfig, leaky: Leaky, tmp_path: Path) -> None:
    keys = leaky()
    workspace, log_lines = open_workspace(configure(keys, **{"leaks.policy": "exclude", "leaks.pixels": "exact"}))
    tiles, reports = workspace.tiles(0), workspace.reports
    all_tiles = read_tiles(workspace.config.tiles, check=False)
    excluded = {"images/train-000.png", "images/train-001.png", "images/train-005.png"}
    assert set(all_tiles.ids.tolist()) - set(tiles.ids.tolist()) == excluded
    assert {split: int((tiles.splits == split).sum()) for split in ("train", "validation", "test")} == {
        "train": 69, "validation": 24, "test": 24,
    }  # fmt: skip
    assert tiles.fingerprint != all_tiles.fingerprint
    assert len(reports.reports) == 58 and not {"r3", "r4"} & {report.report_id for report in reports.reports}
    listed = json.loads((tmp_path / "out" / "leaks" / "small" / "tiles.json").read_text())
    assert {leak["id"] for leak in listed["leaks"]} == excluded
    assert any("dropped: 2 train tiles" in line for line in log_lines) and any(
        "dropped: 2 reports" in line for line in log_lines
    )
    assert any("dropped" in note for note in tiles.notes) and any("dropped" in line for line in reports.problems)
    sources = pq.read_table(workspace.snippets.file("snippet_sources.parquet")).column("report_id").to_pylist()
    assert "r2" in sources and "r3" not in sources


@pytest.mark.parametrize("policy", ["note", "off"])
def test_kept_leaks_change_no_data(configure: MakeConfig, leaky: Leaky, policy: str) -> None:
    workspace, log_lines = open_workspace(configure(leaky(), **{"leaks.policy": policy}))
    assert len(workspace.tiles(0)) == 120 and len(workspace.reports.reports) == 60
    assert len([line for line in log_lines if line.startswith("leaks, kept on request")]) == (
        2 if policy == "note" else 0
    )


def test_kept_leaks_are_noted_on_the_pages_of_comparisons_and_studies(configure_file: MakeFile, leaky: Leaky) -> None:
    comparison = {"arms": ["image_only", "frozen"], "baseline": "image_only", "seeds": [0]}
    arms = {"frozen": {"base": "image_only", "backbone.tuning": "frozen"}}
    values = leaky(reports=False) | {"leaks.policy": "note", "arms": arms, "comparison": comparison}
    (plan,) = plan_comparison((file := configure_file(values)).run, file.comparison)
    (note,) = model_and_set_notes(plan, Workspace(plan.config))
    assert note.startswith("leaks, kept on request (leaks.policy: note): 2 train tiles of a patient")
    assert leak_notes(["a remark", note, note]) == [note]


def test_clean_data_have_the_same_artefacts_under_every_policy(configure: MakeConfig) -> None:
    artefacts = set()
    for policy in ("error", "exclude", "note", "off"):
        workspace, log_lines = open_workspace(configure(**{"leaks.policy": policy}))
        artefacts.add(
            (workspace.tiles(0).fingerprint, workspace.reports.fingerprint, str(workspace.pairs.artifact.folder))
        )
        assert not any("leak" in line for line in log_lines)
    assert len(artefacts) == 1


def test_arms_with_different_policies_do_not_share_tiles(configure: MakeConfig, leaky: Leaky) -> None:
    keys = leaky()
    workspace, _ = open_workspace(configure(keys, **{"leaks.policy": "exclude"}))
    other = workspace.for_config(configure(keys, **{"leaks.policy": "off"}))
    assert (len(workspace.tiles(0)), len(other.tiles(0))) == (117, 120)


def test_arms_with_different_labels_share_the_leaks(configure: MakeConfig, leaky: Leaky) -> None:
    keys = leaky() | {"leaks.policy": "exclude"}
    workspace, log_lines = open_workspace(configure(keys, **{"tiles.labels": {"kind": "per_class", "value": 5}}))
    assert workspace.tiles(0) and workspace.reports
    for pairing in ({}, {"pairing.reports": "own_then_any"}):
        other = workspace.for_config(configure(keys, **{"tiles.labels": {"kind": "none"}}, **pairing))
        assert len(other.tiles(0)) == 117 and len(other.reports.reports) == 58
        assert not (other.tiles(0).of_split("train").labels >= 0).any()
    assert len([line for line in log_lines if line.startswith("leaks, dropped")]) == 2


def test_a_split_with_only_leaks_is_an_error(configure: MakeConfig, leaky: Leaky) -> None:
    keys = leaky()
    table = Path(keys["tiles.path"])
    table.write_text(
        "\n".join(f"{line.rpartition(',')[0]},one" for line in table.read_text().split()).replace(
            "split,one", "split,group"
        )
    )
    workspace, _ = open_workspace(configure(keys, **{"leaks.policy": "exclude"}))
    with pytest.raises(DataError, match=r"dropping leaks leaves no tiles in train, validation(?s:.*)by patient"):
        workspace.tiles(0)


def test_dropping_all_reports_is_an_error(configure: MakeConfig, leaky: Leaky) -> None:
    keys = leaky(groups=False)
    path = Path(keys["reports.path"])
    path.write_text(path.read_text().splitlines()[3] + "\n")
    workspace, _ = open_workspace(configure(keys, **{"leaks.policy": "exclude"}))
    with pytest.raises(DataError, match=r"no reports remain(?s:.*)reports\.jsonl"):
        workspace.reports  # noqa: B018


def test_reports_without_patients_need_no_tiles(configure: MakeConfig, tmp_path: Path) -> None:
    workspace, _ = open_workspace(configure(**{"tiles.path": str(tmp_path / "nowhere.csv")}))
    assert len(workspace.reports.reports) == 60
    with pytest.raises(DataError, match="nowhere"):
        workspace.tiles(0)


def test_hashes_are_cached_and_resume_after_a_kill(
    configure: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import clipit.workspace.tile_hashes as module

    tiles = read_tiles(configure().tiles)
    expected = tile_hashes(tmp_path / "a", tiles)
    original, left = module._hash_table, 2

    def dying(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "_BLOCK", 50)
    monkeypatch.setattr(module, "_hash_table", dying)
    with pytest.raises(KeyboardInterrupt):
        tile_hashes(tmp_path / "b", tiles)
    left = 1  # two of the three blocks exist
    resumed = tile_hashes(tmp_path / "b", tiles)
    left = 0
    cached = tile_hashes(tmp_path / "b", tiles)
    assert list((tmp_path / "b").glob("*/prints.parquet"))  # keeps the file name of earlier versions
    for hashes in (resumed, cached):
        assert np.array_equal(hashes.hashes, expected.hashes) and np.array_equal(hashes.digests, expected.digests)
        assert np.array_equal(hashes.thumbnails, expected.thumbnails)


def test_the_command_lists_every_kind_of_leak(configure: MakeConfig, leaky: Leaky, tmp_path: Path) -> None:
    log_lines = capture_log()
    path, leaking, compared, _ = check_leaks(configure(leaky()), "exact")
    result = json.loads(path.read_text())
    assert leaking == 5 and compared
    assert (
        result["checked"][0].startswith("patients or slides of ") and "identical images among" in result["checked"][1]
    )
    assert result["leaks"] == {"group": 2, "exact": 1, "report": 2}
    assert result["thresholds"] == {"pixels": "exact", "distance": 7, "similarity": 0.9, "spread": 6.0}
    assert result["not_checked"] == ["near-duplicates: leaks.pixels is exact"]
    table = pq.read_table(path.with_suffix(".parquet"))
    assert table.to_pylist() == result["found"]
    assert "| exact  | train   | test" in log_lines[-1]
    lines = [[cell.strip() for cell in line.split("|")] for line in log_lines[-1].splitlines() if line.startswith("| ")]
    cells = {line[1]: line[4:6] for line in lines}
    groups = Counter(row["group"] for row in csv.DictReader((tmp_path / "tiles.csv").read_text().splitlines()))
    assert cells["group"] == ["2", str(groups["test-0"] - 2)], "all test tiles of the patient are counted"


def test_patients_in_both_published_splits_of_glas_are_named(configure: MakeConfig) -> None:
    glas = Path(os.environ.get("CLIPIT_TEST_DATA", "absent")) / "glas_half"
    if not glas.is_dir():
        pytest.skip("CLIPIT_TEST_DATA is not set")
    with (glas / "glas.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    shared = {row["group"] for row in rows if row["split"] == "train"} & {
        row["group"] for row in rows if row["split"] != "train"
    }
    splits = {"train": "train", "test": ["testA", "testB"]}
    keys = {"tiles.path": f"{glas}/glas.csv", "tiles.images": f"{glas}/glas_half.zip", "tiles.splits": splits}
    log_lines = capture_log()
    path, leaking, *_ = check_leaks(configure(keys, reports=None, prompts=None), "off")
    named = [
        line.partition("): ")[2] for line in log_lines[-1].splitlines() if line.startswith("patients or slides in")
    ]
    assert {name for names in named for name in names.split(", ")} == shared
    assert len(shared) == 8 and {row["group"] for row in json.loads(path.read_text())["found"]} == shared
    assert leaking > 50


def test_the_command_lists_what_it_cannot_check(configure: MakeConfig) -> None:
    log_lines = capture_log()
    _, leaking, compared, _ = check_leaks(configure(), "off", ["elsewhere"])
    assert leaking == 0 and compared and "no leaks found" in log_lines[-1]
    assert "not checked: patients of 60 of 60 reports" in log_lines[-1]
    assert "not checked: comparison.shifted: elsewhere" in log_lines[-1]


@pytest.mark.parametrize(("spread", "similar"), [(0, True), (120, False)])
def test_nearly_empty_tiles_are_not_counted_as_compared(
    configure: MakeConfig, leaky: Leaky, spread: float, similar: bool
) -> None:
    path, _, _, compared = check_leaks(configure(leaky() | {"leaks.spread": spread}), "near")
    result = json.loads(path.read_text())
    assert compared == similar
    assert any(line.startswith("identical images among") for line in result["checked"])
    assert any(line.startswith("near-duplicates among") for line in result["checked"]) == similar
    assert any(line.startswith("near-duplicates among") for line in result["not_checked"]) != similar


def test_tiles_of_a_single_colour_are_reported_as_not_compared(tmp_path: Path) -> None:
    """They would all match each other, so none are compared."""
    path = tmp_path / "plain.csv"
    rows = ["path,label,split,group"]
    for number in range(12):
        Image.new("RGB", (32, 32), (200 + number, 150, 200)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{number % 2},{('train', 'test')[number % 2]},p{number}")
    path.write_text("\n".join(rows))
    tiles = {"source": "table", "path": str(path)}
    config = RunConfig.model_validate({"tiles": tiles, "output": str(tmp_path / "out"), "arm": "image_only"})
    for pixels, complete in (("near", False), ("exact", False), ("off", True)):
        check = check_leaks(config, pixels)
        assert (check.leaking, check.compared_patients, check.compared_images) == (0, True, complete)
        record = json.loads(check.path.read_text())
        assert not any("images" in line for line in record["checked"])
        assert any("12 tiles of a single colour" in line for line in record["not_checked"]) != complete


def test_tiles_without_groups_are_reported_as_not_compared(configure: MakeConfig, leaky: Leaky) -> None:
    keys = leaky(groups=False, pixels=False, reports=False)
    path = Path(keys["tiles.path"])
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [{key: value for key, value in row.items() if key != "group"} for row in csv.DictReader(stream)]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    log_lines = capture_log()
    _, leaking, compared, _ = check_leaks(configure(keys), "off")
    assert (leaking, compared) == (0, False)
    assert "\nchecked: nothing" in log_lines[-1], "neither patients nor images can be compared"
    (line,) = [line for line in log_lines[-1].splitlines() if line.startswith("not checked: patients and slides")]
    assert "tiles: not named in the data; name the patient or slide of each tile in a `group` column" in line
    assert "fewer than two splits" not in log_lines[-1] and "not checked: patients of" not in log_lines[-1], (
        "each reason is given once"
    )


@pytest.mark.slow
def test_the_script_exits_with_1_if_there_are_leaks(write_config: Callable[..., Path], leaky: Leaky) -> None:
    result = run_program(ROOT / "scripts/check_leaks.py", "--config", write_config(leaky(groups=False, reports=False)))
    assert result.returncode == 1, result.stderr
    assert "1 tile or report leaks" in result.stdout
