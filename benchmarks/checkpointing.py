"""Memory and time of a training step with gradient checkpointing, relative to a step without it."""

from benchmarks.harness import Measurement, Options, alternate, peak_memory, ratios, seconds


def measure(options: Options) -> list[Measurement]:
    """Measure forward and backward passes of a LoRA student; memory is the peak of the tensors alive in a step.

    On a GPU, the estimate is also compared with the peak that the allocator reports.
    """
    import torch

    from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
    from clipit.distributed import get_processes
    from clipit.models.backbones import load_backbone
    from clipit.models.checkpointing import set_checkpointing
    from clipit.models.student import build_student
    from clipit.training.memory_estimate import estimate_memory

    device, tiles = get_processes().device, options.size(16, 2, 64)
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=options.vit, pretrained=False, pixels=options.pixels), device)
    student = build_student(backbone, StudentConfig(), LoraConfig(), "lora", n_classes=3, joint_dim=512)
    normalise, precision = backbone.preprocess.normalise, options.precision
    estimate = estimate_memory(student, normalise, options.pixels, precision=precision)
    images = torch.zeros(tiles, 3, options.pixels, options.pixels, dtype=torch.uint8, device=device)

    def step(checkpointing: bool) -> float:
        set_checkpointing(student.backbone, checkpointing)

        def workload() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                output = student(normalise(images))
            torch.autograd.backward(output.logits.float().sum())
            student.zero_grad(set_to_none=True)

        return seconds(workload)

    workloads = {"checkpointed": lambda: step(True), "plain": lambda: step(False)}
    samples = alternate(workloads, options)
    loaded = estimate.weights + estimate.optimiser
    memory = {name: [float(estimate.total(tiles, checkpointing=name == "checkpointed") - loaded)] for name in workloads}
    facts = {"backbone": options.vit, "precision": precision, "tiles": tiles, "weights": estimate.weights}
    peaks = {name: peak_memory(workload) for name, workload in workloads.items()}
    estimate_ratios = [
        (estimate.total(tiles, checkpointing=name == "checkpointed") - estimate.optimiser) / peak
        for name, peak in peaks.items()
        if peak
    ]
    compared = (
        [Measurement("checkpointing", "estimated / measured peak memory", estimate_ratios, facts=facts)]
        if estimate_ratios
        else []
    )
    return [
        *compared,
        Measurement(
            "checkpointing", "memory without weights", ratios(memory, *workloads), "", 0.35, False, memory, facts
        ),
        Measurement("checkpointing", "time of a step", ratios(samples, *workloads), "", 1.4, False, samples, facts),
    ]
