"""Sweep files in wandb's format."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.artifacts import fingerprint
from clipit.config.load import all_keys, read_yaml
from clipit.errors import ConfigError, explain

_TOP = {
    "program", "name", "description", "project", "entity", "method", "metric", "parameters", "command", "run_cap",
    "early_terminate",
}  # fmt: skip
_OWN = ("name", "output", "overrides")  # given by the sweep or as an option; runs must not differ in them alone
_RANGES = ("int_uniform", "uniform", "log_uniform_values")
_LONGEST_NAME = 120
_MOST_SHOWN = 30


@dataclass(frozen=True)
class Parameter:
    """A swept key: listed values, or a range with its distribution (wandb's names)."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    distribution: str = "categorical"


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        path: Where it was read from.
        name: Of the sweep; runs are named by it and by their values.
        program: What starts one trial.
        random: Whether values are drawn; all combinations otherwise.
        metric: Name of the metric as it is logged; None: whatever training.monitor makes it.
        options: Options of the command line that all trials share, without leading dashes.
        parameters: What is swept, in the order of the file.
        cap: Most trials.
        notes: What in the file has no effect without wandb's server.
    """

    path: Path
    name: str
    program: str
    random: bool
    metric: str | None
    options: Mapping[str, str]
    parameters: tuple[Parameter, ...]
    cap: int | None
    notes: tuple[str, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file; what it asks of the configuration is checked by `trials`.

    Raises:
        ConfigError: It is no sweep file, needs wandb's server, or sweeps keys that the configuration has not (all
            problems are listed).
    """
    values = read_yaml(path, example="configs/sweeps/")
    method, metric, named = values.get("method"), values.get("metric") or {}, values.get("parameters") or {}
    if method == "bayes":
        raise ConfigError(
            explain(
                "method bayes asks wandb's server for the next values; there is none here",
                where=path,
                fix=f"wandb sweep {path} and wandb agent; or method: random with run_cap, or method: grid",
            )
        )
    problems = [f"{key!r} is no key of a sweep file that is known here" for key in values if key not in _TOP]
    if method not in ("grid", "random"):
        problems.append(f"method is grid or random, not {method!r}")
    if not isinstance(metric, Mapping) or metric.get("goal", "maximize") != "maximize":
        problems.append("metric.goal is maximize: every training.monitor is better when larger")
    if not isinstance(named, Mapping) or not named:
        problems.append("parameters is a mapping from keys of the configuration to {values: [...]}")
        named = {}
    found: list[Parameter] = []
    options = _command_options(values, problems)
    for key, entry in named.items():
        _read_parameter(str(key), entry, found, options, problems)
    if method == "grid":
        problems += [
            f"{p.key}: a grid needs values: [...]; ranges go with method: random" for p in found if not p.values
        ]
    cap = values.get("run_cap")
    if cap is not None and not (isinstance(cap, int) and cap > 0):
        problems.append(f"run_cap is a whole number of runs above 0, not {cap!r}")
    refuse(problems, path)
    early = ("early_terminate has no effect here: every trial is trained whole",) if "early_terminate" in values else ()
    return Sweep(
        path=path,
        name=plain_name(str(values.get("name") or path.stem)),
        program=str(values.get("program", "scripts/sweep.py")),
        random=method == "random",
        metric=metric.get("name"),
        options=options,
        parameters=tuple(found),
        cap=cap,
        notes=early,
    )


def _read_parameter(key: str, entry: Any, found: list[Parameter], options: dict[str, str], problems: list[str]) -> None:
    """Add what a parameter is to `found`, or to the shared options when it has one value, or say what is wrong."""
    keys = all_keys()
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=3)
        hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
        problems.append(f"no key of the configuration is called {key!r}{hint}")
    elif key in _OWN:
        problems.append(f"{key!r} cannot be swept: runs are named by their values, and --output is an option")
    elif isinstance(entry, Mapping) and "parameters" in entry:
        problems.append(f"{key!r} is nested; write dotted keys, such as {key}.{next(iter(entry['parameters']), 'key')}")
    elif any(other.startswith(f"{key}.") for other in keys):
        problems.append(f"{key!r} is a section; sweep keys of it")
    elif not isinstance(entry, Mapping):
        problems.append(f"{key}: give {{values: [...]}}")
    elif "value" in entry:
        if _is_plain(entry["value"], key, problems):
            options[key] = str(entry["value"])
    elif isinstance(entry.get("values"), list) and entry["values"]:
        if all(_is_plain(value, key, problems) for value in entry["values"]):
            found.append(Parameter(key, tuple(entry["values"])))
        if "probabilities" in entry:
            problems.append(f"{key}: probabilities are not known here; repeat a value to draw it more often")
    else:
        _read_range(key, entry, found, problems)


def _read_range(key: str, entry: Mapping[str, Any], found: list[Parameter], problems: list[str]) -> None:
    low, high = entry.get("min"), entry.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    distribution = entry.get("distribution", "int_uniform" if whole else "uniform")
    if distribution not in _RANGES:
        problems.append(f"{key}: distribution {distribution!r} is not known here; use {', '.join(_RANGES)} or values")
    elif not (isinstance(low, int | float) and isinstance(high, int | float) and low < high):
        problems.append(f"{key}: give values: [...], or min and max with min below max")
    elif distribution == "log_uniform_values" and low <= 0:
        problems.append(f"{key}: log_uniform_values needs min above 0")
    elif distribution == "int_uniform" and not whole:
        problems.append(f"{key}: int_uniform needs whole numbers")
    else:
        found.append(Parameter(key, low=float(low), high=float(high), distribution=distribution))


def _is_plain(value: Any, key: str, problems: list[str]) -> bool:
    """Whether a value can stand on a command line as wandb writes it there."""
    if isinstance(value, str | int | float):  # bool is an int
        return True
    problems.append(f"{key}: write {value!r} as a quoted string of JSON; only that reaches the command line unchanged")
    return False


def _command_options(values: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """Options that `command` holds after ${program}; trackers are left out, since they need wandb's server."""
    command = values.get("command")
    if not isinstance(command, list) or "${program}" not in command:
        problems.append("command is a list that holds ${program}, then --config=FILE and ${args}")
        return {}
    after = [str(part) for part in command[command.index("${program}") + 1 :]]
    if "${args}" not in after:
        problems.append("command must hold ${args}: the values reach the runs as options (--lora.rank=8)")
    flags = [part for part in after if part.startswith("--") and part != "--trial"]
    if any("=" not in flag for flag in flags):
        problems.append("options in command are written --key=value, in one item")
        return {}
    options = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    if "config" not in options:
        problems.append("command must hold --config=FILE, the configuration that the values change")
    return {key: value for key, value in options.items() if not key.startswith("tracking.")}


def options_of(arguments: Sequence[str]) -> dict[str, str]:
    """`--key=value` and `--key value` by key.

    Raises:
        ConfigError: Something else stands among them.
    """
    options: dict[str, str] = {}
    key = ""
    for argument in arguments:
        if argument.startswith("--"):
            key, given, value = argument.removeprefix("--").partition("=")
            options[key] = value if given else ""
            key = "" if given else key
        elif key:
            options[key], key = argument, ""
        else:
            raise ConfigError(
                explain(f"{argument!r} belongs to no option", where="the command line", fix="write --section.key=value")
            )
    return options


def plain_name(name: str) -> str:
    """A name for a folder; what had to be changed or is too long gets a fingerprint, so that no two meet."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".")
    return plain if plain == name and len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}-{fingerprint(name)}"


def refuse(problems: Sequence[str], path: Path) -> None:
    """List all problems at once, if there are any.

    Raises:
        ConfigError: There are.
    """
    found = list(dict.fromkeys(problems))
    if found:
        listed = "\n    ".join(found[:_MOST_SHOWN])
        more = f"\n    and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
        raise ConfigError(
            explain(
                f"nothing was run; {len(found)} problem{'s' * (len(found) > 1)} in the sweep:\n    {listed}{more}",
                where=path,
                fix="correct the file; the meaning of every key stands in docs/configuration.md",
            )
        )
