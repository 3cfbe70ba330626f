"""Time and memory of a step that adapts a VLM with cached gradients, relative to a plain forward and backward pass."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Measurement, Options, Workload, alternate, ratios, run_python, seconds
from benchmarks.pairing_memory import peak_bytes
from clipit.errors import counted

if TYPE_CHECKING:
    from clipit.vlm_training.contrastive_step import ContrastStep

_WORDS = ("tumour", "gland", "stroma", "mucin", "necrosis", "lymphocytes")


def measure(options: Options) -> list[Measurement]:
    """Measure adaptation steps of the bundled VLM with LoRA in both towers, on images in memory.

    Peak memory is measured in a new process for each batch size.
    """
    micro = options.size(16, 2, 64)
    counts = {1: "one_micro_batch", options.size(4, 2, 8): "some", options.size(16, 3, 32): "many"}
    max_count = max(counts)
    steps = {count: _contrast(micro, micro * count) for count in counts}
    plain = _contrast(micro, micro * max_count)

    def scaled(count: int) -> Workload:
        return lambda: max_count / count * seconds(lambda: _cached(steps[count]))

    workloads: dict[str, Workload] = {name: scaled(count) for count, name in counts.items()}
    samples = alternate(workloads | {"plain": lambda: seconds(lambda: _plain(plain))}, options)
    facts = {"vlm": "embedded", "tuning": "lora", "micro_batch": micro, "batches": [micro * count for count in counts]}
    names = {
        name: f"batch of {counted(count, 'micro-batch', 'micro-batches')}: time relative to a plain step"
        for count, name in counts.items()
    }
    sizes = options.size(64, 4), options.size(512, 8)
    peaks = [_measure_memory(size, options.size(32, 2)) for size in sizes]
    growth = f"peak memory, batch of {sizes[1]} / batch of {sizes[0]}"
    return [
        Measurement("adapt_step", name, ratios(samples, side, "plain"), "", 1.3, False, samples, facts)
        for side, name in names.items()
    ] + [Measurement("adapt_step", growth, [peaks[1] / peaks[0]], "", 1.1, False, {}, {"peak_bytes": peaks})]


def _contrast(micro_batch: int, batch: int) -> "ContrastStep":
    """Build a step whose bags contain one image and one text each."""
    import numpy as np
    import torch

    from clipit.config.run import LoraConfig, VLMConfig
    from clipit.config.training import AugmentationConfig
    from clipit.config.vlm_training import AdaptConfig
    from clipit.distributed import get_processes
    from clipit.models.adapted_towers import adapt_towers
    from clipit.models.vlm import load_vlm
    from clipit.tiles.pixel_source import PixelSource
    from clipit.vlm_training.bag_batches import BagExamples, Members
    from clipit.vlm_training.contrastive_step import ContrastStep

    processes = get_processes()
    vlm = load_vlm(VLMConfig(name="embedded"), processes.device)
    size = vlm.preprocess.size
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    values = values.to(processes.device)

    class InMemory(PixelSource):
        def __init__(self) -> None:
            pass

        def on_device(self, batches: Any, device: Any, clock: Any = None) -> Iterator[tuple[Any, Any]]:
            for rows in batches:
                yield rows, values[torch.from_numpy(rows).to(device)]

    numbers = np.arange(batch, dtype=np.int64)
    examples = BagExamples(
        source=InMemory(),
        tile_ids=[str(number) for number in range(batch)],
        texts=[f"{_WORDS[number % 6]} with {_WORDS[number // 6 % 6]}, part {number}" for number in range(batch)],
        tiles_of=Members.of(numbers[:, None].tolist()),
        texts_of=Members.of(numbers[:, None].tolist()),
        tiles_per_bag=1,
        texts_per_bag=1,
        batch_size=batch,
        seed=0,
        groups=numbers,
        partners=numbers,
        pixel_codes=numbers,
    )
    adapted = adapt_towers(vlm.towers, "lora", ("image", "text"), LoraConfig(), True).to(processes.device)
    section = AdaptConfig(
        batch_size=max(batch, 2), micro_batch=micro_batch, augmentation=AugmentationConfig(dihedral=False, stain=0.0)
    )
    return ContrastStep(adapted, examples, section, 0, processes, "no")


def _cached(contrast: "ContrastStep") -> None:
    contrast(0, contrast.pixels(range(1)))
    contrast.adapted.zero_grad(set_to_none=True)


def _plain(contrast: "ContrastStep") -> None:
    """Encode each micro-batch once, and run its backward pass immediately."""
    import torch

    batch = contrast.examples.batch(0)
    contrast.adapted.train()
    for number, part in enumerate(contrast._read(batch, None, contrast.pixels(range(1)))):
        output = contrast._encode(part, 0, number)
        torch.autograd.backward(output, torch.ones_like(output))
    contrast.adapted.zero_grad(set_to_none=True)


def _measure_memory(batch: int, micro_batch: int) -> int:
    output = run_python(["-m", "benchmarks.adapt_step", str(batch), str(micro_batch)])
    return int(json.loads(output.splitlines()[-1])["peak"])


def main() -> None:
    """Print the peak memory of this process after two steps, given a batch size and a micro-batch size."""
    contrast = _contrast(int(sys.argv[2]), int(sys.argv[1]))
    for _ in range(2):
        _cached(contrast)
    print(json.dumps({"peak": peak_bytes()}))


if __name__ == "__main__":
    main()
