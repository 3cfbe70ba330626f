"""Test the page and summary of slide scores: pooling methods, failed slides and escaped names."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, HOSTILE, opened

from clipit.evaluation.slide_metrics import PoolingChoice, SlideEvaluation, evaluate_slides
from clipit.evaluation.slide_scores import pool_slide, slide_table
from clipit.reporting.html import Table
from clipit.reporting.slide_scores_page import slide_scores_page, slide_scores_summary

CLASSES = ("normal", "tumour")
FACTS = {"classifier": "demo", "tiles": "224 pixels at 0.5 µm per pixel"}


def evaluated(n: int = 48, *, validation: bool = True, patients: int = 100, name: str = "slide") -> SlideEvaluation:
    generator = np.random.default_rng(0)
    cells = np.stack([np.arange(30) // 6, np.arange(30) % 6], axis=1)
    pooled = {}
    for i in range(n):
        tumour = generator.random(30) * (0.7 + 0.3 * (i % 2))
        pooled[f"{name} {i:02}"] = pool_slide(np.stack([1 - tumour, tumour], axis=1).astype(np.float32), cells)
    slides = pd.DataFrame(
        {
            "slide": [*pooled, "empty"],
            "label": [CLASSES[i % 2] for i in range(n)] + ["normal"],
            "group": [f"patient {i % patients}" for i in range(n)] + [""],
            "split": ["validation" if validation and i < n // 3 else "test" for i in range(n)] + ["test"],
        }
    )
    table = slide_table(pooled, CLASSES)
    return evaluate_slides(table, slides, CLASSES, failures={"empty": "no tissue was found"}, resamples=40)


def test_the_summary_names_the_chosen_pooling_and_the_failed_slides() -> None:
    evaluation = evaluated()
    text = slide_scores_summary("Slides", "Synthetic slides.", evaluation, FACTS)
    assert evaluation.choice.key is not None and evaluation.choice.sentence in text
    assert f"Pooled by {evaluation.choice.key.title}:" in text and "top5 (smoothed)" not in text
    assert "test, per slide: 32 labelled slides of 32 patients" in text
    note = "no known patient has several slides, so scores per patient are the same as scores per slide."
    assert f"validation, test: {note}" in text and "test, per patient" not in text
    # The first 16 of 48 slides are for validation, so only test patients have several slides.
    repeated = slide_scores_summary("Slides", "", evaluated(patients=20), FACTS)
    assert f"validation: {note}" in repeated and "test, per patient" in repeated
    assert "95% percentile bootstrap intervals over patients, 40 resamples, seed 0" in text
    assert "test: one slide accounts for 3.1 percentage points of accuracy." in text
    assert "no tissue was found" in text and "> **Note.** Synthetic slides." in text
    row = evaluation.scores.query(
        "chosen and split == 'test' and level == 'slide' and metric == 'balanced_accuracy'"
    ).iloc[0]
    assert f"Balanced accuracy {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}] on 32 test slides" in text


def test_all_poolings_are_listed_if_none_was_chosen() -> None:
    evaluation = evaluated(validation=False)
    text = slide_scores_summary("Slides", "", evaluation, FACTS)
    assert "No pooling method was chosen" in text and ", chosen" not in text and "pooled by" not in text
    page = slide_scores_page("Slides", "", evaluation, FACTS)
    assert "Class predicted by each pooling method" in page and "All pooling methods</h2>" not in page
    chosen = slide_scores_page("Slides", "", evaluated(), FACTS)
    assert "All pooling methods</h2>" in chosen and ", chosen<" in chosen and "Scores by" in chosen


def test_the_table_of_slides_links_to_their_pages() -> None:
    evaluation = evaluated()
    name = str(evaluation.slides["slide"].iloc[0])
    page = slide_scores_page("Slides", "", evaluation, FACTS, {name: "slides/a 1/index.html"})
    assert f'<a href="slides/a%201/index.html">{name}</a>' in page


def test_missing_intervals_are_explained_by_too_few_patients() -> None:
    text = slide_scores_summary("Slides", "", evaluated(patients=3), FACTS)
    reason = "no interval: 3 independent units to resample; a 95% interval needs 10."
    assert f"- test per slide: {reason}" in text and "percentile bootstrap" not in text
    page = slide_scores_page("Slides", "", evaluated(patients=3), FACTS)
    assert f"validation per slide, test per slide: {reason}" in page, (
        "the reason should be below the table of all pooling methods"
    )


def test_published_scores_are_in_a_separate_section() -> None:
    table = Table(("prompts or model", "source"), [["KEEP", "published: elsewhere"]], caption="test slides")
    evaluation = evaluated(validation=False)
    text = slide_scores_summary("Slides", "", evaluation, FACTS, [table])
    page = slide_scores_page("Slides", "", evaluation, FACTS, published=[table])
    for shown in (text, page):
        assert "Zero-shot scores by prompts" in shown and "not as a baseline" in shown and "KEEP" in shown
    assert "Zero-shot scores by prompts" not in slide_scores_page("Slides", "", evaluation, FACTS)


def test_slides_without_labels_are_listed_without_metrics() -> None:
    evaluation = evaluated(4)
    table = slide_table({"a": pool_slide(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.int64))}, CLASSES)
    unlabelled = evaluate_slides(table, pd.DataFrame({"slide": ["a"]}), CLASSES)
    text = slide_scores_summary("Slides", "", unlabelled, FACTS)
    assert "No slide has a label, so nothing is evaluated and no pooling method is chosen." in text
    assert "no score" not in text and "several slides" not in text and "unknown patients" not in text
    assert re.search(r"\| slide +\| tiles +\| class \(mean over tiles\) \|\n.*\n\| a +\| +2 +\| +normal \|", text)
    unscored = evaluate_slides(slide_table({}, CLASSES), pd.DataFrame({"slide": ["a"]}), CLASSES)
    assert "No slide has scores." in slide_scores_page("Slides", "", unscored, FACTS)
    page = slide_scores_page("Slides", "", unlabelled, FACTS)
    columns = re.findall(r"<th[^>]*>([^<]*)</th>", page[page.index("Class predicted by each pooling method") :])
    assert columns[:3] == ["slide", "tiles", "mean"] and "split" not in columns
    assert ">a</th>" in page and ">label</th>" not in page and ">patient</th>" not in page
    assert "balanced accuracy</th>" not in page
    assert "balanced accuracy</th>" in slide_scores_page("Slides", "", evaluation, FACTS)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_the_page_in_a_browser_has_escaped_names(tmp_path: Path) -> None:
    evaluation = evaluated(12, name=f"slide {HOSTILE}")
    links = {str(evaluation.slides["slide"].iloc[0]): "maps/slide 0.html"}
    dom = opened(slide_scores_page("Scores of slides", "", evaluation, FACTS, links), tmp_path)
    assert "<title>Scores of slides</title>" in dom
    assert 'href="maps/slide%200.html"' in dom
    assert "no tissue was found" in dom and dom.count("<img") == 0


def test_missing_intervals_of_other_poolings_are_not_in_the_summary() -> None:
    evaluation = evaluated()
    other, smoothed = (key for key in evaluation.choice.scores if key != evaluation.choice.key and "mean" in key.title)
    scores, reason = evaluation.scores.copy(), "the same in all resamples"
    for key in (other, smoothed):
        rows = (scores["pooling"] == key.pooling) & (scores["smoothed"] == key.smoothed) & (scores["split"] == "test")
        scores.loc[rows & (scores["metric"] == "auroc"), ["low", "high", "reason"]] = [None, None, reason]
    note = f"test per slide with {other.title}, {smoothed.title}: no interval for AUROC: {reason}."
    changed = replace(evaluation, scores=scores)
    assert note in slide_scores_page("Slides", "", changed, FACTS)
    assert "no interval" not in slide_scores_summary("Slides", "", changed, FACTS)
    unchosen = replace(changed, choice=PoolingChoice(None, "None was chosen.", {}))
    assert f"- {note}" in slide_scores_summary("Slides", "", unchosen, FACTS)


def test_class_averages_cover_only_classes_with_slides() -> None:
    classes = ("normal", "tumour", "mucin")
    # Mucin is predicted by the pooling method top1 only.
    tiles = np.array([[0.6, 0.1, 0.0], [0.6, 0.1, 0.0], [0.0, 0.1, 0.9]], dtype=np.float32)
    cells = np.array([[0, 0], [0, 9], [9, 9]], dtype=np.int64)
    table = slide_table({name: pool_slide(tiles, cells) for name in ("a", "b")}, classes)
    slides = pd.DataFrame({"slide": ["a", "b"], "label": ["normal", "tumour"], "split": ["test", "test"]})
    text = slide_scores_summary("Slides", "", evaluate_slides(table, slides, classes), FACTS)
    lines = [line for line in text.splitlines() if "averages over classes are computed" in line]
    assert lines == ["- test per slide: averages over classes are computed over 2 of 3 classes; no slide of mucin."]
