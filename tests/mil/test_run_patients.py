"""Test the check for test patients that a finished run was trained on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mil_bags import tiles_of

import clipit
from clipit.config.data import LeaksConfig
from clipit.errors import DataError
from clipit.runs.training_tiles import check_test_patients, write_training_tiles
from clipit.tiles.tileset import TileSet

TESTS = tiles_of(["t0", "t1", "t2", "t3"], ["p1", "p2", "p2", "p9"], [0, 1, 2, 0], ["test"] * 4)


def finished_run(folder: Path, groups: list[str], splits: list[str]) -> Path:
    """Write a run folder that contains only the record of training tiles."""
    run = folder / "run"
    run.mkdir()
    ids = [f"x{number}" for number in range(len(groups))]
    write_training_tiles(run, tiles_of(ids, groups, [0] * len(ids), splits), "")
    return run


def policy(name: str) -> LeaksConfig:
    return LeaksConfig.model_validate({"policy": name})


def test_test_patients_seen_in_training_are_named_or_counted_on_request(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ["p1", "p2", "p9", "p5"], ["train", "validation", "test", "train"])
    for name in ("error", "exclude"):
        with pytest.raises(DataError, match=r"3 of 4 test tiles belong to 2 patients .* on: p1, p2"):
            check_test_patients(run, TESTS, policy(name))
    notes = check_test_patients(run, TESTS, policy("note"))
    assert len(notes) == 1 and "3 of 4 test tiles belong to 2 patients" in notes[0] and "kept on request" in notes[0]
    assert check_test_patients(run, TESTS, policy("off")) == ()


def test_unseen_patients_pass_and_unknown_ones_are_noted(tmp_path: Path) -> None:
    run = finished_run(tmp_path, ["p5", "p9"], ["train", "test"])
    assert check_test_patients(run, TESTS, policy("error")) == ()
    nameless: TileSet = tiles_of(["t0", "t1"], ["", "p7"], [0, 0], ["test"] * 2)
    assert "patients (unknown for 1 of 2 test tiles)" in check_test_patients(run, nameless, policy("error"))[0]
    notes = check_test_patients(tmp_path / "elsewhere", TESTS, policy("error"))
    assert len(notes) == 1 and "the run did not record its training tiles" in notes[0]


def test_a_mil_study_rejects_a_run_trained_on_its_test_patients(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = finished_run(tmp_path, ["test-3", "other"], ["train", "train"])
    keys = {"mil.features": "run", "mil.run": str(run), "mil.arms": ["mean"], "tiles.labels.kind": "all"}
    with pytest.raises(DataError, match=r"test tiles? belongs? to 1 patient .* trained or validated on: test-3"):
        clipit.train_mil(clipit.load_config(write_config(), keys))
