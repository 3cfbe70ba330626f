"""What robustness is measured of: the classifiers of finished runs and the VLM, each as vectors and what reads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from clipit.artifacts import file_sha256
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, explain
from clipit.evaluation.predictions import read_predictions, softmax
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.models.bundle import WEIGHTS, ZERO_SHOT
from clipit.models.inference import Classifier, load_classifier
from clipit.models.preprocess import Preprocess
from clipit.models.timm_backbones import open_timm
from clipit.prompts.prompt_set import check_classes
from clipit.studies.features import cached_features, classifier_fingerprint, run_facts, vlm_facts
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

HEAD, ZERO = "head", "zero-shot"
Vectors = dict[str, Float32[np.ndarray, "_ _"]]
"""Reading -> one vector per tile."""
Answer = Callable[[Float[np.ndarray, "n d"]], Float32[np.ndarray, "n c"]]
"""Vectors of a reading to class probabilities."""


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        name: As tables call it.
        preprocess: From a picture to its input.
        forward: Its input as uint8 pixels [b, 3, h, w] to one vector per tile for each reading.
        dims: Reading -> length of its vectors.
        answers: Reading -> what makes probabilities of its vectors.
        fingerprint: Of its weights.
        facts: What must stand beside each of its figures.
        fixed: Reading -> why its vectors cannot be adapted.
        run: The run's folder; None for the VLM.
    """

    name: str
    preprocess: Preprocess
    forward: Callable[[UInt8[np.ndarray, "b 3 h w"]], Vectors]
    dims: Mapping[str, int]
    answers: Mapping[str, Answer]
    fingerprint: str
    facts: Mapping[str, Any]
    fixed: Mapping[str, str] = field(default_factory=dict)
    run: Path | None = None


def run_subject(workspace: Workspace, run: Path, name: str) -> Subject:
    """The classifier of a finished run: its head, and its answers in words where it was taught text.

    Raises:
        ModelError: There is no classifier.
        DataError: It knows other classes, or the run was evaluated on other test tiles.
    """
    folder, device = run / "classifier", get_processes().device
    classifier = load_classifier(folder, device)
    spec, tiles = classifier.spec, workspace.all_tiles
    if spec.classes != tiles.classes:
        raise DataError(
            explain(
                f"the classifier knows {', '.join(spec.classes)}; the tiles have {', '.join(tiles.classes)}",
                where=folder,
                fix="give the run of this configuration",
            )
        )
    _check_tiles(run, tiles)
    answers: dict[str, Answer] = {HEAD: softmax}
    dims = {HEAD: len(spec.classes)}
    fixed = {}
    plain = _plain_model(folder, classifier) if spec.plain else None
    if plain is None:
        fixed[HEAD] = "its head is not one linear layer over the features"
    else:
        head = plain.get_classifier()
        dims[HEAD] = int(head.in_features)
        answers[HEAD] = _linear_answer(head)
    words = _class_embeddings(workspace, classifier)
    if words is not None and spec.vlm is not None:
        scale = float(spec.vlm["logit_scale"])
        dims[ZERO] = classifier.joint_dim
        answers[ZERO] = lambda vectors: zero_shot_probabilities(vectors, words, scale)
    projection = _projection(folder, device) if plain is not None and ZERO in dims else None

    def forward(pixels: UInt8[np.ndarray, "b 3 h w"]) -> Vectors:
        """Pooled features under the head (its logits where it is not linear), and predicted text embeddings."""
        with torch.inference_mode():
            inputs = spec.preprocess.normalise(torch.from_numpy(pixels).to(device))
            if plain is None:
                first, projected = classifier.forward(inputs)
            else:
                first = plain.forward_head(plain.forward_features(inputs), pre_logits=True)
                projected = None if projection is None else projection(first)
            found = {HEAD: np.asarray(first.float().cpu().numpy())}
            if ZERO in dims and projected is not None:
                found[ZERO] = np.asarray(projected.float().cpu().numpy())
        return found

    of_run, mark = run_facts(run), classifier_fingerprint(folder)
    facts = {"preprocess": spec.preprocess.hash, "pixels": spec.preprocess.size, **of_run, "seed": of_run["run_seed"]}
    facts |= {"model": str(folder), "fingerprint": mark, "weights": file_sha256(folder / WEIGHTS)}
    return Subject(name, spec.preprocess, forward, dims, answers, mark, facts, fixed, run)


def vlm_subject(config: RunConfig, workspace: Workspace) -> Subject | None:
    """The VLM's zero-shot answers as it comes (not centred); None without prompts."""
    if workspace.prompts is None:
        return None
    vlm = workspace.vlm
    words = prompt_embeddings(workspace.prompts, workspace.encode, None, workspace.all_tiles.classes)

    def forward(pixels: UInt8[np.ndarray, "b 3 h w"]) -> Vectors:
        """Image embeddings in the joint space."""
        found = vlm.encode_images(torch.from_numpy(pixels).to(vlm.device))
        return {ZERO: np.asarray(found.float().cpu().numpy())}

    answers = {ZERO: lambda vectors: zero_shot_probabilities(vectors, words, vlm.logit_scale)}
    facts = vlm_facts(workspace) | {"seed": config.seed}
    print_of = f"{vlm.fingerprint} {vlm.precision}"
    return Subject("VLM", vlm.preprocess, forward, {ZERO: vlm.joint_dim}, answers, print_of, facts)


def vectors_of(subject: Subject, tiles: TileSet, config: RunConfig, workspace: Workspace) -> Vectors:
    """The subject's vectors of some tiles, kept on disk; the processes share the work."""
    names = list(subject.dims)
    edges = np.cumsum([subject.dims[name] for name in names])

    def forward(pixels: UInt8[np.ndarray, "b 3 h w"]) -> Float32[np.ndarray, "b d"]:
        """The vectors of all readings, side by side."""
        found = subject.forward(pixels)
        return np.concatenate([found[name] for name in names], axis=1)

    source = workspace.other_pixels(tiles, subject.preprocess)
    inputs = {"tiles": tiles.fingerprint, "model": subject.fingerprint, "readings": dict(subject.dims)}
    size = config.evaluation.batch_size
    found = cached_features(workspace.root, inputs, source, int(edges[-1]), forward, size)
    return dict(zip(names, np.split(found, edges[:-1], axis=1), strict=True))


def spread(tiles: TileSet, most: int | None, *, labelled: bool) -> TileSet:
    """At most so many tiles, evenly spread over their ids (`labelled`: of those with a label, over classes and ids)."""
    keys = (tiles.ids, tiles.labels) if labelled else (tiles.ids,)
    order = np.lexsort(keys)
    if labelled:
        order = order[tiles.labels[order] >= 0]
    if most is not None and len(order) > most:
        order = order[(np.arange(most) * len(order)) // most]
    return tiles.select(np.sort(order))


def _plain_model(folder: Path, classifier: Classifier) -> Any:
    return open_timm(folder, classifier.spec.pooling).to(classifier.device).eval().requires_grad_(False)


def _linear_answer(head: torch.nn.Linear) -> Answer:
    weight = head.weight.detach().float().cpu().numpy()
    bias = np.zeros(len(weight), np.float32) if head.bias is None else head.bias.detach().float().cpu().numpy()
    return lambda vectors: softmax(vectors @ weight.T + bias)


def _projection(folder: Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(folder / ZERO_SHOT)
    weight, bias = tensors["projector.weight"].to(device), tensors["projector.bias"].to(device)
    return lambda features: torch.nn.functional.linear(features, weight, bias)


def _class_embeddings(workspace: Workspace, classifier: Classifier) -> Float32[np.ndarray, "c D"] | None:
    """One vector per class for the classifier's zero-shot answers; None where it has none, or there are no prompts."""
    prompts, spec = workspace.prompts, classifier.spec
    if prompts is None or spec.vlm is None or not spec.projector_layers:
        return None
    check_classes(prompts, spec.classes)
    cached = spec.provenance.get("prompt_hashes", {}).get(prompts.name) == prompts.hash
    texts = prompts.name if cached else {name: prompts.texts(name) for name in spec.classes}
    return np.asarray(classifier.prompt_embeddings(texts), dtype=np.float32)


def _check_tiles(run: Path, tiles: TileSet) -> None:
    found = read_predictions(run / "predictions.parquet").select("test")
    if set(found.ids.tolist()) != set(tiles.of_split("test").ids.tolist()):
        raise DataError(
            explain(
                "the run's predictions are of other test tiles",
                where=run / "predictions.parquet",
                fix="give the run of this configuration, with test among its evaluation.splits",
            )
        )
