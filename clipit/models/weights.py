"""Whether all of a model's weights came from its file: packages go on with random values where some did not."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipit.errors import ModelError, explain, shortlist

Shape = tuple[int, ...]

_PATCHES = "patch_embed.proj.weight"
"""timm's name of the convolution that makes patches; its last two dimensions are their height and width."""


@dataclass(frozen=True)
class LoadReport:
    """What one `load_state_dict` found.

    Attributes:
        module: Whose.
        missing: Weights of the module that the file has not: they stay random.
        unexpected: Weights of the file that the module has not.
    """

    module: nn.Module
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@contextmanager
def load_reports() -> Iterator[list[LoadReport]]:
    """Note what every `load_state_dict` within the block finds missing and unexpected, and let it go on.

    timm creates and fills a model in one call, is not strict when the numbers of classes differ, and keeps the result
    to itself; there is no hook for a module that does not exist yet.
    """
    reports: list[LoadReport] = []
    original = nn.Module.load_state_dict

    def noted(self: nn.Module, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The same, never strict: whoever opened the block judges the report."""
        found = original(self, state_dict, strict=False, assign=assign)
        reports.append(LoadReport(self, tuple(found.missing_keys), tuple(found.unexpected_keys)))
        return found

    nn.Module.load_state_dict = noted  # type: ignore[method-assign]
    try:
        yield reports
    finally:
        nn.Module.load_state_dict = original  # type: ignore[method-assign]


def refuse_unfit(missing: Sequence[str], unexpected: Sequence[str], *, name: str, where: object, fix: str) -> None:
    """Make sure that nothing stayed random and nothing was left over.

    Args:
        missing: Weights that were not in the file.
        unexpected: Weights of the file that found no place.
        name: The model, for the message.
        where: The file, folder or hub id.
        fix: What to do.

    Raises:
        ModelError: There are some of either; both are listed.
    """
    parts = [
        f"{len(keys)} {kind}: {shortlist(sorted(keys))}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if parts:
        raise ModelError(explain(f"the weights do not fit {name}; {'; '.join(parts)}", where=where, fix=fix))


def mismatches(keys: Iterable[Any]) -> list[str]:
    """transformers' `mismatched_keys` (name, shape in the file, shape in the model), each as words."""
    return sorted(
        f"{key[0]} is {tuple(key[1])} in the file, {tuple(key[2])} in config.json's model"
        if isinstance(key, tuple) and len(key) == 3
        else str(key)
        for key in keys
    )


def tensor_shapes(file: Path) -> dict[str, Shape]:
    """Name -> shape of the tensors of a file, without reading their values where the format allows it.

    Raises the readers' own errors: use it inside `foreign_errors`.

    Raises:
        ModelError: The file holds something beside tensors, such as a state dict within a checkpoint.
    """
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format before torch 1.6 cannot be mapped
        found = torch.load(file, map_location="cpu", weights_only=True)
    others = [str(key) for key, value in found.items() if not isinstance(value, torch.Tensor)] if found else []
    if not isinstance(found, dict) or others:
        raise ModelError(
            explain(
                f"this file does not hold tensors alone, but {shortlist(others) or type(found).__name__}",
                where=file,
                fix="save the state dict of the model alone, for instance torch.save(found['state_dict'], FILE)",
            )
        )
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


def refuse_other_patches(module: nn.Module, file: Mapping[str, Shape], *, where: object, fix: str) -> None:
    """Make sure that the patches of a file have the model's size: timm resizes others without a word.

    Args:
        module: What was loaded.
        file: `tensor_shapes` of its file.
        where: The file.
        fix: What to do.

    Raises:
        ModelError: They have another size.
    """
    due = _shapes(module).get(_PATCHES)
    for key, shape in file.items():
        if due and key.endswith(_PATCHES) and len(shape) == len(due) == 4 and shape[2:] != due[2:]:
            raise ModelError(
                explain(
                    f"another architecture: patches of {shape[2:]} pixels in the file, {due[2:]} in the model",
                    where=where,
                    fix=fix,
                )
            )


def refuse_other_structure(found: nn.Module, wanted: nn.Module, *, name: str, where: object, fix: str) -> None:
    """Make sure that two models have the same weights by name and shape, and the same heads of attention.

    Args:
        found: What was loaded.
        wanted: The same without weights, as the table says.
        name: The table's name.
        where: The file, folder or hub id.
        fix: What to do.

    Raises:
        ModelError: They differ; the first differences are named.
    """
    has, due = _shapes(found), _shapes(wanted)
    wrong = [
        f"{key} is {has.get(key, 'missing')}, the table's is {due.get(key, 'not there')}"
        for key in sorted(has.keys() | due.keys())
        if has.get(key) != due.get(key)
    ]
    if wrong:
        raise ModelError(
            explain(
                f"what was loaded is not {name} as clipit's table describes it: {shortlist(wrong, 3)}",
                where=where,
                fix=fix,
            )
        )


def _shapes(module: nn.Module) -> dict[str, Shape]:
    """Weights and their shapes; and the numbers of heads, which no weight shows."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    heads = {
        f"{key}.num_heads": (int(part.num_heads),)
        for key, part in module.named_modules()
        if isinstance(getattr(part, "num_heads", None), int)
    }
    return shapes | heads
