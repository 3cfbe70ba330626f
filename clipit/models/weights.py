"""Read, write and check weights, because other packages silently keep random values for missing weights."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from clipit.errors import ModelError, shortlist
from clipit.output_files.artifacts import whole_file

Shape = tuple[int, ...]

_DATA_TYPE = re.compile(r"(?:torch\.)?(?:(b?float|b?f)|q?u?int|[iu])(\d+)(?:_?[a-z].*)?")
"""Name of a floating-point or integer type and its bits, in lower case: `torch.int8`, or `i8` in safetensors."""
UNQUANTISED = "use the unquantised weights of this model, in float32, bfloat16 or float16"
"""Fix given in errors about quantised weights."""
_WEIGHT_NAMES = ("weight", "bias")
"""Suffixes of the names of tensors that by design are never integers, unlike indices and counters."""

_PATCHES = "patch_embed.proj.weight"
"""Weight of timm's patch convolution, whose last two dimensions are the height and width of a patch."""
_POSITIONS = ("pos_embed", "relative_position_bias_table")
"""Suffixes of the names of timm's position embeddings, whose shapes depend on the input size."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors atomically as a safetensors file; they are copied, because they must not share memory."""
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with whole_file(path) as temporary:
        save_file(copies, temporary)


@dataclass(frozen=True)
class LoadReport:
    """Result of one call to `load_state_dict`.

    Attributes:
        missing: Weights of the module that are not in the file; they stay random.
        unexpected: Weights of the file that are not in the module.
    """

    module: nn.Module
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@contextmanager
def load_reports(where: object, *, strict: bool = False) -> Iterator[list[LoadReport]]:
    """Record missing and unexpected weights of every `load_state_dict` call in the block, and reject quantised weights.

    timm and open_clip build and load a model in one call, and do not return the result. No hook can be registered
    before the module exists.

    Args:
        where: Origin of the weights, for error messages.
        strict: Whether to keep the strictness that the package requests; otherwise no call is strict.
    """
    reports: list[LoadReport] = []
    original, as_called = nn.Module.load_state_dict, strict

    def record(self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        check_unquantised(state_dict, where)
        result = original(self, state_dict, strict=strict and as_called, assign=assign)
        reports.append(LoadReport(self, tuple(result.missing_keys), tuple(result.unexpected_keys)))
        return result

    nn.Module.load_state_dict = record  # type: ignore[method-assign]
    try:
        yield reports
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def check_all_loaded(missing: Sequence[str], unexpected: Sequence[str], *, name: str, where: object, fix: str) -> None:
    """Check that no weight is missing and none is unexpected.

    Args:
        missing: Weights of the model that are not in the file.
        unexpected: Weights of the file that are not in the model.
        where: File, folder or Hub id of the weights, for the error message.

    Raises:
        ModelError: Weights are missing or unexpected; both are listed.
    """
    parts = [
        f"{len(keys)} {kind}: {shortlist(sorted(keys))}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if parts:
        raise ModelError(f"the weights do not match {name}; {'; '.join(parts)}", where=where, fix=fix)


def check_finite_weights(tensors: Mapping[str, Tensor], where: object, fix: str) -> None:
    """Check that all weights are finite.

    Raises:
        ModelError: A weight is NaN or infinite.
    """
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise ModelError(f"the weights are not finite: {shortlist(broken)}", where=where, fix=fix)


def check_unquantised(tensors: Mapping[str, Any], where: object) -> None:
    """Check that no weight is quantised, because torch and transformers convert integers to floats without a scale.

    Integers of 32 and 64 bits are allowed for indices and counters, but not as weights or biases.

    Args:
        tensors: Tensors by name, or data types as in the header of a safetensors file.
        where: Origin of the weights, for the error message.

    Raises:
        ModelError: A weight is quantised; the first ones are listed.
    """
    dtypes = {name: str(getattr(value, "dtype", value)) for name, value in tensors.items()}
    quantised = [f"{name} is {dtype}" for name, dtype in dtypes.items() if _is_quantised(name, dtype)]
    if quantised:
        raise ModelError(
            f"the weights are quantised, which clipit does not support: {shortlist(quantised, 3)}",
            where=where,
            fix=UNQUANTISED,
        )


def _is_quantised(name: str, dtype: str) -> bool:
    match = _DATA_TYPE.fullmatch(dtype.lower())
    if match is None:  # booleans, complex numbers, and values that are not tensors
        return False
    floating, bits = bool(match[1]), int(match[2])
    return bits < 16 if floating else bits < 32 or name.endswith(_WEIGHT_NAMES)


def check_unquantised_folder(folder: Path) -> None:
    """Check that no weight in the files of a transformers model is quantised (see `check_unquantised`)."""
    from safetensors import safe_open

    files = sorted(folder.glob("model*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as opened:
            dtypes = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        check_unquantised(dtypes, file)
    for file in [] if files else sorted(folder.glob("pytorch_model*.bin")):
        check_unquantised(torch.load(file, map_location="cpu", weights_only=True), file)


def mismatches(keys: Iterable[Any]) -> list[str]:
    """Format transformers' `mismatched_keys` (name, shape in the file, shape in the model)."""
    return sorted(
        f"{key[0]} is {tuple(key[1])} in the file, but {tuple(key[2])} in the model"
        if isinstance(key, tuple) and len(key) == 3
        else str(key)
        for key in keys
    )


def unused_layers(model: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """List unused weights that change a model: layers beyond the last one of the model, and unmerged LoRA updates.

    Unused weights of heads and buffers are allowed.

    Args:
        unexpected: Weights of the file that are not in the model.
    """
    known = {re.sub(r"\d+", "#", name) for name in model.state_dict() if re.search(r"\.\d+\.", name)}
    return sorted(
        key
        for key in unexpected
        if re.search(r"(^|[._])lora_", key) or any(re.sub(r"\d+", "#", key).endswith(name) for name in known)
    )


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file, a state dict, or a checkpoint with a state dict under `state_dict`.

    The prefix `module.` of PyTorch's parallel wrappers is removed from names. Errors raised while reading are not
    converted: call this inside `foreign_errors`.

    Raises:
        ModelError: The weights are quantised.
    """
    tensors: Any
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(file)
    else:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(tensors, dict) and "state_dict" in tensors:
            tensors = tensors["state_dict"]
    check_unquantised(tensors, file)
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def tensor_shapes(file: Path) -> dict[str, Shape]:
    """Return the shapes of a file's tensors by name, without reading their values if the format allows it.

    Errors raised while reading are not converted: call this inside `foreign_errors`.

    Raises:
        ModelError: The file contains more than tensors, for instance a state dict within a checkpoint.
    """
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # files in the format before torch 1.6 cannot be memory-mapped
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    others = [str(key) for key, value in tensors.items() if not isinstance(value, torch.Tensor)] if tensors else []
    if not isinstance(tensors, dict) or others:
        raise ModelError(
            f"the file contains more than tensors: {shortlist(others) or type(tensors).__name__}",
            where=file,
            fix="save only the state dict of the model, for instance torch.save(checkpoint['state_dict'], FILE)",
        )
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_patch_size(module: nn.Module, shapes: Mapping[str, Shape], *, where: object, fix: str) -> None:
    """Check that the patch size in a file matches the model's, because timm silently resizes patches.

    Args:
        module: Model that the file is for.
        shapes: Tensor shapes in the file, from `tensor_shapes`.

    Raises:
        ModelError: The sizes differ.
    """
    expected = _shapes(module).get(_PATCHES)
    for key, shape in shapes.items():
        if expected and key.endswith(_PATCHES) and len(shape) == len(expected) == 4 and shape[2:] != expected[2:]:
            raise ModelError(
                f"a different architecture: patches of {shape[2:]} pixels in the file, but {expected[2:]} in the model",
                where=where,
                fix=fix,
            )


def check_positions(module: nn.Module, shapes: Mapping[str, Shape], where: object) -> None:
    """Check that position embeddings in a file have the model's shape, because timm silently resamples them.

    Raises:
        ModelError: The shapes differ.
    """
    expected = _shapes(module)
    resampled = [
        f"{key} is {shape} in the file, but {expected[key]} in the model"
        for key, shape in shapes.items()
        if key.endswith(_POSITIONS) and shape != expected.get(key, shape)
    ]
    if resampled:
        raise ModelError(
            f"the position embeddings do not fit config.json: {shortlist(resampled, 1)}",
            where=where,
            fix="correct img_size in config.json; set backbone.pixels to use the model at another input size",
        )


def check_same_structure(loaded: nn.Module, expected: nn.Module, *, name: str, where: object, fix: str) -> None:
    """Check that two models have the same weight names, weight shapes and numbers of attention heads.

    Args:
        expected: Model built from its table entry, with any weights.
        where: File, folder or Hub id of the weights, for the error message.

    Raises:
        ModelError: The models differ; the first differences are listed.
    """
    actual, listed = _shapes(loaded), _shapes(expected)
    differences = [
        f"{key} is {actual.get(key, 'missing')}, but {listed.get(key, 'missing')} in the table"
        for key in sorted(actual.keys() | listed.keys())
        if actual.get(key) != listed.get(key)
    ]
    if differences:
        raise ModelError(
            f"the loaded model differs from {name} in clipit's table: {shortlist(differences, 3)}", where=where, fix=fix
        )


def _shapes(module: nn.Module) -> dict[str, Shape]:
    """Return the shapes of weights, and the numbers of attention heads, which cannot be inferred from shapes."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    heads = {
        f"{key}.num_heads": (int(part.num_heads),)
        for key, part in module.named_modules()
        if isinstance(getattr(part, "num_heads", None), int)
    }
    return shapes | heads
