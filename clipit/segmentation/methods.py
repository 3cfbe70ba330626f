"""The table of segmentation methods, and the selection of a study's methods, which checks inputs, models and classes.

To add a method, add an entry to the table.
"""

import logging
from collections.abc import Mapping, Sequence

from clipit.errors import ConfigError, ModelError, counted
from clipit.segmentation.mask_draws import draw_order, masks_title, nested_counts
from clipit.segmentation.method import Method, MethodInputs
from clipit.segmentation.pseudo_methods import missing_evidence, missing_unet_evidence, token_heads_pseudo, unets_pseudo
from clipit.segmentation.token_methods import (
    missing_training_masks,
    student_prompt_tokens,
    student_token_classes,
    token_heads,
    vlm_prompt_tokens,
    vlm_token_classes,
)
from clipit.segmentation.unet_methods import missing_unet_masks, unets
from clipit.segmentation.zero_shot_methods import (
    classifier_classes,
    classifier_windows,
    map_classes,
    missing_prompts,
    missing_run,
    missing_student,
    prompt_classes,
    student_classes,
    student_windows,
    vlm_windows,
)

logger = logging.getLogger(__name__)

METHODS: dict[str, Method] = {
    "vlm_windows": Method("windows, VLM with class prompts", missing_prompts, vlm_windows, classes=prompt_classes),
    "student_windows": Method(
        "windows, student with class prompts", missing_student, student_windows, classes=student_classes
    ),
    "classifier_windows": Method(
        "windows, classifier of a run", missing_run, classifier_windows, classes=classifier_classes
    ),
    "vlm_tokens": Method(
        "patch tokens, VLM with class prompts", missing_prompts, vlm_prompt_tokens, classes=vlm_token_classes
    ),
    "student_tokens": Method(
        "patch tokens, student with class prompts",
        missing_student,
        student_prompt_tokens,
        classes=student_token_classes,
    ),
    "token_head": Method("linear head on frozen patch tokens", missing_training_masks, token_heads, trained=True),
    "token_head_pseudo": Method(
        "linear head, masks and pseudo-labels", missing_evidence, token_heads_pseudo, trained=True
    ),
    "unet": Method("U-Net", missing_unet_masks, unets, trained=True),
    "unet_pseudo": Method("U-Net, masks and pseudo-labels", missing_unet_evidence, unets_pseudo, trained=True),
}
"""Methods by the name in `segmentation.methods` (`clipit.config.segmentation.SegmentationMethod`), in table order."""


def select_methods(inputs: MethodInputs) -> tuple[dict[str, Method], list[str]]:
    """Return the configured methods; by default, all methods without training that have their inputs and classes.

    Returns:
        Methods by name, and notes on skipped methods and skipped numbers of masks.

    Raises:
        ConfigError: A configured method (by default, every method) lacks inputs or classes, or `segmentation.class_map`
            names a class that no model has.
        ModelError: A configured method is not supported by its model.
    """
    options = inputs.options
    chosen: list[str] = [*options.methods] or [name for name, method in METHODS.items() if not method.trained]
    methods, notes = _with_inputs({name: METHODS[name] for name in chosen}, inputs)
    classes: dict[str, Sequence[str]] = {}
    failed: dict[str, ConfigError | ModelError] = {}
    for name, method in methods.items():
        if method.classes is not None:
            try:
                classes[name] = method.classes(inputs)
            except (ConfigError, ModelError) as error:
                failed[name] = error
    _check_class_map(options.class_map, classes)
    for name, class_names in classes.items():
        try:
            map_classes(class_names, inputs.masks.classes.names, options.class_map, name)
        except ConfigError as error:
            failed[name] = error
    if failed and (options.methods or len(failed) == len(methods)):
        raise next(iter(failed.values()))
    notes += [f"{name} is skipped: {error.what}" for name, error in failed.items()]
    methods = {name: method for name, method in methods.items() if name not in failed}
    notes += _notes_on_masks(methods, inputs)
    for note in notes:
        logger.info(f"note: {note}")
    return methods, notes


def _with_inputs(methods: Mapping[str, Method], inputs: MethodInputs) -> tuple[dict[str, Method], list[str]]:
    """Return the methods that have their inputs, and notes on the others."""
    lacking = {name: missing for name, method in methods.items() if (missing := method.missing(inputs))}
    if lacking and (inputs.options.methods or len(lacking) == len(methods)):
        raise ConfigError(
            "methods lack inputs: " + "; ".join(f"{name} needs {missing}" for name, missing in lacking.items()),
            where="segmentation.methods",
            fix="provide the missing inputs, or choose other methods",
        )
    notes = [f"{name} is skipped, because it needs {missing}" for name, missing in lacking.items()]
    return {name: method for name, method in methods.items() if name not in lacking}, notes


def _check_class_map(mapping: Mapping[str, str], classes: Mapping[str, Sequence[str]]) -> None:
    unknown = sorted(set(mapping) - {name for class_names in classes.values() for name in class_names})
    if unknown and classes:
        raise ConfigError(
            f"segmentation.class_map names classes that no model has: {', '.join(unknown)}; "
            + "; ".join(f"{name} has {', '.join(class_names)}" for name, class_names in classes.items()),
            where="segmentation.class_map",
            fix="correct the names, or add the method whose model has them",
        )


def _notes_on_masks(methods: Mapping[str, Method], inputs: MethodInputs) -> list[str]:
    """Return notes on numbers of masks that exceed the available masks, and on draws that lack a class."""
    if not any(method.trained for method in methods.values()):
        return []
    notes = []
    training, train = inputs.options.training, inputs.masks.of_split("train")
    counts = nested_counts(training.masks, len(train))
    beyond = [str(count) for count in training.masks if count is not None and count not in counts]
    if beyond:
        notes.append(
            f"segmentation.training.masks: {', '.join(beyond)} skipped, because there are only "
            f"{counted(len(train), 'training mask')}"
        )
    known = train.counts.sum(axis=0) > 0
    if len(train) and not known.all():
        names = [name for name, present in zip(train.classes.names, known.tolist(), strict=True) if not present]
        notes.append(
            f"no training mask contains {', '.join(names)}; methods trained on masks alone cannot predict an absent "
            "class"
        )
    for count in counts:
        for seed in training.seeds:
            drawn = draw_order(train.tiles.ids, train.tiles.groups, seed)[:count]
            lacking = known & (train.counts[drawn].sum(axis=0) == 0)
            names = [name for name, absent in zip(train.classes.names, lacking.tolist(), strict=True) if absent]
            if names:
                notes.append(
                    f"{masks_title(count)}, seed {seed}: no drawn mask contains {', '.join(names)}; methods trained on "
                    "masks alone cannot predict an absent class"
                )
    return notes
