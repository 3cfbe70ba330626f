"""Models of the robustness study (classifiers of finished runs and the VLM): their vectors and readouts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.predictions import read_run_predictions, softmax
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.models.classifier_spec import WEIGHTS, ZERO_SHOT
from clipit.models.inference import Classifier
from clipit.models.preprocess import Preprocess
from clipit.models.timm_backbones import open_timm
from clipit.output_files.artifacts import file_sha256
from clipit.runs.feature_stores import classifier_fingerprint, run_facts, store_features, vlm_facts
from clipit.runs.predict_tiles import open_classifier, zero_shot_embeddings
from clipit.studies.model_features import check_classes_match
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

HEAD, ZERO_SHOT_OUTPUT = "head", "zero-shot"
"""Model outputs that yield class probabilities: the classification head, and zero-shot prediction."""
Vectors = dict[str, Float32[np.ndarray, "_ _"]]
"""Vectors by output, one row per tile."""
Readout = Callable[[Float[np.ndarray, "n d"]], Float32[np.ndarray, "n c"]]
"""Function from the vectors of an output to class probabilities."""


@dataclass(frozen=True)
class MeasuredModel:
    """A model whose robustness is measured.

    Attributes:
        preprocess: Preprocessing of the model's input.
        forward: Function from input pixels (uint8 [b, 3, h, w], on this process's device) to the vectors of each
            output.
        dims: Dimension of the vectors by output.
        readouts: Function from vectors to class probabilities by output.
        not_adaptable: Reason why the vectors cannot be adapted, by output.
        run: Folder of the run; None for the VLM.
    """

    name: str
    preprocess: Preprocess
    forward: Callable[[UInt8[Tensor, "b 3 h w"]], Vectors]
    dims: Mapping[str, int]
    readouts: Mapping[str, Readout]
    fingerprint: str
    facts: Mapping[str, object]
    not_adaptable: Mapping[str, str] = field(default_factory=dict)
    run: Path | None = None


def load_run_model(workspace: Workspace, run: Path, name: str) -> MeasuredModel:
    """Load the classifier of a finished run, with its head and, if it was trained with text, its zero-shot output.

    Raises:
        ModelError: The run has no classifier.
        DataError: The classes differ from those of the tiles, or the run was evaluated on different test tiles.
    """
    folder, device = run / "classifier", get_processes().device
    classifier = open_classifier(workspace.config, run)
    spec, tiles = classifier.spec, workspace.all_tiles
    check_classes_match(spec.classes, tiles, folder)
    _check_test_tiles(run, tiles)
    readouts: dict[str, Readout] = {HEAD: softmax}
    dims = {HEAD: len(spec.classes)}
    not_adaptable = {}
    plain = _open_plain_model(folder, classifier) if spec.plain else None
    if plain is None:
        not_adaptable[HEAD] = "the head is not a single linear layer on the features"
    else:
        head = plain.get_classifier()
        dims[HEAD] = int(head.in_features)
        readouts[HEAD] = _linear_readout(head)
    class_embeddings = zero_shot_embeddings(classifier, workspace.prompts, spec.classes)
    if class_embeddings is not None and spec.vlm is not None:
        scale = float(spec.vlm["logit_scale"])
        dims[ZERO_SHOT_OUTPUT] = classifier.joint_dim
        readouts[ZERO_SHOT_OUTPUT] = lambda vectors: zero_shot_probabilities(vectors, class_embeddings, scale)
    project = _load_projection(folder, device) if plain is not None and ZERO_SHOT_OUTPUT in dims else None

    def forward(pixels: UInt8[Tensor, "b 3 h w"]) -> Vectors:
        """Return pooled features before the head (logits if the head is not linear) and predicted text embeddings."""
        with torch.inference_mode():
            inputs = spec.preprocess.normalise(pixels)
            if plain is None:
                features, projected = classifier.forward(inputs)
            else:
                features = plain.forward_head(plain.forward_features(inputs), pre_logits=True)
                projected = None if project is None else project(features)
            vectors = {HEAD: np.asarray(features.float().cpu().numpy())}
            if ZERO_SHOT_OUTPUT in dims and projected is not None:
                vectors[ZERO_SHOT_OUTPUT] = np.asarray(projected.float().cpu().numpy())
        return vectors

    provenance, weights = run_facts(run), classifier_fingerprint(folder)
    facts = {"preprocess": spec.preprocess.hash, "pixels": spec.preprocess.size, **provenance}
    facts |= {"seed": provenance["run_seed"], "model": str(folder), "fingerprint": weights}
    facts |= {"weights": file_sha256(folder / WEIGHTS)}
    return MeasuredModel(name, spec.preprocess, forward, dims, readouts, weights, facts, not_adaptable, run)


def load_vlm_model(config: RunConfig, workspace: Workspace) -> MeasuredModel | None:
    """Load the VLM for zero-shot predictions without centring; None without prompts."""
    if workspace.prompts is None:
        return None
    vlm = workspace.vlm
    class_embeddings = prompt_embeddings(workspace.prompts, workspace.encode, None, workspace.all_tiles.classes)

    def forward(pixels: UInt8[Tensor, "b 3 h w"]) -> Vectors:
        embeddings = vlm.encode_images(pixels)
        return {ZERO_SHOT_OUTPUT: np.asarray(embeddings.float().cpu().numpy())}

    readouts = {ZERO_SHOT_OUTPUT: lambda vectors: zero_shot_probabilities(vectors, class_embeddings, vlm.logit_scale)}
    fingerprint = f"{vlm.fingerprint} {vlm.precision}"
    facts = vlm_facts(workspace) | {"seed": config.seed, "fingerprint": fingerprint}
    dims = {ZERO_SHOT_OUTPUT: vlm.joint_dim}
    return MeasuredModel("VLM", vlm.preprocess, forward, dims, readouts, fingerprint, facts)


def compute_vectors(model: MeasuredModel, tiles: TileSet, config: RunConfig, workspace: Workspace) -> Vectors:
    """Compute the model's vectors for tiles, distributed over all processes and cached on disk."""
    outputs = list(model.dims)
    edges = np.cumsum([model.dims[output] for output in outputs])

    def forward(pixels: UInt8[Tensor, "b 3 h w"]) -> Float32[np.ndarray, "b d"]:
        vectors = model.forward(pixels)
        return np.concatenate([vectors[output] for output in outputs], axis=1)

    source = workspace.pixels_of(tiles, model.preprocess)
    inputs = {"tiles": tiles.fingerprint, "model": model.fingerprint, "outputs": dict(model.dims)}
    size = config.evaluation.batch_size
    store = store_features(workspace.root, inputs, source, int(edges[-1]), forward, size)
    features = store.rows(store.positions(source.tiles.ids))
    return dict(zip(outputs, np.split(features, edges[:-1], axis=1), strict=True))


def sample_tiles(tiles: TileSet, limit: int | None, *, labelled: bool) -> TileSet:
    """Sample at most `limit` tiles, evenly spaced in the order of their ids.

    Args:
        limit: Maximum number of tiles; None keeps all.
        labelled: Whether to keep only labelled tiles, and to sample each class in proportion to its size.
    """
    order = np.lexsort((tiles.ids, tiles.labels) if labelled else (tiles.ids,))
    if labelled:
        order = order[tiles.labels[order] >= 0]
    if limit is not None and len(order) > limit:
        order = order[(np.arange(limit) * len(order)) // limit]
    return tiles.select(np.sort(order))


def _open_plain_model(folder: Path, classifier: Classifier) -> Any:
    return open_timm(folder, classifier.spec.pooling).to(classifier.device).eval().requires_grad_(False)


def _linear_readout(head: torch.nn.Linear) -> Readout:
    weight = head.weight.detach().float().cpu().numpy()
    bias = np.zeros(len(weight), np.float32) if head.bias is None else head.bias.detach().float().cpu().numpy()
    return lambda vectors: softmax(vectors @ weight.T + bias)


def _load_projection(folder: Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(folder / ZERO_SHOT)
    weight, bias = tensors["projector.weight"].to(device), tensors["projector.bias"].to(device)
    return lambda features: torch.nn.functional.linear(features, weight, bias)


def _check_test_tiles(run: Path, tiles: TileSet) -> None:
    if not len(read_run_predictions(run, tiles).select("test").ids):
        raise DataError(
            "the run has no predictions for test tiles",
            where=run / "predictions.parquet",
            fix="use a run with this configuration, and with test in evaluation.splits",
        )
