"""Arms: named training recipes. Each is a handful of configuration keys, so a YAML can add one without code."""

from collections.abc import Mapping
from typing import Any

from clipit.config.load import check_keys_once, merge, nested, validate, without
from clipit.config.run import RunConfig
from clipit.errors import ConfigError

_IMAGE_ONLY = {
    "student.head": "linear",
    "student.projector_layers": 0,
    "student.warm_start": False,
    "distillation.tiles": "none",
    "bags.weight": 0.0,
    "prompt_bags.weight": 0.0,
    "soft_labels.source": "none",
    "consistency.weight": 0.0,
    "second_vlm": None,
}

ARMS: Mapping[str, Mapping[str, Any]] = {
    # Baseline: the same student and LoRA, without text.
    "image_only": {**_IMAGE_ONLY, "backbone.tuning": "lora"},
    "image_only_frozen": {**_IMAGE_ONLY, "backbone.tuning": "frozen"},
    # Control: the additional layers without text.
    "heads_without_text": {"distillation.tiles": "none", "student.warm_start": False},
    "late_fusion_without_text": {"base": "heads_without_text", "student.head": "late_fusion"},
    # arXiv 2504.16181: stage 1 fits both heads, stage 2 distils and fuses.
    "clip_it_paper": {
        "student.head": "late_fusion",
        "student.warm_start": True,
        "distillation.tiles": "labelled",
        "distillation.target": "text",
    },
    # Ablation from the paper: without LoRA.
    "clip_it_paper_frozen": {"base": "clip_it_paper", "backbone.tuning": "frozen"},
    "clip_it_labelled": {"distillation.tiles": "labelled", "distillation.target": "text"},
    "clip_it_all": {"distillation.tiles": "all", "distillation.target": "text"},
    # Ablation from the paper: 30% of the words dropped from the target text.
    "word_drop": {"base": "clip_it_paper", "distillation.word_drop": 0.3},
    # Control: each tile gets another tile's text.
    "shuffled_pairs": {"base": "clip_it_all", "distillation.target": "shuffled_text"},
    # Control: random texts from the corpus.
    "random_text": {"base": "clip_it_all", "distillation.target": "random_text"},
    # Control: correct pairs, meaningless vectors.
    "random_codes": {"base": "clip_it_all", "distillation.target": "random_codes"},
    # Control: the VLM's own embedding of the tile instead of text.
    "image_embedding": {"base": "clip_it_all", "distillation.target": "image"},
    "text_and_image": {"base": "clip_it_all", "distillation.target": "text_and_image"},
    # Control: text that does not come from reports: the prompts of the class that the VLM predicts zero-shot.
    "class_prompts": {"base": "clip_it_all", "distillation.target": "class_prompts"},
    # Denoising: the mean of many retrieved snippets.
    "consensus": {"base": "clip_it_all", "pairing.k": 20},
    # Associations within the corpus: the other snippets of the reports that contain the retrieved one.
    "report_context": {"base": "clip_it_all", "distillation.target": "report_context"},
    # Report context from the diagnosis section alone.
    "report_diagnosis": {"base": "report_context", "distillation.sections": ("diagnosis",)},
    # Information beyond the embedding: the reports' own labels.
    "report_labels": {"base": "clip_it_all", "distillation.target": "report_labels"},
    # Report labels added to the VLM's own embedding of the tile.
    "report_labels_and_image": {"base": "clip_it_all", "distillation.target": "report_labels_and_image"},
    # Control for `bags`: the same number of snippets per tile, without the term.
    "top5": {"base": "clip_it_all", "pairing.k": 5},
    # CPLIP-style: text bags against tile bags, many to many.
    "bags": {"base": "clip_it_all", "pairing.k": 5, "bags.weight": 0.5},
    # Also align the projection with the class prompts, for zero-shot prediction.
    "prompt_bags": {"base": "clip_it_all", "prompt_bags.weight": 0.5, "soft_labels.source": "zero_shot"},
    # Soft labels from the VLM's zero-shot predictions, without distillation.
    "zero_shot_labels": {**_IMAGE_ONLY, "soft_labels.source": "zero_shot"},
    # Control: soft labels from the same VLM, but without text: a linear probe fitted on the run's labels.
    "probe_labels": {**_IMAGE_ONLY, "soft_labels.source": "vlm_probe"},
    # Retrieved text in addition to the soft labels from class prompts.
    "soft_labels_and_text": {"base": "clip_it_all", "soft_labels.source": "zero_shot"},
    # Control: soft labels from an image-only student with the same seed, without a VLM.
    "self_training": {**_IMAGE_ONLY, "soft_labels.source": "image_only"},
    "consistency": {**_IMAGE_ONLY, "consistency.weight": 1.0},
    # Labels from reports of the patients that the tiles come from: by a column of the reports, rules or a classifier.
    "own_label": {**_IMAGE_ONLY, "soft_labels.source": "own_report", "own_report.labels": "label"},
    "own_rules": {"base": "own_label", "own_report.labels": "rules"},
    "own_text": {"base": "own_label", "own_report.labels": "text"},
    # Control: tile labels, propagated to the other tiles of the same patient, without text.
    "own_case": {"base": "own_label", "own_report.labels": "case"},
    # Control: the reports' labels, shuffled across patients.
    "own_shuffled": {"base": "own_label", "own_report.shuffled": True},
    # The nearest snippet from the patient's own report instead of the nearest snippet from all reports.
    "own_snippet": {"base": "clip_it_all", "pairing.reports": "own_then_any"},
    "own_bags": {"base": "bags", "pairing.reports": "own_then_any"},
    # Control: the nearest snippet from another patient's report.
    "other_snippet": {"base": "clip_it_all", "pairing.exclude_same_group": True},
    # No labels: prompts and reports supervise training, and the checkpoint is selected without labels.
    "zero_label": {
        "base": "prompt_bags",
        "tiles.labels.kind": "none",
        "training.monitor": "agreement",
    },
    # The text side is fitted to the labels before distillation.
    "text_adapter": {"base": "clip_it_all", "distillation.text": "adapter"},
    "text_lora": {"base": "clip_it_all", "distillation.text": "lora"},
}


def arm_keys(name: str, configured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the dotted configuration keys that an arm sets.

    Args:
        configured: Arms defined in the configuration, which take precedence over the built-in ones.

    Raises:
        ConfigError: The arm is unknown, sets a key twice, or its `base` refers back to itself.
    """
    keys: dict[str, Any] = {}
    seen: list[tuple[str, bool]] = []
    current: str | None = name
    while current is not None:
        # A configured arm may build on the built-in arm of the same name.
        is_configured = current in configured and (current, True) not in seen
        if (not is_configured and current not in ARMS) or (current, is_configured) in seen:
            cyclic = any(current == earlier for earlier, _ in seen)
            raise ConfigError(
                f"the `base` keys of these arms form a cycle: {' -> '.join([*(arm for arm, _ in seen), current])}"
                if cyclic
                else f"unknown arm {current!r}",
                where=f"arms.{seen[-1][0]}.base" if seen else "arm",
                fix="change the `base` of one of these arms"
                if cyclic
                else f"use one of {', '.join({**ARMS, **configured})}, or define it under `arms`",
            )
        seen.append((current, is_configured))
        recipe = dict(configured[current] if is_configured else ARMS[current])
        check_keys_once(recipe, f"arms.{current}")
        current = recipe.pop("base", None)
        # `nested` lets later keys override earlier ones.
        keys = {**{key: value for key, value in recipe.items() if key not in keys}, **keys}
    return keys


def resolve_arm(config: RunConfig) -> RunConfig:
    """Fill in the keys of the configuration's arm; return a configuration without an arm unchanged.

    Keys given on the command line (`config.overrides`) keep their values.

    Raises:
        ConfigError: The arm is unknown, or its keys are invalid.
    """
    if config.arm is None:
        return config
    keys = without(nested(arm_keys(config.arm, config.arms)), config.overrides)
    return validate(merge(config.model_dump(), keys), f"arm {config.arm}")
