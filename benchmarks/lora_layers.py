"""Time of a forward and backward pass of a backbone with clipit's LoRA layers, relative to peft's layers."""

from functools import partial

from benchmarks.harness import Measurement, Options, Workload, alternate, ratios, seconds


def measure(options: Options) -> list[Measurement]:
    """Time both passes with clipit's layers relative to peft's layers, with equal weights.

    Models are the bundled backbone, on 64 tiles of 64 x 64 pixels, and a ViT-S/16 with random weights, on 8 tiles of
    224 x 224 pixels.
    """
    import peft
    import torch

    from clipit.config.run import BackboneConfig, LoraConfig
    from clipit.free_memory import keep_freed_memory
    from clipit.models.backbones import load_backbone
    from clipit.models.lora import add_lora, target_modules

    keep_freed_memory()
    measurements = []
    for config, tiles in (
        (BackboneConfig(name="embedded"), options.size(64, 4)),
        (BackboneConfig(name=options.vit, pretrained=False), options.size(8, 2, 32)),
    ):
        lora = LoraConfig(rank=8)
        backbone, base = load_backbone(config), load_backbone(config).module
        layers = target_modules(base, lora.targets)
        networks: dict[str, torch.nn.Module] = {
            "clipit": add_lora(backbone.module, lora),
            "peft": peft.get_peft_model(
                base, peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=layers)
            ),
        }
        networks["peft"].load_state_dict(networks["clipit"].state_dict())
        side = backbone.preprocess.size
        pixels = backbone.preprocess.normalise(torch.randint(0, 256, (tiles, 3, side, side), dtype=torch.uint8))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pixels = pixels.to(device)

        def step(network: torch.nn.Module, pixels: torch.Tensor = pixels) -> torch.Tensor:
            network.zero_grad()
            features: torch.Tensor = network(pixels)
            features.square().mean().backward()  # type: ignore[no-untyped-call]
            return features.detach().cpu()  # waits for the device

        for network in networks.values():
            network.to(device).train()
        workloads: dict[str, Workload] = {
            name: partial(seconds, partial(step, network)) for name, network in networks.items()
        }
        samples = alternate(workloads, options)
        facts = {
            "tiles": tiles,
            "layers": len(layers),
            "lora_rank": lora.rank,
            "largest_difference": float((step(networks["clipit"]) - step(networks["peft"])).abs().max()),
        }
        name = f"{tiles} tiles of {side} px ({backbone.name}), LoRA layers of clipit / of peft: time"
        measurements.append(
            Measurement("lora_layers", name, ratios(samples, "clipit", "peft"), "", None, False, samples, facts)
        )
    return measurements
