"""What a comparison runs: every arm on every data set and backbone with every seed, under the same rules."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clipit.comparison.grid import check_grid
from clipit.config.comparison import ComparisonConfig
from clipit.config.file import SECTIONS
from clipit.config.load import dotted, merge, nested, validate, without
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, explain, shortlist
from clipit.training.arms import arm_keys, resolve_arm
from clipit.training.checks import check

_COMMON = ("name", "output", "seed", "arm", "arms", "overrides")
"""Keys that a comparison gives to every run, or reads once for all."""


@dataclass(frozen=True)
class Plan:
    """One data set with one backbone.

    Attributes:
        data_set: Name; the configuration's own where it lists none.
        backbone: Name of the backbone.
        config: Of all runs here, without arm and seed; its `arms` hold those at equal steps, too.
        comparison: The section of the comparison, the same for all plans.
        arms: In the order of the table.
    """

    data_set: str
    backbone: str
    config: RunConfig
    comparison: ComparisonConfig
    arms: tuple[str, ...]

    def run(self, arm: str, seed: int) -> RunConfig:
        """The configuration of one run."""
        return self.config.model_copy(update={"arm": arm, "seed": seed})


_OWN = "each data set's own"


def plan_comparison(config: RunConfig, comparison: ComparisonConfig) -> list[Plan]:
    """All data sets x backbones of a comparison.

    Raises:
        ConfigError: An arm or a data set's keys are wrong (all are listed), or the arms were not searched alike.
    """
    c = comparison
    _check_command_line(config, comparison)
    found, wrong = [], []
    for data_set, keys in (c.data_sets or {config.name: {}}).items():
        for backbone in c.backbones or (str(keys.get("backbone.name", config.backbone.name)),):
            try:
                own = not c.backbones and any("backbone.name" in k for k in c.data_sets.values())
                found.append(_plan(config, c, data_set, keys, backbone, _OWN if own else backbone))
            except ConfigError as error:
                wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    _check_folders(found)
    return found


def _check_folders(plans: Sequence[Plan]) -> None:
    """Refuse two plans whose runs would lie in one folder."""
    owners: dict[str, list[str]] = {}
    for plan in plans:
        owners.setdefault(plan.config.name, []).append(f"{plan.data_set!r} on {plan.backbone!r}")
    shared = [f"{', '.join(names)} (folder {folder})" for folder, names in owners.items() if len(names) > 1]
    if shared:
        raise ConfigError(
            explain(
                f"these would be kept in one folder: {shortlist(shared)}",
                where="comparison.data_sets and comparison.backbones",
                fix="give names that differ in letters A-Z, digits, '.', '_' or '-'",
            )
        )


def _plan(
    config: RunConfig, c: ComparisonConfig, data_set: str, keys: dict[str, object], backbone: str, called: str
) -> Plan:
    where = f"comparison.data_sets.{data_set}"
    _check_data_set(data_set, keys, where)
    parts = [config.name, *([data_set] if c.data_sets else []), *([backbone] if c.backbones else [])]
    own = nested({**keys, "name": _plain("-".join(parts)), "backbone.name": backbone})
    values = merge(config.model_dump(), without(own, config.overrides))
    values["name"] = _plain("-".join(parts))
    resolved = validate(values, where)
    wrong = []
    for arm in c.arms:
        try:
            check(resolve_arm(resolved.model_copy(update={"arm": arm})))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    check_grid(resolved, c, c.arms)
    arms, recipes = _with_equal_steps(resolved, c.arms) if c.equal_steps else (c.arms, {})
    return Plan(data_set, called, resolved.model_copy(update={"arms": {**resolved.arms, **recipes}}), c, arms)


def _check_data_set(name: str, keys: dict[str, object], where: str) -> None:
    given = dotted(nested(keys))
    common = sorted(key for key in given if key.partition(".")[0] in (*_COMMON, *SECTIONS))
    if common:
        raise ConfigError(
            explain(
                f"a data set cannot have its own {', '.join(common)}: the comparison gives these to every run",
                where=where,
                fix="set them for the whole comparison, or leave them out",
            )
        )
    if not _slug(name):
        raise ConfigError(
            explain(
                f"nothing of the name {name!r} can be part of a folder's name",
                where=where,
                fix="use letters A-Z or digits in it",
            )
        )


def _with_equal_steps(config: RunConfig, arms: Sequence[str]) -> tuple[tuple[str, ...], dict[str, dict[str, object]]]:
    """The arms, each followed by itself at the steps of the longest one where it has fewer."""
    steps = {arm: resolve_arm(config.model_copy(update={"arm": arm})).training.steps for arm in arms}
    longest = max(steps.values())
    shown: list[str] = []
    recipes: dict[str, dict[str, object]] = {}
    for arm in arms:
        shown.append(arm)
        if steps[arm] < longest:
            shown.append(f"{arm}_at_{longest}_steps")
            recipes[shown[-1]] = {"base": arm, "training.steps": longest}
    return tuple(shown), recipes


def _check_command_line(config: RunConfig, comparison: ComparisonConfig) -> None:
    told = {key for arm in comparison.arms for key in _keys_of(config, arm)} & set(config.overrides)
    told |= {key for keys in comparison.data_sets.values() for key in dotted(nested(keys))} & set(config.overrides)
    if comparison.backbones:  # one model under several names would be the end of a table
        told |= {"backbone.name", "backbone.path"} & set(config.overrides)
    told = {key for key in told if not key.startswith("training.")}
    if told:
        raise ConfigError(
            explain(
                f"set for all arms, these keys would make arms or data sets alike: {', '.join(sorted(told))}",
                where="the command line",
                fix="leave them out, or describe an arm of your own under `arms`",
            )
        )


def _keys_of(config: RunConfig, arm: str) -> list[str]:
    try:
        return list(arm_keys(arm, config.arms))
    except ConfigError:  # reported later, with all others
        return []


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")


def _plain(name: str) -> str:
    return _slug(name) or "comparison"
