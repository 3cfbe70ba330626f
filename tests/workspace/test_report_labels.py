"""Labels of a corpus of reports: counts, comparisons, dropped reports, samples and written files."""

import csv
import json
import os
import re
import runpy
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from markupsafe import escape
from PIL import Image

import clipit
from clipit.config.command_line import read_reports_command
from clipit.config.load import nested
from clipit.config.run import ReportsConfig, RunConfig
from clipit.errors import ConfigError, DataError
from clipit.evaluation.report_agreement import measure_agreement
from clipit.reports.readers import read_reports
from clipit.reports.rule_set import load_rules
from clipit.reports.rules import label_report
from clipit.training.arms import resolve_arm
from clipit.training.terms.own_reports import own_report_labels
from clipit.workspace.report_label_files import sample_reports, write_report_labels
from clipit.workspace.report_labels import CorpusLabels, label_corpus, measure_labels
from clipit.workspace.workspace import Workspace

SCRIPT = Path(__file__).parents[2] / "scripts" / "report_labels.py"
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"
TEXTS = {
    "unstable": "Adenocarcinoma. The tumour is MSI-H.",
    "negated": "Adenocarcinoma. The tumour is not MSI-H.",
    "stable": f"Adenocarcinoma {HOSTILE} of the colon is MSS.",
    "both": "First tumour MSS. Second tumour MSI-H.",
    "uncertain": "MSI-H cannot be excluded.",
    "silent": "Adenocarcinoma of the colon.",
}
TRUTH = {"unstable": "instable", "negated": "stable", "stable": "stable", "both": "stable", "uncertain": "instable"}
Write = Callable[..., Path]


@pytest.fixture
def write_files(tmp_path: Path) -> Write:
    """Return a function that writes 60 labelled reports and a configuration without tiles, with changed keys."""

    def write(**changes: Any) -> Path:
        with (tmp_path / "reports.jsonl").open("w", encoding="utf-8") as stream:
            for number in range(60):
                kind = list(TEXTS)[number % len(TEXTS)]
                row = {"id": f"r{number:02d}", "text": TEXTS[kind], "patient": f"p{number // 2}"}
                stream.write(json.dumps(row | {"msi": TRUTH.get(kind, "not done")}) + "\n")
        values = {
            "name": "msi",
            "output": str(tmp_path / "out"),
            "reports.path": str(tmp_path / "reports.jsonl"),
            "reports.id_column": "id",
            "reports.group_column": "patient",
            "reports.label_column": "msi",
            "own_report.rules": "msi",
            "own_report.class_map": {"instable": "MSI-H", "stable": "MSS"},
        } | {key.replace("__", "."): value for key, value in changes.items()}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(nested({k: v for k, v in values.items() if v is not None})), encoding="utf-8")
        return path

    return write


def label(path: Path, **options: Any) -> CorpusLabels:
    config, tiles, _ = read_reports_command("", ["--config", str(path)])
    return label_corpus(config, tiles=tiles, **options)


def test_classes_from_rules_are_counted_and_compared_with_the_labels(write_files: Write) -> None:
    labels = label(write_files())
    assert [label.class_name for label in labels.by_rules[:6]] == ["MSI-H", "MSS", "MSS", "both", "none", "none"]
    assert [label.uncertain_only for label in labels.by_rules[:6]] == [False] * 4 + [True, False]
    assert any("10 reports with labels that are not among the classes (not done: 10)" in note for note in labels.notes)
    rules, text = measure_labels(labels)
    assert rules.predictions == ("MSI-H", "MSS", "both", "none")
    assert rules.counts.tolist() == [[10, 0, 0, 10], [0, 20, 10, 0]]
    assert rules.scores["accuracy"] == pytest.approx(0.6)
    assert rules.scores["covered_accuracy"] == 1
    assert text.scores["accuracy"] == 1  # each text has a single label
    assert text.groups == rules.groups == 30


def test_the_configuration_needs_reports_and_rules_or_labels_but_no_tiles(write_files: Write) -> None:
    config, tiles, _ = read_reports_command("", ["--config", str(write_files())])
    assert not tiles
    with pytest.raises(ConfigError, match="needs rules, report labels or"):
        label(write_files(**{"own_report__rules": None, "reports__label_column": None}))
    with pytest.raises(ConfigError, match="needs reports"):
        label_corpus(config.model_copy(update={"reports": None}), tiles=False)
    with pytest.raises(ConfigError, match=r"unknown key 'reports\.paht'"):
        read_reports_command("", ["--config", str(write_files(reports__paht="x"))])


def test_without_rules_only_the_classifier_is_compared(write_files: Write) -> None:
    labels = label(write_files(own_report__rules=None))
    assert labels.classes == ("MSI-H", "MSS")
    assert labels.by_rules == ()
    assert [agreement.title for agreement in measure_labels(labels)] == ["Text classifier and the reports' own labels"]


def test_without_labels_only_the_rules_are_shown(write_files: Write) -> None:
    labels = label(write_files(reports__label_column=None))
    assert len(labels.by_rules) == 60
    assert labels.probabilities is None
    assert measure_labels(labels) == []


def test_report_labels_without_any_class_are_refused(write_files: Write) -> None:
    with pytest.raises(DataError, match="labels: instable, not done, stable; classes: MSI-H, MSS"):
        label(write_files(own_report__class_map=None))


def test_a_classifier_that_cannot_be_fitted_is_noted(write_files: Write) -> None:
    labels = label(write_files(own_report__class_map={"stable": "MSS"}))
    assert labels.probabilities is None
    assert any(note.startswith("text classifier not fitted: a text classifier needs") for note in labels.notes)


def test_unused_classes_and_ambiguous_phrases_are_noted(write_files: Write, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "name: x\nclasses: {high: [MSI-H], any: ['/MSI-H|MSI-L/'], low: [MSI-L], never: [zebra]}\n", encoding="utf-8"
    )
    labels = label(write_files(own_report__rules=str(rules), reports__label_column=None))
    assert [note for note in labels.notes if "matches phrases" in note] == [
        "'MSI-H' matches phrases of several classes (any, high), so reports with this text get the class 'both'"
    ]
    assert "the rules assign the class never to no report" in labels.notes


def test_reports_of_patients_with_test_tiles_are_dropped(write_files: Write, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{split}.png")
    table = tmp_path / "tiles.csv"
    table.write_text(
        "path,label,split,group\ntrain.png,a,train,p4\nvalidation.png,a,validation,other\ntest.png,a,test,p3\n",
        encoding="utf-8",
    )
    tiles = {"source": "table", "path": str(table)}
    config, has_tiles, _ = read_reports_command("", ["--config", str(write_files(tiles=tiles))])
    labels = label_corpus(config, tiles=has_tiles, classifier=False)
    assert len(labels.reports) == 58
    assert "p3" not in labels.patients.tolist()
    assert "p4" in labels.patients.tolist()
    assert "dropped 2 reports of patients with validation or test tiles" in labels.notes
    facts = facts_of(write_report_labels(config, labels))
    assert facts["training patients with a report"] == "1 of 1 (2 reports; 1 patient has several)"
    assert facts["reports of patients with validation or test tiles"] == "2 (dropped, not counted above)"
    assert facts["reports of patients without tiles"] == 56

    table.write_text(table.read_text(encoding="utf-8").replace(",p", ",P-"), encoding="utf-8")
    labels = label_corpus(config, tiles=has_tiles, classifier=False)
    (problem,) = [note for note in labels.notes if note.startswith("the patients' own reports cannot be used")]
    assert "no training patient has a report; the tile groups are P-4, the report groups p0, p1" in problem
    page = write_report_labels(config, labels)
    assert facts_of(page)["training patients with a report"] == "none (see the remarks)"
    assert str(escape(problem)) in page.read_text(encoding="utf-8")


def facts_of(page: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["facts"]
    return facts


def test_the_classifier_can_use_vlm_embeddings_if_there_are_tiles(
    write_files: Write, configure: Callable[..., RunConfig]
) -> None:
    embeddings = {"own_report.features": "vlm", "own_report.rules": None}
    labels = label_corpus(configure(**embeddings), tiles=True)
    assert labels.probabilities is not None
    assert labels.probabilities.shape == (60, 3)
    (agreement,) = measure_labels(labels)
    assert "mean VLM embedding" in agreement.note
    with pytest.raises(ConfigError, match="need a configuration with tiles"):
        label(write_files(own_report__features="vlm"))


def test_the_sample_contains_every_class_and_depends_on_the_seed(write_files: Write) -> None:
    labels = label(write_files(), classifier=False)
    sample = sample_reports(labels, 3, seed=0)
    names = ["uncertain" if s.label.uncertain_only else s.label.class_name for s in sample]
    assert names == [name for name in ("MSI-H", "MSS", "both", "uncertain", "none") for _ in range(3)]
    ids = [s.report_id for s in sample]
    assert ids == [s.report_id for s in sample_reports(labels, 3, seed=0)]
    assert ids != [s.report_id for s in sample_reports(labels, 3, seed=1)]


def test_reports_without_a_match_are_shown_with_the_sections_that_the_rules_read(
    write_files: Write, tmp_path: Path
) -> None:
    """Otherwise the page would not show a missed statement at the end of a long report."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("name: r\nsections: [diagnosis]\nclasses: {MSI-H: [MSI-H], MSS: [MSS]}\n", encoding="utf-8")
    path = write_files(own_report__rules=str(rules))
    text = f"GROSS DESCRIPTION:\n{'A grey nodule is seen. ' * 50}\n\nFINAL DIAGNOSIS:\nMismatch repair is deficient."
    rows = [{"id": "a", "text": text, "patient": "P1"}, {"id": "b", "text": "GROSS DESCRIPTION:\nGrey.", "patient": ""}]
    rows.append({"id": "c-P2", "text": "FINAL DIAGNOSIS:\nMSS.", "patient": "P2", "msi": "stable"})
    (tmp_path / "reports.jsonl").write_text(
        "".join(json.dumps({"msi": ""} | row) + "\n" for row in rows), encoding="utf-8"
    )
    config, tiles, _ = read_reports_command("", ["--config", str(path)])
    labels = label_corpus(config, tiles=tiles, classifier=False)
    mss, a, b = sample_reports(labels, 3, seed=0)
    assert (mss.report_id, a.report_id, b.report_id) == ("c-P2", "a", "b")
    assert "Mismatch repair is deficient." in a.text and "nodule" not in a.text and b.text == ""
    assert [sample.facts.get("patient") for sample in (mss, a, b)] == [None, "P1", None], (
        "the id c-P2 already names the patient"
    )
    page = write_report_labels(config, labels).read_text(encoding="utf-8")
    assert "Mismatch repair is deficient." in page and "no text in the sections that are read" in page


def test_written_files_highlight_matches_and_escape_markup_of_reports(
    write_files: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["report_labels.py", "--config", str(write_files()), "--per-answer", "2"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    folder = tmp_path / "out" / "report_labels" / "msi"
    printed = capsys.readouterr().out
    assert str(folder / "report_labels.html") in printed and "60 reports" in printed
    assert re.search(r"\| MSS +\| +20 \|", printed) and re.search(r"\| both +\| +10 \|", printed)
    text = (folder / "report_labels.html").read_text(encoding="utf-8")
    assert "<mark>MSI-H</mark> <strong>[MSI-H, negated]</strong>" in text
    assert "<mark>MSI-H</mark> <strong>[MSI-H, uncertain]</strong>" in text
    assert "no phrase found in the text that the rules read" in text
    assert "rules: none, uncertain mentions only" in text
    assert "<img" not in text
    assert "Content-Security-Policy" in text
    values = json.loads((folder / "report_labels.json").read_text(encoding="utf-8"))
    assert values["rule_classes"] == {
        "MSI-H": 10,
        "MSS": 20,
        "both": 10,
        "none, uncertain mentions only": 10,
        "none, no mention that counts": 10,
    }
    assert [agreement["reports"] for agreement in values["agreements"]] == [50, 50]
    (mention,) = values["reports"][1]["mentions"]
    assert mention["sentence"][mention["start"] : mention["end"]] == "MSI-H"
    with (folder / "report_labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["report_id"] for row in rows] == [f"r{number:02d}" for number in range(60)]
    assert rows[1]["mentions"] == "MSI-H, negated, unknown: MSI-H"
    assert (rows[1]["rule_class"], rows[1]["label"], rows[1]["text_class"]) == ("MSS", "MSS", "MSS")
    assert (rows[5]["rule_class"], rows[5]["label"], rows[5]["mentions"]) == ("none", "", "")


@pytest.fixture
def labelled_tiles(tmp_path: Path) -> dict[str, Any]:
    """Write three tiles per patient of the reports, two of which have the patient's majority label."""
    lines = ["path,label,split,group"]
    for patient in range(30):
        for number in range(3):
            shade = patient * 4 + number
            Image.new("RGB", (8, 8), (shade, 0, shade)).save(tmp_path / f"{patient}-{number}.png")
            label = ("MSS", "MSI-H")[(patient % 3 == 0) == (number < 2)]
            split = {28: "validation", 29: "test"}.get(patient, "train")
            lines.append(f"{patient}-{number}.png,{label},{split},p{patient}")
    (tmp_path / "tiles.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"source": "table", "path": str(tmp_path / "tiles.csv")}


def test_classes_are_compared_with_the_labelled_tiles_of_the_patient(
    write_files: Write, labelled_tiles: dict[str, Any]
) -> None:
    path = write_files(tiles=labelled_tiles)
    config, tiles, _ = read_reports_command("", ["--config", str(path)])
    labels = label_corpus(config, tiles=tiles, classifier=False)
    # Reports 2 p and 2 p + 1 belong to patient p, and most tiles of every third patient are MSI-H.
    expected = [int(number // 2 % 3 != 0) for number in range(56)]
    assert labels.tile_labels.tolist() == expected
    with_labels, with_tiles = measure_labels(labels)
    assert with_labels.title == "Rules and the reports' own labels" and with_tiles.title == "Rules and the tile labels"
    predictions = [label.class_name for label in labels.by_rules]
    right = np.mean([name == labels.classes[k] for name, k in zip(predictions, expected, strict=True)])
    assert with_tiles.scores["accuracy"] == pytest.approx(right)
    leftover = config.output / "report_labels" / config.name / ".report_labels.csv.99999999.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    page = write_report_labels(config, labels)
    assert not leftover.exists(), "leftovers of a killed process are deleted"
    assert "Rules and the tile labels</h2>" in page.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot draw -1 reports"):
        write_report_labels(config, labels, per_answer=-1)


def test_without_rules_and_report_labels_the_classifier_is_fitted_to_tile_labels(
    write_files: Write, labelled_tiles: dict[str, Any]
) -> None:
    no_sources = {"reports.label_column": None, "own_report.rules": None}
    labels = label(write_files(tiles=labelled_tiles, **no_sources, **{"own_report.class_map": None}))
    assert labels.classes == ("MSI-H", "MSS") and not labels.by_rules and labels.probabilities is not None
    (agreement,) = measure_labels(labels)
    assert agreement.title == "Text classifier and the tile labels" and "fitted on these labels" in agreement.note


DATA = Path(os.environ.get("CLIPIT_TEST_DATA", "absent")) / "reports"
REPORTS, WORKBOOK = DATA / "tcga_prad_reports_denoised.zip", DATA / "tcga_prad_gleason_labels.xlsx"
COLON = DATA / "tcga_colon_reports_clipit.txt"


@pytest.mark.skipif(not WORKBOOK.is_file(), reason="CLIPIT_TEST_DATA is not set")
def test_the_gleason_rules_agree_with_the_published_grades(tmp_path: Path) -> None:
    table = tmp_path / "grades.csv"
    write_grade_groups(WORKBOOK, table)
    values = {
        "output": str(tmp_path),
        "reports.path": str(REPORTS),
        "reports.format": "tcga",
        "reports.metadata": str(table),
        "reports.label_column": "grade_group",
        "own_report.rules": "gleason",
        "own_report.class_map": {str(n): f"grade group {n}" for n in range(1, 6)},
    }
    (tmp_path / "prostate.yaml").write_text(yaml.safe_dump(nested(values)), encoding="utf-8")
    labels = label(tmp_path / "prostate.yaml", classifier=False)
    # The rules were developed on the other half of the patients.
    held_out = sorted(set(labels.patients[labels.own >= 0].tolist()))[1::2]
    held_out_labels = np.where(np.isin(labels.patients, held_out), labels.own, -1)
    predictions = [label.class_name for label in labels.by_rules]
    agreement = measure_agreement("held out", held_out_labels, predictions, labels.classes, labels.patients)
    assert agreement.counts.sum() == 198
    assert (agreement.scores["macro_f1"] or 0) > 0.88
    assert (agreement.scores["covered_accuracy"] or 0) > 0.97
    assert (agreement.scores["coverage"] or 0) > 0.8


@pytest.mark.skipif(not REPORTS.is_file(), reason="CLIPIT_TEST_DATA is not set")
def test_the_recipe_for_tcga_joins_tiles_and_real_reports_by_barcode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(REPORTS) as archive:
        names = sorted({Path(name).name[:12] for name in archive.namelist() if Path(name).name.startswith("TCGA-")})
    patients = [
        (name, split)
        for name, split in zip(names[:80], ["train"] * 48 + ["validation"] * 12 + ["test"] * 20, strict=True)
    ]
    (tmp_path / "tiles").mkdir()
    rows = ["path,label,split,group"]
    for patient, split in patients:
        Image.new("RGB", (8, 8), (200, 100, len(rows))).save(tmp_path / "tiles" / f"{patient}.png")
        rows.append(f"{patient}.png,{'' if split == 'train' else 'grade group 1'},{split},{patient}-01Z-00-DX1")
    (tmp_path / "tiles.csv").write_text("\n".join(rows), encoding="utf-8")
    config = clipit.load_config(
        "own_reports_tcga",
        {
            "output": str(tmp_path),
            "tiles.path": str(tmp_path / "tiles.csv"),
            "tiles.images": str(tmp_path / "tiles"),
            "tiles.classes": [f"grade group {n}" for n in range(1, 6)],
            "tiles.labels": {"kind": "all"},
            "reports.path": str(REPORTS),
            "reports.cancer_types": str(DATA / "tcga_patient_to_cancer_type.csv"),
            "reports.organs": ["prostate"],
            "own_report.rules": "gleason",
            "vlm.name": "embedded",
        },
    )
    run = resolve_arm(config.run.model_copy(update={"arm": "own_rules"}))
    workspace = Workspace(run)
    labels = own_report_labels(run, workspace, workspace.tiles(0))
    cases = labels.facts["cases"]
    assert (cases["cases_with_report"], cases["later_splits"], cases["external"]) == (48, 32, 324)
    assert 36 <= labels.facts["labelled_cases"] == labels.facts["unlabelled_tiles"] <= 46, (
        "some reports state several grades"
    )


@pytest.mark.skipif(not COLON.is_file(), reason="CLIPIT_TEST_DATA is not set")
def test_few_real_colon_reports_state_a_microsatellite_status() -> None:
    reports = read_reports(ReportsConfig(path=str(COLON))).reports
    rules = load_rules("msi")
    predictions = [label_report(report.text, rules).class_name for report in reports]
    assert len(predictions) == 376 and sum(name in ("MSI-H", "MSS") for name in predictions) == 9


def write_grade_groups(workbook: Path, table: Path) -> None:
    """Write the ISUP grade group of each patient with the code in docs/results_own_reports.md."""
    recipe = (Path(__file__).parents[2] / "docs" / "results_own_reports.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", recipe, flags=re.DOTALL) if "grades.csv" in block)
    code = code.replace('"tcga_prad_gleason_labels.xlsx"', repr(str(workbook))).replace(
        '"grades.csv"', repr(str(table))
    )
    exec(compile(code, "docs/results_own_reports.md", "exec"), {})
