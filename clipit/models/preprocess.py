"""Image preprocessing as specified by each model."""

import math
import os
import threading
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from PIL import Image

from clipit.config.argument_types import type_name
from clipit.errors import DataError, ModelError, is_out_of_memory, shortlist
from clipit.images.decode import ImageError, decode, to_rgb
from clipit.output_files.artifacts import fingerprint

if TYPE_CHECKING:
    from clipit.models.specs import ModelSpec

Picture = Image.Image | np.ndarray | str | Path
"""An image: PIL, uint8 array [h,w,3], or the path of a file."""

_PIL_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_reduce_labels")
"""Flags in transformers' preprocessor_config.json that are applied here, or do not affect pixels."""
_SQUASHING = ("ViT", "DeiT", "Beit", "DINOv3ViT")  # image processors that read one number as height and width
_BILINEAR = ("ViT", "DINOv3ViT")  # image processors that resize bilinearly unless their file sets a filter

_one_at_a_time = threading.Lock()
_MAX_RATIO = 8
"""Aspect ratio above which only the centre crop of an image is resized."""


@dataclass(frozen=True)
class Preprocess:
    """Resizing, centre crop and normalisation of an image model.

    Attributes:
        size: Edge length of the square input, in pixels.
        resize_to: Length to which the shorter edge (`shortest`) or both edges (`squash`) are resized before
            the centre crop, pixels; at least `size`.
        mode: `shortest` keeps the aspect ratio, `squash` does not.
        interpolation: Name of the PIL filter.
        mean: Mean per channel, for pixel values in 0..1.
        std: Standard deviation per channel, for pixel values in 0..1.
        odd_margin: Rounding of an odd margin around the centre crop: to the nearest even number of pixels as in
            torchvision (`nearest`), or down as in transformers (`down`).
    """

    size: int
    resize_to: int
    mode: Literal["shortest", "squash"]
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    odd_margin: Literal["nearest", "down"] = "nearest"

    @property
    def crops(self) -> bool:
        """Whether images that are not square are cropped."""
        return self.mode == "shortest"

    @property
    def hash(self) -> str:
        """Hash of all fields, for cache keys and manifests."""
        fields = asdict(self)
        if self.odd_margin == "nearest":  # omitted, so that hashes from before this field existed stay valid
            del fields["odd_margin"]
        return fingerprint(fields)

    def at(self, size: int) -> "Preprocess":
        """Return the same preprocessing at another input size, with the same crop ratio."""
        return replace(self, size=size, resize_to=max(size, size * self.resize_to // self.size))

    def describe(self) -> str:
        """Describe the preprocessing in one line."""
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        edges = "both edges" if self.mode == "squash" else "shortest edge"
        return (
            f"{self.size} px ({edges} resized to {self.resize_to}, {self.interpolation}, centre crop), "
            f"mean ({mean}), std ({std})"
        )

    def pixels(self, image: Image.Image) -> UInt8[np.ndarray, "3 size size"]:
        """Resize and centre-crop an image, without normalisation."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        width, height = image.size
        if self.mode == "squash":
            target = (self.resize_to, self.resize_to)
        elif width <= height:
            target = (self.resize_to, int(self.resize_to * height / width))
        else:
            target = (int(self.resize_to * width / height), self.resize_to)
        margins = ((edge - self.size) / 2 for edge in target)
        left, top = (int(margin) if self.odd_margin == "down" else round(margin) for margin in margins)
        box = (left, top, left + self.size, top + self.size)
        if max(target) > _MAX_RATIO * self.resize_to:
            # Resize only the crop: an image this elongated, resized as a whole, could exhaust memory. Values may differ
            # from torchvision's by a rounding step of 1/255, so images of normal proportions are resized as a whole.
            scale = (width / target[0], height / target[1])
            kept = (box[0] * scale[0], box[1] * scale[1], box[2] * scale[0], box[3] * scale[1])
            image = image.resize((self.size, self.size), _PIL_FILTERS[self.interpolation], box=kept)
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        if image.size != target:
            image = image.resize(target, _PIL_FILTERS[self.interpolation])
        if image.size != (self.size, self.size):
            image = image.crop(box)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def normalise(self, pixels: Num[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b 3 h w"]:
        """Normalise values in 0..255 to the model's float32 input, on the same device.

        The result is in the channels-last memory format, which makes the convolutions and pooling of a patch stem about
        twice as fast on a CPU and suits tensor cores.
        """
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def preprocess_from_spec(spec: "ModelSpec") -> Preprocess:
    """Build the preprocessing from a table entry, for models without a preprocessing file."""
    return Preprocess(
        size=spec.pixels,
        resize_to=spec.pixels,
        mode="shortest",
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
    )


def preprocess_from_timm(data_config: Mapping[str, Any], name: str) -> Preprocess:
    """Build the preprocessing from timm's `resolve_data_config`, as in `create_transform(is_training=False)`."""
    channels, *edges = data_config["input_size"]
    if channels != 3:
        raise _unsupported(f"an input with {channels} channels, not 3 (RGB)", name)
    size = _square(edges, name)
    modes: dict[str, Literal["shortest", "squash"]] = {"center": "shortest", "squash": "squash"}
    crop_pct = data_config["crop_pct"]
    if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise _unsupported(f"crop_pct is {crop_pct!r}, not a number in (0, 1]", name)
    return Preprocess(
        size=size,
        resize_to=_at_least(size, math.floor(size / crop_pct), name),
        mode=_known(modes, data_config["crop_mode"], "crop_mode", name),
        interpolation=_filter(data_config["interpolation"], name),
        mean=_mean(data_config["mean"], "mean", name),
        std=_std(data_config["std"], "std", name),
    )


def preprocess_from_open_clip(config: Mapping[str, Any], name: str) -> Preprocess:
    """Build the preprocessing from `model.visual.preprocess_cfg`, as in open_clip's evaluation transform."""
    size = _square(config["size"], name)
    modes: dict[str, Literal["shortest", "squash"]] = {"shortest": "shortest", "squash": "squash"}
    # outside of training, open_clip uses bicubic for "random"
    interpolation = "bicubic" if config["interpolation"] == "random" else config["interpolation"]
    return Preprocess(
        size=size,
        resize_to=size,
        mode=_known(modes, config["resize_mode"], "resize_mode", name),
        interpolation=_filter(interpolation, name),
        mean=_mean(config["mean"], "mean", name),
        std=_std(config["std"], "std", name),
    )


def preprocess_from_transformers(config: Mapping[str, Any], name: str) -> Preprocess:
    """Build the preprocessing from the content of transformers' `preprocessor_config.json`.

    transformers resizes tensors and clipit resizes PIL images, so pixel values may differ by a few steps of 1/255.
    """
    if not (config.get("do_resize", True) and config.get("do_normalize", True) and config.get("do_rescale", True)):
        raise _unsupported("a step (resize, rescale, normalise) is switched off", name)
    factor = config.get("rescale_factor", 1 / 255)
    if not (isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-6)):
        raise _unsupported(f"rescale_factor is {factor!r}, not 1/255", name)
    others = [key for key, value in config.items() if value and key.startswith("do_") and key not in _STEPS]
    others += [key for key in ("crop_pct", "rescale_offset") if config.get(key)]
    if others:
        raise _unsupported(f"additional steps: {shortlist(others)}", name)
    processor = _processor_kind(config)
    mode, resize_to = _resizing(config["size"], processor in _SQUASHING, name)
    size = resize_to
    if config.get("do_center_crop", True):
        crop = config.get("crop_size")
        if crop is None and (mode == "shortest" or config.get("do_center_crop")):
            raise _unsupported("crop_size is missing, and its default depends on the model", name)
        crop = crop or resize_to
        size = _square((crop.get("height"), crop.get("width")) if isinstance(crop, Mapping) else crop, name)
    elif mode == "shortest":
        raise _unsupported("it neither squashes nor crops, so inputs differ in size", name)
    filters: dict[Any, str] = {int(value): key for key, value in _PIL_FILTERS.items()}
    stated = config.get("resample")
    resample = (2 if processor in _BILINEAR else 3) if stated is None else stated
    return Preprocess(
        size=size,
        resize_to=_at_least(size, resize_to, name),
        mode=mode,
        interpolation=_filter(filters.get(resample, resample) if isinstance(resample, int) else resample, name),
        mean=_mean(config["image_mean"], "image_mean", name),
        std=_std(config["image_std"], "image_std", name),
        odd_margin="down",
    )


def _processor_kind(config: Mapping[str, Any]) -> str:
    """Return the family of an image processor, such as CLIP; "" if its file does not name one."""
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for suffix in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(suffix)
    return name


def _resizing(edges: Any, squashes: bool, name: str) -> tuple[Literal["shortest", "squash"], int]:
    """Read the resizing mode and edge from the key `size` of transformers' configuration.

    Args:
        squashes: Whether the image processor reads one number as height and width, not as the shorter edge.
    """
    if isinstance(edges, Mapping):
        edges = {key: value for key, value in edges.items() if value is not None}
        if edges.keys() == {"height", "width"}:
            return "squash", _square((edges["height"], edges["width"]), name)
        if edges.keys() != {"shortest_edge"}:
            raise _unsupported(f"size is {dict(edges)}; known: shortest_edge, or height and width", name)
        return "shortest", _square(edges["shortest_edge"], name)
    return ("squash" if squashes else "shortest"), _square(edges, name)


def _unsupported(problem: str, name: str) -> ModelError:
    return ModelError(
        f"unsupported preprocessing: {problem}",
        where=name,
        fix="choose a different model; approximate preprocessing would silently change the embeddings",
    )


def _known(table: Mapping[str, Any], value: Any, key: str, name: str) -> Any:
    if not isinstance(value, str) or value not in table:
        raise _unsupported(f"{key} {value!r} (known: {', '.join(table)})", name)
    return table[value]


def _filter(value: Any, name: str) -> Any:
    return _known({key: key for key in _PIL_FILTERS}, value, "interpolation", name)


def _square(size: Any, name: str) -> int:
    edges = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if not edges or any(edge != edges[0] for edge in edges):
        raise _unsupported(f"the input size {edges} is not square", name)
    if not isinstance(edges[0], int) or edges[0] < 1:
        raise _unsupported(f"the input size is {edges[0]!r}, not a positive whole number", name)
    return int(edges[0])


def _at_least(size: int, resize_to: int, name: str) -> int:
    if resize_to < size:
        raise _unsupported(f"images are resized to {resize_to} px, less than the crop of {size} px", name)
    return resize_to


def _mean(values: Any, key: str, name: str) -> tuple[float, float, float]:
    mean = _triple(values, key, name)
    if not all(0 <= value <= 1 for value in mean):
        raise _unsupported(f"{key} is {values!r}; values must be between 0 and 1, for pixel values in 0..1", name)
    return mean


def _std(values: Any, key: str, name: str) -> tuple[float, float, float]:
    std = _triple(values, key, name)
    if not all(0 < value <= 1 for value in std):
        raise _unsupported(f"{key} is {values!r}; values must be above 0 and at most 1, for pixel values in 0..1", name)
    return std


def _triple(values: Any, key: str, name: str) -> tuple[float, float, float]:
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    if not numbers or len(values) != 3:
        raise _unsupported(f"{key} is {values!r}, not one number per colour channel", name)
    red, green, blue = map(float, values)
    return red, green, blue


def require_sequence(images: Iterable[Picture] | str | Path) -> Sequence[Picture]:
    """Check that several images are given, and return them as a sequence.

    Raises:
        DataError: A single image, or something other than images, was given.
    """
    if isinstance(images, str | os.PathLike | Image.Image | bytes | Mapping | Set) or not isinstance(images, Iterable):
        raise DataError(
            "expected a list of images, a folder or a zip, got one image or a path that does not exist"
            if isinstance(images, str | os.PathLike | Image.Image)
            else f"expected a list of images, a folder or a zip, got {type_name(images)}",
            where=repr(images)[:80],
            fix="pass a single image as a list, [image], or correct the path of the folder or zip",
        )
    # A pandas Series would be indexed by its labels, which may be in a different order.
    return images if isinstance(images, list | tuple) else list(images)


def open_picture(image: Picture, position: int) -> Image.Image:
    """Open an image as RGB, decoded in the same way as training tiles (`clipit.images.decode`).

    Args:
        image: PIL image, uint8 array [h,w,3], or path.
        position: Position in the caller's list, for the error message.

    Raises:
        DataError: The image cannot be read completely and without loss; the message names its path or position.
    """
    if isinstance(image, Image.Image):
        where: object = getattr(image, "filename", "") or f"images[{position}]"
    else:
        where = image if isinstance(image, str | Path) else f"images[{position}]"
    try:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise DataError(
                    f"an array of type {image.dtype} and shape {image.shape} is not an 8-bit RGB image",
                    where=where,
                    fix="pass uint8 arrays of shape [height, width, 3]",
                )
            return Image.fromarray(image)
        if isinstance(image, Image.Image):
            with _one_at_a_time:  # the same image may occur twice in a list, and two threads must not load it together
                file = getattr(image, "filename", "") if getattr(image, "fp", None) is None else ""
                loaded = to_rgb(image)
            with suppress(OSError):  # only the file reveals the bit depth and any corruption
                if file:
                    decode(Path(file))
            return loaded
        return decode(Path(image))
    except (DataError, MemoryError):
        raise
    except ImageError as error:
        raise DataError(
            f"this image cannot be decoded: {error}", where=where, fix="replace the image, or remove it from the list"
        ) from error
    except Exception as error:  # missing files, values of a different type, and Pillow's errors for corrupt data
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise DataError(
            f"unreadable image: {error}", where=where, fix="correct the path, or replace the file"
        ) from error
