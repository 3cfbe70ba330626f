"""One run: from a configuration to an exported classifier, its predictions, results and summary."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from jaxtyping import Float32

from clipit.artifacts import fingerprint, git_commit, locked, versions, whole_file, write_json
from clipit.config import Config
from clipit.distributed import Processes, processes
from clipit.errors import ArtifactError, ConfigError, explain
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.predictions import softmax
from clipit.experiments.evaluation import evaluate_run
from clipit.experiments.materials import Materials
from clipit.tiles.augment import tile_keys
from clipit.tiles.tileset import TileSet
from clipit.training.arms import resolve_arm
from clipit.training.batches import plan_batches
from clipit.training.targets import Targets, image_targets, text_targets

if TYPE_CHECKING:
    from clipit.models.backbones import Backbone
    from clipit.models.student import Student
    from clipit.training.loop import Outcome, Score

_NOT_PART_OF_A_RUN = {"output", "tracking", "evaluation", "note", "arms", "arm", "name", "comparison"}


def run_folder(config: Config) -> Path:
    """Where a run lies."""
    return config.output / "runs" / config.name / f"{config.arm or 'custom'}-seed{config.seed}"


def train_run(config: Config, materials: Materials | None = None, say: Callable[[str], None] = print) -> Path:
    """Carry out a run, or go on with it; nothing is done when it is finished.

    Args:
        config: With or without an arm.
        materials: Shared with other runs of the same data; made from `config` when not given.
        say: Takes lines for the user; called in the main process only.

    Returns:
        The run's folder: config.yaml, metrics.jsonl, checkpoints/, classifier/, predictions.parquet, results.json,
        summary.md and plots.

    Raises:
        ConfigError: The recipe's keys do not fit each other.
        ArtifactError: The folder holds a run of another configuration.
    """
    config = resolve_arm(config)
    _check(config)
    here = processes()
    folder = run_folder(config)
    if materials is None or not materials.serves(config):  # an arm may pair or embed in its own way
        materials = Materials(config, say)
    if here.main:
        with locked(folder, waiting=say):
            _train_here(config, materials, folder, here)
    else:
        _train_here(config, materials, folder, here)
    return folder


def _train_here(config: Config, materials: Materials, folder: Path, here: Processes) -> None:
    tiles = materials.tiles(config.seed)
    if here.main:
        _claim(folder, config, _mark(config, materials, tiles))
    here.wait()
    if here.same((folder / "results.json").is_file()):
        return
    student, backbone = _student(config, materials, tiles)
    targets = _targets(config, materials, tiles)
    if not here.same((folder / "classifier").is_dir()):
        outcome = _fit(config, materials, tiles, student, backbone, targets, folder, here)
        if here.main:
            _export(config, materials, tiles, student, backbone, outcome, folder)
    here.wait()
    evaluate_run(config, materials, folder)


def _check(config: Config) -> None:
    """Refuse keys that contradict each other, all at once.

    Raises:
        ConfigError: See above.
    """
    problems = []
    d, s, t = config.distillation, config.student, config.training
    if d.tiles != "none" and s.projector_layers == 0:
        problems.append("distillation needs a projector: student.projector_layers=1, or distillation.tiles=none")
    if d.tiles != "none" and d.target != "image" and config.reports is None:
        problems.append("distilling text needs reports: set reports.path, or distillation.tiles=none")
    if s.warm_start and (d.tiles == "none" or d.target == "image"):
        problems.append(
            "student.warm_start fits a head on paired text: distillation.tiles=labelled or all, target text"
        )
    if t.tiles_per_step < processes().count * t.accumulation:
        problems.append(
            f"training.tiles_per_step={t.tiles_per_step} gives nothing to some of {processes().count} processes "
            f"x {t.accumulation} micro-batches"
        )
    if problems:
        raise ConfigError(explain("; ".join(problems), where=f"arm {config.arm or '(none)'}", fix="change these keys"))


def _mark(config: Config, materials: Materials, tiles: TileSet) -> str:
    """Stands for all that this run's numbers come from: keys, tiles and their labels, reports, prompts."""
    reads_text = config.reports is not None and config.student.projector_layers > 0
    return fingerprint(
        {
            "config": config.model_dump(mode="json", exclude=_NOT_PART_OF_A_RUN),
            "tiles": tiles.fingerprint,
            "labels": [tiles.labels.tolist(), tiles.groups.tolist()],
            "reports": materials.reports.fingerprint if reads_text else None,
            "prompts": materials.prompts.hash if materials.prompts else None,
        }
    )


def _claim(folder: Path, config: Config, mark: str) -> None:
    """Take the folder for this run, or recognise it as this run's.

    Raises:
        ArtifactError: It belongs to another configuration.
    """
    file = folder / "run.json"
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8"))["fingerprint"] != mark:
            raise ArtifactError(
                explain(
                    "this run's folder belongs to another configuration, or to other tiles, labels, reports or prompts",
                    where=folder / "config.yaml",
                    fix="choose another --name, or delete the folder",
                )
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    write_json(
        file, {"fingerprint": mark, "commit": git_commit(), "versions": versions(), "command": shlex.join(sys.argv)}
    )


def _student(config: Config, materials: Materials, tiles: TileSet) -> "tuple[Student, Backbone]":
    import torch

    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student

    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, processes().device)
    materials.warn_of_mpp(backbone.name, backbone.expected_mpp, backbone.preprocess)
    torch.manual_seed(config.seed)
    joint_dim = materials.vlm.joint_dim if config.student.projector_layers else None
    student = build_student(
        backbone, config.student, config.lora, config.backbone.tuning, n_classes=len(tiles.classes), joint_dim=joint_dim
    )
    return student, backbone


def _targets(config: Config, materials: Materials, tiles: TileSet) -> Targets | None:
    d = config.distillation
    if d.tiles == "none":
        return None
    ids = tiles.of_split("train").ids
    if d.target == "image":
        return image_targets(ids, materials.tile_store("train"), materials.tile_mean)
    store = materials.text_store(d.word_drop, config.seed) if d.word_drop else materials.index.store
    shuffle = config.seed if d.target == "shuffled_text" else None
    return text_targets(ids, materials.pairs, materials.index, store, shuffle)


def _score(config: Config, validation: TileSet, say: Callable[[str], None]) -> "Score | None":
    """The monitored metric on the labelled validation tiles; None when there are none."""
    known = validation.labels >= 0
    if not known.any():
        say("note: no validation tile has a label; the last step's weights are used")
        return None

    def score(logits: Float32[np.ndarray, "n classes"]) -> float | None:
        found = compute_metrics(validation.labels[known], softmax(logits[known]))
        value: float | None = found[config.training.monitor]
        return value

    return score


def _fit(
    config: Config,
    materials: Materials,
    tiles: TileSet,
    student: "Student",
    backbone: "Backbone",
    targets: Targets | None,
    folder: Path,
    here: Processes,
) -> "Outcome":
    from accelerate import Accelerator

    from clipit.training.checkpoints import latest_checkpoint
    from clipit.training.loop import TrainingData, train
    from clipit.training.warm_start import warm_start

    train_tiles, validation = tiles.of_split("train"), tiles.of_split("validation")
    # Validation tiles whose label is hidden choose nothing, so they are not read.
    rows = np.flatnonzero(validation.labels >= 0)
    data = TrainingData(
        plan=plan_batches(config, train_tiles.labels >= 0),
        source=materials.pixels("train", backbone.preprocess),
        labels=train_tiles.labels,
        keys=tile_keys(train_tiles.ids.tolist()),
        targets=targets,
        validation=materials.pixels("validation", backbone.preprocess),
        validation_rows=rows,
        score=_score(config, validation.select(rows), materials.say),
    )
    normalise = backbone.preprocess.normalise
    if config.student.warm_start and latest_checkpoint(folder / "checkpoints") is None:
        size = config.evaluation.batch_size
        warm_start(student, normalise, data.source, data.labels, targets, config.training, here, size)
    tracker = config.tracking.tracker
    accelerator = Accelerator(
        mixed_precision=config.training.precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder),
    )
    if tracker != "none":
        options = {"wandb": {"mode": config.tracking.wandb_mode, "name": f"{config.name}/{folder.name}"}}
        accelerator.init_trackers(
            config.tracking.project, {"arm": config.arm or "custom", "seed": config.seed}, options
        )
    outcome = train(config, student, normalise, data, folder, here, accelerator)
    for used in accelerator.trackers:  # end_training would also part the processes, which evaluate together
        used.finish()
    return outcome


def _export(
    config: Config,
    materials: Materials,
    tiles: TileSet,
    student: "Student",
    backbone: "Backbone",
    outcome: "Outcome",
    folder: Path,
) -> None:
    from clipit.models.classifier import export_classifier

    write_json(folder / "training.json", asdict(outcome) | _facts(config, materials, tiles, backbone))
    projects = config.student.projector_layers > 0
    classes = materials.class_embeddings() if projects else None
    prompts = materials.prompts
    export_classifier(
        student,
        backbone,
        folder / "classifier",
        classes=tiles.classes,
        vlm_info=materials.vlm.describe() if projects else None,
        text_mean=materials.text_mean if projects else None,
        prompts={} if classes is None or prompts is None else {prompts.name: (tiles.classes, classes)},
        provenance={"run": folder.name, "commit": git_commit(), "seed": config.seed},
    )


def _facts(config: Config, materials: Materials, tiles: TileSet, backbone: "Backbone") -> dict[str, Any]:
    """What must stand beside every score of the run."""
    train, validation = tiles.of_split("train"), tiles.of_split("validation")
    facts: dict[str, Any] = {
        "backbone": backbone.name,
        "backbone_fingerprint": backbone.fingerprint,
        "pixels": backbone.preprocess.size,
        "preprocess": backbone.preprocess.hash,
        "tiles": tiles.fingerprint,
        "training_labels": int((train.labels >= 0).sum()),
        "validation_labels": int((validation.labels >= 0).sum()),
        "training_tiles": len(train),
        "quarantined": list(tiles.quarantined),
    }
    if config.student.projector_layers:
        facts |= {"vlm": materials.vlm.name, "vlm_fingerprint": materials.vlm.fingerprint}
    if config.distillation.tiles != "none" and config.distillation.target != "image":
        facts |= {"index": materials.index.artifact.fingerprint, "pairs": materials.pairs.artifact.fingerprint}
    if materials.prompts is not None:
        facts |= {"prompts": materials.prompts.name, "prompts_hash": materials.prompts.hash}
    return facts
