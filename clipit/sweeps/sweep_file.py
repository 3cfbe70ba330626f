"""Read sweep files in wandb's format."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from clipit.config.load import all_keys, current_name, read_yaml
from clipit.errors import ConfigError, counted, shortlist
from clipit.output_files.artifacts import fingerprint

METHODS = ("grid", "random", "bayes")
_SECTIONS = {
    "program", "name", "description", "project", "entity", "method", "metric", "parameters", "command", "run_cap",
    "early_terminate",
}  # fmt: skip
_NOT_SWEPT = ("name", "output", "overrides")
"""Keys that name the folders of trials, and the keys of the command line; the sweep itself sets them."""
_DISTRIBUTIONS = ("int_uniform", "uniform", "log_uniform_values")
_ENTRY_KEYS = ("values", "value", "min", "max", "distribution", "probabilities")
_METRIC_KEYS = ("name", "goal", "target")  # wandb's target has no effect on trials
_MAX_NAME = 120  # characters
_EXAMPLE = 'for example\n        command: ["${program}", --config=study.yaml, "${args}"]'
_MAX_SHOWN = 30


@dataclass(frozen=True)
class Parameter:
    """A swept key: a list of values, or a range with its distribution (as named by wandb)."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    distribution: str = "categorical"


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: Name of the sweep, used as the prefix of its runs' names.
        method: "grid", "random" or "bayes".
        metric: Name of the logged metric; None for the metric that `training.monitor` selects.
        options: Command-line options shared by all trials, without leading dashes.
        parameters: Swept keys, in the order of the file.
        cap: Maximum number of trials.
        notes: Warnings about settings that have no effect without wandb's server.
    """

    path: Path
    name: str
    method: str
    metric: str | None
    options: Mapping[str, str]
    parameters: tuple[Parameter, ...]
    cap: int | None
    notes: tuple[str, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file; `plan_sweep` checks the values against the configuration.

    Raises:
        ConfigError: The file is not a sweep file, or sweeps keys that the configuration does not have; the message
            lists all problems.
    """
    content = read_yaml(path, example="sweeps/lora_rank")
    method, metric, entries = content.get("method"), content.get("metric") or {}, content.get("parameters") or {}
    problems = [f"unknown key in a sweep file: {key!r}" for key in content if key not in _SECTIONS]
    if method not in METHODS:
        problems.append(f"method must be grid, random or bayes, not {method!r}")
    if not isinstance(metric, Mapping) or metric.get("goal", "maximize") != "maximize":
        problems.append("metric.goal must be maximize: for every training.monitor, higher is better")
    elif unknown := [key for key in metric if key not in _METRIC_KEYS]:
        problems.append(f"metric: unknown {shortlist(unknown)}; use {', '.join(_METRIC_KEYS)}")
    if not isinstance(entries, Mapping) or not entries:
        problems.append("parameters must map configuration keys to {values: [...]}")
        entries = {}
    options = _command_options(content, problems)
    parameters: list[Parameter] = []
    for key, entry in entries.items():
        if problem := _key_problem(str(key), entry):
            problems.append(problem)
        elif unknown := [name for name in entry if name not in _ENTRY_KEYS]:
            problems.append(f"{key}: unknown {shortlist(unknown)}; use {', '.join(_ENTRY_KEYS)}")
        elif sum(name in entry for name in ("value", "values", "min")) > 1:
            problems.append(f"{key}: set only one of value, values, or min with max")
        elif "value" in entry:
            problems += _value_problems(key, [entry["value"]])
            options[key] = str(entry["value"])
        else:
            parameters += _read_parameter(key, entry, problems)
    if method == "grid":
        problems += [
            f"{p.key}: a grid needs values: [...]; ranges need method: random" for p in parameters if not p.values
        ]
    cap = content.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and cap is not True and cap > 0):
        problems.append(f"run_cap must be a whole number above 0, not {cap!r}")
    raise_sweep_problems(problems, path)
    return Sweep(
        path=path,
        name=plain_name(str(content.get("name") or path.stem)),
        method=str(method),
        metric=metric.get("name"),
        options=options,
        parameters=tuple(parameters),
        cap=cap,
        notes=("early_terminate has no effect here: every trial is trained to completion",)
        if "early_terminate" in content
        else (),
    )


def _key_problem(key: str, entry: Any) -> str:
    """Explain why an entry of `parameters` cannot be swept; "" if it can."""
    keys = all_keys()
    if key not in keys:
        if (name := current_name(key)) != key:
            return f"unknown key {key!r} (it is now called {name!r})"
        similar = difflib.get_close_matches(key, keys, n=3)
        return f"unknown key {key!r}" + (f" (did you mean {' or '.join(map(repr, similar))}?)" if similar else "")
    if key in _NOT_SWEPT:
        return f"{key!r} cannot be swept, because the sweep itself sets it; choose the output folder with --output"
    if isinstance(entry, Mapping) and "parameters" in entry:
        inner = entry["parameters"] if isinstance(entry["parameters"], Mapping) else {}
        return f"{key!r} is nested; write dotted keys, such as {key}.{next(iter(inner), 'key')}"
    if any(other.startswith(f"{key}.") for other in keys):
        return f"{key!r} is a section; sweep its keys instead"
    return "" if isinstance(entry, Mapping) else f"{key}: write {{values: [...]}}"


def _value_problems(key: str, values: Sequence[Any]) -> list[str]:
    """List the values that are neither strings nor numbers."""
    return [
        f"{key}: write {value!r} in quotes, as on the command line"
        for value in values
        if not isinstance(value, str | int | float)
    ]


def _number(value: Any) -> int | float | None:
    """Convert a value to a number, including strings such as 1e-3, which YAML reads as a string."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _read_parameter(key: str, entry: Mapping[str, Any], problems: list[str]) -> list[Parameter]:
    if "probabilities" in entry:
        problems.append(f"{key}: probabilities are not supported; repeat a value to draw it more often")
    if isinstance(entry.get("values"), list) and entry["values"]:
        problems += _value_problems(key, entry["values"])
        return [Parameter(key, tuple(entry["values"]))]
    low, high = (_number(entry.get(end)) for end in ("min", "max"))
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = entry.get("distribution", "int_uniform" if whole else "uniform")
    if distribution not in _DISTRIBUTIONS:
        problems.append(f"{key}: unknown distribution {distribution!r}; use {', '.join(_DISTRIBUTIONS)} or values")
    elif low is None or high is None or not -inf < low < high < inf:
        problems.append(f"{key}: set values: [...], or finite min and max with min below max")
    elif distribution == "log_uniform_values" and low <= 0:
        problems.append(f"{key}: log_uniform_values needs min above 0")
    elif distribution == "int_uniform" and not whole:
        problems.append(f"{key}: int_uniform needs whole numbers")
    else:
        return [Parameter(key, low=float(low), high=float(high), distribution=distribution)]
    return []


def _command_options(content: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """Parse the options after ${program} in `command`, without those of experiment trackers."""
    command = content.get("command")
    if not isinstance(command, list) or "${program}" not in command:
        problems.append(f"command must be a list with ${{program}}, then --config=FILE and ${{args}}: {_EXAMPLE}")
        return {}
    arguments = [str(part) for part in command[command.index("${program}") + 1 :]]
    if "${args}" not in arguments:
        problems.append(
            f"command must contain ${{args}}, because runs receive the values as options (--lora.rank=8): {_EXAMPLE}"
        )
    flags = [part for part in arguments if part.startswith("--") and part != "--trial"]
    if any("=" not in flag for flag in flags):
        problems.append("each option in command must be one item, written --key=value")
        return {}
    options = parse_options(flags)
    if "config" not in options:
        problems.append(f"command must contain --config=FILE, the configuration that the values override: {_EXAMPLE}")
    return {key: value for key, value in options.items() if not key.startswith("tracking.")}


def parse_options(arguments: Sequence[str]) -> dict[str, str]:
    """Parse options written as `--key=value` or `--key value` into a mapping.

    Raises:
        ConfigError: An argument does not belong to any option, or an option is repeated.
    """
    options: dict[str, str] = {}
    key = ""
    for argument in arguments:
        if argument.startswith("--"):
            key, equals, value = argument.removeprefix("--").partition("=")
            if key in options:
                problem = f"options given more than once: --{key}"
                raise ConfigError(problem, where="the command line", fix="give each option once")
            options[key] = value
            key = "" if equals else key
        elif key:
            options[key], key = argument, ""
        else:
            raise ConfigError(
                f"{argument!r} does not belong to an option", where="the command line", fix="write --section.key=value"
            )
    return options


def plain_name(name: str) -> str:
    """Return a name that is safe as a folder name; changed or shortened names get a fingerprint to remain distinct."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")
    return plain if plain == name and len(plain) <= _MAX_NAME else f"{plain[:_MAX_NAME]}-{fingerprint(name)}"


def raise_sweep_problems(problems: Sequence[str], path: Path) -> None:
    """Raise one error that lists all problems, if any.

    Raises:
        ConfigError: `problems` is not empty.
    """
    distinct = list(dict.fromkeys(problems))
    if distinct:
        listed = "\n    ".join(distinct[:_MAX_SHOWN])
        more = f"\n    and {len(distinct) - _MAX_SHOWN} more" if len(distinct) > _MAX_SHOWN else ""
        raise ConfigError(
            f"{counted(len(distinct), 'problem')} in the sweep; no trial was run:\n    {listed}{more}",
            where=path,
            fix="correct the file; `clipit init sweeps/lora_rank` prints an example, and `clipit train --help-keys` "
            "explains every key that can be swept",
        )
