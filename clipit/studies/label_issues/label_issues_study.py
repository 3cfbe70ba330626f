"""Find suspicious tile labels, and write label_issues.html, .csv and .json."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from clipit.config.run import RunConfig
from clipit.config.studies import LabelIssuesConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.evaluation.features import Features
from clipit.evaluation.intervals import Estimate
from clipit.evaluation.label_issues import (
    LabelIssues,
    OutOfFold,
    find_label_issues,
    out_of_fold_probabilities,
    rank_issues,
)
from clipit.evaluation.neighbours import nearest_neighbours
from clipit.output_files.artifacts import locked, write_json
from clipit.output_files.whole_files import text_array, write_rows, write_text
from clipit.patients import patients
from clipit.reporting.label_issues_page import LabelledTile, SuspiciousTile, label_issues_page
from clipit.reporting.study_page import collect_provenance, describe_model, study_note
from clipit.reporting.thumbnails import picture_uri
from clipit.runs.feature_stores import vlm_facts
from clipit.studies.label_issues.verified import read_verified, score_verified
from clipit.studies.model_features import backbone_features
from clipit.tiles.tileset import TileSet
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_SIDE, _SMALL = 128, 64  # edge length in pixels of the pictures of a tile and of its neighbours


def study_label_issues(config: RunConfig, options: LabelIssuesConfig) -> Path:
    """Find suspicious labels; write label_issues.html, .csv and .json to `<output>/label_issues/<name>`.

    The labels are those that a run with this configuration and seed may use (`tiles.labels`).

    Args:
        options: Features, splits and folds of the check.

    Returns:
        The output folder.

    Raises:
        DataError: There are no labels to check, there are fewer groups than folds, or the verified labels do not belong
            to the tiles.
        ModelError: cleanlab is not installed.
    """
    workspace = Workspace(config)
    check_inputs(workspace, [options.features])
    visible = workspace.tiles(config.seed)
    tiles = _labelled_tiles(visible, options)
    verified = None if options.verified is None else read_verified(Path(options.verified), tiles)
    features, facts = _features_of(tiles, visible, config, options, workspace)
    folder = config.output / "label_issues" / config.name
    if get_processes().main:
        with locked(folder):  # another command may be writing the same study
            _check(config, options, tiles, features, verified, facts, folder)
    get_processes().barrier()
    return folder


def _labelled_tiles(visible: TileSet, options: LabelIssuesConfig) -> TileSet:
    """Select the labelled tiles of the chosen splits."""
    tiles = visible.select(np.isin(visible.splits, options.splits) & (visible.labels >= 0))
    if not len(tiles):
        raise DataError(
            f"no labelled tiles in {', '.join(options.splits)}",
            where="label_issues.splits",
            fix="choose splits with labels; tiles.labels sets the labels that a run may use",
        )
    return tiles.select(np.concatenate([np.flatnonzero(tiles.splits == split) for split in options.splits]))


def _features_of(
    tiles: TileSet, visible: TileSet, config: RunConfig, options: LabelIssuesConfig, workspace: Workspace
) -> tuple[Features, dict[str, Any]]:
    """Return the features of the tiles, and the provenance of the model."""
    if options.features == "vlm":
        facts = vlm_facts(workspace)
        stores = {split: workspace.tile_store(split) for split in options.splits}
        vectors = [store.rows(store.positions(tiles.of_split(split).ids)) for split, store in stores.items()]
    else:
        frozen = backbone_features(config, workspace)
        facts = frozen.facts
        vectors = [frozen.vectors[split][visible.of_split(split).labels >= 0] for split in options.splits]
    groups = text_array(patients(tiles.groups, tiles.ids))
    return Features(tiles.ids, np.concatenate(vectors), tiles.labels, groups), facts


def _check(
    config: RunConfig,
    options: LabelIssuesConfig,
    tiles: TileSet,
    features: Features,
    verified: Int64[np.ndarray, " n"] | None,
    facts: dict[str, Any],
    folder: Path,
) -> None:
    """Rank the labels of these tiles, and write the files."""
    predicted = out_of_fold_probabilities(features, len(tiles.classes), folds=options.folds, seed=options.seed)
    notes = [*tiles.notes, *_remarks(tiles, features, predicted)]
    checked = predicted.checked
    tiles, features, probabilities = tiles.select(checked), features.take(checked), predicted.probabilities[checked]
    issues = find_label_issues(tiles.labels, probabilities)
    scores: dict[str, Estimate] = {}
    if verified is not None:
        scores, note = score_verified(
            verified[checked], tiles, issues, features.groups, resamples=config.evaluation.bootstrap, seed=config.seed
        )
        notes.append(note)
    order = rank_issues(issues, tiles.ids)
    about = {
        "labels checked": len(tiles),
        "suspicious labels": int(issues.flagged.sum()),
        "splits": ", ".join(options.splits),
        "features": describe_model(facts),
        "folds": f"{options.folds}, by patient or slide, seed {options.seed}",
        "inverse L2 penalty chosen in each fold": ", ".join(f"{value:g}" for value in predicted.inverse_penalties),
    }
    by_class = _count_by_class(tiles, issues)
    records = _records(tiles, features, issues, probabilities, predicted.folds[checked], order)
    write_rows(folder / "label_issues.csv", list(records[0]), records)
    write_json(
        folder / "label_issues.json",
        {
            "facts": about,
            "classes": by_class,
            "verified": {
                name: {"value": score.value, "low": score.interval.low, "high": score.interval.high}
                for name, score in scores.items()
            },
            "notes": notes,
            "tiles": tiles.fingerprint,
            "model": facts,
            "config": config.model_dump(mode="json") | {"label_issues": options.model_dump(mode="json")},
            **collect_provenance(),
        },
    )
    shown = order[issues.flagged[order]][: options.shown]
    page = label_issues_page(
        f"{config.name}: suspicious labels",
        study_note(config),
        about,
        by_class,
        _suspicious_tiles(tiles, features, issues, probabilities, shown, options.neighbours),
        scores,
        notes,
    )
    write_text(folder / "label_issues.html", page)
    logger.info(f"{counted_of(int(issues.flagged.sum()), len(tiles), 'label is', 'labels are')} suspicious")


def _remarks(tiles: TileSet, features: Features, predicted: OutOfFold) -> list[str]:
    remarks = []
    unchecked = ~predicted.checked
    if unchecked.any():
        names = [tiles.classes[code] for code in np.unique(tiles.labels[unchecked]).tolist()]
        remarks.append(
            f"{counted(int(unchecked.sum()), 'label is', 'labels are')} not checked, because all tiles of their "
            f"class ({shortlist(names)}) are in the same fold."
        )
    if (features.groups == "").any():
        remarks.append(
            "Tiles without a patient or slide (tiles.columns.group) are assigned to folds individually, so errors that "
            "several tiles of a patient share may be missed."
        )
    return remarks


def _count_by_class(tiles: TileSet, issues: LabelIssues) -> list[dict[str, Any]]:
    """Count the checked and suspicious labels of each given class, and find the most frequent suggestion."""
    rows = []
    for code, name in enumerate(tiles.classes):
        labelled = tiles.labels == code
        suggestions = np.bincount(issues.suggested[labelled & issues.flagged], minlength=len(tiles.classes))
        rows.append(
            {
                "class": name,
                "checked": int(labelled.sum()),
                "suspicious": int((labelled & issues.flagged).sum()),
                "estimated_wrong": None if np.isnan(issues.wrong[code]) else float(issues.wrong[code]),
                "suggested_most": tiles.classes[int(suggestions.argmax())] if suggestions.any() else None,
            }
        )
    return rows


def _records(
    tiles: TileSet,
    features: Features,
    issues: LabelIssues,
    probabilities: Float[np.ndarray, "n c"],
    folds: Int64[np.ndarray, " n"],
    order: Int64[np.ndarray, " n"],
) -> list[dict[str, object]]:
    """Return one row of label_issues.csv for each checked tile, the most suspicious first."""
    return [
        {
            "tile": tiles.ids[row],
            "split": tiles.splits[row],
            "group": features.groups[row],
            "label": tiles.classes[tiles.labels[row]],
            "suggested": tiles.classes[issues.suggested[row]],
            "suspicious": str(bool(issues.flagged[row])).lower(),
            "label_probability": f"{issues.quality[row]:.6f}",
            "suggested_probability": f"{probabilities[row, issues.suggested[row]]:.6f}",
            "fold": int(folds[row]),
        }
        for row in order.tolist()
    ]


def _suspicious_tiles(
    tiles: TileSet,
    features: Features,
    issues: LabelIssues,
    probabilities: Float[np.ndarray, "n c"],
    rows: Int64[np.ndarray, " k"],
    neighbours: int,
) -> list[SuspiciousTile]:
    """Collect the tiles shown on the page with their pictures, and the nearest tiles from other groups."""
    nearest = nearest_neighbours(features.take(rows), features, neighbours, exclude_groups=True)

    def labelled(row: int, side: int) -> LabelledTile:
        return LabelledTile(
            str(tiles.ids[row]), tiles.classes[tiles.labels[row]], str(features.groups[row]), _picture(tiles, row, side)
        )

    return [
        SuspiciousTile(
            labelled(row, _SIDE),
            str(tiles.splits[row]),
            float(issues.quality[row]),
            tiles.classes[issues.suggested[row]],
            float(probabilities[row, issues.suggested[row]]),
            [labelled(other, _SMALL) for other in neighbour_rows[neighbour_rows >= 0].tolist()],
        )
        for row, neighbour_rows in zip(rows.tolist(), nearest, strict=True)
    ]


def _picture(tiles: TileSet, row: int, side: int) -> str | None:
    try:
        return picture_uri(tiles, row, side=side)
    except DataError:  # a missing image, or features without images
        return None
