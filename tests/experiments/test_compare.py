"""Comparison, tuning and demo: the same treatment for all arms, and figures that can be traced."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import MakeConfig

from clipit.config import Config
from clipit.errors import ConfigError, DataError
from clipit.experiments.compare import compare, comparison_text
from clipit.experiments.tuning import best_trial, tune
from clipit.settings import merge, validate

pytestmark = pytest.mark.slow


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture
def small(configure: MakeConfig, tmp_path: Path) -> Config:
    return configure(
        {
            "output": tmp_path,
            "training.steps": 2,
            "training.evaluate_every": 1,
            "evaluation.bootstrap": 20,
            "comparison.arms": ["image_only", "clip_it_all"],
            "comparison.seeds": [1, 2],
            "comparison.tuning_seeds": [3],
            "comparison.learning_rates": [0.001, 0.01],
            "comparison.steps": [1, 2],
        }
    )


def test_comparison_holds_every_arm_seed_and_reference(small: Config) -> None:
    folder = compare(small, quiet)
    rows = pq.read_table(folder / "comparison.parquet").to_pylist()
    assert {(row["arm"], row["seed"]) for row in rows if not row["arm"].startswith("reference")} == {
        ("image_only", 1), ("image_only", 2), ("clip_it_all", 1), ("clip_it_all", 2),
    }  # fmt: skip
    assert sum(row["arm"].startswith("reference") for row in rows) == 6, "two zero-shots and a probe"
    for row in rows:
        if row["run"] is not None:
            results = json.loads((Path(row["run"]) / "results.json").read_text(encoding="utf-8"))
            assert row["score"] == results["splits"]["test"]["metrics"]["accuracy"]["value"]
    assert "VLM zero-shot" in (folder / "comparison.md").read_text(encoding="utf-8")


def test_finished_runs_are_kept(small: Config) -> None:
    compare(small, quiet)
    stamps = {path: path.stat().st_mtime_ns for path in small.output.rglob("results.json")}
    said: list[str] = []
    compare(small, said.append)
    assert stamps == {path: path.stat().st_mtime_ns for path in small.output.rglob("results.json")}
    assert sum(line.startswith("kept") for line in said) == 4


def test_differences_are_paired_by_seed(small: Config) -> None:
    def rows(arm: str, scores: dict[int, float]) -> list[dict[str, object]]:
        return [
            {"arm": arm, "seed": seed, "part": "test", "score": score, "zero_shot": None}
            for seed, score in scores.items()
        ]

    text = comparison_text(small, rows("image_only", {1: 0.5, 2: 0.7}) + rows("clip_it_all", {2: 0.8, 1: 0.6}))
    assert "+10.0 [+10.0, +10.0]" in text


def test_one_seed_has_no_interval(small: Config) -> None:
    one = small.model_copy(update={"comparison": small.comparison.model_copy(update={"seeds": (1,)})})
    rows = [
        {"arm": arm, "seed": 1, "part": "test", "score": score, "zero_shot": None}
        for arm, score in (("image_only", 0.5), ("clip_it_all", 0.6))
    ]
    line = next(line for line in comparison_text(one, rows).splitlines() if line.startswith("| clip_it_all"))
    assert "+10.0" in line
    assert "[" not in line


def test_every_arm_gets_the_same_trials_and_no_test_tile_is_read(small: Config) -> None:
    found = json.loads(tune(small, quiet).read_text(encoding="utf-8"))
    grids = {arm: [(t["learning_rate"], t["steps"]) for t in trials] for arm, trials in found["trials"].items()}
    assert grids["image_only"] == grids["clip_it_all"] == [(0.001, 1), (0.001, 2), (0.01, 1), (0.01, 2)]
    for path in (small.output / "tuning" / "runs").rglob("predictions.parquet"):
        assert set(pq.read_table(path).column("split").to_pylist()) == {"validation"}
    # The block can be used as it is: an own arm of the same name builds on the built-in one.
    chosen = validate(merge(small.model_dump(mode="json"), {"arms": found["arms"]}), "tuned")
    assert chosen.arms["clip_it_all"]["base"] == "clip_it_all"


def test_best_trial_prefers_fewer_steps_then_the_lower_rate() -> None:
    assert best_trial({(0.01, 200): [0.8], (0.02, 100): [0.8], (0.01, 100): [0.8], (0.5, 100): [0.7]}) == (0.01, 100)


def test_tuning_without_validation_labels_says_so(small: Config) -> None:
    tiles = small.tiles.model_copy(update={"labels": small.tiles.labels.model_copy(update={"kind": "none"})})
    with pytest.raises((DataError, ConfigError), match="label"):
        tune(small.model_copy(update={"tiles": tiles}), quiet)


def test_seeds_of_the_search_are_never_reported(small: Config) -> None:
    values = small.model_dump(mode="json")
    values["comparison"]["tuning_seeds"] = [2, 3]
    with pytest.raises(ConfigError, match="must not share a seed"):
        validate(values, "test")
