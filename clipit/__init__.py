"""clipit: tiles, unpaired reports and a frozen vision-language model in; an image-only classifier out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipit.models.inference import load_classifier

__all__ = ["load_classifier"]


def __getattr__(name: str) -> Any:
    """Import torch only when something needs it."""
    if name == "load_classifier":
        from clipit.models.inference import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
