"""Decode lists, mappings and None given on the command line, in JSON or in Python's notation (used by wandb)."""

import ast
import json
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from clipit.errors import ConfigError

_NONE = ("None", "null")
_CONTAINERS = ("[", "(", "{")
_QUOTED_ITEM = re.compile(r"(^[\[({]|,)\s*'")  # single quotes that are not part of a word
_TUPLE = re.compile(r"\(.*,.*\)", re.DOTALL)
_UNQUOTED_LIST = re.compile(r"\[([^\[\]{}'\"]*)\]")


def decode_options(options: Mapping[str, str], types: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the options whose value is a list, a mapping or None.

    Args:
        options: Dotted key -> text.
        types: Dotted key -> type.

    Returns:
        Decoded values by key, without options of other types.

    Raises:
        ConfigError: A list with quoted items is valid neither as JSON nor in Python's notation, or a key that needs a
            mapping has a different value.
    """
    decoded: dict[str, Any] = {}
    for key, option in options.items():
        text = option.strip()
        alternatives = get_args(types[key]) if get_origin(types[key]) in (Union, UnionType) else (types[key],)
        lists = [alternative for alternative in alternatives if get_origin(alternative) is tuple]
        if text in _NONE and NoneType in alternatives:
            decoded[key] = None
        elif lists and text in _NONE:
            raise ConfigError(
                f"--{key} is a list, not {text}", where="the command line", fix="write an empty list as []"
            )
        elif lists:
            holds_text = get_args(lists[0])[0] is str
            items = _literal(text, numbers_as_text=holds_text) if text.startswith(("[", "(", "'")) else None
            if isinstance(items, str | list):
                decoded[key] = [items] if isinstance(items, str) else items
            elif _QUOTED_ITEM.search(text) or _TUPLE.fullmatch(text):
                raise ConfigError(
                    f"cannot parse as a list: --{key}={text}",
                    where="the command line",
                    fix=f'write the list as JSON: \'--{key}=["first", "second"]\'',
                )
        elif str not in alternatives and isinstance(value := decode_text(text), dict):
            decoded[key] = value
        elif any(get_origin(alternative) is dict for alternative in alternatives) and not (
            "=" in text or text.startswith("{")
        ):
            raise ConfigError(
                f"not a mapping: --{key}={text}",
                where="the command line",
                fix=f"write names and values as JSON: '--{key}={{\"name\": VALUE}}'; see docs/configuration.md",
            )
        elif any(get_origin(alternative) is dict for alternative in alternatives) and '"' not in text:
            _check_keys([pair.partition("=")[0].strip() for pair in text.split(",") if "=" in pair], text)
    return decoded


def decode_text(text: str) -> Any:
    """Decode a list, a mapping or None in JSON or Python's notation, and return any other text unchanged.

    The items of a list need no quotation marks: `[a, b]`, as in YAML.
    """
    if text in _NONE:
        return None
    value = _literal(text) if text.startswith(_CONTAINERS) else text
    if isinstance(value, list | dict):
        return value
    unquoted = _UNQUOTED_LIST.fullmatch(text.strip())
    items = [item.strip() for item in unquoted[1].split(",")] if unquoted else []
    return items if items and all(items) else text


def _literal(text: str, *, numbers_as_text: bool = False) -> Any:
    """Decode JSON or a Python literal, with tuples as lists; None if the text is neither.

    Raises:
        ConfigError: A key of a mapping is repeated.
    """
    number = str if numbers_as_text else None

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_keys([key for key, _ in pairs], text)
        return dict(pairs)

    try:
        return json.loads(text, parse_int=number, parse_float=number, object_pairs_hook=mapping)
    except (ValueError, RecursionError):
        pass
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value = json.loads(json.dumps(ast.literal_eval(tree)), parse_int=number, parse_float=number)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            _check_keys([key.value for key in node.keys if isinstance(key, ast.Constant)], text)
    return value


def _check_keys(keys: list[Any], text: str) -> None:
    """Reject repeated keys; Python would use the last one."""
    if repeated := [key for number, key in enumerate(keys) if key in keys[:number]]:
        raise ConfigError(
            f"the key {repeated[0]!r} is repeated in {text}", where="the command line", fix="keep one of its values"
        )
