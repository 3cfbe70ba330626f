"""clipit: tiles, unpaired reports and a frozen vision-language model in; an image-only classifier out."""

import os
from typing import TYPE_CHECKING, Any

# OpenMP's threads spin while they wait for each other. If anything else runs on the same cores, that slows small models
# down twentyfold; waiting passively costs next to nothing. torch reads the variable at import, so it is set before.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from clipit.models.inference import load_classifier

__all__ = ["load_classifier"]


def __dir__() -> list[str]:
    """List the public names, also those that are imported at first use."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import `load_classifier`, and with it torch, at first use."""
    if name == "load_classifier":
        from clipit.models.inference import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
