"""Load a configuration from Python, optionally overriding some keys."""

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipit.config.argument_types import as_plain, type_name
from clipit.config.file import ConfigFile
from clipit.config.load import (
    dotted,
    fill_tiles,
    merge,
    nested,
    override,
    read_yaml,
    repeated_keys,
    require_tiles,
    validate_without_reports,
)
from clipit.config.run import RunConfig
from clipit.config.shipped import config_file
from clipit.errors import ConfigError, shortlist

Config = ConfigFile | str | os.PathLike[str]
"""Configuration from `load_config`, path of a YAML file, or name of a shipped configuration."""


def load_config(config: Config, overrides: Mapping[str, Any] | None = None, **keys: Any) -> ConfigFile:
    """Load a configuration, optionally overriding some keys.

    Any key in docs/configuration.md can be changed, either by its dotted name in `overrides` or with a keyword argument
    named after the top-level key or section, such as `seed=1` or `lora={"rank": 16}`. As on the command line, changed
    keys take precedence over the arm's keys. Keys of `arms` take precedence over changes by earlier calls.

    Example:
        >>> config = clipit.load_config("own_table", {"tiles.path": "tiles.csv", "training.steps": 200}, seed=1)
        >>> config = clipit.load_config("config.yaml", lora={"rank": 16})
        >>> text_free = clipit.load_config(config, arm="image_only")
        >>> reports_only = clipit.load_config("own_table", {"reports.path": "reports.csv"})  # for build_text_index

    Args:
        config: Path of a YAML file, name of a shipped configuration (`clipit init` lists them), or an existing
            configuration.
        overrides: Dotted key -> value; paths may be `Path` objects.
        keys: Top-level key -> value; sections are dictionaries, and are merged into those of the file (`{}` empties a
            section).

    Returns:
        The validated configuration: the keys of a run in `run`, and the other sections, such as `comparison`, by name.
        A configuration without `tiles.path` (or `reports.path`) is accepted only by functions that do not need tiles
        (or reports).

    Raises:
        ConfigError: The file cannot be read, or keys or values are invalid; the message lists all of them.
    """
    config = as_plain(config)
    _check_types(config, overrides)
    entries = [*keys.items(), *(overrides or {}).items()]
    if twice := repeated_keys(entries):
        raise ConfigError(f"keys given twice: {', '.join(twice)}", where="load_config", fix="pass each key once")
    changes = as_values(nested({**keys, **(overrides or {})}))
    if isinstance(config, ConfigFile):
        values, where = _values(config), "this configuration"
        values["overrides"] = _without_keys_of_arms(values["overrides"], changes.get("arms"))
    else:
        path = _path(config)
        values, where = read_yaml(path), str(path)
    values = fill_tiles(override(values, changes))
    return validate_without_reports(values, f"{where} and the overrides" if changes else where)


def as_config(config: Config, *, needs_tiles: bool = True) -> ConfigFile:
    """Return a configuration unchanged, or load it if a path or name is given.

    Raises:
        ConfigError: The configuration cannot be read, or lacks tiles that are needed.
    """
    file = config if isinstance(config, ConfigFile) else load_config(config)
    if needs_tiles:
        require_tiles(file.run)
    return file


def _check_types(config: object, overrides: object) -> None:
    """Reject arguments of the wrong type, such as a dictionary instead of a file."""
    if not isinstance(config, ConfigFile | str | Path):
        example = 'clipit.load_config("own_table", {"tiles.path": "tiles.csv"})'
        fix = f"start from a file or a shipped configuration, and change its keys: {example}"
        if isinstance(config, RunConfig):
            fix = "pass the result of load_config, not its `run` attribute"
        raise ConfigError(
            f"a configuration must be the path of a YAML file, the name of a shipped configuration or a result of "
            f"load_config, not {type_name(config)}",
            where="config",
            fix=fix,
        )
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ConfigError(
            f"overrides must be a dictionary of dotted keys and their values, not {type_name(overrides)}",
            where="overrides",
            fix='write, for example, {"training.steps": 200}',
        )
    others = [key for key in overrides or {} if not isinstance(key, str)]
    if others:
        raise ConfigError(
            f"keys in overrides must be strings, not {shortlist([repr(key) for key in others])}",
            where="overrides",
            fix='write, for example, {"training.steps": 200}',
        )


def _path(config: str | os.PathLike[str]) -> Path:
    try:
        return config_file(str(config))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(str(error), where=config, fix="write the full path") from None


def _values(config: ConfigFile) -> dict[str, Any]:
    """Return the values of a configuration as they would be in a file, with the keys of the run at the top level."""
    values = config.model_dump(mode="json")
    return merge(values.pop("run"), values)


def _without_keys_of_arms(earlier: list[str], arms: object) -> list[str]:
    """Remove the keys that new arms set from those changed by earlier calls, which would replace those of the arms."""
    recipes = [keys for keys in arms.values() if isinstance(keys, Mapping)] if isinstance(arms, Mapping) else []
    set_by_arms = {key for keys in recipes for key in dotted(nested(keys))}
    return [key for key in earlier if key not in set_by_arms]


def as_values(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the paths of a tree to strings, as in a YAML file; reject sets, whose order differs between processes."""
    unordered = [key for key, value in tree.items() if isinstance(value, set | frozenset)]
    if unordered:
        raise ConfigError(
            f"values must be lists, not sets, which have no order: {', '.join(map(str, unordered))}",
            where="overrides",
            fix="pass lists",
        )
    return {key: _as_value(value) for key, value in tree.items()}


def _as_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return as_values(value)
    value = as_plain(value)
    return str(value) if isinstance(value, Path) else [*map(_as_value, value)] if isinstance(value, list) else value
