"""Clipit/runs/soft_labels.py."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.errors import ConfigError, explain
from clipit.evaluation.predictions import softmax
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.stores.embed import centred
from clipit.tiles.tileset import TileSet
from clipit.training.soft_labels import soft_labels
from clipit.workspace.workspace import Workspace

Probabilities = Float32[np.ndarray, "n classes"]


def _as_taught(
    config: RunConfig, judge: Callable[[str], Probabilities] | None
) -> Callable[[str], Probabilities] | None:
    """The soft labels of a split, corrected as those of the training tiles are."""
    if judge is None:
        return None
    return lambda split: soft_labels(judge(split), config.soft_labels, judge("train")).probabilities


def _no_prompts(key: str) -> ConfigError:
    return ConfigError(
        explain("this needs class prompts, and no prompt set is configured", where=key, fix="set prompts: NAME or FILE")
    )


def _judge(
    config: RunConfig, workspace: Workspace, tiles: TileSet, image_only: Callable[[], Path]
) -> Callable[[str], Probabilities] | None:
    """Split -> probabilities of its tiles, from the source of the soft labels."""
    source = config.soft_labels.source
    if source == "none":
        return None
    if source == "zero_shot":
        return lambda split: _zero_shot(workspace, split, config.soft_labels.centred)
    if source == "vlm_probe":
        return _of_probe(workspace, tiles)
    folder = image_only()
    return lambda split: _of_classifier(config, workspace, folder, split)


def _zero_shot(workspace: Workspace, split: str, around_means: bool) -> Probabilities:
    """The VLM with the class prompts: as it comes, or centred as pairing is, on request."""
    if workspace.prompts is None:
        raise _no_prompts("soft_labels.source or distillation.target")
    means = (workspace.text_mean, workspace.tile_mean) if around_means else (None, None)
    classes = prompt_embeddings(workspace.prompts, workspace.encode, means[0], workspace.all_tiles.classes)
    store = workspace.tile_store(split)
    vectors = centred(store.rows(store.positions(workspace.all_tiles.of_split(split).ids)), means[1])
    return zero_shot_probabilities(vectors, classes, workspace.vlm.logit_scale)


def _of_probe(workspace: Workspace, tiles: TileSet) -> Callable[[str], Probabilities]:
    """A logistic regression on the VLM's image embeddings and the labels that the run sees: no text, no prompts."""
    from clipit.evaluation.probes import linear_probe

    def vectors(split: str) -> Float32[np.ndarray, "n dim"]:
        """The VLM's view of the tiles of a split."""
        store = workspace.tile_store(split)
        return store.rows(store.positions(tiles.of_split(split).ids))

    train, validation = tiles.of_split("train"), tiles.of_split("validation")
    probe = linear_probe(vectors("train"), train.labels, vectors("validation"), validation.labels, len(tiles.classes))
    return lambda split: probe.probabilities(vectors(split))


def _of_classifier(config: RunConfig, workspace: Workspace, folder: Path, split: str) -> Probabilities:
    """What the classifier of a run says of the tiles of a split."""
    from clipit.distributed import get_processes
    from clipit.models.inference import load_classifier
    from clipit.runs.predict import forward

    trust = config.backbone.trust_remote_code
    classifier = load_classifier(folder / "classifier", get_processes().device, trust_remote_code=trust)
    source = workspace.pixels(split, classifier.spec.preprocess)
    return softmax(forward(source, classifier, config, split)[0])
