"""Frozen vision-language models, with one interface for all libraries that load them: `VLM` and `load_vlm`."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from clipit.config.run import VLMConfig
from clipit.errors import DataError, ModelError, counted, counted_of, shortlist
from clipit.input_files.folder_files import is_unicode
from clipit.models.adapted_base import check_files
from clipit.models.loading import expected_mpp, foreign_errors, weights_fingerprint
from clipit.models.open_clip_files import has_quick_gelu
from clipit.models.open_clip_vlm import TRUST
from clipit.models.precision import tf32_products
from clipit.models.preprocess import Preprocess
from clipit.models.remote_code import guard_remote_code
from clipit.models.specs import check_spec
from clipit.models.token_grids import no_tokens
from clipit.models.towers import Towers
from clipit.models.trunks import cpu_parts
from clipit.models.vlm_adapter import merge_vlm_adapter, read_vlm_adapter
from clipit.models.vlm_sources import other_towers, table_towers
from clipit.models.vlm_specs import VLMS
from clipit.models.weights import check_finite_weights

logger = logging.getLogger(__name__)

Space = Literal["joint", "raw"]
"""The joint space of images and texts, or the image tower's features before the projection into it."""

_LONG_TEXT = "Moderately differentiated adenocarcinoma, grade 2; margins free."
_SHORT_TEXT = "Mucin"
_TOLERANCE = 1e-3
"""Maximum relative distance between the embeddings of a text encoded alone and in a batch."""
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class VLM:
    """A frozen vision-language model.

    Attributes:
        source: Folder, Hub id or built-in name that it was loaded from.
        raw_dim: Dimension of image features before the projection; None if the VLM has none.
        context_length: Maximum number of tokens of a text, including special tokens.
        expected_mpp: Micrometres per pixel of its training tiles; None if unknown.
        logit_scale: Learnt factor that multiplies cosine similarities.
        fingerprint: Fingerprint of weights, preprocessing and tokeniser, independent of the precision.
        precision: `fp32`, or the data type of autocast.
        quick_gelu: Configured value; None to follow the model's own configuration or its entry in `VLMS`.
        adapter: Base VLM, tuning and towers of the merged adapter; None without an adapter.
    """

    name: str
    source: str
    preprocess: Preprocess
    joint_dim: int
    raw_dim: int | None
    context_length: int
    expected_mpp: float | None
    logit_scale: float
    fingerprint: str
    precision: str
    device: torch.device
    towers: Towers = field(repr=False, compare=False)
    quick_gelu: bool | None = None
    note: str = ""
    adapter: Mapping[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Describe the VLM for manifests and classifiers (JSON-serialisable)."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "joint_dim": self.joint_dim,
            "context_length": self.context_length,
            "logit_scale": self.logit_scale,
            "expected_mpp": self.expected_mpp,
            "quick_gelu": self.quick_gelu,
            "note": self.note,
            "preprocess": self.preprocess.describe(),
            **({} if self.adapter is None else {"adapter": dict(self.adapter)}),
        }

    @property
    def image_parameters(self) -> int:
        """Number of weights of the image tower and its projection."""
        return sum(p.numel() for name, p in self.towers.module.named_parameters() if self.towers.is_image_weight(name))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count tokens per text, including special tokens, without truncation."""
        return list(self.towers.count_tokens(_as_list(texts)))

    def count_truncated(self, texts: Sequence[str]) -> tuple[int, int]:
        """Return the number of texts that exceed the context length, and the total number of excess tokens."""
        excess = [count - self.context_length for count in self.count_tokens(texts) if count > self.context_length]
        return len(excess), sum(excess)

    def warn_truncated(self, texts: Sequence[str]) -> None:
        """Log a warning if some texts exceed the context length."""
        truncated, tokens = self.count_truncated(texts)
        if truncated:
            logger.warning(
                f"{counted_of(truncated, len(texts), 'text exceeds', 'texts exceed')} the context length "
                f"of {self.name} ({self.context_length} tokens); {counted(tokens, 'token is', 'tokens are')} dropped"
                " in total"
            )

    def encode_prompts(self, texts: Sequence[str]) -> Float32[np.ndarray, "b d"]:
        """Encode prompts as un-normalised embeddings; long texts are truncated with a warning."""
        self.warn_truncated(texts)
        vectors: Float32[np.ndarray, "b d"] = self.encode_texts(texts, truncate=True).cpu().numpy()
        return vectors

    def dim(self, space: Space) -> int:
        """Return the dimension of an image embedding in this space.

        Raises:
            ModelError: The VLM has no features before its projection.
        """
        if space == "joint":
            return self.joint_dim
        if self.raw_dim is None:
            raise ModelError(
                "this VLM has no image features before its projection (its pooling includes the projection)",
                where=self.name,
                fix="use the joint space, or a different VLM",
            )
        return self.raw_dim

    def encode_images(
        self, pixels: UInt8[torch.Tensor, "b 3 h w"], *, space: Space = "joint"
    ) -> Float[torch.Tensor, "b d"]:
        """Encode pixels from `preprocess.pixels` as un-normalised float32 embeddings.

        Raises:
            ModelError: The pixels do not have the size that the preprocessing produces, or the VLM has no such space.
        """
        self.dim(space)
        size = self.preprocess.size
        if tuple(pixels.shape[-2:]) != (size, size):
            raise ModelError(
                f"expected images of {size} x {size} pixels, got {tuple(pixels.shape[-2:])}",
                where=self.name,
                fix="prepare them with this VLM's preprocess.pixels",
            )
        with torch.inference_mode(), self._autocast():
            encode = self.towers.raw if space == "raw" and self.towers.raw else self.towers.image
            normalised = self.preprocess.normalise(pixels.to(self.device))
            embeddings = torch.cat([encode(part) for part in cpu_parts(normalised)])
        return embeddings.float().clone()  # cloned, because an inference tensor cannot be a training target

    def encode_patches(self, pixels: Float[torch.Tensor, "b 3 s s"]) -> Float[torch.Tensor, "b h w d"]:
        """Encode normalised pixels as un-normalised float32 patch tokens in the joint space.

        Raises:
            ModelError: The VLM has no patch tokens.
        """
        if self.towers.tokens is None:
            raise no_tokens(self.name, "its pooling and projection cannot be applied to single patches")
        with self._autocast():
            return self.towers.tokens(pixels).float()

    def encode_texts(self, texts: Sequence[str], *, truncate: bool = False) -> Float[torch.Tensor, "b d"]:
        """Encode texts as un-normalised float32 embeddings.

        Raises:
            ModelError: A text exceeds the context length and `truncate` is False.
        """
        texts = _as_list(texts)
        if not texts:
            return torch.zeros(0, self.joint_dim, device=self.device)
        if not truncate:
            counts = self.count_tokens(texts)
            too_long = [
                f"{count}: {text[:60]!r}"
                for text, count in zip(texts, counts, strict=True)
                if count > self.context_length
            ]
            if too_long:
                raise ModelError(
                    f"{counted(len(too_long), 'text has', 'texts have')} more than {self.context_length} tokens: "
                    f"{shortlist(too_long, 3)}",
                    where=self.name,
                    fix="split them, or pass truncate=True",
                )
        with torch.inference_mode(), self._autocast():
            tokens = {key: value.to(self.device) for key, value in self.towers.tokenise(texts).items()}
            try:
                embeddings = self.towers.text(tokens)
            except IndexError as error:  # an id beyond the end of the embedding table
                raise ModelError(
                    f"a text contains a token for which the text tower has no embedding: {error}",
                    where=self.towers.source,
                    fix="use the tokeniser files of this model; tokens that were added to a tokeniser need a text "
                    "tower that was trained with them",
                ) from error
        return embeddings.float().clone()

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        dtype = _DTYPES.get(self.precision)
        with (
            tf32_products(self.device),
            torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            yield


def load_vlm(config: VLMConfig, device: torch.device | str = "cpu") -> VLM:
    """Load and freeze the VLM of a configuration.

    Raises:
        ModelError: The name is unknown, files are missing, weights are gated or missing, the model differs from its
            entry in `VLMS`, embeds a text differently in a batch, or rejects images of the size that its preprocessing
            produces; or its adapter is missing, damaged or made for a different VLM.
        ConfigError: A path is given for a name that is not in `VLMS`.
    """
    device = torch.device(device)
    spec = VLMS.get(config.name)
    check_files(config.path or config.name)
    with guard_remote_code(config.trust_remote_code, TRUST):
        towers = other_towers(config) if spec is None else table_towers(spec, config)
    towers.module.eval().requires_grad_(False)
    check_finite_weights(dict(towers.module.named_parameters()), towers.source, "copy the model's files again")
    if not (math.isfinite(towers.logit_scale) and towers.logit_scale > 0):
        raise ModelError(
            f"the logit scale must be positive and finite, not {towers.logit_scale}",
            where=towers.source,
            fix="check logit_scale in the weights; it stores the logarithm of the scale",
        )
    with foreign_errors(
        config.name,
        hint="The tokeniser files may be incomplete, or belong to a different model.",
        where=towers.source,
    ):
        towers.count_tokens([_LONG_TEXT])
        joint_dim = _check_batches(towers)
    size = towers.preprocess.size
    hint = f"The preprocessing file, which sets {size} x {size} pixels, may belong to a different model."
    with foreign_errors(config.name, hint=hint, where=towers.source), torch.inference_mode():
        embedded = towers.image(torch.zeros(1, 3, size, size))
    if getattr(embedded, "shape", None) != (1, joint_dim):
        raise ModelError(
            f"the image tower does not return one vector of {joint_dim} dimensions, as the text tower does",
            where=towers.source,
            fix="check the vision section of the model's configuration, such as output_tokens and embed_dim",
        )
    fingerprint = vlm_fingerprint(towers)
    adapter: dict[str, Any] | None = None
    if config.adapter is not None:
        folder = Path(config.adapter).expanduser()
        adapter = {key: value for key, value in read_vlm_adapter(folder).items() if key in ("base", "tuning", "towers")}
        towers = merge_vlm_adapter(towers, fingerprint, folder)
        fingerprint = vlm_fingerprint(towers)
        _check_batches(towers)
    if spec is not None:
        check_spec(spec, _listed_properties(towers, joint_dim), towers.source)
    towers.module.to(device)
    return VLM(
        name=config.name,
        source=towers.source,
        preprocess=towers.preprocess,
        joint_dim=joint_dim,
        raw_dim=towers.raw_dim,
        context_length=towers.context_length,
        expected_mpp=(spec.expected_mpp if spec else None) or expected_mpp(towers.source),
        logit_scale=towers.logit_scale,
        fingerprint=fingerprint,
        precision=config.precision,
        device=device,
        towers=towers,
        quick_gelu=config.quick_gelu,
        note=spec.note if spec else "",
        adapter=adapter,
    )


def vlm_fingerprint(towers: Towers) -> str:
    """Compute the fingerprint of weights, preprocessing and tokeniser."""
    quick = ("quick_gelu",) if has_quick_gelu(towers.module) else ()
    words = sorted((number, word) for word, number in towers.vocabulary.items())
    ids = (*(value.tolist() for value in towers.tokenise([_LONG_TEXT]).values()), *words)
    return weights_fingerprint(towers.module, towers.preprocess.hash, towers.context_length, *ids, *quick)


def _check_batches(towers: Towers) -> int:
    """Check that a short text has the same embedding alone and in a batch; return the dimension.

    Raises:
        ModelError: The embeddings differ, so that pairs would depend on the batch size; they are not finite; or both
            texts have the same embedding.
    """
    with torch.inference_mode():
        alone = towers.text(towers.tokenise([_SHORT_TEXT]))[0]
        in_batch, longer = towers.text(towers.tokenise([_SHORT_TEXT, _LONG_TEXT]))
    if torch.isfinite(alone).all() and torch.equal(in_batch, longer):
        raise ModelError(
            "different texts have the same embedding, as if the text tower did not find the end of a text",
            where=towers.source,
            fix="check the tokeniser's end token against eos_token_id in config.json; the tokeniser files may belong "
            "to a different model",
        )
    distance = float((alone - in_batch).norm() / alone.norm())
    if not distance <= _TOLERANCE:  # also true for NaN
        raise ModelError(
            f"the embedding of a text depends on the other texts in its batch (relative distance {distance:.2g})"
            if math.isfinite(distance)
            else "the embedding of a text is zero or not finite",
            where=towers.source,
            fix="check the tokeniser's padding token and the weights; they may belong to a different model",
        )
    return int(alone.shape[-1])


def _listed_properties(towers: Towers, joint_dim: int) -> dict[str, Any]:
    """Return the properties of loaded towers that a table entry also states."""
    preprocess = towers.preprocess
    return {
        "dim": joint_dim,
        "raw_dim": towers.raw_dim,
        "pixels": preprocess.size,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": preprocess.interpolation,
        "context_length": towers.context_length,
    }


def _as_list(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise ModelError(
            "expected a list of texts, got a single string", where=repr(texts[:60]), fix="pass a list: [text]"
        )
    if wrong := [text for text in texts if not is_unicode(text)]:
        raise DataError(f"a text is not valid UTF-8: {shortlist(wrong, 1)}", where="texts", fix="correct the text")
    return list(texts)
