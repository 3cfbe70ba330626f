"""Training curves from metrics.jsonl, the training log."""

import json
from collections.abc import Mapping
from pathlib import Path

from clipit.errors import DataError

Series = Mapping[str, tuple[list[int], list[float]]]
"""Steps and values by name, in the order of the steps."""


def read_curves(path: Path) -> Series:
    """Read every numeric entry of a metrics.jsonl (one JSON object per line, with its `step`) as a series over steps.

    If a step was logged twice (training resumed from an earlier checkpoint), the last value is used. A truncated last
    line (the process was killed) is ignored.

    Raises:
        DataError: The file is missing, or a line before the last is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError("no training log", where=path, fix="give the folder of a run") from error
    logged: dict[str, dict[int, float]] = {}
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if i == len(lines) - 1:
                break
            where = f"{path}, line {i + 1}"
            raise DataError("not a JSON object with a step", where=where, fix="delete the line") from error
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                logged.setdefault(name, {})[step] = float(value)
    return {name: (sorted(values), [values[step] for step in sorted(values)]) for name, values in logged.items()}
