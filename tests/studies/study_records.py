"""Provenance columns required in the rows of every study."""

from collections.abc import Mapping, Sequence
from typing import Any

FILLED = (
    "subject", "split", "classes", "metric", "tiles_fingerprint", "pixels", "preprocess", "model", "fingerprint",
    "seed", "versions", "command",
)  # fmt: skip
PRESENT = ("prompts", "prompts_hash", "vlm", "vlm_fingerprint", "index", "commit")
"""Columns that may be empty, because the score does not use them or the code is not in a git checkout."""


def missing_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Required columns that are absent, or empty in some row."""
    if not rows:
        return ["rows"]
    missing = [key for key in (*FILLED, *PRESENT) if key not in rows[0]]
    return missing + [key for key in FILLED if key not in missing and any(row[key] in (None, "") for row in rows)]
