"""Speed of predicting a folder of tiles, end to end, relative to the bare model on batches in memory."""

from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds
from benchmarks.inputs import CLASSES, make_image_folder

if TYPE_CHECKING:
    from torch import Tensor

_EVERY = 4
"""The bare model is measured on every fourth batch, because all batches take the same time."""


def measure(options: Options) -> list[Measurement]:
    """Measure the images per second of `predict_images` (read, decode, forward, write) relative to the bare model.

    All images have 224 x 224 pixels. On a CPU, half are JPEG and half PNG; on a GPU, all are JPEG. The measured time
    includes the page with thumbnails, but not loading the model. The warm-up is a call with two batches.
    """
    import timm
    import torch

    from clipit import load_classifier
    from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
    from clipit.distributed import get_processes
    from clipit.images.image_set import open_images
    from clipit.models.backbones import load_backbone
    from clipit.models.export_classifier import export_classifier
    from clipit.models.student import build_student
    from clipit.runs.predict_images import predict_images
    from clipit.runs.prediction_chunks import PredictionOptions

    device = get_processes().device
    settings = PredictionOptions(batch_size=options.size(32, 4, 256), workers=options.size(16, 2) if options.gpu else 0)
    kinds = ("JPEG",) if options.gpu else ("JPEG", "PNG")
    images = make_image_folder(options.folder / "tiles", options.size(384, 6, 16384), kinds=kinds)
    few = make_image_folder(options.folder / "few_tiles", 2 * settings.batch_size, kinds=kinds)
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=options.vit, pretrained=False))
    student = build_student(
        backbone, StudentConfig(projector_layers=0), LoraConfig(), "lora", n_classes=len(CLASSES), joint_dim=None
    )
    folder = export_classifier(student, backbone, options.folder / "classifier", classes=CLASSES)
    classifier = load_classifier(folder, device, dtype="bfloat16" if options.gpu else None)
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True).to(device).eval()
    source, preprocess = open_images(images), classifier.spec.preprocess
    number, predicted, ready = count(), list[Path](), []
    starts = range(0, len(source), settings.batch_size)[:: options.size(_EVERY, 1)]
    rows = [range(start, min(start + settings.batch_size, len(source))) for start in starts]
    for batch in rows:
        pixels = np.stack([preprocess.pixels(source.read(row)) for row in batch])
        ready.append(preprocess.normalise(torch.from_numpy(pixels).to(device)))
    share = sum(map(len, rows)) / len(source)

    def predict(folder: Path) -> Path:
        out = options.folder / f"out{next(number)}/predictions.parquet"
        predict_images(classifier, open_images(folder), out, options=settings)
        predicted.append(out)
        return out

    @torch.inference_mode()
    def forward() -> list[torch.Tensor]:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.gpu):
            return [bare(batch) for batch in ready]

    def reading() -> None:
        for row in range(len(source)):
            preprocess.pixels(source.read(row))

    predict(few), forward()
    workloads = {"predict": lambda: seconds(partial(predict, images)), "forward": lambda: seconds(forward) / share}
    samples = alternate(workloads, options, warm_up=False)
    samples["reading_in_one_thread"] = [seconds(reading)]
    facts = {
        "backbone": options.vit,
        "images": len(source),
        "batch": settings.batch_size,
        "images_per_second": {name: len(source) / min(times) for name, times in samples.items()},
        "images_for_bare_model": sum(map(len, rows)),
        "largest_probability_difference": _difference(
            predicted[-1], [row for batch in rows for row in batch], torch.cat(forward())
        ),
    }
    values = ratios(samples, "forward", "predict")
    name = "predict: images/s relative to the bare forward pass"
    return [Measurement("prediction", name, values, goal=0.95, at_least=True, samples=samples, facts=facts)]


def _difference(table: Path, rows: list[int], logits: "Tensor") -> float:
    import pyarrow.parquet as pq

    written = pq.read_table(table)
    probabilities = np.stack([written[f"p_{name}"].to_numpy()[rows] for name in CLASSES], axis=1)
    return float(np.abs(probabilities - logits.float().softmax(1).cpu().numpy()).max())
