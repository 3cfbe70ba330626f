"""Plan a comparison: every arm on every data set and backbone with every seed, under the same rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clipit.comparison.search_grid import check_grid
from clipit.config.comparison import ComparisonConfig
from clipit.config.file import SECTIONS
from clipit.config.load import check_keys_once, dotted, merge, nested, validate, without
from clipit.config.paths import to_file_name
from clipit.config.run import RunConfig, TrackingConfig
from clipit.errors import ConfigError, DivergenceError, counted_of, shortlist
from clipit.training.arms import arm_keys, resolve_arm
from clipit.training.config_checks import check_keys

_SHARED_KEYS = ("name", "output", "seed", "arm", "arms", "overrides", *SECTIONS)
"""Keys that a data set cannot set: the comparison sets them, or they are the same for all runs."""
_BACKBONE_PER_DATA_SET = "each data set's own"


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison on one data set with one backbone.

    Attributes:
        data_set: Name of the data set; the name of the configuration if it lists no data sets.
        backbone: Name of the backbone in tables.
        config: Configuration of the runs, without arm and seed; its `arms` include the copies for `equal_steps`.
        comparison: Section `comparison`, the same for all plans.
        arms: Names of the arms, in the order of the table.
    """

    data_set: str
    backbone: str
    config: RunConfig
    comparison: ComparisonConfig
    arms: tuple[str, ...]

    def run_config(self, arm: str, seed: int) -> RunConfig:
        """Return the configuration of one run."""
        pages = self.comparison.run_pages
        has_page = pages == "all" or (pages == "first_seed" and seed == self.comparison.seeds[0])
        evaluation = self.config.evaluation
        if not has_page:
            evaluation = evaluation.model_copy(update={"page": False})
        return self.config.model_copy(update={"arm": arm, "seed": seed, "evaluation": evaluation})


@dataclass(frozen=True)
class FailedRun:
    """A run without scores, because its training diverged."""

    data_set: str
    backbone: str
    arm: str
    seed: int
    reason: str


def without_failed(plans: Sequence[Plan], failed: Sequence[FailedRun]) -> list[Plan]:
    """Return the plans with the seeds that all arms have; arms whose runs all failed are dropped from their plan.

    Raises:
        DivergenceError: All runs of a baseline failed, or no seed remains.
    """
    if not failed:
        return list(plans)
    seeds, kept, missing = plans[0].comparison.seeds, [], set[int]()
    for plan in plans:
        failed_seeds = {arm: _failed_seeds(plan, arm, failed) for arm in plan.arms}
        arms = tuple(arm for arm, each in failed_seeds.items() if len(each) < len(seeds))
        if plan.comparison.baseline not in arms:
            raise _nothing_left(f"training diverged in every run of the baseline {plan.comparison.baseline}", failed)
        missing |= {seed for arm in arms for seed in failed_seeds[arm]}
        kept.append(replace(plan, arms=arms))
    common = tuple(seed for seed in seeds if seed not in missing)
    if not common:
        raise _nothing_left("for every seed, training diverged in at least one arm", failed)
    comparison = plans[0].comparison.model_copy(update={"seeds": common})
    return [replace(plan, comparison=comparison) for plan in kept]


def _failed_seeds(plan: Plan, arm: str, failed: Sequence[FailedRun]) -> list[int]:
    setting = (plan.data_set, plan.backbone, arm)
    return [run.seed for run in failed if (run.data_set, run.backbone, run.arm) == setting]


def _nothing_left(cause: str, failed: Sequence[FailedRun]) -> DivergenceError:
    return DivergenceError(
        f"nothing can be compared, because {cause}; first reason: {failed[0].reason}",
        where=f"{failed[0].arm}, seed {failed[0].seed}",
        fix="lower training.learning_rate, or check the models",
    )


def describe_failed(plans: Sequence[Plan], failed: Sequence[FailedRun], total: int) -> str:
    """Describe the failed runs, and the seeds that are compared; "" if no run failed.

    Args:
        plans: Plans, as returned by `without_failed`.
        total: Number of runs, including those that failed.
    """
    if not failed:
        return ""
    several = len(plans) > 1
    runs = [
        f"{run.arm}{f' on {run.data_set} ({run.backbone})' if several else ''}, seed {run.seed}: {run.reason}"
        for run in failed
    ]
    seeds = plans[0].comparison.seeds
    text = (
        f"{counted_of(len(failed), total, 'run failed and has', 'runs failed and have')} no score ({shortlist(runs)}). "
        f"Scores and differences use only {'the seed' if len(seeds) == 1 else 'the seeds'} "
        f"{', '.join(map(str, seeds))}, which every arm has"
    )
    dropped = {
        run.arm for plan in plans for run in failed if run.data_set == plan.data_set and run.arm not in plan.arms
    }
    return text + (f", except {', '.join(sorted(dropped))}, which failed with every seed." if dropped else ".")


def plan_comparison(config: RunConfig, comparison: ComparisonConfig) -> list[Plan]:
    """Plan the runs of every data set with every backbone.

    Raises:
        ConfigError: Keys of an arm or data set are invalid (all are listed), or the arms were tuned on different grids.
    """
    _check_command_line(config, comparison)
    data_sets: Mapping[str, dict[str, object]] = comparison.data_sets or {config.name: {}}
    own_backbones = any(map(_own_backbone, data_sets.values())) and not comparison.backbones
    plans, errors = [], []
    for data_set, keys in data_sets.items():
        for backbone in comparison.backbones or (_own_backbone(keys) or config.backbone.name,):
            backbone_label = _BACKBONE_PER_DATA_SET if own_backbones else backbone
            try:
                run_config = _data_set_config(config, comparison, data_set, keys, backbone)
                arms, recipes = _with_equal_steps(run_config, comparison)
                run_config = run_config.model_copy(update={"arms": {**run_config.arms, **recipes}})
                plans.append(Plan(data_set, backbone_label, run_config, comparison, arms))
            except ConfigError as error:
                errors.append(str(error))
    if errors:
        raise ConfigError("\n".join(dict.fromkeys(errors)))
    _check_folders(plans)
    return plans


def _data_set_config(
    config: RunConfig, comparison: ComparisonConfig, data_set: str, keys: dict[str, object], backbone: str
) -> RunConfig:
    """Build the configuration of a data set and backbone, checked for every arm."""
    where = f"comparison.data_sets.{data_set}"
    _check_data_set(data_set, keys, where)
    parts = [
        config.name, *([data_set] if comparison.data_sets else []), *([backbone] if comparison.backbones else [])
    ]  # fmt: skip
    name = to_file_name("-".join(parts)) or "comparison"
    changes = without(nested({**keys, "backbone.name": backbone}), config.overrides)
    resolved = validate(merge(config.model_dump(), changes) | {"name": name}, where)
    resolved = resolved.model_copy(update={"tracking": _grouped(config.tracking, config.name)})
    errors = []
    for arm in comparison.arms:
        try:
            check_keys(resolve_arm(resolved.model_copy(update={"arm": arm})))
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("\n".join(errors))
    check_grid(resolved, comparison, comparison.arms)
    return resolved


def _grouped(tracking: TrackingConfig, name: str) -> TrackingConfig:
    """Assign the runs of a comparison to one tracker group, unless the configuration names another."""
    return tracking.model_copy(update={"group": tracking.group or name})


def _with_equal_steps(
    config: RunConfig, comparison: ComparisonConfig
) -> tuple[tuple[str, ...], dict[str, dict[str, object]]]:
    """After each arm with fewer than the maximum number of steps, insert a copy with that number.

    Returns:
        The names of all arms, and the recipes of the copies.
    """
    arms = comparison.arms
    if not comparison.equal_steps:
        return arms, {}
    steps = {arm: resolve_arm(config.model_copy(update={"arm": arm})).training.steps for arm in arms}
    longest = max(steps.values())
    names: list[str] = []
    recipes: dict[str, dict[str, object]] = {}
    for arm in arms:
        names.append(arm)
        if steps[arm] < longest:
            names.append(f"{arm}_at_{longest}_steps")
            recipes[names[-1]] = {"base": arm, "training.steps": longest}
    return tuple(names), recipes


def _check_folders(plans: Sequence[Plan]) -> None:
    """Check that the runs of different plans have different folders."""
    places_by_folder: dict[str, list[str]] = {}
    for plan in plans:
        places_by_folder.setdefault(plan.config.name, []).append(f"{plan.data_set!r} on {plan.backbone!r}")
    shared = [f"{', '.join(names)} (folder {folder})" for folder, names in places_by_folder.items() if len(names) > 1]
    if shared:
        raise ConfigError(
            f"these data sets and backbones would share a folder: {shortlist(shared)}",
            where="comparison.data_sets and comparison.backbones",
            fix="choose names that differ in letters A-Z, digits, '.', '_' or '-'",
        )


def _own_backbone(keys: Mapping[str, object]) -> str:
    """Return the name of the backbone that a data set sets; "" if it sets none."""
    section = nested(keys).get("backbone")
    return str(section.get("name", "")) if isinstance(section, Mapping) else ""


def _check_data_set(name: str, keys: dict[str, object], where: str) -> None:
    check_keys_once(keys, where)
    shared = sorted(key for key in dotted(nested(keys)) if key.partition(".")[0] in _SHARED_KEYS)
    if shared:
        raise ConfigError(
            f"a data set cannot set {', '.join(shared)}: the comparison sets these for every run",
            where=where,
            fix="set them for the whole comparison, or remove them",
        )
    if not to_file_name(name):
        raise ConfigError(
            f"the name {name!r} has no character that is allowed in folder names",
            where=where,
            fix="use letters A-Z or digits",
        )


def _check_command_line(config: RunConfig, comparison: ComparisonConfig) -> None:
    """Check that command-line keys do not override what distinguishes arms or data sets."""
    differing = {key for arm in comparison.arms for key in _recipe_keys(config, arm)}
    differing |= {key for keys in comparison.data_sets.values() for key in dotted(nested(keys))}
    if comparison.backbones:
        differing |= {"backbone.name", "backbone.path"}
    # A section on the command line, such as tiles.splits={}, also replaces the entries below it.
    keys = {
        key
        for key in config.overrides
        if not key.startswith("training.") and any(f"{other}.".startswith(f"{key}.") for other in differing)
    }
    if keys:
        raise ConfigError(
            f"these keys override what distinguishes the arms or data sets: {', '.join(sorted(keys))}",
            where="the command line",
            fix="remove them, or define a new arm under `arms`",
        )


def _recipe_keys(config: RunConfig, arm: str) -> list[str]:
    try:
        return dotted(nested(arm_keys(arm, config.arms)))
    except ConfigError:  # reported later, together with all other errors
        return []
