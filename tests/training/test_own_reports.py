"""Soft labels from reports of the tiles' own patients, and their controls."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_models import CLASSES, MakeConfig

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, DataError
from clipit.reports.rules import label_report
from clipit.runs.train import train_run
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys
from clipit.training.terms.case_labels import CaseLabels, shuffle_case_labels
from clipit.training.terms.own_reports import OwnLabels, own_report_labels
from clipit.workspace.workspace import Workspace

WITH_REPORT = 15  # of 18 training patients; tile n belongs to patient n // 4
OwnConfig = Callable[..., RunConfig]


def write_reports(path: Path, change: Callable[[str, dict[str, Any]], None] = lambda split, row: None) -> Path:
    """Write reports of 15 training patients, all validation and test patients, and one external patient.

    Training patient g has the label of class g % 3, except that patient 4 has another label and patient 5 has none.
    """
    rows = []
    for split, count in (("train", WITH_REPORT), ("validation", 6), ("test", 6), ("external", 1)):
        for g in range(count):
            finding = CLASSES[g % 3]
            text = f"FINAL DIAGNOSIS:\nThere is {finding}. No {CLASSES[(g + 1) % 3]} is seen."
            row = {"id": f"{split}-{g}", "text": text, "patient": f"{split}-{g}", "finding": finding, "organ": "colon"}
            if split == "train" and g in (4, 5):
                row |= {"finding": "" if g == 5 else "something else", "text": "Nothing is said."}
            change(split, row)
            rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def own_config(configure: MakeConfig, tmp_path: Path) -> OwnConfig:
    """Return a function that resolves a configuration, such as `own_config("label", seed=1)`."""
    reports = write_reports(tmp_path / "own.jsonl")
    rules = {"name": "small", "classes": {name: [name] for name in CLASSES}}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")

    def make(labels: str, **keys: Any) -> RunConfig:
        values = {
            "reports.path": str(reports),
            "reports.group_column": "patient",
            "reports.organ_column": "organ",
            "own_report.rules": str(tmp_path / "rules.yaml"),
        }
        return resolve_arm(configure({**values, **keys}, arm=f"own_{labels}"))

    return make


def labels_of(config: RunConfig) -> OwnLabels:
    workspace = Workspace(config)
    return own_report_labels(config, workspace, workspace.tiles(config.seed))


def test_labels_from_a_column(own_config: OwnConfig) -> None:
    labels = labels_of(own_config("label"))
    patient = np.arange(72) // 4
    known = (patient < WITH_REPORT) & (patient != 4) & (patient != 5)
    assert labels.weights.tolist() == known.astype(float).tolist()
    assert (labels.classes == np.where(known, patient % 3, -1)).all()
    assert labels.facts["answers"] == {"gland": 5, "none": 1, "something else": 1, "stroma": 4, "tumour": 4}
    assert labels.facts["labelled_cases"] == 13
    assert labels.facts["cases"]["later_splits"] == 12 and labels.facts["cases"]["external"] == 1
    # The label of tile n is n % 3, so a report agrees with two of the four tiles of its patient.
    assert 0 < labels.facts["compared_tiles"] <= 12 and "label noise: labels from reports agree with" in labels.text
    unlabelled = labels.facts["unlabelled_tiles"]
    assert 0 < unlabelled < 52 and f"{unlabelled} of" in labels.text


def test_report_labels_for_labelled_tiles_only_give_a_warning(
    own_config: OwnConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        labels = labels_of(own_config("label", **{"tiles.labels.kind": "all"}))
    assert labels.facts["unlabelled_tiles"] == 0 and "the patients' own reports have no effect" in caplog.text


def test_rules_ignore_negated_classes(own_config: OwnConfig) -> None:
    by_rules, by_column = labels_of(own_config("rules")), labels_of(own_config("label"))
    assert (by_rules.classes == by_column.classes).all()
    assert by_rules.facts["answers"]["none"] == 2


def test_rules_are_applied_once_per_report_for_all_arms(own_config: OwnConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(
        "clipit.workspace.workspace.label_report", lambda text, rules: texts.append(text) or label_report(text, rules)
    )
    workspace = Workspace(own_config("rules"))
    for keys in ({}, {"seed": 1}, {"own_report.shuffled": True}, {"pairing.k": 2}):
        config = own_config("rules", **keys)
        shared = workspace.for_config(config)
        own_report_labels(config, shared, shared.tiles(config.seed))
    assert len(texts) == WITH_REPORT


@pytest.mark.parametrize(("several", "expected"), [("all", [0.5, 0.0, 0.5]), ("latest", [0.0, 0.0, 1.0])])
def test_several_reports_of_a_patient_are_averaged_or_the_latest_is_used(
    own_config: OwnConfig, tmp_path: Path, several: str, expected: list[float]
) -> None:
    path = write_reports(tmp_path / "several.jsonl", lambda split, row: row.update(date="2020-05-31"))
    later = {"id": "later", "text": "None.", "patient": "train-0", "finding": "tumour", "organ": "colon"}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**later, "date": "2021-01-01"}) + "\n")
    keys = {"reports.path": str(path), "reports.date_column": "date", "own_report.several": several}
    labels = labels_of(own_config("label", **keys))
    assert labels.probabilities[0].tolist() == expected, "the finding of patient 0 changes from gland to tumour"
    assert labels.classes[4] == 1 and labels.weights[0] == 1


def test_a_class_map_renames_labels(own_config: OwnConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = own_config("label", **{"own_report.class_map": {"something else": "stroma", "gland": "tumour"}})
    labels = labels_of(config)
    patient = np.arange(72) // 4
    assert (labels.classes[patient == 4] == 1).all() and (labels.classes[patient == 0] == 2).all()
    assert "\nno report yields the class gland" in labels.text
    assert "no report yields the class gland: the student learns what such tiles look like from labelled" in caplog.text
    answers = labels.facts["answers"]
    assert answers["stroma"] == 1 and answers["stroma (not in class_map)"] == 4, (
        "labels outside class_map are counted but not used"
    )
    assert (labels.classes[patient == 1] == -1).all()


def test_reports_without_a_label_do_not_get_a_class_named_none(own_config: OwnConfig, tmp_path: Path) -> None:
    rules = {"name": "two", "classes": {name: [name] for name in CLASSES[:2]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    for labels in ("label", "rules"):
        config = own_config(labels, **{"own_report.rules": str(tmp_path / "two.yaml")})
        workspace = Workspace(config)
        tiles = replace(workspace.tiles(config.seed), classes=(*CLASSES[:2], "none"))
        result = own_report_labels(config, workspace, tiles)
        assert result.facts["answers"]["none"] and 2 not in result.classes, "the report of patient 5 has no label"


def test_the_text_classifier_labels_every_report(own_config: OwnConfig, configure: MakeConfig) -> None:
    for features in ("tfidf", "vlm"):
        labels = labels_of(own_config("text", **{"own_report.features": features}))
        assert np.allclose(labels.probabilities.sum(axis=1), 1, atol=1e-5)
        assert (labels.weights > 0).sum() == 4 * WITH_REPORT, "patients whose report has no label are included"


def test_case_labels_average_the_tile_labels_of_a_patient(own_config: OwnConfig) -> None:
    config = own_config("case")
    workspace = Workspace(config)
    train = workspace.tiles(config.seed).of_split("train")
    case_labels = labels_of(config)
    patient = np.arange(72) // 4
    for g in range(18):  # includes patients without a report, to keep the control strong
        labels = train.labels[(patient == g) & (train.labels >= 0)]
        mean = np.bincount(labels, minlength=3) / max(len(labels), 1)
        assert np.allclose(case_labels.probabilities[patient == g], mean if len(labels) else 1 / 3)
        assert (case_labels.weights[patient == g] == float(len(labels) > 0)).all()


def test_shuffled_labels_come_from_another_patient(own_config: OwnConfig) -> None:
    right, wrong = labels_of(own_config("label")), labels_of(own_config("shuffled"))
    assert (right.weights == wrong.weights).all()
    known = right.weights > 0
    assert np.bincount(right.classes[known][::4]).tolist() == np.bincount(wrong.classes[known][::4]).tolist()
    assert (right.classes != wrong.classes).any()


def test_labels_are_shuffled_within_an_organ() -> None:
    probabilities = np.eye(6, dtype=np.float32)
    labels = CaseLabels(probabilities, np.array([True, True, True, True, False, True]), {})
    shuffled = shuffle_case_labels(labels, ["colon", "colon", "liver", "colon", "colon", "skin"], seed=0)
    source = shuffled.probabilities.argmax(axis=1).tolist()
    assert sorted(source[i] for i in (0, 1, 3)) == [0, 1, 3] and all(source[i] != i for i in (0, 1, 3))
    assert (source[2], source[5], source[4]) == (5, 2, 4), "patients who are alone in their organ exchange labels"


@pytest.mark.parametrize("organs", [["colon", "colon", "skin"], ["colon", "colon", ""], ["", "", "skin"], [""] * 3])
def test_no_patient_keeps_its_label_when_shuffled(organs: list[str]) -> None:
    labels = CaseLabels(np.eye(3, dtype=np.float32), np.ones(3, dtype=np.bool_), {})
    source = shuffle_case_labels(labels, organs, seed=0).probabilities.argmax(axis=1).tolist()
    assert sorted(source) == [0, 1, 2] and all(source[i] != i for i in range(3))


def test_case_labels_without_labelled_tiles_are_an_error(own_config: OwnConfig) -> None:
    config = own_config("case")
    workspace = Workspace(config)
    tiles = workspace.tiles(config.seed)
    with pytest.raises(DataError, match="no labelled training tile belongs to a known patient"):
        own_report_labels(config, workspace, replace(tiles, labels=np.full_like(tiles.labels, -1)))


def test_a_single_label_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="fewer than two patients have a label from a report"):
        shuffle_case_labels(CaseLabels(np.eye(2, dtype=np.float32), np.array([True, False]), {}), ["a", "a"], seed=0)


def test_tiles_are_weighted_by_tissue_probability(own_config: OwnConfig, tmp_path: Path) -> None:
    prompts = {"name": "tissue", "version": 1, "templates": ["{}."], "classes": {"yes": ["tumour"], "no": ["mucin"]}}
    (tmp_path / "tissue.yaml").write_text(yaml.safe_dump(prompts), encoding="utf-8")
    keys = {
        "own_report.tiles": "tissue",
        "own_report.tissue_prompts": str(tmp_path / "tissue.yaml"),
        "own_report.tissue_classes": ["yes"],
    }
    weighted, plain = labels_of(own_config("label", **keys)), labels_of(own_config("label"))
    known = plain.weights > 0
    assert ((weighted.weights[known] > 0) & (weighted.weights[known] < 1)).all() and not weighted.weights[~known].any()
    keys["own_report.tissue_classes"] = ["maybe"]
    with pytest.raises(ConfigError, match=r"(?s)not in the prompt set: maybe.*no, yes"):
        labels_of(own_config("label", **keys))


def test_at_least_one_tile_per_patient_has_the_report_label(own_config: OwnConfig) -> None:
    keys = {"own_report.tiles": "at_least_one", "own_report.background": "gland"}
    labels, plain = labels_of(own_config("label", **keys)), labels_of(own_config("label"))
    patient = np.arange(72) // 4
    for g in np.unique(patient[plain.weights > 0]).tolist():
        classes = set(labels.classes[patient == g].tolist())
        assert g % 3 in classes and classes <= {g % 3, 0}
    with pytest.raises(ConfigError, match="the background class 'fat' is not a class"):
        labels_of(own_config("label", **{**keys, "own_report.background": "fat"}))


def test_reports_of_validation_and_test_patients_do_not_affect_training(own_config: OwnConfig, tmp_path: Path) -> None:
    """The classifier is byte-identical if texts, labels, dates and ids of these reports change."""

    def dated(split: str, row: dict[str, Any]) -> None:
        row["date"] = "2020-01-01"

    def other(split: str, row: dict[str, Any]) -> None:
        dated(split, row)
        if split != "train":
            row |= {"id": f"other {row['id']}", "text": "Quite another text, tumour. " * 9, "finding": "tumour"}
            row["date"] = "2024-05-31"

    write_reports(tmp_path / "own.jsonl", dated)
    keys = {"training.steps": 2, "training.evaluate_every": 2, "output": str(tmp_path / "out")}
    keys |= {"reports.date_column": "date", "own_report.several": "latest"}
    for labels in ("label", "rules", "text"):
        config = own_config(labels, name=labels, **keys)
        folder = train_run(config)
        before = {path.name: path.read_bytes() for path in (folder / "classifier").iterdir() if path.is_file()}
        changed = write_reports(tmp_path / "changed.jsonl", other)
        changed_config = config.model_copy(update={"reports": config.reports.model_copy(update={"path": str(changed)})})  # type: ignore[union-attr]
        assert train_run(changed_config) == folder, "the inputs of the run have not changed"
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["inputs"]["own reports"]
        fresh = train_run(changed_config.model_copy(update={"output": tmp_path / "fresh"}))
        assert before["model.safetensors"] == (fresh / "classifier" / "model.safetensors").read_bytes()
        text = (folder / "summary.md").read_text(encoding="utf-8")
        assert "The patients' own reports" in text and "15 of 18 training patients have a report of their own" in text


def test_snippets_do_not_come_from_validation_or_test_reports(own_config: OwnConfig, tmp_path: Path) -> None:
    def other(split: str, row: dict[str, Any]) -> None:
        if split in ("validation", "test"):
            row |= {"id": f"other {row['id']}", "text": "Quite another text, tumour.", "finding": "tumour"}

    changed = write_reports(tmp_path / "changed.jsonl", other)
    for labels in ("snippet", "bags"):
        inputs = Workspace(own_config(labels)).snippet_inputs()
        assert inputs == Workspace(own_config(labels, **{"reports.path": str(changed)})).snippet_inputs()


def test_a_run_without_tile_labels(own_config: OwnConfig, tmp_path: Path) -> None:
    keys = {"tiles.labels.kind": "none", "tiles.classes": list(CLASSES), "training.monitor": "information"}
    folder = train_run(
        own_config("rules", name="none", **keys, **{"training.steps": 2, "output": str(tmp_path / "out")})
    )
    facts = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert facts["training_labels"] == 0 and "not estimated" in facts["sections"]["The patients' own reports"]


@pytest.mark.parametrize(
    ("labels", "keys", "message"),
    [
        ("label", {"reports.label_column": None}, r"labels=label needs reports\.label_column"),
        ("rules", {"own_report.rules": None}, "labels=rules needs rules: set .* to a file or the name"),
        ("text", {"tiles.labels.kind": "none"}, "labels=text needs tile labels"),
        ("label", {"own_report.tiles": "tissue"}, "needs own_report.tissue_prompts"),
        ("label", {"own_report.tiles": "at_least_one"}, "needs a class for tiles that do not show"),
        ("label", {"training.monitor": "agreement"}, "reports of validation patients are never used"),
    ],
)
def test_missing_and_conflicting_keys_are_errors(
    own_config: OwnConfig, labels: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_keys(own_config(labels, **keys))


def test_labels_that_are_not_classes_are_errors(own_config: OwnConfig, tmp_path: Path) -> None:
    unknown = write_reports(tmp_path / "strange.jsonl", lambda split, row: row.update(finding="grade 2"))
    with pytest.raises(DataError, match=r"(?s)no report label is a class: the labels are grade 2.*class_map"):
        labels_of(own_config("label", **{"reports.path": str(unknown)}))
    with pytest.raises(ConfigError, match="class_map names classes that the tiles lack: fat"):
        labels_of(own_config("label", **{"own_report.class_map": {"gland": "fat"}}))
    unlabelled = write_reports(tmp_path / "silent.jsonl", lambda split, row: row.update(text="Nothing."))
    with pytest.raises(DataError, match=r"no report yields a label: none 15"):
        labels_of(own_config("rules", **{"reports.path": str(unlabelled)}))
    rules = {"name": "wrong", "classes": {"fat": ["fat"]}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    with pytest.raises(DataError, match="the rules name classes that the tiles lack: fat"):
        labels_of(own_config("rules", **{"own_report.rules": str(tmp_path / "wrong.yaml")}))
