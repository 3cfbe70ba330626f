"""Segmentation without masks to train on: windows classified by the VLM, a student or a classifier."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int16
from PIL import Image

from clipit.errors import ConfigError, shortlist
from clipit.progress import progress
from clipit.prompts.prompt_set import PromptSet, load_prompts
from clipit.runs.folder import explaining_differences
from clipit.runs.predict import open_classifier
from clipit.runs.tile_scorer import TileScorer, classifier_scorer, vlm_scorer
from clipit.segmentation.decision import Decision, DecisionSearch
from clipit.segmentation.method import MethodInputs, Segmenter
from clipit.segmentation.windows import WindowModel

if TYPE_CHECKING:
    from clipit.models.inference import Classifier


def missing_prompts(inputs: MethodInputs) -> str:
    """Return what is missing to compare windows with text through the VLM."""
    return "" if prompts_name(inputs) else "class prompts: set segmentation.prompts"


def missing_run(inputs: MethodInputs) -> str:
    """Return what is missing to use the classifier of a finished run."""
    return "" if inputs.run is not None else "a finished run: pass --run FOLDER"


def missing_student(inputs: MethodInputs) -> str:
    """Return what is missing to compare windows with text through a student."""
    return missing_run(inputs) or missing_prompts(inputs)


def vlm_windows(inputs: MethodInputs) -> list[Segmenter]:
    """Classify windows by the VLM against class prompts.

    Raises:
        ConfigError: Classes of the masks have no prompts.
    """
    prompts = _load(inputs)
    return [_segmenter("VLM, windows", vlm_scorer(inputs.vlm, prompts), inputs)]


def student_windows(inputs: MethodInputs) -> list[Segmenter]:
    """Classify windows by a student in the joint space, against class prompts.

    Raises:
        ConfigError: Classes of the masks have no prompts.
        ModelError: The classifier was trained without text.
    """
    prompts = _load(inputs)
    return [_segmenter("student, windows", _open(inputs, prompts), inputs)]


def classifier_windows(inputs: MethodInputs) -> list[Segmenter]:
    """Classify windows by the classifier of a finished run.

    Raises:
        ConfigError: Classes of the masks are not among those of the classifier.
    """
    return [_segmenter("classifier, windows", _open(inputs, None), inputs)]


def prompts_name(inputs: MethodInputs) -> str | None:
    """Return the prompt set of the methods that compare with text; None without one."""
    return inputs.options.prompts or inputs.config.prompts


def _load(inputs: MethodInputs) -> PromptSet:
    return load_prompts(str(prompts_name(inputs)))


def open_run(inputs: MethodInputs) -> "Classifier":
    """Open the classifier of the finished run."""
    run = inputs.run or Path()
    with explaining_differences(run, inputs.config):
        return open_classifier(inputs.config, run)


def _open(inputs: MethodInputs, prompts: PromptSet | None) -> TileScorer:
    return classifier_scorer(open_run(inputs), prompts)


def map_classes(
    model: Sequence[str], masks: Sequence[str], mapping: Mapping[str, str], where: object
) -> Float32[np.ndarray, "k c"]:
    """Return which class of the masks each class of a model belongs to, as a matrix of 0 and 1.

    Args:
        model: Classes of the model.
        masks: Classes of the masks.
        mapping: Class of the masks by class of the model; empty: the names are the same.
        where: Model, for messages.

    Raises:
        ConfigError: The mapping names other classes, or a class of the masks has no class of the model.
    """
    unknown = sorted(set(mapping) - set(model))
    reached = {mapping.get(name) if mapping else name for name in model}
    without = [name for name in masks if name not in reached]
    if unknown or without:
        problem = (
            f"segmentation.class_map names classes that the model does not have: {', '.join(unknown)}"
            if unknown
            else f"no class of the model stands for {', '.join(without)} of the masks"
        )
        raise ConfigError(
            f"{problem}; the model has {shortlist(list(model), 20)}",
            where=where,
            fix="map classes of the model to those of the masks in segmentation.class_map, or use other prompts",
        )
    matrix = np.zeros((len(model), len(masks)), dtype=np.float32)
    for row, name in enumerate(model):
        target = mapping.get(name) if mapping else name
        if target is not None and target in masks:
            matrix[row, list(masks).index(target)] = 1
    return matrix


def _segmenter(name: str, scorer: TileScorer, inputs: MethodInputs) -> Segmenter:
    """Choose the scales of the windows on the validation masks."""
    options, masks = inputs.options, inputs.masks
    matrix = map_classes(scorer.classes, masks.classes.names, options.class_map, scorer.title)
    model = WindowModel(scorer, matrix, options.windows.overlap, options.windows.batch_size)
    for mpp in sorted({float(value) for value in masks.tiles.mpp}):
        model.edge(mpp, 1.0)  # refuses unknown resolutions before anything is computed
    scales, decision, choice = _choose_scales(model, inputs)
    facts = {
        "model": scorer.title,
        "fingerprint": scorer.identity,
        "preprocess": scorer.preprocess.hash,
        "pixels": scorer.preprocess.size,
        "vlm": scorer.facts.get("vlm"),
        "vlm_fingerprint": scorer.vlm,
        "prompts": scorer.facts.get("prompts"),
        "prompts_hash": scorer.facts.get("prompt_hash") or scorer.facts.get("prompt_vectors"),
        "precision": scorer.facts.get("precision"),
        "model_mpp": scorer.mpp,
        "scales": _title(scales),
        "overlap": options.windows.overlap,
    }
    if inputs.run is not None and scorer.kind != "vlm":
        facts |= {"run": scorer.facts.get("run"), "backbone": scorer.facts.get("backbone")}

    def probabilities(image: Image.Image, mpp: float) -> Float32[np.ndarray, "c h w"]:
        return model.probabilities(image, mpp, scales)

    def ceiling(mask: Int16[np.ndarray, "h w"], mpp: float) -> Float32[np.ndarray, "c h w"]:
        return model.perfect(mask, mpp, scales)

    return Segmenter(name, probabilities, facts, choice=choice, decision=decision, ceiling=ceiling)


def _choose_scales(model: WindowModel, inputs: MethodInputs) -> tuple[tuple[float, ...], Decision | None, str]:
    """Choose a single scale or the mean of all, together with the rule from probabilities to classes.

    Returns:
        Scales, rule, and what was chosen in a sentence.
    """
    options, validation = inputs.options, inputs.masks.of_split("validation")
    all_scales = options.windows.scales
    if len(all_scales) == 1:
        return all_scales, None, ""
    if not len(validation):
        return all_scales, None, "nothing, as there are no validation masks; all scales are averaged"
    candidates = [*((scale,) for scale in all_scales), all_scales]
    searches = [DecisionSearch(validation.classes.names, options) for _ in candidates]
    with progress("predicting validation masks", len(validation)) as advance:
        for index in range(len(validation)):
            image, truth = validation.read(index)
            mpp = float(validation.tiles.mpp[index])
            maps = [model.probabilities(image, mpp, (scale,)) for scale in all_scales]
            for search, probabilities in zip(searches, [*maps, np.mean(maps, axis=0)], strict=True):
                search.add(probabilities, truth)
            advance()
    decisions = [search.best() for search in searches]
    dice = [-1.0 if math.isnan(decision.dice) else decision.dice for decision in decisions]
    best = int(np.argmax(dice))
    listed = ", ".join(f"{_title(scales)}: {value:.3f}" for scales, value in zip(candidates, dice, strict=True))
    return candidates[best], decisions[best], f"scale {_title(candidates[best])}, of mean Dice by scale {listed}"


def _title(scales: Sequence[float]) -> str:
    return " and ".join(f"{scale:g}" for scale in scales)
