"""Find the configuration keys that affect a run, and trials that produce the same run."""

from collections.abc import Sequence
from typing import Any

from clipit.config.effects import select_keys
from clipit.config.load import dotted, without
from clipit.config.run import RunConfig
from clipit.output_files.artifacts import fingerprint
from clipit.training.terms.term_table import unused_keys, uses_vlm


def live_keys(config: RunConfig) -> dict[str, Any]:
    """Return the keys that can affect a run, given its configuration with the arm resolved.

    Keys that affect only the run's name or reports are dropped, and so are keys of disabled parts, such as LoRA for a
    frozen backbone.
    """
    unused = [*select_keys(config, "recipe", "reporting"), *unused_keys(config)]
    if not uses_vlm(config):
        unused.append("pairing")
    return without(config.model_dump(mode="json"), unused)


def unused_parameters(keys: Sequence[str], configs: Sequence[RunConfig]) -> list[str]:
    """List the swept keys that affect none of the runs.

    Args:
        configs: Configurations of all trials, with their arms resolved.
    """
    live = {key for config in configs for key in dotted(live_keys(config))}
    # A section that is swept as one value (None or a mapping) is used if one of its keys is.
    return [key for key in keys if key not in ("arm", "seed") and not any(_overlaps(key, other) for other in live)]


def _overlaps(key: str, other: str) -> bool:
    return other == key or other.startswith(f"{key}.") or key.startswith(f"{other}.")


def equal_trials(configs: Sequence[RunConfig]) -> list[list[int]]:
    """Group the positions of trials that produce the same run; one list per run that occurs more than once."""
    same: dict[str, list[int]] = {}
    for position, config in enumerate(configs):
        same.setdefault(fingerprint(live_keys(config)), []).append(position)
    return [positions for positions in same.values() if len(positions) > 1]
