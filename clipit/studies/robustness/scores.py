"""Rows of the robustness tables: shifted sets and calibration; and the score in all of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.errors import DataError
from clipit.evaluation.calibration import MEASURES, Temperature, fit_temperature, weighted_calibration, with_temperature
from clipit.evaluation.intervals import bootstrap
from clipit.evaluation.metrics import reliability_bins, weighted_scores, why_undefined
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.studies.robustness.subjects import HEAD, ZERO, Subject, Vectors, vectors_of
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

Row = dict[str, Any]
Found = dict[tuple[str, str], Vectors]
"""(subject, part) -> vectors."""


def shifted_rows(
    config: RunConfig,
    settings: RobustnessConfig,
    subjects: list[Subject],
    parts: Mapping[str, TileSet],
    all_vectors: Found,
) -> list[Row]:
    """Scores on the test tiles and on each shifted set, without adaptation."""
    rows = []
    for subject in subjects:
        for part, tiles in parts.items():
            for reading, answer in subject.answers.items():
                probabilities = answer(all_vectors[subject.name, part][reading])
                base = {"what": "shifted", "subject": subject.name, "reading": reading, "part": part}
                cell = score_cell(config, settings, tiles, probabilities, None, config.evaluation.bootstrap)
                rows.append(base | cell)
    return rows


def calibration_rows(
    config: RunConfig, workspace: Workspace, subject: Subject, vlm_vectors: Vectors | None
) -> list[Row]:
    """ECE, NLL and Brier score on all test tiles before and after temperature scaling on the validation labels.

    Args:
        config: The configuration.
        workspace: Tiles.
        subject: A run: its predictions are read as it wrote them. The VLM: see the next.
        vlm_vectors: Of the VLM, of the validation and then the test tiles; None for a run.
    """
    rows: list[Row] = []
    for reading, table in _tables(config, workspace, subject, vlm_vectors).items():
        validation, test = table.select("validation"), table.select("test").by_id()
        test = test.take(test.labels >= 0)
        base = {"what": "calibration", "subject": subject.name, "reading": reading, "part": "test", "n": len(test.ids)}
        base |= {"tiles": workspace.all_tiles.of_split("test").fingerprint}  # all of them, not a sample
        fitted: Temperature | None = None
        reason = ""
        try:
            fitted = fit_temperature(validation.labels, validation.probabilities)
        except DataError as error:
            reason = str(error).splitlines()[0]
        states = {"before": test.probabilities}
        if fitted is not None:
            states["after"] = with_temperature(test.probabilities, fitted.value)
        for state, probabilities in states.items():
            cells = _calibration_cells(config, test, probabilities, None if state == "before" else test.probabilities)
            facts = {"state": state, "level": 1.0 if fitted is None or state == "before" else fitted.value}
            facts |= {"labels": int((validation.labels >= 0).sum()), "reliability": _bins(test.labels, probabilities)}
            rows += [base | facts | cell for cell in cells]
        if fitted is None:
            rows += [base | {"state": "after", "metric": name, "value": None, "reason": reason} for name in MEASURES]
    return rows


def _tables(
    config: RunConfig, workspace: Workspace, subject: Subject, vlm_vectors: Vectors | None
) -> dict[str, Predictions]:
    if subject.run is not None:
        found = read_predictions(subject.run / "predictions.parquet")
        tables = {HEAD: found}
        if found.zero_shot is not None and ZERO in subject.answers:
            tables[ZERO] = _of(found, found.zero_shot)
        return tables
    tiles = workspace.tiles(config.seed)
    both = [tiles.of_split(split) for split in ("validation", "test")]
    ids, splits, labels, groups = (
        np.concatenate([getattr(part, name) for part in both]) for name in ("ids", "splits", "labels", "groups")
    )
    probabilities = {name: subject.answers[name](vectors) for name, vectors in (vlm_vectors or {}).items()}
    return {
        name: Predictions(ids, splits, labels, groups, tiles.classes, found) for name, found in probabilities.items()
    }


def _of(found: Predictions, probabilities: Float32[np.ndarray, "n c"]) -> Predictions:
    return Predictions(found.ids, found.splits, found.labels, found.groups, found.classes, probabilities)


def _bins(labels: Int64[np.ndarray, " n"], probabilities: Float32[np.ndarray, "n c"]) -> list[dict[str, Any]]:
    return [dict(found) for found in reliability_bins(labels, probabilities)]


def _calibration_cells(
    config: RunConfig,
    test: Predictions,
    probabilities: Float32[np.ndarray, "n c"],
    before: Float32[np.ndarray, "n c"] | None,
) -> list[Row]:
    def statistics(weights: Float64[np.ndarray, "n r"]) -> dict[str, Float64[np.ndarray, " r"]]:
        """The measures, and their change, in each resample."""
        found = weighted_calibration(test.labels, probabilities, weights)
        if before is not None:
            old = weighted_calibration(test.labels, before, weights)
            found |= {f"change {name}": found[name] - old[name] for name in MEASURES}
        return found

    values = statistics(np.ones((len(test.labels), 1)))
    intervals = bootstrap(statistics, test.groups, config.evaluation.bootstrap, config.seed)
    rows = []
    for name in MEASURES:
        row: Row = {"metric": name, "value": float(values[name][0])}
        row |= {"low": intervals[name].low, "high": intervals[name].high, "reason": intervals[name].reason}
        if before is not None:
            of_change = intervals[f"change {name}"]
            row |= {"change": float(values[f"change {name}"][0])}
            row |= {"change_low": of_change.low, "change_high": of_change.high}
        rows.append(row)
    return rows


def score_cell(
    config: RunConfig,
    settings: RobustnessConfig,
    tiles: TileSet,
    probabilities: Float[np.ndarray, "n c"],
    before: Float[np.ndarray, "n c"] | None,
    resamples: int,
    metric: str = "",
) -> Row:
    """The score of some labelled tiles with its 95 % interval, and its paired change where there is one.

    Args:
        config: Its `robustness` section names the score.
        tiles: All with a label.
        probabilities: Of these, in their order.
        before: What the change is taken against.
        resamples: Of the intervals; 0: none.
        metric: The score; empty: the configured one.
    """
    metric = metric or settings.metric
    order = np.argsort(tiles.ids, kind="stable")
    labels, groups = tiles.labels[order], tiles.groups[order]

    def statistics(weights: Float64[np.ndarray, "n r"]) -> dict[str, Float64[np.ndarray, " r"]]:
        """The score, and its change, in each resample."""
        found = {"value": weighted_scores(labels, probabilities[order], weights, (metric,))[metric]}
        if before is not None:
            old = weighted_scores(labels, before[order], weights, (metric,))[metric]
            found["change"] = found["value"] - old
        return found

    values = statistics(np.ones((len(labels), 1)))
    intervals = bootstrap(statistics, groups, resamples, config.seed)
    row: Row = {"metric": metric, "n": len(labels), "bootstrap": resamples}
    for name, prefix in (("value", ""), ("change", "change_")):
        if name in values:
            value = float(values[name][0])
            row |= {name: value if np.isfinite(value) else None}
            row |= {f"{prefix}low": intervals[name].low, f"{prefix}high": intervals[name].high}
    undefined = row["value"] is None
    lacking = intervals["value"].reason if resamples else ""
    row["reason"] = why_undefined(metric, labels, tiles.classes) if undefined else lacking
    return row


def vlm_calibration_vectors(config: RunConfig, workspace: Workspace, subject: Subject) -> Vectors:
    """The VLM's vectors of all validation and then all test tiles; every process takes part."""
    parts = [
        vectors_of(subject, workspace.all_tiles.of_split(split), config, workspace) for split in ("validation", "test")
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in subject.answers}
