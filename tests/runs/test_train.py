"""Whole runs in one process: arms, resume, early stopping, and what a run folder refuses."""

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
from clipit.errors import ArtifactError, ModelError
from clipit.runs.train import run_folder, train_run
from clipit.training.arms import ARMS, resolve_arm
from clipit.training.terms.term_table import active_terms
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
MakeConfig = Callable[..., RunConfig]
OWN = {"distil_more": {"base": "clip_it_all", "distillation.weight": 2.0}}


class Killed(BaseException):
    """Stands for a kill: no code of the package catches it."""


@pytest.fixture(scope="module")
def kept() -> dict[str, Workspace]:
    """Workspace that the runs of this module share, so that the VLM is loaded once."""
    return {}


@pytest.fixture
def train(kept: dict[str, Workspace]) -> Callable[[RunConfig], Path]:
    def run(config: RunConfig) -> Path:
        kept.setdefault("workspace", Workspace(config))
        return train_run(config, kept["workspace"])

    return run


Train = Callable[[RunConfig], Path]


def trained_names(folder: Path) -> set[str]:
    from safetensors.torch import load_file

    return set(load_file(next((folder / "checkpoints").glob("step-*")) / "weights.safetensors"))


@pytest.mark.usefixtures("run_plots")
def test_a_run_leaves_what_is_promised(configure: MakeConfig, train: Train) -> None:
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
    """Keys of a configuration with reports of the small world's training patients, and of one without tiles."""
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
    configure: MakeConfig, train: Train, kept: dict[str, Workspace], own_reports: dict[str, Any], arm: str
) -> None:
    import clipit

    keys = own_reports if arm.startswith("own_") or arm == "other_snippet" else {}
    config = configure({"training.steps": 2, **keys}, name="arms", arm=arm, arms=OWN)
    if arm == "report_diagnosis":  # the small world's reports have no headings
        given = config.distillation.model_copy(update={"sections": ("unknown",)})
        config = config.model_copy(update={"distillation": given, "overrides": ("distillation.sections",)})
    folder = train(config)
    losses_found = losses(folder)
    assert np.isfinite(losses_found).all()
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
    image = kept["workspace"].all_tiles.read(0)
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


def test_variables_of_accelerate_change_no_run(
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
        ("clip_it_all", "step 5"),  # after a better look than the checkpoint's
        ("clip_it_all", "export"),
        ("clip_it_all", "evaluation"),
        ("clip_it_paper", "saving"),  # the first checkpoint is half written: stage 1 must be done again
        ("clip_it_paper", "step 7"),
    ],
)
def test_killed_and_started_again_ends_the_same(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch, arm: str, killed_at: str
) -> None:
    keys = {"training.steps": 8, "training.checkpoint_every": 3, "training.evaluate_every": 2, "lora.dropout": 0.2}
    straight = train(configure(keys, name="straight", arm=arm))
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

        def die(*_: Any, **__: Any) -> None:
            raise Killed

        monkeypatch.setattr(places[killed_at][0], die)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.undo()
    assert not (run_folder(config) / "results.json").exists()
    again = train(config)
    assert losses(again) == losses(straight)
    assert predictions(again).equals(predictions(straight))
    chosen = [json.loads((folder / "training.json").read_text())["chosen_step"] for folder in (straight, again)]
    assert chosen[0] == chosen[1]
    weights = [(folder / "classifier" / "model.safetensors").read_bytes() for folder in (straight, again)]
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
        fitted = student.text_head(torch.from_numpy(targets.vectors[rows].astype(np.float32)))
        labels = torch.from_numpy(data.labels[rows])
        assert functional.cross_entropy(fitted, labels) < 0.2
        student.fusion, student.projector = None, None  # the image head alone
        alone = student_logits(student, normalise, data.source, rows, 64)
        assert functional.cross_entropy(torch.from_numpy(alone), labels) < 0.2
        raise Killed

    monkeypatch.setattr(train_student_module, "train_student", inspect)
    with pytest.raises(Killed):
        train(configure(name="stage1", arm="clip_it_paper"))


def test_a_finished_run_is_not_done_again(configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure({"training.steps": 2}, name="finished")
    folder = train(config)
    monkeypatch.setattr(run_module, "_train", lambda *_: pytest.fail("it was trained again"))
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


def test_without_validation_labels_the_last_step_counts_and_it_is_said(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure({"training.steps": 3}, name="blind")
    table = tmp_path / "tiles.csv"
    source = Path(config.tiles.path)
    lines = source.read_text().splitlines()
    hidden = [",".join([f[0], "" if f[2] == "validation" else f[1], *f[2:]]) for f in (r.split(",") for r in lines)]
    table.write_text("\n".join(hidden) + "\n")
    said = capture_log()
    blind = configure({"training.steps": 3, "tiles.path": str(table), "tiles.images": str(source.parent)}, name="blind")
    folder = train_run(blind)
    outcome = json.loads((folder / "training.json").read_text())
    assert (outcome["chosen_step"], outcome["score"]) == (3, None)
    assert any("no validation tile has a label" in line for line in said)


def test_the_best_weights_are_exported_not_the_last(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.9, 0.1, 0.1])
    monkeypatch.setattr(run_module, "make_monitor", lambda *_: lambda logits: next(scores))
    keys = {"training.evaluate_every": 1, "training.steps": 3, "training.warmup": 0.0}
    best = train(configure(keys, name="best"))
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "make_monitor", lambda *_: None)
    last = train(configure(keys, name="last"))
    assert not predictions(best).equals(predictions(last))


def test_accumulation_changes_nothing_but_the_order_of_sums(configure: MakeConfig, train: Train) -> None:
    folders = [
        train(configure({"training.accumulation": parts, "training.steps": 5}, name=f"parts{parts}", arm="clip_it_all"))
        for parts in (1, 3)
    ]
    assert np.allclose(losses(folders[0]), losses(folders[1]), rtol=1e-4)


def test_copies_of_a_tile_in_one_batch_are_augmented_anew(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, keys = step_module.augment, []

    def spy(pixels: Any, own: Any, *rest: Any) -> Any:
        keys.append(own)
        return original(pixels, own, *rest)

    monkeypatch.setattr(step_module, "augment", spy)
    train(configure({"training.steps": 1, "training.tiles_per_step": 30}, name="copies", arm="image_only"))
    assert len(keys) == 1 and len(set(keys[0].tolist())) == 30  # of 12 labelled tiles


def all_bytes(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_no_report_text_and_no_snippet_embedding_in_the_classifier(configure: MakeConfig, train: Train) -> None:
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


def test_the_folder_of_another_configuration(configure: MakeConfig, train: Train) -> None:
    train(configure({"training.steps": 2}, name="taken"))
    with pytest.raises(ArtifactError, match=r"differences:\n +lora\.rank: 4 in the folder, 2 now\n(?s:.*)--name"):
        train(configure({"training.steps": 2, "lora.rank": 2}, name="taken"))


@pytest.mark.parametrize("changed", ["reports", "labels", "prompts"])
def test_the_folder_of_other_data(configure: MakeConfig, tmp_path: Path, changed: str) -> None:
    config = configure()
    assert config.reports is not None and config.prompts is not None
    files = {"reports": Path(config.reports.path), "labels": Path(config.tiles.path), "prompts": Path(config.prompts)}
    for name, path in files.items():
        (tmp_path / name).with_suffix(path.suffix).write_text(path.read_text())
    mine = {name: (tmp_path / name).with_suffix(path.suffix) for name, path in files.items()}
    keys = {
        "training.steps": 1, "tiles.path": str(mine["labels"]), "tiles.images": str(files["labels"].parent),
        "reports.path": str(mine["reports"]), "prompts": str(mine["prompts"]), "output": str(tmp_path / "out"),
    }  # fmt: skip
    train_run(configure(keys))
    train_run(configure(keys))
    text = mine[changed].read_text()
    swapped = text.replace("gland", "\0").replace("stroma", "gland").replace("\0", "stroma")
    mine[changed].write_text(swapped if changed != "prompts" else text.replace("fibrosis", "oedema"))
    difference = {"reports": "snippets", "labels": "labels of tiles", "prompts": "prompts"}[changed]
    with pytest.raises(ArtifactError, match=rf"differences:\n +{difference}: \w+ in the folder, \w+ now"):
        train_run(configure(keys))


def test_lora_targets_that_match_nothing(configure: MakeConfig, train: Train) -> None:
    with pytest.raises(ModelError, match=r"'nowhere' matches no(?s:.*)lora\.targets"):
        train(configure({"lora.targets": ["nowhere"]}, name="nowhere"))


def test_lora_layers_that_do_not_reach_the_loss_are_found_at_the_first_step(
    configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipit.models.student import Student, StudentOutput

    original = Student.heads

    def cut(self: Student, features: Any) -> StudentOutput:
        return original(self, features.detach())

    monkeypatch.setattr(Student, "heads", cut)
    with pytest.raises(ModelError, match=r"LoRA weights receive no gradient(?s:.*)lora\.targets"):
        train(configure(name="idle"))


def test_an_arm_that_pairs_in_its_own_way_gets_its_own_pairs(configure: MakeConfig, train: Train) -> None:
    arms = {"three": {"base": "clip_it_all", "pairing.k": 3}}
    one = train(configure({"training.steps": 1}, name="k", arm="clip_it_all"))
    three = train(configure({"training.steps": 1}, name="k", arm="three", arms=arms))
    facts = [json.loads((folder / "training.json").read_text())["pairs"] for folder in (one, three)]
    assert facts[0] != facts[1]


def test_full_disk_while_training(configure: MakeConfig, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    config = configure(name="disk")

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("clipit.training.checkpoints.save_file", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        train(config)
    assert not (run_folder(config) / "classifier").exists()
    monkeypatch.undo()
    assert (train(config) / "results.json").is_file()


def test_evaluating_a_run_that_does_not_exist(configure: MakeConfig) -> None:
    from clipit.errors import ClipitError
    from clipit.runs.evaluate import evaluate_run

    config = configure(name="never")
    with pytest.raises(ClipitError, match="never"):
        evaluate_run(config, Workspace(config), run_folder(config))
