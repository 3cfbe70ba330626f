"""Model cards of runs: they contain results but nothing private, and are not covered by the checksums."""

import os
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny_models import MakeConfig

import clipit
from clipit.models.classifier_spec import read_spec, verify_files
from clipit.reporting.model_card import CardArm, CardComparison
from clipit.runs.card import record_comparison
from clipit.runs.evaluate import evaluate_run
from clipit.runs.folder import read_results
from clipit.runs.train import train_run
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
HOSTILE = "patient Jane Roe, /home/roe/secret.svs: carcinoma"


def test_a_run_writes_a_card_with_its_results_and_nothing_private(configure: MakeConfig, tmp_path: Path) -> None:
    keys = {"training.steps": 2, "evaluation.bootstrap": 20, "output": tmp_path / "out"}
    config = configure(keys, name="patient-17", note=HOSTILE, arm="clip_it_all")
    workspace = Workspace(config)
    mask = os.umask(0o027)
    try:
        folder = train_run(config, workspace)
    finally:
        os.umask(mask)
    card = folder / "classifier" / "README.md"
    text = card.read_text(encoding="utf-8")
    files = [path for path in card.parent.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}

    tiles = workspace.all_tiles
    private = [*tiles.ids.tolist(), *tiles.groups.tolist(), *workspace.snippet_texts().values()]
    private += [report.report_id for report in workspace.reports.reports if len(report.report_id) > 2]
    private += ["Roe", "carcinoma", "patient-17", "/home", str(tmp_path), str(config.tiles.path), ".csv", ".jsonl"]
    leaked = [item for item in private if item in text]
    assert not leaked

    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("timm", "image-classification", "other")
    results = read_results(folder)
    test = results["splits"]["test"]["metrics"]["accuracy"]
    assert {entry.metric_value for entry in data.eval_results if entry.metric_type == "accuracy"} == {
        round(test["value"], 4)
    }
    assert f"{test['value']:.3f} [{test['low']:.3f}, {test['high']:.3f}]" in text
    assert "72 tiles, 12 labels used" in text and "Arm: clip\\_it\\_all, seed 0" in text
    assert re.search(r"- Text: [\d,]+ snippets from 60 reports", text)
    assert "text targets in the teacher's joint space, for all tiles" in text and "research use only" in text
    assert read_spec(card.parent).provenance["vlms"] == ["local clip"] and "a local model" in text

    # A later comparison and evaluation rewrite the card; the folder is valid even without one.
    arm = CardArm("clip_it_all", "this classifier", 0.5, 0.125, (-0.25, 0.5))
    lines = [CardArm("image_only", "baseline", 0.375), arm, CardArm("<b>|x", "control", None)]
    record_comparison(folder, CardComparison("accuracy", 3, "image_only", lines, 4))
    changed = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"bootstrap": 30})})
    evaluate_run(resolve_arm(changed), workspace, folder)
    second = card.read_text(encoding="utf-8")
    assert "+0.125 [-0.250, +0.500]" in second and "4 other arms" in second and "<b>" not in second
    assert second != text
    verify_files(card.parent, read_spec(card.parent))
    forward = clipit.load_classifier(card.parent, "cpu").forward
    card.unlink()
    assert clipit.load_classifier(card.parent, "cpu").forward is not forward
