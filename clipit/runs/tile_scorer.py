"""Scorers for slide tiles: a classifier, or class prompts with a student or a VLM."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from clipit.config.data import SlidesConfig
from clipit.errors import ConfigError, ModelError
from clipit.evaluation.predictions import softmax
from clipit.evaluation.zero_shot import class_means, embed_prompt_set, prompt_embeddings
from clipit.output_files.artifacts import fingerprint
from clipit.runs.prediction_inputs import embed_classes
from clipit.runs.text_neighbours import TextNeighbours

if TYPE_CHECKING:
    from clipit.models.inference import Classifier
    from clipit.models.preprocess import Preprocess
    from clipit.models.vlm import VLM
    from clipit.prompts.prompt_set import PromptSet

_MAX_RATIO = 1.5  # a warning is logged if requested and expected resolution differ by more than this factor


@dataclass(frozen=True)
class TileScorer:
    """Model that assigns each tile one score per class.

    Attributes:
        classes: Class names, in the order of the scores.
        kind: `classifier` (scores are probabilities), `student` or `vlm` (scores are cosines with class prompts).
        title: Name of the model for pages and errors.
        compute: Function from uint8 pixels [b, 3, h, w] on the device to scores and, if the model has a joint space,
            unnormalised embeddings in it.
        mpp: Micrometres per pixel of the model's training tiles; None if unknown.
        tile_pixels: Edge length of the model's training tiles in pixels; None if unknown.
        logit_scale: Factor that turns cosine similarities into logits.
        facts: Provenance of the model and the prompts, which together determine the scores.
        prompts: Class prompts with their vectors; None for a model without text.
        vlm: Fingerprint of the VLM whose joint space contains the embeddings; None for a model without a joint space.
        text_mean: Mean subtracted from text embeddings in training; None if none was subtracted.
        draws: Class embeddings of sampled prompt sets, whose scores are pooled separately; None if there are none.
        mpp_assumed: Whether `mpp` is that of the backbone because the resolution of the training tiles is unknown.
    """

    classes: tuple[str, ...]
    kind: Literal["classifier", "student", "vlm"]
    title: str
    compute: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    preprocess: "Preprocess"
    device: torch.device
    mpp: float | None
    tile_pixels: int | None
    logit_scale: float
    facts: Mapping[str, Any]
    prompts: TextNeighbours | None = None
    vlm: str | None = None
    text_mean: Float32[np.ndarray, " dim"] | None = None
    draws: Float32[np.ndarray, "N C D"] | None = None
    mpp_assumed: bool = False

    @property
    def identity(self) -> str:
        """Fingerprint of everything that determines the scores."""
        return fingerprint([self.kind, self.classes, dict(self.facts)])

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
        """Resize and crop a tile."""
        return self.preprocess.pixels(image)

    def probabilities(self, scores: Float32[np.ndarray, "n c"]) -> Float32[np.ndarray, "n c"]:
        """Convert cosines to probabilities with a scaled softmax; a classifier's scores are already probabilities."""
        return scores if self.kind == "classifier" else softmax(scores * np.float32(self.logit_scale))


def classifier_scorer(classifier: "Classifier", prompts: "PromptSet | str | None" = None) -> TileScorer:
    """Build a scorer from a classifier, for its own classes or, with class prompts, for zero-shot classification.

    Args:
        prompts: Prompt set, or the name of a set that the classifier contains; None for the classifier's classes.

    Raises:
        ModelError: Prompts are given, but the classifier was trained without text.
    """
    spec = classifier.spec
    facts: dict[str, Any] = {
        "run": spec.provenance.get("run", "unknown"),
        "backbone": spec.provenance.get("backbone", {}).get("name", "unknown"),
        "weights": fingerprint(dict(spec.files)),
        "precision": str(classifier.dtype).removeprefix("torch."),
    }

    def probabilities(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, projected = classifier.forward(spec.preprocess.normalise(pixels))
        return logits.float().softmax(dim=1), projected

    vlm = str(spec.vlm["fingerprint"]) if spec.vlm is not None and spec.projector_layers else None
    if prompts is None:
        return TileScorer(
            tuple(spec.classes), "classifier", f"classifier {facts['run']}", probabilities, spec.preprocess,
            classifier.device, spec.mpp, spec.tile_pixels, 1.0, facts, _own_prompts(classifier), vlm,
            classifier.text_mean,
            mpp_assumed=spec.mpp_assumed,
        )  # fmt: skip
    zero_shot = embed_classes(classifier, prompts)
    vectors = torch.from_numpy(zero_shot.embeddings).to(classifier.device)

    def cosines(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        _, projected = classifier.forward(spec.preprocess.normalise(pixels))
        if projected is None:
            raise ModelError("this classifier has no projector", fix="use a classifier that was trained with text")
        return torch.nn.functional.normalize(projected.float(), dim=1) @ vectors.T, projected

    facts |= {"prompts": zero_shot.source, "prompt_vectors": fingerprint(zero_shot.embeddings.tolist())}
    return TileScorer(
        zero_shot.classes, "student", f"student {facts['run']}, zero-shot with {zero_shot.source}", cosines,
        spec.preprocess, classifier.device, spec.mpp, spec.tile_pixels, zero_shot.logit_scale, facts,
        TextNeighbours(zero_shot.classes, [""] * len(zero_shot.classes), zero_shot.embeddings.__getitem__), vlm,
        classifier.text_mean, mpp_assumed=spec.mpp_assumed,
    )  # fmt: skip


def _own_prompts(classifier: "Classifier") -> TextNeighbours | None:
    """Return the class embeddings of a classifier's first prompt set, with class names as texts.

    A classifier contains the embeddings of its prompts, but not their texts.
    """
    name = next(iter(classifier.spec.prompts), None)
    if name is None:
        return None
    vectors = classifier.prompt_embeddings(name).astype(np.float32)
    classes = classifier.spec.prompts[name]
    return TextNeighbours(classes, [name] * len(classes), vectors.__getitem__)


def vlm_scorer(vlm: "VLM", prompts: "PromptSet", draws: Sequence["PromptSet"] = ()) -> TileScorer:
    """Build a zero-shot scorer from a VLM and class prompts.

    Args:
        vlm: Frozen VLM on this process's device.
        prompts: Prompt set; the embeddings of each class's prompts are averaged.
        draws: Prompt sets sampled from a published file; each set is also scored separately.
    """
    texts = embed_prompt_set(prompts, vlm.encode_prompts)
    vectors = torch.from_numpy(class_means(texts)).to(vlm.device)
    neighbours = TextNeighbours(
        texts.texts, [texts.classes[code] for code in texts.class_of.tolist()], texts.vectors.__getitem__
    )

    def cosines(pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        embeddings = vlm.encode_images(pixels)
        return torch.nn.functional.normalize(embeddings, dim=1) @ vectors.T, embeddings

    facts = {
        "vlm": vlm.name,
        "vlm_fingerprint": vlm.fingerprint,
        "precision": vlm.precision,
        "prompts": prompts.name,
        "prompt_hash": prompts.hash,
    }
    if draws:
        facts["prompt_draws"] = f"{len(draws)} ({fingerprint([each.hash for each in draws])})"
    sampled = [prompt_embeddings(each, vlm.encode_prompts, classes=texts.classes) for each in draws]
    return TileScorer(
        tuple(prompts.classes), "vlm", f"VLM {vlm.name}, zero-shot with {prompts.name}", cosines, vlm.preprocess,
        vlm.device, vlm.expected_mpp, None, vlm.logit_scale, facts, neighbours, vlm.fingerprint,
        draws=np.stack(sampled) if sampled else None,
    )  # fmt: skip


def choose_tiling(scorer: TileScorer, requested: SlidesConfig, stated: Sequence[str]) -> tuple[SlidesConfig, list[str]]:
    """Choose the resolution and size of tiles: the requested ones, or else those of the training tiles.

    Args:
        requested: Tiling options; `mpp` and `pixels` are used only if `stated` contains them.
        stated: Which of the options `mpp` and `pixels` the user has set.

    Returns:
        Tiling options, and warnings.

    Raises:
        ConfigError: The resolution of the model's training tiles is unknown, and the user has not set `mpp`.
    """
    changes: dict[str, Any] = {}
    warnings = []
    if "mpp" not in stated:
        if scorer.mpp is None:
            raise ConfigError(
                "the resolution of the model's training tiles is unknown",
                where=scorer.title,
                fix="pass the resolution in micrometres per pixel, for example --tile-mpp 0.5",
            )
        changes["mpp"] = scorer.mpp
        if scorer.mpp_assumed:
            warnings.append(
                f"the resolution of the training tiles is unknown, so tiles are read at {scorer.mpp:g} µm per "
                "pixel, which the backbone expects; if the training tiles had a different resolution, pass --tile-mpp"
            )
    elif scorer.mpp is not None and not 1 / _MAX_RATIO <= requested.mpp / scorer.mpp <= _MAX_RATIO:
        warnings.append(f"tiles are read at {requested.mpp:g} µm per pixel; the model expects {scorer.mpp:g}")
    if "pixels" not in stated:
        changes["pixels"] = scorer.tile_pixels or scorer.preprocess.size
    return requested.model_copy(update=changes), warnings
