"""One run: from a configuration to an exported classifier, its predictions, results and summary."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from clipit.artifacts import git_commit, locked, write_json
from clipit.config.run import RunConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ConfigError, explain
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.predictions import softmax
from clipit.runs.evaluate import evaluate_run
from clipit.runs.fingerprint import run_fingerprint
from clipit.runs.folder import claim_folder, is_trained, lacking, run_folder
from clipit.runs.targets import Taught, make_teaching
from clipit.tiles.augment import tile_keys
from clipit.tiles.tileset import TileSet
from clipit.training.active_terms import sees_vlm, teaches_text, told_sources, uses_reports
from clipit.training.arms import resolve_arm, second_teacher
from clipit.training.batches import BatchPlan, plan_batches
from clipit.training.checks import LABEL_FREE, check
from clipit.training.soft_labels import agreement, information
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.backbones import Backbone
    from clipit.models.student import Student
    from clipit.training.loop import Outcome, Score

logger = logging.getLogger(__name__)


def train_run(config: RunConfig, workspace: Workspace | None = None) -> Path:
    """Carry out a run, or go on with it; nothing is done when it is finished.

    A finished run whose predictions are gone, or whose keys of `evaluation` have changed, is evaluated again.

    Args:
        config: With or without an arm.
        workspace: Shared with other runs of the same data; made from `config` when not given.

    Returns:
        The run's folder: config.yaml, metrics.jsonl, checkpoints/, classifier/, predictions.parquet, results.json,
        summary.md and plots.

    Raises:
        ConfigError: The recipe's keys do not fit each other.
        ArtifactError: The folder holds a run of another configuration, or its classifier or results are damaged.
    """
    asked, config = config, resolve_arm(config)
    check(config)
    processes = get_processes()
    folder = run_folder(config)
    # An arm may pair or embed in its own way; what it has in common with the others stays in memory.
    workspace = Workspace(config) if workspace is None else workspace.for_config(config)

    def image_only() -> Path:
        """The run of arm image_only with the same seed, trained when it is missing.

        Its name is its own: a comparison or a search may have an image-only run with other keys.
        """
        keys = {"arm": "image_only", "name": f"{asked.name}-teacher"}
        return train_run(asked.model_copy(update=keys), workspace)

    with locked(folder) if processes.main else nullcontext():
        _train_here(config, workspace, folder, processes, image_only)
    return folder


def _train_here(
    config: RunConfig, workspace: Workspace, folder: Path, processes: Processes, image_only: Callable[[], Path]
) -> None:
    tiles = workspace.tiles(config.seed)
    plan = plan_batches(config, tiles.of_split("train").labels >= 0)  # first: it finds missing labels at once
    student, backbone = _student(config, workspace, tiles)
    mark = run_fingerprint(config, workspace, backbone.fingerprint)
    if processes.main:
        claim_folder(folder, config, mark)
    processes.barrier()
    evaluated = processes.broadcast((folder / "results.json").is_file())
    if not processes.broadcast(is_trained(folder)):
        if evaluated:
            logger.info(f"note: {folder} has results but no classifier: it is made again")
        taught = make_teaching(config, workspace, tiles, image_only)
        outcome = _fit(config, workspace, tiles, plan, student, backbone, taught, folder, processes)
        # Every process takes part in building what is exported; one writes it.
        facts = _facts(config, workspace, tiles, backbone) | taught.facts
        text = _text_side(config, workspace)
        if processes.main:
            write_json(folder / "training.json", asdict(outcome) | facts)
            _export(student, backbone, tiles, text, folder, config.seed)
    else:
        missing = processes.broadcast(lacking(folder, config))
        if not missing:
            return
        if evaluated:
            logger.info(f"note: {folder} lacks {missing}: it is evaluated again")
    processes.barrier()
    evaluate_run(config, workspace, folder)
    processes.barrier()


def _student(config: RunConfig, workspace: Workspace, tiles: TileSet) -> "tuple[Student, Backbone]":
    import torch

    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student

    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, get_processes().device)
    workspace.warn_of_mpp(backbone.name, backbone.expected_mpp, backbone.preprocess)
    joint_dim = workspace.vlm.joint_dim if config.student.projector_layers else None
    second_dim = None
    if config.second_vlm is not None:
        second_dim = workspace.for_config(second_teacher(config)).vlm.joint_dim
    torch.manual_seed(config.seed)  # directly before: loading a VLM may draw numbers, too
    student = build_student(
        backbone,
        config.student,
        config.lora,
        config.backbone.tuning,
        n_classes=len(tiles.classes),
        joint_dim=joint_dim,
        second_dim=second_dim,
        temperature=config.bags.temperature if config.bags.learn_temperature else None,
    )
    return student, backbone


def _score(config: RunConfig, validation: TileSet, taught: Taught) -> "Score | None":
    """The monitored metric on the validation tiles; None when there is nothing to compute it from."""
    monitor = config.training.monitor
    if monitor == "information" and len(validation):
        return lambda logits: information(softmax(logits))
    if monitor == "agreement" and len(validation) and taught.judge is not None:
        judged = taught.judge("validation")
        return lambda logits: agreement(logits, judged)
    known = validation.labels >= 0
    if not known.any():
        logger.info("note: no validation tile has a label; the last step's weights are used")
        return None

    def score(logits: Float32[np.ndarray, "n classes"]) -> float | None:
        """The metric of these logits."""
        found = compute_metrics(validation.labels, softmax(logits))
        value: float | None = found[monitor]
        return value

    return score


def _fit(
    config: RunConfig,
    workspace: Workspace,
    tiles: TileSet,
    plan: BatchPlan,
    student: "Student",
    backbone: "Backbone",
    taught: Taught,
    folder: Path,
    processes: Processes,
) -> "Outcome":
    from accelerate import Accelerator

    from clipit.training.checkpoints import latest_checkpoint
    from clipit.training.loop import TrainingData, train
    from clipit.training.step import Lesson
    from clipit.training.warm_start import warm_start

    train_tiles, validation = tiles.of_split("train"), tiles.of_split("validation")
    # Validation tiles whose label is hidden choose nothing, so they are not read, unless no label is needed.
    unlabelled = config.training.monitor in LABEL_FREE
    rows = np.arange(len(validation)) if unlabelled else np.flatnonzero(validation.labels >= 0)
    lesson = Lesson(
        plan=plan,
        source=workspace.pixels("train", backbone.preprocess),
        labels=train_tiles.labels,
        keys=tile_keys(train_tiles.ids.tolist()),
        teaching=taught.teaching,
    )
    score = _score(config, validation.select(rows), taught)
    data = TrainingData(lesson, workspace.pixels("validation", backbone.preprocess), rows, score)
    normalise = backbone.preprocess.normalise
    if config.student.warm_start and latest_checkpoint(folder / "checkpoints") is None:
        size = config.evaluation.batch_size
        targets = taught.teaching.targets
        warm_start(student, normalise, lesson.source, lesson.labels, targets, config.training, processes, size)
    tracker = config.tracking.tracker
    accelerator = Accelerator(
        mixed_precision=config.training.precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder),
    )
    if tracker != "none" and not accelerator.log_with:
        raise ConfigError(
            explain(f"tracker {tracker} is not installed", where="tracking.tracker", fix=f"pip install {tracker}")
        )
    if tracker != "none":
        name = f"{config.name}/{folder.name}"
        options = {"wandb": {"mode": config.tracking.wandb_mode, "name": name, "dir": str(folder)}}
        accelerator.init_trackers(
            config.tracking.project, {"arm": config.arm or "custom", "seed": config.seed}, options
        )
    outcome = train(config, student, normalise, data, folder, processes, accelerator)
    for used in accelerator.trackers:  # end_training would also part the processes, which evaluate together
        used.finish()
    return outcome


@dataclass(frozen=True)
class _TextSide:
    """What the classifier keeps of the text side: no report text, no snippet."""

    vlm: dict[str, Any]
    mean: Float32[np.ndarray, "dim"] | None
    prompts: dict[str, tuple[tuple[str, ...], Float32[np.ndarray, "classes dim"]]]
    hashes: dict[str, str]


def _text_side(config: RunConfig, workspace: Workspace) -> _TextSide | None:
    """For zero-shot questions; None when the projector was taught nothing."""
    if not teaches_text(config) or config.distillation.text != "frozen":
        return None  # nothing was taught, or in a space of its own
    prompts, classes = workspace.prompts, workspace.class_embeddings()
    known = {} if prompts is None or classes is None else {prompts.name: (workspace.all_tiles.classes, classes)}
    hashes = {} if prompts is None else {prompts.name: prompts.hash}
    return _TextSide(workspace.vlm.describe(), workspace.text_mean, known, hashes)


def _export(
    student: "Student", backbone: "Backbone", tiles: TileSet, text: _TextSide | None, folder: Path, seed: int
) -> None:
    from clipit.models.export import export_classifier

    known = tiles.mpp[~np.isnan(tiles.mpp)]
    export_classifier(
        student,
        backbone,
        folder / "classifier",
        classes=tiles.classes,
        vlm_info=text.vlm if text else None,
        text_mean=text.mean if text else None,
        prompts=text.prompts if text else None,
        mpp=float(np.median(known)) if known.size else None,
        provenance={
            "run": folder.name,
            "commit": git_commit(),
            "seed": seed,
            "prompt_hashes": text.hashes if text else {},
        },
    )


def _facts(config: RunConfig, workspace: Workspace, tiles: TileSet, backbone: "Backbone") -> dict[str, Any]:
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
        "notes": list(tiles.notes),
    }
    if sees_vlm(config):
        facts |= {"vlm": workspace.vlm.name, "vlm_fingerprint": workspace.vlm.fingerprint}
    if config.second_vlm is not None:
        second = workspace.for_config(second_teacher(config)).vlm
        facts |= {"second_vlm": second.name, "second_vlm_fingerprint": second.fingerprint}
    facts["teaches"] = told_sources(config)
    if uses_reports(config):
        facts |= {"index": workspace.index.artifact.fingerprint, "pairs": workspace.pairs.artifact.fingerprint}
        facts["sections"] = {"Snippets": workspace.account_text(), "Pairing": workspace.pairing_text()}
    if workspace.prompts is not None:
        facts |= {"prompts": workspace.prompts.name, "prompts_hash": workspace.prompts.hash}
    return facts
