"""Time to re-mine the bags of a VLM adaptation, relative to the training steps between two mining passes.

Both use the bundled VLM with LoRA. Mining embeds all tiles and the prompt dictionary, finds neighbours and writes
the members of the bags. A step encodes its bags with cached gradients.
"""

from itertools import count
from pathlib import Path

import clipit
from benchmarks.harness import Measurement, Options, alternate, seconds
from benchmarks.inputs import make_tiles


def measure(options: Options) -> list[Measurement]:
    """Measure one mining pass and a few steps, and extrapolate to the number of steps between two mining passes."""
    import torch

    from clipit.config.run import LabelsConfig, LeaksConfig, RunConfig, TilesConfig
    from clipit.config.vlm_training import AdaptConfig
    from clipit.distributed import get_processes
    from clipit.models.adapted_towers import adapt_towers
    from clipit.models.vlm import load_vlm
    from clipit.vlm_training.contrastive_step import ContrastStep
    from clipit.vlm_training.examples import make_examples
    from clipit.vlm_training.mining import least_interval, mine
    from clipit.workspace.workspace import Workspace

    folder = options.folder / "tiles"
    make_tiles(folder, options.size(2_000, 40, 20_000))
    tiles = TilesConfig(
        source="table",
        path=str(folder / "tiles.csv"),
        images=str(folder / "tiles.zip"),
        labels=LabelsConfig(kind="none"),
    )
    config = RunConfig(tiles=tiles, output=options.folder, leaks=LeaksConfig(policy="off", pixels="off"))
    chapter = Path(clipit.__file__).parent / "prompts" / "dictionaries" / "histology" / "artefacts.yaml"
    dictionary = str(chapter) if options.quick else "histology"
    section = AdaptConfig.model_validate(
        {
            "data": "bags",
            "batch_size": options.size(64, 4, 256),
            "bags": {"tiles": 3, "snippets": 0, "prompts": 3, "mine_every": 1, "dictionary": dictionary},
        }
    )
    workspace = Workspace(config)
    examples = make_examples(config, section, "text", 0, "train", workspace)
    vlm = load_vlm(config.vlm, get_processes().device)
    torch.manual_seed(0)
    adapted = adapt_towers(vlm.towers, "lora", ("image", "text"), section.lora, True).to(vlm.device)
    contrast = ContrastStep(adapted, examples, section, 0, get_processes(), options.precision)
    steps, passes, rounds = options.size(3, 1, 20), count(1), count()

    def take_steps() -> None:
        adapted.train()
        first = next(rounds) * steps
        pixels = contrast.pixels(range(first, first + steps))
        for step in range(first, first + steps):
            contrast(step, pixels)

    def mine_bags() -> None:
        adapted.eval()
        mine(section, "text", examples, vlm, workspace, options.folder, next(passes), "benchmark")

    samples = alternate({"mining": lambda: seconds(mine_bags), "steps": lambda: seconds(take_steps)}, options)
    interval = least_interval(examples)
    shares = [
        mining / (interval * taken / steps) for mining, taken in zip(samples["mining"], samples["steps"], strict=True)
    ]
    facts = {
        "vlm": vlm.name,
        "tiles": len(examples.tile_ids),
        "prompts": examples.summary["minable_texts"],
        "batch_size": section.batch_size,
        "steps_per_repeat": steps,
        "steps_between_minings": interval,
    }
    title = f"time of mining / of {interval} steps, the recommended interval"
    return [Measurement("adapt_mining", title, shares, "", 0.1, False, samples, facts)]
