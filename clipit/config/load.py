"""Reading a configuration: YAML file, then the command line's overrides, then one validation of all."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, explain, shortlist
from clipit.yaml_file import load_yaml


class _CommandLine(BaseSettings, RunConfig):  # as pydantic-settings itself makes a parser of a model
    model_config = SettingsConfigDict(extra="ignore", frozen=False)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `changes` over `base`; sections are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """`{"lora.rank": 8}` as `{"lora": {"rank": 8}}`."""
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        head, _, rest = key.partition(".")
        tree = merge(tree, {head: nested({rest: value}) if rest else value})
    return tree


def dotted(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The keys of a tree: `{"lora": {"rank": 8}}` has `lora.rank`."""
    keys: list[str] = []
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and value
        keys += dotted(value, f"{prefix}{name}.") if inner else [prefix + name]
    return keys


def without(tree: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A tree less these dotted keys, and less whatever stands in the place of their sections."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        inner = [key.partition(".")[2] for key in keys if key.partition(".")[0] == name]
        if not inner:
            kept[name] = value
        elif isinstance(value, Mapping) and all(inner):
            kept[name] = without(value, inner)
    return kept


def validate(values: Mapping[str, Any], where: object) -> RunConfig:
    """Values as a `RunConfig`.

    Raises:
        ConfigError: With every error at once, each with its key path.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
            if item["type"] == "extra_forbidden":
                lines.append(f"unknown key '{key}'{_similar(key)}")
            else:
                given = "" if item["type"] == "missing" else f" (given: {item['input']!r})"
                lines.append(f"'{key}': {item['msg']}{given if len(given) < 80 else ''}")
        listed = "\n    ".join(lines)
        raise ConfigError(
            explain(
                f"{len(lines)} configuration error{'s' * (len(lines) > 1)}:\n    {listed}",
                where=where,
                fix="correct these keys; the meaning of every key stands in docs/configuration.md",
            )
        ) from None


def all_keys(model: type[Any] = RunConfig, prefix: str = "") -> list[str]:
    """Every key of the configuration, dotted; names that a user gives, as in `comparison.shifted`, are none."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kinds = () if get_origin(field.annotation) is dict else (field.annotation, *get_args(field.annotation))
        inner = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        keys.append(prefix + name)
        keys += all_keys(inner, f"{prefix}{name}.") if inner else []
    return keys


def _similar(key: str) -> str:
    import difflib

    found = difflib.get_close_matches(key, all_keys(), n=1, cutoff=0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""


def read_yaml(path: Path, *, example: str = "configs/own_table.yaml") -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Args:
        path: The file.
        example: Shipped file or folder that a message points to.

    Raises:
        ConfigError: It is missing, may not be read, is not UTF-8, not YAML or not a mapping, or gives a key twice.
    """
    try:
        values, repeated = load_yaml(path)
    except FileNotFoundError:
        shipped = "configs/" if example.endswith(".yaml") else example
        raise ConfigError(
            explain("no such configuration file", where=path, fix=f"see {shipped} for those shipped")
        ) from None
    except PermissionError:
        raise ConfigError(explain("no permission to read this", where=path, fix="make the file readable")) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            explain(f"not a readable YAML file: {error}", where=path, fix=f"correct the file; {example} shows the form")
        ) from None
    if repeated:
        given = shortlist([f"'{key}' (line {line})" for key, line in repeated])
        raise ConfigError(
            explain(f"keys given again, of which YAML keeps the last one: {given}", where=path, fix="keep one of each")
        )
    if not isinstance(values, dict):
        raise ConfigError(explain("not a mapping of keys to values", where=path, fix=f"see {example}"))
    return values


def read_command(
    description: str, argv: Sequence[str] | None = None, extra: Mapping[str, dict[str, Any]] | None = None
) -> tuple[RunConfig, argparse.Namespace]:
    """Parse a script's command line: `--config FILE` and any key of the configuration as `--section.key=value`.

    Args:
        description: What the script does, for `--help`.
        argv: Arguments; those of the process by default.
        extra: Further options of the script: name -> keyword arguments of `add_argument`.

    Returns:
        The validated configuration, and the script's own options. The keys that were given stand in its `overrides`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--config", type=Path, required=True, help="YAML file of the run")
    for name, keywords in (extra or {}).items():
        own.add_argument(name, **keywords)
    if "-h" in arguments or "--help" in arguments:
        shown = argparse.ArgumentParser(
            usage="%(prog)s --config FILE [--section.key=value ...]", description=description, parents=[own]
        )
        CliSettingsSource(_CommandLine, root_parser=shown, cli_parse_args=["--help"], cli_hide_none_type=True)
    _refuse_repeated(
        arguments, [name for name, keywords in (extra or {}).items() if keywords.get("action") == "append"]
    )
    options, rest = own.parse_known_args(arguments)
    known, unknown = _sort_options(rest)
    overrides = _parse(known)
    values = merge(merge(read_yaml(options.config), overrides), nested(unknown))
    earlier = values.get("overrides", [])  # of the command that wrote this file, if a run did
    if isinstance(earlier, list):  # what else it may be, the validation refuses
        values["overrides"] = [*earlier, *(key for key in dotted(overrides) if key not in earlier)]
    return validate(values, f"{options.config} and the command line"), options


def _refuse_repeated(arguments: Sequence[str], repeatable: Sequence[str]) -> None:
    """Of an option given twice, one value would be dropped, or two lists be joined; unless it is made for that."""
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    twice = sorted({option for option in given if given.count(option) > 1} - {*repeatable})
    if twice:
        raise ConfigError(
            explain(
                f"given more than once: {', '.join(twice)}",
                where="the command line",
                fix=f"give each option once; a list in brackets: '{twice[0]}=[a, b]'",
            )
        )


def _parse(known: Sequence[str]) -> dict[str, Any]:
    """Options of the configuration as values; an error names the option that cannot be parsed."""
    if not known:
        return {}
    try:
        values: dict[str, Any] = CliSettingsSource(_CommandLine, cli_parse_args=list(known), cli_exit_on_error=False)()
    except (SettingsError, argparse.ArgumentError) as error:
        starts = [place for place, argument in enumerate(known) if argument.startswith("--")]
        if len(starts) > 1:
            for start, end in zip(starts, [*starts[1:], len(known)], strict=True):
                _parse(known[start:end])  # that which fails is named
        raise ConfigError(
            explain(
                f"cannot be parsed: {' '.join(known)} ({error})",
                where="the command line",
                fix="--help shows each option; lists and sections are JSON in single quotes: '[1, 2]', '{\"rank\": 8}'",
            )
        ) from None
    return values


def _sort_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split into options of the configuration, for the parser, and unknown ones, for one common error list."""
    keys = {f"--{key}" for key in all_keys()}
    known: list[str] = []
    unknown: dict[str, str] = {}
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option, _, value = argument.partition("=")
            if option not in keys:
                unknown[option[2:]] = value
        if option in keys:
            known.append(argument)
        elif not argument.startswith("--"):
            unknown[option[2:] or argument] = argument
    return known, unknown
