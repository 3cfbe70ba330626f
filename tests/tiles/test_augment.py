import numpy as np
import pytest
import torch

from clipit.config.run import AugmentationConfig
from clipit.errors import DataError
from clipit.tiles.augment import apply_dihedral, augment, tile_keys, uniform

BOTH = AugmentationConfig()
MOVES = AugmentationConfig(stain=0)
STAIN = AugmentationConfig(dihedral=False)


def batch(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_augmentation_does_not_depend_on_the_batch() -> None:
    pixels, keys = batch(32), tile_keys([f"t{index}" for index in range(32)])
    expected = augment(pixels, keys, 3, 7, BOTH)
    order = np.random.default_rng(0).permutation(32)
    shuffled = augment(pixels[torch.from_numpy(order)], keys[order], 3, 7, BOTH)
    assert torch.equal(shuffled, expected[torch.from_numpy(order)])
    for index in (0, 13, 31):
        assert torch.equal(augment(pixels[index : index + 1], keys[index : index + 1], 3, 7, BOTH)[0], expected[index])


def test_augmentation_depends_on_seed_step_and_id() -> None:
    pixels, keys = batch(1).repeat(8, 1, 1, 1), tile_keys([f"t{index}" for index in range(8)])
    first = augment(pixels, keys, 0, 0, BOTH)
    assert not torch.equal(first, augment(pixels, keys, 1, 0, BOTH))
    assert not torch.equal(first, augment(pixels, keys, 0, 1, BOTH))
    assert len({tile.numpy().tobytes() for tile in first}) == 8
    assert torch.equal(first, augment(pixels, keys, 0, 0, BOTH))


def test_the_eight_symmetries_are_distinct_permutations_of_pixels() -> None:
    pixels = batch(1)
    transformed = [apply_dihedral(pixels, number) for number in range(8)]
    assert len({tile.contiguous().numpy().tobytes() for tile in transformed}) == 8
    for tile in transformed:
        assert torch.equal(tile.flatten().sort().values, pixels.flatten().sort().values)
    rotations = [torch.rot90(pixels, quarter, (2, 3)).contiguous().numpy().tobytes() for quarter in range(4)]
    assert set(rotations) < {tile.contiguous().numpy().tobytes() for tile in transformed}


def test_all_symmetries_occur_and_rectangular_tiles_keep_their_shape() -> None:
    keys = tile_keys([f"t{index}" for index in range(400)])
    for shape, expected in (((16, 16), 8), ((16, 8), 4)):
        augmented = augment(batch(1, *shape).repeat(400, 1, 1, 1), keys, 0, 0, MOVES)
        _, counts = np.unique([tile.numpy().tobytes() for tile in augmented], return_counts=True)
        assert len(counts) == expected
        assert counts.min() > 0.5 * 400 / expected


def test_stain_jitter_grows_with_its_spread() -> None:
    pixels, keys = torch.full((64, 3, 8, 8), 0, dtype=torch.uint8), tile_keys([f"t{index}" for index in range(64)])
    pixels[:] = torch.tensor([180, 110, 170], dtype=torch.uint8)[None, :, None, None]
    changes = []
    for spread in (1e-4, 0.05, 0.1, 0.3):
        jittered = augment(pixels, keys, 0, 0, AugmentationConfig(dihedral=False, stain=spread))
        changes.append((jittered.float() - pixels.float()).abs().mean().item())
    assert changes[0] == 0
    assert 0 < changes[1] < changes[2] < changes[3] < 60
    assert changes[2] < 25


def test_stain_jitter_follows_the_formula() -> None:
    """Slow reference: unmix with the inverse stain matrix, scale and shift the concentrations, and remix."""
    pixels, keys = batch(3, 4, 4), tile_keys(["a", "b", "c"])
    draws = 0.1 * (2 * uniform(keys, 5, 9)[:, 1:] - 1)
    stains = np.asarray([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    expected = np.empty((3, 3, 4, 4))
    for tile in range(3):
        for y in range(4):
            for x in range(4):
                density = -np.log((pixels[tile, :, y, x].numpy() + 1.0) / 256)
                concentration = density @ np.linalg.inv(stains) * (1 + draws[tile, :3]) + draws[tile, 3:]
                expected[tile, :, y, x] = 256 * np.exp(-concentration @ stains) - 1
    augmented = augment(pixels, keys, 5, 9, STAIN).numpy()
    assert np.abs(augmented - np.clip(expected, 0, 255)).max() <= 0.51


def test_random_numbers_are_uniform_and_uncorrelated() -> None:
    draws = uniform(tile_keys([f"t{index}" for index in range(4000)]), 0, 0)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(draws.T) - np.eye(draws.shape[1])).max() < 0.06
    steps = np.stack([uniform(tile_keys(["t"]), 0, step)[0] for step in range(2000)])
    assert np.abs(np.corrcoef(steps[1:].ravel(), steps[:-1].ravel())[0, 1]) < 0.04


def test_disabled_augmentation_is_the_identity_and_negative_seeds_are_refused() -> None:
    pixels, keys = batch(2), tile_keys(["a", "b"])
    assert augment(pixels, keys, 0, 0, AugmentationConfig(dihedral=False, stain=0)) is pixels
    with pytest.raises(DataError, match="negative"):
        augment(pixels, keys, -1, 0, BOTH)


def test_keys_do_not_depend_on_the_platform() -> None:
    assert tile_keys(["train/a.png", "b"]).tolist()[0] == 18100138848260977147
