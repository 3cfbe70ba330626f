"""Look up the base model of an adapted VLM, as recorded in the VLM's merged folder."""

from pathlib import Path

from clipit.errors import ModelError
from clipit.models.loading import OPEN_CLIP_CONFIG, read_json

ADAPTED_FROM = "adapted_from"
"""Key in the configuration of a merged folder that holds the public name of the model that was adapted."""


def base_of_adapted(name: str) -> str:
    """Return the model that a VLM was adapted from; its own name if it was not adapted, or this is not recorded.

    Args:
        name: Configured name, which may be the merged folder of an adaptation.
    """
    for file in (Path(name).expanduser() / config for config in (OPEN_CLIP_CONFIG, "config.json")):
        if file.is_file():
            try:
                return str(read_json(file).get(ADAPTED_FROM, name))
            except ModelError:
                return name  # reported when the model is loaded
    return name
