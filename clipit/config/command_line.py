"""Parse a command line: `--config FILE`, configuration keys, and the command's own options."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from clipit.config.file import SECTIONS, ConfigFile
from clipit.config.load import (
    check_utf8,
    fill_tiles,
    key_types,
    names_tiles,
    nested,
    override,
    read_yaml,
    repeated_keys,
    validate_file,
    validate_without_reports,
    value_at,
)
from clipit.config.option_values import decode_options, decode_text
from clipit.config.paths import option_path
from clipit.config.reference import COMMON_KEYS, SectionEntry, describe_run, describe_section
from clipit.config.run import RunConfig
from clipit.config.shipped import config_file
from clipit.errors import ConfigError

HELP_KEYS = "--help-keys"
"""Option that lists all configuration keys that a command reads."""
HELP_KEYS_OPTION: dict[str, Any] = {"action": "store_true", "help": "list all configuration keys and exit"}
_MAX_SHOWN = 500  # maximum number of characters of the options shown in a message
AGENTS: dict[str, dict[str, Any]] = {
    "--agents": {
        "type": int,
        "default": 1,
        "metavar": "N",
        "help": "number of processes on this machine that share the runs (default: %(default)s); use one per GPU",
    }
}
"""Option for commands that train many runs."""


def read_command(
    description: str | None, argv: Sequence[str] | None = None, extra: Mapping[str, dict[str, Any]] | None = None
) -> tuple[RunConfig, argparse.Namespace]:
    """Parse the command line of a command that reads only a run's keys; see `read_file_command`."""
    file, options = read_file_command(description, (), argv, extra)
    return file.run, options


def read_reports_command(
    description: str | None, argv: Sequence[str] | None = None, extra: Mapping[str, dict[str, Any]] | None = None
) -> tuple[RunConfig, bool, argparse.Namespace]:
    """Parse the command line of a command for reports, which needs no tiles; see `read_file_command`.

    Returns:
        The configuration, whether it has tiles, and the command's own options. Without tiles, the `tiles` section is a
        placeholder that must not be used.
    """
    file, options = read_file_command(description, (), argv, extra, needs_tiles=False)
    return file.run, names_tiles(file.run), options


def read_file_command(
    description: str | None,
    sections: Sequence[str],
    argv: Sequence[str] | None = None,
    extra: Mapping[str, dict[str, Any]] | None = None,
    *,
    needs_tiles: bool = True,
    needs_reports: bool = True,
    needs_config: bool = True,
    default_config: str | None = None,
    config_usage: str = "--config FILE",
) -> tuple[ConfigFile, argparse.Namespace]:
    """Parse a command line: `--config FILE`, and any configuration key as `--section.key=value`.

    Args:
        description: Purpose of the command, for `--help`.
        sections: Sections that the command reads in addition to the run's keys, such as `comparison`; keys of other
            such sections cannot be given as options. All sections of the file are validated.
        argv: Arguments; by default those of the process.
        extra: Additional options of the command: name -> keyword arguments of `add_argument`.
        needs_tiles: Whether the section `tiles` is required.
        needs_reports: Whether to reject a `reports` section without a path; if False, such a section is ignored.
        needs_config: Whether `--config` is required.
        default_config: Name of the shipped configuration that is read if `--config` is missing; None for no default.
        config_usage: What follows the name of the program in the usage message, if `--config` is required.

    Returns:
        The validated file, and the command's own options. The keys of the run and of `mil` that were given as options
        are listed in `overrides`.

    Raises:
        ConfigError: The file cannot be read, or keys or options are invalid.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    check_utf8(arguments, "the command line")
    parser = argparse.ArgumentParser(add_help=False)
    about = "YAML file, or the name of a shipped configuration (see clipit init)"
    default = None if default_config is None else config_file(default_config)
    parser.add_argument("--config", type=config_file, default=default, help=about)
    for name, keywords in (extra or {}).items():
        path_type = {"type": option_path} if keywords.get("type") is Path else {}
        parser.add_argument(name, **(keywords | path_type))
    if {"-h", "--help", HELP_KEYS} & {*arguments}:
        config = config_usage if needs_config and default is None else "[--config FILE]"
        usage = f"%(prog)s {config} [--section.key=value ...]"
        help_parser = argparse.ArgumentParser(usage=usage, description=description, parents=[parser])
        _add_keys(help_parser, sections, all_keys=HELP_KEYS in arguments)
        help_parser.parse_args(["--help"])
    settings = _settings(tuple(sections))
    types = key_types(settings)
    repeatable = [name for name, keywords in (extra or {}).items() if keywords.get("action") == "append"]
    _check_repeated(arguments, repeatable, types)
    _check_own_options(arguments, {"--config": {}, **(extra or {})})
    options, rest = parser.parse_known_args(arguments)
    if needs_config and options.config is None:
        raise ConfigError(
            "no configuration",
            where="--config",
            fix="pass a YAML file, or a shipped configuration such as --config own_table (clipit init lists them)",
        )
    known, unknown = _sort_options(rest, [*types])
    _check_sections(unknown, sections)
    decoded = decode_options(known, types)
    for section in {key.rpartition(".")[0] for key in known} & {*known} - {*decoded}:
        if not known[section].lstrip().startswith("{"):
            raise ConfigError(
                f"--{section} is a section, so its value must be a mapping: {known[section]}",
                where="the command line",
                fix=f"write --{section}.KEY=VALUE for each of its keys",
            )
    parsed = _parse({key: text for key, text in known.items() if key not in decoded}, settings)
    given = {key: value_at(parsed, key) for key in known if key not in decoded} | decoded
    # Entries of mappings, such as tiles.splits.train, are unknown to the parser.
    given |= {key: decode_text(text) for key, text in unknown.items()}
    _refuse_repeated(repeated_keys(given.items()), types)
    changes = nested(given)
    values = override(read_yaml(options.config) if options.config else {}, changes)
    if not needs_tiles:
        values = fill_tiles(values)
    origin = f"{options.config} and the command line" if options.config else "the command line"
    validate = validate_file if needs_reports else validate_without_reports
    return validate(values, origin), options


def _add_keys(parser: argparse.ArgumentParser, sections: Sequence[str], *, all_keys: bool) -> None:
    """Add the keys of the run and of these sections to a parser that is only used to print help.

    Args:
        all_keys: Whether to add all keys of the run; otherwise, only the most common ones are added.
    """
    parser.add_argument(HELP_KEYS, **HELP_KEYS_OPTION)
    groups = describe_run()
    if not all_keys:
        common = {key: entry for part in groups.values() for key, entry in part.keys.items() if key in COMMON_KEYS}
        groups = {"": SectionEntry(f"The most common keys; {HELP_KEYS} lists all.", common)}
    groups |= {name: entry for section in sections for name, entry in describe_section(section).items()}
    own_options = {*parser._option_string_actions}  # a command's own option takes the place of the key
    for name, section in groups.items():
        group = parser.add_argument_group(name or "configuration keys", section.meaning.replace("%", "%%"))
        for key, entry in section.keys.items():
            text = f"{entry.meaning} ({entry.facts})" if entry.facts else entry.meaning
            if f"--{key}" not in own_options:
                group.add_argument(f"--{key}", metavar="VALUE", help=text.replace("%", "%%"))


@cache
def _settings(sections: tuple[str, ...]) -> type[BaseSettings]:
    """Build a model of the run's keys and these sections; pydantic-settings derives a parser from it."""
    fields: dict[str, Any] = {
        name: (ConfigFile.model_fields[name].annotation, ConfigFile.model_fields[name]) for name in sections
    }

    class CommandLine(BaseSettings, RunConfig):
        model_config = SettingsConfigDict(extra="ignore", frozen=False)

    return create_model("CommandLine", __base__=CommandLine, **fields)


@cache
def _parser(settings: type[BaseSettings]) -> CliSettingsSource[BaseSettings]:
    """Build the parser of a settings model, cached because building takes longer than parsing."""
    return CliSettingsSource(settings, cli_exit_on_error=False)


def _check_sections(unknown: Mapping[str, str], sections: Sequence[str]) -> None:
    """Reject options of sections that the command does not read, because such options would have no effect."""
    unread = sorted(key for key in unknown if key.partition(".")[0] in {*SECTIONS} - {*sections})
    if unread:
        raise ConfigError(
            f"this command does not read {', '.join(unread)}",
            where="the command line",
            fix="remove these options, or set the keys in the configuration file",
        )


def _check_repeated(arguments: Sequence[str], repeatable: Sequence[str], types: Mapping[str, Any]) -> None:
    """Reject repeated options: one value would be dropped, or two lists would be joined."""
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    twice = {option for option in options if options.count(option) > 1} - {*repeatable}
    _refuse_repeated([option[2:] for option in sorted(twice)], types)


def _check_own_options(arguments: Sequence[str], extra: Mapping[str, dict[str, Any]]) -> None:
    """Reject words after a command's own option that are not its value; they would be taken for those of a key."""
    option, values = "", list[str]()
    for argument in (*arguments, "--"):
        if not argument.startswith("--"):
            values.append(argument)
            continue
        keywords = extra.get(option, {"nargs": "*"})
        count = 0 if keywords.get("action") == "store_true" else 1
        if "nargs" not in keywords and len(values) > count:
            is_repeatable = keywords.get("action") == "append"
            repeated = " ".join(f"{option} {value}" for value in values)
            quoted = f"write {option}=VALUE, with single quotes around a value that contains spaces"
            raise ConfigError(
                f"{option} takes {('no', 'one')[count]} value, but is followed by {' '.join(values)}",
                where="the command line",
                fix=f"repeat the option: {repeated}"
                if is_repeatable
                else quoted
                if count
                else "remove what follows it",
            )
        option, equals, value = argument.partition("=")
        values = [value] if equals else []


def _refuse_repeated(keys: Sequence[str], types: Mapping[str, Any]) -> None:
    if keys:
        lists = [key for key in keys if "tuple" in str(types.get(key))]
        raise ConfigError(
            f"options given more than once: {', '.join(f'--{key}' for key in keys)}",
            where="the command line",
            fix="give each option once" + (f"; write a list as '--{lists[0]}=[a, b]'" if lists else ""),
        )


def _parse(known: Mapping[str, str], settings: type[BaseSettings]) -> dict[str, Any]:
    """Parse configuration options; an error names the option that cannot be parsed."""
    if not known:
        return {}
    arguments = [f"--{key}={text}" for key, text in known.items()]
    try:
        values: dict[str, Any] = _parser(settings)(args=arguments)()
    except (SettingsError, argparse.ArgumentError, RecursionError) as error:
        if len(known) > 1:
            for key, text in known.items():
                _parse({key: text}, settings)  # raises for the option that fails
        shown = " ".join(arguments)
        raise ConfigError(
            f"cannot parse {shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '...'} ({error})",
            where="the command line",
            fix="write lists and sections as JSON in single quotes: '[1, 2]', '{\"rank\": 8}'; "
            f"clipit train {HELP_KEYS} lists the keys of a run",
        ) from None
    return values


def _sort_options(arguments: Sequence[str], keys: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Separate known options, which are parsed next, from unknown ones, which are reported with all other errors.

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
            options[argument] = []  # an argument that is not an option is listed as an unknown key
    for option, values in options.items():
        if option in keys and len(values) != 1:
            raise ConfigError(
                f"--{option} has {f'{len(values)} values: ' + ' '.join(values) if values else 'no value'}",
                where="the command line",
                fix=f"write --{option}=VALUE, with single quotes around a value that contains spaces",
            )
    known = {option: values[0] for option, values in options.items() if option in keys}
    return known, {option: " ".join(values) for option, values in options.items() if option not in keys}
