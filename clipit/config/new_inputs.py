"""Command line for evaluating a finished run: its folder, and new tiles, prompts or evaluation keys."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.config.command_line import read_file_command
from clipit.config.data import TilesConfig
from clipit.config.load import dotted, merge, nested, read_yaml, validate, value_at
from clipit.config.paths import argument_path
from clipit.config.run import RunConfig
from clipit.errors import ConfigError

logger = logging.getLogger(__name__)

_SECTIONS = ("tiles", "prompts", "leaks", "evaluation")
"""Keys and sections of a configuration file that are read if `--run` is given."""
_CHANGEABLE = (
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
"""Keys and sections that may be changed after training, because they do not affect the classifier.

These are the keys that an evaluation reads; other keys without an effect on results, such as `tracking`, are of no use
for a finished run.
"""


@dataclass(frozen=True)
class NewInputs:
    """New inputs for evaluating a finished run.

    Attributes:
        tiles: New tiles, if given.
        prompts: New prompt set, if given: a file or the name of a packaged set.
        name: Name of the new evaluation; "" if not given.
        changes: Changed keys of the run, nested.
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
) -> NewInputs:
    """Parse a command line with `--run FOLDER`.

    Without `--tiles.source`, a folder or zip is read as class folders, tar files as webdataset shards, and any other
    file as a table.

    Args:
        description: Purpose of the command, for `--help`.
        extra: Options of the command, including `--run`.
        argv: Arguments; by default those of the process.

    Raises:
        ConfigError: The file or options are invalid, or an option would change the classifier.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    file, options = read_file_command(
        description, (), _with_source(arguments), extra, needs_tiles=False, needs_config=False
    )
    config, stated_keys = file.run, set(file.run.overrides)
    from_file = read_yaml(options.config) if options.config else {}
    ignored = sorted(key for key in from_file if key not in _SECTIONS)
    if ignored:
        logger.info(f"note: only {', '.join(_SECTIONS)} are read from {options.config}, not {', '.join(ignored)}")
    stated_keys -= {*dotted({key: from_file[key] for key in ignored}), *from_file.get("overrides", [])}
    stated_keys |= set(dotted({key: from_file[key] for key in _SECTIONS if key in from_file}))
    own_keys = {key for key in stated_keys if key.partition(".")[0] in ("tiles", "prompts", "name")}
    changed = stated_keys - own_keys
    _check_changeable(changed, "the command line", "with --run, use only --tiles keys, --prompts, --name, and")
    has_tiles = any(key.partition(".")[0] == "tiles" for key in stated_keys)
    if "name" in stated_keys and not has_tiles and "prompts" not in stated_keys:
        raise ConfigError(
            "--name is the name of an evaluation on new tiles or prompts, but neither is given",
            where="the command line",
            fix="add --tiles.path or --prompts, or remove --name",
        )
    values = config.model_dump()
    changes = nested({key: value_at(values, key) for key in sorted(changed)})
    prompts = config.prompts if "prompts" in stated_keys else None
    return NewInputs(
        options.run, config.tiles if has_tiles else None, prompts, config.name if "name" in stated_keys else "", changes
    )


def as_changes(keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Nest dotted keys, which must be keys that may be changed in a finished run.

    Raises:
        ConfigError: A key would change the classifier.
    """
    _check_changeable(keys, where, "use only")
    return nested(keys)


def default_source(path: str) -> str:
    """Infer the tile source from a path."""
    if path.lower().endswith(".tar"):
        return "webdataset"
    in_folders = Path(argument_path(path)).is_dir() or path.lower().endswith(".zip")
    return "folders" if in_folders else "huggingface" if path.startswith("hf:") else "table"


def _check_changeable(keys: Iterable[str], where: str, fix: str) -> None:
    """Reject keys that would change the classifier of a finished run."""
    fixed = sorted(key for key in keys if not any(key == known or key.startswith(f"{known}.") for known in _CHANGEABLE))
    if fixed:
        raise ConfigError(
            f"the run is finished, so these keys cannot be changed: {', '.join(fixed)}",
            where=where,
            fix=f"{fix} the keys and sections {', '.join(_CHANGEABLE)}",
        )


def _with_source(arguments: list[str]) -> list[str]:
    """Add `--tiles.source` if tiles are given only by their path."""
    options = {argument.partition("=")[0] for argument in arguments}
    path = next((text.partition("=")[2] for text in arguments if text.startswith("--tiles.path=")), "")
    if not path and "--tiles.path" in arguments[:-1]:
        path = arguments[arguments.index("--tiles.path") + 1]
    if not path or options & {"--tiles", "--tiles.source", "--config"}:
        return arguments
    return [*arguments, f"--tiles.source={default_source(path)}"]
