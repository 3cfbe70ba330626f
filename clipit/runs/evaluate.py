"""Evaluate a trained run: predict once, and compute all scores from the predictions."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError, DataError
from clipit.evaluation.human_ceiling import human_ceiling
from clipit.evaluation.predictions import PREDICTIONS, read_predictions, write_predictions
from clipit.evaluation.run_scores import evaluate_predictions
from clipit.output_files.artifacts import file_sha256, fingerprint
from clipit.output_files.run_files import read_run_json, recorded_fingerprint, write_run_json
from clipit.output_files.whole_files import write_text
from clipit.prompts.prompt_set import PromptSet
from clipit.reporting.page_note import compose_note
from clipit.reporting.plots import plot_confusion, plot_reliability, plot_training_curves, save_plot
from clipit.reporting.run_summary import run_summary
from clipit.reporting.training_curves import read_curves
from clipit.runs.card import write_card
from clipit.runs.fingerprint import run_fingerprint
from clipit.runs.folder import (
    check_fingerprint,
    delete_temporary_files,
    evaluation_keys,
    find_missing_output,
    read_results,
    read_training,
    resolve_run_precision,
    run_folder,
    run_lock,
)
from clipit.runs.page import write_run_page
from clipit.runs.predict_tiles import join_predictions, open_classifier, predict_tiles, zero_shot_embeddings
from clipit.tiles.tileset import TileSet
from clipit.training.terms.term_table import loss_columns, models_of, uses_vlm
from clipit.versions import command_line, git_commit, versions
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.inference import Classifier

_SHA256 = "predictions_sha256"  # key of the records of predictions


def evaluate_run(config: RunConfig, workspace: Workspace, folder: Path) -> dict[str, Any]:
    """Predict with the classifier in a run's folder, score the predictions and write a summary.

    Args:
        config: Run configuration with its arm resolved.
        workspace: Cached tiles and prompts of this configuration.
        folder: Folder of the run, in which predictions.parquet, results.json and summary.md are written; with
            `evaluation.page`, also report.html and plots.

    Returns:
        Content of results.json in the main process; an empty dictionary in other processes.
    """
    tiles = workspace.tiles(config.seed)
    classifier = open_classifier(config, folder, tiles.classes)
    embeddings = zero_shot_embeddings(classifier, workspace.prompts, tiles.classes)
    by_split = []
    for split in evaluated_splits(config, tiles):
        source, size = workspace.pixels(split, classifier.spec.preprocess), config.evaluation.batch_size
        by_split.append(predict_tiles(classifier, tiles.of_split(split), source, embeddings, size, split))
    if not get_processes().main:
        return {}
    write_predictions(folder / PREDICTIONS, join_predictions(by_split))
    facts = read_training(folder) if (folder / "training.json").is_file() else {}
    described = replace(tiles, notes=tuple(dict.fromkeys([*tiles.notes, *facts.get("notes", [])]))).describe()
    texts = {"Tiles": described} | facts.pop("sections", {})
    return _write_results(config, folder, tiles, _provenance(config, classifier, workspace.prompts) | facts, texts)


def evaluated_splits(config: RunConfig, tiles: TileSet) -> list[str]:
    """List the splits of `evaluation.splits` that have tiles.

    Raises:
        DataError: None of them has tiles.
    """
    splits: list[str] = [split for split in config.evaluation.splits if (tiles.splits == split).any()]
    if not splits:
        raise DataError(
            "none of the splits to evaluate has tiles", where="evaluation.splits", fix="choose splits that have tiles"
        )
    return splits


def evaluate_again(config: RunConfig, workspace: Workspace, folder: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Evaluate a finished run again (`clipit evaluate`), and return its folder and the content of results.json.

    The run's page is written regardless of `evaluation.page`, which comparisons set to false for most of their runs.
    If the folder is read-only, for example because it belongs to another user, its existing results are returned.

    Args:
        config: Run configuration with its arm resolved.
        workspace: Cached inputs of this configuration.
        folder: Folder of the run; by default, `run_folder(config)`.

    Raises:
        ArtifactError: The run does not exist, its folder belongs to a different configuration, or the folder is
            read-only and lacks results.
    """
    from clipit.models.backbones import load_backbone

    processes, folder = get_processes(), folder or run_folder(config)
    config = resolve_run_precision(config, folder)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"page": True})})
    check_inputs(workspace, models_of(config))
    backbone = load_backbone(config.backbone, seed=config.seed)
    check_fingerprint(folder, run_fingerprint(config, workspace, backbone.fingerprint), config)
    with run_lock(folder) if processes.main else nullcontext(False) as locked:
        if processes.broadcast(locked):
            if processes.main:
                delete_temporary_files(folder)
            return folder, evaluate_run(config, workspace, folder)
    missing = processes.broadcast(find_missing_output(folder, config) if processes.main else "")
    if missing:
        raise ArtifactError(
            f"the run lacks {missing}, and its folder is read-only",
            where=folder,
            fix="copy the run's folder to a writable --output folder, and evaluate it there",
        )
    return folder, read_results(folder) if processes.main else {}


def evaluate_shifted(
    config: RunConfig, workspace: Workspace, folder: Path, name: str, tiles: TileSet
) -> dict[str, Any]:
    """Score a run's classifier on a test set of `comparison.shifted`; the set must have the classifier's classes.

    The predictions and their SHA-256 are cached in the run's folder, under a fingerprint of the training and the tiles.

    Args:
        config: Run configuration with its arm resolved.
        workspace: Cached inputs of this configuration.
        folder: Folder of the run.
        name: Name of the set in `comparison.shifted`.
        tiles: Test tiles of the set.

    Raises:
        DataError: The cached predictions have changed since they were written.
        ArtifactError: A file of the run is missing or damaged.
    """
    processes = get_processes()
    path = shifted_predictions(folder, tiles)
    record = path.with_suffix(".json")
    if not processes.broadcast(path.is_file()):
        classifier = open_classifier(config, folder, tiles.classes)
        source = workspace.pixels_of(tiles, classifier.spec.preprocess)
        embeddings = zero_shot_embeddings(classifier, workspace.prompts, tiles.classes)
        predictions = predict_tiles(classifier, tiles, source, embeddings, config.evaluation.batch_size, name)
        if processes.main:
            write_predictions(path, predictions)
            write_run_json(record, {_SHA256: file_sha256(path)}, folder)
        processes.barrier()
    again = f"delete {path.name} and run the same command again"
    written = read_run_json(record, folder, again) if record.is_file() else {}  # earlier versions wrote no record
    predictions = read_predictions(path, written.get(_SHA256), tiles, changed_fix=again)
    scores = evaluate_predictions(predictions, ["test"], config.evaluation.bootstrap, config.seed)
    test_scores: dict[str, Any] = scores["splits"]["test"]
    return test_scores


def shifted_predictions(folder: Path, tiles: TileSet) -> Path:
    """Return the file of a run's predictions on a shifted set, named after a fingerprint of the training and the tiles.

    The run's fingerprint alone does not suffice: retraining with different package versions may change the weights, but
    not the fingerprint.

    Raises:
        ArtifactError: run.json or training.json is missing or damaged.
    """
    training = read_training(folder)
    name = fingerprint(
        [recorded_fingerprint(folder), training, tiles.fingerprint, tiles.labels.tolist(), tiles.groups.tolist()]
    )
    return folder / f"predictions_shifted-{name}.parquet"


def _provenance(config: RunConfig, classifier: "Classifier", prompts: PromptSet | None) -> dict[str, Any]:
    """Collect the provenance that is recorded with the scores in addition to that in training.json."""
    preprocess = classifier.spec.preprocess
    return {
        "run": config.name,
        "arm": config.arm or "custom",
        "seed": config.seed,
        "command": command_line(),
        "commit": git_commit(),
        "classes": len(classifier.classes),
        "pixels": preprocess.size,
        "preprocess": preprocess.hash,
        "prompts": f"{prompts.name} ({prompts.hash})" if prompts else None,
    }


def _write_results(
    config: RunConfig, folder: Path, tiles: TileSet, provenance: dict[str, Any], texts: dict[str, str]
) -> dict[str, Any]:
    """Score the predictions in a folder, and write plots, summary, page, card and, last of all, results.json."""
    path = folder / PREDICTIONS
    sha256, predictions = file_sha256(path), read_predictions(path)
    splits: list[str] = [split for split in config.evaluation.splits if (predictions.splits == split).any()]
    scores = evaluate_predictions(predictions, splits, config.evaluation.bootstrap, config.seed)
    ceiling = human_ceiling(tiles.of_split("test"))
    if ceiling is not None and "test" in splits:
        scores["splits"]["test"]["annotators"] = ceiling
    vlms = [config.vlm.name] if uses_vlm(config) else []
    note = compose_note(config.note, backbones=[config.backbone.name], vlms=vlms)
    results = scores | {
        _SHA256: sha256,
        "provenance": provenance | {"versions": versions()},
        "evaluation": evaluation_keys(config),
        "note": note,
    }
    _delete_page(folder)
    plots = _write_plots(folder, config, scores["splits"], predictions.classes) if config.evaluation.page else []
    shown = {key: value for key, value in provenance.items() if value not in (None, [], "")}
    title = f"{config.name}: {folder.name}"
    text = run_summary(title, scores, shown, note=note, sections=texts, plots=plots)
    write_text(folder / "summary.md", text)
    if config.evaluation.page:
        write_run_page(title, folder, results, predictions, tiles, texts, losses=loss_columns(config))
    write_card(folder, config, results)
    write_run_json(folder / "results.json", results, folder)  # last, since it marks the run as finished
    return results


def _delete_page(folder: Path) -> None:
    """Delete the page and plots of an earlier evaluation, which a new evaluation might not replace completely."""
    for pattern in ("report.html", "curves.png", "confusion_*.png", "reliability_*.png"):
        for path in folder.glob(pattern):
            path.unlink()


def _write_plots(folder: Path, config: RunConfig, splits: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Plot the confusion matrix and reliability of each split, and the training curves; return the file names."""
    figures = {}
    for split, scores in splits.items():
        figures[f"confusion_{split}.png"] = plot_confusion(scores["confusion"], classes, title=split)
        figures[f"reliability_{split}.png"] = plot_reliability(scores["reliability"], title=split)
    if (folder / "metrics.jsonl").is_file():
        curves = read_curves(folder / "metrics.jsonl")
        figures["curves.png"] = plot_training_curves(curves, loss_columns(config), title=folder.name)
    for name, figure in figures.items():
        save_plot(figure, folder / name)
    return [*figures]
