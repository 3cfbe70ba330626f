"""Inference time of an exported classifier, relative to the bare timm model with the same weights."""

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds
from benchmarks.inputs import CLASSES, SIZE

_DIM = 512  # dimension of the text embeddings


def measure(options: Options) -> list[Measurement]:
    """Measure a CLIP-IT student with merged LoRA weights and a collapsed linear head on batches in memory."""
    import timm
    import torch

    from clipit import load_classifier
    from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
    from clipit.distributed import get_processes
    from clipit.models.backbones import load_backbone
    from clipit.models.export_classifier import export_classifier
    from clipit.models.student import build_student

    batch, batches = options.size(32, 4, 256), options.size(4, 1)
    device = get_processes().device
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=options.vit, pretrained=False, pixels=SIZE))
    heads = StudentConfig(head="linear", projector_layers=1)
    student = build_student(backbone, heads, LoraConfig(), "lora", n_classes=len(CLASSES), joint_dim=_DIM)
    folder = export_classifier(student, backbone, options.folder / "classifier", classes=CLASSES)
    classifier = load_classifier(folder, device)
    bare = timm.create_model(f"local-dir:{folder}", pretrained=True).to(device).eval()
    rng = np.random.default_rng(0)
    shape = (batch, 3, SIZE, SIZE)
    ready = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(device) for _ in range(batches)]

    def run_classifier() -> list[torch.Tensor]:
        return [classifier.forward(pixels)[0] for pixels in ready]

    @torch.inference_mode()
    def run_timm() -> list[torch.Tensor]:
        return [bare(pixels) for pixels in ready]

    workloads = {"classifier": lambda: seconds(run_classifier), "timm": lambda: seconds(run_timm)}
    samples = alternate(workloads, options)
    difference = max(float((a - b).abs().max()) for a, b in zip(run_classifier(), run_timm(), strict=True))
    facts = {
        "backbone": options.vit,
        "tiles": batch * batches,
        "batch": batch,
        "tiles_per_second": {side: batch * batches / min(times) for side, times in samples.items()},
        "largest_difference_of_logits": difference,
    }
    values = ratios(samples, "classifier", "timm")
    name = "exported classifier: time relative to bare timm"
    return [Measurement("classifier", name, values, "", 1.02, False, samples, facts)]
