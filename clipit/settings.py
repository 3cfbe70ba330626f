"""Reading a configuration: YAML file, then the command line's overrides, then one validation of all."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from clipit.config import Config
from clipit.errors import ConfigError, explain


class _CommandLine(BaseSettings, Config):  # as pydantic-settings itself makes a parser of a model
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


def validate(values: Mapping[str, Any], where: object) -> Config:
    """Values as a `Config`.

    Raises:
        ConfigError: With every error at once, each with its key path.
    """
    try:
        return Config.model_validate(values)
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


def all_keys(model: type[Any] = Config, prefix: str = "") -> list[str]:
    """Every key of the configuration, dotted."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        keys.append(prefix + name)
        keys += all_keys(inner, f"{prefix}{name}.") if inner else []
    return keys


def _similar(key: str) -> str:
    import difflib

    found = difflib.get_close_matches(key, all_keys(), n=1, cutoff=0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: It is missing, not UTF-8, not YAML or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            explain("no such configuration file", where=path, fix="see configs/ for those shipped")
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(explain(f"not a readable YAML file: {error}", where=path, fix="correct the file")) from None
    if not isinstance(values, dict):
        raise ConfigError(
            explain("a configuration is a mapping of keys to values", where=path, fix="see configs/own_table.yaml")
        )
    return values


def read_command(
    description: str, argv: Sequence[str] | None = None, extra: Mapping[str, dict[str, Any]] | None = None
) -> tuple[Config, argparse.Namespace]:
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
    options, rest = own.parse_known_args(arguments)
    known, unknown = _sort_options(rest)
    overrides: dict[str, Any] = {}
    if known:
        try:
            overrides = CliSettingsSource(_CommandLine, cli_parse_args=known, cli_exit_on_error=False)()
        except (SettingsError, argparse.ArgumentError) as error:
            raise ConfigError(explain(str(error), where="the command line", fix="--help shows each option")) from None
    values = merge(merge(read_yaml(options.config), overrides), nested(unknown))
    earlier = values.get("overrides", [])  # of the command that wrote this file, if a run did
    if isinstance(earlier, list):  # what else it may be, the validation refuses
        values["overrides"] = [*earlier, *(key for key in dotted(overrides) if key not in earlier)]
    return validate(values, f"{options.config} and the command line"), options


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
