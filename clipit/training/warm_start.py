"""Stage 1 of CLIP-IT (arXiv 2504.16181, section 3): both heads before any distillation.

The image head is fitted on the frozen backbone's features, the text head on the paired texts; stage 2 starts
late fusion from both.
"""

import numpy as np
import torch
from jaxtyping import Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipit.config.run import TrainingConfig
from clipit.distributed import Processes
from clipit.errors import ConfigError, explain
from clipit.models.student import Student
from clipit.tiles.pixel_source import PixelSource
from clipit.training.step import Normalise
from clipit.training.targets import Targets

_STEPS = 300
_RATE = 1e-2


def warm_start(
    student: Student,
    normalise: Normalise,
    source: PixelSource,
    labels: Int[np.ndarray, "n"],
    targets: Targets | None,
    training: TrainingConfig,
    processes: Processes,
    batch_size: int,
) -> None:
    """Fit the late-fusion student's two heads on the labelled tiles, in place.

    Raises:
        ConfigError: The student has no late fusion, or there is no text to fit the text head on.
    """
    if student.image_head is None or student.text_head is None or targets is None:
        raise ConfigError(
            explain(
                "warm_start needs late fusion and paired text", where="student.warm_start", fix="use arm clip_it_paper"
            )
        )
    rows = np.flatnonzero((labels >= 0) & targets.valid)
    wanted = torch.from_numpy(labels[rows]).to(processes.device)
    features = _features(student, normalise, source, rows, processes, batch_size)
    texts = torch.from_numpy(targets.vectors[rows].astype(np.float32)).to(processes.device)
    _fit(student.image_head, features, wanted, training.weight_decay)
    _fit(student.text_head, texts, wanted, training.weight_decay)


@torch.inference_mode()
def _features(
    student: Student,
    normalise: Normalise,
    source: PixelSource,
    rows: Int[np.ndarray, "n"],
    processes: Processes,
    batch_size: int,
) -> Tensor:
    student.eval()
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    own: dict[int, Float32[np.ndarray, "_ d"]] = {}
    for batch, pixels in source.ahead(processes.share(batches)):
        own[int(batch[0])] = (
            student.backbone(normalise(torch.from_numpy(pixels).to(processes.device))).float().cpu().numpy()
        )
    merged: dict[int, Float32[np.ndarray, "_ d"]] = {}
    for part in processes.gather(own):
        merged |= part
    return torch.from_numpy(np.concatenate([merged[int(batch[0])] for batch in batches])).to(processes.device)


def _fit(head: nn.Module, inputs: Tensor, labels: Tensor, weight_decay: float) -> None:
    """Full-batch AdamW with a cosine; the same in every process."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=_RATE, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(head(inputs.clone()), labels))
        optimizer.step()
        schedule.step()
    head.zero_grad(set_to_none=True)  # or the first step of stage 2 would add to them
