"""What every row of the three studies must carry; one list for all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

FILLED = (
    "subject", "split", "classes", "metric", "tiles_fingerprint", "pixels", "preprocess", "model", "fingerprint",
    "seed", "versions", "command",
)  # fmt: skip
PRESENT = ("prompts", "prompts_hash", "vlm", "vlm_fingerprint", "index", "commit")
"""Empty where they had no part in the figure, or there is no checkout."""


def lacking(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that are not there, or empty in some row though they must not be."""
    if not rows:
        return ["rows"]
    missing = [key for key in (*FILLED, *PRESENT) if key not in rows[0]]
    return missing + [key for key in FILLED if key not in missing and any(row[key] in (None, "") for row in rows)]
