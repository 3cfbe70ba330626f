"""Time of a training step of a linear head on patch tokens, relative to the frozen forward pass that it needs."""

import numpy as np

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds
from benchmarks.inputs import CLASSES, SIZE


def measure(options: Options) -> list[Measurement]:
    """Time a batch of windows with and without a step of the head on all of their tokens."""
    import torch

    from clipit.config.run import BackboneConfig
    from clipit.distributed import get_processes
    from clipit.models.backbones import load_backbone
    from clipit.models.patch_tokens import backbone_tokens
    from clipit.segmentation.token_head import head_step

    batch = options.size(16, 2, 256)
    device = get_processes().device
    torch.manual_seed(0)
    module = load_backbone(BackboneConfig(name=options.vit, pretrained=False, pixels=SIZE), device)
    module.module.requires_grad_(False)
    tokens = backbone_tokens(module)
    head = torch.nn.Linear(tokens.dim, len(CLASSES), device=device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2, foreach=False)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (batch, 3, SIZE, SIZE)).astype(np.uint8))
    shares = torch.from_numpy(rng.dirichlet(np.ones(len(CLASSES)), batch * tokens.side**2).astype(np.float32))
    shares = shares.to(device)

    def forward() -> torch.Tensor:
        return tokens.encode(pixels)

    def step() -> torch.Tensor:
        return head_step(head, optimizer, forward().reshape(-1, tokens.dim), shares)

    samples = alternate({"step": lambda: seconds(step), "forward": lambda: seconds(forward)}, options)
    facts = {"backbone": options.vit, "windows": batch, "tokens": batch * tokens.side**2, "classes": len(CLASSES)}
    name = "linear head on patch tokens: training step relative to the frozen forward pass"
    return [Measurement("token_head", name, ratios(samples, "step", "forward"), "", 1.05, False, samples, facts)]
