"""Probes and retrieval on frozen features: the VLM, the backbone, and the classifier of a finished run."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipit.artifacts import write_json
from clipit.config.run import RunConfig
from clipit.config.studies import ProbingConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, explain
from clipit.evaluation.features import Features, Probe
from clipit.evaluation.few_shot import few_shot
from clipit.evaluation.intervals import bootstrap_intervals
from clipit.evaluation.label_efficiency import label_efficiency
from clipit.evaluation.metrics import compute_metrics, why_undefined
from clipit.evaluation.neighbours import knn_probabilities, simple_shot
from clipit.evaluation.predictions import read_predictions
from clipit.evaluation.probes import adamw_probe, linear_probe
from clipit.evaluation.retrieval import RetrievalScore, class_match
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.reporting.label_plots import label_curves_plot
from clipit.stores.embed import centred
from clipit.studies.features import JOINT, Frozen, backbone_features, classifier_features, run_prompts, vlm_features
from clipit.studies.probing.tables import probing_chapters
from clipit.studies.probing.text_retrieval import text_retrieval
from clipit.studies.report import asked_with, made_by, recorded, study_note, write_study
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auroc", "kappa")
Row = dict[str, Any]


def probe(config: RunConfig, probing: ProbingConfig, run: Path | None = None) -> Path:
    """Measure what frozen features hold, and write probing.parquet, .md, .html, .json and the label-efficiency plot.

    Args:
        config: Tiles, prompts, VLM and backbone.
        probing: Probes, shots and retrieval to measure.
        run: Folder of a finished run of this configuration, to be measured beside the untrained models.

    Returns:
        The folder with the tables.

    Raises:
        DataError: No test tile has a label, or the run knows other classes.
    """
    workspace = Workspace(config)
    _check_test(config, workspace.all_tiles)
    rows = [] if run is None else _run_rows(config, workspace, run)  # first: a wrong folder is found at once
    subjects = [*vlm_features(config, workspace), backbone_features(config, workspace)]
    if run is not None:
        subjects.append(classifier_features(config, workspace, run))
    rows += _zero_shot_rows(config, workspace, subjects[0])
    for what, score in text_retrieval(probing, workspace, subjects[0]):
        asked = {} if "caption" in what else asked_with(workspace.prompts)
        rows.append(_retrieval_row(JOINT, what, score) | asked)
    folder = config.output / "probing" / config.name
    if get_processes().main:
        for subject in subjects:
            logger.info(f"probing: {subject.name}")
            rows += _subject_rows(config, probing, workspace, subject)
        _write(config, probing, workspace, subjects, rows, folder, run)
    get_processes().barrier()
    return folder


def probes(p: ProbingConfig, seed: int = 0) -> dict[str, Probe]:
    """The probes of the configuration: name -> function of training, validation and test features."""

    def linear(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        """Logistic regression, its strength chosen on validation."""
        fitted = linear_probe(train.vectors, train.labels, validation.vectors, validation.labels, n_classes)
        return fitted.probabilities(vectors)

    def adamw(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        """eva's protocol."""
        seen, chosen_on = train.labelled(), validation.labelled()
        fitted = adamw_probe(
            seen.vectors, seen.labels, chosen_on.vectors, chosen_on.labels, n_classes,
            seed=seed, steps=p.adamw_steps, device=str(get_processes().device),
        )  # fmt: skip
        return fitted.probabilities(vectors)

    def knn(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        """Votes of the nearest training tiles."""
        return knn_probabilities(train, vectors, n_classes, p.neighbours)

    def shot(
        train: Features, validation: Features, vectors: Float[np.ndarray, "n d"], n_classes: int
    ) -> Float32[np.ndarray, "n c"]:
        """Nearest class mean."""
        return simple_shot(train, n_classes).probabilities(vectors)

    known: dict[str, Probe] = {"linear": linear, "adamw": adamw, "knn": knn, "simple_shot": shot}
    return {name: known[name] for name in p.probes}


def _subject_rows(config: RunConfig, p: ProbingConfig, workspace: Workspace, subject: Frozen) -> list[Row]:
    """Everything of one model's features."""
    visible, known = workspace.tiles(config.seed), workspace.all_tiles
    n_classes = len(known.classes)
    train, validation = subject.features(visible, "train"), subject.features(visible, "validation")
    test = subject.features(known, "test").labelled()
    rows: list[Row] = []
    for name, of_probe in probes(p, config.seed).items():
        counts = {"labels": len(train.labelled()), "validation_labels": len(validation.labelled())}
        base = {"subject": subject.name, "what": name} | counts
        try:
            probabilities = of_probe(train, validation, test.vectors, n_classes)
        except DataError as error:
            rows += [base | _cell(metric, None, reason=str(error).splitlines()[0]) for metric in _METRICS]
            continue
        rows += [base | row for row in _score_rows(config, test.labels, probabilities, test.groups, known.classes)]
    # Few shots and curves draw their own labels, from all that there are.
    train, validation = subject.features(known, "train"), subject.features(known, "validation")
    for shots in p.shots:
        found = few_shot(train, test, n_classes, shots, p.episodes, config.seed, p.metric)
        low, high = found.interval or (None, None)
        cell = _cell(p.metric, found.mean, low, high, found.reason) | {"spread": list(found.spread or ())}
        rows.append({"subject": subject.name, "what": "few_shot", "k": shots, "n": len(test)} | cell)
    for name, of_probe in probes(p, config.seed).items():
        for point in label_efficiency(train, validation, test, n_classes, of_probe, p.shares, p.seeds, p.metric):
            counts = {"labels": point.labels, "validation_labels": point.validation_labels, "n": len(test)}
            cell = _cell(p.metric, point.score, reason=point.reason)
            rows.append(
                {"subject": subject.name, "what": f"curve {name}", "share": point.share, "seed": point.seed}
                | counts
                | cell
            )
    for what, gallery in (("image to image, test", test), ("image to image, training", train)):
        scores = class_match(test, gallery, n_classes, p.at, p.votes_at, exclude_groups=p.exclude_groups)
        rows += [_retrieval_row(subject.name, what, score) for score in scores]
    return rows


def _zero_shot_rows(config: RunConfig, workspace: Workspace, joint: Frozen) -> list[Row]:
    """The VLM's zero-shot as it comes, and centred as pairing is; nothing without prompts."""
    prompts, known = workspace.prompts, workspace.all_tiles
    if prompts is None:
        return []
    test = joint.features(known, "test").labelled()
    readings = {"zero_shot": (None, None)} | (
        {} if workspace.text_mean is None else {"zero_shot, centred": (workspace.tile_mean, workspace.text_mean)}
    )
    rows: list[Row] = []
    for name, (tile_mean, text_mean) in readings.items():
        classes = prompt_embeddings(prompts, workspace.encode, text_mean, known.classes)
        moved = centred(np.asarray(test.vectors, dtype=np.float32), tile_mean)
        probabilities = zero_shot_probabilities(moved, classes, workspace.vlm.logit_scale)
        base = {"subject": joint.name, "what": name, "labels": 0, "validation_labels": 0} | asked_with(prompts)
        if text_mean is not None:
            base["index"] = workspace.index.artifact.fingerprint  # the mean is that of its snippets
        rows += [base | row for row in _score_rows(config, test.labels, probabilities, test.groups, known.classes)]
    return rows


def _run_rows(config: RunConfig, workspace: Workspace, run: Path) -> list[Row]:
    """The run's own answers on the test tiles, as it wrote them: its head, and its prompts where it has them.

    Raises:
        DataError: It was evaluated on other test tiles or classes, or not at all.
    """
    found = read_predictions(run / "predictions.parquet").select("test").by_id()
    test = workspace.all_tiles.of_split("test")
    if set(found.ids.tolist()) != set(test.ids.tolist()) or found.classes != test.classes:
        raise DataError(
            explain(
                "the run's predictions are of other test tiles or classes",
                where=run / "predictions.parquet",
                fix="give the run of this configuration, with test among its evaluation.splits",
            )
        )
    found = found.take(found.labels >= 0)
    answers = {"own head": found.probabilities}
    if found.zero_shot is not None:
        answers["zero_shot, student"] = found.zero_shot
    rows: list[Row] = []
    for name, probabilities in answers.items():
        scored = _score_rows(config, found.labels, probabilities, found.groups, found.classes)
        asked = run_prompts(run) if name == "zero_shot, student" else {}
        rows += [{"subject": f"classifier {run.name}", "what": name} | asked | row for row in scored]
    return rows


def _score_rows(
    config: RunConfig,
    labels: Int64[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n c"],
    groups: np.ndarray,
    classes: tuple[str, ...],
) -> list[Row]:
    scores = compute_metrics(labels, probabilities)
    intervals = bootstrap_intervals(labels, probabilities, groups, config.evaluation.bootstrap, config.seed)
    rows = []
    for name in _METRICS:
        reason = intervals[name].reason if scores[name] is not None else why_undefined(name, labels, classes)
        cell = _cell(name, scores[name], intervals[name].low, intervals[name].high, reason)
        rows.append(cell | {"n": len(labels)})
    return rows


def _retrieval_row(subject: str, what: str, score: RetrievalScore) -> Row:
    base = {"subject": subject, "what": what, "k": score.k, "n": score.queries, "gallery": score.gallery}
    return base | _cell(score.name, score.value, reason=score.reason) | {"random": score.random, "fold": score.fold}


def _cell(
    metric: str, value: float | None, low: float | None = None, high: float | None = None, reason: str = ""
) -> Row:
    return {"metric": metric, "value": value, "low": low, "high": high, "reason": reason}


def _check_test(config: RunConfig, tiles: TileSet) -> None:
    if not (tiles.of_split("test").labels >= 0).any():
        raise DataError(
            explain("no test tile has a label", where=config.tiles.path, fix="give labelled tiles of the split test")
        )


def _write(
    config: RunConfig,
    probing: ProbingConfig,
    workspace: Workspace,
    subjects: Sequence[Frozen],
    rows: list[Row],
    folder: Path,
    run: Path | None,
) -> None:
    facts = {subject.name: subject.facts for subject in subjects}
    tiles, prompts, made = workspace.all_tiles, workspace.prompts, made_by()
    common = {"split": "test", "classes": len(tiles.classes), "tiles_fingerprint": tiles.fingerprint}
    whole = recorded(rows, {**common, "seed": config.seed, **made}, facts)
    provenance = {
        "config": config.model_dump(mode="json") | {"probing": probing.model_dump(mode="json")},
        **made,
        "versions": json.loads(made["versions"]),
        "run": None if run is None else str(run),
        "tiles": tiles.fingerprint,
        "classes": list(tiles.classes),
        "prompts": None if prompts is None else {"name": prompts.name, "hash": prompts.hash},
        "subjects": facts,
    }
    write_json(folder / "probing.json", provenance)
    curves = [row for row in rows if row["what"].startswith("curve ")]
    plot = "label_efficiency.png" if any(row["value"] is not None for row in curves) else None
    if plot:
        series: dict[str, list[tuple[float, float | None]]] = {}
        for row in curves:
            name = f"{row['subject']}: {row['what'].removeprefix('curve ').replace('_', ' ')}"
            series.setdefault(name, []).append((row["share"], row["value"]))
        label_curves_plot(series, folder / plot, metric=probing.metric, title=config.name)
    chapters = probing_chapters(probing, config.seed, whole, provenance, plot)
    write_study(folder, "probing", f"{config.name}: probes of frozen features", study_note(config), chapters, whole)
