"""Gradients of a contrastive step: cached gradients equal direct ones, and two processes equal one."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launching import run_two
from tiny_models import WORDS, save_clip
from torch import Tensor

from clipit.config.run import LoraConfig, VLMConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import ModelError
from clipit.models.adapted_towers import AdaptedTowers, adapt_towers
from clipit.models.vlm import load_vlm
from clipit.tiles.pixel_source import PixelSource
from clipit.training.losses import many_to_many_sum
from clipit.vlm_training import contrastive_step as step_module
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.vlm_training.contrastive_step import ContrastStep, ScaleWatch


class Noise(PixelSource):
    """Source of random tiles."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=generator)

    def on_device(self, batches: Any, device: torch.device, clock: Any = None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the tiles of each batch of rows."""
        for rows in batches:
            yield rows, self.values[torch.from_numpy(rows)]


def make_step(
    folder: Path, processes: Processes, micro_batch: int, dropout: float = 0.0, texts_per_bag: int = 2
) -> ContrastStep:
    """Return a step of 7 bags in float64; some bags share tiles or texts, and two bags are not negatives."""
    torch.manual_seed(0)
    towers = load_vlm(VLMConfig(name=str(folder))).towers
    towers.module.double()
    image = towers.image
    towers = replace(towers, image=lambda pixels: image(pixels.double()))
    adapted = adapt_towers(towers, "lora", ("image", "text"), LoraConfig(dropout=dropout), True).double()
    with torch.no_grad():
        for weight in adapted.trainable().values():  # LoRA updates start at zero, where one factor has no gradient
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    tiles = [[0, 1], [2], [3, 4], [5, 6], [7, 8], [1, 9], [10, 11]]
    texts = [[0, 1], [2], [3, 4], [0], [1, 2], [4], [3]]
    numbers = np.arange(7)
    examples = BagExamples(
        source=Noise(),
        tile_ids=[f"tile {row}" for row in range(12)],
        texts=[f"{WORDS[row]} with {WORDS[row + 5]}" * (1 + row % 2) for row in range(5)],
        tiles_of=Members.of(tiles),
        texts_of=Members.of(texts),
        tiles_per_bag=2 if texts_per_bag else 1,
        texts_per_bag=texts_per_bag,
        batch_size=7,
        seed=3,
        groups=np.array([0, 1, 2, 3, 1, 4, 5]),
        partners=numbers,
        pixel_codes=np.arange(12),
    )
    section = AdaptConfig(batch_size=7, micro_batch=micro_batch)
    return ContrastStep(adapted, examples, section, 1, processes, "no")


def gradients_of(adapted: AdaptedTowers) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in adapted.trainable().items() if weight.grad is not None}


def direct_gradients(contrast: ContrastStep, step: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the whole batch without caching; dropout is seeded per micro-batch as in the step."""
    batch = contrast.examples.batch(step)
    contrast.adapted.train()
    parts = list(contrast._read(batch, step, contrast.pixels(range(step, step + 1))))
    outputs = [contrast._encode(part, step, number) for number, part in enumerate(parts)]
    vectors = {
        kind: torch.cat(kind_outputs)
        for kind in ("tiles", "texts", "others")
        if (kind_outputs := [output for part, output in zip(parts, outputs, strict=True) if part.kind == kind])
    }
    members = [torch.from_numpy(indices) for indices in (batch.image_members, batch.other_members)]
    sides = [vectors["tiles"], vectors["texts"] if "texts" in vectors else vectors["others"]]
    images, others = (side[indices.clamp(min=0)] for side, indices in zip(sides, members, strict=True))
    temperature = torch.exp(-contrast.adapted.logit_scale)
    loss, count = many_to_many_sum(
        images, members[0] >= 0, others, members[1] >= 0, temperature, same=torch.from_numpy(batch.same)
    )
    (loss / count).backward()
    gradients = gradients_of(contrast.adapted)
    for weight in contrast.adapted.parameters():
        weight.grad = None
    return float(loss.detach()) / count, gradients


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("micro_batch", [2, 100])
@pytest.mark.parametrize("texts_per_bag", [2, 0], ids=["texts", "images only"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cached_gradients_equal_those_of_the_whole_batch(
    vlm_folder: Path, micro_batch: int, texts_per_bag: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrast = make_step(vlm_folder, get_processes(), micro_batch, dropout, texts_per_bag)
    loss, expected = direct_gradients(contrast, 1)
    monkeypatch.setattr(step_module, "_BLOCK", 60)  # a block contains two bags
    cached_loss = contrast(1, contrast.pixels(range(1, 2)))["loss"]
    assert float(cached_loss) == pytest.approx(loss, abs=1e-6)
    gradients = gradients_of(contrast.adapted)
    assert gradients.keys() == expected.keys()
    assert any("text" in name for name in expected) == bool(texts_per_bag)
    for name, gradient in expected.items():
        assert bool(gradient.any())
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-9)


def test_all_but_the_last_two_micro_batches_of_a_tower_are_encoded_twice(
    vlm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrast = make_step(vlm_folder, get_processes(), 2)
    calls: list[tuple[str, int]] = []
    original = ContrastStep._encode

    def counted(self: ContrastStep, part: Any, step: int, number: int) -> Tensor:
        calls.append((part.kind, number))
        return original(self, part, step, number)

    monkeypatch.setattr(ContrastStep, "_encode", counted)
    contrast(0, contrast.pixels(range(1)))
    batch = contrast.examples.batch(0)
    images, texts = -(-len(batch.tiles) // 2), -(-len(batch.texts) // 2)
    assert images > 2 and texts > 2
    numbers = [number for _, number in calls]
    assert numbers[: images + texts] == list(range(images + texts))
    assert numbers[images + texts :] == [*range(images - 2), *range(images, images + texts - 2)]


@pytest.mark.parametrize("trained", ["image", "text"])
def test_a_frozen_tower_is_encoded_without_dropout(
    vlm_folder: Path, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrast = make_step(vlm_folder, get_processes(), 5)
    monkeypatch.setattr(contrast.adapted, "trained_towers", (trained,))
    modes: dict[str, set[bool]] = {"image": set(), "text": set()}
    for name, training_modes in modes.items():
        original = getattr(AdaptedTowers, name)

        def encode(
            self: AdaptedTowers, inputs: Any, original: Any = original, training_modes: set[bool] = training_modes
        ) -> Tensor:
            training_modes.add(self.training)
            return original(self, inputs)  # type: ignore[no-any-return]

        monkeypatch.setattr(AdaptedTowers, name, encode)
    contrast(0, contrast.pixels(range(1)))
    assert modes == {"image": {trained == "image"}, "text": {trained == "text"}}
    assert contrast.adapted.training


def test_a_logit_scale_at_a_bound_is_an_error_or_a_note(vlm_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted = make_step(vlm_folder, get_processes(), 5).adapted
    scales: list[float] = []

    def check(watch: ScaleWatch, scale: float) -> None:
        with torch.no_grad():
            adapted.logit_scale.fill_(math.log(scale))
        scales.append(watch.check(adapted))

    with caplog.at_level("INFO", logger="clipit"):
        for scale in (1.0, 1.2, 1.0):
            check(ScaleWatch(1.0), scale)
        check(ScaleWatch(14.3), 99.0)
    assert scales == pytest.approx([1.0, 1.2, 1.0, 99.0]) and not caplog.records
    with pytest.raises(ModelError, match=r"(?s)temperature diverged.*learn_temperature"):
        check(ScaleWatch(14.3), 1.0)
    with caplog.at_level("INFO", logger="clipit"):
        watch = ScaleWatch(14.3)
        for scale in (99.99, 100.0):
            check(watch, scale)
        adapted.logit_scale.requires_grad_(False)
        check(ScaleWatch(14.3), 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "note: the logit scale is at its upper bound of 100 (initial value: 14.3)"
    ]


def test_two_processes_give_the_gradients_of_one(vlm_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    folder = Path(__file__).parent
    script.write_text(
        f"""
import sys
sys.path[:0] = [{str(folder)!r}, {str(folder.parent)!r}]
from pathlib import Path
import torch
from test_contrast_step import direct_gradients, gradients_of, make_step
from clipit.distributed import Processes, get_processes
for texts in (2, 0):
    contrast = make_step(Path({str(vlm_folder)!r}), get_processes(), 2, texts_per_bag=texts)
    alone = make_step(Path({str(vlm_folder)!r}), Processes(0, 1, torch.device("cpu")), 2, texts_per_bag=texts)
    _, expected = direct_gradients(alone, 1)
    contrast(1, contrast.pixels(range(1, 2)))
    found = gradients_of(contrast.adapted)
    assert get_processes().count == 2 and found.keys() == expected.keys(), set(found) ^ set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
print("equal", get_processes().rank)
""",
        encoding="utf-8",
    )
    result = run_two(script)
    assert result.returncode == 0, result.stderr
    assert "equal 0" in result.stdout and "equal 1" in result.stdout
