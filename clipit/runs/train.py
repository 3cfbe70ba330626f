"""Train and evaluate a model, from a configuration to an exported classifier, predictions and results."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ConfigError, DivergenceError
from clipit.evaluation.predictions import softmax
from clipit.images.image_set import crop_warning
from clipit.output_files.run_files import RUN_FINGERPRINT, recorded_fingerprint, write_run_json
from clipit.reporting.training_curves import describe_log
from clipit.runs.evaluate import evaluate_run, evaluated_splits
from clipit.runs.fingerprint import run_fingerprint
from clipit.runs.folder import (
    claim_folder,
    copy_run,
    delete_temporary_files,
    find_equal_run,
    find_missing_output,
    is_trained,
    read_training,
    resolve_run_precision,
    run_folder,
    run_lock,
)
from clipit.runs.predict_tiles import classifier_logits, open_classifier
from clipit.runs.tracking import finish_trackers, flat_test_scores, start_trackers, tracked_keys
from clipit.runs.training_tiles import write_training_tiles
from clipit.tiles.augment import tile_keys
from clipit.tiles.tileset import TileSet
from clipit.training.arms import resolve_arm
from clipit.training.batches import BatchPlan, plan_batches
from clipit.training.config_checks import check_keys
from clipit.training.monitor import LABEL_FREE, make_monitor
from clipit.training.terms.term import Probabilities, Term
from clipit.training.terms.term_table import (
    active_terms,
    describe_terms,
    models_of,
    prepare_terms,
    teaches_text,
    uses_reports,
    uses_vlm,
)
from clipit.versions import git_commit
from clipit.workspace.preflight import check_inputs
from clipit.workspace.tile_reading import tile_sizes
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from clipit.models.backbones import Backbone
    from clipit.models.student import Student
    from clipit.training.memory_plan import MemoryPlan
    from clipit.training.train_student import TrainingOutcome

logger = logging.getLogger(__name__)


def train_run(config: RunConfig, workspace: Workspace | None = None, equal_runs: Sequence[Path] = ()) -> Path:
    """Train and evaluate a model, or resume its run.

    A finished run is left unchanged unless its predictions are missing or keys of `evaluation` have changed; it is then
    re-evaluated.

    Args:
        config: Run configuration, with or without an arm.
        workspace: Workspace shared with other runs on the same data; created from `config` by default.
        equal_runs: Folders of other runs, which need not exist. If one has the same fingerprint, its trained classifier
            is copied and evaluated instead of training again.

    Returns:
        The run's folder: config.yaml, metrics.jsonl, checkpoints/, training.json, classifier/, predictions.parquet,
        results.json, summary.md and, with `evaluation.page`, report.html and plots.

    Raises:
        ConfigError: The arm's keys contradict each other.
        ArtifactError: The folder contains a run with a different configuration, or its classifier or results are
            damaged.
    """
    unresolved, config = config, resolve_run_precision(resolve_arm(config))
    check_keys(config)
    processes = get_processes()
    folder = run_folder(config)
    # An arm may change pairing or embedding; inputs that it shares with other arms stay in memory.
    workspace = Workspace(config) if workspace is None else workspace.for_config(config)
    check_inputs(workspace, models_of(config), reports=uses_reports(config))

    @cache
    def image_only_run() -> Path:
        # Use a separate name, since a comparison or sweep may contain an image-only run with other keys.
        keys = {"arm": "image_only", "name": f"{unresolved.name}-teacher"}
        return train_run(unresolved.model_copy(update=keys), workspace)

    def image_only(split: str) -> Probabilities:
        classifier = open_classifier(config, image_only_run())
        source = workspace.pixels(split, classifier.spec.preprocess)
        return softmax(classifier_logits(classifier, source, config.evaluation.batch_size, split)[0])

    with run_lock(folder) if processes.main else nullcontext(False) as writable:
        if writable:
            delete_temporary_files(folder)
        _train_and_evaluate(config, workspace, folder, processes, image_only, equal_runs)
    return folder


def _train_and_evaluate(
    config: RunConfig,
    workspace: Workspace,
    folder: Path,
    processes: Processes,
    image_only: Callable[[str], Probabilities],
    equal_runs: Sequence[Path],
) -> None:
    from clipit.training.memory_plan import plan_memory

    tiles = workspace.tiles(config.seed)
    # Before models are loaded, so that missing labels and missing tiles are reported early.
    evaluated_splits(config, tiles)
    plan = plan_batches(config, tiles.of_split("train").labels >= 0)
    student, backbone = _build_student(config, workspace, tiles)
    fingerprint = run_fingerprint(config, workspace, backbone.fingerprint)
    equal = processes.broadcast(find_equal_run(folder, fingerprint, equal_runs) if processes.main else None)
    own_facts: dict[str, Any] = {}
    if equal is not None:
        own_facts = _facts(config, workspace, tiles, backbone, read_training(equal).get("score"))
    if processes.main:
        if equal is not None:
            copy_run(equal, folder, config, own_facts)
        claim_folder(folder, config, fingerprint)
    processes.barrier()
    evaluated = processes.broadcast((folder / "results.json").is_file())
    trackers: list[GeneralTracker] = []  # open until the test scores are logged
    steps = 0
    if not processes.broadcast(is_trained(folder)):
        if evaluated:
            logger.info(f"note: {folder} has results but no classifier, so the run is trained again")
        preprocess, t = backbone.preprocess, config.training
        reads = {"train": t.steps * t.tiles_per_step, "validation": None}
        caches = [workspace.pixels(split, preprocess).cache_bytes(preprocess.size, n) for split, n in reads.items()]
        cached, held = map(sum, zip(*caches, strict=True))
        memory = plan_memory(config, student, preprocess.normalise, preprocess.size, cached, held)
        terms, term_facts = prepare_terms(config, workspace, tiles, image_only)
        result, trackers = _train(config, workspace, tiles, plan, student, backbone, terms, folder, memory)
        _check_weights(student, processes)
        steps = result.steps
        # All processes compute the exported parts together; the main process writes them.
        facts = _facts(config, workspace, tiles, backbone, result.score)
        sections = facts.get("sections", {}) | term_facts.pop("sections", {})
        facts |= term_facts | ({"sections": sections} if sections else {})
        text = _text_side(config, workspace)
        if processes.main:
            write_training_tiles(folder, tiles, workspace.tiles_as_read.fingerprint)
            facts |= describe_log(folder / "metrics.jsonl")
            write_run_json(folder / "training.json", asdict(result) | memory.facts() | facts, folder)
            _export(student, backbone, workspace, text, folder, config)
    else:
        missing = processes.broadcast(find_missing_output(folder, config))
        if not missing:
            return
        if evaluated:
            logger.info(f"note: {folder} lacks {missing}, so the run is re-evaluated")
    processes.barrier()
    results = evaluate_run(config, workspace, folder)
    finish_trackers(trackers, flat_test_scores(results), steps)
    processes.barrier()


def _check_weights(student: "Student", processes: Processes) -> None:
    """Stop all processes together if the last update of the weights diverged.

    Raises:
        DivergenceError: A weight is infinite or NaN.
    """
    if not all(processes.gather(all(bool(value.isfinite().all()) for value in student.parameters()))):
        raise DivergenceError(
            "training diverged: after the last step, a weight is infinite or not a number",
            where="training.learning_rate",
            fix="lower training.learning_rate, or check the backbone's weights and training.precision",
        )


def _build_student(config: RunConfig, workspace: Workspace, tiles: TileSet) -> "tuple[Student, Backbone]":
    import torch

    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student

    backbone = load_backbone(config.backbone, get_processes().device, seed=config.seed)
    workspace.warn_about_view(backbone.name, backbone.expected_mpp, backbone.preprocess)
    joint_dim = workspace.vlm.joint_dim if config.student.projector_layers else None
    second_dim = None if config.second_vlm is None else workspace.for_config(config.for_second_vlm()).vlm.joint_dim
    parameters = {name: value for term in active_terms(config) for name, value in term.initial_parameters().items()}
    torch.manual_seed(config.seed)  # for the heads and LoRA; loading the models may have consumed random numbers
    student = build_student(
        backbone,
        config.student,
        config.lora,
        config.backbone.tuning,
        n_classes=len(tiles.classes),
        joint_dim=joint_dim,
        second_dim=second_dim,
        loss_parameters=parameters,
    )
    return student, backbone


def _train(
    config: RunConfig,
    workspace: Workspace,
    tiles: TileSet,
    plan: BatchPlan,
    student: "Student",
    backbone: "Backbone",
    terms: Sequence[Term[Any]],
    folder: Path,
    memory: "MemoryPlan",
) -> "tuple[TrainingOutcome, list[GeneralTracker]]":
    """Train the student, and return the outcome and the trackers, which are still open."""
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    from clipit.models.checkpointing import checkpointed_backbone
    from clipit.models.precision import tf32_products
    from clipit.training.checkpoints import latest_checkpoint
    from clipit.training.step import TrainingData
    from clipit.training.train_student import Validation, train_student

    train_tiles, validation = tiles.of_split("train"), tiles.of_split("validation")
    # Validation tiles without a visible label are read only if the metric needs no labels.
    label_free = config.training.monitor in LABEL_FREE
    rows = np.arange(len(validation)) if label_free else np.flatnonzero(validation.labels >= 0)
    t = config.training
    workspace.cache_pixels("train", backbone.preprocess, t, t.steps * t.tiles_per_step / max(len(train_tiles), 1))
    validation_reads = t.steps // t.evaluate_every * len(rows) / max(len(validation), 1)
    workspace.cache_pixels("validation", backbone.preprocess, t, validation_reads)
    data = TrainingData(
        plan=plan,
        source=workspace.pixels("train", backbone.preprocess),
        labels=train_tiles.labels,
        keys=tile_keys(train_tiles.ids.tolist()),
        terms=terms,
    )
    monitor = make_monitor(config, validation.select(rows), terms)
    normalise = backbone.preprocess.normalise
    if latest_checkpoint(folder / "checkpoints") is None:
        for term in terms:
            term.initialise(student, normalise, data.source)
    try:
        # Set explicitly, because environment variables set by `accelerate launch` could otherwise change the results
        accelerator = Accelerator(
            mixed_precision=config.training.precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
        )
    except ValueError as error:  # fp16 without a GPU, or an earlier run in this process with a different precision
        raise ConfigError(
            f"training.precision={config.training.precision} cannot be used here: {' '.join(str(error).split())[:200]}",
            where="training.precision",
            fix="choose a precision that this device supports, and train runs with different precisions in separate "
            "processes",
        ) from error
    accelerator.trackers = start_trackers(config, folder, tracked_keys(config), config.arm or "custom")
    scored = Validation(workspace.pixels("validation", backbone.preprocess), rows, monitor)
    training = config.training.model_copy(update={"accumulation": memory.micro_batches})
    config = config.model_copy(update={"training": training})
    # TF32 is used only in training: the exported classifier predicts in float32, for equal scores on all devices.
    with tf32_products(accelerator.device), checkpointed_backbone(student.backbone, memory.checkpointing):
        result = train_student(config, student, normalise, data, scored, folder, accelerator)
    return result, accelerator.trackers


@dataclass(frozen=True)
class _TextSide:
    """Text part of an exported classifier, for zero-shot prediction; contains neither report text nor snippets."""

    vlm: dict[str, Any]
    mean: Float32[np.ndarray, "dim"] | None
    prompts: dict[str, tuple[tuple[str, ...], Float32[np.ndarray, "classes dim"]]]
    hashes: dict[str, str]


def _text_side(config: RunConfig, workspace: Workspace) -> _TextSide | None:
    """Build the text part of the classifier; None if the projector does not predict the VLM's text embeddings."""
    if not teaches_text(config):
        return None
    prompts, classes = workspace.prompts, workspace.class_embeddings()
    embedded = {} if prompts is None or classes is None else {prompts.name: (workspace.all_tiles.classes, classes)}
    hashes = {} if prompts is None else {prompts.name: prompts.hash}
    return _TextSide(workspace.vlm.describe(), workspace.text_mean, embedded, hashes)


def _export(
    student: "Student",
    backbone: "Backbone",
    workspace: Workspace,
    text: _TextSide | None,
    folder: Path,
    config: RunConfig,
) -> None:
    from clipit.models.export_classifier import export_classifier
    from clipit.models.loading import public_name

    tiles = workspace.tiles(config.seed)
    export_classifier(
        student,
        backbone,
        folder / "classifier",
        classes=tiles.classes,
        vlm_info=text.vlm if text else None,
        text_mean=text.mean if text else None,
        prompts=text.prompts if text else None,
        mpp=tiles.median_mpp,
        tile_pixels=_tile_pixels(workspace),
        provenance={
            "run": folder.name,
            RUN_FINGERPRINT: recorded_fingerprint(folder),
            "commit": git_commit(),
            "seed": config.seed,
            "vlms": [public_name(vlm.name) for vlm in (config.vlm, config.second_vlm) if vlm and uses_vlm(config)],
            "prompt_hashes": text.hashes if text else {},
        },
    )


def _tile_pixels(workspace: Workspace) -> int | None:
    """Return the edge length of the tiles in pixels; None if sampled tiles differ in size or are not square."""
    edges = {edge for size in tile_sizes(workspace.tiles_as_read, workspace.cached) for edge in size}
    return edges.pop() if len(edges) == 1 else None


def _facts(
    config: RunConfig, workspace: Workspace, tiles: TileSet, backbone: "Backbone", score: float | None
) -> dict[str, Any]:
    """Collect the provenance that training.json and all scores record; `score` is that of the selected step."""
    train, validation = tiles.of_split("train"), tiles.of_split("validation")
    crop = crop_warning(tile_sizes(workspace.tiles_as_read, workspace.cached)) if backbone.preprocess.crops else None
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
        "notes": [*tiles.notes, *([f"WARNING: {crop}"] if crop else [])],
    }
    if uses_vlm(config):
        facts |= {"vlm": workspace.vlm.name, "vlm_fingerprint": workspace.vlm.fingerprint}
    facts["terms"] = describe_terms(config, validated=score is not None)
    if uses_reports(config):
        facts |= {"index": workspace.index.artifact.fingerprint, "pairs": workspace.pairs.artifact.fingerprint}
        facts |= {key: workspace.snippets.manifest.facts[key] for key in ("reports", "snippets")}
        facts["sections"] = {"Snippets": workspace.snippet_summary(), "Pairing": workspace.pairing_summary()}
    if workspace.prompts is not None:
        facts |= {"prompts": workspace.prompts.name, "prompts_hash": workspace.prompts.hash}
    return facts
