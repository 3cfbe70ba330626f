"""Tests of perturbations against slow references and Pillow."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from clipit.config.file import ConfigFile
from clipit.errors import ConfigError
from clipit.evaluation.perturb import HED, PERTURBATIONS, macenko_stains, perturb, to_density, to_pixels
from clipit.tiles.augment import tile_keys

KEYS = tile_keys(["a", "b", "c"])
STAINS = np.array([[0.60, 0.72, 0.35], [0.15, 0.95, 0.27]])
STAINS = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)


def make_stained_tile(seed: int, stains: np.ndarray = STAINS, size: int = 48) -> np.ndarray:
    """Tile with two stains: pixels with either stain, with both, and background."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(4.0, 0.25, size=(size * size, 2)) * rng.choice(
        [[1, 0.02], [0.02, 1], [0.6, 0.6], [0, 0]], p=[0.3, 0.3, 0.3, 0.1], size=size * size
    )
    return to_pixels(amounts @ stains, (3, size, size))


BATCH = np.stack([make_stained_tile(seed) for seed in range(3)])


@pytest.mark.parametrize("name", [name for name in PERTURBATIONS if name != "jpeg"])
def test_neutral_level_is_the_identity(name: str) -> None:
    perturbed = perturb(BATCH, name, PERTURBATIONS[name].neutral, KEYS)
    assert (perturbed.pixels == BATCH).all()
    assert not perturbed.untouched.any()


def test_jpeg_error_grows_with_compression() -> None:
    height, width = np.mgrid[:64, :64]
    smooth = np.stack([128 + 60 * np.sin(height / 13), 128 + 50 * np.cos(width / 17), 90 + height]).astype(np.uint8)
    errors = [
        np.abs(perturb(smooth[None], "jpeg", quality, KEYS[:1]).pixels.astype(float) - smooth).mean()
        for quality in (100, 80, 30, 5)
    ]
    assert errors[0] < 1.0
    assert errors == sorted(errors)
    assert errors[3] > 3 * errors[0]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_perturbation_depends_only_on_tile_id_and_seed(name: str) -> None:
    level = {"jpeg": 40, "blur": 1.5, "magnification": 0.7, "macenko": 0.3, "hed": 0.3}.get(name, 1.3)
    expected = perturb(BATCH, name, level, KEYS, seed=1).pixels
    reordered = perturb(BATCH[::-1].copy(), name, level, KEYS[::-1].copy(), seed=1).pixels[::-1]
    single = perturb(BATCH[1:2], name, level, KEYS[1:2], seed=1).pixels[0]
    assert (expected == reordered).all()
    assert (expected[1] == single).all()
    assert expected.dtype == np.uint8 and expected.shape == BATCH.shape
    assert not (expected == BATCH).all()
    other = perturb(BATCH, name, level, KEYS, seed=2).pixels
    assert (other == expected).all() == (name not in ("macenko", "hed"))


def test_macenko_recovers_the_stains() -> None:
    for stains in (STAINS, STAINS[::-1]):
        estimated = macenko_stains(to_density(make_stained_tile(5, stains)))
        assert estimated is not None
        angles = np.rad2deg(np.arccos(np.clip((estimated * STAINS).sum(axis=1), -1, 1)))
        assert angles.max() < 4, angles


@pytest.mark.parametrize("name", ["macenko", "hed"])
def test_stain_jitter_matches_a_slow_reference(name: str) -> None:
    from clipit.tiles.augment import uniform

    draws = 2 * uniform(KEYS, 3, 0)[:, :6] - 1
    perturbed = perturb(BATCH, name, 0.2, KEYS, seed=3).pixels
    for tile, tile_draws, changed in zip(BATCH, draws, perturbed, strict=True):
        stains = HED if name == "hed" else macenko_stains(to_density(tile))
        assert stains is not None
        k = len(stains)
        for y, x in ((0, 0), (7, 31), (40, 12)):
            density = np.array([-np.log((float(tile[c, y, x]) + 1) / 256) for c in range(3)])
            amounts = np.linalg.lstsq(stains.T, density, rcond=None)[0]
            residual = density - amounts @ stains
            jittered = [(1 + 0.2 * tile_draws[i]) * amounts[i] + 0.2 * tile_draws[3 + i] for i in range(k)]
            expected = 256 * np.exp(-(np.array(jittered) @ stains + residual)) - 1
            np.testing.assert_allclose(changed[:, y, x], np.clip(expected, 0, 255), atol=0.51)


def test_tiles_without_two_stains_are_unchanged() -> None:
    white = np.full((3, 32, 32), 250, np.uint8)
    black = np.zeros((3, 32, 32), np.uint8)
    one_colour = np.broadcast_to(np.array([180, 90, 160], np.uint8)[:, None, None], (3, 32, 32)).copy()
    grey = np.random.default_rng(0).integers(40, 140, (1, 32, 32)).astype(np.uint8).repeat(3, axis=0)
    tiles = np.stack([white, black, one_colour, grey, make_stained_tile(0, size=32)])
    perturbed = perturb(tiles, "macenko", 0.3, tile_keys("abcde"))
    assert perturbed.untouched.tolist() == [True, True, True, True, False]
    assert (perturbed.pixels[:4] == tiles[:4]).all()


def test_brightness_and_contrast_match_pillow() -> None:
    image = Image.fromarray(BATCH[0].transpose(1, 2, 0))
    for level in (0.5, 1.4):
        for name, enhance in (("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast)):
            expected = np.asarray(enhance(image).enhance(level)).transpose(2, 0, 1)
            perturbed = perturb(BATCH[:1], name, level, KEYS[:1]).pixels[0]
            assert np.abs(perturbed.astype(int) - expected).max() <= 1


def test_blur_matches_a_slow_convolution() -> None:
    sigma, radius = 1.0, 4
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(BATCH[0].astype(float), ((0, 0), (radius, radius), (radius, radius)), mode="symmetric")
    window = padded[:, 10 : 10 + 2 * radius + 1, 20 : 20 + 2 * radius + 1]
    expected = np.einsum("cyx,y,x->c", window, kernel, kernel)
    blurred = perturb(BATCH[:1], "blur", sigma, KEYS[:1]).pixels[0, :, 10, 20]
    np.testing.assert_allclose(blurred, expected, atol=0.6)


def test_magnification_zooms_around_the_centre() -> None:
    tile = np.full((1, 3, 40, 60), 200, np.uint8)
    tile[:, :, 15:25, 20:40] = 50  # a quarter of the height, a third of the width
    zoomed = {level: perturb(tile, "magnification", level, KEYS[:1]).pixels[0, 0] < 125 for level in (0.5, 1.0, 2.0)}
    assert zoomed[1.0].sum() == 200
    assert zoomed[2.0].sum() == pytest.approx(4 * 200, rel=0.05)
    assert zoomed[0.5][10:30, 15:45].sum() == pytest.approx(200 / 4, rel=0.2)  # the tile at half size
    assert zoomed[0.5][:5].any()  # padded with its mirror image
    assert perturb(tile, "magnification", 0.2, KEYS[:1]).pixels.shape == tile.shape


def test_unknown_names_and_levels_raise_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown perturbation fog"):
        perturb(BATCH, "fog", 1, KEYS)
    tiles = {"source": "table", "path": "x.csv"}
    for perturbations, message in (
        ({"blur": [-1]}, "levels of blur"),
        ({"jpeg": [50.5]}, "whole numbers"),
        ({"magnification": [0.01]}, "levels of magnification"),
        ({"fog": [1]}, "fog"),
    ):
        with pytest.raises(ValueError, match=message):
            ConfigFile.model_validate({"tiles": tiles, "robustness": {"perturbations": perturbations}})
