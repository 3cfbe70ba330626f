"""One training step: the inputs that a loss term receives for each view."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tiny_models import MakeConfig
from torch import Tensor, nn

from clipit.distributed import Processes
from clipit.models.student import StudentOutput
from clipit.tiles.augment import tile_keys
from clipit.tiles.pixel_source import PixelSource
from clipit.training.arms import resolve_arm
from clipit.training.batches import BatchPlan
from clipit.training.step import Clock, TrainingData, one_step
from clipit.training.terms.consistency import ConsistencyTerm
from clipit.training.terms.term import MicroBatch

ALONE = Processes(0, 1, torch.device("cpu"))


class Corners(nn.Module):
    """Student whose logits are two corner pixels of a tile and whose projection is the first row."""

    def __init__(self, *, projector: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.projector = projector

    def forward(self, pixels: Tensor) -> StudentOutput:
        rows = pixels[:, 0, 0] * self.scale
        return StudentOutput(rows[:, [0, -1]], rows if self.projector else None, rows)


class Views(ConsistencyTerm):
    """Consistency term that pulls the projections of two views together and records the batch."""

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        self.batch = batch
        return sum((view.sum() for view in batch.projections), torch.zeros(())) + batch.logits.sum()


def record(configure: MakeConfig, *, projector: bool) -> MicroBatch:
    config = resolve_arm(configure({"training.augmentation.stain": 0.0}, arm="image_only"))
    rows, labels = np.arange(6), np.full(6, -1)
    term = Views(config)
    term.labels = labels
    unread = PixelSource.__new__(PixelSource)  # never read, since the batches are passed in
    data = TrainingData(BatchPlan(rows, rows[:0], 6, 0, seed=0), unread, labels, tile_keys("abcdef"), [term])
    images = torch.arange(6 * 3 * 8 * 8).reshape(6, 3, 8, 8).to(torch.uint8)
    accelerator: Any = SimpleNamespace(autocast=nullcontext, backward=lambda loss: loss.backward())
    student = Corners(projector=projector)
    one_step(config, student, Tensor.float, data, iter([(rows, images)]), 0, ALONE, accelerator, Clock())
    return term.batch


def test_a_term_of_two_views_receives_the_projections_of_both(configure: MakeConfig) -> None:
    batch = record(configure, projector=True)
    assert len(batch.projections) == len(batch.views) == 2
    assert batch.projected is batch.projections[0]
    for logits, projected in zip(batch.views, batch.projections, strict=True):
        torch.testing.assert_close(logits, projected[:, [0, -1]], msg="the same view")
    assert not torch.equal(*batch.projections), "the views are augmented differently"


def test_without_a_projector_there_are_no_projections(configure: MakeConfig) -> None:
    assert record(configure, projector=False).projections == ()
