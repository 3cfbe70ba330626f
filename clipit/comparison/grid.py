"""The search grid of a comparison: which trials each arm gets, and whether arms were searched alike."""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from math import prod
from typing import Any

from clipit.config.comparison import ComparisonConfig
from clipit.config.load import merge, nested, validate
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, explain, shortlist
from clipit.training.arms import ARMS, arm_keys, resolve_arm
from clipit.training.terms.table import concerns

Trial = Mapping[str, Any]
"""Dotted keys and their values: the learning rate, the steps, then the other axes that the arm has."""
RATE, STEPS = "training.learning_rate", "training.steps"

_NONE = object()


def axes_of(config: RunConfig, comparison: ComparisonConfig, arm: str) -> dict[str, tuple[Any, ...]]:
    """The axes of the common grid that this arm has: learning rates, steps, and of `comparison.grid` what concerns it.

    An axis does not concern an arm that lacks the term, or whose built-in recipe is defined by the key. Such an arm
    gets learning rates between the common ones instead, so that every arm has as many trials.

    Raises:
        ConfigError: A key of the grid is unknown, or a value does not fit it.
    """
    c = comparison
    resolved = resolve_arm(config.model_copy(update={"arm": arm}))
    fixed = _recipe(config, arm)
    further = {key: values for key, values in c.grid.items() if concerns(resolved, key) and key not in fixed}
    lacking = prod(len(values) for key, values in c.grid.items() if key not in further)
    for key, values in further.items():
        for value in values:
            validate(merge(resolved.model_dump(), nested({key: value})), f"comparison.grid.{key}")
    return {RATE: between(c.learning_rates, len(c.learning_rates) * lacking), STEPS: c.steps, **further}


def between(rates: Sequence[float], count: int) -> tuple[float, ...]:
    """These learning rates and others between neighbours, evenly on a logarithmic scale, `count` in all.

    Two digits each. A single rate has no neighbour and stays alone.
    """
    known = sorted(rates)
    missing, gaps = count - len(known), len(known) - 1
    if missing <= 0 or gaps == 0:
        return tuple(rates)
    found = []
    for i, (low, high) in enumerate(pairwise(known)):
        more = missing // gaps + (i < missing % gaps)
        found += [low, *(float(f"{low * (high / low) ** (k / (more + 1)):.2g}") for k in range(1, more + 1))]
    return tuple(dict.fromkeys([*found, known[-1]]))


def _recipe(config: RunConfig, arm: str) -> set[str]:
    """The keys that the built-in recipes behind an arm set: they make it what it is."""
    while arm not in ARMS or arm in config.arms:
        base = config.arms.get(arm, {}).get("base")
        if base is None or base == arm:
            break
        arm = base
    return set(arm_keys(arm, {})) if arm in ARMS else set()


def trials_of(config: RunConfig, comparison: ComparisonConfig, arm: str) -> list[Trial]:
    """All trials of an arm, in the order of the grid."""
    axes = axes_of(config, comparison, arm)
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def chosen(config: RunConfig, arm: str, axes: Sequence[str]) -> dict[str, Any]:
    """The values of these keys with which an arm is run."""
    return _values(resolve_arm(config.model_copy(update={"arm": arm})), axes)


def _values(config: RunConfig, keys: Sequence[str]) -> dict[str, Any]:
    values = {}
    for key in keys:
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        values[key] = found
    return values


def is_tuned(config: RunConfig, comparison: ComparisonConfig, arms: Sequence[str]) -> bool:
    """Whether the arms differ in a key of the grid, or from the file's own: then something was chosen for them."""
    seen = {key: {value} for key, value in _values(config, list(comparison.grid)).items()}
    for arm in arms:
        for key, value in chosen(config, arm, list(axes_of(config, comparison, arm))).items():
            seen.setdefault(key, set()).add(value)
    return any(len(values) > 1 for values in seen.values())


def check_grid(config: RunConfig, comparison: ComparisonConfig, arms: Sequence[str]) -> None:
    """Refuse arms that were given more choice than others.

    All arms have the same values of all keys of the grid (none was tuned), or each has those of a trial of it.

    Raises:
        ConfigError: Some lie outside of the grid.
    """
    _check_names(config, comparison, arms)
    if not is_tuned(config, comparison, arms):
        return
    outside = []
    for arm in arms:
        axes = axes_of(config, comparison, arm)
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


def _check_names(config: RunConfig, comparison: ComparisonConfig, arms: Sequence[str]) -> None:
    """An arm with the name of a built-in recipe may differ from it in what was searched, and in nothing else."""
    searched = {RATE, STEPS, "base", *comparison.grid}
    wrong = []
    for arm in arms:
        own = config.arms.get(arm, {})
        if arm not in ARMS or own.get("base", arm) != arm:
            continue
        ours, theirs = arm_keys(arm, config.arms), arm_keys(arm, {})
        keys = sorted(key for key in own if key not in searched and ours[key] != theirs.get(key, _NONE))
        if keys:
            wrong.append(f"{arm} ({', '.join(keys)})")
    if wrong:
        raise ConfigError(
            explain(
                f"built-in arms with keys of their own that are not searched for the others: {shortlist(wrong, 10)}",
                where="arms, against comparison.grid",
                fix="give the arm another name, or make the key an axis of comparison.grid",
            )
        )


def made_with(config: RunConfig) -> dict[str, Any]:
    """What a search depends on beside the arms, by section; a choice holds for the same values of all of them."""
    sections = ("tiles", "reports", "prompts", "vlm", "backbone", "lora", "pairing", "distillation", "training")
    found: dict[str, Any] = config.model_dump(mode="json", include=set(sections))
    return {name: found[name] for name in sections}


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
