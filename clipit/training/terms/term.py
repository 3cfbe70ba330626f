"""Base class of loss terms, and their inputs before and during training."""

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
"""Function from pixels 0..255 to the input of a backbone."""
Probabilities = Float32[np.ndarray, "n classes"]
Options = TypeVar("Options", bound=Section)
AnyTerm = TypeVar("AnyTerm", bound="Term[Any]")


@dataclass(frozen=True)
class TermInputs:
    """Inputs from which a term prepares its targets.

    Attributes:
        workspace: Workspace of the run's configuration.
        tiles: All tiles, with the labels that the run may use.
        image_only: Function from a split to the class probabilities predicted by the image-only run with the same seed;
            it trains this run if necessary.
        terms: Active terms of the run, in order of preparation.
    """

    workspace: Workspace
    tiles: TileSet
    image_only: Callable[[str], Probabilities]
    terms: "Sequence[Term[Any]]"

    def term(self, kind: type[AnyTerm]) -> AnyTerm | None:
        """Return the active term of this class, or None if it is disabled."""
        return next((term for term in self.terms if type(term) is kind), None)


@dataclass(frozen=True)
class MicroBatch:
    """Tiles and outputs of one forward pass of one process.

    Attributes:
        rows: Rows of the training tiles in this pass.
        batch_rows: Rows of the global batch; process r of n has every n-th row, starting at row r (from 0).
        labels: Class indices; -1 if unknown.
        views: Logits of each augmented view of the tiles; most terms use `logits`, the first view.
        projections: Predicted text embeddings of each view; most terms use `projected`, the first view. Empty without a
            projector.
        second_projection: Predicted text embeddings of the first view in the space of the second VLM.
        student: Student, possibly wrapped in DistributedDataParallel.
        processes: Processes that share the batch.
    """

    rows: Int[np.ndarray, "b"]
    batch_rows: Int[np.ndarray, "_"]
    labels: Int64[Tensor, "b"]
    views: tuple[Float[Tensor, "b classes"], ...]
    projections: tuple[Float[Tensor, "b dim"], ...]
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
        if not self.projections:
            raise ModelError(
                "a loss term needs a projector, but the student has none",
                where="student",
                fix="set student.projector_layers=1",
            )
        return self.projections[0]

    def tensor(self, values: np.ndarray) -> Tensor:
        """Convert an array to a tensor on the student's device."""
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.processes.device)


class Term(Generic[Options]):
    """One summand of the training loss: weight x sum over tiles / count over the global batch.

    Before `prepare`, only the properties and methods that depend on the configuration alone may be used. `count` and
    `sum` need the prepared targets.
    """

    name: str
    """Column of metrics.jsonl; for an external term, its name in the configuration."""
    section: str
    """Section of the configuration that contains its keys; `terms.<name>` for an external term."""
    switch: ClassVar[str] = "weight"
    """Key of that section that enables the term."""
    options_class: ClassVar[type[Section] | None] = None
    """Class of the keys of an external term; None for a term with a section in `RunConfig`."""
    shares_section: ClassVar[bool] = False
    """Whether keys of that section also apply to runs in which the term is disabled."""
    views: ClassVar[int] = 1
    """Number of augmented views of each tile that the term needs."""
    labels: Int[np.ndarray, "n"]
    """Class indices of the training tiles, -1 if unknown; set before `prepare`."""

    def __init__(self, config: RunConfig, name: str | None = None, options: Options | None = None) -> None:
        """Take the term's keys from the configuration, or from `options`.

        Args:
            config: Run configuration, with its arm resolved.
            name: Name of an external term.
            options: Keys of an external term.
        """
        self.config = config
        if name is not None:
            self.name, self.section = name, f"terms.{name}"
        self.options: Options = getattr(config, self.section) if options is None else options

    @property
    def weight(self) -> float:
        """Weight of the term in the loss."""
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
        """Whether keys in the section `pairing` affect the term."""
        return self.uses_reports

    @property
    def uses_vlm(self) -> bool:
        """Whether the term uses the VLM for more than the projector's output dimension."""
        return self.uses_reports

    @property
    def reads(self) -> frozenset[str]:
        """Sections and dotted keys that have an effect if the term is active, even if declared unused elsewhere."""
        return frozenset()

    @property
    def uses_unlabelled(self) -> bool:
        """Whether unlabelled tiles contribute to the loss."""
        return False

    @property
    def supervises_unlabelled(self) -> bool:
        """Whether unlabelled tiles get class targets, in which case a run needs no labels."""
        return False

    @property
    def teaches_text(self) -> bool | None:
        """True if the projector learns the VLM's text space, False for a different space, None for no text."""
        return None

    @property
    def is_control(self) -> bool:
        """Whether the targets are meaningless by design, which makes the term a control for text."""
        return False

    def unused_keys(self) -> frozenset[str]:
        """Return the dotted keys of the section that have no effect: all but the switch if the term is disabled.

        Keys that another active term reads (`reads`) still have an effect.
        """
        if self.active or self.shares_section:
            return frozenset()
        return frozenset(f"{self.section}.{name}" for name in type(self.options).model_fields if name != self.switch)

    def problems(self) -> list[str]:
        """List conflicts between keys, each with a fix; called even if the term is disabled."""
        return []

    def describe(self) -> str:
        """Describe the term for the provenance entry `terms`; "" to omit it."""
        return f"{self.name.replace('_', ' ')} (weight {self.weight:g})"

    def describe_publicly(self) -> str:
        """Describe the term for the model card, without names chosen by the user; "" to omit it."""
        return (
            self.describe() if type(self).__module__.startswith("clipit.") else "a loss term that is not part of clipit"
        )

    def fingerprints(self, workspace: Workspace) -> dict[str, str]:
        """Return fingerprints of inputs other than keys, tiles, VLM, snippets and prompts, by name."""
        return {}

    def initial_parameters(self) -> dict[str, float]:
        """Return initial values of the term's trainable scalars, which are stored in `student.loss_parameters`."""
        return {}

    def prepare(self, inputs: TermInputs) -> dict[str, Any]:
        """Build the targets of all training tiles.

        Returns:
            Entries for training.json.
        """
        return {}

    def initialise(self, student: Student, normalise: Normalise, source: PixelSource) -> None:
        """Change the student before the first step; not called when a run resumes."""

    def class_probabilities(self, split: str) -> Probabilities | None:
        """Return class targets for a split, used to select the best step without labels; None if there are none."""
        return None

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Count the contributing tiles of the global batch (or sum their weights); the term's sum is divided by this.

        Args:
            rows: Rows of the training tiles in the batch, over all processes.
        """
        raise NotImplementedError

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Compute the loss of a micro-batch, summed over its contributing tiles."""
        raise NotImplementedError

    def after_update(self, student: Student) -> None:
        """Change the student after every optimiser step, for example to bound a learnt parameter."""
