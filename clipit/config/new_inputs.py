"""Command line of an evaluation of a finished run: its folder, and new tiles, prompts or keys of the evaluation."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.config.command_line import read_file_command
from clipit.config.data import TilesConfig
from clipit.config.load import dotted, merge, nested, read_yaml, validate
from clipit.config.run import RunConfig
from clipit.errors import ConfigError

logger = logging.getLogger(__name__)

_SECTIONS = ("tiles", "prompts", "leaks", "evaluation")
"""Keys of a configuration file that are read with a run's folder."""
_CHANGED = (
    "leaks",
    "evaluation",
    "training.threads",
    "training.cache_tiles",
    "training.cache_gigabytes",
    "vlm.path",
    "vlm.adapter",
    "vlm.batch_size",
    "vlm.trust_remote_code",
    "backbone.trust_remote_code",
)
"""Keys and sections of the run that may be given, because they do not change its classifier."""


@dataclass(frozen=True)
class GivenInputs:
    """Options of an evaluation of a finished run.

    Attributes:
        run: Folder of the run.
        tiles: New tiles; None if none are given.
        prompts: New prompt set, a file or packaged name; None if none is given.
        name: Name of the new evaluation; "" if not given.
        changes: Keys of the run with other values, nested.
    """

    run: Path
    tiles: TilesConfig | None
    prompts: str | None
    name: str
    changes: Mapping[str, Any]

    def apply(self, config: RunConfig) -> RunConfig:
        """Return the configuration of the run with the changed keys."""
        return validate(merge(config.model_dump(), self.changes), self.run / "config.yaml") if self.changes else config


def read_new_inputs(
    description: str | None, extra: Mapping[str, dict[str, Any]], argv: Sequence[str] | None = None
) -> GivenInputs:
    """Parse a command line with `--run FOLDER`.

    Without `--tiles.source`, a folder or zip is read as class folders, tar files as webdataset shards, and another file
    as a table.

    Args:
        description: Purpose of the command, for `--help`.
        extra: Options of the command, with `--run`.
        argv: Arguments; those of the process by default.

    Raises:
        ConfigError: The file or options are invalid, or an option would change the classifier.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    file, options = read_file_command(
        description, (), _with_source(arguments), extra, needs_tiles=False, needs_config=False
    )
    config, given = file.run, set(file.run.overrides)
    from_file = read_yaml(options.config) if options.config else {}
    ignored = sorted(key for key in from_file if key not in _SECTIONS)
    if ignored:
        logger.info(f"note: of {options.config}, only {', '.join(_SECTIONS)} are read, not {', '.join(ignored)}")
    given -= {*dotted({key: from_file[key] for key in ignored}), *from_file.get("overrides", [])}
    given |= set(dotted({key: from_file[key] for key in _SECTIONS if key in from_file}))
    own = {key for key in given if key.partition(".")[0] in ("tiles", "prompts", "name")}
    changed = given - own
    _refuse_others(changed, "the command line", "with --run, give keys of tiles and prompts, --name, and")
    has_tiles = any(key.partition(".")[0] == "tiles" for key in given)
    if "name" in given and not has_tiles and "prompts" not in given:
        raise ConfigError(
            "--name names an evaluation on new tiles or prompts, but there are none",
            where="the command line",
            fix="add --tiles.path or --prompts, or leave out --name",
        )
    values = config.model_dump()
    changes = nested({key: _value(values, key) for key in sorted(changed)})
    prompts = config.prompts if "prompts" in given else None
    return GivenInputs(
        options.run, config.tiles if has_tiles else None, prompts, config.name if "name" in given else "", changes
    )


def as_changes(keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Nest dotted keys of a finished run that may have other values.

    Raises:
        ConfigError: A key would change the classifier.
    """
    _refuse_others(keys, where, "give only")
    return nested(keys)


def default_source(path: str) -> str:
    """Return the source of tiles that are given by their path alone."""
    if path.lower().endswith(".tar"):
        return "webdataset"
    in_folders = Path(path).expanduser().is_dir() or path.lower().endswith(".zip")
    return "folders" if in_folders else "huggingface" if path.startswith("hf:") else "table"


def _refuse_others(keys: Iterable[str], where: str, fix: str) -> None:
    """Refuse keys that would change the classifier of a finished run."""
    foreign = sorted(key for key in keys if not any(key == known or key.startswith(f"{known}.") for known in _CHANGED))
    if foreign:
        raise ConfigError(
            f"the run is finished, so these keys cannot change: {', '.join(foreign)}",
            where=where,
            fix=f"{fix} keys of {', '.join(_CHANGED)}",
        )


def _with_source(arguments: list[str]) -> list[str]:
    """Add `--tiles.source` for tiles given by their path alone."""
    options = {argument.partition("=")[0] for argument in arguments}
    path = next((text.partition("=")[2] for text in arguments if text.startswith("--tiles.path=")), "")
    if not path and "--tiles.path" in arguments[:-1]:
        path = arguments[arguments.index("--tiles.path") + 1]
    if not path or options & {"--tiles.source", "--config"}:
        return arguments
    return [*arguments, f"--tiles.source={default_source(path)}"]


def _value(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = values
    for name in key.split("."):
        value = value[name]
    return value
