"""Load a configuration: a YAML file and command-line overrides, validated together."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from clipit.config.file import SECTIONS, ConfigFile
from clipit.config.option_values import decode_options, decode_text
from clipit.config.paths import option_path
from clipit.config.run import RunConfig
from clipit.config.shipped import config_file
from clipit.errors import ConfigError, shortlist
from clipit.yaml_file import load_yaml

_Model = TypeVar("_Model", bound=BaseModel)
NO_TILES = ""  # path of the placeholder for tiles that a command does not need
_LONGEST_SHOWN = 500  # characters of options in a message

RENAMED = {"zero_shot": "prompt_study", "comparison.why": "comparison.analyses"}
"""Former keys of the configuration, dotted, and the keys that replace them."""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `changes` into a copy of `base`: sections are merged, other values replaced; `{}` empties a section."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if value and isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Expand dotted keys: `{"lora.rank": 8}` becomes `{"lora": {"rank": 8}}`."""
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        head, _, rest = key.partition(".")
        tree = merge(tree, {head: nested({rest: value}) if rest else value})
    return tree


def dotted(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys of a tree: `lora.rank` for `{"lora": {"rank": 8}}`."""
    keys: list[str] = []
    for name, value in tree.items():
        inner = isinstance(value, Mapping) and value
        keys += dotted(value, f"{prefix}{name}.") if inner else [prefix + name]
    return keys


def override(values: Mapping[str, Any], changes: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Merge changes into the content of a file, and add their dotted keys to `overrides`, which an arm keeps."""
    merged = merge(values, changes)
    earlier = merged.get("overrides", [])  # present if the file was written by a run
    if isinstance(earlier, list):  # anything else fails validation
        merged["overrides"] = [*earlier, *(key for key in given if key not in earlier)]
    return merged


def without(tree: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Copy a tree without these dotted keys, and without values that stand in place of their sections."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        inner = [key.partition(".")[2] for key in keys if key.partition(".")[0] == name]
        if not inner:
            kept[name] = value
        elif isinstance(value, Mapping) and all(inner) and (rest := without(value, inner)):
            kept[name] = rest  # an empty section would empty the one that it is merged into
    return kept


def validate(values: Mapping[str, Any], where: object) -> RunConfig:
    """Validate the keys of a run.

    Args:
        values: Keys and values, sections nested.
        where: Origin of the values, for messages.

    Raises:
        ConfigError: Lists every error, each with its key path.
    """
    return _validate(RunConfig, values, where)


def validate_file(values: Mapping[str, Any], where: object) -> ConfigFile:
    """Validate the content of a configuration file: the keys of a run and the sections beside them.

    Arguments and errors are those of `validate`.
    """
    return _validate(ConfigFile, values, where)


def _validate(model: type[_Model], values: Mapping[str, Any], where: object) -> _Model:
    _refuse_undecodable(values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, where) from None


def _refuse_undecodable(values: Any, where: object) -> None:
    """Refuse texts that cannot be written as UTF-8, such as file names in another encoding."""
    if text := _undecodable(values):
        raise ConfigError(f"not valid UTF-8: {text}", where=where, fix="rename the file, or correct the text")


def _undecodable(values: Any) -> str:
    """Return the first text that cannot be written as UTF-8, escaped; "" if there is none."""
    left = [values]
    while left:
        value = left.pop()
        if isinstance(value, str):
            escaped = value.encode("utf-8", "backslashreplace").decode()
            if escaped != value:
                return escaped
        elif isinstance(value, Mapping):
            left += reversed([*value, *value.values()])
        elif isinstance(value, list | tuple):
            left += reversed(value)
    return ""


def _config_error(error: ValidationError, where: object) -> ConfigError:
    """Combine all errors of a validation into one message."""
    lines = []
    for item in error.errors():
        key = key_of(item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'{_hint(key)}")
        else:
            given = "" if item["type"] == "missing" else f" (given: {item['input']!r})"
            unquoted = item["type"] == "string_type" and isinstance(item["input"], int | float)
            quotes = "; write it in quotes" if unquoted else ""
            lines.append(f"'{key}': {item['msg']}{given if len(given) < 80 else ''}{quotes}")
    listed = "\n    ".join(lines)
    return ConfigError(
        f"{len(lines)} configuration error{'s' * (len(lines) > 1)}:\n    {listed}",
        where=where,
        fix="correct these keys; `clipit train --help` explains every key",
    )


def key_of(location: Sequence[int | str]) -> str:
    """Return the dotted key of a validation error's location; in a file, the keys of a run are at the top level."""
    parts = [str(part) for part in location]
    return ".".join(parts[1:] if parts[:1] == ["run"] else parts) or "(whole file)"


def all_keys() -> list[str]:
    """List every dotted key of a configuration file, without names chosen by the user (as in `comparison.shifted`)."""
    return keys_of(RunConfig) + [key for key in keys_of(ConfigFile) if key.partition(".")[0] in SECTIONS]


def keys_of(model: type[Any]) -> list[str]:
    """List every dotted key of a model and of its sections."""
    return [*_types(model)]


def _types(model: type[Any], prefix: str = "") -> dict[str, Any]:
    """Return the type of every dotted key of a model and of its sections."""
    types: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kinds = () if get_origin(field.annotation) is dict else (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
        types[prefix + name] = field.annotation
        types |= _types(section, f"{prefix}{name}.") if section else {}
    return types


def _hint(key: str) -> str:
    """Suggest a key: the new name of a renamed one, a similar one, or one that is abbreviated (`lr`)."""
    import difflib

    if key in RENAMED:
        return f" (it is now called '{RENAMED[key]}')"
    keys = all_keys()
    section, _, name = key.rpartition(".")
    within = {other: other.rpartition(".")[2] for other in keys if not section or other.startswith(f"{section}.")}
    spelt = [other for other, last in within.items() if _abbreviates(name, last) or (last == name and not section)]
    near = difflib.get_close_matches(key, within if section in keys else keys, n=1, cutoff=0.6)
    similar = [*spelt, *near]
    return f" (did you mean '{similar[0]}'?)" if similar else ""


def _abbreviates(short: str, name: str) -> bool:
    """Return whether a text is made of the initials of a key's words."""
    words = name.split("_")
    return len(words) > 1 and short == "".join(word[0] for word in words)


def read_yaml(path: Path, *, example: str = "configs/own_table.yaml") -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Args:
        path: Path of the file.
        example: Shipped file or folder that messages refer to.

    Raises:
        ConfigError: The file is missing or unreadable, is not UTF-8, YAML or a mapping, or repeats a key.
    """
    try:
        values, repeated = load_yaml(path)
    except FileNotFoundError:
        shipped = "configs/" if example.endswith(".yaml") else example
        raise ConfigError(
            "no such configuration file",
            where=path,
            fix=f"see {shipped} for those shipped, or list them with `clipit init`",
        ) from None
    except PermissionError:
        raise ConfigError("no permission to read this file", where=path, fix="make the file readable") from None
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=path, fix=f"choose a file such as {example}"
        ) from None
    if repeated:
        given = shortlist([f"'{key}' (line {line})" for key, line in repeated])
        raise ConfigError(
            f"repeated keys (YAML keeps only the last value): {given}", where=path, fix="keep one of each"
        )
    if not isinstance(values, dict):
        raise ConfigError("not a mapping of keys to values", where=path, fix=f"see {example}")
    return values


def read_command(
    description: str | None, argv: Sequence[str] | None = None, extra: Mapping[str, dict[str, Any]] | None = None
) -> tuple[RunConfig, argparse.Namespace]:
    """Parse the command line of a script that reads the keys of a run alone; see `read_file_command`."""
    file, options = read_file_command(description, (), argv, extra)
    return file.run, options


def read_reports_command(
    description: str | None, argv: Sequence[str] | None = None, extra: Mapping[str, dict[str, Any]] | None = None
) -> tuple[RunConfig, bool, argparse.Namespace]:
    """Parse the command line of a script on reports, whose configuration may lack tiles; see `read_file_command`.

    Returns:
        The configuration, whether it names tiles, and the script's own options. Without tiles, the section `tiles` is
        a placeholder that must not be read.
    """
    file, options = read_file_command(description, (), argv, extra, needs_tiles=False)
    return file.run, names_tiles(file.run), options


def names_tiles(config: RunConfig) -> bool:
    """Return whether a configuration names tiles; without them, the section `tiles` is a placeholder."""
    return config.tiles.path != NO_TILES


def read_file_command(
    description: str | None,
    sections: Sequence[str],
    argv: Sequence[str] | None = None,
    extra: Mapping[str, dict[str, Any]] | None = None,
    *,
    needs_tiles: bool = True,
    needs_config: bool = True,
    default_config: str | None = None,
) -> tuple[ConfigFile, argparse.Namespace]:
    """Parse a script's command line: `--config FILE` and any key of the configuration as `--section.key=value`.

    Args:
        description: Purpose of the script, for `--help`.
        sections: Sections beside the run that the script reads, such as `comparison`; only these may be given as
            options. The others are validated as well.
        argv: Arguments; those of the process by default.
        extra: Further options of the script: name -> keyword arguments of `add_argument`.
        needs_tiles: Whether the section `tiles` is required.
        needs_config: Whether `--config` is required.
        default_config: Name of the shipped configuration that is read without `--config`; None: it is required.

    Returns:
        The validated file, and the script's own options. The run's keys given as options are listed in `overrides`.

    Raises:
        ConfigError: The file cannot be read, or keys or options are wrong.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _refuse_undecodable(arguments, "the command line")
    parser = argparse.ArgumentParser(add_help=False)
    about = "YAML file of the run, or the name of a shipped one (see clipit init)"
    default = None if default_config is None else config_file(default_config)
    parser.add_argument(
        "--config", type=config_file, default=default, required=needs_config and not default, help=about
    )
    for name, keywords in (extra or {}).items():
        kind = {"type": option_path} if keywords.get("type") is Path else {}
        parser.add_argument(name, **(keywords | kind))
    settings = _settings(tuple(sections))
    if "-h" in arguments or "--help" in arguments:
        help_parser = argparse.ArgumentParser(
            usage="%(prog)s --config FILE [--section.key=value ...]", description=description, parents=[parser]
        )
        CliSettingsSource(settings, root_parser=help_parser, cli_parse_args=["--help"], cli_hide_none_type=True)
    types = _types(settings)
    repeatable = [name for name, keywords in (extra or {}).items() if keywords.get("action") == "append"]
    _refuse_repeated(arguments, repeatable, types)
    options, rest = parser.parse_known_args(arguments)
    known, unknown = _sort_options(rest, [*types])
    _refuse_sections(unknown, sections)
    decoded = decode_options(known, types)
    parsed = _parse({key: text for key, text in known.items() if key not in decoded}, settings)
    overrides = merge(parsed, nested(decoded))
    given = [key for key in dotted(overrides) if key.partition(".")[0] not in SECTIONS]
    given += [key for key in unknown if key.startswith("terms.")]  # validated with the class of the term
    changes = merge(overrides, nested({key: decode_text(text) for key, text in unknown.items()}))
    values = override(read_yaml(options.config) if options.config else {}, changes, given)
    tiles = values.get("tiles", {})
    if not needs_tiles and isinstance(tiles, Mapping) and "path" not in tiles:
        values["tiles"] = {"source": "table", "path": NO_TILES, **tiles}
    origin = f"{options.config} and the command line" if options.config else "the command line"
    return validate_file(values, origin), options


@cache
def _settings(sections: tuple[str, ...]) -> type[BaseSettings]:
    """Build a settings model of the run's keys and these sections, from which pydantic-settings derives a parser."""
    fields: dict[str, Any] = {
        name: (ConfigFile.model_fields[name].annotation, ConfigFile.model_fields[name]) for name in sections
    }

    class CommandLine(BaseSettings, RunConfig):
        model_config = SettingsConfigDict(extra="ignore", frozen=False)

    return create_model("CommandLine", __base__=CommandLine, **fields)


def _refuse_sections(unknown: Mapping[str, str], sections: Sequence[str]) -> None:
    """Refuse options of a section that the command does not read, which would otherwise have no effect."""
    idle = sorted(key for key in unknown if key.partition(".")[0] in {*SECTIONS} - {*sections})
    if idle:
        raise ConfigError(
            f"this command does not read {', '.join(idle)}",
            where="the command line",
            fix="leave these options out, or set the keys in the configuration file",
        )


def _refuse_repeated(arguments: Sequence[str], repeatable: Sequence[str], types: Mapping[str, Any]) -> None:
    """Refuse repeated options: one value would be dropped, or two lists joined."""
    given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    twice = sorted({option for option in given if given.count(option) > 1} - {*repeatable})
    if twice:
        lists = [option for option in twice if "tuple" in str(types.get(option[2:]))]
        raise ConfigError(
            f"given more than once: {', '.join(twice)}",
            where="the command line",
            fix="keep one of each" + (f"; write a list as '{lists[0]}=[a, b]'" if lists else ""),
        )


def _parse(known: Mapping[str, str], settings: type[BaseSettings]) -> dict[str, Any]:
    """Parse configuration options; the error names the option that cannot be parsed."""
    if not known:
        return {}
    arguments = [f"--{key}={text}" for key, text in known.items()]
    try:
        values: dict[str, Any] = CliSettingsSource(settings, cli_parse_args=arguments, cli_exit_on_error=False)()
    except (SettingsError, argparse.ArgumentError, RecursionError) as error:
        if len(known) > 1:
            for key, text in known.items():
                _parse({key: text}, settings)  # raises for the option that fails
        shown = " ".join(arguments)
        raise ConfigError(
            f"cannot be parsed: {shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + '...'} ({error})",
            where="the command line",
            fix="--help shows each option; lists and sections are JSON in single quotes: '[1, 2]', '{\"rank\": 8}'",
        ) from None
    return values


def _sort_options(arguments: Sequence[str], keys: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split options into known keys, for the parser, and unknown ones, for the list of all errors; each with its value.

    Raises:
        ConfigError: A known option has no value, or more than one.
    """
    options: dict[str, list[str]] = {}
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option, equals, value = argument[2:].partition("=")
            options[option] = [value] if equals else []
        elif option:
            options[option].append(argument)
        else:
            options[argument] = []  # no option: listed as an unknown key
    for option, values in options.items():
        if option in keys and len(values) != 1:
            raise ConfigError(
                f"--{option} has {f'{len(values)} values: ' + ' '.join(values) if values else 'no value'}",
                where="the command line",
                fix=f"write --{option}=VALUE; a value with spaces in single quotes",
            )
    known = {option: values[0] for option, values in options.items() if option in keys}
    return known, {option: " ".join(values) for option, values in options.items() if option not in keys}
