"""Base class of the loss terms, and what they are given before and during training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from clipit.config.run import RunConfig, Section
from clipit.distributed import Processes
from clipit.errors import ModelError
from clipit.models.student import Student
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

Normalise = Callable[[Tensor], Tensor]
"""Pixels 0..255 to the input of a backbone."""
Probabilities = Float32[np.ndarray, "n classes"]
Options = TypeVar("Options", bound=Section)
AnyTerm = TypeVar("AnyTerm", bound="Term[Any]")


@dataclass(frozen=True)
class TermInputs:
    """What a term may prepare its targets from.

    Attributes:
        workspace: Cached inputs of the run's configuration.
        tiles: All tiles, with the labels that the run may use.
        image_only: Split -> class probabilities by the image-only run of the same seed, which is trained when missing.
        terms: Active terms of the run; those listed earlier are prepared.
    """

    workspace: Workspace
    tiles: TileSet
    image_only: Callable[[str], Probabilities]
    terms: "Sequence[Term[Any]]"

    def term(self, kind: type[AnyTerm]) -> AnyTerm | None:
        """The active term of this class; None when it is off."""
        return next((term for term in self.terms if type(term) is kind), None)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one process.

    Attributes:
        rows: Rows of the training tiles in this pass.
        batch_rows: Rows of the whole batch, over all processes; process r holds every n-th of them, from r.
        labels: Class numbers; -1 where unknown.
        views: Logits of each augmented view of the tiles; most terms use `logits`, the first view.
        projection: The student's predicted text embeddings of the first view; None without a projector.
        second_projection: The same in the space of the second VLM.
        student: The trained module, possibly inside the wrapper that exchanges gradients.
        processes: The processes that share the batch.
    """

    rows: Int[np.ndarray, "b"]
    batch_rows: Int[np.ndarray, "_"]
    labels: Int64[Tensor, "b"]
    views: tuple[Float[Tensor, "b classes"], ...]
    projection: Float[Tensor, "b dim"] | None
    second_projection: Float[Tensor, "b _"] | None
    student: torch.nn.Module
    processes: Processes

    @property
    def logits(self) -> Float[Tensor, "b classes"]:
        """Logits of the first view."""
        return self.views[0]

    @property
    def projected(self) -> Float[Tensor, "b dim"]:
        """Predicted text embeddings of the first view.

        Raises:
            ModelError: The student has no projector.
        """
        if self.projection is None:
            raise ModelError("a loss term needs a projector", where="student", fix="set student.projector_layers=1")
        return self.projection

    def tensor(self, values: np.ndarray) -> Tensor:
        """An array on the student's device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.processes.device)


class Term(Generic[Options]):
    """One summand of the training loss of one run: weight x sum over tiles / count over the whole batch.

    Until `prepare` a term knows its configuration only, and says whether it is active, what it needs and which keys
    contradict it. After `prepare` it counts and sums.
    """

    name: str
    """Column of metrics.jsonl; the configuration names a term from outside."""
    section: str
    """Section of the configuration that holds its keys; `terms.<name>` for a term from outside."""
    switch: ClassVar[str] = "weight"
    """Key of that section which turns the term on."""
    options_class: ClassVar[type[Section] | None] = None
    """Class of the keys of a term from outside; None for a term with a section of `RunConfig`."""
    views: ClassVar[int] = 1
    """Augmented views of each tile that the term compares."""
    labels: Int[np.ndarray, "n"]
    """Class numbers of the training tiles, -1 where unknown; set before `prepare`."""

    def __init__(self, config: RunConfig, name: str | None = None, options: Options | None = None) -> None:
        """Read the keys.

        Args:
            config: Run configuration, its arm resolved.
            name: Name of a term from outside.
            options: Keys of a term from outside.
        """
        self.config = config
        if name is not None:
            self.name, self.section = name, f"terms.{name}"
        self.options: Options = getattr(config, self.section) if options is None else options

    @property
    def weight(self) -> float:
        """Factor of the term in the loss."""
        value: float = getattr(self.options, "weight", 1.0)
        return value

    @property
    def active(self) -> bool:
        """Whether the term is part of the loss."""
        return self.weight > 0

    @property
    def uses_reports(self) -> bool:
        """Whether the term needs reports, their snippets and the pairs."""
        return False

    @property
    def uses_pairing(self) -> bool:
        """Whether keys of `pairing` change the term."""
        return self.uses_reports

    @property
    def uses_vlm(self) -> bool:
        """Whether the VLM takes part, other than through the projector's dimension."""
        return self.uses_reports

    @property
    def uses_unlabelled(self) -> bool:
        """Whether tiles without a label contribute."""
        return False

    @property
    def supervises_unlabelled(self) -> bool:
        """Whether tiles without a label get class targets, so that a run needs no label at all."""
        return False

    @property
    def teaches_text(self) -> bool | None:
        """Whether the projector learns the VLM's text space; False: it learns another one; None: neither."""
        return None

    def problems(self) -> list[str]:
        """Contradicting keys, each with what to change; also called while the term is off."""
        return []

    def describe(self) -> str:
        """Part of the summary's line "teaches"; "" to leave the term out."""
        return f"{self.name.replace('_', ' ')} (weight {self.weight:g})"

    def fingerprints(self, workspace: Workspace) -> dict[str, str]:
        """Fingerprints of inputs beyond keys, tiles, VLM, snippets and prompts, by name; part of the run's."""
        return {}

    def initial_parameters(self) -> dict[str, float]:
        """Trainable scalars of the term with their first values; they lie in `student.loss_parameters`."""
        return {}

    def prepare(self, inputs: TermInputs) -> dict[str, Any]:
        """Make the targets of all training tiles.

        Returns:
            Facts for training.json.
        """
        return {}

    def initialise(self, student: Student, normalise: Normalise, source: PixelSource) -> None:
        """Change the student before its first step (not when a run resumes)."""

    def class_probabilities(self, split: str) -> Probabilities | None:
        """Class targets of all tiles of a split, for a choice of step without labels; None without such targets."""
        return None

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Number (or total weight) of the tiles of the whole batch that contribute; the sum is divided by it.

        Args:
            rows: Rows of the training tiles in the batch, over all processes.
        """
        raise NotImplementedError

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Loss of this micro-batch, summed over its contributing tiles."""
        raise NotImplementedError

    def after_update(self, student: Student) -> None:
        """Called after every optimiser step, for example to bound a learnt parameter."""
