"""Arms: named training recipes. Each is a handful of configuration keys, so a YAML can add one without code."""

from collections.abc import Mapping
from typing import Any

from clipit.config import Config
from clipit.errors import ConfigError, explain
from clipit.settings import merge, nested, validate, without

_IMAGE_ONLY = {
    "student.head": "linear",
    "student.projector_layers": 0,
    "student.warm_start": False,
    "distillation.tiles": "none",
}

ARMS: Mapping[str, Mapping[str, Any]] = {
    # What a gain is measured against: the same student, the same LoRA, no text.
    "image_only": {**_IMAGE_ONLY, "backbone.tuning": "lora"},
    "image_only_frozen": {**_IMAGE_ONLY, "backbone.tuning": "frozen"},
    # Is it the text, or only the extra layers?
    "heads_without_text": {"distillation.tiles": "none", "student.warm_start": False},
    # arXiv 2504.16181: stage 1 fits both heads, stage 2 distils and fuses.
    "clip_it_paper": {
        "student.head": "late_fusion",
        "student.warm_start": True,
        "distillation.tiles": "labelled",
        "distillation.target": "text",
    },
    "clip_it_labelled": {"distillation.tiles": "labelled", "distillation.target": "text"},
    "clip_it_all": {"distillation.tiles": "all", "distillation.target": "text"},
    # Ablation of the paper: 30 % of the words left out of the target text.
    "word_drop": {"base": "clip_it_all", "distillation.word_drop": 0.3},
    # Control: does it matter which text belongs to which tile?
    "shuffled_pairs": {"base": "clip_it_all", "distillation.target": "shuffled_text"},
    # Control: is it the text at all, or the VLM's own view of the tile?
    "image_embedding": {"base": "clip_it_all", "distillation.target": "image"},
}


def arm_keys(name: str, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The configuration keys (dotted) that an arm sets.

    Args:
        name: Name of the arm.
        own: Arms of the configuration; they come before the built-in ones.

    Raises:
        ConfigError: No such arm, or a circle of `base`.
    """
    keys: dict[str, Any] = {}
    seen: list[tuple[str, bool]] = []
    current: str | None = name
    while current is not None:
        # An own arm may build on the built-in one of the same name.
        mine = current in own and (current, True) not in seen
        if (not mine and current not in ARMS) or (current, mine) in seen:
            circle = any(current == earlier for earlier, _ in seen)
            raise ConfigError(
                explain(
                    f"arms build on each other in a circle: {' -> '.join([*(n for n, _ in seen), current])}"
                    if circle
                    else f"unknown arm {current!r}",
                    where=f"arms.{seen[-1][0]}.base" if seen else "arm",
                    fix=f"use one of {', '.join({**ARMS, **own})}, or describe it under `arms`",
                )
            )
        seen.append((current, mine))
        recipe = dict(own[current] if mine else ARMS[current])
        current = recipe.pop("base", None)
        keys = {**recipe, **keys}
    return keys


def resolve_arm(config: Config) -> Config:
    """The configuration with the keys of its arm filled in (unchanged without an arm).

    Keys that were given on the command line (`config.overrides`) keep their value.

    Raises:
        ConfigError: An unknown arm, or a recipe whose keys do not fit.
    """
    if config.arm is None:
        return config
    keys = without(nested(arm_keys(config.arm, config.arms)), config.overrides)
    return validate(merge(config.model_dump(), keys), f"arm {config.arm}")
