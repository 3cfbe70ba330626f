"""Tests of slide-level and patient-level evaluation."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from clipit.errors import DataError
from clipit.evaluation.intervals import MIN_UNITS
from clipit.evaluation.slide_metrics import SLIDE_METRICS, SlideEvaluation, choose_pooling, evaluate_slides
from clipit.evaluation.slide_scores import POOLINGS, PooledScore, slide_table
from clipit.evaluation.slide_sets import PoolingKey, SlideSet, collect_slides

CLASSES = ("normal", "adenoma", "tumour")


def pooled(scores: dict[str, list[float]], tiles: int = 200) -> list[PooledScore]:
    """Unsmoothed scores of a slide for each pooling method."""
    return [
        PooledScore(name, False, tiles, tiles, np.array(values, dtype=np.float32)) for name, values in scores.items()
    ]


def random_slides(n: int, seed: int = 0, patients: int | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of all pooling methods and a slide table with one half validation and one half test slides."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    names = [f"slide{i:03}" for i in range(n)]
    table = {}
    for name, label in zip(names, labels, strict=True):
        noise = generator.normal(size=(len(POOLINGS), 3)) + 0.8 * (np.arange(3) == label)
        table[name] = pooled(dict(zip(POOLINGS, noise.tolist(), strict=True)))
    slides = pd.DataFrame(
        {
            "slide": names,
            "label": np.array(CLASSES)[labels],
            "group": [f"p{(i // 3) % (patients or n)}" for i in range(n)],
            "split": np.where(np.arange(n) < n // 2, "validation", "test"),
        }
    )
    return slide_table(table, CLASSES), slides


def select_score(evaluation: SlideEvaluation, metric: str, pooling: str = "mean", **where: str) -> pd.Series:
    rows = evaluation.scores.query("metric == @metric and pooling == @pooling and not smoothed")
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1
    return rows.iloc[0]


def two_class_slides(rows: list[tuple[str, str, str, str, dict[str, list[float]]]]) -> SlideEvaluation:
    """Evaluate slides given as (slide, patient, label, split, scores for each pooling method)."""
    table = slide_table({slide: pooled(scores) for slide, _, _, _, scores in rows}, ("a", "b"))
    columns = {"slide": 0, "group": 1, "label": 2, "split": 3}
    slides = pd.DataFrame({name: [row[i] for row in rows] for name, i in columns.items()})
    return evaluate_slides(table, slides, ("a", "b"), resamples=0)


def test_metrics_match_scikit_learn() -> None:
    table, slides = random_slides(60)
    evaluation = evaluate_slides(table, slides, CLASSES, resamples=0)
    test = slides[slides.split == "test"]
    truth = test.label.map(CLASSES.index).to_numpy()
    rows = table[(table.pooling == "top5")].set_index("slide").loc[test.slide]
    scores = rows[[f"score_{name}" for name in CLASSES]].to_numpy()
    predicted = scores.argmax(axis=1)
    relative = scores - scores.mean(axis=1, keepdims=True)
    expected = {
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "accuracy": metrics.accuracy_score(truth, predicted),
        "macro_f1": metrics.f1_score(truth, predicted, average="macro"),
        "weighted_f1": metrics.f1_score(truth, predicted, average="weighted"),
        "auroc": np.mean([metrics.roc_auc_score(truth == c, relative[:, c]) for c in range(3)]),
    }
    for metric in SLIDE_METRICS:
        row = select_score(evaluation, metric, "top5", split="test", level="slide")
        assert row["value"] == pytest.approx(expected[metric]), metric
        assert row["labelled"] == 30


def test_binary_auroc_ranks_slides_by_the_difference_of_their_scores() -> None:
    # All similarities of the first slide are high, but only the difference between classes matters.
    evaluation = two_class_slides(
        [
            ("s1", "p1", "a", "test", {"mean": [0.60, 0.50]}),
            ("s2", "p2", "b", "test", {"mean": [0.10, 0.20]}),
            ("s3", "p3", "b", "test", {"mean": [0.20, 0.40]}),
        ]
    )
    assert select_score(evaluation, "auroc", level="slide")["value"] == 1.0
    assert select_score(evaluation, "accuracy", level="slide")["value"] == 1.0


def test_patient_score_is_the_mean_of_the_slides() -> None:
    evaluation = two_class_slides(
        [
            ("s1", "p1", "a", "test", {"mean": [0.9, 0.1]}),
            ("s2", "p1", "a", "test", {"mean": [0.4, 0.6]}),
            ("s3", "p1", "a", "test", {"mean": [0.4, 0.6]}),
            ("s4", "p2", "b", "test", {"mean": [0.3, 0.7]}),
            ("s5", "", "b", "test", {"mean": [0.3, 0.7]}),
            ("s6", "", "b", "test", {"mean": [0.8, 0.2]}),
        ]
    )
    per_slide = select_score(evaluation, "accuracy", level="slide")
    per_patient = select_score(evaluation, "accuracy", level="patient")
    assert per_slide["value"] == pytest.approx(3 / 6) and per_slide["labelled"] == 6
    # p1 has a mean of (0.567, 0.433), which is correct. Slides of unknown patients are not grouped.
    assert per_patient["value"] == pytest.approx(3 / 4) and per_patient["labelled"] == 4
    assert any("unknown patients, each counted as a separate patient: 2." in note for note in evaluation.notes)


def test_patients_with_several_classes_are_evaluated_per_slide_only() -> None:
    rows = [
        ("s1", "p1", "a", "test", {"mean": [0.9, 0.1]}),
        ("s2", "p1", "b", "test", {"mean": [0.1, 0.9]}),
        ("s3", "p2", "b", "test", {"mean": [0.1, 0.9]}),
    ]
    evaluation = two_class_slides(rows)
    assert select_score(evaluation, "accuracy", level="slide")["labelled"] == 3
    assert select_score(evaluation, "accuracy", level="patient")["labelled"] == 1
    assert any("different classes, not evaluated per patient: 1." in note for note in evaluation.notes)


def test_intervals_resample_patients_and_need_enough_of_them() -> None:
    table, slides = random_slides(120, patients=4)
    few = evaluate_slides(table, slides, CLASSES, resamples=50)
    row = select_score(few, "accuracy", "top1", split="test", level="slide")
    assert row["value"] is not None and row["low"] is None
    assert f"4 independent units to resample; a 95% interval needs {MIN_UNITS}" in row["reason"]
    many = evaluate_slides(*random_slides(120), CLASSES, resamples=50)
    row = select_score(many, "accuracy", "top1", split="test", level="slide")
    assert row["low"] < row["value"] < row["high"] and row["patients"] == 20


def test_pooling_is_chosen_on_validation_slides() -> None:
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    rows = [
        ("v1", "p1", "a", "validation", {"top1": wrong, "top5": right, "top10": right, "mean": wrong}),
        ("v2", "p2", "b", "validation", {"top1": wrong, "top5": wrong, "top10": wrong, "mean": wrong}),
        ("t1", "p3", "a", "test", {"top1": right, "top5": wrong, "top10": right, "mean": right}),
        ("t2", "p4", "b", "test", {"top1": wrong, "top5": wrong, "top10": wrong, "mean": wrong}),
    ]
    evaluation = two_class_slides(rows)
    assert evaluation.choice.key == PoolingKey("top5", False)
    assert "balanced accuracy of 1.000 on 2 validation slides" in evaluation.choice.sentence
    assert "2 pooling methods tie; fewer tiles and no smoothing are preferred" in evaluation.choice.sentence
    assert set(evaluation.scores.query("chosen")["pooling"]) == {"top5"}
    # The chosen pooling is evaluated on test slides even though others score higher there.
    assert select_score(evaluation, "accuracy", "top5", split="test", level="slide")["value"] == 0.5
    assert evaluation.slides.set_index("slide").loc["t1", "predicted"] == "b"


def test_no_pooling_is_chosen_without_validation_slides() -> None:
    table, slides = random_slides(30)
    evaluation = evaluate_slides(table, slides.drop(columns="split"), CLASSES, resamples=0)
    assert evaluation.choice.key is None and "no labelled validation slides" in evaluation.choice.sentence
    assert not evaluation.scores["chosen"].any()
    assert set(evaluation.scores["split"]) == {"all"} and set(evaluation.scores["pooling"]) == set(POOLINGS)
    assert set(POOLINGS) <= set(evaluation.slides.columns)


def test_no_pooling_is_chosen_on_validation_slides_of_a_single_class() -> None:
    table, slides = random_slides(30)
    slides.loc[slides.split == "validation", "label"] = "normal"
    choice = choose_pooling(collect_slides(table, slides, CLASSES))
    of_patients = choose_pooling(collect_slides(table, slides, CLASSES), unit="patient")
    assert of_patients.sentence == choice.sentence.replace("slides", "patients") != choice.sentence
    assert choice.key is None and "have the same class" in choice.sentence


def test_training_slides_are_not_evaluated() -> None:
    table, slides = random_slides(30)
    slides["split"] = slides["split"].replace("validation", "train")
    evaluation = evaluate_slides(table, slides, CLASSES, resamples=0)
    assert set(evaluation.scores["split"]) == {"test"}
    assert any(note == "Slides of the training split, not evaluated: 15." for note in evaluation.notes)


def test_slides_without_scores_are_listed_with_the_reason() -> None:
    table, slides = random_slides(30)
    more = pd.DataFrame({"slide": ["broken", "forgotten"], "label": ["normal"] * 2, "group": [""] * 2, "split": "test"})
    evaluation = evaluate_slides(
        table, pd.concat([slides, more]), CLASSES, failures={"broken": "no tissue was found"}, resamples=0
    )
    assert evaluation.failed.values.tolist() == [["broken", "no tissue was found"], ["forgotten", "not scored"]]
    assert any("excluded from every metric: 2." in note for note in evaluation.notes)


def test_unlabelled_slides_are_listed_but_not_evaluated() -> None:
    table, slides = random_slides(30)
    slides.loc[slides.slide == "slide029", "label"] = None
    evaluation = evaluate_slides(table, slides, CLASSES, resamples=0)
    assert select_score(evaluation, "accuracy", "top1", split="test", level="slide")["labelled"] == 14
    assert evaluation.slides.set_index("slide").loc["slide029", "label"] == ""


def test_auroc_is_undefined_for_a_class_without_slides() -> None:
    table, slides = random_slides(30)
    kept = slides[(slides.split == "test") & (slides.label != "adenoma")]
    evaluation = evaluate_slides(table[table.slide.isin(kept.slide)], kept, CLASSES, resamples=0)
    assert select_score(evaluation, "auroc", "top1", level="slide")["reason"] == "no slide of class adenoma"
    assert "no slide of adenoma" in select_score(evaluation, "balanced_accuracy", "top1", level="slide")["over"]


def test_patients_in_several_splits_are_noted() -> None:
    table, slides = random_slides(30, patients=2)
    evaluation = evaluate_slides(table, slides, CLASSES, resamples=0)
    assert any("Patients with slides in several splits" in note and note.endswith(": 2.") for note in evaluation.notes)


def test_mismatched_tables_raise_an_error() -> None:
    table, slides = random_slides(6)
    with pytest.raises(DataError, match="missing from the table of slides: slide005"):
        collect_slides(table, slides[:5], CLASSES)
    with pytest.raises(DataError, match="labels that are not among the scored classes: carcinoma"):
        collect_slides(table, slides.assign(label="carcinoma"), CLASSES)
    with pytest.raises(DataError, match=r"slides occur twice: slide000 \(row \d+, row \d+\)"):
        collect_slides(table, pd.concat([slides, slides[:1]]), CLASSES)
    with pytest.raises(DataError, match=r"top1: scores of some slides are missing or repeated: slide000"):
        collect_slides(table[1:], slides, CLASSES)
    with pytest.raises(DataError, match="single class cannot be evaluated"):
        evaluate_slides(table, slides, ("normal",))


def test_slide_order_does_not_matter() -> None:
    table, slides = random_slides(40, patients=15)
    shuffled = table.sample(frac=1, random_state=0), slides.sample(frac=1, random_state=1)
    one, other = (evaluate_slides(*each, CLASSES, resamples=30) for each in ((table, slides), shuffled))
    pd.testing.assert_frame_equal(one.scores, other.scores)
    pd.testing.assert_frame_equal(one.slides, other.slides)


def test_empty_table_gives_no_scores() -> None:
    evaluation = evaluate_slides(slide_table({}, CLASSES), pd.DataFrame({"slide": ["a"]}), CLASSES)
    assert evaluation.scores.empty and evaluation.failed["slide"].tolist() == ["a"]
    assert isinstance(collect_slides(slide_table({}, CLASSES), pd.DataFrame({"slide": []}), CLASSES), SlideSet)
