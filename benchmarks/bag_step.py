"""Time of a training step with bags (5 snippets, 5 neighbour tiles), relative to an image-only step.

The bags come from stores, an index, pairs and tile bags on disk; as in training, the loss is that of `BagsTerm`.
"""

from typing import TYPE_CHECKING, Any

from benchmarks.harness import Measurement, Options, Workload, alternate, ratios, seconds
from benchmarks.inputs import make_store

if TYPE_CHECKING:
    from clipit.config.run import BagsConfig
    from clipit.training.terms.bag_members import ContrastBags
    from clipit.training.terms.bags import BagsTerm

_DIM, _CLASSES = 512, 3  # dimension of the embeddings, number of classes


def measure(options: Options) -> list[Measurement]:
    """Measure steps of the same student with LoRA; each step reads the bag members from the stores again."""
    import torch

    from clipit.config.run import BackboneConfig, BagsConfig, LoraConfig, StudentConfig
    from clipit.distributed import get_processes
    from clipit.models.backbones import load_backbone
    from clipit.models.student import build_student

    config = BagsConfig(weight=0.5)
    bags = _bags(options, config)
    size, steps = options.size(32, 4, 64), options.size(3, 1, 20)
    device = get_processes().device
    workloads: dict[str, Workload] = {}
    arms: dict[str, tuple[BagsConfig | None, StudentConfig]] = {
        "bags": (config, StudentConfig()),
        "bags_masked": (config.model_copy(update={"shared_negatives": False}), StudentConfig()),
        "image_only": (None, StudentConfig(projector_layers=0)),
    }
    for arm, (bags_config, heads) in arms.items():
        torch.manual_seed(0)
        vit = BackboneConfig(name=options.vit, pretrained=False, pixels=options.pixels)
        backbone = load_backbone(vit, device)
        joint = None if bags_config is None else _DIM
        student = build_student(backbone, heads, LoraConfig(), "lora", n_classes=_CLASSES, joint_dim=joint)
        workloads[arm] = _workload(
            options, student, size, steps, None if bags_config is None else _term(bags_config, bags)
        )
    samples = alternate(workloads, options)
    facts = {
        "backbone": options.vit,
        "precision": options.precision,
        "tiles_per_step": size,
        "snippets_per_bag": config.snippets,
        "tiles_per_bag": 1 + config.tiles,
        "dim": _DIM,
        "steps_per_repeat": steps,
    }
    title = "5 snippets and 5 tiles per bag: time relative to image_only"
    masked = f"the same, but tiles that share a snippet are not negatives: {title.split(': ')[1]}"
    return [
        Measurement("bag_step", title, ratios(samples, "bags", "image_only"), "", 1.1, False, samples, facts),
        Measurement("bag_step", masked, ratios(samples, "bags_masked", "image_only"), "", 1.1, False, samples, facts),
    ]


def _bags(options: Options, config: "BagsConfig") -> "ContrastBags":
    """Build the bags of all tiles of a store from artefacts on disk, as `make_contrast_bags` does."""
    from clipit.pairing.pairs import pair_tiles
    from clipit.pairing.text_bags import text_bags
    from clipit.pairing.tile_bags import tile_bags
    from clipit.stores.index import build_index
    from clipit.training.terms.bag_members import BagMembers, ContrastBags

    count = options.size(8_192, 200)
    snippets = make_store(options.folder, "text_store", count, _DIM, seed=0)
    tiles = make_store(options.folder, "tile_store", count, _DIM, seed=1)
    index = build_index(options.folder, snippets)
    pairs = pair_tiles(options.folder, index, tiles, k=config.snippets)
    texts = text_bags(tiles.ids, pairs, index.store, config.snippets)
    mean = tiles.mean()
    neighbours = tile_bags(options.folder, tiles, config.tiles, mean=mean)
    return ContrastBags(
        BagMembers(index.store, index.mean, texts.rows),
        None,
        BagMembers(tiles, mean, neighbours.rows(tiles.ids, tiles)),
        {},
    )


def _term(options: "BagsConfig", bags: "ContrastBags") -> "BagsTerm":
    from clipit.config.run import RunConfig, TilesConfig
    from clipit.training.terms.bags import BagsTerm

    term = BagsTerm(RunConfig(tiles=TilesConfig(source="table", path="tiles.csv"), bags=options))
    term.bags = bags
    return term


def _workload(options: Options, student: Any, size: int, steps: int, term: "BagsTerm | None") -> Workload:
    import numpy as np
    import torch

    from clipit.distributed import get_processes
    from clipit.training.losses import cross_entropy_sum
    from clipit.training.terms.term import MicroBatch

    processes = get_processes()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(size, 3, options.pixels, options.pixels, generator=generator).to(processes.device)
    labels = torch.randint(0, _CLASSES, (size,), generator=generator).to(processes.device)
    draws = np.random.default_rng(0)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step() -> None:
        with torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            output = student(pixels)
        logits = output.logits.float()
        loss = cross_entropy_sum(logits, labels) / size
        if term is not None:
            rows = draws.integers(0, len(term.bags.texts.members), size=size)
            batch = MicroBatch(rows, rows, labels, (logits,), (output.projected.float(),), None, student, processes)
            loss = loss + term.weight * term.sum(batch)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run() -> None:
        student.train()
        for _ in range(steps):
            step()

    return lambda: seconds(run)
