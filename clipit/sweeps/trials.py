"""Build the trials of a sweep, and validate all of them before the first one starts."""

import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from clipit.config.command_line import read_file_command
from clipit.config.file import SECTIONS, ConfigFile
from clipit.config.section import MAX_SEED
from clipit.config.shipped import config_file
from clipit.errors import ConfigError, counted
from clipit.input_files.nearby_files import SAVE_FIRST, special_file
from clipit.runs.search import Trial
from clipit.sweeps.live_keys import unused_parameters
from clipit.sweeps.sweep_file import Sweep, plain_name, raise_sweep_problems
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep with validated trials.

    Attributes:
        sweep: The sweep file; its options include those of the command line.
        trials: All trials; for the Bayes method, trials that cover every listed value and both ends of every range.
        comparison_metric: Metric for comparing the runs (`comparison.metric`).
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    count: int
    seed: int
    comparison_metric: str


def plan_sweep(sweep: Sweep, options: Mapping[str, str], count: int | None = None, seed: int = 0) -> SweepPlan:
    """Combine the swept values and validate the configuration of every trial.

    Args:
        options: Command-line options, which take precedence over those of the file.
        count: Number of trials, or maximum number for a grid; `run_cap` of the file by default.
        seed: Seed for random and proposed values. The first values do not depend on `count`.

    Raises:
        ConfigError: A value, the count or the seed is invalid, keys of an arm contradict each other, the runs do not
            log the metric (all such problems are listed), trials are selected by different metrics, or a swept key has
            no effect.
    """
    count = sweep.cap if count is None else count
    if count is not None and count < 1:
        raise ConfigError("a sweep needs at least one trial", where="--count", fix="use a number above 0")
    if not 0 <= seed <= MAX_SEED:
        raise ConfigError(f"{seed} is not a valid seed", where="--draws-seed", fix=f"use a number from 0 to {MAX_SEED}")
    if count is None and sweep.method != "grid":
        raise ConfigError(
            f"method {sweep.method} needs a number of trials",
            where=sweep.path,
            fix="pass --count=N, or set run_cap in the file",
        )
    if swept := [parameter.key for parameter in sweep.parameters if parameter.key in options]:
        raise ConfigError(
            f"swept keys cannot be set on the command line: {', '.join(swept)}",
            where=sweep.path,
            fix="remove them from the command line",
        )
    sweep = replace(sweep, options={**sweep.options, **options})
    if kind := special_file(config_file(str(sweep.options["config"]))):
        raise ConfigError(f"--config is {kind}, but each trial reads it", where=sweep.path, fix=SAVE_FIRST)
    file = _read_config(sweep, sweep.options)  # first, to report errors that do not depend on the swept values
    trials, problems = [], []
    for values in _combinations(sweep, count, seed):
        try:
            trials.append(make_trial(sweep, values))
        except ConfigError as error:
            problems += _problems(error)
    raise_sweep_problems(problems, sweep.path)
    if sweep.method == "random" and count and len(trials) < count:
        note = f"only {len(trials)} of {counted(count, 'trial')} can be run: there are no more combinations"
        sweep = replace(sweep, notes=(*sweep.notes, note))
    unused = unused_parameters([p.key for p in sweep.parameters], [resolve_arm(trial.config) for trial in trials])
    raise_sweep_problems(
        [f"{key} has no effect on any run: its part of the configuration is disabled" for key in unused], sweep.path
    )
    monitors = sorted({resolve_arm(trial.config).training.monitor for trial in trials})
    if len(monitors) > 1:  # such as agreement, which the arm zero_label uses
        raise ConfigError(
            f"the trials would be compared by different metrics: {', '.join(monitors)}",
            where=sweep.path,
            fix=f"set one metric for all trials, for example --training.monitor={monitors[-1]}, or write one sweep for "
            "each metric",
        )
    number = count if sweep.method == "bayes" and count else len(trials)
    return SweepPlan(sweep, tuple(trials), number, seed, file.comparison.metric)


def make_trial(sweep: Sweep, values: Mapping[str, Any]) -> Trial:
    """Build the trial with these values.

    Raises:
        ConfigError: A swept key has no value, a value is invalid, keys contradict each other, or the run does not log
            the sweep's metric.
    """
    missing = [parameter.key for parameter in sweep.parameters if parameter.key not in values]
    if missing:
        raise ConfigError(
            f"a trial needs a value for {', '.join(missing)}",
            where="the command line",
            fix=f"add {' '.join(f'--{key}=...' for key in missing)}, or remove --trial to run the complete sweep",
        )
    file = _read_config(sweep, {**sweep.options, **{key: str(value) for key, value in values.items()}})
    resolved = resolve_arm(file.run)
    check_keys(resolved)
    logged = f"validation_{resolved.training.monitor}"
    if sweep.metric not in (None, logged):
        raise ConfigError(
            f"metric.name is {sweep.metric!r}, but the runs log {logged!r} (training.monitor)",
            where=sweep.path,
            fix=f"write metric.name: {logged}, or set training.monitor",
        )
    tracking = file.run.tracking.model_copy(update={"group": file.run.tracking.group or sweep.name})
    run = file.run.model_copy(update={"tracking": tracking})
    return Trial({parameter.key: values[parameter.key] for parameter in sweep.parameters}, run)


def _read_config(sweep: Sweep, options: Mapping[str, str]) -> ConfigFile:
    """Read the configuration of a run, with the sweep and the swept values in its name."""
    if "name" in options:
        raise ConfigError(
            "runs of a sweep are named after their swept values", where="--name", fix="name the sweep in its file"
        )
    swept = [f"{p.key}_{options[p.key]}" for p in sweep.parameters if p.key != "seed" and p.key in options]
    run_options = {**options, "name": plain_name("-".join([sweep.name, *swept]))}
    return read_file_command("", SECTIONS, [f"--{key}={value}" for key, value in run_options.items()])[0]


class Proposals:
    """Trials for the Bayes method: those in the study, then new ones proposed by a tree-structured Parzen estimator."""

    def __init__(self, plan: SweepPlan) -> None:
        self._plan = plan
        self._space = _search_space(plan.sweep)
        # Trials by their values, cached because the study is read again before every trial.
        self._built: dict[tuple[str, ...], Trial] = {}

    def __call__(self, study: "optuna.Study") -> Iterator[Trial]:
        """Yield the trials in the order in which they start."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        for recorded in study.get_trials(deepcopy=False):
            if recorded.state != TrialState.PRUNED and recorded.params.keys() == self._space.keys():
                yield self._build(recorded.params)
        while (number := len(study.get_trials(deepcopy=False))) < self._plan.count:
            # Seeded by the trial number, so that agents that start together do not propose the same values.
            study.sampler = TPESampler(seed=self._plan.seed + number, constant_liar=True)
            proposed = study.ask(self._space)
            try:
                yield self._build(proposed.params)
            except ConfigError as error:
                logger.info(f"note: skipped {proposed.params}: {str(error).splitlines()[0]}")
                study.tell(proposed.number, state=TrialState.PRUNED)

    def _build(self, values: Mapping[str, Any]) -> Trial:
        key = tuple(repr(values[name]) for name in self._space)
        if key not in self._built:
            self._built[key] = make_trial(self._plan.sweep, values)
        return self._built[key]


def _search_space(sweep: Sweep) -> "dict[str, BaseDistribution]":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, BaseDistribution] = {}
    for parameter in sweep.parameters:
        low, high = parameter.low, parameter.high
        if parameter.values:
            space[parameter.key] = CategoricalDistribution(parameter.values)
        elif parameter.distribution == "int_uniform":
            space[parameter.key] = IntDistribution(int(low), int(high))
        else:
            space[parameter.key] = FloatDistribution(low, high, log=parameter.distribution == "log_uniform_values")
    return space


def _combinations(sweep: Sweep, count: int | None, seed: int) -> list[dict[str, Any]]:
    """Build distinct combinations of values; for the Bayes method, those of `SweepPlan.trials`."""
    combinations: Iterable[dict[str, Any]]
    listed = {p.key: p.values for p in sweep.parameters}
    if sweep.method == "grid":
        combinations = (dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values()))
    elif sweep.method == "random":
        combinations = _random_values(sweep, 100 * (count or 1), seed)
    else:
        whole = {p.key: (int(p.low), int(p.high)) for p in sweep.parameters if p.distribution == "int_uniform"}
        ends = {p.key: p.values or whole.get(p.key, (p.low, p.high)) for p in sweep.parameters}
        first = {key: values[0] for key, values in ends.items()}
        combinations, count = (first | {key: value} for key in ends for value in ends[key]), None
    distinct: dict[tuple[str, ...], dict[str, Any]] = {}
    for values in combinations:
        distinct.setdefault(tuple(map(str, values.values())), values)
        if len(distinct) == count:
            break
    return list(distinct.values())


def _random_values(sweep: Sweep, limit: int, seed: int) -> Iterator[dict[str, Any]]:
    """Draw at most `limit` random combinations; real numbers have six significant digits."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = _search_space(sweep)
    combinations = math.prod(len(parameter.values) or math.inf for parameter in sweep.parameters)
    for _ in range(int(min(limit, 100 * combinations))):
        values = study.ask(space).params
        yield {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in values.items()}


def _problems(error: ConfigError) -> list[str]:
    """Extract the problems listed in the message of a configuration error."""
    lines = str(error).splitlines()
    return [line.strip() for line in lines if line.startswith("    ")] or lines[:1]
