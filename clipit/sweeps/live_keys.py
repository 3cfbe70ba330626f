"""What a sweep compares: whether its keys change anything, and whether its folder belongs to it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipit.artifacts import fingerprint, write_json
from clipit.config.load import dotted, without
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, explain, shortlist
from clipit.sweeps.file import Sweep
from clipit.training.active_terms import uses_reports

_NOT_COMPARED = ("output", "tracking.")
_NAMES = ["name", "arm", "arms", "overrides", "comparison", "probing", "robustness"]


def live_keys(config: RunConfig) -> dict[str, Any]:
    """A configuration (its arm resolved) less the keys that cannot change its run.

    Keys of a part that is switched off: LoRA of a frozen backbone, the target of a distillation of no tile, and so on.
    """
    d, idle = config.distillation, list(_NAMES)
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


def claim_folder(folder: Path, sweep: Sweep, options: dict[str, str]) -> None:
    """Take the folder for this sweep, or see that it is its own; called by all processes.

    A sweep that only adds values goes on in the folder.

    Args:
        folder: Of the tables.
        sweep: The file.
        options: Of the command line, with those of the file.

    Raises:
        ConfigError: Another sweep of this name has its tables there.
    """
    swept = {p.key: [*map(str, p.values)] or [str(p.low), str(p.high), p.distribution] for p in sweep.parameters}
    shared = {key: value for key, value in options.items() if key not in swept and not key.startswith(_NOT_COMPARED)}
    grid = {"parameters": swept, "options": shared}
    file = folder / "grid.json"
    if file.is_file():
        try:
            earlier = json.loads(file.read_text(encoding="utf-8"))
            other = _differences(earlier, grid, {p.key for p in sweep.parameters if p.values})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            other = [f"unreadable: {error}"]
        if other:
            raise ConfigError(
                explain(
                    f"another sweep called {sweep.name!r} has its tables in this folder; different are: "
                    f"{shortlist(other)}",
                    where=file,
                    fix=f"give the sweep a name of its own in {sweep.path}, or another --output; "
                    "or delete the folder (the runs stay)",
                )
            )
    if get_processes().main:
        write_json(file, grid)


def _differences(earlier: dict[str, Any], now: dict[str, Any], listed: set[str]) -> list[str]:
    """Keys of which the two grids say different things; more values of a listed key are no difference."""
    found = []
    for part in ("parameters", "options"):
        for key in sorted({*earlier[part], *now[part]}):
            before, after = earlier[part].get(key), now[part].get(key)
            grown = part == "parameters" and key in listed and before is not None and set(before) <= set(after or ())
            if before != after and not grown:
                found.append(key)
    return found
