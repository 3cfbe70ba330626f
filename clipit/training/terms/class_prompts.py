"""Class prompts for loss terms: their embeddings, and the VLM's zero-shot probabilities."""

import numpy as np
from jaxtyping import Float32

from clipit.errors import ConfigError
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.training.terms.term import Probabilities
from clipit.vectors import centred
from clipit.workspace.workspace import Workspace


def required_class_embeddings(workspace: Workspace, key: str) -> Float32[np.ndarray, "classes dim"]:
    """Return the embeddings of the class prompts, which must be configured.

    Args:
        key: Configuration key that needs the embeddings, for the error message.

    Raises:
        ConfigError: No prompt set is configured.
    """
    embeddings = workspace.class_embeddings()
    if embeddings is None:
        raise _without_prompts(key)
    return embeddings


def zero_shot(workspace: Workspace, split: str, *, centre: bool) -> Probabilities:
    """Compute the VLM's zero-shot class probabilities for all tiles of a split.

    Args:
        centre: Whether to subtract the mean of each modality, as pairing does.

    Raises:
        ConfigError: No prompt set is configured.
    """
    if workspace.prompts is None:
        raise _without_prompts("soft_labels.source or distillation.target")
    text_mean, tile_mean = (workspace.text_mean, workspace.tile_mean) if centre else (None, None)
    classes = prompt_embeddings(workspace.prompts, workspace.encode, text_mean, workspace.all_tiles.classes)
    store = workspace.tile_store(split)
    vectors = centred(store.rows(store.positions(workspace.all_tiles.of_split(split).ids)), tile_mean)
    return zero_shot_probabilities(vectors, classes, workspace.vlm.logit_scale)


def _without_prompts(key: str) -> ConfigError:
    return ConfigError(
        "class prompts are needed, but no prompt set is configured",
        where=key,
        fix="set the key prompts to a file or the name of a packaged set",
    )
