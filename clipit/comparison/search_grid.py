"""Search grid of a comparison: the points of each arm, and a check that all arms were tuned in the same way."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import pairwise, product
from math import prod
from typing import Any

from clipit.config.comparison import ComparisonConfig
from clipit.config.effects import select_keys
from clipit.config.load import keys_of, merge, nested, validate, without
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, shortlist
from clipit.training.arms import ARMS, arm_keys, resolve_arm
from clipit.training.terms.term_table import uses_key

GridPoint = Mapping[str, Any]
"""Dotted keys with their values: the learning rate, the steps, then the arm's other axes."""
RATE, STEPS = "training.learning_rate", "training.steps"

_NONE = object()


def grid_axes(config: RunConfig, comparison: ComparisonConfig, arm: str) -> dict[str, tuple[Any, ...]]:
    """Return the axes of an arm's grid: learning rates, steps and the keys of `comparison.grid` that apply to it.

    A key does not apply to an arm that lacks the key's loss term, or whose built-in recipe sets the key. Such an arm
    gets additional learning rates between the common ones instead, so that all arms have the same number of points.

    Raises:
        ConfigError: A key of the grid is unknown, or a value is not valid for it.
    """
    resolved = resolve_arm(config.model_copy(update={"arm": arm}))
    fixed = _recipe_keys(config, arm)
    applicable = {
        key: values for key, values in comparison.grid.items() if key not in fixed and uses_key(resolved, key)
    }
    missing = prod(len(values) for key, values in comparison.grid.items() if key not in applicable)
    known = keys_of(RunConfig)
    for key, values in comparison.grid.items():
        for value in values if key in applicable or key not in known else ():
            validate(merge(resolved.model_dump(), nested({key: value})), f"comparison.grid.{key}")
    rates = interpolate_rates(comparison.learning_rates, len(comparison.learning_rates) * missing)
    return {RATE: rates, STEPS: comparison.steps, **applicable}


def grid_points(config: RunConfig, comparison: ComparisonConfig, arm: str) -> list[GridPoint]:
    """Return all points of an arm's grid, in order.

    Raises:
        ConfigError: As for `grid_axes`; or there is only one learning rate, and the arm needs additional ones.
    """
    axes = grid_axes(config, comparison, arm)
    unused = [key for key in comparison.grid if key not in axes]
    if len(comparison.learning_rates) == 1 and any(len(comparison.grid[key]) > 1 for key in unused):
        raise ConfigError(
            f"the arm {arm!r} does not use {shortlist(unused)}, and needs additional learning rates instead for a "
            "search of the same size as the other arms', but there is only one to start from",
            where="comparison.learning_rates",
            fix="list at least two, such as the lowest and the highest that you would try",
        )
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def interpolate_rates(rates: Sequence[float], count: int) -> tuple[float, ...]:
    """Insert learning rates between the given ones, evenly spaced on a logarithmic scale, until there are `count`.

    The added rates are rounded to two significant digits, or more where that is needed to keep them distinct. A single
    rate is returned unchanged.
    """
    known = sorted(rates)
    missing, gaps = count - len(known), len(known) - 1
    if missing <= 0 or gaps == 0:
        return tuple(rates)
    spaced: list[float] = []
    for i, (low, high) in enumerate(pairwise(known)):
        added = missing // gaps + (i < missing % gaps)
        exact = [low * (high / low) ** (k / (added + 1)) for k in range(1, added + 1)]
        rounded = ([float(f"{rate:.{digits}g}") for rate in exact] for digits in range(2, 17))
        spaced += [low, *next(inner for inner in rounded if len({low, *inner, high}) == added + 2)]
    return (*spaced, known[-1])


def _recipe_keys(config: RunConfig, arm: str) -> set[str]:
    """Return the keys that an arm's built-in base recipe sets."""
    while arm not in ARMS or arm in config.arms:
        base = config.arms.get(arm, {}).get("base")
        if base is None or base == arm:
            break
        arm = base
    return set(arm_keys(arm, {})) if arm in ARMS else set()


def arm_values(config: RunConfig, arm: str, keys: Sequence[str]) -> dict[str, Any]:
    """Return the values of these keys in an arm's configuration."""
    return _values(resolve_arm(config.model_copy(update={"arm": arm})), keys)


def _values(config: RunConfig, keys: Sequence[str]) -> dict[str, Any]:
    return {key: reduce(getattr, key.split("."), config) for key in keys}


def is_tuned(config: RunConfig, comparison: ComparisonConfig, arms: Sequence[str]) -> bool:
    """Check whether the arms differ from each other, or from the configuration file, in a key of the grid."""
    values = (arm_values(config, arm, list(grid_axes(config, comparison, arm))) for arm in arms)
    return _differ(config, comparison, values)


def _differ(config: RunConfig, comparison: ComparisonConfig, arms: Iterable[Mapping[str, Any]]) -> bool:
    """Check whether the arms' values differ from each other, or from the configuration in a key of the grid."""
    distinct = {key: {value} for key, value in _values(config, list(comparison.grid)).items()}
    for values in arms:
        for key, value in values.items():
            distinct.setdefault(key, set()).add(value)
    return any(len(values) > 1 for values in distinct.values())


def check_grid(config: RunConfig, comparison: ComparisonConfig, arms: Sequence[str]) -> None:
    """Check that the hyperparameters of all arms come from the same search.

    Either all arms share the values of all grid keys (none was tuned), or the values of each arm are a grid point.

    Raises:
        ConfigError: Values lie outside the grid, or a built-in arm differs in keys that were not tuned.
    """
    _check_built_in_arms(config, comparison, arms)
    axes = {arm: grid_axes(config, comparison, arm) for arm in arms}
    values = {arm: arm_values(config, arm, list(axes[arm])) for arm in arms}
    if not _differ(config, comparison, values.values()):
        return
    outside = []
    for arm in arms:
        outside_values = [format_value(key, value) for key, value in values[arm].items() if value not in axes[arm][key]]
        if outside_values:
            outside.append(f"{arm} ({', '.join(outside_values)})")
    if outside:
        raise ConfigError(
            f"values outside the common search grid: {shortlist(outside, 10)}; an arm that was tuned differently "
            "cannot be compared with the others",
            where="arms, compared with comparison.learning_rates, comparison.steps and comparison.grid",
            fix="use the values that clipit tune chose for every arm, or widen the grid and tune all arms again",
        )


def _check_built_in_arms(config: RunConfig, comparison: ComparisonConfig, arms: Sequence[str]) -> None:
    """Check that arms named after a built-in recipe differ from it only in tuned keys."""
    searched = {RATE, STEPS, "base", *comparison.grid}
    changed = []
    for arm in arms:
        entry = config.arms.get(arm, {})
        if arm not in ARMS or entry.get("base", arm) != arm:
            continue
        values, built_in = arm_keys(arm, config.arms), arm_keys(arm, {})
        keys = sorted(key for key in entry if key not in searched and values[key] != built_in.get(key, _NONE))
        if keys:
            changed.append(f"{arm} ({', '.join(keys)})")
    if changed:
        raise ConfigError(
            f"these built-in arms have changed keys that are not tuned for the other arms: {shortlist(changed, 10)}",
            where="arms, compared with comparison.grid",
            fix="rename the arm, or make the key an axis of comparison.grid",
        )


def tuning_keys(config: RunConfig) -> dict[str, Any]:
    """Return the keys that determine the result of a search, as a tree; the arms and seeds are recorded separately."""
    others = select_keys(config, "recipe", "evaluation", "speed", "reporting")
    return without(config.model_dump(mode="json"), ["seed", *others])


def format_value(key: str, value: object) -> str:
    """Format a key of the grid and its value as text."""
    if key == RATE:
        return f"learning rate {value:g}"
    if key == STEPS:
        return f"{value} step{'' if value == 1 else 's'}"
    return f"{key} {value:g}" if isinstance(value, float) else f"{key} {str(value).lower()}"


def format_point(point: GridPoint) -> str:
    """Format a point of the grid as one line."""
    return ", ".join(format_value(key, value) for key, value in point.items())
