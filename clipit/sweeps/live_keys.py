"""Which keys of a configuration change its run."""

from collections.abc import Sequence
from typing import Any

from clipit.artifacts import fingerprint
from clipit.config.effects import select_keys
from clipit.config.load import dotted, without
from clipit.config.run import RunConfig
from clipit.training.active_terms import uses_reports


def live_keys(config: RunConfig) -> dict[str, Any]:
    """A configuration (its arm resolved) less the keys that cannot change its run.

    Keys of a part that is switched off: LoRA of a frozen backbone, the target of a distillation of no tile, and so on.
    """
    d, idle = config.distillation, list(select_keys(config, "recipe", "reporting"))
    if config.backbone.tuning != "lora":
        idle.append("lora")
    if d.tiles == "none":
        idle += ["distillation.target", "distillation.weight", "distillation.word_drop", "distillation.text"]
    idle += [f"{name}.{key}" for name, keys in _switched_off(config).items() for key in keys]
    if config.tiles.labels.kind in ("all", "none"):
        idle += ["tiles.labels.value", "tiles.labels.seed"]
    without_vlm = config.student.projector_layers == 0 and d.tiles == "none" and config.soft_labels.source == "none"
    if without_vlm and not uses_reports(config):
        idle.append("pairing")
    return without(config.model_dump(mode="json"), idle)


def _switched_off(config: RunConfig) -> dict[str, list[str]]:
    """Sections whose term has no weight or no source -> their other keys."""
    switches = {
        "bags": ("weight", config.bags.weight == 0),
        "prompt_bags": ("weight", config.prompt_bags.weight == 0),
        "soft_labels": ("source", config.soft_labels.source == "none"),
    }
    return {
        name: [key for key in type(getattr(config, name)).model_fields if key != switch]
        for name, (switch, off) in switches.items()
        if off
    }


def idle_keys(keys: Sequence[str], configs: Sequence[RunConfig]) -> list[str]:
    """Those of the swept keys that change none of these runs.

    Args:
        keys: Swept.
        configs: Of all trials, their arms resolved.
    """
    live = {key for config in configs for key in dotted(live_keys(config))}
    # A section given as a whole (None or a mapping) is as live as what is in it.
    return [key for key in keys if key not in ("arm", "seed") and not any(_within(key, other) for other in live)]


def _within(key: str, other: str) -> bool:
    return other == key or other.startswith(f"{key}.") or key.startswith(f"{other}.")


def equal_trials(configs: Sequence[RunConfig]) -> list[list[int]]:
    """Positions of the trials that are one and the same run, wherever there are several."""
    found: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        found.setdefault(fingerprint(live_keys(config)), []).append(position)
    return [positions for positions in found.values() if len(positions) > 1]
