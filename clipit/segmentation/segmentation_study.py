"""Compare segmentation methods on the test masks of a configuration, alongside floors and ceilings."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from clipit.config.run import RunConfig
from clipit.config.segmentation import SegmentationConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, DataError, counted
from clipit.evaluation.segmentation_scores import count_pixels, foreground_dice, score_masks
from clipit.output_files.artifacts import locked, make_folder, write_json
from clipit.output_files.whole_files import write_parquet
from clipit.progress import progress
from clipit.reporting.csv_export import export_study
from clipit.reporting.html import Figure
from clipit.reporting.mask_overlays import plot_segmentation
from clipit.reporting.plots import save_plot
from clipit.reporting.study_page import add_provenance, collect_provenance, study_note, write_study
from clipit.runs.training_tiles import check_test_patients
from clipit.segmentation.decision import Decision, DecisionSearch, choose_decision
from clipit.segmentation.method import Method, MethodInputs, Segmenter
from clipit.segmentation.methods import select_methods
from clipit.segmentation.references import reference_counts
from clipit.segmentation.segmentation_sections import SegmentationRow, segmentation_sections, without_seed
from clipit.tiles.mask_files import MaskClasses
from clipit.tiles.masks import MaskSet, check_masks, open_masks
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

NAME = "segmentation"
"""Name of the study's folder in the output folder, and of its files."""


@dataclass(frozen=True)
class SegmentedMasks:
    """Result of one segmenter on the test masks.

    Attributes:
        decision: Decision rule.
        counts: Confusion matrix of each test image, in pixels.
        majority: Confusion matrices that would result if each window were assigned its majority class; None for a
            method that predicts per pixel.
        validation_masks: Number of validation masks used to choose a threshold or scales.
    """

    segmenter: Segmenter
    decision: Decision
    counts: Int64[np.ndarray, "n c c"]
    majority: Int64[np.ndarray, "n c c"] | None
    validation_masks: int


def segment(config: RunConfig, options: SegmentationConfig, run: Path | None = None) -> Path:
    """Compare segmentation methods on the test masks, and write tables, scores per image and a page.

    Methods are trained on the training masks; thresholds and scales of methods without training are chosen on the
    validation masks. Every process computes everything; only the main process writes.

    Args:
        config: Run configuration, whose tiles have masks.
        options: Section `segmentation`.
        run: Folder of a finished run for the methods that use its classifier; None if no run is given.

    Returns:
        Folder with segmentation.parquet, .csv, .json, .md and .html, images.parquet and the pictures.

    Raises:
        ConfigError: No mask classes are defined, or a method lacks inputs or classes.
        DataError: Masks cannot be used, no test tile has a mask, or the run was trained on test patients.
        ModelError: A configured method is not supported by its model.
    """
    if not options.classes:
        raise ConfigError(
            "no mask classes are defined",
            where="segmentation.classes",
            fix="name each class and its value in the masks, such as {stroma: 0, gland: 1}",
        )
    workspace = Workspace(config)
    check_inputs(workspace)
    masks = read_study_masks(config, options, workspace)
    if run is not None:
        leaks = check_test_patients(run, masks.of_split("test").tiles, config.leaks)
        masks = replace(masks, notes=(*masks.notes, *leaks))
    inputs = MethodInputs(config, options, workspace, masks, run)
    methods, notes = select_methods(inputs)
    test = masks.of_split("test")
    segmented = []
    for name, method in methods.items():
        logger.info(f"{name}: {method.title}")
        segmenters = method.prepare(inputs)
        if not segmenters:
            notes.append(
                f"{name} was skipped: every number in segmentation.training.masks is too large for "
                f"{counted(len(masks.of_split('train')), 'training mask')} (methods with pseudo-labels must leave at "
                "least one mask unused)"
            )
            logger.info(f"note: {notes[-1]}")
        segmented += [_segment(segmenter, method, inputs, test) for segmenter in segmenters]
    folder = config.output / NAME / config.name
    if get_processes().main:
        with locked(folder):  # another command may be writing the same study
            _write(inputs, test, segmented, folder, notes)
    get_processes().barrier()
    return folder


def read_study_masks(config: RunConfig, options: SegmentationConfig, workspace: Workspace) -> MaskSet:
    """Open and check the masks of all splits.

    Raises:
        DataError: Masks cannot be used, or no test tile has a mask.
    """
    classes = MaskClasses(tuple(options.classes), options.class_of, options.ignore)
    masks = check_masks(open_masks(config.tiles, workspace.all_tiles, classes), config.tiles.unreadable)
    counts = {split: len(masks.of_split(split)) for split in ("train", "validation", "test")}
    if not counts["test"]:
        raise DataError(
            "no test tile has a mask",
            where=config.tiles.path,
            fix="map a split of the table to test in tiles.splits, or hold out test patients with tiles.test_fraction",
        )
    logger.info("masks: " + ", ".join(f"{count} {split}" for split, count in counts.items()))
    for note in masks.notes:
        logger.info(f"note: {note}")
    if not counts["validation"]:
        logger.info("note: no validation tile has a mask, so no threshold or scale can be chosen")
    return masks


def _majority_decision(segmenter: Segmenter, validation: MaskSet, options: SegmentationConfig) -> Decision:
    """Choose the decision rule for the majority classes of windows in the same way as for the predictions."""
    search = DecisionSearch(validation.classes.names, options)
    if segmenter.majority is not None:
        for index in range(len(validation)):
            _, truth = validation.read(index)
            search.add(segmenter.majority(truth, float(validation.tiles.mpp[index])), truth)
    return search.best()


def _segment(segmenter: Segmenter, method: Method, inputs: MethodInputs, masks: MaskSet) -> SegmentedMasks:
    """Choose the decision rule, segment the test images, and compute their confusion matrices."""
    options, validation = inputs.options, inputs.masks.of_split("validation")
    classes = len(masks.classes.names)
    if method.trained:
        decision, chosen = Decision(), False
    else:
        decision = segmenter.decision or choose_decision(segmenter.probabilities, validation, options)
        chosen = decision.threshold is not None or bool(segmenter.choice)
    majority_decision = _majority_decision(segmenter, validation, options)
    counts, majorities = [], []
    with progress(f"segmenting: {segmenter.name}", len(masks)) as advance:
        for index in range(len(masks)):
            image, truth = masks.read(index)
            mpp = float(masks.tiles.mpp[index])
            predicted = decision.classes(segmenter.probabilities(image, mpp))
            counts.append(count_pixels(predicted, truth, classes))
            if segmenter.majority is not None:
                codes = majority_decision.classes(segmenter.majority(truth, mpp))
                majorities.append(count_pixels(codes, truth, classes))
            advance()
    return SegmentedMasks(
        segmenter, decision, np.stack(counts), np.stack(majorities) if majorities else None,
        len(validation) if chosen else 0,
    )  # fmt: skip


def _write(
    inputs: MethodInputs, test: MaskSet, segmented: Sequence[SegmentedMasks], folder: Path, notes: Sequence[str]
) -> None:
    config, options, masks = inputs.config, inputs.options, inputs.masks
    make_folder(folder)
    names = masks.classes.names
    references = reference_counts(test, options)
    scored: list[tuple[SegmentationRow, Int64[np.ndarray, "n c c"]]] = [
        (SegmentationRow(subject=reference.name, kind=reference.kind, tile_um=reference.tile_um), reference.counts)
        for reference in references
    ]
    facts: dict[str, Mapping[str, object]] = {reference.name: {"model": "none"} for reference in references}
    for each in segmented:
        segmenter = each.segmenter
        facts[segmenter.name] = segmenter.facts
        row = SegmentationRow(
            subject=segmenter.name, kind="method", training_masks=segmenter.training_masks, seed=segmenter.seed,
            threshold=each.decision.threshold, choice=segmenter.choice, validation_dice=_finite(each.decision.dice),
            validation_masks=each.validation_masks,
        )  # fmt: skip
        scored.append((row, each.counts))
        if each.majority is not None:
            name = f"majority class in the windows of {segmenter.name}"
            facts[name] = segmenter.facts
            scored.append((SegmentationRow(subject=name, kind="majority class"), each.majority))
    rows = [
        row.with_score(score)
        for row, counts in scored
        for score in score_masks(
            counts, test.tiles.patients, names, options.averaged, config.evaluation.bootstrap, config.seed
        )
    ]
    process = collect_provenance()
    known_groups = [name for name in test.tiles.patients.tolist() if name and name not in test.tiles.lone_slides]
    study = {
        "split": "test",
        "classes": len(names),
        "tiles_fingerprint": test.tiles.fingerprint,
        "masks_fingerprint": test.fingerprint,
        "test_masks": len(test),
        "patients": len({*known_groups}),
        "bootstrap": config.evaluation.bootstrap,
        **process,
    }
    frame = add_provenance(rows, study, facts)
    foreground = [names.index(name) for name in options.averaged]
    dice = {row.subject: foreground_dice(counts, foreground) for row, counts in scored}
    _write_images(folder / "images.parquet", test, scored, dice)
    first: dict[str, SegmentedMasks] = {}  # first seed of each method and number of masks
    for each in segmented:
        first.setdefault(without_seed(each.segmenter.name, each.segmenter.seed), each)
    plots = {
        each.segmenter.name: _plot_examples(each, test, dice, foreground, options, folder) for each in first.values()
    }
    provenance = {
        "config": config.model_dump(mode="json") | {"segmentation": options.model_dump(mode="json")},
        **study,
        "versions": json.loads(process["versions"]),
        "class_names": list(names),
        "masks_of_unknown_patients": len(test) - len(known_groups),
        "foreground": list(options.averaged),
        "masks": {split: len(masks.of_split(split)) for split in ("train", "validation", "test")},
        "notes": [*inputs.workspace.all_tiles.notes, *masks.notes, *notes],
        "subjects": facts,
        "run": None if inputs.run is None else str(inputs.run),
    }
    write_json(folder / f"{NAME}.json", provenance)
    sections = segmentation_sections(frame, provenance, plots)
    write_study(folder, NAME, f"{config.name}: segmentation", study_note(config), sections, frame)
    export_study(folder, NAME, folder / f"{NAME}.csv")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _write_images(
    path: Path,
    test: MaskSet,
    scored: Sequence[tuple[SegmentationRow, Int64[np.ndarray, "n c c"]]],
    dice: Mapping[str, Float64[np.ndarray, " n"]],
) -> None:
    """Write the confusion matrix and the Dice score for every image and segmentation."""
    records = [
        {
            "subject": row.subject,
            "tile_id": str(test.tiles.ids[index]),
            "group": str(test.tiles.groups[index]),
            "dice": _finite(float(dice[row.subject][index])),
            "counts": counts[index].tolist(),
        }
        for row, counts in scored
        for index in range(len(test))
    ]
    write_parquet(path, pa.Table.from_pylist(records), checksums=True)


def _plot_examples(
    each: SegmentedMasks,
    test: MaskSet,
    dice: Mapping[str, Float64[np.ndarray, " n"]],
    foreground: Sequence[int],
    options: SegmentationConfig,
    folder: Path,
) -> list[Figure]:
    """Draw the images with the best, the median and the worst Dice score."""
    values = dice[each.segmenter.name]
    order = [int(i) for i in np.argsort(-values, kind="stable") if np.isfinite(values[i])]
    middle = max(0, (len(order) - options.shown) // 2)
    picks = {
        "best": order[: options.shown],
        "median": order[middle : middle + options.shown],
        "worst": order[::-1][: options.shown],
    }
    plots = []
    for kind, indices in picks.items():
        for number, index in enumerate(indices):
            image, truth = test.read(index)
            predicted = each.decision.classes(each.segmenter.probabilities(image, float(test.tiles.mpp[index])))
            caption = f"{kind}: {test.tiles.ids[index]}, Dice {values[index]:.3f}"
            file = f"{_file_name(each.segmenter.name)}_{kind}_{number}.png"
            figure = plot_segmentation(image, truth, predicted, test.classes.names, foreground, caption)
            save_plot(figure, folder / file)
            plots.append(Figure(Path(file), caption, source=f"images.parquet: {each.segmenter.name}"))
    return plots


def _file_name(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name)
