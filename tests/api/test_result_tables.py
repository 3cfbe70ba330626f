"""Tests that names in CSV results are read as strings, even if they look like numbers or missing values."""

from pathlib import Path

import pandas as pd
import pytest

from clipit.api.mil import MilResult
from clipit.api.slides import SlideCompareResult, SlidesResult
from clipit.api.vlm_adaptation import AdaptationResult
from clipit.output_files.artifacts import write_json

NAMES = ["007", "NA", "None", "1e5"]


def write(path: Path, **columns: list[object]) -> None:
    pd.DataFrame(columns).to_csv(path, index=False)


def test_names_in_slide_results_are_strings(tmp_path: Path) -> None:
    empty = ["", *NAMES[1:]]
    write(tmp_path / "slides.csv", slide=NAMES, label=empty, split=NAMES, group=NAMES, tiles=[1, 2, 3, 4],
          mpp=[0.5, None, 0.25, 0.5])  # fmt: skip
    write(tmp_path / "slide_scores.csv", slide=NAMES, predicted=NAMES, arm=NAMES, score_NA=[0.5, 1.0, 0.0, 0.25])
    write(tmp_path / "slide_comparison.csv", arm=NAMES, split=NAMES, mean=[0.5, None, 0.25, 0.5])
    result, compared = SlidesResult(tmp_path, ""), SlideCompareResult(tmp_path, "", tmp_path / "page.html")
    slides = result.slides
    for column in ("slide", "split", "group"):
        assert slides[column].tolist() == NAMES
    assert slides["label"].isna().tolist() == [True, False, False, False] and slides["label"][1] == "NA"
    assert slides["tiles"].sum() == 10 and slides["mpp"].isna().sum() == 1
    assert result.scores["predicted"].tolist() == compared.scores["arm"].tolist() == NAMES
    assert result.scores["score_NA"].tolist() == [0.5, 1.0, 0.0, 0.25]
    assert compared.table["arm"].tolist() == NAMES and compared.table["mean"].isna().sum() == 1


@pytest.mark.parametrize("column", ["bag", "patient", "label", "predicted"])
def test_names_in_mil_results_are_strings(column: str, tmp_path: Path) -> None:
    write(tmp_path / "bag_scores.csv", **{column: NAMES, "seed": [0, 1, 0, 1], "score_a": [0.5, 1.0, 0.0, 0.25]})
    scores = MilResult(tmp_path).scores
    assert scores[column].tolist() == NAMES
    assert scores["seed"].sum() == 2 and scores["score_a"].sum() == 1.75


def test_an_adaptation_without_scores_has_empty_tables(tmp_path: Path) -> None:
    write_json(tmp_path / "adapt.json", {"verdict": "No verdict", "scores": [], "contrasts": []})
    result = AdaptationResult(tmp_path)
    assert result.scores.query("task == 'zero-shot' and metric == 'auroc'")["mean"].tolist() == []
    assert result.table.query("task == 'zero-shot'")[["model", "reference", "difference", "outcome"]].empty
