"""One contrastive training step of a VLM, with gradients cached at the embeddings of the whole batch.

The loss contrasts every bag with all others, but only a few images or texts at a time fit into memory with their
activations. All inputs are therefore encoded without gradients first, and the loss and its gradient with respect to the
embeddings are computed. Then each micro-batch is encoded again with gradients, and the gradient of its embeddings is
propagated back (Gao et al. 2021, arXiv 2101.06983, section 3). The gradient is that of one large batch. The last two
micro-batches of each tower are encoded only once and keep their graphs; these graphs are freed before any other
micro-batch is encoded again.

In passes without gradients, low-rank updates are merged into the weights, so that adapted layers cost no more than
plain ones. Between its two passes, a micro-batch of images is kept in CPU memory, so that only its embeddings stay on a
GPU. The random numbers for dropout, if any, are drawn per micro-batch, so with dropout the trained weights depend on
the micro-batch size and the number of processes.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from clipit.config.vlm_training import AdaptConfig
from clipit.distributed import Processes
from clipit.errors import DivergenceError
from clipit.models.adapted_towers import AdaptedTowers
from clipit.models.lora import merged_lora
from clipit.tiles.augment import augment, tile_keys
from clipit.training.losses import at_least_float32, many_to_many_sum
from clipit.training.step import Clock
from clipit.training.terms.bags import MIN_TEMPERATURE
from clipit.vlm_training.bag_batches import BagExamples, ContrastBatch

logger = logging.getLogger(__name__)

_MAX_SCALE = 1 / MIN_TEMPERATURE
"""Upper bound of a learnt scale, the same as in loss terms; the lower bound is 1."""
_AT_BOUND = 1e-3
"""Relative distance from a bound within which the scale counts as having reached it."""
_BLOCK = 4_194_304
"""Maximum number of member similarities in memory at once; it limits the number of bags per block."""
_KEPT = 2
"""Number of micro-batches of images, and of texts, that are encoded only once and whose graphs stay in memory."""
_OTHER_SIDE = np.uint64(0xC2B2AE3D27D4EB4F)
"""XORed with the augmentation keys of tiles contrasted with other tiles, so that the two views of a tile differ."""

Kind = Literal["tiles", "others", "texts"]


@dataclass
class _MicroBatch:
    """A micro-batch of this process.

    Attributes:
        kind: Kind of the encoded items.
        indices: Indices into `tiles`, `others` or `texts` of the batch.
        inputs: Augmented pixels [n,3,h,w], uint8, on any device, or the rows of the texts.
        output: Embeddings with their graph, if the micro-batch is not encoded again.
    """

    kind: Kind
    indices: Int64[np.ndarray, "n"]
    inputs: Tensor | Int64[np.ndarray, "n"]
    output: Tensor | None = None


@dataclass
class ContrastStep:
    """Forward and backward passes of contrastive batches.

    Attributes:
        adapted: VLM with its trained weights, on this process's device.
        section: Section `adapt`.
        seed: Seed for augmentation and dropout.
        processes: Processes that share a batch.
        precision: `bf16` or `no`.
        clock: Counter of images, and timer of the time spent waiting for them.
    """

    adapted: AdaptedTowers
    examples: BagExamples
    section: AdaptConfig
    seed: int
    processes: Processes
    precision: str
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self._keys = tile_keys(self.examples.tile_ids)
        self._frozen_texts: dict[int, Tensor] = {}  # text embeddings from a frozen tower, by block of rows
        self._batches: dict[int, ContrastBatch] = {}  # batches that have been read ahead, by step

    def pixels(self, steps: range) -> Iterator[tuple[Int[np.ndarray, "n"], Tensor]]:
        """Yield the pixels of this process's micro-batches of images, step by step, reading ahead."""
        rows = (rows for step in steps for rows in self._image_rows(step))
        return self.examples.source.on_device(rows, self.processes.device, self.clock.reading)

    def __call__(self, step: int, pixels: Iterator[tuple[Int[np.ndarray, "n"], Tensor]]) -> dict[str, Tensor]:
        """Compute the gradients of a step, summed over all processes.

        Args:
            step: Index of the step, from 0.
            pixels: Iterator from `pixels`, positioned at this step.

        Returns:
            This process's share of the loss, by name.
        """
        batch = self._batches.pop(step, None) or self.examples.batch(step)
        self.adapted.train()
        kept = self._kept_micro_batches(batch)
        micro_batches: list[_MicroBatch] = []
        vectors: dict[Kind, list[Tensor]] = {"tiles": [], "others": [], "texts": []}
        numbered = enumerate(self._read(batch, step, pixels))
        for keeps_graph, part in groupby(numbered, lambda entry: entry[0] in kept and self._is_trained(entry[1].kind)):
            merged = nullcontext() if keeps_graph else merged_lora(self.adapted.network)
            with merged, torch.set_grad_enabled(keeps_graph):
                for number, micro_batch in part:
                    output = self._encode(micro_batch, step, number)
                    vectors[micro_batch.kind].append(output.detach())
                    if isinstance(micro_batch.inputs, Tensor):
                        micro_batch.inputs = _in_cpu_memory(micro_batch.inputs)
                    micro_batch.output = output if keeps_graph else None
                    micro_batches.append(micro_batch)
        gathered = {kind: self._gather(vectors[kind], count) for kind, count in _counts(batch).items()}
        leaves = {kind: values.requires_grad_(self._is_trained(kind)) for kind, values in gathered.items()}
        loss = self._contrast(batch, leaves)
        # The kept graphs are freed first, so that they and the graph of a second encoding are never in memory together.
        for number, micro_batch in sorted(enumerate(micro_batches), key=lambda entry: entry[1].output is None):
            gradient = leaves[micro_batch.kind].grad
            if gradient is None:
                continue
            output = micro_batch.output if micro_batch.output is not None else self._encode(micro_batch, step, number)
            torch.autograd.backward(output, gradient[torch.from_numpy(micro_batch.indices).to(output.device)])
            micro_batch.output = None
        self._sum_gradients()
        return {"loss": loss}

    @torch.no_grad()
    def mean_loss(self, steps: range) -> float:
        """Compute the mean loss of batches without training on them and without augmentation, over all processes."""
        self.adapted.eval()
        pixels, total = self.pixels(steps), torch.zeros((), device=self.processes.device)
        for step in steps:
            batch = self._batches.pop(step, None) or self.examples.batch(step)
            vectors: dict[Kind, list[Tensor]] = {"tiles": [], "others": [], "texts": []}
            for number, micro_batch in enumerate(self._read(batch, None, pixels)):
                vectors[micro_batch.kind].append(self._encode(micro_batch, step, number))
            gathered = {kind: self._gather(vectors[kind], count) for kind, count in _counts(batch).items()}
            total += self._contrast(batch, gathered)
        return sum(self.processes.gather(float(total))) / len(steps)

    # Inputs

    def _image_rows(self, step: int) -> Iterator[Int64[np.ndarray, "_"]]:
        batch = self._batches[step] = self.examples.batch(step)
        for rows in (batch.tiles, batch.others):
            yield from (rows[share] for share in self._shares(len(rows)))

    def _shares(self, count: int) -> list[Int64[np.ndarray, "_"]]:
        """Return the indices of this process's micro-batches among `count` items."""
        positions = np.arange(self.processes.rank, count, self.processes.count)
        return [
            positions[start : start + self.section.micro_batch]
            for start in range(0, len(positions), self.section.micro_batch)
        ]

    def _kept_micro_batches(self, batch: ContrastBatch) -> set[int]:
        """Return the indices of the last two micro-batches of images and of texts, whose graphs are kept."""
        images = len(self._shares(len(batch.tiles))) + len(self._shares(len(batch.others)))
        texts = images + len(self._shares(len(batch.texts)))
        return {*range(max(images - _KEPT, 0), images), *range(max(texts - _KEPT, images), texts)}

    def _read(
        self, batch: ContrastBatch, step: int | None, pixels: Iterator[tuple[Int[np.ndarray, "n"], Tensor]]
    ) -> Iterator[_MicroBatch]:
        """Yield this process's micro-batches; images are augmented if a step is given."""
        sides: list[tuple[Kind, Int[np.ndarray, "_"]]] = [("tiles", batch.tiles), ("others", batch.others)]
        for kind, rows in sides:
            for share in self._shares(len(rows)):
                before = time.perf_counter()
                read, images = next(pixels)
                self.clock.waited += time.perf_counter() - before
                self.clock.tiles += len(read) * self.processes.count
                if step is not None:
                    keys = self._keys[read] ^ (_OTHER_SIDE if kind == "others" else np.uint64(0))
                    images = augment(images, keys, self.seed, step, self.section.augmentation)
                yield _MicroBatch(kind, share, images)
        for share in self._shares(len(batch.texts)):
            yield _MicroBatch("texts", share, batch.texts[share])

    # Embeddings

    def _is_trained(self, kind: Kind) -> bool:
        return ("text" if kind == "texts" else "image") in self.adapted.trained_towers

    def _encode(self, micro_batch: _MicroBatch, step: int, number: int) -> Float[Tensor, "n d"]:
        """Encode a micro-batch; a second call draws the same random numbers."""
        device = self.processes.device
        torch.manual_seed((self.seed * 1_000_003 + step * 1009 + self.processes.rank) * 4099 + number)  # for dropout
        autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")
        with self._dropout_if_trained(micro_batch.kind), autocast:
            if isinstance(micro_batch.inputs, Tensor):
                images = micro_batch.inputs.to(device, non_blocking=True)
                return at_least_float32(self.adapted.image(self.adapted.towers.preprocess.normalise(images)))
            if self._is_trained("texts"):
                return self._encode_texts(micro_batch.inputs.tolist())
            return self._look_up(micro_batch.inputs.tolist())

    def _encode_texts(self, rows: Sequence[int]) -> Float[Tensor, "n d"]:
        tokens = self.adapted.towers.tokenise([self.examples.texts[row] for row in rows])
        device = self.processes.device
        return at_least_float32(self.adapted.text({key: value.to(device) for key, value in tokens.items()}))

    def _look_up(self, rows: Sequence[int]) -> Float[Tensor, "n d"]:
        """Return text embeddings from a frozen tower; each text is encoded once.

        The embeddings are computed in fixed blocks of texts, because rounding depends on the texts of a batch, and
        resumed training must give the same weights.
        """
        size = self.section.micro_batch
        for block in sorted({row // size for row in rows} - self._frozen_texts.keys()):
            texts = range(block * size, min((block + 1) * size, len(self.examples.texts)))
            self._frozen_texts[block] = self._encode_texts(texts).detach().cpu()
        return torch.stack([self._frozen_texts[row // size][row % size] for row in rows]).to(self.processes.device)

    @contextmanager
    def _dropout_if_trained(self, kind: Kind) -> Iterator[None]:
        """Disable dropout while a frozen tower encodes."""
        if self._is_trained(kind):
            yield
            return
        mode = self.adapted.training
        self.adapted.eval()
        try:
            yield
        finally:
            self.adapted.train(mode)

    def _gather(self, vectors: list[Tensor], count: int) -> Float[Tensor, "count d"]:
        """Gather the embeddings of all processes in the order of the batch."""
        processes = self.processes
        if processes.count == 1:
            return torch.cat(vectors) if vectors else torch.zeros(0, 1, device=processes.device)
        if not count:
            return torch.zeros(0, 1, device=processes.device)
        dim = max(processes.gather(vectors[0].shape[1] if vectors else 0))
        per_process = -(-count // processes.count)
        dtype = vectors[0].dtype if vectors else torch.float32
        padded = torch.zeros(per_process, dim, dtype=dtype, device=processes.device)
        if vectors:
            joined = torch.cat(vectors)
            padded[: len(joined)] = joined
        received = [torch.empty_like(padded) for _ in range(processes.count)]
        dist.all_gather(received, padded)
        return torch.stack(received, dim=1).flatten(0, 1)[:count].contiguous()

    # Loss and gradients

    def _contrast(self, batch: ContrastBatch, leaves: dict[Kind, Tensor]) -> Float[Tensor, ""]:
        """Compute this process's share of the mean loss, and its gradients for the embeddings of all processes."""
        device, processes = self.processes.device, self.processes
        scale = self.adapted.logit_scale
        trained = any(values.requires_grad for values in leaves.values())
        other: Kind = "texts" if len(batch.texts) else "others"
        image_mask, other_mask = (
            _to_device(members >= 0, device) for members in (batch.image_members, batch.other_members)
        )
        indices = [_to_device(np.maximum(each, 0), device) for each in (batch.image_members, batch.other_members)]
        same, usable = _to_device(batch.same, device), int((image_mask.any(dim=1) & other_mask.any(dim=1)).sum())
        n_bags = len(batch.image_members)
        first, end = (n_bags * rank // processes.count for rank in (processes.rank, processes.rank + 1))
        rows = max(_BLOCK // max(n_bags * image_mask.shape[1] * other_mask.shape[1], 1), 1)
        total = torch.zeros((), device=device)
        for start in range(first, end, rows):
            block_loss, _ = many_to_many_sum(
                leaves["tiles"][indices[0]],
                image_mask,
                leaves[other][indices[1]],
                other_mask,
                torch.exp(-at_least_float32(scale.reshape(()))),
                slice(start, min(start + rows, end)),
                same=same,
            )
            block_loss = block_loss / max(usable, 1)
            if trained and block_loss.requires_grad:
                torch.autograd.backward(block_loss)
            total = total + block_loss.detach()
        if processes.count > 1:
            for values in leaves.values():
                if values.requires_grad:
                    values.grad = torch.zeros_like(values) if values.grad is None else values.grad
                    dist.all_reduce(values.grad)
        return total

    def _sum_gradients(self) -> None:
        """Sum the gradients of the trained weights over the processes."""
        if self.processes.count == 1:
            return
        weights = list(self.adapted.trainable().values())
        missing = torch.tensor([float(weight.grad is None) for weight in weights], device=self.processes.device)
        dist.all_reduce(missing)
        # A weight that has no gradient in any process, such as a weight of an unused tower, is not updated.
        reached = [each for each, count in zip(weights, missing.tolist(), strict=True) if count < self.processes.count]
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in reached]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for weight, gradient in zip(reached, torch.split(flat, [weight.numel() for weight in reached]), strict=True):
            weight.grad = gradient.view_as(weight).clone()


def clamp_scale(adapted: AdaptedTowers) -> None:
    """Clamp a learnt scale to the range 1 to 100 after an update, as CLIP does."""
    with torch.no_grad():
        if adapted.logit_scale.requires_grad:
            adapted.logit_scale.clamp_(0.0, math.log(_MAX_SCALE))


@dataclass
class ScaleWatch:
    """Checks whether the learnt logit scale has reached one of its bounds.

    Attributes:
        start: Scale before training.
        noted: Whether the upper bound has been logged.
    """

    start: float
    noted: bool = False

    def check(self, adapted: AdaptedTowers) -> float:
        """Return the scale; log once if it is at its upper bound.

        Raises:
            DivergenceError: The learnt scale has fallen to its lower bound, at which all cosines are almost equal.
        """
        scale = float(adapted.logit_scale.detach().exp())
        if not adapted.logit_scale.requires_grad:
            return scale
        lowest, highest = 1 + _AT_BOUND, _MAX_SCALE * (1 - _AT_BOUND)
        if scale <= lowest < self.start:
            raise DivergenceError(
                "the temperature diverged: the logit scale has fallen to its lower bound of 1, because images and "
                "texts of a pair are no more similar than mismatched ones",
                where="adapt.learn_temperature",
                fix="check that texts belong to their images, lower adapt.learning_rate, or set "
                "adapt.learn_temperature: false",
            )
        if scale >= highest and not self.noted:
            self.noted = True
            logger.info(f"note: the logit scale is at its upper bound of 100 (initial value: {self.start:.4g})")
        return scale


def _counts(batch: ContrastBatch) -> dict[Kind, int]:
    return {"tiles": len(batch.tiles), "others": len(batch.others), "texts": len(batch.texts)}


def _to_device(values: Bool[np.ndarray, "..."] | Int[np.ndarray, "..."], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


def _in_cpu_memory(pixels: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Copy pixels to CPU memory; pinned if they come from a GPU, so that the GPU does not wait for the copy."""
    if pixels.device.type == "cpu":
        return pixels
    copy = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=pixels.device.type == "cuda")
    return copy.copy_(pixels, non_blocking=pixels.device.type == "cuda")
