"""Test the comparison of arms that learn from reports with their controls under several conditions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mil_bags import write_features
from sklearn.metrics import roc_auc_score
from tiny_models import CLASSES, MakeFile

from clipit.api.mil import train_mil
from clipit.config.command_line import read_file_command
from clipit.errors import ConfigError
from clipit.mil.conditions import find_contrasts, plan_conditions, score_seeds
from clipit.mil.mil_arms import ARMS
from clipit.mil.mil_study import mil_study


@pytest.fixture
def study_keys(world: dict, tmp_path: Path) -> dict[str, object]:  # type: ignore[type-arg]
    tiles = pd.read_csv(world["tiles"]["path"])
    number = tiles["group"].str.split("-").str[1].astype(int)
    tiles["label"] = [CLASSES[n % 3] for n in number]
    tiles.to_csv(tmp_path / "tiles.csv", index=False)
    lines = [
        {"id": f"train-{n}", "text": f"FINAL DIAGNOSIS:\nThere is {CLASSES[n % 3]}.", "patient": f"train-{n}"}
        for n in range(17)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rules = {"name": "small", "classes": {name: [name] for name in CLASSES}}
    (tmp_path / "rules.yaml").write_text(json.dumps(rules), encoding="utf-8")
    return {
        "output": str(tmp_path / "out"),
        "tiles.labels.kind": "all",
        "tiles.path": str(tmp_path / "tiles.csv"),
        "tiles.images": str(Path(world["tiles"]["path"]).parent),
        "reports.path": str(tmp_path / "own.jsonl"),
        "reports.group_column": "patient",
        "reports.label_column": None,
        "own_report.labels": "rules",
        "own_report.rules": str(tmp_path / "rules.yaml"),
        "mil.bags": "patient",
        "mil.training.epochs": 2,
        "mil.training.hidden": 8,
        "mil.labels_per_class": 2,
        "mil.seeds": [0, 1],
        "mil.resamples": 0,
        "mil.maps": 0,
        "mil.reference": "attention",
        "mil.arms": ["attention", "report_labels", "report", "predicted_labels", "image_embedding"],
        "mil.conditions": {
            "few labels": {},
            "all labels": {"mil.labels_per_class": None, "mil.arms": ["attention", "report_labels"]},
        },
    }


def test_one_command_compares_the_arms_in_every_condition(
    configure_file: MakeFile, study_keys: dict[str, object]
) -> None:
    result = train_mil(configure_file(study_keys))
    table = result.table
    assert set(table["condition"]) == {"few labels", "all labels"}
    contrasts = pd.read_csv(result.folder / "contrasts.csv")
    few_labels = contrasts[contrasts["condition"] == "few labels"]
    assert {*zip(few_labels["arm"], few_labels["control"], strict=True)} == {
        ("report_labels", "attention"),
        ("report_labels", "predicted_labels"),
        ("report", "attention"),
        ("report", "predicted_labels"),
        ("report", "image_embedding"),
    }
    assert (few_labels["difference"] != 0).any()
    all_labels = contrasts[contrasts["condition"] == "all labels"]
    assert all_labels["difference"].tolist() == [0.0], "with all labels, no bag is left for a report to label"
    text = result.report.read_text(encoding="utf-8")
    assert "AUROC in %" in text and "balanced accuracy in %" in text and "balanced_accuracy" not in text
    assert "auroc" not in result.page.read_text(encoding="utf-8"), "metrics have the same names as on other pages"
    assert "| report_labels |" in text and "few labels" in text
    page = (result.folder.parent / "small-few-labels" / "mil.html").read_text(encoding="utf-8")
    assert " of 12 unlabelled training bags get a label from a report" in page
    assert "There is gland" not in page + text + result.page.read_text(encoding="utf-8")


def test_classes_may_be_numbers(configure_file: MakeFile, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(24):
        label, split = f"0{number % 2}", ("train", "validation", "test")[number // 2 % 3]
        features = generator.normal(3 * (number % 2), 1, size=(4, 8)).astype(np.float32)
        write_features(tmp_path / "h5" / f"s{number}.h5", features)
        rows.append({"slide": f"s{number}", "label": label, "group": f"p{number}", "split": split})
    pd.DataFrame(rows).to_csv(tmp_path / "slides.csv", index=False)
    keys = {
        "output": str(tmp_path / "out"),
        "tiles.labels.kind": "all",
        "mil.features": "h5",
        "mil.h5": str(tmp_path / "h5"),
        "mil.slides": str(tmp_path / "slides.csv"),
        "mil.arms": ["attention", "mean"],
        "mil.reference": "mean",
        "mil.seeds": [0],
        "mil.resamples": 0,
        "mil.training.epochs": 5,
        "mil.conditions": {"few": {"mil.labels_per_class": 2}, "all": {}},
    }
    result = train_mil(configure_file(keys))
    text = (result.folder / "mil.md").read_text(encoding="utf-8")
    assert "| mean" in text
    assert "100.0" in text


def test_arms_that_learn_from_reports_need_reports(configure_file: MakeFile, study_keys: dict[str, object]) -> None:
    file = configure_file(study_keys | {"mil.conditions": {}})
    with pytest.raises(ConfigError, match="report_labels, report need reports"):
        mil_study(file.run.model_copy(update={"reports": None}), file.mil)


def test_keys_on_the_command_line_apply_to_all_conditions(
    write_config: Callable[..., Path], study_keys: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    line = [f"--config={write_config(study_keys)}", "--mil.labels_per_class=3", "--mil.training.epochs=1"]
    with caplog.at_level("INFO"):
        plans = plan_conditions(read_file_command("test", ["mil"], line)[0])
    assert [(plan.mil.labels_per_class, plan.mil.training.epochs) for plan in plans.values()] == [(3, 1), (3, 1)]
    assert {name: len(plan.mil.arms) for name, plan in plans.items()} == {"few labels": 5, "all labels": 2}, (
        "other keys of a condition keep their values"
    )
    assert caplog.messages == ["note: condition all labels: mil.labels_per_class as given on the command line"]


def test_all_invalid_conditions_are_reported_together(configure_file: MakeFile, study_keys: dict[str, object]) -> None:
    twice = {"mil.labels_per_class": 2, "mil": {"labels_per_class": 3}}
    wrong = {"a": {"mil.labels": 4}, "b": {"output": "elsewhere"}, "c 1": {}, "c/1": {}, "?": {}, "d": twice}
    with pytest.raises(ConfigError) as caught:
        plan_conditions(configure_file(study_keys | {"mil.conditions": wrong}))
    for part in ("mil.conditions.a", "cannot change output", "same folder", "no letter or digit", "given twice: mil.l"):
        assert part in str(caught.value)


def test_scores_per_seed_use_labelled_test_bags_only() -> None:
    scores = np.array([0.9, 0.2, 0.6, 0.4, 0.5, 0.1])
    table = pd.DataFrame(
        {
            "arm": "attention",
            "seed": 3,
            "split": ["test"] * 5 + ["train"],
            "label": ["a", "b", "b", "a", "", "a"],
            "score_a": scores,
            "score_b": 1 - scores,
        }
    )
    assert score_seeds(table, "auroc") == {"attention": {3: pytest.approx(roc_auc_score([1, 0, 0, 1], scores[:4]))}}


def test_cosine_similarities_are_scored_relative_to_the_other_classes() -> None:
    first, second = np.array([0.3, 0.5, 0.7, 0.4]), np.array([0.2, 0.6, 0.9, 0.35])
    table = pd.DataFrame(
        {"arm": "zero_shot", "seed": 0, "split": "test", "label": list("abba"), "score_a": first, "score_b": second}
    )
    assert roc_auc_score([1, 0, 0, 1], first) < 1
    assert score_seeds(table, "auroc") == {"zero_shot": {0: 1.0}}


def test_contrasts_are_paired_by_seed_and_corrected_over_all_conditions() -> None:
    base = {0: 0.5, 1: 0.6, 2: 0.5, 3: 0.4, 4: 0.5}
    better = {seed: score + 0.2 + 0.01 * seed for seed, score in base.items()}
    similar = {seed: score + (0.05 if seed % 2 else -0.04) for seed, score in base.items()}
    arms = {"attention": base, "report_labels": better}
    first, second = find_contrasts({"one": arms, "two": {"attention": base, "report_labels": similar}})
    assert first.control == "attention" and np.allclose(first.differences, [0.2, 0.21, 0.22, 0.23, 0.24])
    assert first.test.p is not None and second.test.p is not None and first.test.p < 0.05 < second.test.p
    uncorrected = find_contrasts({"one": arms})[0].test.p
    assert uncorrected is not None and first.test.p == pytest.approx(2 * uncorrected)


def test_controls_read_no_reports_of_the_same_patients() -> None:
    controls = {name for arm in ARMS.values() for name in arm.controls}
    assert controls and all(ARMS[name].shuffled_reports or not ARMS[name].reads_reports for name in controls)
