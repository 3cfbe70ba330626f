"""Read the files of a finished run."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def losses(folder: Path) -> list[float]:
    """Logged training losses; raises an error unless each step is logged once and in order."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    if steps != sorted(set(steps)):
        raise AssertionError(f"steps logged twice or out of order: {steps}")
    return [row["loss"] for row in rows if "loss" in row]


def predictions(folder: Path) -> pa.Table:
    """Predictions of a run."""
    return pq.read_table(folder / "predictions.parquet")
