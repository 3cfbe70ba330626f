"""Differences between recorded and current key values, for errors about files from a different configuration."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipit.errors import printable

MAX_SHOWN = 10
"""Maximum number of differences listed in a message."""
_MAX_LENGTH = 80  # maximum number of characters per value
_ABSENT = "(absent)"


def list_differences(
    recorded: Mapping[str, Any], current: Mapping[str, Any], where: str = "in the folder"
) -> list[str]:
    """List the keys whose values differ, as `key: old value in the folder, new value now`, sorted by key.

    Args:
        recorded: Recorded values, as read from JSON or YAML.
        current: Current values; they are converted to JSON before the comparison.
    """
    as_recorded = json.loads(json.dumps(dict(current), default=str))
    return [
        f"{key}: {_shorten(recorded.get(key, _ABSENT))} {where}, {_shorten(as_recorded.get(key, _ABSENT))} now"
        for key in sorted({*as_recorded, *recorded})
        if recorded.get(key, _ABSENT) != as_recorded.get(key, _ABSENT)
    ]


def difference_lines(differences: Sequence[str]) -> str:
    """Format the first few differences as the indented lines of an error, and count the others."""
    more = len(differences) - MAX_SHOWN
    return "\n    ".join([*differences[:MAX_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _shorten(value: object) -> str:
    text = printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
