"""The note at the top of a page: what the embedded models cannot show, and the configuration's own `note`."""

from collections.abc import Iterable

from clipit.models.adapted_base import base_of_adapted


def compose_note(note: str, *, backbones: Iterable[str] = (), vlms: Iterable[str] = ()) -> str:
    """Compose the note shown above scores; empty if there is nothing to note.

    Args:
        note: Key `note` of the configuration.
        backbones: Names of the backbones that the scores come from.
        vlms: Names of the VLMs that the scores come from; an adapted VLM counts as the one that was adapted.
    """
    used = [
        role for role, names in (("backbone", backbones), ("VLM", vlms)) if "embedded" in map(base_of_adapted, names)
    ]
    caution = (
        f"The embedded {' and '.join(used)} {'has' if len(used) == 1 else 'have'} only seen synthetic tiles: on real "
        "tiles these scores prove that the path from reports to classifier works, and say nothing about CLIP-IT on "
        "real pathology."
    )
    return " ".join(part for part in (caution if used else "", note.strip()) if part)
