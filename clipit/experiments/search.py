"""The search grid of a comparison: which trials each arm gets, and whether arms were searched alike."""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from clipit.config import Config
from clipit.errors import ConfigError, explain, shortlist
from clipit.settings import merge, nested, validate
from clipit.training.arms import resolve_arm

Trial = Mapping[str, Any]
"""Dotted keys and their values: the learning rate, the steps, then the other axes that the arm has."""
RATE, STEPS = "training.learning_rate", "training.steps"

_HAS: Mapping[str, Callable[[Config], bool]] = {
    "distillation": lambda c: c.distillation.tiles != "none",
    "pairing": lambda c: c.distillation.tiles != "none" or c.bags.weight > 0 or c.prompt_bags.weight > 0,
    "bags": lambda c: c.bags.weight > 0,
    "prompt_bags": lambda c: c.prompt_bags.weight > 0,
    "soft_labels": lambda c: c.soft_labels.source != "none",
    "consistency": lambda c: c.consistency.weight > 0,
}
"""Whether an arm has the term that a section speaks of; where it has not, a trial of its keys would change nothing."""


def axes_of(config: Config, arm: str) -> dict[str, tuple[Any, ...]]:
    """The axes of the common grid that this arm has: learning rates, steps, and of `comparison.grid` what concerns it.

    Raises:
        ConfigError: A key of the grid is unknown, or a value does not fit it.
    """
    c = config.comparison
    resolved = resolve_arm(config.model_copy(update={"arm": arm}))
    further = {key: values for key, values in c.grid.items() if _has(resolved, key)}
    for key, values in further.items():
        for value in values:
            validate(merge(resolved.model_dump(), nested({key: value})), f"comparison.grid.{key}")
    return {RATE: c.learning_rates, STEPS: c.steps, **further}


def _has(resolved: Config, key: str) -> bool:
    term: Callable[[Config], bool] | None = _HAS.get(key.partition(".")[0])
    return term is None or term(resolved)


def trials_of(config: Config, arm: str) -> list[Trial]:
    """All trials of an arm, in the order of the grid."""
    axes = axes_of(config, arm)
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def chosen(config: Config, arm: str, axes: Sequence[str]) -> dict[str, Any]:
    """The values of these keys with which an arm is run."""
    return _values(resolve_arm(config.model_copy(update={"arm": arm})), axes)


def _values(config: Config, keys: Sequence[str]) -> dict[str, Any]:
    values = {}
    for key in keys:
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        values[key] = found
    return values


def is_tuned(config: Config, arms: Sequence[str]) -> bool:
    """Whether the arms differ in a key of the grid, or from the file's own: then something was chosen for them."""
    seen = {key: {value} for key, value in _values(config, list(config.comparison.grid)).items()}
    for arm in arms:
        for key, value in chosen(config, arm, list(axes_of(config, arm))).items():
            seen.setdefault(key, set()).add(value)
    return any(len(values) > 1 for values in seen.values())


def check_grid(config: Config, arms: Sequence[str]) -> None:
    """Refuse arms that were given more choice than others.

    All arms have the same values of all keys of the grid (none was tuned), or each has those of a trial of it.

    Raises:
        ConfigError: Some lie outside of the grid.
    """
    if not is_tuned(config, arms):
        return
    outside = []
    for arm in arms:
        axes = axes_of(config, arm)
        own = {key: value for key, value in chosen(config, arm, list(axes)).items() if value not in axes[key]}
        if own:
            outside.append(f"{arm} ({', '.join(shown(key, value) for key, value in own.items())})")
    if outside:
        raise ConfigError(
            explain(
                f"values outside of the common search grid: {shortlist(outside, 10)}; an arm that was searched "
                "otherwise than the others cannot be compared with them",
                where="arms, against comparison.learning_rates, comparison.steps and comparison.grid",
                fix="take what scripts/tune.py chose for all of them, or widen the grid for all and tune again",
            )
        )


def shown(key: str, value: object) -> str:
    """One value of a trial, for people."""
    if key == RATE:
        return f"learning rate {value:g}"
    if key == STEPS:
        return f"{value} steps"
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {str(value).lower()}"


def described(trial: Trial) -> str:
    """A trial in one line."""
    return ", ".join(shown(key, value) for key, value in trial.items())
