"""Test targets of bags from reports of the same patients: matched, shuffled, and never from held-out splits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mil_bags import ArrayReader
from tiny_models import CLASSES, MakeConfig

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError
from clipit.mil.mil_bags import MilBags
from clipit.mil.privileged import report_embeddings, report_labels
from clipit.mil.targets import BagTargets
from clipit.workspace.workspace import Workspace

PATIENTS = 18
"""Number of training patients, each with one bag; the last three have no report."""
FEATURES = np.ones((1, 4), dtype=np.float32)


def make_contrast_bags(labelled: int = 6) -> MilBags:
    """Make one bag per patient; bag g of a split has class g % 3, and the first training bags are labelled."""
    owners = [
        (split, g) for split, count in (("train", PATIENTS), ("validation", 6), ("test", 6)) for g in range(count)
    ]
    names = np.array([f"{split}-{g}" for split, g in owners], dtype=object)
    splits = np.array([split for split, _ in owners], dtype=object)
    labels = np.array([g % 3 if split != "train" or g < labelled else -1 for split, g in owners], dtype=np.int64)
    reader = ArrayReader([FEATURES] * len(names), [[str(name)] for name in names])
    rows = np.arange(len(names), dtype=np.int64)
    return MilBags(
        np.array([f"slide {name}" for name in names], dtype=object), labels, names, splits, CLASSES, reader, rows
    )


BAGS = make_contrast_bags()


@pytest.fixture
def make_workspace(configure: MakeConfig, tmp_path: Path) -> Callable[..., tuple[RunConfig, Workspace]]:
    """Factory of workspaces with reports of all but three patients; `change(split, row)` may edit each report."""
    rules = {"name": "small", "classes": {name: [name] for name in CLASSES}}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    numbers = iter(range(9))

    def make(
        change: Callable[[str, dict[str, Any]], None] = lambda split, row: None, **keys: Any
    ) -> tuple[RunConfig, Workspace]:
        lines = []
        for split, count in (("train", PATIENTS - 3), ("validation", 6), ("test", 6)):
            for g in range(count):
                name = f"{split}-{g}"
                text = f"FINAL DIAGNOSIS:\nThere is {CLASSES[g % 3]} and necrosis. No {CLASSES[(g + 1) % 3]} is seen."
                row = {"id": name, "text": "Nothing is said." if name == "train-9" else text, "patient": name}
                row |= {"organ": "colon"}
                change(split, row)
                lines.append(json.dumps(row) + "\n")
        path = tmp_path / f"reports{next(numbers)}.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        changes = {
            "reports.path": str(path),
            "reports.group_column": "patient",
            "reports.organ_column": "organ",
            "reports.label_column": None,
            "own_report.labels": "rules",
            "own_report.rules": str(tmp_path / "rules.yaml"),
        }
        config = configure({**changes, **keys})
        return config, Workspace(config)

    return make


Make = Callable[..., tuple[RunConfig, Workspace]]


def report_targets(
    config: RunConfig, workspace: Workspace, bags: MilBags = BAGS, **options: bool
) -> tuple[BagTargets, BagTargets]:
    return tuple(make(config, workspace, bags, 0, **options) for make in (report_labels, report_embeddings))  # type: ignore[return-value]


def test_a_report_labels_the_unlabelled_bags_of_its_patient(make_workspace: Make) -> None:
    targets = report_labels(*make_workspace(), BAGS, 0)
    patients = np.arange(PATIENTS)
    labelled = (patients >= 6) & (patients < PATIENTS - 3) & (patients != 9)
    assert targets.weights.tolist() == labelled.astype(float).tolist()
    assert (targets.probabilities[labelled].argmax(axis=1) == patients[labelled] % 3).all()
    assert np.allclose(targets.probabilities[~labelled], 1 / 3)
    text = "\n".join(targets.notes)
    assert "8 of 12 unlabelled training bags get a label" in text and "6 of 6 labels from reports agree" in text
    assert "12 from patients with validation or test tiles (never read for training)" in text


def test_report_embeddings_are_targets_of_labelled_bags_too(make_workspace: Make) -> None:
    targets = report_embeddings(*make_workspace(), BAGS, 0)
    assert targets.distilled.tolist() == [g < PATIENTS - 3 for g in range(PATIENTS)]
    assert np.allclose(np.linalg.norm(targets.vectors[targets.distilled], axis=1), 1, atol=1e-3)
    similarity = targets.vectors[:15] @ targets.vectors[:15].T
    same = np.arange(15)[:, None] % 3 == np.arange(15) % 3
    same[9] = same[:, 9] = False
    other = np.arange(15)[:, None] % 3 != np.arange(15) % 3
    assert similarity[same].min() > 0.999 > similarity[other].max()


def test_shuffled_reports_come_from_other_patients(make_workspace: Make) -> None:
    config, workspace = make_workspace()
    matched, shuffled = report_targets(config, workspace), report_targets(config, workspace, shuffled=True)
    assert np.array_equal(matched[1].distilled, shuffled[1].distilled)
    assert not np.array_equal(matched[1].vectors, shuffled[1].vectors)
    assert np.allclose(np.sort(matched[1].vectors, axis=0), np.sort(shuffled[1].vectors, axis=0))
    assert matched[0].fingerprint != shuffled[0].fingerprint
    assert "6 of 6 labels from reports agree" in "\n".join(shuffled[0].notes), "agreement is computed before shuffling"
    assert all(any("reports were shuffled" in note for note in targets.notes) for targets in shuffled)
    assert not any("shuffl" in note for targets in matched for note in targets.notes)
    configured = report_targets(*make_workspace(**{"own_report.shuffled": True}))
    assert [targets.fingerprint for targets in configured] == [targets.fingerprint for targets in shuffled]


def test_reports_of_validation_and_test_patients_have_no_effect(make_workspace: Make) -> None:
    """Neither means, counts of the rules nor fingerprints of models may depend on held-out reports."""

    def change(split: str, row: dict[str, Any]) -> None:
        if split != "train":
            row |= {"text": f"FINAL DIAGNOSIS:\nTumour with atypia in {row['id']}.", "organ": "liver"}

    before, after = report_targets(*make_workspace()), report_targets(*make_workspace(change))
    for first, second in zip(before, after, strict=True):
        assert first.fingerprint == second.fingerprint and first.notes == second.notes
    assert before[0].names.tolist() == BAGS.of_split("train").names.tolist()


def test_reports_of_training_patients_change_the_targets(make_workspace: Make) -> None:
    def change(split: str, row: dict[str, Any]) -> None:
        if row["id"] == "train-8":
            row["text"] = "FINAL DIAGNOSIS:\nThere is gland."

    before, after = report_targets(*make_workspace()), report_targets(*make_workspace(change))
    assert all(first.fingerprint != second.fingerprint for first, second in zip(before, after, strict=True))


def test_a_text_classifier_trained_on_labelled_bags_labels_the_others(make_workspace: Make) -> None:
    config, workspace = make_workspace(**{"own_report.labels": "text"})
    targets = report_labels(config, workspace, make_contrast_bags(labelled=12), 0)
    assert targets.weights.tolist() == [float(12 <= g < 15) for g in range(PATIENTS)]
    assert (targets.probabilities[12:15].argmax(axis=1) == np.arange(12, 15) % 3).all()


def test_reports_without_labels_or_training_patients_are_errors(make_workspace: Make, configure: MakeConfig) -> None:
    def remove_content(split: str, row: dict[str, Any]) -> None:
        row["text"] = "Nothing is said."

    with pytest.raises(DataError, match="no report yields a label"):
        report_labels(*make_workspace(remove_content), BAGS, 0)
    with pytest.raises(DataError, match="no training patient has a report"):
        report_targets(*make_workspace(lambda split, row: row.update(patient=f"other {row['id']}")))
    config = configure({"reports": None})
    with pytest.raises(ConfigError, match="none are configured"):
        report_labels(config, Workspace(config), BAGS, 0)
