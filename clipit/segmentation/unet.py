"""Baseline: U-Net (Ronneberger et al., MICCAI 2015) trained on masks, built with segmentation-models-pytorch."""

import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int16, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from clipit.config.effects import fingerprint_keys
from clipit.config.mask_training import UnetConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import DataError, ModelError, counted
from clipit.models.weights import write_tensors
from clipit.output_files.artifacts import reading, whole_file
from clipit.progress import progress
from clipit.segmentation.soft_dice import soft_dice
from clipit.segmentation.stitching import window_starts
from clipit.tiles.mask_files import IGNORED

Sample = tuple[UInt8[np.ndarray, "h w 3"], Int16[np.ndarray, "h w"]]
"""An image, and the class of each pixel; -1 is ignored."""

_WEIGHTS, _CHECKPOINT = "model.safetensors", "checkpoint.safetensors"
_CHECKPOINT_SECONDS = 30.0  # between checkpoints; does not affect the result
_CACHED = 64  # decoded images in memory


@dataclass(frozen=True, eq=False)
class Samples:
    """Images with masks or pseudo-labels to train on.

    Attributes:
        read: Function that reads an image, its labels and its micrometres per pixel (nan if unknown).
        identity: JSON-serialisable description of images and labels, for the fingerprint.
    """

    count: int
    read: Callable[[int], tuple[Image.Image, Int16[np.ndarray, "h w"], float]]
    identity: object


@dataclass(frozen=True, eq=False)
class Unet:
    """A trained U-Net on disk.

    Attributes:
        fingerprint: Fingerprint of all training inputs.
    """

    file: Path
    classes: int
    options: UnetConfig
    fingerprint: str

    @property
    def network(self) -> nn.Module:
        """Network in evaluation mode; only the most recently used network is kept in memory."""
        return _open_network(self.file, self.classes, self.options)

    def probabilities(self, image: Image.Image, mpp: float) -> Float32[np.ndarray, "c h w"]:
        """Return the probability of each class at each pixel, averaged over overlapping windows."""
        options, device, network = self.options, get_processes().device, self.network
        pixels = _resized(image, mpp, options)
        height, width = pixels.shape[:2]
        edge = options.crop
        padded = np.pad(pixels, ((0, max(0, edge - height)), (0, max(0, edge - width)), (0, 0)), mode="symmetric")
        step = max(1, round(edge * (1 - options.overlap)))
        tops, lefts = (window_starts(length, edge, step) for length in padded.shape[:2])
        sums: Tensor | None = None
        counts = torch.zeros(padded.shape[:2])
        for top in tops:
            for start in range(0, len(lefts), options.batch_size):
                batch = lefts[start : start + options.batch_size]
                windows = np.stack([padded[top : top + edge, left : left + edge] for left in batch])
                with torch.inference_mode():
                    predicted = network(_to_tensor(windows).to(device)).float().softmax(dim=1).cpu()
                if sums is None:
                    sums = torch.zeros(predicted.shape[1], *padded.shape[:2])
                for left, window in zip(batch, predicted, strict=True):
                    sums[:, top : top + edge, left : left + edge] += window
                    counts[top : top + edge, left : left + edge] += 1
        if sums is None:
            raise DataError("the image has no pixels", where="image", fix="remove the image")
        means = (sums / counts)[None, :, :height, :width]
        if means.shape[-2:] != (image.height, image.width):
            means = nn.functional.interpolate(means, size=(image.height, image.width), mode="bilinear")
        return means[0].numpy()


@lru_cache(maxsize=1)
def _open_network(file: Path, classes: int, options: UnetConfig) -> nn.Module:
    from safetensors.torch import load_file

    network = build_unet(options, classes, pretrained=False)
    with reading(file):
        network.load_state_dict(load_file(file))
    return network.to(get_processes().device).eval()


class ScaledNetwork(nn.Module):
    """A network with normalised input: (pixels - mean) / deviation, with channels in the network's order.

    Attributes:
        order: Image channel for each input channel of the network: (0, 1, 2) for RGB.
        mean: Mean of each input channel, for pixel values of 0..255.
        deviation: Standard deviation of each input channel.
    """

    order: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, scaling: Mapping[str, Any] | None) -> None:
        """Wrap a network.

        Args:
            scaling: Parameters as returned by segmentation-models-pytorch (mean, std, input_range and input_space);
                None to scale pixels to -1..1.
        """
        super().__init__()
        parameters = scaling or {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_range": (0, 1), "input_space": "RGB"}
        unit = 255.0 if parameters["input_range"][1] == 1 else 1.0
        self.network = network
        self.register_buffer("order", torch.tensor((2, 1, 0) if parameters["input_space"] == "BGR" else (0, 1, 2)))
        self.register_buffer("mean", unit * torch.tensor(parameters["mean"])[:, None, None])
        self.register_buffer("deviation", unit * torch.tensor(parameters["std"])[:, None, None])

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """Return the logits for pixel values of 0..255."""
        logits: Tensor = self.network((pixels[:, self.order] - self.mean) / self.deviation)
        return logits


def missing_unet_package() -> str:
    """Name the missing package that a U-Net needs; "" if it is installed."""
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        return "segmentation-models-pytorch: pip install segmentation-models-pytorch"
    return ""


def build_unet(options: UnetConfig, classes: int, *, pretrained: bool = True) -> nn.Module:
    """Build the network; its encoder has random weights unless `encoder_weights` is set.

    Pixels are scaled as in pretraining, or to -1..1 without pretrained weights; the scaling is stored with the weights.

    Args:
        pretrained: Whether to load `encoder_weights`; not needed if trained weights are loaded afterwards.

    Raises:
        ModelError: The package is missing, the encoder is unknown, or its weights cannot be obtained.
    """
    if missing := missing_unet_package():
        raise ModelError("a U-Net needs a package that is not installed", where="unet", fix=missing)
    import segmentation_models_pytorch as smp

    try:
        weights = options.encoder_weights if pretrained else None
        scaling = smp.encoders.get_preprocessing_params(options.encoder, weights) if weights else None
        network: nn.Module = smp.Unet(
            options.encoder,
            encoder_weights=weights,
            decoder_channels=[max(16, options.width >> level) for level in range(5)],
            classes=classes,
        )
    except Exception as error:  # KeyError for an unknown encoder, Hub errors
        raise ModelError(
            f"the U-Net cannot be built: {' '.join(str(error).split())[:200]}",
            where=f"segmentation.training.unet.encoder: {options.encoder}",
            fix="use an encoder of segmentation-models-pytorch, such as resnet18, with weights available for it",
        ) from error
    return ScaledNetwork(network, scaling)


def train_unet(root: Path, sources: Sequence[Samples], options: UnetConfig, seed: int, classes: int) -> Unet:
    """Train a U-Net for a fixed number of steps, or open an existing one; no validation masks are used.

    The loss is the mean of the cross-entropy and 1 - Dice over the labelled pixels in a batch. Every source
    contributes the same number of crops to each step. The crops of a step depend only on (seed, step), so interrupted
    training resumes at its last checkpoint and ends with the same weights.

    Args:
        sources: Masks and, optionally, pseudo-labels.
        seed: Seed for initialisation and crops.

    Raises:
        DataError: There is no source, a source has no image, or all pixels of a source are ignored.
        ModelError: The network cannot be built, or the loss is not finite.
    """
    if not sources or any(not each.count for each in sources):
        raise DataError("there are no images to train a U-Net on", fix="add training masks")
    for each in sources:
        if not any((each.read(index)[1] != IGNORED).any() for index in range(each.count)):
            raise DataError(
                f"there are no pixels to train a U-Net on: every pixel of {counted(each.count, 'mask')} is ignored",
                fix="correct segmentation.ignore, or the masks",
            )
    inputs = {
        "loss": "cross-entropy and soft Dice with squares",
        "sources": [each.identity for each in sources],
        "options": fingerprint_keys(options).keys,
        "seed": seed,
        "classes": classes,
    }

    def make(folder: Path) -> dict[str, Any]:
        if get_processes().main:
            network = _fit(sources, options, seed, classes, folder / _CHECKPOINT)
            (folder / _CHECKPOINT).unlink(missing_ok=True)
            write_tensors(folder / _WEIGHTS, network.state_dict())
        return {"steps": options.steps}

    artifact = build_once(root, "unet", inputs, make)
    return Unet(artifact.file(_WEIGHTS), classes, options, artifact.fingerprint)


def _fit(sources: Sequence[Samples], options: UnetConfig, seed: int, classes: int, checkpoint: Path) -> nn.Module:
    device = get_processes().device
    torch.manual_seed(seed)
    network = build_unet(options, classes).to(device).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
    )
    done = _load(checkpoint, network, optimizer)
    readers = [_reader(each, options) for each in sources]
    saved = time.monotonic()
    with progress("training a U-Net", options.steps, shown=get_processes().main, done=done) as advance:
        for step in range(done, options.steps):
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))
            images, codes = _batch(readers, [each.count for each in sources], options, seed, step)
            loss = unet_loss(network(images.to(device)), codes.to(device))
            if not math.isfinite(float(loss.detach())):
                raise ModelError(
                    f"the loss is not finite at step {step + 1}", fix="lower segmentation.training.unet.learning_rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            advance()
            if time.monotonic() - saved >= _CHECKPOINT_SECONDS:
                _save(checkpoint, network, optimizer, step + 1)
                saved = time.monotonic()
    return network.eval()


def unet_loss(logits: Float[Tensor, "b c h w"], codes: Int64[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return the mean of the cross-entropy and 1 - `soft_dice`; pixels with the class -1 are ignored."""
    labelled = codes != IGNORED
    if not bool(labelled.any()):
        return logits.sum() * 0
    entropy = nn.functional.cross_entropy(logits, codes, ignore_index=IGNORED)
    probabilities = logits.softmax(dim=1).movedim(1, -1)[labelled]
    truth = nn.functional.one_hot(codes[labelled], logits.shape[1]).to(probabilities.dtype)
    return (entropy + 1 - soft_dice(probabilities, truth)) / 2


def _reader(samples: Samples, options: UnetConfig) -> Callable[[int], Sample]:
    """Return a function that reads an image and its labels at the U-Net's resolution, padded to at least one crop."""

    @lru_cache(maxsize=_CACHED)
    def read(index: int) -> Sample:
        image, codes, mpp = samples.read(index)
        pixels = _resized(image, mpp, options)
        height, width = pixels.shape[:2]
        if codes.shape != (height, width):
            codes = np.asarray(Image.fromarray(codes).resize((width, height), Image.Resampling.NEAREST))
        beyond = (0, max(0, options.crop - height)), (0, max(0, options.crop - width))
        return (
            np.pad(pixels, (*beyond, (0, 0)), mode="symmetric"),
            np.pad(codes.astype(np.int16), beyond, constant_values=IGNORED),
        )

    return read


def _batch(
    readers: Sequence[Callable[[int], Sample]], counts: Sequence[int], options: UnetConfig, seed: int, step: int
) -> tuple[Float32[Tensor, "b 3 s s"], Int64[Tensor, "b s s"]]:
    """Draw the same number of crops from each source, each crop in one of eight orientations."""
    generator = np.random.default_rng([seed, step])
    edge = options.crop
    images, codes = [], []
    for read, count in zip(readers, counts, strict=True):
        for _ in range(max(1, options.batch_size // len(readers))):
            pixels, labels = read(int(generator.integers(count)))
            top = int(generator.integers(pixels.shape[0] - edge + 1))
            left = int(generator.integers(pixels.shape[1] - edge + 1))
            quarter_turns, flipped = int(generator.integers(4)), bool(generator.integers(2))
            crops = [each[top : top + edge, left : left + edge] for each in (pixels, labels)]
            turned = [np.rot90(each, quarter_turns) for each in crops]
            image, code = [each[:, ::-1] if flipped else each for each in turned]
            images.append(image)
            codes.append(code)
    return _to_tensor(np.stack(images)), torch.from_numpy(np.stack(codes).astype(np.int64))


def _to_tensor(images: UInt8[np.ndarray, "b h w 3"]) -> Float32[Tensor, "b 3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()


def _resized(image: Image.Image, mpp: float, options: UnetConfig) -> UInt8[np.ndarray, "h w 3"]:
    """Resize an image to the U-Net's resolution, if both are known."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    if options.mpp is not None and not math.isnan(mpp) and mpp != options.mpp:
        size = (max(1, round(image.width * mpp / options.mpp)), max(1, round(image.height * mpp / options.mpp)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image)


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, buffers, optimiser state and the number of completed steps to one file."""
    from safetensors.torch import save_file

    tensors = {f"network.{name}": value.contiguous() for name, value in network.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, {"step": json.dumps(step)})


def _load(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint, and return the number of completed steps; 0 if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            step = int(json.loads((file.metadata() or {})["step"]))
            tensors: Mapping[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError):
        path.unlink(missing_ok=True)
        return 0
    network.load_state_dict(
        {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
    )
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            states.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return step
