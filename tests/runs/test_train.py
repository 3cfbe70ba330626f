"""Whole training runs in one process: arms, resuming, early stopping and errors of run folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from logged_lines import capture_log
from run_files import losses, predictions
from tiny_models import CLASSES, WORDS

import clipit.runs.train as run_module
import clipit.training.step as step_module
import clipit.training.train_student as train_student_module
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError, ModelError
from clipit.runs.train import run_folder, train_run
from clipit.training.arms import ARMS, resolve_arm
from clipit.training.terms.term_table import active_terms
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]
CUSTOM_ARMS = {"distil_more": {"base": "clip_it_all", "distillation.weight": 2.0}}


class Killed(BaseException):
    """Simulated kill, which no code of the package catches."""


@pytest.fixture(scope="module")
def shared() -> dict[str, Workspace]:
    """Workspace shared by the runs of this module, so that the VLM is loaded once."""
    return {}


@pytest.fixture
def train(shared: dict[str, Workspace]) -> Callable[[RunConfig], Path]:
    def run(config: RunConfig) -> Path:
        shared.setdefault("workspace", Workspace(config))
        return train_run(config, shared["workspace"])

    return run


Train = Callable[[RunConfig], Path]


def trained_names(folder: Path) -> set[str]:
    from safetensors.torch import load_file

    return set(load_file(next((folder / "checkpoints").glob("step-*")) / "weights.safetensors"))


@pytest.mark.usefixtures("run_plots")
def test_files_and_contents_of_a_finished_run(configure: MakeConfig, train: Train) -> None:
    folder = train(configure(name="whole", arm="clip_it_all"))
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "checkpoints", "predictions.parquet", "results.json", "summary.md",
        "classifier", "curves.png", "confusion_test.png",
    }  # fmt: skip
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    results = json.loads((folder / "results.json").read_text())
    assert set(results["splits"]) == {"validation", "test"}
    table = pq.read_table(folder / "predictions.parquet")
    assert table.num_rows == 48
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        assert row["loss"] == pytest.approx(row["cross_entropy"] + row["distillation"], rel=1e-5)


@pytest.fixture(scope="module")
def own_reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Configuration keys for reports of the small world's training patients and of one patient without tiles."""
    folder = tmp_path_factory.mktemp("own")
    with (folder / "own.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(19):
            row = {"id": f"own{number}", "patient": f"train-{number}", "finding": CLASSES[number % 3]}
            stream.write(
                json.dumps(row | {"text": f"Large {row['finding']} with {WORDS[number + 3]} and atypia."}) + "\n"
            )
    rules = {"name": "small", "classes": {name: [name] for name in CLASSES}}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    return {
        "reports.path": str(folder / "own.jsonl"),
        "reports.group_column": "patient",
        "own_report.rules": str(folder / "rules.yaml"),
    }


@pytest.mark.parametrize("arm", [*ARMS, "distil_more"])
def test_every_arm_trains_and_exports(
    configure: MakeConfig, train: Train, shared: dict[str, Workspace], own_reports: dict[str, Any], arm: str
) -> None:
    import clipit

    keys = own_reports if arm.startswith("own_") or arm == "other_snippet" else {}
    config = configure({"training.steps": 2, **keys}, name="arms", arm=arm, arms=CUSTOM_ARMS)
    if arm == "report_diagnosis":  # reports of the small world have no headings
        distillation = config.distillation.model_copy(update={"sections": ("unknown",)})
        config = config.model_copy(update={"distillation": distillation, "overrides": ("distillation.sections",)})
    folder = train(config)
    run_losses = losses(folder)
    assert np.isfinite(run_losses).all()
    names = trained_names(folder)
    resolved = resolve_arm(config)
    assert any("lora_" in name for name in names) == (resolved.backbone.tuning == "lora")
    assert not [name for name in names if name.startswith("backbone") and "lora_" not in name]
    assert any(name.startswith("projector") for name in names) == (resolved.student.projector_layers > 0)
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert ("distillation" in first) == (resolved.distillation.tiles != "none")
    assert ("bags" in first) == (resolved.bags.weight > 0)
    assert ("prompt_bags" in first) == (resolved.prompt_bags.weight > 0)
    assert ("soft_labels" in first) == (resolved.soft_labels.source != "none")
    assert ("consistency" in first) == (resolved.consistency.weight > 0)
    terms = active_terms(resolved)
    assert {term.name for term in terms} <= first.keys()
    assert first["loss"] == pytest.approx(sum(term.weight * first[term.name] for term in terms), rel=1e-4)
    classifier = clipit.load_classifier(folder / "classifier")
    image = shared["workspace"].all_tiles.read(0)
    assert classifier.predict_proba([image]).shape == (1, 3)


def test_full_fine_tuning_trains_everything(configure: MakeConfig, train: Train) -> None:
    folder = train(configure({"training.steps": 2, "backbone.tuning": "full"}, name="full"))
    names = trained_names(folder)
    assert {"backbone.patch_embed.proj.weight", "image_head.weight", "projector.weight"} <= names
    assert not [name for name in names if "lora_" in name]


def test_mixed_precision_exports_the_trained_student(configure: MakeConfig) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    try:
        folder = train_run(configure({"training.steps": 2, "training.precision": "bf16"}, name="bf16"))
    finally:
        AcceleratorState._reset_state()
    assert np.isfinite(losses(folder)).all()


def test_environment_variables_of_accelerate_have_no_effect(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"arm": "image_only", "training.steps": 4, "training.clip_norm": 0.01}
    plain = train(configure(name="plain", **keys))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1000")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    other = train(configure(name="other", **keys))
    assert losses(other) == losses(plain)
    assert predictions(other).equals(predictions(plain))


@pytest.mark.parametrize(
    ("arm", "killed_at"),
    [
        ("clip_it_all", "step 3"),  # right after a checkpoint
        ("clip_it_all", "step 5"),  # after a better validation score than the checkpoint's
        ("clip_it_all", "export"),
        ("clip_it_all", "evaluation"),
        ("clip_it_paper", "saving"),  # while the first checkpoint is written: stage 1 must be repeated
        ("clip_it_paper", "step 7"),
    ],
)
def test_a_resumed_run_gives_the_same_result(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch, arm: str, killed_at: str
) -> None:
    keys = {"training.steps": 8, "training.checkpoint_every": 3, "training.evaluate_every": 2, "lora.dropout": 0.2}
    uninterrupted = train(configure(keys, name="uninterrupted", arm=arm))
    config = configure(keys, name="killed-" + killed_at.replace(" ", ""), arm=arm)
    if killed_at.startswith("step"):
        original, stop = train_student_module.one_step, int(killed_at.split()[1])

        def one_step(*arguments: Any) -> Any:
            if arguments[5] == stop:
                raise Killed
            return original(*arguments)

        monkeypatch.setattr(train_student_module, "one_step", one_step)
    else:
        places = {
            "saving": ("clipit.training.checkpoints.Path.rename", None),
            "export": ("clipit.models.export_classifier._compare", None),
            "evaluation": ("clipit.runs.evaluate.write_predictions", None),
        }

        def raise_killed(*_: Any, **__: Any) -> None:
            raise Killed

        monkeypatch.setattr(places[killed_at][0], raise_killed)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.undo()
    assert not (run_folder(config) / "results.json").exists()
    resumed = train(config)
    assert losses(resumed) == losses(uninterrupted)
    assert predictions(resumed).equals(predictions(uninterrupted))
    chosen = [json.loads((folder / "training.json").read_text())["chosen_step"] for folder in (uninterrupted, resumed)]
    assert chosen[0] == chosen[1]
    weights = [(folder / "classifier" / "model.safetensors").read_bytes() for folder in (uninterrupted, resumed)]
    assert weights[0] == weights[1]


def test_stage_1_fits_both_heads_and_leaves_no_gradient(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn import functional

    from clipit.training.train_student import student_logits

    def inspect(
        config: RunConfig, student: Any, normalise: Any, data: Any, validation: Any, folder: Path, accelerator: Any
    ) -> None:
        assert all(parameter.grad is None for parameter in student.parameters())
        rows = np.flatnonzero(data.labels >= 0)
        targets = next(term.targets for term in data.terms if term.name == "distillation")
        text_logits = student.text_head(torch.from_numpy(targets.vectors[rows].astype(np.float32)))
        labels = torch.from_numpy(data.labels[rows])
        assert functional.cross_entropy(text_logits, labels) < 0.2
        student.fusion, student.projector = None, None  # leaves only the image head
        image_logits = student_logits(student, normalise, data.source, rows, 64)
        assert functional.cross_entropy(torch.from_numpy(image_logits), labels) < 0.2
        raise Killed

    monkeypatch.setattr(train_student_module, "train_student", inspect)
    with pytest.raises(Killed):
        train(configure(name="stage1", arm="clip_it_paper"))


def test_a_finished_run_is_not_trained_again(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"training.steps": 2}, name="finished")
    folder = train(config)
    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("the run was trained again"))
    assert train(config) == folder


def test_early_stopping_keeps_the_best_step(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.8, 0.7, 0.6, 0.9])
    monkeypatch.setattr(run_module, "make_monitor", lambda *_: lambda logits: next(scores))
    keys = {"training.steps": 10, "training.evaluate_every": 1, "training.patience": 2}
    folder = train(configure(keys, name="early"))
    outcome = json.loads((folder / "training.json").read_text())
    assert (outcome["steps"], outcome["chosen_step"], outcome["score"]) == (4, 2, 0.8)
    assert outcome["stopped_early"]
    assert len(losses(folder)) == 4


def test_without_validation_labels_the_last_step_is_exported_with_a_note(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure({"training.steps": 3}, name="unlabelled")
    table = tmp_path / "tiles.csv"
    source = Path(config.tiles.path)
    lines = source.read_text().splitlines()
    hidden = [",".join([f[0], "" if f[2] == "validation" else f[1], *f[2:]]) for f in (r.split(",") for r in lines)]
    table.write_text("\n".join(hidden) + "\n")
    log_lines = capture_log()
    unlabelled = configure(
        {"training.steps": 3, "tiles.path": str(table), "tiles.images": str(source.parent)}, name="unlabelled"
    )
    folder = train_run(unlabelled)
    outcome = json.loads((folder / "training.json").read_text())
    assert (outcome["chosen_step"], outcome["score"]) == (3, None)
    assert any("no validation tile has a label" in line for line in log_lines)
    stated = "Last step, because balanced accuracy is undefined on the validation split"
    assert stated in outcome["terms"] and stated in (folder / "summary.md").read_text()


def test_an_undefined_monitor_selects_the_last_step_with_a_note(configure: MakeConfig, tmp_path: Path) -> None:
    source = Path(configure().tiles.path)
    rows = [line.split(",") for line in source.read_text().splitlines()]
    column = rows[0].index("label")
    for row in rows[1:]:
        if "validation" in row:
            row[column] = "stroma"
    table = tmp_path / "tiles.csv"
    table.write_text("\n".join(map(",".join, rows)) + "\n")
    keys = {"training.steps": 3, "training.evaluate_every": 1, "training.patience": 1, "training.monitor": "auroc"}
    keys |= {"tiles.path": str(table), "tiles.images": str(source.parent), "arm": "image_only"}
    log_lines = capture_log()
    outcome = json.loads((train_run(configure(keys, name="undefined")) / "training.json").read_text())
    assert (outcome["chosen_step"], outcome["score"], outcome["stopped_early"]) == (3, None, False)
    assert "Last step, because auroc is undefined on the validation split" in outcome["terms"]
    assert any("auroc is undefined (no validation tile of class gland, tumour)" in line for line in log_lines)


def test_the_best_weights_are_exported(configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.1, 0.1])
    monkeypatch.setattr(run_module, "make_monitor", lambda *_: lambda logits: next(scores))
    keys = {"training.evaluate_every": 1, "training.steps": 3, "training.warmup": 0.0}
    best = train(configure(keys, name="best"))
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "make_monitor", lambda *_: None)
    last = train(configure(keys, name="last"))
    assert not predictions(best).equals(predictions(last))


def test_gradient_accumulation_matches_a_single_batch(configure: MakeConfig, train: Train) -> None:
    folders = [
        train(configure({"training.accumulation": parts, "training.steps": 5}, name=f"parts{parts}", arm="clip_it_all"))
        for parts in (1, 3)
    ]
    assert np.allclose(losses(folders[0]), losses(folders[1]), rtol=1e-4)


def test_copies_of_a_tile_in_a_batch_are_augmented_independently(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, keys = step_module.augment, []

    def spy(pixels: Any, tile_keys: Any, *rest: Any) -> Any:
        keys.append(tile_keys)
        return original(pixels, tile_keys, *rest)

    monkeypatch.setattr(step_module, "augment", spy)
    train(configure({"training.steps": 1, "training.tiles_per_step": 30}, name="copies", arm="image_only"))
    assert len(keys) == 1 and len(set(keys[0].tolist())) == 30  # drawn from 12 labelled tiles


def all_bytes(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_classifier_contains_no_report_text_or_snippet_embedding(configure: MakeConfig, train: Train) -> None:
    config = configure({"training.steps": 2}, name="private", arm="clip_it_all")
    content = all_bytes(train(config) / "classifier")
    workspace = Workspace(config)
    texts = workspace.snippet_texts()
    assert len(texts) > 200
    for text in texts.values():
        assert text.encode() not in content
    reports = {report.text for report in workspace.reports.reports}
    assert not [text for text in reports if text[:30].encode() in content]
    store = workspace.text_store()
    for dtype in (np.float16, np.float32):
        for vector in store.rows(np.arange(len(store.ids))):
            assert vector.astype(dtype).tobytes() not in content


def test_a_folder_of_another_configuration_is_an_error(configure: MakeConfig, train: Train) -> None:
    train(configure({"training.steps": 2}, name="taken"))
    with pytest.raises(ArtifactError, match=r"differences:\n +lora\.rank: 4 in the folder, 2 now\n(?s:.*)--name"):
        train(configure({"training.steps": 2, "lora.rank": 2}, name="taken"))


@pytest.mark.parametrize("changed", ["reports", "labels", "prompts"])
def test_a_folder_of_other_data_is_an_error(configure: MakeConfig, tmp_path: Path, changed: str) -> None:
    config = configure()
    assert config.reports is not None and config.prompts is not None
    files = {"reports": Path(config.reports.path), "labels": Path(config.tiles.path), "prompts": Path(config.prompts)}
    for name, path in files.items():
        (tmp_path / name).with_suffix(path.suffix).write_text(path.read_text())
    copies = {name: (tmp_path / name).with_suffix(path.suffix) for name, path in files.items()}
    keys = {
        "training.steps": 1, "tiles.path": str(copies["labels"]), "tiles.images": str(files["labels"].parent),
        "reports.path": str(copies["reports"]), "prompts": str(copies["prompts"]), "output": str(tmp_path / "out"),
    }  # fmt: skip
    train_run(configure(keys))
    train_run(configure(keys))
    text = copies[changed].read_text()
    swapped = text.replace("gland", "\0").replace("stroma", "gland").replace("\0", "stroma")
    copies[changed].write_text(swapped if changed != "prompts" else text.replace("fibrosis", "oedema"))
    difference = {"reports": "snippets", "labels": "labels of tiles", "prompts": "prompts"}[changed]
    with pytest.raises(ArtifactError, match=rf"differences:\n +{difference}: \w+ in the folder, \w+ now"):
        train_run(configure(keys))


def test_lora_targets_without_a_match_are_an_error(configure: MakeConfig, train: Train) -> None:
    with pytest.raises(ModelError, match=r"'nowhere' matches no(?s:.*)lora\.targets"):
        train(configure({"lora.targets": ["nowhere"]}, name="nowhere"))


def test_lora_layers_without_gradient_are_an_error(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipit.models.student import Student, StudentOutput

    original = Student.heads

    def heads_without_gradient(self: Student, features: Any) -> StudentOutput:
        return original(self, features.detach())

    monkeypatch.setattr(Student, "heads", heads_without_gradient)
    with pytest.raises(ModelError, match=r"LoRA weights receive no gradient(?s:.*)lora\.targets"):
        train(configure(name="idle"))


def test_arms_with_different_pairing_keys_have_different_pairs(configure: MakeConfig, train: Train) -> None:
    arms = {"three": {"base": "clip_it_all", "pairing.k": 3}}
    one = train(configure({"training.steps": 1}, name="k", arm="clip_it_all"))
    three = train(configure({"training.steps": 1}, name="k", arm="three", arms=arms))
    facts = [json.loads((folder / "training.json").read_text())["pairs"] for folder in (one, three)]
    assert facts[0] != facts[1]


def test_full_disk_during_training(configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    config = configure(name="disk")

    def raise_disk_full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("clipit.training.checkpoints.save_file", raise_disk_full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        train(config)
    assert not (run_folder(config) / "classifier").exists()
    monkeypatch.undo()
    assert (train(config) / "results.json").is_file()


def test_splits_without_tiles_fail_before_training(configure: MakeConfig, tmp_path: Path) -> None:
    source = Path(configure().tiles.path)
    table = tmp_path / "tiles.csv"
    table.write_text("\n".join(line for line in source.read_text().splitlines() if ",test" not in line) + "\n")
    keys = {"tiles.path": str(table), "tiles.images": str(source.parent), "evaluation.splits": ["test"]}
    config = configure(keys, name="without_test", arm="image_only")
    with pytest.raises(DataError, match="none of the splits to evaluate has tiles"):
        train_run(config)
    assert not (run_folder(config) / "metrics.jsonl").exists()


def test_evaluating_a_missing_run_is_an_error(configure: MakeConfig) -> None:
    from clipit.errors import ClipitError
    from clipit.runs.evaluate import evaluate_run

    config = configure(name="never")
    with pytest.raises(ClipitError, match="never"):
        evaluate_run(config, Workspace(config), run_folder(config))
