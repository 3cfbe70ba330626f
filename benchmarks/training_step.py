"""Time of a training step that also distils text, relative to an image-only step.

Both have the same backbone, LoRA and batch size.
"""

import math
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Measurement, Options, Workload, alternate, peak_memory, ratios, seconds
from benchmarks.inputs import CLASSES, make_tiles

if TYPE_CHECKING:
    from clipit.config.run import RunConfig
    from clipit.tiles.pixel_source import PixelSource
    from clipit.training.terms.target_vectors import Targets

_DIM = 512  # dimension of the text embeddings
_ARMS = ("clip_it_all", "image_only")


def measure(options: Options) -> list[Measurement]:
    """Time a few steps of the training loop, with tiles in memory and cached text embeddings."""
    from clipit.config.run import BackboneConfig, RunConfig, TilesConfig, TrainingConfig
    from clipit.models.backbones import load_backbone
    from clipit.tiles.pixel_source import PixelSource
    from clipit.training.terms.target_vectors import Targets

    per_step, steps = options.size(32, 4, 64), options.size(3, 1, 20)
    tiles = make_tiles(options.folder / "tiles", per_step * 2 + 6).of_split("train")
    backbone = BackboneConfig(name=options.vit, pretrained=False, pixels=options.pixels)
    training = TrainingConfig(
        steps=steps,
        tiles_per_step=per_step,
        labelled_share=0.5,
        cache_tiles="memory",
        precision=options.precision,
    )
    base = RunConfig(tiles=TilesConfig(source="table", path="tiles.csv"), backbone=backbone, training=training)
    source = PixelSource(tiles, load_backbone(backbone).preprocess.pixels, cache="memory")
    vectors = np.random.default_rng(0).standard_normal((len(tiles), _DIM)).astype(np.float16)
    targets = Targets(vectors / np.float16(math.sqrt(_DIM)), np.ones(len(tiles), dtype=np.bool_))
    workloads = {arm: _workload(options, base.model_copy(update={"arm": arm}), source, targets) for arm in _ARMS}
    samples = alternate(workloads, options)
    facts = {
        "backbone": options.vit,
        "precision": options.precision,
        "lora_rank": base.lora.rank,
        "tiles_per_step": per_step,
        "steps_per_repeat": steps,
        "peak_gpu_memory": {arm: peak_memory(workload) for arm, workload in workloads.items()},
        "seconds_per_step": {arm: min(times) / steps for arm, times in samples.items()},
    }
    values = ratios(samples, *_ARMS)
    return [
        Measurement(
            "training_step", "clip_it_all: time relative to image_only", values, "", 1.03, False, samples, facts
        )
    ]


def _workload(options: Options, config: "RunConfig", source: "PixelSource", targets: "Targets") -> Workload:
    """Build the student of an arm, and return a function that times a few training steps of it."""
    import torch
    from accelerate import Accelerator

    from clipit.distributed import get_processes
    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student
    from clipit.tiles.augment import tile_keys
    from clipit.training.arms import resolve_arm
    from clipit.training.batches import plan_batches
    from clipit.training.step import TrainingData
    from clipit.training.terms.distillation import DistillationTerm
    from clipit.training.terms.term_table import active_terms
    from clipit.training.train_student import Validation, train_student

    config = resolve_arm(config)
    labels, terms = source.tiles.labels, active_terms(config)
    for term in terms:
        term.labels = labels
        if isinstance(term, DistillationTerm):
            term.targets = targets
    data = TrainingData(plan_batches(config, labels >= 0), source, labels, tile_keys(source.tiles.ids.tolist()), terms)
    validation = Validation(source, np.empty(0, dtype=np.int64), None)
    torch.manual_seed(0)
    backbone = load_backbone(config.backbone, get_processes().device)
    student = build_student(
        backbone,
        config.student,
        config.lora,
        "lora",
        n_classes=len(CLASSES),
        joint_dim=_DIM if config.student.projector_layers else None,
    )
    repeats = count()

    def workload() -> float:
        folder = options.folder / f"{config.arm}{next(repeats)}"
        folder.mkdir()
        accelerator = Accelerator(mixed_precision=config.training.precision)
        normalise = backbone.preprocess.normalise
        return seconds(lambda: train_student(config, student, normalise, data, validation, folder, accelerator))

    return workload
