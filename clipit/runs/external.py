"""Evaluate a finished run on a new test set or with new prompts, in addition to its own results."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from clipit.config.effects import select_keys
from clipit.config.paths import to_file_name
from clipit.config.run import LabelsConfig, RunConfig, TilesConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError, DataError, ModelError, as_note, counted
from clipit.output_files.artifacts import locked, whole_folder
from clipit.output_files.differences import difference_lines, list_differences
from clipit.output_files.run_files import read_run_json
from clipit.patients import patients
from clipit.prompts.prompt_set import PromptSet, load_prompts
from clipit.runs.card import write_card
from clipit.runs.external_results import score_external, write_external
from clipit.runs.external_tiles import MappedTiles, map_to_classes, read_external
from clipit.runs.folder import EXTERNAL, read_results, read_run_config
from clipit.runs.predict_tiles import open_classifier, predict_tiles
from clipit.runs.prediction_inputs import class_embeddings
from clipit.runs.training_tiles import find_training_tiles
from clipit.tiles.datasets import DATASETS
from clipit.tiles.overview import tiles_overview
from clipit.tiles.view_warnings import view_warnings
from clipit.training.terms.term_table import models_of, uses_reports
from clipit.workspace.adapted_patients import adaptation_notes
from clipit.workspace.external_leaks import enforce_on_external, note_reports
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.inference import Classifier

logger = logging.getLogger(__name__)


def evaluate_external(
    run: Path,
    tiles: TilesConfig | None = None,
    prompts: str | None = None,
    name: str = "",
    config: RunConfig | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Score a finished run on new tiles or with new prompts; must be called by all processes.

    Predictions, scores, calibration and a page are written atomically to `external/<name>` in the run's folder.
    The only other file that changes is the classifier's card, which lists the scores.

    Args:
        run: Folder of the run.
        tiles: New tiles; None for the run's own test tiles.
        prompts: Prompt set for zero-shot predictions, as a file or the name of a packaged set; None for the run's own
            prompts.
        name: Name of the folder under `external/`; "" to derive it from the tiles and prompts.
        config: Configuration of the run (`read_run_config`), possibly with changes to `evaluation`, `leaks` or the
            paths of models; read from the folder by default.

    Returns:
        The folder, and the content of results.json (an empty dictionary except in the main process).

    Raises:
        DataError: Neither tiles nor prompts are given, no tile belongs to any of the classifier's classes, the prompts
            lack a class, or tiles leak from training and `leaks.policy` is `error`.
        ModelError: Prompts are given for a classifier that was trained without text.
        ArtifactError: The folder contains results for other tiles or prompts.
    """
    if tiles is None and prompts is None:
        raise DataError(
            "neither new tiles nor new prompts are given", where=run, fix="pass --tiles.path=... or --prompts=..."
        )
    config = read_run_config(run) if config is None else config
    run_results = read_results(run)
    prompt_set = None if prompts is None else load_prompts(prompts)
    folder = run / EXTERNAL / (name or _default_name(tiles, prompt_set))
    identity = _identity(tiles, prompt_set)
    _check_folder(folder, run, identity)
    classifier = open_classifier(config, run)
    notes = [] if prompt_set is None else _check_prompts(prompt_set, classifier, run)
    workspace = Workspace(read_run_config(run))
    mapped, checks = _new_tiles(run, tiles, config, workspace, classifier, folder.name)
    scored = mapped.tiles
    absent = [name for code, name in enumerate(scored.classes) if not (scored.labels == code).any()]
    notes += [*scored.notes, *checks["not_checked"]]
    if absent:
        present = len(scored.classes) - len(absent)
        notes.append(
            f"no tile is labelled {', '.join(absent)}: scores are computed over "
            f"{counted(present, 'other class', 'other classes')}"
        )
    for note in notes:
        logger.info(as_note(note))
    if not (scored.labels >= 0).any():
        raise DataError("no tile has a label", where=scored.where, fix="for tiles without labels, use clipit predict")
    embeddings = _class_embeddings(classifier, prompt_set)
    source = workspace.pixels_of(scored, classifier.spec.preprocess)
    predictions = predict_tiles(classifier, scored, source, embeddings, config.evaluation.batch_size, folder.name)
    results: dict[str, Any] = {}
    if get_processes().main:
        renamed = replace(predictions, splits=np.full(len(scored), folder.name, dtype=object))
        external = {
            "name": folder.name,
            "identity": identity,
            "tiles": scored.fingerprint,
            "where": scored.where,
            "excluded": mapped.excluded,
            "absent": absent,
            "notes": notes,
            **checks,
        }
        results = score_external(run, config, run_results, renamed, external, prompt_set, classifier)
        with locked(folder), whole_folder(folder) as partial:
            write_external(partial, run, results, renamed, scored)
        if os.access(run / "classifier", os.W_OK):
            with locked(folder.with_name("card")):  # another evaluation may be writing the card
                write_card(run, read_run_config(run), run_results)
    get_processes().barrier()
    return folder, results


def _default_name(tiles: TilesConfig | None, prompts: PromptSet | None) -> str:
    """Derive a folder's name from the path of the tiles and the name of the prompts."""
    words: list[str] = []
    if tiles is not None:
        path = Path(tiles.path).absolute()
        names = [path.parent.name, path.stem] if path.suffix else [path.name]
        words = [tiles.source] if tiles.source in DATASETS else names
    words += [] if prompts is None else [prompts.name]
    return to_file_name("-".join(words)) or "new"


def _identity(tiles: TilesConfig | None, prompts: PromptSet | None) -> dict[str, Any]:
    """Return the keys of the tiles and the prompts, which identify an evaluation."""
    selected = {} if tiles is None else select_keys(tiles, "results", "data")
    keys = {f"tiles.{key}": value for key, value in selected.items() if not key.startswith("labels.")}
    return keys | ({} if prompts is None else {"prompts": f"{prompts.name} ({prompts.hash})"})


def _check_folder(folder: Path, run: Path, identity: Mapping[str, Any]) -> None:
    """Check that a folder is new or belongs to the same tiles and prompts.

    Raises:
        ArtifactError: The folder contains results for a different set, in which case the message lists the differing
            keys, or of a different run.
    """
    if not folder.exists():
        return
    fix = "choose a different --name, or delete this folder"
    file = folder / "results.json"
    recorded = read_run_json(file, run, fix).get("external", {}).get("identity") if file.is_file() else None
    if not isinstance(recorded, dict):
        raise ArtifactError("this folder does not contain an evaluation on a new set", where=folder, fix=fix)
    differences = list_differences(recorded, identity)
    if differences:
        raise ArtifactError(
            f"this folder belongs to an evaluation on different tiles or with different prompts; differences:\n    "
            f"{difference_lines(differences)}",
            where=folder,
            fix=fix,
        )


def _check_prompts(prompts: PromptSet, classifier: "Classifier", run: Path) -> list[str]:
    """Check that new prompts suit a classifier and cover its classes; return a note about prompts for other classes."""
    if classifier.spec.vlm is None or not classifier.spec.projector_layers:
        raise ModelError(
            "this classifier was trained without text and does not support zero-shot prediction",
            where=run,
            fix="remove --prompts, or use a run whose arm trains with text",
        )
    missing = [name for name in classifier.classes if name not in prompts.classes]
    if missing:
        raise DataError(
            f"prompt set {prompts.name} has no prompts for {', '.join(missing)}; its classes are "
            f"{', '.join(prompts.classes)}",
            where="--prompts",
            fix=f"use the class names of the classifier: {', '.join(classifier.classes)}",
        )
    others = [name for name in prompts.classes if name not in classifier.classes]
    return [f"prompts for {', '.join(others)} are not used: the classifier lacks these classes"] if others else []


def _new_tiles(
    run: Path,
    section: TilesConfig | None,
    config: RunConfig,
    workspace: Workspace,
    classifier: "Classifier",
    name: str,
) -> tuple[MappedTiles, dict[str, Any]]:
    """Read the tiles (by default, the run's test tiles), drop classes that the run lacks, and apply `leaks.policy`."""
    if section is None:
        test_tiles = workspace.tiles(config.seed).of_split("test")
        checks: dict[str, Any] = {"policy": "off", "leaks": [], "not_checked": []}
        return map_to_classes(replace(test_tiles, notes=()), classifier.classes), checks
    read = read_external(section, config)
    shown = section.model_copy(update={"labels": LabelsConfig()})  # all labels are scored
    # The caller logs the notes of the tiles, together with the notes added below.
    logger.info(tiles_overview(replace(read, notes=()), shown, f"new set {name}", tests_only=True))
    mapped = map_to_classes(read, classifier.classes)
    spec, tiles = classifier.spec, mapped.tiles
    warnings = view_warnings(
        tiles.try_read,
        tiles.mpp,
        pixels=spec.tile_pixels,
        expected=spec.mpp,
        model=f"classifier {run.name}",
        crops=spec.preprocess.crops,
    )
    for warning in warnings:
        logger.warning(warning)
        mapped = replace(mapped, tiles=replace(mapped.tiles, notes=(*mapped.tiles.notes, warning)))
    policy = config.leaks.policy
    if policy == "off":
        return mapped, {"policy": policy, "leaks": [], "not_checked": ["not checked for leaks: leaks.policy is off"]}
    training = find_training_tiles(run, config, workspace)
    tiles, leaks = enforce_on_external(mapped.tiles, training.tiles, training.image_hashes, config, f"new set {name}")
    own_reports = note_reports(tiles, config) if uses_reports(config) else ""
    models = [getattr(config, model) for model in models_of(config)]
    notes = [*filter(None, [own_reports]), *adaptation_notes(tiles, models, "new tile")]
    tiles = replace(tiles, notes=(*tiles.notes, *notes))
    unknown = int((patients(tiles.groups, tiles.ids) == "").sum())
    problems = list(training.problems)
    if unknown:
        problems.append(f"patients (unknown for {unknown} of {counted(len(tiles), 'new tile')})")
    unchecked = [f"WARNING: not checked against training: {problem}" for problem in problems]
    checks = {"policy": policy, "leaks": [asdict(leak) for leak in leaks], "not_checked": unchecked}
    return replace(mapped, tiles=tiles), checks


def _class_embeddings(classifier: "Classifier", prompts: PromptSet | None) -> Float[np.ndarray, "c D"] | None:
    """Embed new prompts, or return the class embeddings that the classifier contains, if any."""
    spec = classifier.spec
    if prompts is not None:
        return class_embeddings(classifier, prompts, spec.classes)
    stored = next((name for name, names in spec.prompts.items() if tuple(names) == tuple(spec.classes)), None)
    return None if stored is None or not spec.projector_layers else classifier.prompt_embeddings(stored)
