"""The demo: CLIP-IT from raw reports to an exported classifier, on the embedded synthetic world."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipit.artifacts import locked
from clipit.config import Config
from clipit.experiments.compare import compare
from clipit.experiments.materials import Materials
from clipit.experiments.run import run_folder
from clipit.synthetic.world import WorldConfig, write_world

WORLD_SEED = 0


def demo(config: Config, say: Callable[[str], None] = print) -> Path:
    """Write the world where the configuration looks for its tiles, compare the arms, try the classifier.

    Args:
        config: As configs/demo.yaml: tiles and reports lie in one folder, which is filled if it is empty.
        say: Takes lines for the user.

    Returns:
        The folder of the comparison.
    """
    begin = time.perf_counter()
    world = demo_world(config, say)
    folder = compare(config, say)
    arm = "clip_it_all" if "clip_it_all" in config.comparison.arms else config.comparison.arms[0]
    run = run_folder(config.model_copy(update={"arm": arm, "seed": config.comparison.seeds[0]}))
    say("\n" + (folder / "comparison.md").read_text(encoding="utf-8"))
    say(_try_classifier(config, run))
    say(f"\nThe world:      {world}")
    say(f"Comparison:     {folder / 'comparison.md'} (and .parquet, .json)")
    say(f"Runs:           {run.parent}")
    say(f"One summary:    {run / 'summary.md'}")
    say(f"One classifier: {run / 'classifier'}")
    say(f"{time.perf_counter() - begin:.0f} s in all")
    return folder


def demo_world(config: Config, say: Callable[[str], None] = print) -> Path:
    """Write the synthetic world into the folder of the configuration's tiles, unless it is there."""
    world = Path(config.tiles.path).parent
    with locked(world, waiting=say):
        if not (world / "world.json").is_file():
            say(f"writing the synthetic world (tiles, reports, prompts) to {world}")
            write_world(world, WorldConfig(seed=WORLD_SEED))
    return world


def _try_classifier(config: Config, run: Path) -> str:
    """What the exported classifier says about a few test tiles, with its own prompts and with new ones."""
    from clipit.models.inference import load_classifier

    tiles = Materials(config).tiles(config.seed).of_split("test")
    some = np.linspace(0, len(tiles) - 1, 4).astype(int)
    images = [tiles.read(int(row)) for row in some]
    classifier = load_classifier(run / "classifier")
    predicted = classifier.predict(images)
    lines = [f"The exported classifier ({run.name}) on {len(images)} test tiles, and asked a new question in words:"]
    question = {
        "tumour": ["a tumour with atypical glands", "carcinoma with marked nuclear pleomorphism"],
        "no tumour": ["benign tissue without tumour", "normal glands", "fat", "connective tissue", "lymphocytes"],
    }
    answers = classifier.zero_shot(images, question)
    for row, image_class, answer in zip(some, predicted, answers, strict=True):
        truth = tiles.classes[int(tiles.truth[row])]
        lines.append(f"  {tiles.ids[row]}: {image_class} (truth: {truth}); prompts say tumour {answer[0]:.0%}")
    return "\n".join(lines)
