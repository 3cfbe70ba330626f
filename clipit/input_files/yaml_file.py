"""Read YAML files that contain only plain data; limit size, depth and aliases, and detect duplicate keys.

Tags other than those of plain data are rejected, and dates remain strings.
"""

import copy
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from clipit.errors import ClipitError, ConfigError, DataError
from clipit.input_files.git_lfs import PULL, is_pointer

_STANDARD = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_STANDARD + kind for kind in ("str", "int", "float", "bool", "null", "seq", "map")}
_NOT_RESOLVED = {f"{_STANDARD}timestamp", f"{_STANDARD}value"}  # dates and `=` remain strings
_SUFFIXES = (".yaml", ".yml", ".json")  # JSON is a subset of YAML
_MAX_BYTES = 8 * 2**20  # maximum size of a file
_CACHE_LIMITS = (64, 2**16)  # maximum number of cached files, and of characters in each
MAX_DEPTH = 40
"""Maximum nesting depth of mappings and lists."""
_MAX_BITS = 64  # maximum number of bits of an integer
_OTHER_BASE = re.compile(r"[-+]?0[0-9_]{1,40}|[^:]{1,40}:.{1,40}")  # numbers in base 8 or 60 in YAML 1.1: `030`, `1:30`
_MAX_REPEATED = 10_000  # maximum number of values that the aliases of a file repeat


class _Loader(yaml.SafeLoader):
    """Safe loader of plain data that records duplicate mapping keys."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, int]] = []
        self._open: list[yaml.Event] = []  # start of each node that is being composed
        self._values = 0  # number of values so far, including those that aliases repeat
        self._sizes: dict[str, int] = {}  # number of values under each anchor
        self._aliased = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node; reject foreign tags, deep nesting, and aliases that are recursive or repeat too much."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            if any(getattr(outer, "anchor", None) == anchor for outer in self._open):
                raise _error_at(f"the alias *{anchor} contains itself", event)
            size = self._sizes.get(str(anchor), 0)
            self._aliased, self._values = self._aliased + size, self._values + size
            if self._aliased > _MAX_REPEATED:
                raise _error_at(f"aliases repeat more than {_MAX_REPEATED:,} values", event)
            return super().compose_node(parent, index)
        if tag not in (None, "!") and tag not in _PLAIN_TAGS:
            raise _error_at(f"the tag {tag.replace(_STANDARD, '!!')} is not supported", event)
        if len(self._open) >= MAX_DEPTH:
            raise _error_at(f"nested more than {MAX_DEPTH} levels deep", event)
        before = self._values
        self._values += 1
        self._open.append(event)
        node = super().compose_node(parent, index)
        self._open.pop()
        if anchor is not None:
            self._sizes[anchor] = self._values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping and record its duplicate keys, including `<<`; merged keys may be overridden."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                self.repeated.append((key.value, key.start_mark.line + 1))
            seen.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Convert a node; reject values that do not have the type of their tag, huge numbers and invalid characters.

        Numbers that YAML 1.1 reads in a different base are also rejected; `030`, for example, would be 24.
        """
        number = node.tag in (f"{_STANDARD}int", f"{_STANDARD}float")
        if number and isinstance(node.value, str) and _OTHER_BASE.fullmatch(node.value):
            raise _error_at(
                f"{node.value} is ambiguous (YAML does not read it as a decimal number): write {node.value!r} in "
                "quotes if it is a name, or a number without leading zeros or colons",
                node,
            )
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, str):
                value.encode("utf-8")
            if isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise ValueError
            return value
        except (ValueError, KeyError, IndexError, TypeError, OverflowError):
            kind = node.tag.replace(_STANDARD, "!!")
            raise _error_at(f"not a valid {kind}", node) from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_RESOLVED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _error_at(problem: str, marked: Any) -> yaml.MarkedYAMLError:
    """Create an error at an event or a node."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=marked.start_mark)


def _parse(text: str) -> tuple[Any, list[tuple[str, int]]]:
    """Parse a document, and list its duplicate keys with their lines."""
    loader = _Loader(text)
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()


@lru_cache(_CACHE_LIMITS[0])
def _parse_once(text: str) -> tuple[Any, list[tuple[str, int]]]:
    """Parse a document, and cache the result, because copying takes a hundredth of the time of parsing."""
    return _parse(text)


def load_yaml(path: Path, error: type[ClipitError] = ConfigError) -> tuple[Any, list[tuple[str, int]]]:
    """Read a YAML file, and list its duplicate keys with their lines.

    Raises:
        OSError: The file cannot be read.
        ClipitError: The file is too large, not UTF-8 or not plain YAML. The type is `error`, and the message names the
            file and, if known, the line.
    """
    with path.open("rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise error(
            f"too large for a YAML file: more than {_MAX_BYTES >> 20} MiB", where=path, fix="choose a YAML file"
        )
    if is_pointer(content):
        raise error("this file is a Git LFS pointer, not the data", where=path, fix=PULL)
    try:
        text = content.decode("utf-8")
        return copy.deepcopy(_parse_once(text)) if len(text) <= _CACHE_LIMITS[1] else _parse(text)
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        raise _file_error(error, path, line, f"not UTF-8: {cause.reason}", "save it as UTF-8") from None
    except yaml.MarkedYAMLError as cause:
        mark = cause.problem_mark or cause.context_mark
        problem = " ".join(part for part in (cause.context, cause.problem) if part)
        line = mark.line + 1 if mark else 0
        raise _file_error(error, path, line, f"not valid YAML: {problem}", "correct this line") from None
    except yaml.reader.ReaderError as cause:
        line = content.decode("utf-8").count("\n", 0, cause.position) + 1
        problem = f"not valid YAML: the character #x{cause.character:04x} is not allowed"
        raise _file_error(error, path, line, problem, "delete this character") from None


def _file_error(error: type[ClipitError], path: Path, line: int, problem: str, fix: str) -> ClipitError:
    """Create the error for a file that is not plain YAML; a file with another suffix was probably chosen by mistake.

    Args:
        line: Line of the problem, from 1; 0 if unknown.
        fix: What to do if the file is a YAML file.
    """
    if path.suffix.lower() in _SUFFIXES:
        return error(problem, where=f"{path}, line {line}" if line else path, fix=fix)
    place = f"line {line}: " if line else ""
    return error("not a YAML file", where=path, fix=f"choose a YAML file; if this is one, {fix} ({place}{problem})")


def load_mapping(path: Path, first_keys: str) -> tuple[dict[Any, Any], list[tuple[str, int]]]:
    """Read a YAML file that contains a mapping, and list its duplicate keys with their lines.

    Args:
        first_keys: Keys at the start of such a file, for the error message.

    Raises:
        DataError: The file cannot be read, is not UTF-8 or YAML, or does not contain a mapping.
    """
    try:
        value, repeated = load_yaml(path, DataError)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path, fix="check its permissions") from error
    if not isinstance(value, dict):
        raise _file_error(DataError, path, 0, "not a YAML mapping", f"start with {first_keys}")
    return value, repeated
