"""Labels from reports of the tiles' patients, and their controls."""

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

WITH_REPORT = 15  # of 18 training patients; tile n of a split belongs to patient n // 4
Own = Callable[..., RunConfig]


def write_reports(path: Path, change: Callable[[str, dict[str, Any]], None] = lambda split, row: None) -> Path:
    """Reports of 15 training patients, all validation and test patients, and one stranger.

    Patient g of training has the label of class g % 3; the report of patient 4 is of another label, that of 5 of none.
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
def own(configure: MakeConfig, tmp_path: Path) -> Own:
    """`own("label", seed=1)`: a resolved configuration with soft labels from own reports."""
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


def test_labels_of_a_column(own: Own) -> None:
    found = labels_of(own("label"))
    patient = np.arange(72) // 4
    known = (patient < WITH_REPORT) & (patient != 4) & (patient != 5)
    assert found.weights.tolist() == known.astype(float).tolist()
    assert (found.classes == np.where(known, patient % 3, -1)).all()
    assert found.facts["answers"] == {"gland": 5, "none": 1, "something else": 1, "stroma": 4, "tumour": 4}
    assert found.facts["labelled_cases"] == 13
    assert found.facts["cases"]["later_splits"] == 12 and found.facts["cases"]["external"] == 1
    # A tile's label is n % 3, so that a report that agrees with one tile of four disagrees with two or three.
    assert 0 < found.facts["compared_tiles"] <= 12 and "label noise: labels from reports agree with" in found.text
    unlabelled = found.facts["unlabelled_tiles"]
    assert 0 < unlabelled < 52 and f"{unlabelled} of" in found.text


def test_labels_of_reports_for_labelled_tiles_alone_are_a_warning(own: Own, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        found = labels_of(own("label", **{"tiles.labels.kind": "all"}))
    assert found.facts["unlabelled_tiles"] == 0 and "the patients' own reports have no effect" in caplog.text


def test_rules_give_the_affirmed_class(own: Own) -> None:
    found, by_column = labels_of(own("rules")), labels_of(own("label"))
    assert (found.classes == by_column.classes).all(), "the negated class does not count"
    assert found.facts["answers"]["none"] == 2


def test_rules_read_every_report_once_for_all_arms(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        "clipit.workspace.workspace.label_report", lambda text, rules: read.append(text) or label_report(text, rules)
    )
    workspace = Workspace(own("rules"))
    for keys in ({}, {"seed": 1}, {"own_report.shuffled": True}, {"pairing.k": 2}):
        config = own("rules", **keys)
        shared = workspace.for_config(config)
        own_report_labels(config, shared, shared.tiles(config.seed))
    assert len(read) == WITH_REPORT


@pytest.mark.parametrize(("several", "expected"), [("all", [0.5, 0.0, 0.5]), ("latest", [0.0, 0.0, 1.0])])
def test_several_reports_of_a_patient_are_averaged_or_the_latest_is_taken(
    own: Own, tmp_path: Path, several: str, expected: list[float]
) -> None:
    path = write_reports(tmp_path / "several.jsonl", lambda split, row: row.update(date="2020-05-31"))
    later = {"id": "later", "text": "None.", "patient": "train-0", "finding": "tumour", "organ": "colon"}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**later, "date": "2021-01-01"}) + "\n")
    keys = {"reports.path": str(path), "reports.date_column": "date", "own_report.several": several}
    found = labels_of(own("label", **keys))
    assert found.probabilities[0].tolist() == expected, "patient 0 was gland first and tumour later"
    assert found.classes[4] == 1 and found.weights[0] == 1


def test_a_class_map_renames_labels(own: Own, caplog: pytest.LogCaptureFixture) -> None:
    config = own("label", **{"own_report.class_map": {"something else": "stroma", "gland": "tumour"}})
    found = labels_of(config)
    patient = np.arange(72) // 4
    assert (found.classes[patient == 4] == 1).all() and (found.classes[patient == 0] == 2).all()
    assert "\nno report yields the class gland" in found.text
    assert "no report yields the class gland: the student learns what such tiles look like from labelled" in caplog.text
    answers = found.facts["answers"]
    assert answers["stroma"] == 1 and answers["stroma (not in class_map)"] == 4, "counted and not used, as on the page"
    assert (found.classes[patient == 1] == -1).all()


def test_a_class_named_none_is_not_the_class_of_reports_without_an_answer(own: Own, tmp_path: Path) -> None:
    rules = {"name": "two", "classes": {name: [name] for name in CLASSES[:2]}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    for labels in ("label", "rules"):
        config = own(labels, **{"own_report.rules": str(tmp_path / "two.yaml")})
        workspace = Workspace(config)
        tiles = replace(workspace.tiles(config.seed), classes=(*CLASSES[:2], "none"))
        found = own_report_labels(config, workspace, tiles)
        assert found.facts["answers"]["none"] and 2 not in found.classes, "the report of patient 5 has no label"


def test_text_classifies_every_report_and_leaves_out_its_own_patient(own: Own, configure: MakeConfig) -> None:
    for features in ("tfidf", "vlm"):
        found = labels_of(own("text", **{"own_report.features": features}))
        assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
        assert (found.weights > 0).sum() == 4 * WITH_REPORT, "also patients whose report has no label"


def test_case_spreads_the_labels_of_tiles_without_text(own: Own) -> None:
    config = own("case")
    workspace = Workspace(config)
    train = workspace.tiles(config.seed).of_split("train")
    found = labels_of(config)
    patient = np.arange(72) // 4
    for g in range(18):  # patients without a report, too: a control that lacks them would be too weak
        labels = train.labels[(patient == g) & (train.labels >= 0)]
        mean = np.bincount(labels, minlength=3) / max(len(labels), 1)
        assert np.allclose(found.probabilities[patient == g], mean if len(labels) else 1 / 3)
        assert (found.weights[patient == g] == float(len(labels) > 0)).all()


def test_shuffled_labels_are_those_of_another_patient(own: Own) -> None:
    right, wrong = labels_of(own("label")), labels_of(own("shuffled"))
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
    assert (source[2], source[5], source[4]) == (5, 2, 4), "those alone in their organ are shuffled with each other"


@pytest.mark.parametrize("organs", [["colon", "colon", "skin"], ["colon", "colon", ""], ["", "", "skin"], [""] * 3])
def test_nobody_keeps_the_own_label(organs: list[str]) -> None:
    labels = CaseLabels(np.eye(3, dtype=np.float32), np.ones(3, dtype=np.bool_), {})
    source = shuffle_case_labels(labels, organs, seed=0).probabilities.argmax(axis=1).tolist()
    assert sorted(source) == [0, 1, 2] and all(source[i] != i for i in range(3))


def test_no_label_can_be_spread_without_a_labelled_tile(own: Own) -> None:
    config = own("case")
    workspace = Workspace(config)
    tiles = workspace.tiles(config.seed)
    with pytest.raises(DataError, match="no labelled training tile belongs to a known patient"):
        own_report_labels(config, workspace, replace(tiles, labels=np.full_like(tiles.labels, -1)))


def test_one_label_cannot_be_shuffled() -> None:
    with pytest.raises(DataError, match="fewer than two patients have a label from a report"):
        shuffle_case_labels(CaseLabels(np.eye(2, dtype=np.float32), np.array([True, False]), {}), ["a", "a"], seed=0)


def test_tiles_are_weighted_by_the_probability_of_the_tissue(own: Own, tmp_path: Path) -> None:
    prompts = {"name": "tissue", "version": 1, "templates": ["{}."], "classes": {"yes": ["tumour"], "no": ["mucin"]}}
    (tmp_path / "tissue.yaml").write_text(yaml.safe_dump(prompts), encoding="utf-8")
    keys = {
        "own_report.tiles": "tissue",
        "own_report.tissue_prompts": str(tmp_path / "tissue.yaml"),
        "own_report.tissue_classes": ["yes"],
    }
    found, plain = labels_of(own("label", **keys)), labels_of(own("label"))
    known = plain.weights > 0
    assert ((found.weights[known] > 0) & (found.weights[known] < 1)).all() and not found.weights[~known].any()
    keys["own_report.tissue_classes"] = ["maybe"]
    with pytest.raises(ConfigError, match=r"(?s)not in the prompt set: maybe.*no, yes"):
        labels_of(own("label", **keys))


def test_at_least_one_tile_carries_the_label(own: Own) -> None:
    keys = {"own_report.tiles": "at_least_one", "own_report.background": "gland"}
    found, plain = labels_of(own("label", **keys)), labels_of(own("label"))
    patient = np.arange(72) // 4
    for g in np.unique(patient[plain.weights > 0]).tolist():
        classes = set(found.classes[patient == g].tolist())
        assert g % 3 in classes and classes <= {g % 3, 0}
    with pytest.raises(ConfigError, match="the background class 'fat' is not a class"):
        labels_of(own("label", **{**keys, "own_report.background": "fat"}))


def test_reports_of_validation_and_test_patients_change_nothing(own: Own, tmp_path: Path) -> None:
    """Byte by byte: other texts, labels, dates and ids of these reports leave the classifier as it is."""

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
        config = own(labels, name=labels, **keys)
        folder = train_run(config)
        before = {path.name: path.read_bytes() for path in (folder / "classifier").iterdir() if path.is_file()}
        changed = write_reports(tmp_path / "changed.jsonl", other)
        again = config.model_copy(update={"reports": config.reports.model_copy(update={"path": str(changed)})})  # type: ignore[union-attr]
        assert train_run(again) == folder, "the same run: nothing that it depends on has changed"
        assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["inputs"]["own reports"]
        fresh = train_run(again.model_copy(update={"output": tmp_path / "fresh"}))
        assert before["model.safetensors"] == (fresh / "classifier" / "model.safetensors").read_bytes()
        text = (folder / "summary.md").read_text(encoding="utf-8")
        assert "The patients' own reports" in text and "15 of 18 training patients have a report of their own" in text


def test_snippets_come_from_no_report_of_a_later_patient(own: Own, tmp_path: Path) -> None:
    def other(split: str, row: dict[str, Any]) -> None:
        if split in ("validation", "test"):
            row |= {"id": f"other {row['id']}", "text": "Quite another text, tumour.", "finding": "tumour"}

    changed = write_reports(tmp_path / "changed.jsonl", other)
    for labels in ("snippet", "bags"):
        inputs = Workspace(own(labels)).snippet_inputs()
        assert inputs == Workspace(own(labels, **{"reports.path": str(changed)})).snippet_inputs()


def test_a_run_without_any_tile_label(own: Own, tmp_path: Path) -> None:
    keys = {"tiles.labels.kind": "none", "tiles.classes": list(CLASSES), "training.monitor": "information"}
    folder = train_run(own("rules", name="none", **keys, **{"training.steps": 2, "output": str(tmp_path / "out")}))
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
def test_keys_that_are_missing(own: Own, labels: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_keys(own(labels, **keys))


def test_labels_that_are_no_classes(own: Own, tmp_path: Path) -> None:
    strange = write_reports(tmp_path / "strange.jsonl", lambda split, row: row.update(finding="grade 2"))
    with pytest.raises(DataError, match=r"(?s)no report label is a class: the labels are grade 2.*class_map"):
        labels_of(own("label", **{"reports.path": str(strange)}))
    with pytest.raises(ConfigError, match="class_map names classes that the tiles lack: fat"):
        labels_of(own("label", **{"own_report.class_map": {"gland": "fat"}}))
    silent = write_reports(tmp_path / "silent.jsonl", lambda split, row: row.update(text="Nothing."))
    with pytest.raises(DataError, match=r"no report yields a label: none 15"):
        labels_of(own("rules", **{"reports.path": str(silent)}))
    rules = {"name": "wrong", "classes": {"fat": ["fat"]}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    with pytest.raises(DataError, match="the rules name classes that the tiles lack: fat"):
        labels_of(own("rules", **{"own_report.rules": str(tmp_path / "wrong.yaml")}))
