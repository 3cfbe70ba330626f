"""Time of a forward pass on a large batch in parts, as clipit does on CPUs, relative to one pass on the whole batch."""

from benchmarks.harness import Measurement, Options, alternate, ratios, seconds


def measure(options: Options) -> list[Measurement]:
    """Time forward passes on the parts that `cpu_parts` returns, relative to whole batches, with one thread.

    Models are the bundled backbone, on 256 tiles of 64 x 64 pixels, and a ViT-S/16 with random weights, on 32 tiles of
    224 x 224 pixels.
    """
    import torch

    from clipit.config.run import BackboneConfig
    from clipit.free_memory import keep_freed_memory
    from clipit.models.backbones import load_backbone
    from clipit.models.trunks import cpu_parts

    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    measurements = []
    try:
        for config, tiles in (
            (BackboneConfig(name="embedded"), options.size(256, 130)),
            (BackboneConfig(name="test_vit" if options.quick else "vit_small_patch16_224", pretrained=False), 32),
        ):
            backbone = load_backbone(config)
            network, side = backbone.module.eval(), backbone.preprocess.size
            pixels = backbone.preprocess.normalise(torch.randint(0, 256, (tiles, 3, side, side), dtype=torch.uint8))

            @torch.inference_mode()
            def whole(network: torch.nn.Module = network, pixels: torch.Tensor = pixels) -> torch.Tensor:
                features: torch.Tensor = network(pixels)
                return features

            @torch.inference_mode()
            def parts(network: torch.nn.Module = network, pixels: torch.Tensor = pixels) -> torch.Tensor:
                return torch.cat([network(part) for part in cpu_parts(pixels)])

            samples = alternate({"parts": lambda: seconds(parts), "whole": lambda: seconds(whole)}, options)
            facts = {
                "tiles": tiles,
                "parts": len(cpu_parts(pixels)),
                "largest_difference": float((whole() - parts()).abs().max()),
            }
            name = f"{tiles} tiles of {side} px ({backbone.name}) in parts / at once: time"
            measurements.append(
                Measurement("batch_parts", name, ratios(samples, "parts", "whole"), "", None, False, samples, facts)
            )
    finally:
        torch.set_num_threads(threads)
    return measurements
