"""Rows of the robustness study: scores on test tiles and shifted sets, and calibration."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64

from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.errors import DataError
from clipit.evaluation.calibration import MEASURES, fit_temperature, measure_calibration, with_temperature
from clipit.evaluation.intervals import Estimate, Interval, estimate
from clipit.evaluation.metrics import explain_undefined, reliability_bins, weighted_scores
from clipit.evaluation.predictions import Predictions, read_run_predictions
from clipit.reporting.study_page import StudyRow
from clipit.studies.robustness.measured_models import HEAD, ZERO_SHOT_OUTPUT, MeasuredModel, Vectors, compute_vectors
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

SetVectors = dict[tuple[str, str], Vectors]
"""Vectors by model and set of tiles."""


@dataclass(frozen=True, kw_only=True)
class RobustnessRow(StudyRow):
    """Score of one model and output.

    Attributes:
        analysis: Analysis that the row belongs to: `curve`, `shifted`, `calibration`, `adaptation`, `batch` or `guard`.
        output: Output of the model: `head` or `zero-shot`.
        test_set: Name of the test set: `test` or the name of a shifted set.
        perturbation: Name of the perturbation; `none` for unperturbed tiles of a curve.
        level: Level of the perturbation, or the temperature of a calibration.
        unit: Meaning or unit of the level.
        untouched: Number of tiles that the perturbation left unchanged.
        value: Score; None if undefined.
        low: Lower bound of the 95% interval.
        high: Upper bound of the 95% interval.
        change: Paired change from the unperturbed, uncalibrated or unadapted score.
        change_low: Lower bound of the change's 95% interval.
        change_high: Upper bound of the change's 95% interval.
        unadapted: Score without adaptation.
        guard: Verdict of the guard, `accepted` or `refused`.
        misfit: Misfit computed by the guard.
        concentration: Dirichlet concentration of the class proportions of a batch.
        largest_share: Fraction of the most frequent class of a batch.
        tiles: Fingerprint of the tiles used for calibration.
        state: State of calibration: `before` or `after` temperature scaling.
        settings: Kind of settings over which the guard's errors are counted.
        errors: Fields of `GuardErrors`, by name.
    """

    analysis: str
    output: str
    test_set: str | None = None
    perturbation: str | None = None
    level: float | None = None
    unit: str | None = None
    untouched: int | None = None
    n: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    change: float | None = None
    change_low: float | None = None
    change_high: float | None = None
    method: str | None = None
    unadapted: float | None = None
    guard: str | None = None
    misfit: float | None = None
    guard_reasons: str | None = None
    concentration: float | None = None
    largest_share: float | None = None
    tiles: str | None = None
    state: str | None = None
    labels: int | None = None
    reliability: list[dict[str, int | float | None]] | None = None
    settings: str | None = None
    errors: Mapping[str, float | int | None] = field(default_factory=dict)


def score_row(
    row: RobustnessRow,
    config: RunConfig,
    metric: str,
    tiles: TileSet,
    probabilities: Float[np.ndarray, "n c"],
    before: Float[np.ndarray, "n c"] | None = None,
) -> RobustnessRow:
    """Complete a row with its score, 95% interval and, given `before`, the paired change.

    Args:
        row: Row without a score.
        config: Run configuration, with the seed and number of bootstrap resamples.
        before: Reference class probabilities for the change.
    """
    order = np.argsort(tiles.ids, kind="stable")
    labels, groups = tiles.labels[order], tiles.patients[order]

    def compute(weights: Float64[np.ndarray, "n r"]) -> dict[str, Float64[np.ndarray, " r"]]:
        scores = {"value": weighted_scores(labels, probabilities[order], weights, (metric,))[metric]}
        if before is not None:
            scores["change"] = scores["value"] - weighted_scores(labels, before[order], weights, (metric,))[metric]
        return scores

    resamples = config.evaluation.bootstrap
    estimates = estimate(compute, groups, resamples, config.seed)
    score, change = estimates["value"], estimates.get("change", Estimate(None, Interval(None, None)))
    return replace(
        row,
        metric=metric,
        n=len(labels),
        value=score.value,
        low=score.interval.low,
        high=score.interval.high,
        change=change.value,
        change_low=change.interval.low,
        change_high=change.interval.high,
        reason=explain_undefined(metric, labels, tiles.classes)
        if score.value is None
        else score.interval.reason
        if resamples
        else "",
    )


def compute_score(metric: str, tiles: TileSet, probabilities: Float[np.ndarray, "n c"]) -> float | None:
    """Compute the score on labelled tiles without an interval; None if undefined."""
    order = np.argsort(tiles.ids, kind="stable")
    ones = np.ones((len(order), 1))
    return _finite_or_none(weighted_scores(tiles.labels[order], probabilities[order], ones, (metric,))[metric][0])


def shifted_rows(
    config: RunConfig,
    robustness: RobustnessConfig,
    models: list[MeasuredModel],
    test_sets: Mapping[str, TileSet],
    set_vectors: SetVectors,
) -> Iterator[RobustnessRow]:
    """Score every model on the test tiles and on each shifted set, without adaptation."""
    for model in models:
        for name, tiles in test_sets.items():
            for output, readout in model.readouts.items():
                probabilities = readout(set_vectors[model.name, name][output])
                row = RobustnessRow(analysis="shifted", subject=model.name, output=output, test_set=name)
                yield score_row(row, config, robustness.metric, tiles, probabilities)


def embed_for_calibration(config: RunConfig, workspace: Workspace, model: MeasuredModel) -> Vectors:
    """Compute a model's vectors for all validation and then all test tiles; must be called in all processes."""
    tiles = workspace.all_tiles
    vectors = [compute_vectors(model, tiles.of_split(split), config, workspace) for split in ("validation", "test")]
    return {output: np.concatenate([part[output] for part in vectors]) for output in model.readouts}


def calibration_rows(
    config: RunConfig, workspace: Workspace, model: MeasuredModel, vlm_vectors: Vectors | None
) -> Iterator[RobustnessRow]:
    """Compute ECE, NLL and Brier score on all test tiles before and after temperature scaling on validation labels.

    Args:
        model: Model of a run, whose stored predictions are read, or the VLM.
        vlm_vectors: Vectors from `embed_for_calibration` for the VLM; None for a run.
    """
    if model.run is not None:
        predictions = _read_run_predictions(model.run, model)
    else:
        predictions = _predict_vlm(config, workspace, model, vlm_vectors or {})
    fingerprint = workspace.all_tiles.of_split("test").fingerprint  # all test tiles, not a sample
    for output, table in predictions.items():
        validation, test = table.select("validation"), table.select("test").by_id()
        test = test.take(test.labels >= 0)
        row = RobustnessRow(
            analysis="calibration", subject=model.name, output=output, test_set="test", n=len(test.ids),
            tiles=fingerprint, labels=int((validation.labels >= 0).sum()),
        )  # fmt: skip
        before = replace(row, state="before", level=1.0, reliability=reliability_bins(test.labels, test.probabilities))
        yield from _measure_calibration(before, config, test, test.probabilities, None)
        try:
            fitted = fit_temperature(validation.labels, validation.probabilities)
        except DataError as error:
            reason = str(error).splitlines()[0]
            for measure in MEASURES:
                yield replace(row, state="after", metric=measure, reason=reason, labels=None)
            continue
        scaled = with_temperature(test.probabilities, fitted.value)
        after = replace(row, state="after", level=fitted.value, reliability=reliability_bins(test.labels, scaled))
        yield from _measure_calibration(after, config, test, scaled, test.probabilities)


def _read_run_predictions(run: Path, model: MeasuredModel) -> dict[str, Predictions]:
    predictions = read_run_predictions(run)
    tables = {HEAD: predictions}
    if predictions.zero_shot is not None and ZERO_SHOT_OUTPUT in model.readouts:
        tables[ZERO_SHOT_OUTPUT] = replace(predictions, probabilities=predictions.zero_shot, zero_shot=None)
    return tables


def _predict_vlm(
    config: RunConfig, workspace: Workspace, model: MeasuredModel, vectors: Vectors
) -> dict[str, Predictions]:
    """Predict with the VLM, keeping only the labels that a run with this seed may use."""
    tiles = workspace.tiles(config.seed)
    parts = [tiles.of_split(split) for split in ("validation", "test")]
    ids, splits, labels, groups = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "splits", "labels", "groups")
    )
    return {
        output: Predictions(ids, splits, labels, groups, tiles.classes, model.readouts[output](part))
        for output, part in vectors.items()
    }


def _measure_calibration(
    row: RobustnessRow,
    config: RunConfig,
    test: Predictions,
    probabilities: Float32[np.ndarray, "n c"],
    before: Float32[np.ndarray, "n c"] | None,
) -> Iterator[RobustnessRow]:
    """Yield one row per measure with its 95% interval and, given `before`, the paired change."""
    scores = measure_calibration(
        test.labels, probabilities, test.patients, before, resamples=config.evaluation.bootstrap, seed=config.seed
    )
    for name, score in scores.items():
        bounds, change = score.interval, score.change_interval
        measured = replace(row, metric=name, value=score.value, low=bounds.low, high=bounds.high, reason=bounds.reason)
        if change is not None:
            measured = replace(measured, change=score.change, change_low=change.low, change_high=change.high)
        yield measured


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
