"""Note at the top of a page: limits of the bundled models, and the `note` of the configuration."""

from collections.abc import Iterable

from clipit.models.adapted_base import base_of_adapted


def compose_note(note: str, *, backbones: Iterable[str] = (), vlms: Iterable[str] = ()) -> str:
    """Compose the note shown above scores; empty if there is none.

    Args:
        note: Key `note` of the configuration.
        backbones: Names of the scored backbones.
        vlms: Names of the scored VLMs; an adapted VLM counts as its base.
    """
    used = [
        role for role, names in (("backbone", backbones), ("VLM", vlms)) if "embedded" in map(base_of_adapted, names)
    ]
    caution = (
        f"The bundled {' and '.join(used)} {'was' if len(used) == 1 else 'were'} trained only on synthetic tiles: on "
        "real tiles, these scores show only that the pipeline from reports to classifier works. They say nothing about "
        "CLIP-IT on real pathology."
    )
    return " ".join(part for part in (caution if used else "", note.strip()) if part)
