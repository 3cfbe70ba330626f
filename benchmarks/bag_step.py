"""A step with bags of cached embeddings (5 snippets, 5 neighbour tiles) against an image-only step."""

from typing import TYPE_CHECKING, Any

from benchmarks.harness import Figure, Options, Work, alternate, ratios, seconds

if TYPE_CHECKING:
    import torch

_DIM, _MEMBERS, _CLASSES = 512, 5, 3


def measure(options: Options) -> list[Figure]:
    """Forward, backward and update of the same student with LoRA; the bags are looked up in memory anew each step."""
    import torch

    from clipit.config import BackboneConfig, LoraConfig, StudentConfig
    from clipit.distributed import processes
    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student

    size, steps = options.size(32, 4), options.size(3, 1)
    name = "vit_tiny_patch16_224" if options.quick else "vit_small_patch16_224"
    device = processes().device
    works: dict[str, Work] = {}
    for arm in ("bags", "image_only"):
        torch.manual_seed(0)
        backbone = load_backbone(BackboneConfig(name=name, pretrained=False), device)
        joint, heads = (_DIM, StudentConfig()) if arm == "bags" else (None, StudentConfig(projector_layers=0))
        student = build_student(backbone, heads, LoraConfig(), "lora", n_classes=_CLASSES, joint_dim=joint)
        works[arm] = _work(student, size, steps, with_bags=arm == "bags")
    samples = alternate(works, options)
    facts = {"backbone": name, "tiles_per_step": size, "members": _MEMBERS, "dim": _DIM, "steps_per_repeat": steps}
    title = "5 snippets and 5 tiles per bag: time against image_only"
    return [Figure("bag_step", title, ratios(samples, "bags", "image_only"), "", 1.1, False, samples, facts)]


def _work(student: Any, size: int, steps: int, *, with_bags: bool) -> Work:
    import torch

    device = next(student.parameters()).device
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(size, 3, 224, 224, generator=generator).to(device)
    labels = torch.randint(0, _CLASSES, (size,), generator=generator).to(device)
    tables = [torch.randn(10_000, _DIM, generator=generator).half() for _ in range(2)]
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        """One update."""
        from clipit.objectives import cross_entropy_sum

        output = student(pixels)
        loss = cross_entropy_sum(output.logits, labels) / size
        if with_bags:
            loss = loss + _bag_loss(output.projected, tables, generator)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run() -> None:
        """Some updates."""
        student.train()
        for _ in range(steps):
            step()

    return lambda: seconds(run)


def _bag_loss(projected: "torch.Tensor", tables: "list[torch.Tensor]", generator: "torch.Generator") -> "torch.Tensor":
    import torch

    from clipit.objectives import many_to_many_sum

    size = len(projected)
    rows = torch.randint(0, len(tables[0]), (2, size, _MEMBERS), generator=generator)
    texts, neighbours = (table[row].float().to(projected.device) for table, row in zip(tables, rows, strict=True))
    images = torch.cat([projected[:, None], neighbours], dim=1)
    there = torch.ones(size, _MEMBERS + 1, dtype=torch.bool, device=projected.device)
    total, count = many_to_many_sum(images, there, texts, there[:, 1:], 0.07)
    return total / max(count, 1)
