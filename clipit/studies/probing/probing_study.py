"""Probes and retrieval on frozen features of the VLM, the backbone, and the classifier of a finished run."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64

from clipit.config.run import RunConfig
from clipit.config.studies import ProbingConfig
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.features import Features, Probe
from clipit.evaluation.few_shot import few_shot
from clipit.evaluation.intervals import bootstrap_intervals
from clipit.evaluation.label_efficiency import label_efficiency
from clipit.evaluation.metrics import METRICS, compute_metrics, describe_coverage, explain_undefined
from clipit.evaluation.neighbours import knn_probabilities, simple_shot
from clipit.evaluation.predictions import read_run_predictions
from clipit.evaluation.probes import adamw_probe, linear_probe
from clipit.evaluation.retrieval import RetrievalScore, class_match
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.output_files.artifacts import locked, write_json
from clipit.progress import progress
from clipit.reporting.plots import save_plot
from clipit.reporting.score_plots import plot_label_efficiency
from clipit.reporting.study_page import (
    StudyRow,
    add_provenance,
    collect_provenance,
    iter_groups,
    prompt_columns,
    study_note,
    write_study,
)
from clipit.runs.feature_stores import JOINT
from clipit.runs.folder import explaining_differences
from clipit.studies.model_features import (
    FrozenFeatures,
    backbone_features,
    classifier_features,
    run_prompts,
    vlm_features,
)
from clipit.studies.probing.probing_sections import probing_sections
from clipit.studies.probing.text_retrieval import text_retrieval
from clipit.tiles.tileset import TileSet
from clipit.vectors import centred
from clipit.workspace.leak_policy import leak_notes
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_METRICS = tuple(name for name in METRICS if name != "ece")  # calibration is part of the robustness study
CURVE_PLOT = "label_efficiency.png"


@dataclass(frozen=True, kw_only=True)
class ProbingRow(StudyRow):
    """One score of one model's features.

    Attributes:
        task: Evaluation task: a probe, few-shot episodes, label efficiency, zero-shot classification or retrieval.
        value: Score; None if undefined.
        low: Lower bound of the 95% interval.
        high: Upper bound of the 95% interval.
        n: Number of test tiles or queries.
        k: Shots per class, or number of items retrieved.
        random: Score expected by chance.
        fold: Score divided by the score expected by chance.
        spread: 2.5% and 97.5% quantiles of the scores over few-shot episodes.
        share: Fraction of the training labels.
    """

    task: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    n: int | None = None
    labels: int | None = None
    validation_labels: int | None = None
    k: int | None = None
    gallery: int | None = None
    random: float | None = None
    fold: float | None = None
    spread: list[float] | None = None
    share: float | None = None


def probe(config: RunConfig, probing: ProbingConfig, run: Path | None = None) -> Path:
    """Probe frozen features; write probing.parquet, .md, .html, .json and the label-efficiency plot.

    Args:
        probing: Probes, few-shot episodes and retrieval tasks to run.
        run: Folder of a finished run with this configuration, to evaluate in addition to the untrained models.

    Returns:
        The output folder.

    Raises:
        DataError: No test tile has a label, or the run has different classes.
    """
    workspace = Workspace(config)
    check_inputs(workspace, ["vlm", "backbone"], reports=probing.centred)
    _require_test_labels(config, workspace.listed_tiles)
    rows: list[ProbingRow] = []
    if run is not None:  # first, so that a wrong folder is reported early
        with explaining_differences(run, config):
            rows += _run_rows(config, workspace, run)
    models = [*vlm_features(config, workspace), backbone_features(config, workspace)]
    if run is not None:
        models.append(classifier_features(config, workspace, run))
    rows += _zero_shot_rows(config, probing, workspace, models[0])
    for task, score in text_retrieval(probing, workspace, models[0]):
        prompts = prompt_columns(None if "caption" in task else workspace.prompts)
        rows.append(replace(_retrieval_row(JOINT, task, score), **prompts))
    folder = config.output / "probing" / config.name
    if get_processes().main:
        for model in models:
            logger.info(f"probing: {model.name}")
            parts = (
                _probe_rows(config, probing, workspace, model),
                _few_label_rows(config, probing, workspace.all_tiles, model),
                _image_retrieval_rows(probing, workspace.all_tiles, model),
            )
            with progress(f"probing: {model.name}", len(parts)) as advance:
                for part in parts:
                    rows += part
                    advance()
        with locked(folder):  # another command may be writing the same study
            _write(config, probing, workspace, {model.name: model.facts for model in models}, rows, folder, run)
    get_processes().barrier()
    return folder


def _run_rows(config: RunConfig, workspace: Workspace, run: Path) -> Iterator[ProbingRow]:
    """Score the run's saved test predictions: those of its head and, if available, the zero-shot predictions.

    Raises:
        DataError: The run was evaluated on different test tiles or classes, or not at all.
    """
    predictions = read_run_predictions(run, workspace.all_tiles).select("test").by_id()
    if not len(predictions.ids):
        raise DataError(
            "the run has no predictions for test tiles",
            where=run / "predictions.parquet",
            fix="use a run with this configuration, and with test in evaluation.splits",
        )
    p = predictions.take(predictions.labels >= 0)
    head = ProbingRow(subject=f"classifier {run.name}", task="own head")
    yield from _score_rows(config, head, p.labels, p.probabilities, p.groups, p.classes)
    if p.zero_shot is not None:
        zero_shot = replace(head, task="zero_shot, student", **run_prompts(run))
        yield from _score_rows(config, zero_shot, p.labels, p.zero_shot, p.groups, p.classes)


def _zero_shot_rows(
    config: RunConfig, probing: ProbingConfig, workspace: Workspace, joint: FrozenFeatures
) -> Iterator[ProbingRow]:
    """Compute zero-shot scores of the VLM, without and, if configured, with centring; no rows without prompts."""
    prompts, tiles = workspace.prompts, workspace.all_tiles
    if prompts is None:
        return
    test = joint.split(tiles, "test").labelled()
    plain = ProbingRow(subject=joint.name, task="zero_shot", labels=0, validation_labels=0, **prompt_columns(prompts))
    variants: list[tuple[ProbingRow, Float32[np.ndarray, " D"] | None, Float32[np.ndarray, " D"] | None]]
    variants = [(plain, None, None)]
    if probing.centred and workspace.text_mean is not None:  # the mean over the snippets of the index
        fingerprint = workspace.index.artifact.fingerprint
        centred_row = replace(plain, task="zero_shot, centred", index=fingerprint)
        variants.append((centred_row, workspace.tile_mean, workspace.text_mean))
    for row, tile_mean, text_mean in variants:
        classes = prompt_embeddings(prompts, workspace.encode, text_mean, tiles.classes)
        images = centred(np.asarray(test.vectors, dtype=np.float32), tile_mean)
        probabilities = zero_shot_probabilities(images, classes, workspace.vlm.logit_scale)
        yield from _score_rows(config, row, test.labels, probabilities, test.groups, tiles.classes)


def _probe_rows(
    config: RunConfig, probing: ProbingConfig, workspace: Workspace, model: FrozenFeatures
) -> Iterator[ProbingRow]:
    """Compute the scores of every probe, with the labels that a run with this seed may use."""
    visible, tiles = workspace.tiles(config.seed), workspace.all_tiles
    train, validation = model.split(visible, "train"), model.split(visible, "validation")
    test = model.split(tiles, "test").labelled()
    for name, fit_predict in build_probes(probing, config.seed).items():
        row = ProbingRow(
            subject=model.name, task=name, labels=len(train.labelled()), validation_labels=len(validation.labelled())
        )
        try:
            probabilities = fit_predict(train, validation, test.vectors, len(tiles.classes))
        except DataError as error:
            for metric in _METRICS:
                yield replace(row, metric=metric, reason=str(error).splitlines()[0])
            continue
        yield from _score_rows(config, row, test.labels, probabilities, test.groups, tiles.classes)


def _few_label_rows(
    config: RunConfig, probing: ProbingConfig, tiles: TileSet, model: FrozenFeatures
) -> Iterator[ProbingRow]:
    """Compute the scores of few-shot episodes and label-efficiency curves, which draw from all training labels."""
    n_classes, metric = len(tiles.classes), probing.metric
    train, validation = model.split(tiles, "train"), model.split(tiles, "validation")
    test = model.split(tiles, "test").labelled()
    for shots in probing.shots:
        result = few_shot(train, test, n_classes, shots, probing.episodes, config.seed, metric)
        low, high = (result.interval.low, result.interval.high) if result.interval else (None, None)
        yield ProbingRow(
            subject=model.name, task="few_shot", metric=metric, k=shots, n=len(test),
            value=result.mean, low=low, high=high, reason=result.reason, spread=list(result.spread or ()),
        )  # fmt: skip
    for name, fit_predict in build_probes(probing, config.seed).items():
        shares, seeds = probing.shares, probing.seeds
        for point in label_efficiency(train, validation, test, n_classes, fit_predict, shares, seeds, metric):
            yield ProbingRow(
                subject=model.name, task=f"curve {name}", metric=metric, share=point.share, seed=point.seed,
                value=point.score, reason=point.reason, n=len(test),
                labels=point.labels, validation_labels=point.validation_labels,
            )  # fmt: skip


def _image_retrieval_rows(probing: ProbingConfig, tiles: TileSet, model: FrozenFeatures) -> Iterator[ProbingRow]:
    test = model.split(tiles, "test").labelled()
    galleries = {"image to image, test": test, "image to image, training": model.split(tiles, "train")}
    for task, gallery in galleries.items():
        for score in class_match(
            test, gallery, len(tiles.classes), probing.at, probing.votes_at, exclude_groups=probing.exclude_groups
        ):
            yield _retrieval_row(model.name, task, score)


def build_probes(probing: ProbingConfig, seed: int = 0) -> dict[str, Probe]:
    """Build the configured probes, fitted on training features; `linear` and `adamw` also use validation features."""

    def linear(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        fitted = linear_probe(train.vectors, train.labels, validation.vectors, validation.labels, n_classes)
        return fitted.probabilities(vectors)

    def adamw(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        train, validation = train.labelled(), validation.labelled()
        fitted = adamw_probe(
            train.vectors, train.labels, validation.vectors, validation.labels, n_classes,
            seed=seed, steps=probing.adamw_steps, device=str(get_processes().device),
        )  # fmt: skip
        return fitted.probabilities(vectors)

    def knn(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        return knn_probabilities(train, vectors, n_classes, probing.neighbours)

    def nearest_mean(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        return simple_shot(train, n_classes).probabilities(vectors)

    probes: dict[str, Probe] = {"linear": linear, "adamw": adamw, "knn": knn, "simple_shot": nearest_mean}
    return {name: probes[name] for name in probing.probes}


def _score_rows(
    config: RunConfig,
    row: ProbingRow,
    labels: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n c"],
    groups: np.ndarray,
    classes: tuple[str, ...],
) -> Iterator[ProbingRow]:
    """Yield the row once per metric, with its score and 95% interval."""
    scores = compute_metrics(labels, probabilities)
    intervals = bootstrap_intervals(labels, probabilities, groups, config.evaluation.bootstrap, config.seed)
    for name in _METRICS:
        value, bounds = scores[name], intervals[name]
        reason = bounds.reason if value is not None else explain_undefined(name, labels, classes)
        yield replace(row, metric=name, value=value, low=bounds.low, high=bounds.high, reason=reason, n=len(labels))


def _retrieval_row(subject: str, task: str, score: RetrievalScore) -> ProbingRow:
    return ProbingRow(
        subject=subject, task=task, metric=score.name, value=score.value, reason=score.reason,
        n=score.queries, k=score.k, gallery=score.gallery, random=score.random, fold=score.enrichment,
    )  # fmt: skip


def _require_test_labels(config: RunConfig, tiles: TileSet) -> None:
    if not (tiles.of_split("test").labels >= 0).any():
        fix = "add labelled test tiles, or set tiles.test_fraction"
        raise DataError("no test tile has a label", where=config.tiles.path, fix=fix)


def _write(
    config: RunConfig,
    probing: ProbingConfig,
    workspace: Workspace,
    models: Mapping[str, Mapping[str, object]],
    rows: list[ProbingRow],
    folder: Path,
    run: Path | None,
) -> None:
    tiles, prompts, process = workspace.all_tiles, workspace.prompts, collect_provenance()
    study = {"split": "test", "classes": len(tiles.classes), "tiles_fingerprint": tiles.fingerprint}
    frame = add_provenance(rows, {**study, "seed": config.seed, **process}, models)
    provenance = {
        "config": config.model_dump(mode="json") | {"probing": probing.model_dump(mode="json")},
        **process,
        "versions": json.loads(process["versions"]),
        "run": None if run is None else str(run),
        "tiles": tiles.fingerprint,
        "classes": list(tiles.classes),
        "prompts": None if prompts is None else {"name": prompts.name, "hash": prompts.hash},
        "subjects": models,
    }
    write_json(folder / "probing.json", provenance)
    curves = frame[frame.share.notna()]
    plot = CURVE_PLOT if curves.value.notna().any() else None
    if plot:
        figure = plot_label_efficiency(_curve_series(curves), metric=probing.metric, title=config.name)
        save_plot(figure, folder / plot)
    sections = probing_sections(probing, config.seed, frame, provenance, plot)
    coverage = describe_coverage(tiles.of_split("test").labels, tiles.classes, "the test split")
    note = study_note(config, coverage, *leak_notes(tiles.notes))
    write_study(folder, "probing", f"{config.name}: probes of frozen features", note, sections, frame)


def _curve_series(curves: pd.DataFrame) -> dict[str, list[tuple[float, float | None]]]:
    """Collect the points (share, score) of all seeds by model and probe."""
    return {
        f"{subject}: {task.removeprefix('curve ').replace('_', ' ')}": list(zip(group.share, group.value, strict=True))
        for (subject, task), group in iter_groups(curves, ["subject", "task"])
    }
