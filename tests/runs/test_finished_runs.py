"""Finished runs that are started again, evaluated again, or whose folders have changed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from logged_lines import capture_log

import clipit.runs.train as run_module
from clipit.api.runs import RunResult
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ClipitError, ModelError
from clipit.evaluation.predictions import read_run_predictions
from clipit.models.inference import load_classifier
from clipit.output_files.artifacts import fingerprint, write_json, write_record
from clipit.output_files.run_files import write_run_json
from clipit.reporting.model_card import CardComparison
from clipit.reporting.training_curves import read_curves
from clipit.runs.card import _read_compared, record_comparison
from clipit.runs.evaluate import evaluate_again
from clipit.runs.feature_stores import backbone_stores
from clipit.runs.folder import read_results, read_run_config, read_training, run_folder
from clipit.runs.page import write_pages
from clipit.runs.predict_tiles import open_classifier
from clipit.runs.train import train_run
from clipit.runs.training_tiles import _read_record
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    """Workspace shared by the tests of this module, and the folder of a finished run that they copy."""
    return {}


@pytest.fixture
def finished(
    configure: MakeConfig, shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunConfig, Callable[[RunConfig], list[str]]]:
    """Configuration with a copy of a finished run, and a function that starts it again and returns the log lines."""
    whole, config = (configure({"training.steps": 2}, name=name) for name in ("whole", f"f{abs(hash(tmp_path))}"))

    def rerun(requested: RunConfig) -> list[str]:
        lines = capture_log()
        workspace = shared.setdefault("workspace", Workspace(requested))
        train_run(requested, workspace)
        return lines

    if "folder" not in shared:
        rerun(whole)
        shared["folder"] = run_folder(whole)
    shutil.copytree(shared["folder"], run_folder(config))
    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("the run was trained again"))
    return config, rerun


Finished = tuple[RunConfig, Callable[[RunConfig], list[str]]]


def test_missing_weights_are_an_error_and_a_missing_classifier_is_retrained(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rerun = finished
    folder = run_folder(config)
    weights = (folder / "classifier" / "model.safetensors").read_bytes()
    (folder / "classifier" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)incomplete.*model\.safetensors.*delete this folder"):
        rerun(config)
    shutil.rmtree(folder / "classifier")
    monkeypatch.undo()
    assert any("no classifier, so the run is trained again" in line for line in rerun(config))
    assert (folder / "classifier" / "model.safetensors").read_bytes() == weights


def test_keys_without_effect_recorded_by_earlier_versions_are_ignored(
    configure: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"training.steps": 2, "output": str(tmp_path)}, arm="image_only")
    folder = train_run(config)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert not [key for key in record["keys"] if key.startswith("vlm.")]
    facts, results = read_training(folder), read_results(folder)

    def rewrite(**keys: Any) -> None:
        values = record | {"keys": record["keys"] | keys}
        values["fingerprint"] = fingerprint([values["keys"], values["inputs"]])
        write_json(folder / "run.json", values)
        write_run_json(folder / "training.json", facts, folder)
        write_run_json(folder / "results.json", results, folder)

    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("the run was trained again"))
    rewrite(**{"vlm.name": "another", "vlm.precision": "bf16", "soft_labels.own_report.labels": "label"})
    written = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    written["soft_labels"]["own_report"] = written.pop("own_report") | {"several": "latest"}
    (folder / "config.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    assert train_run(config) == folder
    assert read_run_config(folder).own_report.several == "latest"
    rewrite(**{"vlm.name": "another", "training.steps": 3})
    with pytest.raises(ArtifactError, match=r"training\.steps") as refusal:
        train_run(config)
    assert "vlm.name" not in str(refusal.value)


@pytest.mark.parametrize("name", ["model.safetensors", "zero_shot.safetensors", "clipit.json"])
def test_a_damaged_classifier_is_not_evaluated(finished: Finished, name: str) -> None:
    config, _ = finished
    folder = run_folder(config)
    path = folder / "classifier" / name
    content, before = path.read_bytes(), (folder / "results.json").read_bytes()
    path.write_bytes(content[:-90] + bytes([content[-90] ^ 1]) + content[-89:])
    with pytest.raises(ClipitError, match=r"damaged|changed after the export|unreadable"):
        evaluate_again(config, Workspace(config))
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("change", ["missing", "truncated", "rows dropped", "labels shifted"])
def test_missing_or_changed_predictions_are_recomputed(finished: Finished, change: str) -> None:
    config, rerun = finished
    path = run_folder(config) / "predictions.parquet"
    content, table = path.read_bytes(), pq.read_table(path)
    path.unlink()
    if change == "truncated":
        path.write_bytes(content[:100])
    elif change == "rows dropped":
        pq.write_table(table.slice(1), path)
    elif change == "labels shifted":
        labels = np.roll(table.column("label").to_numpy(), 1)
        pq.write_table(table.set_column(2, "label", pa.array(labels)), path)
    note = "lacks the predictions.parquet that its scores were computed from, so the run is re-evaluated"
    assert any(note in line for line in rerun(config))
    assert path.read_bytes() == content
    assert not [line for line in rerun(config) if "again" in line]


def test_changed_evaluation_keys_trigger_a_new_evaluation(finished: Finished) -> None:
    config, rerun = finished
    other = config.evaluation.model_copy(update={"splits": ("train", "test"), "batch_size": 7})
    changed = config.model_copy(update={"evaluation": other})
    assert any("keys of `evaluation`" in line for line in rerun(changed))
    assert set(read_results(run_folder(config))["splits"]) == {"train", "test"}
    assert not [line for line in rerun(changed) if "again" in line]


def test_pages_of_an_earlier_evaluation_are_deleted(finished: Finished) -> None:
    config, rerun = finished
    folder = run_folder(config)
    pages = {"report.html", "curves.png", "confusion_test.png", "reliability_test.png"}
    assert pages < {path.name for path in folder.iterdir()}
    other = config.evaluation.model_copy(update={"splits": ("test",), "page": False})
    changed = config.model_copy(update={"evaluation": other})
    rerun(changed)
    assert not [*folder.glob("*.png"), *folder.glob("*.html")]
    assert "confusion_test.png" not in (folder / "summary.md").read_text(encoding="utf-8")
    evaluate_again(changed, Workspace(changed))
    assert pages < {path.name for path in folder.iterdir()}, "evaluate_again always writes the page"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_results_are_an_error(finished: Finished, content: str) -> None:
    config, rerun = finished
    path = run_folder(config) / "results.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"(?s)results\.json.*delete this file"):
        rerun(config)
    path.unlink()
    rerun(config)
    assert read_results(path.parent)["splits"]


def test_damaged_training_facts_are_an_error(finished: Finished) -> None:
    config, rerun = finished
    folder = run_folder(config)
    (folder / "training.json").write_text("{")
    (folder / "results.json").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)training\.json.*delete this file and the folder .*classifier"):
        rerun(config)
    with pytest.raises(ArtifactError, match=r"training\.json"):
        read_training(folder)


def test_a_classifier_of_another_run_is_an_error(finished: Finished) -> None:
    config, _ = finished
    folder = run_folder(config)
    open_classifier(config, folder)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps(record | {"fingerprint": "f" * 16}), encoding="utf-8")
    for load in (lambda: open_classifier(config, folder), lambda: load_classifier(folder, "cpu")):
        with pytest.raises(ArtifactError, match=r"(?s)belongs to a different run.*classifier.*restored from the last"):
            load()
    load_classifier(shutil.copytree(folder / "classifier", folder.with_name("copy") / "classifier"), "cpu")


@pytest.mark.parametrize("content", ["{", "[]", '{"commit": ""}'])
def test_a_damaged_run_record_is_an_error(finished: Finished, content: str) -> None:
    config, rerun = finished
    (run_folder(config) / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"(?s)run.*--name .*or delete the"):
        rerun(config)


@pytest.mark.parametrize("content", ["{", '{"commit": ""}'])
def test_fix_for_a_damaged_run_record(finished: Finished, content: str) -> None:
    folder = run_folder(finished[0])
    (folder / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match=rf"(?s)run\.json.*or delete the folder {folder} and run clipit train"):
        read_training(folder)


@pytest.mark.parametrize("remaining", ["classifier", "results.json", "checkpoints"])
def test_a_folder_without_a_run_record_is_not_reused(finished: Finished, remaining: str) -> None:
    config, rerun = finished
    folder = run_folder(config)
    for path in folder.iterdir():
        if path.name != remaining:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=r"(?s)run\.json is missing.*--name"):
        rerun(config)


def test_temporary_files_of_killed_processes_are_deleted(finished: Finished) -> None:
    config, rerun = finished
    folder = run_folder(config)
    for name in (".config.yaml.1.tmp", "checkpoints/.best-00000002.safetensors.77.tmp", "checkpoints/.tmpWAkYZw"):
        (folder / name).write_text("half")
    written_now = folder / f".predictions_shifted-0123.parquet.{os.getpid()}.tmp"
    written_now.write_text("half")
    half_deleted = folder / "checkpoints" / "step-00000001"
    half_deleted.mkdir()
    (half_deleted / "weights.safetensors").write_text("old")
    rerun(config)
    assert list(folder.rglob(".*tmp*")) == [written_now] and not half_deleted.exists()
    (folder / ".summary.md.1.tmp").write_text("half")
    evaluate_again(config, Workspace(config))
    assert list(folder.rglob(".*tmp*")) == [written_now]
    assert json.loads((folder / "run.json").read_text())["fingerprint"]


def test_a_read_only_finished_run_is_read(
    finished: Finished, shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rerun = finished
    folder, workspace = run_folder(config), shared["workspace"]
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    results = read_results(folder)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    monkeypatch.setattr("clipit.output_files.artifacts.FileLock", lambda *_: pytest.fail("a lock file was written"))
    assert any("is read-only; its existing results are used" in line for line in rerun(config))
    resolved = resolve_arm(config)
    assert evaluate_again(resolved, workspace) == (folder, results)
    assert write_pages(resolved, workspace) == [folder / "report.html"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    other = config.evaluation.model_copy(update={"splits": ("train",)})
    with pytest.raises(ArtifactError, match=r"lacks results for these keys .* its folder is read-only"):
        evaluate_again(resolved.model_copy(update={"evaluation": other}), workspace)


@pytest.mark.parametrize("content", ['{"splits": []}', '{"splits": {"test": 1}, "provenance": {}}', "[" * 100_000])
def test_results_of_an_unexpected_form_are_an_error(finished: Finished, content: str) -> None:
    config, _ = finished
    path = run_folder(config) / "results.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"(?s)results\.json.*delete this file"):
        read_results(path.parent)


@pytest.mark.parametrize("content", ['{"score": "high"}', '{"score": 0.5, "sections": []}', "{}", "[]"])
def test_training_facts_of_an_unexpected_form_are_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"training\.json"):
        read_training(tmp_path, "score")


def test_dropped_images_are_logged_once(configure: MakeConfig, tmp_path: Path) -> None:
    source = Path(configure().tiles.path)
    shutil.copytree(source.parent / "images", tmp_path / "images")
    shutil.copy(source, tmp_path / "tiles.csv")
    (tmp_path / "images" / "test-003.png").write_bytes(b"nothing")
    keys = {"tiles.path": str(tmp_path / "tiles.csv"), "tiles.unreadable": "quarantine", "leaks.policy": "off"}
    lines = capture_log()
    workspace = Workspace(configure(keys))
    assert len(workspace.tiles(0)) == len(workspace.tiles(1)) == 119
    assert sum("dropped 1 of 120 images (cannot be decoded): images/test-003.png" in text for text in lines) == 1


@pytest.mark.parametrize("name", ["results.json", "training.json"])
def test_changed_values_are_an_error(finished: Finished, name: str) -> None:
    config, _ = finished
    path = run_folder(config) / name
    values = json.loads(path.read_text())
    change = {"steps": 3} if name == "training.json" else {"splits": values["splits"] | {"test": {"metrics": {}}}}
    path.write_text(json.dumps(values | change))
    with pytest.raises(ArtifactError, match=rf"(?s)changed since it was written.*{name}"):
        write_pages(resolve_arm(config), Workspace(config))


def test_missing_rows_of_the_training_log_are_an_error(finished: Finished) -> None:
    folder = run_folder(finished[0])
    log, (first, *_) = folder / "metrics.jsonl", (folder / "metrics.jsonl").read_text().splitlines()
    rows = len(read_curves(log)["loss"][0])
    assert read_training(folder)["logged_rows"] >= rows > 1
    for content in ("", f"{first}\n"):
        log.write_text(content)
        with pytest.raises(ArtifactError, match=rf"training log has {len(content.splitlines())} rows?, but \d+ were"):
            read_curves(log)
        with pytest.raises(ArtifactError, match="the training log has"):
            _ = RunResult(folder).history


def test_changed_values_in_the_training_log_are_an_error(finished: Finished) -> None:
    log = run_folder(finished[0]) / "metrics.jsonl"
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([json.dumps(json.loads(first) | {"loss": 9.0}), *others, ""]))
    with pytest.raises(ArtifactError, match=r"(?s)training log has changed.*restore this file from a copy"):
        read_curves(log)


def test_a_run_with_a_random_backbone_is_evaluated_again(configure: MakeConfig) -> None:
    config = configure({"training.steps": 2, "backbone.pretrained": False}, name="random", arm="image_only", seed=3)
    workspace = Workspace(config)
    folder = train_run(config, workspace)
    assert evaluate_again(resolve_arm(config), workspace)[1]["provenance"]["seed"] == 3
    facts = backbone_stores(config, workspace).facts
    assert facts["fingerprint"] == read_training(folder)["backbone_fingerprint"]


def test_a_deleted_configuration_is_restored(finished: Finished) -> None:
    config, rerun = finished
    folder = run_folder(config)
    before = read_run_config(folder)
    (folder / "config.yaml").unlink()
    assert any("config.yaml was missing" in line for line in rerun(config))
    assert read_run_config(folder).model_dump(exclude={"name"}) == before.model_dump(exclude={"name"})


def test_a_classifier_without_its_description_is_an_error(finished: Finished) -> None:
    folder = run_folder(finished[0])
    (folder / "classifier" / "clipit.json").unlink()
    for path in (folder, folder / "classifier"):
        with pytest.raises(ModelError, match=r"(?s)clipit\.json is missing from this run's.*run clipit train"):
            load_classifier(path)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("training.json", read_training),
        ("results.json", read_results),
        ("results.json", read_run_predictions),
        ("metrics.jsonl", lambda folder: read_curves(folder / "metrics.jsonl")),
        ("training_tiles.parquet", _read_record),
        ("compared.json", _read_compared),
    ],
)
def test_files_of_another_run_are_an_error(finished: Finished, name: str, read: Callable[[Path], object]) -> None:
    config, _ = finished
    folder = run_folder(config)
    record_comparison(folder, CardComparison("accuracy", 1, "image_only", []))
    read(folder)
    mark = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(mark | {"fingerprint": "0123456789abcdef"}))
    facts = folder / "training.json"
    if name != facts.name:
        write_record(facts, {key: value for key, value in json.loads(facts.read_text()).items() if key in ("steps",)})
    with pytest.raises(ArtifactError, match=rf"(?s)belongs to a different run.*{name}"):
        read(folder)
