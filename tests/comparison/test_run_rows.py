"""Tests of reading score rows from finished runs, including runs of earlier versions."""

from pathlib import Path
from typing import Any

import pytest

from clipit.comparison.plan import plan_comparison
from clipit.comparison.rows import read_run_rows
from clipit.config.load import merge, nested, validate_file
from clipit.errors import ArtifactError
from clipit.evaluation.score_row import ScoreRow
from clipit.output_files.artifacts import write_json
from clipit.workspace.workspace import Workspace


def results(**changes: Any) -> dict[str, Any]:
    test = {"labelled": 5, "resampled": "5 tiles", "metrics": {"balanced_accuracy": {"value": 0.5}}}
    provenance = {"steps": 10, "chosen_step": 5, "tiles_seen": 40, "seconds": 2.0}
    return {"predictions_sha256": "0", "splits": {"test": test}, "provenance": provenance, **changes}


def read(folder: Path, metric: str) -> list[ScoreRow]:
    keys = {"tiles": {"source": "folders", "path": "tiles"}, "name": "demo", "comparison.arms": ["image_only"]}
    file = validate_file(merge(nested(keys), {"comparison": {"metric": metric}}), "test")
    (plan,) = plan_comparison(file.run, file.comparison)
    return read_run_rows(plan, Workspace(plan.config), folder, "image_only", 0)


@pytest.mark.parametrize(
    ("changes", "metric", "message"),
    [
        ({}, "accuracy", "no 'accuracy' in splits.test.metrics.*its keys are balanced_accuracy"),
        ({"splits": {"val": {"metrics": {}}}}, "balanced_accuracy", "no 'test' in splits"),
        ({"provenance": {"steps": 10}}, "balanced_accuracy", "no 'chosen_step' in provenance"),
    ],
)
def test_missing_key_in_results_raises_an_error(
    tmp_path: Path, changes: dict[str, Any], metric: str, message: str
) -> None:
    write_json(tmp_path / "results.json", results(**changes))
    with pytest.raises(ArtifactError, match=rf"(?s){message}.*where: .*results\.json.*fix: delete this file and run"):
        read(tmp_path, metric)


def test_complete_results_give_a_score_row(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", results())
    (row,) = read(tmp_path, "balanced_accuracy")
    assert (row.score, row.steps, row.test_set) == (0.5, 10, "test")
