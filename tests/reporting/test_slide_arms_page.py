"""Test the page of arms compared on slides: the verdict, published scores and escaped names."""

from dataclasses import fields, replace
from typing import Any

import pandas as pd
import pytest

from clipit.evaluation.intervals import NO_VARIATION
from clipit.evaluation.slide_arms import SlideArmRow, SlideComparison
from clipit.evaluation.slide_metrics import SLIDE_METRICS, PoolingChoice
from clipit.evaluation.slide_sets import LEVELS, PoolingKey
from clipit.reporting.slide_arms_page import ComparedRun, slide_arms_page, slide_arms_summary, slide_verdict

CHOSEN = PoolingChoice(PoolingKey("top5", False), "The pooling method top5 was chosen.", {})
UNDECIDED = PoolingChoice(None, "No pooling method was chosen, because there are no labelled validation slides.", {})


def comparison(choice: PoolingChoice = CHOSEN, seeds: int = 5, **arms: dict[str, Any]) -> SlideComparison:
    columns = [each.name for each in fields(SlideArmRow)]
    base: dict[str, Any] = dict.fromkeys(columns) | {
        "split": "test",
        "pooling": "top5",
        "smoothed": False,
        "mean": 0.7,
        "sd": 0.1,
    }
    base |= {"labelled": 40, "patients": 30, "seeds": 5}
    better = {"difference": 0.1, "low": 0.05, "high": 0.2, "reason": "", "seeds_low": 0.02, "seeds_high": 0.2}
    kinds = [{"level": level, "metric": metric} for level in LEVELS for metric in SLIDE_METRICS]
    rows = [base | kind | {"arm": "image_only"} for kind in kinds]
    for arm, changes in arms.items():
        values = better | {"p": 0.01, "p_holm": 0.02, "p_reason": ""} | changes
        rows += [base | values | kind | {"arm": arm} for kind in kinds]
    choices = dict.fromkeys(["image_only", *arms], choice)
    rows = [row | {"seeds": seeds} if row["arm"] == "image_only" else row for row in rows]
    return SlideComparison("image_only", choices, pd.DataFrame(rows, columns=columns))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "better than image_only: text."),
        (
            {"low": -0.01},
            "no difference from image_only shown: text (the interval over patients includes 0, but the one over 5 "
            "seeds does not).",
        ),
        (
            {"seeds_low": -0.01},
            "no difference from image_only shown: text (the interval over 5 seeds includes 0, but the one over "
            "patients does not).",
        ),
        ({"low": -0.3, "high": -0.1, "seeds_low": -0.3, "seeds_high": -0.1}, "worse than image_only: text."),
        (
            {"low": -0.3, "high": -0.1},
            "no difference from image_only shown: text (the intervals over patients and over 5 seeds have opposite "
            "signs).",
        ),
        (
            {"seeds": 1, "low": -0.01},
            "no difference from image_only shown: text (the interval over patients includes 0, but the one over 5 "
            "seeds does not).",
        ),
        (
            {"seeds": 1, "seeds_low": None, "seeds_high": None},
            "not decided: text (the difference is the same for all 5 seeds).",
        ),
        ({"low": None, "high": None, "reason": f"{NO_VARIATION} of 30 units"}, "better than image_only: text."),
        (
            {"low": None, "high": None, "difference": 0.0, "reason": f"{NO_VARIATION} of 30 units"},
            "no difference from image_only shown: text (the interval over patients includes 0, but the one over 5 "
            "seeds does not).",
        ),
        (
            {"low": -0.1, "seeds_low": -0.1},
            "no difference from image_only shown: text (the intervals over patients and over 5 seeds include 0).",
        ),
        ({"low": None, "high": None, "reason": "one patient"}, "not decided: text (one patient)."),
    ],
)
def test_an_arm_is_better_only_if_both_intervals_exclude_zero(changes: dict[str, Any], sentence: str) -> None:
    verdict = slide_verdict(comparison(text=changes))
    assert verdict == f"Balanced accuracy on 40 test slides of 30 patients: {sentence}"


def test_one_seed_of_both_arms_decides_nothing() -> None:
    single = {"seeds": 1, "seeds_low": None, "seeds_high": None}
    assert slide_verdict(comparison(seeds=1, text=single)).endswith(": not decided: text (one seed).")


def test_slides_of_unknown_patients_are_not_called_patients() -> None:
    arms = replace(comparison(text={}), unknown={"train": 3, "test": 10})
    assert slide_verdict(arms).startswith(
        "Balanced accuracy on 40 test slides of 20 patients and of unknown patients (10 slides): better"
    )
    assert slide_verdict(arms, "patient").startswith(
        "Balanced accuracy on 30 test patients and 10 slides of unknown patients: better"
    )
    text = slide_arms_summary("", arms, ("a", "b"), [], [], {})
    assert "40 slides of 20 patients and of unknown patients (10 slides); mean" in text
    assert "Slides of unknown patients, each counted as a separate patient: 13." in text


def test_nothing_is_decided_without_a_chosen_pooling() -> None:
    verdict = slide_verdict(comparison(UNDECIDED, text={}))
    assert verdict == "Not decided: no pooling method was chosen, because there are no labelled validation slides."


def test_published_scores_of_the_same_classes_are_shown_and_names_escaped() -> None:
    runs = [ComparedRun("a<b>", 0, "outputs/run", "224 px", "runs/a/slides.html")]
    arms = comparison(text={})
    arguments = ("", arms, ("LUAD", "LUSC"), runs, [("s<u>", "the file is empty")], {"commit": "abc"})
    page, text = slide_arms_page(*arguments), slide_arms_summary(*arguments)
    for output in (page, text):
        assert (
            "published: CONCH" in output
            and "not as a baseline" in output
            and "one slide accounts for 2.5 percentage points" in output
        )
        assert "a<b>" not in output and "s<u>" not in output
    other_classes = slide_arms_page("", arms, ("gland", "stroma"), runs, [], {})
    assert "published" not in other_classes.lower()
