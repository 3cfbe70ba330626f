"""Estimate the memory that training needs, from measured passes of the student."""

import copy
import gc
import logging
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.distributed import get_processes
from clipit.models.backbones import load_backbone
from clipit.models.checkpointing import set_checkpointing
from clipit.models.student import Student, StudentOutput, build_student
from clipit.training.terms.term import Normalise

logger = logging.getLogger(__name__)

_TRIVIAL = (20_000_000, 224)  # weight bytes and input edge in pixels up to which a pass on a few tiles always fits
_TILES = (2, 3)  # sizes of the measured batches; with one tile, the memory format is ambiguous and copies differ
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CLASSES, _JOINT_DIM = 10, 768  # sizes of the heads of a student without tiles or VLM; they hardly affect the memory
_cache: dict[tuple[object, ...], "Activations"] = {}


@dataclass(frozen=True)
class Activations:
    """Memory in use, besides weights and optimiser state, after each operation of a forward and backward pass.

    The memory is linear in the number of tiles, with different coefficients at each operation: activations dominate at
    the end of the forward pass, gradients at the end of the backward pass.

    Attributes:
        fixed: Bytes that do not depend on the batch, one value per operation.
        per_tile: Bytes per tile of the batch, one value per operation.
    """

    fixed: Float64[np.ndarray, "o"]
    per_tile: Float64[np.ndarray, "o"]

    def peak(self, tiles: int) -> tuple[int, int]:
        """Return the fixed bytes and the bytes per tile at the operation with the largest sum."""
        largest = int(np.argmax(self.fixed + tiles * self.per_tile))
        return int(self.fixed[largest]), int(self.per_tile[largest])


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory needed to train a student, in bytes.

    Attributes:
        weights: Parameters and buffers.
        gradients: Gradients of the trained parameters.
        optimiser: Two moments per trained parameter (AdamW).
        update: Gradients and temporary tensors of the optimiser's step.
        plain: Activations without gradient checkpointing.
        checkpointed: Activations with gradient checkpointing; None if not measured or not supported by the backbone.
    """

    weights: int
    gradients: int
    optimiser: int
    update: int
    plain: Activations
    checkpointed: Activations | None

    def activations(self, checkpointing: bool) -> Activations:
        """Return the activations with or without checkpointing.

        Raises:
            ValueError: Activations with checkpointing were not measured.
        """
        activations = self.checkpointed if checkpointing else self.plain
        if activations is None:
            raise ValueError("the estimate has no activations with checkpointing")
        return activations

    def per_tile(self, tiles: int, *, checkpointing: bool) -> int:
        """Return the bytes of activations per tile at the peak."""
        return self.activations(checkpointing).peak(tiles)[1]

    def total(self, tiles: int, *, checkpointing: bool = False, micro_batches: int = 1, processes: int = 1) -> int:
        """Return the peak memory of a process in bytes.

        Args:
            tiles: Images in one forward pass: tiles per micro-batch, times the views of each.
            checkpointing: Whether gradient checkpointing is used.
            micro_batches: Micro-batches per step; with several, the gradients of earlier micro-batches stay in memory.
            processes: Number of processes; with several, gradients are synchronised through buffers of the same size.
        """
        fixed, per_tile = self.activations(checkpointing).peak(tiles)
        copies = (micro_batches > 1) + (processes > 1)
        return self.weights + self.optimiser + copies * self.gradients + max(fixed + tiles * per_tile, self.update)


def estimate_memory(
    student: Student,
    normalise: Normalise,
    pixels: int,
    *,
    precision: str = "no",
    checkpointing: bool = True,
    mode: AbstractContextManager[Any] | None = None,
) -> MemoryEstimate:
    """Estimate the memory needed to train a student from passes on two and on three blank tiles.

    The passes use fake tensors (shapes without values), unless the student is tiny or one of its operations needs
    values. Weights, gradients and the state of torch's random generators stay unchanged. Memory that is allocated and
    freed within one operation (workspaces of libraries) is not counted.

    Args:
        normalise: Function from pixels 0..255 to the backbone's input.
        pixels: Edge length of the input in pixels.
        precision: Mixed precision: `no`, `bf16` or `fp16`.
        checkpointing: Whether to also measure passes with gradient checkpointing.
        mode: The `FakeTensorMode` in which the student was built without memory for its weights; None if the student
            has real weights.
    """
    weights = sum(map(_bytes, [*student.parameters(), *student.buffers()]))
    if mode is None and (weights > _TRIVIAL[0] or pixels > _TRIVIAL[1]):
        try:
            fake, mode = _fake_copy(student)
            return estimate_memory(fake, normalise, pixels, precision=precision, checkpointing=checkpointing, mode=mode)
        except Exception as error:  # the shape of a result depends on values, or an operation has no fake kernel
            logger.debug(f"memory is estimated with real tensors: {error}")
            mode = None
    parameters = list(student.parameters())
    trained = sum(_bytes(parameter) for parameter in parameters if parameter.requires_grad)

    def measure(name: str) -> Activations:
        device = parameters[0].device
        trains = tuple(parameter.requires_grad for parameter in parameters)
        key = (name, str(student), trains, tuple(p.shape for p in parameters), pixels, precision, str(device))
        if key not in _cache:
            _cache[key] = _activations(student, normalise, pixels, precision, mode)
        return _cache[key]

    set_checkpointing(student.backbone, False)
    plain, checkpointed = measure("plain"), None
    if checkpointing and set_checkpointing(student.backbone, True):
        checkpointed = measure("checkpointed")
        set_checkpointing(student.backbone, False)
    return MemoryEstimate(
        weights=weights,
        gradients=trained,
        optimiser=2 * trained,
        update=2 * trained if parameters[0].device.type == "cuda" else trained,  # a GPU updates all weights at once
        plain=plain,
        checkpointed=checkpointed,
    )


@cache  # most arms of a comparison have the same student
def estimate_without_weights(
    backbone: BackboneConfig, lora: LoraConfig, student: StudentConfig, precision: str
) -> tuple[MemoryEstimate, int]:
    """Estimate the memory needed to train a student that is built without weights, from tensors without values.

    Returns:
        The estimate, and the edge length of the input in pixels.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        trunk = load_backbone(backbone, weights=False)
        joint_dim = _JOINT_DIM if student.projector_layers else None
        built = build_student(trunk, student, lora, backbone.tuning, n_classes=_CLASSES, joint_dim=joint_dim)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # fake tensors cannot be assigned in place
    try:
        with mode:
            built.to_empty(device=get_processes().device)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
    normalise, pixels = trunk.preprocess.normalise, trunk.preprocess.size
    return estimate_memory(built, normalise, pixels, precision=precision, mode=mode), pixels


def _fake_copy(student: Student) -> tuple[Student, AbstractContextManager[Any]]:
    """Copy a student with fake tensors (shapes without values) on the same device."""
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        return copy.deepcopy(student), mode


def _activations(
    student: Student, normalise: Normalise, pixels: int, precision: str, mode: AbstractContextManager[Any] | None
) -> Activations:
    smaller, larger = (
        np.array(_live_bytes(student, normalise, pixels, tiles, precision, mode), dtype=np.float64) for tiles in _TILES
    )
    if len(smaller) != len(larger):  # the operations depend on the batch, so only the peaks are comparable
        smaller, larger = smaller.max(keepdims=True), larger.max(keepdims=True)
    per_tile = np.maximum((larger - smaller) / (_TILES[1] - _TILES[0]), 0)
    return Activations(np.maximum(smaller - _TILES[0] * per_tile, 0), per_tile)


def _live_bytes(
    student: Student,
    normalise: Normalise,
    pixels: int,
    tiles: int,
    precision: str,
    mode: AbstractContextManager[Any] | None,
) -> list[int]:
    """Return the bytes in use, besides the weights, after each operation of a forward and backward pass."""
    device = next(student.parameters()).device
    autocast = torch.autocast(device.type, dtype=_AUTOCAST.get(precision), enabled=precision != "no")
    generators = [device] if device.type == "cuda" else []
    gc.collect(1)  # collect young objects now, so that a collection does not occur in just one of the passes
    with torch.random.fork_rng(generators), mode or nullcontext(), _LiveStorages(student) as live:
        images = torch.zeros(tiles, 3, pixels, pixels, dtype=torch.uint8, device=device)
        with autocast:
            output = student(normalise(images))
        torch.autograd.backward(_sum_outputs(output))
        del output
    for parameter in student.parameters():
        parameter.grad = None
    timeline: list[int] = live.timeline
    return timeline


def _sum_outputs(output: StudentOutput) -> Tensor:
    """Return a scalar that depends on all outputs; the memory of the real loss is small."""
    parts = (output.logits, output.projected, output.second)
    return torch.stack([part.float().sum() for part in parts if part is not None]).sum()


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record the bytes of all live storages after each operation, excluding the parameters and buffers of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        excluded = (*module.parameters(), *module.buffers())
        self.timeline: list[int] = []
        self._live = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in excluded}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        self.timeline.append(self._live)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._live += self._sizes[key]
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._live -= self._sizes.pop(key)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
