"""What becomes of finished runs whose folders were changed afterwards, or of which more is asked."""

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
def kept() -> dict[str, Any]:
    """Workspace that the tests of this module share, and the folder of a finished run that they copy."""
    return {}


@pytest.fixture
def finished(
    configure: MakeConfig, kept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunConfig, Callable[[RunConfig], list[str]]]:
    """A configuration with a copy of a finished run, and `again`: carry it out, and give what was said."""
    whole, config = (configure({"training.steps": 2}, name=name) for name in ("whole", f"f{abs(hash(tmp_path))}"))

    def again(asked: RunConfig) -> list[str]:
        said = capture_log()
        workspace = kept.setdefault("workspace", Workspace(asked))
        train_run(asked, workspace)
        return said

    if "folder" not in kept:
        again(whole)
        kept["folder"] = run_folder(whole)
    shutil.copytree(kept["folder"], run_folder(config))
    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("it was trained again"))
    return config, again


Finished = tuple[RunConfig, Callable[[RunConfig], list[str]]]


def test_lost_weights_of_the_classifier(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    config, again = finished
    folder = run_folder(config)
    weights = (folder / "classifier" / "model.safetensors").read_bytes()
    (folder / "classifier" / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)incomplete.*model\.safetensors.*delete this folder"):
        again(config)
    shutil.rmtree(folder / "classifier")
    monkeypatch.undo()
    assert any("no classifier, so the run is trained again" in line for line in again(config))
    assert (folder / "classifier" / "model.safetensors").read_bytes() == weights


def test_keys_without_effect_that_earlier_versions_recorded_do_not_matter(
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

    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("it was trained again"))
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


@pytest.mark.parametrize("change", ["lost", "truncated", "rows dropped", "labels shifted"])
def test_lost_or_changed_predictions_are_made_again(finished: Finished, change: str) -> None:
    config, again = finished
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
    assert any(note in line for line in again(config))
    assert path.read_bytes() == content
    assert not [line for line in again(config) if "again" in line]


def test_other_keys_of_evaluation_count(finished: Finished) -> None:
    config, again = finished
    other = config.evaluation.model_copy(update={"splits": ("train", "test"), "batch_size": 7})
    changed = config.model_copy(update={"evaluation": other})
    assert any("keys of `evaluation`" in line for line in again(changed))
    assert set(read_results(run_folder(config))["splits"]) == {"train", "test"}
    assert not [line for line in again(changed) if "again" in line]


def test_no_page_of_an_earlier_evaluation_is_left(finished: Finished) -> None:
    config, again = finished
    folder = run_folder(config)
    drawn = {"report.html", "curves.png", "confusion_test.png", "reliability_test.png"}
    assert drawn < {path.name for path in folder.iterdir()}
    other = config.evaluation.model_copy(update={"splits": ("test",), "page": False})
    changed = config.model_copy(update={"evaluation": other})
    again(changed)
    assert not [*folder.glob("*.png"), *folder.glob("*.html")]
    assert "confusion_test.png" not in (folder / "summary.md").read_text(encoding="utf-8")
    evaluate_again(changed, Workspace(changed))
    assert drawn < {path.name for path in folder.iterdir()}, "somebody asked to see this run"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_damaged_results(finished: Finished, content: str) -> None:
    config, again = finished
    path = run_folder(config) / "results.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"(?s)results\.json.*delete this file"):
        again(config)
    path.unlink()
    again(config)
    assert read_results(path.parent)["splits"]


def test_damaged_facts_of_the_training(finished: Finished) -> None:
    config, again = finished
    folder = run_folder(config)
    (folder / "training.json").write_text("{")
    (folder / "results.json").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)training\.json.*delete this file and the folder .*classifier"):
        again(config)
    with pytest.raises(ArtifactError, match=r"training\.json"):
        read_training(folder)


def test_a_classifier_of_another_run(finished: Finished) -> None:
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
def test_a_damaged_mark_belongs_to_nobody(finished: Finished, content: str) -> None:
    config, again = finished
    (run_folder(config) / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"(?s)run.*--name .*or delete the"):
        again(config)


@pytest.mark.parametrize("content", ["{", '{"commit": ""}'])
def test_advice_for_a_damaged_mark(finished: Finished, content: str) -> None:
    folder = run_folder(finished[0])
    (folder / "run.json").write_text(content)
    with pytest.raises(ArtifactError, match=rf"(?s)run\.json.*or delete the folder {folder} and run clipit train"):
        read_training(folder)


@pytest.mark.parametrize("left", ["classifier", "results.json", "checkpoints"])
def test_a_run_without_its_mark_is_not_taken_over(finished: Finished, left: str) -> None:
    config, again = finished
    folder = run_folder(config)
    for path in folder.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=r"(?s)run\.json is missing.*--name"):
        again(config)


def test_what_a_killed_process_was_writing_is_deleted(finished: Finished) -> None:
    config, again = finished
    folder = run_folder(config)
    for name in (".config.yaml.1.tmp", "checkpoints/.best-00000002.safetensors.77.tmp", "checkpoints/.tmpWAkYZw"):
        (folder / name).write_text("half")
    written_now = folder / f".predictions_shifted-0123.parquet.{os.getpid()}.tmp"
    written_now.write_text("half")
    half_deleted = folder / "checkpoints" / "step-00000001"
    half_deleted.mkdir()
    (half_deleted / "weights.safetensors").write_text("old")
    again(config)
    assert list(folder.rglob(".*tmp*")) == [written_now] and not half_deleted.exists()
    (folder / ".summary.md.1.tmp").write_text("half")
    evaluate_again(config, Workspace(config))
    assert list(folder.rglob(".*tmp*")) == [written_now]
    assert json.loads((folder / "run.json").read_text())["fingerprint"]


def test_a_finished_run_that_cannot_be_written_is_read(
    finished: Finished, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, again = finished
    folder, workspace = run_folder(config), kept["workspace"]
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    results = read_results(folder)
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    monkeypatch.setattr("clipit.output_files.artifacts.FileLock", lambda *_: pytest.fail("a lock file was written"))
    assert any("is read-only; its existing results are used" in line for line in again(config))
    resolved = resolve_arm(config)
    assert evaluate_again(resolved, workspace) == (folder, results)
    assert write_pages(resolved, workspace) == [folder / "report.html"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == stamps
    other = config.evaluation.model_copy(update={"splits": ("train",)})
    with pytest.raises(ArtifactError, match=r"lacks results for these keys .* its folder is read-only"):
        evaluate_again(resolved.model_copy(update={"evaluation": other}), workspace)


@pytest.mark.parametrize("content", ['{"splits": []}', '{"splits": {"test": 1}, "provenance": {}}', "[" * 100_000])
def test_results_of_another_form(finished: Finished, content: str) -> None:
    config, _ = finished
    path = run_folder(config) / "results.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"(?s)results\.json.*delete this file"):
        read_results(path.parent)


@pytest.mark.parametrize("content", ['{"score": "high"}', '{"score": 0.5, "sections": []}', "{}", "[]"])
def test_facts_of_another_form(tmp_path: Path, content: str) -> None:
    (tmp_path / "training.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"training\.json"):
        read_training(tmp_path, "score")


def test_images_that_are_left_out_are_told(configure: MakeConfig, tmp_path: Path) -> None:
    source = Path(configure().tiles.path)
    shutil.copytree(source.parent / "images", tmp_path / "images")
    shutil.copy(source, tmp_path / "tiles.csv")
    (tmp_path / "images" / "test-003.png").write_bytes(b"nothing")
    keys = {"tiles.path": str(tmp_path / "tiles.csv"), "tiles.unreadable": "quarantine", "leaks.policy": "off"}
    said = capture_log()
    workspace = Workspace(configure(keys))
    assert len(workspace.tiles(0)) == len(workspace.tiles(1)) == 119
    assert sum("dropped 1 of 120 images (cannot be decoded): images/test-003.png" in text for text in said) == 1


@pytest.mark.parametrize("name", ["results.json", "training.json"])
def test_a_changed_number_is_not_reported(finished: Finished, name: str) -> None:
    config, _ = finished
    path = run_folder(config) / name
    values = json.loads(path.read_text())
    change = {"steps": 3} if name == "training.json" else {"splits": values["splits"] | {"test": {"metrics": {}}}}
    path.write_text(json.dumps(values | change))
    with pytest.raises(ArtifactError, match=rf"(?s)changed since it was written.*{name}"):
        write_pages(resolve_arm(config), Workspace(config))


def test_rows_missing_from_the_training_log(finished: Finished) -> None:
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


def test_a_changed_value_in_the_training_log(finished: Finished) -> None:
    log = run_folder(finished[0]) / "metrics.jsonl"
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([json.dumps(json.loads(first) | {"loss": 9.0}), *others, ""]))
    with pytest.raises(ArtifactError, match=r"(?s)training log has changed.*restore this file from a copy"):
        read_curves(log)


def test_a_deleted_configuration_is_written_again(finished: Finished) -> None:
    config, again = finished
    folder = run_folder(config)
    before = read_run_config(folder)
    (folder / "config.yaml").unlink()
    assert any("config.yaml was missing" in line for line in again(config))
    assert read_run_config(folder).model_dump(exclude={"name"}) == before.model_dump(exclude={"name"})


def test_a_classifier_without_its_description(finished: Finished) -> None:
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
def test_a_file_of_another_run(finished: Finished, name: str, read: Callable[[Path], object]) -> None:
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
