"""A classifier over tiles, shared by all processes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, explain
from clipit.evaluation.predictions import Predictions, softmax
from clipit.evaluation.zero_shot import zero_shot_probabilities
from clipit.progress import progress
from clipit.prompts.prompt_set import check_classes
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.inference import Classifier
    from clipit.tiles.pixel_source import PixelSource


def _check_classes(classifier: "Classifier", tiles: TileSet, folder: Path) -> None:
    if classifier.classes != tiles.classes:
        raise DataError(
            explain(
                f"the classifier knows {', '.join(classifier.classes)}; the tiles have {', '.join(tiles.classes)}",
                where=folder / "classifier",
                fix="give tiles.classes in the classifier's order, or the right run",
            )
        )


def _predict(
    config: RunConfig,
    workspace: Workspace,
    classifier: "Classifier",
    source: "PixelSource",
    class_names: tuple[str, ...],
    title: str,
) -> Predictions:
    part = source.tiles
    logits, projected = forward(source, classifier, config, title)
    zero_shot = None
    vlm, prompts = classifier.spec.vlm, workspace.prompts
    if projected is not None and vlm is not None and prompts is not None:
        check_classes(prompts, class_names)
        cached = classifier.spec.provenance.get("prompt_hashes", {}).get(prompts.name) == prompts.hash
        texts = prompts.name if cached else {name: prompts.texts(name) for name in class_names}
        embeddings = classifier.prompt_embeddings(texts)
        zero_shot = zero_shot_probabilities(projected, embeddings, float(vlm["logit_scale"]))
    return Predictions(part.ids, part.splits, part.labels, part.groups, class_names, softmax(logits), zero_shot)


def forward(
    source: "PixelSource", classifier: "Classifier", config: RunConfig, split: str
) -> tuple[Float32[np.ndarray, "n classes"], Float32[np.ndarray, "n dim"] | None]:
    """Logits and predicted text embeddings of all tiles; the processes share the batches."""
    processes, size, n = get_processes(), config.evaluation.batch_size, len(source.tiles)
    batches = [np.arange(start, min(start + size, n)) for start in range(0, n, size)]
    own: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    with (
        torch.inference_mode(),
        progress(f"predicting {split}", len(batches), shown=processes.main) as advance,
    ):
        for rows, pixels in source.ahead(processes.share(batches)):
            inputs = classifier.spec.preprocess.normalise(torch.from_numpy(pixels).to(processes.device))
            logits, projected = classifier.forward(inputs)
            own[int(rows[0])] = (
                logits.float().cpu().numpy(),
                None if projected is None else projected.float().cpu().numpy(),
            )
            advance(processes.count)
    merged: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    for share in processes.gather(own):
        merged |= share
    in_order = [merged[int(rows[0])] for rows in batches]
    embeddings = [projected for _, projected in in_order if projected is not None]
    return np.concatenate([logits for logits, _ in in_order]), np.concatenate(embeddings) if embeddings else None


def _joined(parts: list[Predictions]) -> Predictions:
    if not parts:
        raise DataError(
            explain("none of the splits to evaluate has tiles", where="evaluation.splits", fix="name splits that exist")
        )
    zero_shots = [part.zero_shot for part in parts if part.zero_shot is not None]
    return Predictions(
        ids=np.concatenate([part.ids for part in parts]),
        splits=np.concatenate([part.splits for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        classes=parts[0].classes,
        probabilities=np.concatenate([part.probabilities for part in parts]),
        zero_shot=np.concatenate(zero_shots) if zero_shots else None,
    )
