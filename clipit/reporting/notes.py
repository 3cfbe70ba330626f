"""The note at the top of a page: what the embedded models cannot show, and the configuration's own `note`."""

from collections.abc import Iterable


def compose_note(note: str, *, backbones: Iterable[str] = (), vlms: Iterable[str] = ()) -> str:
    """Compose the note shown above scores; empty if there is nothing to note.

    Args:
        note: Key `note` of the configuration.
        backbones: Names of the backbones that the scores come from.
        vlms: Names of the VLMs that the scores come from.
    """
    used = [role for role, names in (("backbone", backbones), ("VLM", vlms)) if "embedded" in names]
    caution = (
        f"The embedded {' and '.join(used)} {'has' if len(used) == 1 else 'have'} only seen synthetic tiles: on real "
        "tiles these scores prove that the path from reports to classifier works, and say nothing about CLIP-IT on "
        "real pathology."
    )
    return " ".join(part for part in (caution if used else "", note.strip()) if part)
