"""The many-to-many term of a batch: the student's view of each tile with its neighbours, against its text bag."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipit.config.run import BagsConfig
from clipit.distributed import Processes
from clipit.models.student import Student
from clipit.training.losses import many_to_many_sum
from clipit.training.teaching import COLDEST, Bags


def bag_term(
    config: BagsConfig,
    bags: Bags,
    student: torch.nn.Module,
    projected: Float[Tensor, "b dim"],
    everything: Int[np.ndarray, "_"],
    processes: Processes,
) -> Float[Tensor, ""]:
    """This process's share of the mean over all bags of the batch; every bag is contrasted with all of them.

    Bags of cached vectors cost a look-up in every process; only the student's own views are gathered, with gradient.

    Args:
        config: The section `bags`.
        bags: Cached members.
        student: Holds the temperature when that is learnt.
        projected: The student's projections of this process's tiles.
        everything: Rows of the whole batch, of which this process has every n-th.
        processes: The processes.
    """
    parts = [everything[rank :: processes.count] for rank in range(processes.count)]
    whole, start = np.concatenate(parts), sum(len(part) for part in parts[: processes.rank])
    texts, text_mask = (torch.from_numpy(values).to(processes.device) for values in bags.text_members(whole))
    images = gathered(projected, [len(part) for part in parts], processes)[:, None]
    image_mask = torch.ones(images.shape[:2], dtype=torch.bool, device=processes.device)
    if bags.tiles is not None:
        vectors, mask = bags.tiles.vectors(whole)
        images = torch.cat([images, torch.from_numpy(vectors).to(processes.device)], dim=1)
        image_mask = torch.cat([image_mask, torch.from_numpy(mask).to(processes.device)], dim=1)
    own = slice(start, start + len(projected))
    weights = bags.text_weights(whole)
    total, _ = many_to_many_sum(
        images,
        image_mask,
        texts,
        text_mask,
        _temperature(config, student),
        own,
        same=None
        if config.shared_negatives
        else torch.from_numpy(share_text(bags.text_ids(whole))).to(processes.device),
        text_weights=None if weights is None else torch.from_numpy(weights).to(processes.device),
    )
    return total / max(int(text_mask.any(dim=1).sum()), 1)


def share_text(members: Int[np.ndarray, "b k"]) -> Bool[np.ndarray, "b b"]:
    """Which text bags of a batch have a member in common.

    Args:
        members: Numbers that stand for the texts; -1: none.
    """
    from scipy.sparse import csr_matrix

    bag, place = np.nonzero(members >= 0)
    texts, column = np.unique(members[bag, place], return_inverse=True)
    # 32 bits count as many members as a bag may have; 8 would overflow to "none in common".
    holds = csr_matrix((np.ones(len(bag), dtype=np.int32), (bag, column)), shape=(len(members), len(texts)))
    return np.asarray((holds @ holds.T).toarray() > 0, dtype=np.bool_)


def gathered(values: Float[Tensor, "b dim"], sizes: list[int], processes: Processes) -> Float[Tensor, "all dim"]:
    """All processes' rows in the order of the ranks; the gradient of every process reaches the rows' owner."""
    if processes.count == 1:
        return values
    most = max(sizes)
    padded = torch.cat([values, values.new_zeros(most - len(values), values.shape[1])])  # ranks may differ by one row
    parts: Tensor = _Gather.apply(padded, processes)  # type: ignore[no-untyped-call]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """Every process's rows, stacked by rank; backward: the sum of all processes' gradients for the own rows.

    torch.distributed.nn.functional has the same, deprecated; it keeps the process group alive until the interpreter
    is half gone, where threads that still hold tensors of the last exchange end the program with SIGABRT.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, processes: Processes) -> Tensor:
        """All processes' values, stacked by rank."""
        ctx.rank = processes.rank
        parts = [torch.empty_like(values) for _ in range(processes.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """This process's share of what all of them derived."""
        whole = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        return whole[ctx.rank], None


@torch.no_grad()
def hold_temperature(student: Student) -> None:
    """After an update: a learnt temperature below `COLDEST` is set back to it, as CLIP does with its logit scale.

    Not in the forward pass: the gradient of a clamped value is 0, and the temperature could never rise again.
    """
    if student.log_temperature is not None:
        student.log_temperature.clamp_(min=math.log(COLDEST))


def _temperature(config: BagsConfig, student: torch.nn.Module) -> float | Tensor:
    inner = getattr(student, "module", student)  # inside the wrapper that exchanges gradients
    if isinstance(inner, Student) and inner.log_temperature is not None:
        return inner.log_temperature.exp()
    return config.temperature
