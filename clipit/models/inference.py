"""Inference with an exported classifier: classes, probabilities and zero-shot classification."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipit.config.argument_types import checked_arguments
from clipit.config.run import VLMConfig
from clipit.errors import DataError, ModelError, counted, is_out_of_memory, out_of_memory
from clipit.images.device_copies import copy_ahead, stack
from clipit.images.read_ahead import check_batches, read_ahead, reading_threads
from clipit.models.classifier_checks import check_network, check_timm_preprocess, check_transformers_preprocess
from clipit.models.classifier_network import ClassifierNetwork, parse_device, parse_dtype, require_pixels
from clipit.models.classifier_spec import (
    COPY_AGAIN,
    HEADS,
    WEIGHTS,
    ZERO_SHOT,
    ClassifierSpec,
    check_tensors,
    read_spec,
    verify_files,
)
from clipit.models.hub import classifier_folder
from clipit.models.loading import foreign_errors
from clipit.models.pictures import CropWatch, Images, open_pictures
from clipit.models.remote_code import guard_remote_code
from clipit.models.text_vlm import load_text_vlm
from clipit.models.timm_backbones import open_timm
from clipit.models.transformers_backbones import open_transformers
from clipit.models.trunks import channels_last, cpu_parts, inner_model
from clipit.models.vlm import VLM
from clipit.models.weights import check_finite_weights, read_tensors
from clipit.torch_defaults import torch_defaults

Prompts = Mapping[str, Sequence[str] | str | np.ndarray | Tensor]
"""Mapping from class to its texts, or to their embeddings from the classifier's VLM ([D] or [n,D])."""


class Classifier:
    """Image-only classifier, loaded with `load_classifier`.

    Attributes:
        classes: Class names, in the order of the probabilities.
        spec: Description of the classifier.
        device: Device of the model.
    """

    def __init__(
        self,
        spec: ClassifierSpec,
        network: ClassifierNetwork,
        zero_shot: Mapping[str, Tensor],
        vlm: str | VLMConfig | None,
        trust_remote_code: bool = False,
    ) -> None:
        """Assemble the parts read by `load_classifier`."""
        self.spec = spec
        self.classes = spec.classes
        self.network = network
        self.device = next(network.parameters()).device
        self._compute: Callable[[Tensor], tuple[Tensor, Tensor | None]] = network
        self._tensors = zero_shot
        self._vlm_given = vlm
        self._vlm: VLM | None = None
        self._crops = CropWatch(spec.preprocess.crops)
        self._trust_remote_code = trust_remote_code

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None) -> "Classifier":
        """Move the classifier to a device or convert its backbone to another data type, and return the classifier.

        Heads and outputs stay in float32. Weights that were rounded to bfloat16 stay rounded after a conversion back to
        float32.

        Args:
            device: Device, such as `cuda:1`; None keeps the current one.
            dtype: `float32` or `bfloat16` (`bf16`); None keeps the current one.

        Raises:
            ModelError: The device does not exist on this machine, or the data type is not supported.
        """
        if dtype is not None:
            self.network.backbone.to(parse_dtype(dtype))
        if device is not None:
            self.device = parse_device(device)
            self.network.to(self.device)
        return self

    def compile(self, **options: Any) -> "Classifier":
        """Compile the network with `torch.compile`, run it once to report errors early, and return the classifier.

        The first batch of a different size triggers one recompilation, with dynamic shapes.

        Args:
            options: Arguments of `torch.compile`, such as `mode="max-autotune"`.

        Raises:
            ModelError: The network cannot be compiled on this machine.
        """
        self._compute = torch.compile(self.network, **options)
        size = self.spec.preprocess.size
        try:
            self.forward(torch.zeros(2, 3, size, size).contiguous(memory_format=torch.channels_last))
        except Exception as error:  # the compiler's packages raise many types of exception
            self._compute = self.network
            if is_out_of_memory(error):
                raise out_of_memory(error) from error
            raise ModelError(
                f"torch.compile failed: {' '.join(str(error).split())[:300]}",
                where="compile",
                fix="install a C++ compiler (on a GPU also Triton), or load the classifier without compile",
            ) from error
        return self

    def predict(self, images: Images, *, batch_size: int = 64, workers: int = 0) -> list[str]:
        """Predict the most probable class of each image; the arguments are those of `predict_proba`."""
        probabilities = self.predict_proba(images, batch_size=batch_size, workers=workers)
        return [self.classes[int(best)] for best in probabilities.argmax(axis=1)]

    def predict_proba(self, images: Images, *, batch_size: int = 64, workers: int = 0) -> Float[np.ndarray, "n C"]:
        """Predict class probabilities, one row per image, in the order of `classes`.

        Args:
            images: Images as paths, arrays or PIL images; or a folder or zip file, whose images are read in order of
                their paths. Slides are rejected; use `clipit.predict` to classify their tissue tiles.
            batch_size: Images per batch.
            workers: Threads that read images while the model runs; 0 for one per core, at most 8.

        Raises:
            DataError: An image cannot be read; the message names it.
        """
        logits = [self.forward(batch)[0] for batch in self._batches(images, batch_size, workers)]
        if not logits:
            return np.zeros((0, len(self.classes)))
        return torch.cat(logits).double().softmax(dim=1).cpu().numpy()

    def project(self, images: Images, *, batch_size: int = 64, workers: int = 0) -> Float[np.ndarray, "n D"]:
        """Predict text embeddings of images in the VLM's joint space, as float32 without normalisation.

        The arguments are those of `predict_proba`.

        Raises:
            ModelError: The classifier was trained without text.
            DataError: An image cannot be read; the message names it.
        """
        if self.network.projector is None or self.spec.vlm is None:
            raise ModelError(
                "this classifier was trained without text and does not support zero-shot classification",
                where="zero_shot",
                fix="use a classifier trained with student.projector_layers=1 or 2",
            )
        outputs = [self.forward(batch)[1] for batch in self._batches(images, batch_size, workers)]
        if not outputs:
            return np.zeros((0, self.joint_dim), dtype=np.float32)
        return torch.cat([output for output in outputs if output is not None]).cpu().numpy()

    def zero_shot(
        self, images: Images, prompts: Prompts | str | None = None, *, batch_size: int = 64, workers: int = 0
    ) -> Float[np.ndarray, "n K"]:
        """Classify images zero-shot: softmax over scaled cosine similarities between predicted and prompt embeddings.

        Args:
            images: Images as for `predict_proba`.
            prompts: Name of a prompt set stored in the classifier (None if there is only one), or a mapping from class
                to texts, or to embeddings from the classifier's VLM (not centred: centring is applied here).
            batch_size: Images per batch.
            workers: Reading threads, as for `predict_proba`.

        Raises:
            ModelError: The classifier was trained without text or does not contain this prompt set, or the VLM needed
                for new texts is missing or differs from the one used in training.
            DataError: An image cannot be read; the message names it.
        """
        projected = torch.from_numpy(self.project(images, batch_size=batch_size, workers=workers))
        classes = torch.from_numpy(self.prompt_embeddings(prompts))
        scale = float((self.spec.vlm or {}).get("logit_scale", 100.0))
        cosines = _normalised(projected.double()) @ classes.double().T
        return (scale * cosines).softmax(dim=1).numpy()

    def prompt_embeddings(self, prompts: Prompts | str | None = None) -> Float[np.ndarray, "K D"]:
        """Embed prompts as one unit vector per class, in the space of the projector's training targets.

        The text mean used in training, if any, is subtracted from the unit vector of each text, and the result is
        normalised again. The vector of a class is the normalised mean over its texts.

        Args:
            prompts: Prompts as for `zero_shot`.
        """
        if prompts is None or isinstance(prompts, str):
            return _normalised(self._read_cached(prompts).double()).float().numpy()
        if not isinstance(prompts, Mapping) or not prompts:
            raise DataError("no classes in the prompts", where="prompts", fix="map each class to its texts")
        mean = self._tensors.get("text_mean")
        rows = []
        for name, texts in prompts.items():
            vectors = _normalised(self._embed_class(name, texts).double())
            if mean is not None:
                vectors = _normalised(vectors - mean.double())
            rows.append(_normalised(vectors.mean(dim=0, keepdim=True)))
        return torch.cat(rows).float().numpy()

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the backbone's weights."""
        dtype: torch.dtype = next(self.network.backbone.parameters()).dtype
        return dtype

    @property
    def parameters(self) -> int:
        """Number of parameters used to classify an image."""
        return self.network.parameter_count

    @property
    def text_mean(self) -> Float[np.ndarray, " D"] | None:
        """Mean that was subtracted from unit text embeddings in training; None if they were not centred."""
        mean = self._tensors.get("text_mean")
        return None if mean is None else mean.float().cpu().numpy()

    @property
    def joint_dim(self) -> int:
        """Dimension of the joint space; 0 if trained without text."""
        return self.network.joint_dim

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor | None]:
        """Map normalised pixels to logits [b,C] and predicted text embeddings [b,D] (None without a projector)."""
        outputs = [self._compute(part) for part in cpu_parts(require_pixels(pixels).to(self.device, self.dtype))]
        projected = [text for _, text in outputs if text is not None]
        return torch.cat([logits for logits, _ in outputs]), torch.cat(projected) if projected else None

    def _batches(self, images: Images, batch_size: int, workers: int) -> Iterator[Float[Tensor, "b 3 h w"]]:
        check_batches(batch_size, workers)
        count, read_image = open_pictures(images)
        read = self._crops.reading(read_image)
        preprocess = self.spec.preprocess
        rows = (range(start, min(start + batch_size, count)) for start in range(0, count, batch_size))
        with reading_threads(workers) as pool:
            read_images = read_ahead(rows, lambda row: preprocess.pixels(read(row)), pool)
            batches = ((batch, stack(pixels, self.device)) for batch, pixels in read_images)
            for _, pixels in copy_ahead(batches, self.device):
                yield preprocess.normalise(pixels)
        self._crops.report()

    def _read_cached(self, name: str | None) -> Tensor:
        known = list(self.spec.prompts)
        if name is None and len(known) == 1:
            name = known[0]
        if name is None or name not in known:
            problem = (
                f"no prompt set {name!r} in this classifier"
                if name
                else f"no prompt set was named, and this classifier contains {counted(len(known), 'prompt set')}"
            )
            names = f"name one of: {', '.join(known)}; or " if known else ""
            raise ModelError(problem, where="prompts", fix=f"{names}pass a mapping from class to texts")
        return self._tensors[f"prompts.{name}"]

    def _embed_class(self, name: str, prompts: Sequence[str] | str | np.ndarray | Tensor) -> Float[Tensor, "n D"]:
        prompts = prompts.detach().cpu().numpy() if isinstance(prompts, Tensor) else prompts
        if isinstance(prompts, np.ndarray) and prompts.dtype.kind in "fiu":
            vectors = torch.from_numpy(np.atleast_2d(np.asarray(prompts, dtype=np.float32)))
            if vectors.ndim != 2 or vectors.shape[1] != self.joint_dim or not len(vectors):
                raise DataError(
                    f"embeddings of shape {prompts.shape} do not match the joint space of {self.joint_dim} dimensions",
                    where=f"prompts[{name!r}]",
                    fix="embed the texts with the VLM that the classifier was trained with",
                )
            if not (vectors.isfinite().all() and vectors.norm(dim=1).all()):
                raise DataError("an embedding is zero or not finite", where=f"prompts[{name!r}]", fix="embed it again")
            return vectors
        texts = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str | Mapping) else [prompts]
        if not texts:
            raise DataError("this class has no texts", where=f"prompts[{name!r}]", fix="pass at least one text")
        if not all(isinstance(text, str) and text.strip() for text in texts):
            fix = "correct or remove it; pass a prompt file by its path"
            raise DataError("a text is empty or not a string", where=f"prompts[{name!r}]", fix=fix)
        if self._vlm is None:
            trust = self._trust_remote_code
            self._vlm = load_text_vlm(self.spec, self._vlm_given, self.device, trust_remote_code=trust)
        return torch.from_numpy(self._vlm.encode_prompts(texts))


@checked_arguments
@torch_defaults()
def load_classifier(
    path: str | Path,
    device: torch.device | str | None = None,
    *,
    vlm: str | VLMConfig | None = None,
    dtype: torch.dtype | str | None = None,
    compile: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Classifier:
    """Load an exported classifier.

    Args:
        path: Run folder or its subfolder `classifier/`, or a repository on the Hugging Face Hub (`owner/name`); a local
            folder with that name takes precedence.
        device: Device of the model; by default the GPU, if available.
        vlm: Name, folder or configuration of the VLM that the classifier was trained with, or the folder of its
            adapter. It is needed only for new prompt texts, and not if that VLM is embedded or listed in the table of
            VLMs and has no adapter.
        dtype: Data type of the backbone: `float32` (the default) or `bfloat16`, which needs half the memory and is
            faster on most GPUs; heads and outputs are float32.
        compile: Whether to compile the network with `torch.compile`, which can take minutes.
        revision: Branch, tag or commit of the repository; None for its main branch.
        trust_remote_code: Whether to run Python code that defines the backbone or the VLM.

    Raises:
        ModelError: The classifier does not exist, is damaged, or is defined by Python code that is not trusted.
        ArtifactError: The classifier is in the folder of a run that did not export it.
    """
    folder = classifier_folder(path, revision)
    spec = read_spec(folder)
    chosen = parse_device(device)
    if spec.remote_code and not trust_remote_code:
        raise ModelError(
            "the backbone of this classifier is defined by Python code in its folder",
            where=folder,
            fix="read that code, then call load_classifier(..., trust_remote_code=True)",
        )
    verify_files(folder, spec)
    with foreign_errors(str(folder), hint="Copy or export the classifier again."):
        model: Any
        if spec.loader == "timm":  # timm never runs code from a model's files
            model = open_timm(folder, spec.pooling)
            check_timm_preprocess(folder, spec, inner_model(model))
        else:
            check_transformers_preprocess(folder, spec)
            with guard_remote_code(spec.remote_code, "call load_classifier(..., trust_remote_code=True)"):
                model = open_transformers(
                    folder, spec.pooling, spec.preprocess.size, trust_remote_code=spec.remote_code
                )
        check_finite_weights(model.state_dict(), folder / WEIGHTS, COPY_AGAIN)
        head = read_tensors(folder / HEADS) if not spec.plain else {}
        zero_shot = read_tensors(folder / ZERO_SHOT) if spec.projector_layers else {}
        check_tensors(spec, head | zero_shot, folder)
        network = ClassifierNetwork(spec, channels_last(model), head, zero_shot)
    check_network(spec, network.eval(), folder)
    network = network.to(chosen).eval().requires_grad_(False)
    classifier = Classifier(spec, network, zero_shot, vlm, trust_remote_code).to(dtype=dtype)
    return classifier.compile() if compile else classifier


def _normalised(vectors: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    return torch.nn.functional.normalize(vectors, dim=1)
