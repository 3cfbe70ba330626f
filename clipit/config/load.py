"""Read, merge and validate configurations, which are trees of keys."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from clipit.config.file import SECTIONS, ConfigFile
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, counted, shortlist
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.yaml_file import MAX_DEPTH, load_yaml

_Model = TypeVar("_Model", bound=BaseModel)
NO_TILES = "(no tiles)"  # path of the placeholder for tiles that a command does not need
_MAX_SHOWN = 80  # maximum number of characters of a key in a message
_NO_REPORTS = "(no reports)"  # path of the placeholder that lets the other keys of `reports` be validated

RENAMED = {
    "zero_shot": "prompt_study", "comparison.why": "comparison.analyses", "soft_labels.own_report": "own_report",
}  # fmt: skip
"""Former configuration keys and sections (dotted) and the keys that replace them."""


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `changes` into a copy of `base`: sections are merged, other values replaced; `{}` empties a section."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) and value else value
    return merged


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Expand dotted keys: `{"lora.rank": 8}` becomes `{"lora": {"rank": 8}}`.

    Raises:
        ConfigError: A key and its value are nested more than 40 levels deep, the limit for YAML files.
    """
    for key, value in keys.items():
        if _is_deep({key: value}):
            shown = key if len(key) <= _MAX_SHOWN else f"{key[:_MAX_SHOWN]}..."
            raise ConfigError(
                f"nested more than {MAX_DEPTH} levels deep: {shown}", fix="correct this key and its value"
            )
    return _expand(keys)


def _expand(keys: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        first, _, rest = key.partition(".")
        tree = merge(tree, {first: _expand({rest: value}) if rest else value})
    return tree


def _is_deep(tree: Mapping[str, Any]) -> bool:
    """Return whether dotted keys and the values under them are nested more than 40 levels deep."""
    pending: list[tuple[Any, int]] = [(tree, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            return True
        if isinstance(value, Mapping):
            pending += [(inner, depth + 1 + str(key).count(".")) for key, inner in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(inner, depth + 1) for inner in value]
    return False


def dotted(tree: Mapping[str, Any]) -> list[str]:
    """List the dotted keys of a tree: `lora.rank` for `{"lora": {"rank": 8}}`."""
    return [".".join(path) for path in _paths(tree)]


def _paths(tree: Mapping[str, Any], start: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in tree.items():
        path = (*start, str(name))
        if isinstance(value, Mapping) and value:
            yield from _paths(value, path)
        else:
            yield path


def value_at(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in a tree."""
    value: Any = tree
    for name in key.split("."):
        value = value[name]
    return value


def repeated_keys(entries: Iterable[tuple[str, Any]]) -> list[str]:
    """List the dotted keys that several entries set, such as `lora.rank` for `lora: {"rank": 4}` and `lora.rank: 8`."""
    counts = Counter(path for key, value in entries for path in _paths(nested({key: value})))
    return sorted(
        ".".join(path)
        for path, count in counts.items()
        if count > 1 or any(path[:length] in counts for length in range(1, len(path)))
    )


def check_keys_once(keys: Mapping[str, Any], where: str) -> None:
    """Reject dotted keys if one of them would replace a value inside another; see `repeated_keys`."""
    if twice := repeated_keys(keys.items()):
        raise ConfigError(f"keys given twice: {', '.join(twice)}", where=where, fix="give each key once")


def override(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge changes into the content of a file, and add their keys to `overrides`.

    These are the keys that neither arms nor conditions (`mil.conditions`) change: those of the run and of `mil`.
    """
    merged = merge(values, changes)
    stated_keys = [key for key in dotted(changes) if key.partition(".")[0] not in {*SECTIONS} - {"mil"}]
    earlier = merged.get("overrides", [])  # present if the file was written by a run
    if isinstance(earlier, list):  # anything else fails validation
        merged["overrides"] = [*earlier, *(key for key in stated_keys if key not in earlier)]
    return merged


def without(tree: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Copy a tree without these dotted keys, and without values that would replace their sections."""
    kept: dict[str, Any] = {}
    for name, value in tree.items():
        inner = [key[len(name) + 1 :] for key in keys if f"{key}.".startswith(f"{name}.")]  # a name may contain dots
        if not inner:
            kept[name] = value
        elif isinstance(value, Mapping) and all(inner) and (rest := without(value, inner)):
            kept[name] = rest  # an empty section is omitted, since merging it would clear the section
    return kept


def current_name(key: str) -> str:
    """Return the current name of a renamed key, or of a key in a renamed section; other keys are returned unchanged."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace renamed keys in a configuration that clipit recorded, including its arms and overrides."""
    renamed = {current_name(key): value for key, value in values.items()}  # the keys of arms are dotted
    for old, new in RENAMED.items():
        *parents, name = old.split(".")
        section: Any = renamed
        for parent in parents:
            section = section.get(parent) if isinstance(section, Mapping) else None
        if isinstance(section, Mapping) and name in section:
            renamed = merge(without(renamed, [old]), nested({new: section[name]}))
    if isinstance(arms := renamed.get("arms"), Mapping):
        renamed["arms"] = {
            arm: with_current_names(keys) if isinstance(keys, Mapping) else keys for arm, keys in arms.items()
        }
    if isinstance(overrides := renamed.get("overrides"), list):
        renamed["overrides"] = [current_name(key) if isinstance(key, str) else key for key in overrides]
    return renamed


def validate(values: Mapping[str, Any], where: object) -> RunConfig:
    """Validate the keys of a run.

    Args:
        values: Keys and values, with nested sections.

    Raises:
        ConfigError: Values are invalid; the message lists all errors with their keys.
    """
    return _validate(RunConfig, values, where)


def validate_file(values: Mapping[str, Any], where: object) -> ConfigFile:
    """Validate the content of a configuration file: the keys of a run and the other sections; see `validate`."""
    return _validate(ConfigFile, values, where)


def _validate(model: type[_Model], values: Mapping[str, Any], where: object) -> _Model:
    check_utf8(values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _config_error(error, where) from None


def check_utf8(values: Any, where: object) -> None:
    """Reject texts that cannot be encoded as UTF-8, such as file names in a different encoding."""
    if text := _first_undecodable(values):
        raise ConfigError(f"not valid UTF-8: {text}", where=where, fix="rename the file, or correct the text")


def _first_undecodable(values: Any) -> str:
    """Return the first text that cannot be encoded as UTF-8, escaped; "" if there is none."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not value.isascii():
                escaped = value.encode("utf-8", "backslashreplace").decode()
                if escaped != value:
                    return escaped
        elif isinstance(value, list | tuple):
            pending += reversed(value)
        elif not isinstance(value, int | float | None) and isinstance(value, Mapping):  # the second check is slow
            pending += reversed([*value, *value.values()])
    return ""


_MESSAGES = {
    "model_type": "Input should be a section, with keys and values",
    "tuple_type": "Input should be a list, such as [a, b]",
}
"""Messages in terms of YAML instead of Python, by pydantic's type of error."""


def _config_error(error: ValidationError, where: object) -> ConfigError:
    lines = []
    for item in error.errors():
        key = key_of(item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"unknown key '{key}'{_hint(key)}")
        elif item["type"] == "missing":
            lines.append(f"'{key}' is required, but not set")
        else:
            value = f" (given: {item['input']!r})"
            unquoted = item["type"] == "string_type" and isinstance(item["input"], int | float)
            quotes = "; write it in quotes" if unquoted else ""
            message = _MESSAGES.get(item["type"], item["msg"])
            message = message.removeprefix("Value error, ")  # pydantic adds this prefix to messages of this package
            lines.append(f"'{key}': {message}{value if len(value) < 80 else ''}{quotes}")
    listed = "\n    ".join(lines)
    return ConfigError(
        f"{counted(len(lines), 'configuration error')}:\n    {listed}",
        where=where,
        fix="correct these keys; the option --help-keys of a command explains the keys that it reads",
    )


def key_of(location: Sequence[int | str]) -> str:
    """Return the dotted key at the location of a validation error; a run's keys are at the top level of a file."""
    parts = [str(part) for part in location]
    return ".".join(parts[1:] if parts[:1] == ["run"] else parts) or "(whole file)"


def all_keys() -> list[str]:
    """List every dotted key of a configuration file, without names chosen by the user (as in `comparison.shifted`)."""
    return keys_of(RunConfig) + [key for key in keys_of(ConfigFile) if key.partition(".")[0] in SECTIONS]


def keys_of(model: type[Any]) -> list[str]:
    """List every dotted key of a model and of its sections."""
    return [*key_types(model)]


def key_types(model: type[Any], prefix: str = "") -> dict[str, Any]:
    """Return the type of every dotted key of a model and of its sections."""
    types: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotations = () if get_origin(field.annotation) is dict else (field.annotation, *get_args(field.annotation))
        section = next((annotation for annotation in annotations if hasattr(annotation, "model_fields")), None)
        types[prefix + name] = field.annotation
        types |= key_types(section, f"{prefix}{name}.") if section else {}
    return types


def _hint(key: str) -> str:
    """Suggest the new name of a renamed key, a nested key, a similar key, or the key that `key` abbreviates (`lr`)."""
    import difflib

    if (name := current_name(key)) != key:
        return f" (it is now called '{name}')"
    keys = all_keys()
    if key in keys:  # a dotted key in a file
        return f" (write '{key.replace('.', ': {')}: ...{'}' * key.count('.')}')"
    section, _, name = key.rpartition(".")
    within = {other: other.rpartition(".")[2] for other in keys if not section or other.startswith(f"{section}.")}
    abbreviated = [
        other for other, last in within.items() if _abbreviates(name, last) or (last == name and not section)
    ]
    if name == "batch_size" and section in ("", "training"):
        abbreviated = ["training.tiles_per_step"]
    near = difflib.get_close_matches(key, within if section in keys else keys, n=1, cutoff=0.6)
    suggestions = [*abbreviated, *near]
    return f" (did you mean '{suggestions[0]}'?)" if suggestions else ""


def _abbreviates(short: str, name: str) -> bool:
    """Return whether a text consists of the initials of a key's words."""
    words = name.split("_")
    return len(words) > 1 and short == "".join(word[0] for word in words)


def read_yaml(path: Path, *, example: str = "own_table") -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Args:
        example: Name of the shipped file to mention in error messages.

    Raises:
        ConfigError: The file is missing or unreadable, is not UTF-8, YAML or a mapping, or repeats a key.
    """
    try:
        values, repeated = load_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            "no such configuration file",
            where=path,
            fix=f"correct the path ({similar_names(str(path))}), or name a shipped file, such as {example}; "
            "clipit init lists them",
        ) from None
    except PermissionError:
        raise ConfigError("no permission to read this file", where=path, fix="make the file readable") from None
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}",
            where=path,
            fix=f"choose a file; clipit init {example} prints an example",
        ) from None
    if repeated:
        listed = shortlist([f"'{key}' (line {line})" for key, line in repeated])
        raise ConfigError(
            f"repeated keys (YAML allows each key once): {listed}",
            where=path,
            fix="keep each key once; several mappings are merged with one key, <<: [*a, *b], and the first one wins"
            if any(key == "<<" for key, _ in repeated)
            else "keep each key once",
        )
    if not isinstance(values, dict):
        raise ConfigError(
            "not a mapping of keys to values", where=path, fix=f"clipit init {example} prints a valid file"
        )
    return values


def read_recorded(path: Path) -> RunConfig:
    """Read the keys of a run from the config.yaml in its folder; renamed keys are read under their current names.

    Raises:
        ConfigError: The file is missing or damaged, or was written by an incompatible version.
    """
    return validate_file(with_current_names(read_yaml(path)), path).run


def fill_tiles(values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the content of a file, and add a placeholder if there are no tiles (see `names_tiles`)."""
    tiles = values.get("tiles", {})
    if not isinstance(tiles, Mapping) or "path" in tiles:
        return dict(values)
    return {**values, "tiles": {"source": "table", "path": NO_TILES, **tiles}}


def validate_without_reports(values: Mapping[str, Any], where: object) -> ConfigFile:
    """Validate the content of a file; a `reports` section without a path is ignored.

    Shipped configurations contain such a section, because the path is given on the command line. Commands that need no
    reports ignore the section, but still validate its other keys.

    Raises:
        ConfigError: Values are invalid.
    """
    reports = values.get("reports")
    if not isinstance(reports, Mapping) or "path" in reports:
        return validate_file(values, where)
    file = validate_file({**values, "reports": {"path": _NO_REPORTS, **reports}}, where)
    return file.model_copy(update={"run": file.run.model_copy(update={"reports": None})})


def names_tiles(config: RunConfig) -> bool:
    """Return whether a configuration has tiles; otherwise the section `tiles` is a placeholder."""
    return config.tiles.path != NO_TILES


def require_tiles(config: RunConfig) -> None:
    """Check that a configuration has tiles.

    Raises:
        ConfigError: The configuration has no tiles.
    """
    if not names_tiles(config):
        raise ConfigError(
            "the configuration has no tiles",
            where="tiles.path",
            fix="set tiles.path and, if needed, tiles.images, for example to tiles.csv and tiles.zip",
        )
