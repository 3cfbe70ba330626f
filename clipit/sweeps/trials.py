"""The trials of a sweep: all of them checked before any runs, each named by its values."""

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipit.config.load import read_command
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, explain
from clipit.sweeps.file import Parameter, Sweep, plain_name, refuse
from clipit.sweeps.live_keys import idle_keys
from clipit.training.arms import resolve_arm
from clipit.training.checks import check


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: its swept values, its options and its whole configuration."""

    values: Mapping[str, Any]
    options: Mapping[str, str]
    config: RunConfig


def trials(sweep: Sweep, given: Mapping[str, str], count: int | None = None, seed: int = 0) -> list[Trial]:
    """All runs of a sweep, each with its whole configuration.

    Args:
        sweep: The file.
        given: Options from the command line; they win over the file's.
        count: Number of draws (method random); the file's run_cap by default.
        seed: Of the draws. The first draws do not depend on how many follow.

    Raises:
        ConfigError: A value is not valid, an arm's keys do not fit, or the metric is not what the runs log (everything
            at once); a swept key changes nothing.
    """
    swept = [key for key in (p.key for p in sweep.parameters) if key in given]
    if swept:
        raise ConfigError(
            explain(f"{', '.join(swept)} cannot be given, it is swept", where=sweep.path, fix="leave it out")
        )
    options = {**sweep.options, **given}
    _configuration(sweep, options)  # what is wrong without any swept value is said first
    made, problems = [], []
    for values in _combinations(sweep, count, seed):
        trial_options = {**options, **{key: str(value) for key, value in values.items()}}
        try:
            config = _checked(sweep, trial_options)
        except ConfigError as error:
            problems += _lines(error)
        else:
            made.append(Trial(values, trial_options, config))
    refuse(problems, sweep.path)
    idle = idle_keys([p.key for p in sweep.parameters], [resolve_arm(trial.config) for trial in made])
    refuse([f"{key} changes none of the runs: what it belongs to is switched off" for key in idle], sweep.path)
    return made


def one_trial(sweep: Sweep, given: Mapping[str, str]) -> Trial:
    """The trial whose values are among the given options, as wandb's agent passes them.

    Raises:
        ConfigError: A swept key is missing, or a value is not valid.
    """
    missing = [p.key for p in sweep.parameters if p.key not in given]
    if missing:
        raise ConfigError(
            explain(
                f"a trial needs a value of {', '.join(missing)}",
                where="the command line",
                fix=f"add {' '.join(f'--{key}=...' for key in missing)}, or leave --trial out to run the whole sweep",
            )
        )
    options = {**sweep.options, **given}
    return Trial({p.key: given[p.key] for p in sweep.parameters}, options, _checked(sweep, options))


def _checked(sweep: Sweep, options: Mapping[str, str]) -> RunConfig:
    config = _configuration(sweep, options)
    resolved = resolve_arm(config)
    check(resolved)
    logged = f"validation_{resolved.training.monitor}"
    if sweep.metric not in (None, logged):
        raise ConfigError(
            explain(
                f"metric.name is {sweep.metric!r}, but the runs log {logged!r} (training.monitor)", where=sweep.path
            )
        )
    return config


def _configuration(sweep: Sweep, options: Mapping[str, str]) -> RunConfig:
    """The configuration of a run; it is named by the sweep and the swept values.

    Raises:
        ConfigError: It was given another name, or its keys are wrong.
    """
    if "name" in options:
        raise ConfigError(
            explain("runs of a sweep are named by their values", where="--name", fix="name the sweep in its file")
        )
    swept = [f"{p.key}_{options[p.key]}" for p in sweep.parameters if p.key != "seed" and p.key in options]
    named = {**options, "name": plain_name("-".join([sweep.name, *swept]))}
    return read_command("", [f"--{key}={value}" for key, value in named.items()])[0]


def _combinations(sweep: Sweep, count: int | None, seed: int) -> list[dict[str, Any]]:
    keys = [p.key for p in sweep.parameters]
    cap = sweep.cap if count is None else count
    if cap is not None and cap < 1:
        raise ConfigError(explain(f"{cap} trials are none", where="--count", fix="give a number above 0"))
    if not sweep.random:
        every = itertools.product(*(p.values for p in sweep.parameters))
        distinct = {tuple(map(str, values)): dict(zip(keys, values, strict=True)) for values in every}
        return list(distinct.values())[:cap]
    if cap is None:
        raise ConfigError(
            explain("how many values shall be drawn?", where=sweep.path, fix="give --count=N, or run_cap in the file")
        )
    drawn: dict[tuple[str, ...], dict[str, Any]] = {}
    for number in range(100 * cap):  # a combination that comes again is not run again
        values = {p.key: _draw(p, random.Random(f"{seed}/{number}/{p.key}")) for p in sweep.parameters}
        drawn.setdefault(tuple(map(str, values.values())), values)
        if len(drawn) == cap:
            break
    return list(drawn.values())


def _draw(parameter: Parameter, source: random.Random) -> Any:
    low, high = parameter.low, parameter.high
    if parameter.values:
        return source.choice(parameter.values)
    if parameter.distribution == "int_uniform":
        return source.randint(int(low), int(high))
    if parameter.distribution == "uniform":
        return float(f"{source.uniform(low, high):.6g}")
    return float(f"{math.exp(source.uniform(math.log(low), math.log(high))):.6g}")


def _lines(error: ConfigError) -> list[str]:
    """The problems in a message about a configuration."""
    lines = str(error).splitlines()
    return [line.strip() for line in lines if line.startswith("    ")] or lines[:1]
