"""The U-Net: training, resuming, losses and input scaling."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from token_fixtures import open_images, write_images

from clipit.config.mask_training import UnetConfig
from clipit.errors import DataError, ModelError
from clipit.segmentation import unet
from clipit.segmentation.soft_dice import soft_dice
from clipit.segmentation.unet import Samples, ScaledNetwork, build_unet, missing_unet_package, train_unet, unet_loss
from clipit.segmentation.unet_methods import drawn_masks

OPTIONS = UnetConfig(encoder="tu-test_resnet", crop=32, batch_size=2, steps=2)
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("segmentation_models_pytorch") is None, reason="segmentation-models-pytorch is missing"
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    _, masks = open_images(write_images(tmp_path_factory.mktemp("images"), patients=4))
    return drawn_masks(masks.of_split("train"), 2, seed=0)


def test_training_gives_probabilities_for_every_pixel(samples: Samples, tmp_path: Path) -> None:
    network = train_unet(tmp_path, [samples], OPTIONS, seed=0, classes=2)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8))
    probabilities = network.probabilities(image, 1.0)
    assert probabilities.shape == (2, 40, 70)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    reloaded = train_unet(tmp_path, [samples], OPTIONS, seed=0, classes=2)  # loaded instead of trained
    np.testing.assert_array_equal(reloaded.probabilities(image, 1.0), probabilities)
    coarse = OPTIONS.model_copy(update={"mpp": 2.0})
    assert replace(network, options=coarse).probabilities(image, 1.0).shape == (2, 40, 70)


def test_a_resumed_training_gives_the_same_weights(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = OPTIONS.model_copy(update={"steps": 3})
    uninterrupted = train_unet(tmp_path / "uninterrupted", [samples], options, seed=0, classes=2)
    monkeypatch.setattr(unet, "_CHECKPOINT_SECONDS", 0.0)
    draw, steps = unet._batch, []

    def killed(*arguments: object) -> object:
        steps.append(arguments[-1])
        if steps == [0, 1]:
            raise KeyboardInterrupt
        return draw(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(unet, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_unet(tmp_path / "killed", [samples], options, seed=0, classes=2)
    resumed = train_unet(tmp_path / "killed", [samples], options, seed=0, classes=2)
    assert steps == [0, 1, 1, 2]
    for name, value in uninterrupted.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_damaged_checkpoint_is_discarded(tmp_path: Path) -> None:
    network = build_unet(OPTIONS, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    (tmp_path / "checkpoint.safetensors").write_bytes(b"truncated")
    assert unet._load(tmp_path / "checkpoint.safetensors", network, optimizer) == 0
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_loss_of_correct_and_of_undecided_predictions() -> None:
    codes = torch.tensor([[[0, 1], [1, -1]]])
    correct = torch.nn.functional.one_hot(codes.clamp(min=0), 2).permute(0, 3, 1, 2) * 100.0
    correct[0, :, 1, 1] = torch.tensor([0.0, 50.0])  # ignored
    assert float(unet_loss(correct, codes)) == pytest.approx(0, abs=1e-5)
    # Probabilities of 1/2: cross-entropy log 2; Dice 2 * 0.5 / (3/4 + 1) for one pixel and 2 * 1 / (3/4 + 2) for two.
    expected = (math.log(2) + 1 - (1 / 1.75 + 2 / 2.75) / 2) / 2
    assert float(unet_loss(torch.zeros(1, 2, 2, 2), codes)) == pytest.approx(expected, abs=1e-5)
    assert float(unet_loss(torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2), -1))) == 0


def test_soft_dice_is_highest_for_exact_shares_and_ignores_unlabelled_parts() -> None:
    shares = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 0.5]])  # half of the last cell is ignored
    equal = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.0, 1.0]])
    assert float(soft_dice(equal, shares)) == pytest.approx(1)
    assert float(soft_dice(equal + torch.tensor([-0.1, 0.1]), shares)) < 0.99
    without = torch.nn.functional.pad(shares, (0, 1))  # a class that does not occur
    assert float(soft_dice(torch.nn.functional.pad(equal, (0, 1)), without)) == pytest.approx(1)


def test_pixels_are_scaled_as_the_encoder_weights_require() -> None:
    pixels = torch.tensor([255.0, 0.0, 51.0])[None, :, None, None]
    assert ScaledNetwork(torch.nn.Identity(), None)(pixels).flatten().tolist() == pytest.approx([1, -1, -0.6])
    parameters = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.5], "input_range": [0, 1], "input_space": "BGR"}
    scaled = ScaledNetwork(torch.nn.Identity(), parameters)(pixels).flatten().tolist()
    assert scaled == pytest.approx([(0.2 - 0.4) / 0.2, (0 - 0.5) / 0.25, (1 - 0.6) / 0.5])
    byte_parameters = {
        "mean": [100.0, 50.0, 1.0],
        "std": [1.0, 1.0, 2.0],
        "input_range": [0, 255],
        "input_space": "RGB",
    }
    assert ScaledNetwork(torch.nn.Identity(), byte_parameters)(pixels).flatten().tolist() == [155, -50, 25]


def test_identity_of_training_depends_on_the_resolution_of_the_tiles(samples: Samples, tmp_path: Path) -> None:
    _, masks = open_images(write_images(tmp_path, patients=4))
    train = masks.of_split("train")
    finer = replace(train, tiles=replace(train.tiles, mpp=train.tiles.mpp / 2))
    assert drawn_masks(train, 2, seed=0).identity != drawn_masks(finer, 2, seed=0).identity


def test_window_overlap_affects_predictions_but_not_training(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_unet(tmp_path, [samples], OPTIONS, seed=0, classes=2)
    monkeypatch.setattr(unet, "_fit", lambda *_: pytest.fail("the U-Net was trained again"))
    other = train_unet(tmp_path, [samples], OPTIONS.model_copy(update={"overlap": 0.75}), seed=0, classes=2)
    assert other.fingerprint == first.fingerprint
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8))
    assert not np.array_equal(other.probabilities(image, 1.0), first.probabilities(image, 1.0))


def test_completely_ignored_masks_are_an_error_before_training(samples: Samples, tmp_path: Path) -> None:
    def read(index: int) -> tuple[Image.Image, np.ndarray, float]:
        image, codes, mpp = samples.read(index)
        return image, np.full_like(codes, -1), mpp

    with pytest.raises(DataError, match="every pixel of 2 masks is ignored"):
        train_unet(tmp_path, [samples, replace(samples, read=read)], OPTIONS, seed=0, classes=2)
    assert not list(tmp_path.iterdir())


def test_unknown_encoder_and_missing_package_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="cannot be built"):
        build_unet(UnetConfig(encoder="resnet0"), 2)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install segmentation-models-pytorch" in missing_unet_package()
    with pytest.raises(ModelError, match="not installed"):
        build_unet(OPTIONS, 2)
