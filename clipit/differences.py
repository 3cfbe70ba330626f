"""Differences between the recorded and the current values of keys, for errors about files of another configuration."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipit.errors import printable

MOST_SHOWN = 10
"""Maximum number of differences listed in a message."""
_LONGEST_SHOWN = 80  # characters of a value
_ABSENT = "(absent)"


def list_differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "in the folder") -> list[str]:
    """List the keys whose values differ, as `key: old value in the folder, new value now`, sorted by key.

    Args:
        before: Recorded values, as read from JSON or YAML.
        now: Current values, which are compared as they would be recorded.
        where: Place of the recorded values, for the text.
    """
    current = json.loads(json.dumps(dict(now), default=str))
    return [
        f"{key}: {_shown(before.get(key, _ABSENT))} {where}, {_shown(current.get(key, _ABSENT))} now"
        for key in sorted({*current, *before})
        if before.get(key, _ABSENT) != current.get(key, _ABSENT)
    ]


def difference_lines(differences: Sequence[str]) -> str:
    """Format the first few differences as the indented lines of an error, and count the others."""
    more = len(differences) - MOST_SHOWN
    return "\n    ".join([*differences[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _shown(value: object) -> str:
    """Shorten a value for a message."""
    text = printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
