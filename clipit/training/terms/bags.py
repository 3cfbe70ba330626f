"""Bags: contrast tile bags with text bags, many to many (after CPLIP, CVPR 2024)."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipit.config.run import BagsConfig
from clipit.distributed import Processes, get_processes
from clipit.errors import counted
from clipit.models.student import Student
from clipit.prompts.dictionary import MAX_TEXTS, load_dictionary
from clipit.training.losses import many_to_many_sum
from clipit.training.terms.bag_members import ContrastBags, make_contrast_bags
from clipit.training.terms.term import MicroBatch, Term, TermInputs
from clipit.workspace.workspace import Workspace

MIN_TEMPERATURE = 0.01
"""Lower bound of a learnt temperature, as CLIP's maximum logit scale of 100 implies (arXiv 2103.00020, section 2.5)."""
_MAX_BYTES = 4 * 2**30
"""Maximum memory of the term per process, in bytes."""
_COPIES, _COPIES_LEARNT = 6, 9
"""Largest number of copies of the similarities between all members (4 bytes each) in memory during a step, with a fixed
and with a learnt temperature. The copies comprise the similarities in both directions with their masks, the values
saved for the backward pass, and its temporary tensors. Measured on a CPU."""
_TEMPERATURE = "bags_log_temperature"


class BagsTerm(Term[BagsConfig]):
    """InfoNCE between tile bags (the student's view of a tile, and its neighbours) and text bags."""

    name = section = "bags"
    bags: ContrastBags
    """Cached members; set by `prepare`."""

    @property
    def uses_reports(self) -> bool:
        """Always True: text bags contain paired snippets."""
        return True

    @property
    def uses_unlabelled(self) -> bool:
        """Always True: the term needs no labels."""
        return True

    @property
    def teaches_text(self) -> bool | None:
        """Always True: the projection is aligned with text embeddings."""
        return True

    def fingerprints(self, workspace: Workspace) -> dict[str, str]:
        """Return the fingerprint of the prompt dictionary, if its texts are used."""
        return {"prompt dictionary": load_dictionary(self.options.dictionary).hash} if self.options.prompts else {}

    def problems(self) -> list[str]:
        """Check for a projector, reports, enough pairs, no gradient accumulation, and enough memory."""
        b, config, problems = self.options, self.config, []
        if not self.active:
            return []
        if config.student.projector_layers == 0:
            problems.append("bags.weight > 0 needs a projector: set student.projector_layers=1, or bags.weight=0")
        if config.reports is None:
            problems.append("bags.weight > 0 needs reports: set reports.path, or bags.weight=0")
        if config.pairing.k < b.snippets:
            problems.append(
                f"bags.snippets={b.snippets} needs at least {counted(b.snippets, 'pair')} per tile, but pairing.k is "
                f"{config.pairing.k}: raise pairing.k or lower bags.snippets"
            )
        if config.training.micro_batches > 1:
            problems.append(
                "bags contrast each tile with the whole batch, which accumulation splits: set training.accumulation=1, "
                "or bags.weight=0"
            )
        if b.learn_temperature and b.temperature < MIN_TEMPERATURE:
            problems.append(
                f"with bags.learn_temperature, the temperature must be at least {MIN_TEMPERATURE}: set "
                f"bags.temperature={MIN_TEMPERATURE} or more"
            )
        return [*problems, *self._memory_problems()]

    def _memory_problems(self) -> list[str]:
        b, size = self.options, self.config.training.tiles_per_step
        texts = b.snippets + b.prompts * (MAX_TEXTS if b.whole_entries else 1) + b.class_prompts
        tiles = 1 + b.tiles * (1 + b.text_neighbours)
        tiles_per_process = -(-size // get_processes().count)  # each process contrasts its own tiles with all tiles
        copies = _COPIES_LEARNT if b.learn_temperature else _COPIES
        needed = 4 * copies * tiles_per_process * size * tiles * texts
        if needed <= _MAX_BYTES:
            return []
        return [
            f"bags of {counted(tiles, 'tile')} and {counted(texts, 'text')} need about {needed / 2**30:.1f} GiB in a "
            f"step of {counted(size, 'tile')}; the limit is {_MAX_BYTES / 2**30:.0f} GiB: lower "
            "training.tiles_per_step, bags.tiles, bags.snippets or bags.prompts"
        ]

    def describe(self) -> str:
        """Describe the term with its weight."""
        return f"contrast of text bags with tile bags (weight {self.weight:g})"

    def initial_parameters(self) -> dict[str, float]:
        """Return the logarithm of the initial temperature, if it is learnt."""
        return {_TEMPERATURE: math.log(self.options.temperature)} if self.options.learn_temperature else {}

    def prepare(self, inputs: TermInputs) -> dict[str, Any]:
        """Collect the members of all bags."""
        self.bags = make_contrast_bags(self.config, inputs.workspace, inputs.tiles.of_split("train"))
        return {"bags": self.bags.counts}

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Return 1, since `sum` already returns this process's share of a mean."""
        return 1.0

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Compute this process's share of the mean over all bags of the batch, each contrasted with all bags.

        Every process looks up the cached vectors of the whole batch; only the student's projections are gathered.
        """
        processes, device = batch.processes, batch.processes.device
        by_process = [batch.batch_rows[rank :: processes.count] for rank in range(processes.count)]
        rows, sizes = np.concatenate(by_process), [len(each) for each in by_process]
        start = sum(sizes[: processes.rank])
        texts, text_mask = (torch.from_numpy(values).to(device) for values in self.bags.text_members(rows))
        images = gather_rows(batch.projected, sizes, processes)[:, None]
        image_mask = torch.ones(images.shape[:2], dtype=torch.bool, device=device)
        if self.bags.tiles is not None:
            vectors, mask = self.bags.tiles.vectors(rows)
            images = torch.cat([images, torch.from_numpy(vectors).to(device)], dim=1)
            image_mask = torch.cat([image_mask, torch.from_numpy(mask).to(device)], dim=1)
        same, weights = None, self.bags.text_weights(rows)
        if not self.options.shared_negatives:
            same = torch.from_numpy(share_text(self.bags.text_ids(rows))).to(device)
        total, _ = many_to_many_sum(
            images,
            image_mask,
            texts,
            text_mask,
            self._temperature(batch.student),
            slice(start, start + len(batch.projected)),
            same=same,
            text_weights=None if weights is None else torch.from_numpy(weights).to(device),
        )
        return total / max(int(text_mask.any(dim=1).sum()), 1)

    def _temperature(self, student: torch.nn.Module) -> float | Tensor:
        inner = getattr(student, "module", student)  # unwrap DistributedDataParallel
        if isinstance(inner, Student) and _TEMPERATURE in inner.loss_parameters:
            learnt: Tensor = inner.loss_parameters[_TEMPERATURE].exp()
            return learnt
        return self.options.temperature

    @torch.no_grad()
    def after_update(self, student: Student) -> None:
        """Clamp a learnt temperature to at least `MIN_TEMPERATURE`, as CLIP does with its logit scale.

        Clamping in the forward pass would give a zero gradient, and the temperature could never rise again.
        """
        if _TEMPERATURE in student.loss_parameters:
            student.loss_parameters[_TEMPERATURE].clamp_(min=math.log(MIN_TEMPERATURE))


def share_text(members: Int[np.ndarray, "b k"]) -> Bool[np.ndarray, "b b"]:
    """Find the pairs of text bags in a batch that share a member.

    Args:
        members: Index of the text of each bag member; -1 for no member.

    Returns:
        Symmetric matrix, true where two bags share a member.
    """
    from scipy.sparse import csr_matrix

    bag, slot = np.nonzero(members >= 0)
    texts, column = np.unique(members[bag, slot], return_inverse=True)
    # Counts in int8 could overflow to 0, which would mean "no common member".
    contains = csr_matrix((np.ones(len(bag), dtype=np.int32), (bag, column)), shape=(len(members), len(texts)))
    return np.asarray((contains @ contains.T).toarray() > 0, dtype=np.bool_)


def gather_rows(values: Float[Tensor, "b dim"], sizes: list[int], processes: Processes) -> Float[Tensor, "all dim"]:
    """Gather the rows of all processes in rank order; each row's gradient flows back to its process."""
    if processes.count == 1:
        return values
    padded = torch.cat(
        [values, values.new_zeros(max(sizes) - len(values), values.shape[1])]
    )  # ranks may differ by one row
    parts: Tensor = _Gather.apply(padded, processes)  # type: ignore[no-untyped-call]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """All-gather with gradient: backward sums the gradients of all processes for this process's rows.

    The version in torch.distributed.nn.functional is deprecated, and keeps the process group alive until the
    interpreter shuts down; threads that still reference tensors of the last collective then abort the program with
    SIGABRT.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, processes: Processes) -> Tensor:
        ctx.rank = processes.rank
        parts = [torch.empty_like(values) for _ in range(processes.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.rank], None
