"""Predict class probabilities for tiles with a run's classifier, distributed over all processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float32

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, LaunchError
from clipit.evaluation.predictions import Predictions, softmax
from clipit.evaluation.zero_shot import zero_shot_probabilities
from clipit.prompts.prompt_set import PromptSet, check_classes
from clipit.runs.prediction_inputs import class_embeddings
from clipit.tiles.batched import map_batches
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import TileSet

if TYPE_CHECKING:
    from clipit.config.run import VLMConfig
    from clipit.models.inference import Classifier


def open_classifier(config: RunConfig, folder: Path, classes: Sequence[str] | None = None) -> "Classifier":
    """Open the classifier in a run's folder on this process's device.

    Args:
        config: Run configuration; `backbone.trust_remote_code` allows code in the classifier's folder to run, and `vlm`
            is loaded for prompts that the classifier does not contain.
        classes: Expected class names, in order; None to skip the check.

    Raises:
        ArtifactError: The classifier belongs to a different run.
        DataError: The classifier's classes differ from `classes`.
    """
    from clipit.models.inference import load_classifier

    trust = config.backbone.trust_remote_code
    device = get_processes().device
    classifier = load_classifier(folder / "classifier", device, vlm=config.vlm, trust_remote_code=trust)
    if classes is not None and tuple(classes) != tuple(classifier.classes):
        raise DataError(
            f"the classifier has the classes {', '.join(classifier.classes)}; the tiles have {', '.join(classes)}",
            where=folder / "classifier",
            fix="set tiles.classes to the classifier's classes, in the same order, or use a different run",
        )
    return classifier


def open_exported(
    path: str | Path,
    device: str | None = None,
    *,
    vlm: "str | VLMConfig | None" = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> "Classifier":
    """Open an exported classifier on this process's device or a given device.

    Args:
        path: Folder of a classifier, or of a run that contains a classifier.
        device: Device; by default, the one chosen by the launcher, or else the GPU if there is one.
        vlm: VLM for prompts that the classifier does not contain, as for `load_classifier`.
        dtype: Data type of the backbone: `float32` (the default) or `bfloat16`.
        trust_remote_code: Whether Python code in a model's folder may run.

    Raises:
        LaunchError: A device is given, but there are several processes.
        ModelError: The classifier cannot be loaded (see `load_classifier`).
    """
    from clipit.models.inference import load_classifier

    processes = get_processes()
    if device is not None and processes.count > 1:
        raise LaunchError(
            "the launcher chooses the device of each process",
            where="--device",
            fix="remove --device; without GPUs, set ACCELERATE_USE_CPU=1",
        )
    return load_classifier(path, device or processes.device, vlm=vlm, dtype=dtype, trust_remote_code=trust_remote_code)


def zero_shot_embeddings(
    classifier: "Classifier", prompts: PromptSet | None, classes: Sequence[str]
) -> Float32[np.ndarray, "c D"] | None:
    """Embed the prompts of a run for zero-shot prediction; None if the run has no prompts or was trained without text.

    Args:
        classes: Class names, in the order of the rows.

    Raises:
        DataError: The classes of the prompt set differ from `classes`.
    """
    if prompts is None or classifier.spec.vlm is None or not classifier.spec.projector_layers:
        return None
    check_classes(prompts, classes)
    return class_embeddings(classifier, prompts, classes)


def predict_tiles(
    classifier: "Classifier",
    tiles: TileSet,
    source: PixelSource,
    embeddings: Float[np.ndarray, "c D"] | None,
    batch_size: int,
    title: str,
) -> Predictions:
    """Predict class probabilities and, with class embeddings, zero-shot probabilities for tiles.

    Args:
        tiles: Tiles to classify; their classes must be those of the classifier.
        source: Pixels of these tiles, in the same order; the labels, groups and classes of `source.tiles` are not used.
        embeddings: Class embeddings, in the order of the classes; None to skip zero-shot predictions.
        batch_size: Tiles per forward pass.
        title: Name of the tiles in the progress bar.
    """
    vlm = classifier.spec.vlm
    logits, projected = classifier_logits(classifier, source, batch_size, title)
    zero_shot = None
    if embeddings is not None and projected is not None and vlm is not None:
        zero_shot = zero_shot_probabilities(projected, embeddings, float(vlm["logit_scale"]))
    return Predictions(tiles.ids, tiles.splits, tiles.labels, tiles.groups, tiles.classes, softmax(logits), zero_shot)


def classifier_logits(
    classifier: "Classifier", source: PixelSource, batch_size: int, title: str
) -> tuple[Float32[np.ndarray, "n classes"], Float32[np.ndarray, "n dim"] | None]:
    """Predict logits and text embeddings (None without a projector) for all tiles of a source, in order."""

    def compute(pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        logits, projected = classifier.forward(classifier.spec.preprocess.normalise(pixels))
        return logits.float().cpu().numpy(), None if projected is None else projected.float().cpu().numpy()

    batches = map_batches(source, np.arange(len(source.tiles)), compute, batch_size, f"predicting {title}")
    embeddings = [projected for _, projected in batches if projected is not None]
    return np.concatenate([logits for logits, _ in batches]), np.concatenate(embeddings) if embeddings else None


def join_predictions(by_split: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of at least one split."""
    zero_shots = [each.zero_shot for each in by_split if each.zero_shot is not None]
    return Predictions(
        ids=np.concatenate([each.ids for each in by_split]),
        splits=np.concatenate([each.splits for each in by_split]),
        labels=np.concatenate([each.labels for each in by_split]),
        groups=np.concatenate([each.groups for each in by_split]),
        classes=by_split[0].classes,
        probabilities=np.concatenate([each.probabilities for each in by_split]),
        zero_shot=np.concatenate(zero_shots) if zero_shots else None,
    )
