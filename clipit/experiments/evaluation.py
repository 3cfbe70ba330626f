"""Evaluation of a finished training: predictions first, everything else computed from them."""

import shlex
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32

from clipit.artifacts import fingerprint, git_commit, locked, read_json, versions, write_json
from clipit.config import Config
from clipit.distributed import processes
from clipit.errors import DataError, explain
from clipit.evaluation.evaluate import evaluate_predictions
from clipit.evaluation.predictions import Predictions, read_predictions, softmax, write_predictions
from clipit.evaluation.zero_shot import zero_shot_probabilities
from clipit.experiments.finished import evaluation_keys, read_training
from clipit.experiments.identity import check_mark, run_folder, run_mark
from clipit.experiments.materials import Materials
from clipit.experiments.pages import write_run_page
from clipit.progress import progress
from clipit.prompts.prompt_set import check_classes
from clipit.reporting.curves import read_curves
from clipit.reporting.plots import confusion_plot, curves_plot, reliability_plot
from clipit.reporting.summary import run_summary, write_summary
from clipit.tiles.tileset import TileSet

if TYPE_CHECKING:
    from clipit.models.inference import Classifier
    from clipit.tiles.loading import PixelSource


def evaluate_run(config: Config, materials: Materials, folder: Path) -> dict[str, Any]:
    """Predict, score and summarise with the classifier of a run's folder.

    Args:
        config: Of the run, its arm resolved.
        materials: Tiles and prompts.
        folder: The run's; predictions.parquet, results.json, summary.md, report.html and plots are written there.

    Returns:
        What results.json holds (in the main process; an empty dictionary in the others).
    """
    from clipit.models.inference import load_classifier

    here = processes()
    trust = config.backbone.trust_remote_code
    classifier = load_classifier(folder / "classifier", here.device, trust_remote_code=trust)
    tiles = materials.tiles(config.seed)
    _check_classes(classifier, tiles, folder)
    parts = []
    for split in config.evaluation.splits:
        source = materials.pixels(split, classifier.spec.preprocess)
        if len(source.tiles):
            found = _predict(config, materials, classifier, source, tiles.classes, split)
            # The source's tiles may carry another seed's labels.
            parts.append(replace(found, labels=tiles.of_split(split).labels))
    if not here.main:
        return {}
    write_predictions(folder / "predictions.parquet", _joined(parts))
    return _report(config, materials, folder, classifier)


def evaluate_again(config: Config, materials: Materials) -> tuple[Path, dict[str, Any]]:
    """Evaluate a finished run anew (`scripts/evaluate.py`); its folder, and what results.json holds.

    Raises:
        ArtifactError: There is no run, or the folder belongs to another configuration.
    """
    from clipit.models.backbones import load_backbone

    here, folder = processes(), run_folder(config)
    check_mark(folder, run_mark(config, materials, load_backbone(config.backbone, "cpu").fingerprint))
    with locked(folder) if here.main else nullcontext():
        return folder, evaluate_run(config, materials, folder)


def evaluate_shifted(config: Config, materials: Materials, folder: Path, name: str) -> dict[str, Any]:
    """Scores of a run's classifier on a set of `comparison.shifted` (the classes must be the same).

    Its predictions are written to the run's folder, under a name that stands for its training and these tiles, and are
    kept.

    Raises:
        DataError: The set has no test tile, or other classes.
    """
    from clipit.models.inference import load_classifier

    here, tiles = processes(), materials.shifted_tiles(name)
    path = shifted_predictions(materials, folder, name)
    if not here.same(path.is_file()):
        trust = config.backbone.trust_remote_code
        classifier = load_classifier(folder / "classifier", here.device, trust_remote_code=trust)
        _check_classes(classifier, tiles, folder)
        source = materials.other_pixels(tiles, classifier.spec.preprocess)
        found = _predict(config, materials, classifier, source, tiles.classes, name)
        if here.main:
            write_predictions(path, found)
        here.wait()
    scores = evaluate_predictions(read_predictions(path), ["test"], config.evaluation.bootstrap, config.seed)
    of_test: dict[str, Any] = scores["splits"]["test"]
    return of_test


def shifted_predictions(materials: Materials, folder: Path, name: str) -> Path:
    """Where a run's predictions on a shifted set lie; the name stands for these tiles and for this very training.

    The run's mark alone would not do: a run trained anew has the same one, and other weights where versions differ.

    Raises:
        ArtifactError: run.json or training.json is missing or damaged.
    """
    tiles = materials.shifted_tiles(name)
    run = read_json(folder / "run.json", "choose another --name, or delete the run's folder")["fingerprint"]
    training = read_training(folder)
    mark = fingerprint([run, training, tiles.fingerprint, tiles.labels.tolist(), tiles.groups.tolist()])
    return folder / f"predictions_shifted-{mark}.parquet"


def _check_classes(classifier: "Classifier", tiles: TileSet, folder: Path) -> None:
    if classifier.classes != tiles.classes:
        raise DataError(
            explain(
                f"the classifier knows {', '.join(classifier.classes)}; the tiles have {', '.join(tiles.classes)}",
                where=folder / "classifier",
                fix="give tiles.classes in the classifier's order, or the right run",
            )
        )


def _predict(
    config: Config,
    materials: Materials,
    classifier: "Classifier",
    source: "PixelSource",
    class_names: tuple[str, ...],
    title: str,
) -> Predictions:
    part = source.tiles
    logits, projected = forward(source, classifier, config, title)
    zero_shot = None
    vlm, prompts = classifier.spec.vlm, materials.prompts
    if projected is not None and vlm is not None and prompts is not None:
        check_classes(prompts, class_names)
        cached = classifier.spec.provenance.get("prompt_hashes", {}).get(prompts.name) == prompts.hash
        texts = prompts.name if cached else {name: prompts.texts(name) for name in class_names}
        embeddings = classifier.prompt_embeddings(texts)
        zero_shot = zero_shot_probabilities(projected, embeddings, float(vlm["logit_scale"]))
    return Predictions(part.ids, part.splits, part.labels, part.groups, class_names, softmax(logits), zero_shot)


def forward(
    source: "PixelSource", classifier: "Classifier", config: Config, split: str
) -> tuple[Float32[np.ndarray, "n classes"], Float32[np.ndarray, "n dim"] | None]:
    """Logits and predicted text embeddings of all tiles; the processes share the batches."""
    here, size, n = processes(), config.evaluation.batch_size, len(source.tiles)
    batches = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    own: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    with (
        torch.inference_mode(),
        progress(f"predicting {split}", len(batches), shown=here.main) as advance,
    ):
        for rows, pixels in source.ahead(here.share(batches)):
            inputs = classifier.spec.preprocess.normalise(torch.from_numpy(pixels).to(here.device))
            logits, projected = classifier.forward(inputs)
            own[int(rows[0])] = (
                logits.float().cpu().numpy(),
                None if projected is None else projected.float().cpu().numpy(),
            )
            advance(here.count)
    merged: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    for share in here.gather(own):
        merged |= share
    in_order = [merged[int(rows[0])] for rows in batches]
    embeddings = [projected for _, projected in in_order if projected is not None]
    return np.concatenate([logits for logits, _ in in_order]), np.concatenate(embeddings) if embeddings else None


def _joined(parts: list[Predictions]) -> Predictions:
    if not parts:
        raise DataError(
            explain("none of the splits to evaluate has tiles", where="evaluation.splits", fix="name splits that exist")
        )
    zero_shots = [part.zero_shot for part in parts if part.zero_shot is not None]
    return Predictions(
        ids=np.concatenate([part.ids for part in parts]),
        splits=np.concatenate([part.splits for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        classes=parts[0].classes,
        probabilities=np.concatenate([part.probabilities for part in parts]),
        zero_shot=np.concatenate(zero_shots) if zero_shots else None,
    )


def _report(config: Config, materials: Materials, folder: Path, classifier: "Classifier") -> dict[str, Any]:
    predictions = read_predictions(folder / "predictions.parquet")
    splits = [split for split in config.evaluation.splits if (predictions.splits == split).any()]
    scores = evaluate_predictions(predictions, splits, config.evaluation.bootstrap, config.seed)
    facts = read_training(folder) if (folder / "training.json").is_file() else {}
    told = facts.pop("sections", {})
    provenance: dict[str, Any] = {
        "run": config.name,
        "arm": config.arm or "custom",
        "seed": config.seed,
        "command": shlex.join(sys.argv),
        "commit": git_commit(),
        "classes": len(predictions.classes),
        "pixels": classifier.spec.preprocess.size,
        "preprocess": classifier.spec.preprocess.hash,
        "prompts": f"{materials.prompts.name} ({materials.prompts.hash})" if materials.prompts else None,
        **facts,
    }
    results = scores | {"provenance": provenance | {"versions": versions()}, "evaluation": evaluation_keys(config)}
    plots = []
    for split in splits:
        plots += [f"confusion_{split}.png", f"reliability_{split}.png"]
        confusion_plot(scores["splits"][split]["confusion"], predictions.classes, folder / plots[-2], title=split)
        reliability_plot(scores["splits"][split]["reliability"], folder / plots[-1], title=split)
    if (folder / "metrics.jsonl").is_file():
        plots.append("curves.png")
        curves_plot(read_curves(folder / "metrics.jsonl"), folder / "curves.png", title=folder.name)
    note = " ".join(part for part in (_embedded_note(config), config.note.strip()) if part)
    results["note"] = note
    tiles = materials.tiles(config.seed)
    told = {"Tiles": tiles.describe()} | told
    sections = {heading: f"```\n{text}\n```" for heading, text in told.items()}
    shown = {key: value for key, value in provenance.items() if value not in (None, [], "")}
    title = f"{config.name}: {folder.name}"
    text = run_summary(title, scores, shown, note=note, sections=sections, plots=plots)
    write_summary(folder / "summary.md", text)
    write_run_page(title, folder, results, predictions, tiles, told)
    write_json(folder / "results.json", results)  # last: a run with results is a finished run
    return results


def _embedded_note(config: Config) -> str:
    """What scores with the embedded models do not say."""
    parts = {"backbone": config.backbone.name, "VLM": config.vlm.name}
    used = [what for what, name in parts.items() if name == "embedded"]
    if config.distillation.tiles == "none" and "VLM" in used:
        used.remove("VLM")
    if not used:
        return ""
    return (
        f"The embedded {' and '.join(used)} {'has' if len(used) == 1 else 'have'} only seen synthetic tiles: on real "
        "tiles these scores prove that the path from reports to classifier works, and say nothing about CLIP-IT on "
        "real pathology."
    )
