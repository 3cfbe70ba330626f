"""Segmentation without training masks: windows classified by the VLM, a student or a classifier."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int16
from PIL import Image

from clipit.errors import ConfigError, ModelError, shortlist
from clipit.progress import progress
from clipit.prompts.prompt_set import PromptSet, load_prompts
from clipit.runs.tile_scorer import TileScorer, classifier_scorer, vlm_scorer
from clipit.segmentation.decision import Decision, DecisionSearch
from clipit.segmentation.method import MethodInputs, Segmenter
from clipit.segmentation.windows import WindowModel


def missing_prompts(inputs: MethodInputs) -> str:
    """Name the missing input for classifying windows with the VLM and prompts; "" if nothing is missing."""
    return "" if prompts_name(inputs) else "class prompts: set segmentation.prompts"


def missing_run(inputs: MethodInputs) -> str:
    """Name the missing input for classifying windows with a finished run; "" if nothing is missing."""
    return "" if inputs.run is not None else "a finished run: pass --run FOLDER"


def missing_student(inputs: MethodInputs) -> str:
    """Name the missing input for classifying windows with a student and prompts; "" if nothing is missing."""
    return missing_run(inputs) or missing_prompts(inputs)


def vlm_windows(inputs: MethodInputs) -> list[Segmenter]:
    """Classify windows with the VLM and class prompts.

    Raises:
        ConfigError: A mask class has no prompts.
    """
    prompts = _load(inputs)
    return [_segmenter("VLM, windows", vlm_scorer(inputs.vlm, prompts), inputs)]


def student_windows(inputs: MethodInputs) -> list[Segmenter]:
    """Classify windows with a student and class prompts, in the joint space.

    Raises:
        ConfigError: A mask class has no prompts.
        ModelError: The classifier was trained without text.
    """
    prompts = _load(inputs)
    return [_segmenter("student, windows", classifier_scorer(inputs.classifier, prompts), inputs)]


def classifier_windows(inputs: MethodInputs) -> list[Segmenter]:
    """Classify windows with the classifier of a finished run.

    Raises:
        ConfigError: A mask class has no corresponding class in the classifier.
    """
    return [_segmenter("classifier, windows", classifier_scorer(inputs.classifier), inputs)]


def prompts_name(inputs: MethodInputs) -> str | None:
    """Return the name of the prompt set for methods that use text; None if none is configured."""
    return inputs.options.prompts or inputs.config.prompts


def _load(inputs: MethodInputs) -> PromptSet:
    return load_prompts(str(prompts_name(inputs)))


def prompt_classes(inputs: MethodInputs) -> Sequence[str]:
    """Return the classes of the prompts."""
    return tuple(_load(inputs).classes)


def student_classes(inputs: MethodInputs) -> Sequence[str]:
    """Return the classes of the prompts.

    Raises:
        ModelError: The classifier was trained without text.
    """
    if inputs.classifier.network.projector is None:
        raise ModelError(
            "this classifier was trained without text, so it cannot be compared with prompts",
            where=inputs.run,
            fix="use a run that was trained with text",
        )
    return prompt_classes(inputs)


def classifier_classes(inputs: MethodInputs) -> Sequence[str]:
    """Return the classes of the finished run's classifier."""
    return tuple(inputs.classifier.classes)


def map_classes(
    model: Sequence[str], masks: Sequence[str], mapping: Mapping[str, str], where: object
) -> Float32[np.ndarray, "k c"]:
    """Return the binary matrix that maps model classes (rows) to mask classes (columns).

    Args:
        mapping: Mapping from model classes to mask classes. If it contains none of the model's classes, classes are
            matched by name.

    Raises:
        ConfigError: A mask class has no corresponding model class.
    """
    target_of = {name: target for name, target in mapping.items() if name in model} or {name: name for name in model}
    reached = {*target_of.values()}
    without = [name for name in masks if name not in reached]
    if without:
        raise ConfigError(
            f"no model class corresponds to {', '.join(without)} in the masks; the model has "
            f"{shortlist(list(model), 20)}",
            where=where,
            fix="map model classes to mask classes in segmentation.class_map, or use other prompts",
        )
    matrix = np.zeros((len(model), len(masks)), dtype=np.float32)
    for row, name in enumerate(model):
        target = target_of.get(name)
        if target is not None and target in masks:
            matrix[row, list(masks).index(target)] = 1
    return matrix


def _segmenter(name: str, scorer: TileScorer, inputs: MethodInputs) -> Segmenter:
    """Build a segmenter from a model, and choose its window scales on the validation masks."""
    options, masks = inputs.options, inputs.masks
    matrix = map_classes(scorer.classes, masks.classes.names, options.class_map, scorer.title)
    model = WindowModel(scorer, matrix, options.windows.overlap, options.windows.batch_size)
    for mpp in sorted({float(value) for value in masks.tiles.mpp}):
        model.edge(mpp, 1.0)  # raises an error for unknown resolutions before anything is computed
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

    def majority(mask: Int16[np.ndarray, "h w"], mpp: float) -> Float32[np.ndarray, "c h w"]:
        return model.majority(mask, mpp, scales)

    return Segmenter(name, probabilities, facts, choice=choice, decision=decision, majority=majority)


def _choose_scales(model: WindowModel, inputs: MethodInputs) -> tuple[tuple[float, ...], Decision | None, str]:
    """Choose a single window scale or the mean over all scales, together with the decision rule.

    Returns:
        Scales, decision rule, and a description of the choice.
    """
    options, validation = inputs.options, inputs.masks.of_split("validation")
    all_scales = options.windows.scales
    if len(all_scales) == 1:
        return all_scales, None, ""
    if not len(validation):
        return all_scales, None, "mean of all scales (no validation masks to choose by)"
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
    dice = [decision.dice for decision in decisions]
    if np.isnan(dice).all():
        return all_scales, None, "mean of all scales (no validation mask contains the foreground)"
    best = int(np.nanargmax(dice))
    listed = ", ".join(f"{_title(scales)}: {value:.3f}" for scales, value in zip(candidates, dice, strict=True))
    return (
        candidates[best],
        decisions[best],
        f"scale {_title(candidates[best])} (mean Dice on the validation masks: {listed})",
    )


def _title(scales: Sequence[float]) -> str:
    return " and ".join(f"{scale:g}" for scale in scales)
