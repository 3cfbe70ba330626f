import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from timm.data import create_transform

from clipit.errors import ModelError
from clipit.models.preprocess import (
    Preprocess,
    preprocess_from_open_clip,
    preprocess_from_timm,
    preprocess_from_transformers,
)

OPENAI = {"image_mean": (0.48, 0.46, 0.41), "image_std": (0.27, 0.26, 0.28)}


def preprocess_image(preprocess: Preprocess, image: Image.Image) -> torch.Tensor:
    return preprocess.normalise(torch.from_numpy(preprocess.pixels(image))[None])[0]


@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_preprocessing_matches_timm(
    pictures: list[Image.Image], crop_pct: float, crop_mode: str, interpolation: str
) -> None:
    config: dict[str, Any] = {
        "input_size": (3, 32, 32), "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation,
        "mean": (0.7, 0.6, 0.5), "std": (0.2, 0.25, 0.3),
    }  # fmt: skip
    transform = create_transform(**config, is_training=False)
    preprocess = preprocess_from_timm(config, "x")
    for picture in pictures:
        torch.testing.assert_close(preprocess_image(preprocess, picture), transform(picture), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_preprocessing_matches_open_clip(pictures: list[Image.Image], mode: str) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(size=32, mean=(0.7, 0.6, 0.5), std=(0.2, 0.25, 0.3), resize_mode=mode)
    transform = image_transform_v2(config, is_train=False)
    preprocess = preprocess_from_open_clip(vars(config), "x")
    for picture in [*pictures, pictures[1].convert("L"), pictures[1].convert("RGBA")]:
        expected = transform(picture)
        # open_clip resizes grey and transparent images before converting them to RGB, which changes rounding.
        exact = picture.mode == "RGB"
        torch.testing.assert_close(
            preprocess_image(preprocess, picture), expected, atol=1e-6 if exact else 0.03, rtol=1e-6
        )


@pytest.mark.parametrize("size", [{"shortest_edge": 40}, {"height": 36, "width": 36}])
def test_preprocessing_is_close_to_transformers(pictures: list[Image.Image], size: dict[str, int]) -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32}, **OPENAI)
    preprocess = preprocess_from_transformers(processor.to_dict(), "x")
    for picture in pictures:
        smooth = picture.filter(ImageFilter.GaussianBlur(2))
        expected = processor(smooth, return_tensors="pt")["pixel_values"][0]
        # transformers resizes tensors, which may differ by 2 of 255 levels.
        assert float((preprocess_image(preprocess, smooth) - expected).abs().max()) <= 2 / 255 / 0.26 + 1e-5


def test_images_of_the_input_size_are_not_resized(pictures: list[Image.Image]) -> None:
    preprocess = Preprocess(32, 32, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert np.array_equal(preprocess.pixels(pictures[0]), np.asarray(pictures[0]).transpose(2, 0, 1))
    assert float(preprocess.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).max()) == 1.0


def test_the_hash_depends_on_every_field() -> None:
    from dataclasses import replace

    base = Preprocess(32, 36, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    others = [
        replace(base, size=30), replace(base, resize_to=37), replace(base, mode="squash"),
        replace(base, interpolation="bilinear"), replace(base, mean=(0.5, 0.5, 0.6)),
        replace(base, std=(0.5, 0.5, 0.6)),
    ]  # fmt: skip
    assert len({preprocess.hash for preprocess in [base, *others]}) == 7
    assert "(shortest edge resized to 36," in base.describe()
    assert "(both edges resized to 36," in replace(base, mode="squash").describe()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (preprocess_from_timm, {"crop_mode": "border"}),
        (preprocess_from_timm, {"interpolation": "nearest"}),
        (preprocess_from_timm, {"input_size": (3, 32, 48)}),
        (preprocess_from_timm, {"crop_pct": 1.5}),
        (preprocess_from_timm, {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}),
        (preprocess_from_timm, {"mean": (0.5,)}),
        (preprocess_from_timm, {"crop_pct": None}),
        (preprocess_from_timm, {"crop_pct": 0}),
        (preprocess_from_timm, {"crop_mode": ["center"]}),
        (preprocess_from_timm, {"mean": (123.675, 116.28, 103.53)}),
        (preprocess_from_timm, {"mean": (float("nan"),) * 3}),
        (preprocess_from_timm, {"std": (0, 0, 0)}),
        (preprocess_from_timm, {"std": (58.4, 57.1, 57.4)}),
    ],
)
def test_unsupported_preprocessing_of_timm_is_an_error(make: Callable[..., Preprocess], change: dict[str, Any]) -> None:
    config = {
        "input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic",
        "mean": (0.5,) * 3, "std": (0.5,) * 3,
    }  # fmt: skip
    with pytest.raises(ModelError, match="preprocessing"):
        make({**config, **change}, "x")


def test_disabled_steps_are_errors(clip_folder: Path) -> None:
    import json

    config = json.loads((clip_folder / "preprocessor_config.json").read_text())
    preprocess_from_transformers(config, "x")
    with pytest.raises(ModelError, match="switched off"):
        preprocess_from_transformers({**config, "do_normalize": False}, "x")


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": 0.5},
        {"image_mean": None},
        {"image_mean": ["a", "b", "c"]},
        {"image_mean": [123.7, 116.3, 103.5]},
        {"image_std": [0, 0, 0]},
        {"size": {"longest_edge": 32}},
        {"size": {"shortest_edge": 32, "longest_edge": 48}},
        {"size": 0},
        {"size": "32"},
        {"resample": "nearest"},
        {"do_flip_channel_order": True},
        {"do_grayscale": True},
        {"do_pad": True},
        {"crop_pct": 0.875},
        {"rescale_offset": True},
        {"rescale_factor": None},
        {"rescale_factor": "1/255"},
        {"resample": [3]},
        {"resample": {"name": "bicubic"}},
        {"crop_size": None},
        {"crop_size": {"shortest_edge": 32}},
        {"crop_size": [[32], 32]},
    ],
)
def test_unsupported_preprocessing_of_transformers_is_an_error(change: dict[str, Any]) -> None:
    config = {
        "size": 32, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": "bilinear",
        "do_pad": False,
    }  # fmt: skip
    assert preprocess_from_transformers(config, "x").interpolation == "bilinear"
    with pytest.raises(ModelError, match="unsupported preprocessing"):
        preprocess_from_transformers({**config, **change}, "x")


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Beit", "DINOv3ViT", "CLIP", "Bit", "Siglip"])
def test_defaults_of_image_processors_match_transformers(kind: str) -> None:
    import transformers

    processor = getattr(transformers, f"{kind}ImageProcessor")(size=32)
    short = {"size": 32, "crop_size": 32, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name in (f"{kind}ImageProcessor", f"{kind}ImageProcessorFast", f"{kind}FeatureExtractor"):
        key = "feature_extractor_type" if name.endswith("Extractor") else "image_processor_type"
        preprocess = preprocess_from_transformers({**short, key: name}, "x")
        assert preprocess.interpolation == {2: "bilinear", 3: "bicubic"}[int(processor.resample)]
        assert (preprocess.mode == "squash") == (processor.size.height == 32), processor.size


@pytest.mark.parametrize("shape", [(40, 45), (45, 40), (63, 40), (64, 97)])
def test_odd_margins_are_cropped_like_transformers(shape: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessor

    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    sizes = {"size": {"shortest_edge": 40}, "crop_size": {"height": 33, "width": 33}}
    processor = CLIPImageProcessor(**sizes, **OPENAI)
    preprocess = preprocess_from_transformers(processor.to_dict(), "x")
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    difference = (preprocess_image(preprocess, picture) - expected).abs()
    assert float(difference.mean()) < 0.02  # shifting the crop by one pixel gives a difference of about 1


def test_the_hash_is_stable_across_versions() -> None:
    base = Preprocess(32, 36, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert base.hash == "f3d62556e32d298b"


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (10, 300)])
def test_extreme_aspect_ratios_are_resized_only_inside_the_crop(size: tuple[int, int]) -> None:
    preprocess = Preprocess(64, 72, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    gradient = np.linspace(0, 255, size[0] * size[1]).astype(np.uint8).reshape(size[1], size[0])
    picture = Image.fromarray(np.repeat(gradient[..., None], 3, axis=2))
    started = time.monotonic()
    pixels = preprocess.pixels(picture)
    assert time.monotonic() - started < 1
    assert pixels.shape == (3, 64, 64)
    if max(size) < 1000:  # small enough to resize the complete image
        resized = picture.resize((72, 2160) if size[0] < size[1] else (2160, 72), Image.Resampling.BICUBIC)
        left, top = (round((edge - 64) / 2) for edge in resized.size)
        expected = np.asarray(resized.crop((left, top, left + 64, top + 64))).transpose(2, 0, 1)
        assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1
