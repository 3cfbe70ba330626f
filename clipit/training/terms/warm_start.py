"""Stage 1 of CLIP-IT (arXiv 2504.16181, section 3): fit both heads of late fusion before distillation."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError
from clipit.models.student import Student
from clipit.tiles.batched import map_batches
from clipit.tiles.pixel_source import PixelSource
from clipit.training.terms.target_vectors import Targets
from clipit.training.terms.term import Normalise

_STEPS = 300
_RATE = 1e-2


def warm_start(
    config: RunConfig,
    student: Student,
    normalise: Normalise,
    source: PixelSource,
    labels: Int[np.ndarray, "n"],
    targets: Targets,
) -> None:
    """Fit the image head on the frozen backbone's features and the text head on the paired texts, in place.

    Args:
        config: Run configuration, with its arm resolved.
        normalise: Function from pixels 0..255 to the backbone's input.
        source: Pixels of the training tiles.
        labels: Class indices of the training tiles; -1 if unknown.
        targets: Embeddings of the texts paired with the training tiles.

    Raises:
        ConfigError: The student does not use late fusion.
    """
    if student.text_head is None:
        raise ConfigError(
            "warm_start needs late fusion and paired text", where="student.warm_start", fix="use the arm clip_it_paper"
        )
    device, decay = get_processes().device, config.training.weight_decay
    rows = np.flatnonzero((labels >= 0) & targets.valid)
    student.eval()
    features = map_batches(
        source,
        rows,
        lambda pixels: student.backbone(normalise(pixels)).float().cpu().numpy(),
        config.evaluation.batch_size,
    )
    known_labels = torch.from_numpy(labels[rows]).to(device)
    texts = torch.from_numpy(targets.vectors[rows].astype(np.float32)).to(device)
    _fit(student.image_head, torch.from_numpy(np.concatenate(features)).to(device), known_labels, decay)
    _fit(student.text_head, texts, known_labels, decay)


def _fit(head: nn.Module, inputs: Tensor, labels: Tensor, weight_decay: float) -> None:
    """Fit a head with full-batch AdamW and a cosine schedule, identically in every process."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(head(inputs.clone()), labels))
        optimizer.step()
        schedule.step()
    head.zero_grad(set_to_none=True)  # otherwise, these gradients would add to those of stage 2
