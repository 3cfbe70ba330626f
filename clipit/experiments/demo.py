"""The demo: CLIP-IT from raw reports to an exported classifier, on the embedded synthetic world."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipit.artifacts import locked
from clipit.config import Config
from clipit.errors import ArtifactError, disk_errors, explain
from clipit.experiments.compare import compare
from clipit.experiments.identity import run_folder
from clipit.experiments.materials import Materials
from clipit.synthetic.world import WorldConfig, write_world

WORLD = WorldConfig(seed=0)
"""The demo's; a comparison over several worlds takes others from `write_whole_world`."""


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
    say(f"Comparison:     {folder / 'comparison.html'} (and .md, .tex, .parquet)")
    say(f"Runs:           {run.parent}")
    say(f"One run's page: {run / 'report.html'}")
    say(f"One classifier: {run / 'classifier'}")
    say(f"{time.perf_counter() - begin:.0f} s in all")
    return folder


def demo_world(config: Config, say: Callable[[str], None] = print) -> Path:
    """Write the synthetic world into the folder of the configuration's tiles, unless it is there.

    The folder appears whole or not at all, so one that holds anything else is somebody's own.

    Raises:
        ArtifactError: The folder holds something else, or another world; nothing in it was changed.
    """
    return write_whole_world(Path(config.tiles.path).parent, WORLD, say)


def write_whole_world(folder: Path, settings: WorldConfig, say: Callable[[str], None] = print) -> Path:
    """Write a synthetic world into a folder, unless it is there; the folder appears whole or not at all.

    Raises:
        ArtifactError: The folder holds something else, or another world; nothing in it was changed.
    """
    world = folder.absolute()  # absolute: lock and partial folder lie beside it, also for "."
    if _is_written(world, settings):
        return world
    with locked(world, waiting=say):
        if not _is_written(world, settings):
            say(f"writing the synthetic world (tiles, reports, prompts) to {world}")
            partial = Path(f"{world}.partial")
            write_world(partial, settings)
            with disk_errors(world):
                for left in partial.glob(".*.tmp"):  # of a killed attempt
                    left.unlink()
                if not world.is_dir():
                    partial.rename(world)
                    return world
                # An empty folder, which may be the one that the user stands in: filled, not replaced.
                for path in sorted(partial.iterdir(), key=lambda path: path.name == "world.json"):
                    path.rename(world / path.name)
                partial.rmdir()
    return world


def _is_written(world: Path, settings: WorldConfig) -> bool:
    """Whether this world lies there; False when there is nothing.

    Raises:
        ArtifactError: Something else lies there.
    """
    with disk_errors(world):
        if not world.exists() or not any(world.iterdir()):
            return False
    facts = world / "world.json"
    if not facts.is_file():
        raise ArtifactError(
            explain(
                "the folder for the demo's synthetic world (that of tiles.path) holds other files; it is left as it is",
                where=world,
                fix="name a new folder in tiles.path and the other paths of the demo's configuration; for your own "
                "tiles take scripts/train.py or scripts/compare.py; a half-written world may be deleted",
            )
        )
    try:
        same = json.loads(facts.read_text(encoding="utf-8"))["config"] == settings.model_dump(mode="json")
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ArtifactError(
            explain(
                f"the synthetic world here is not that of seed {settings.seed} as this version writes it",
                where=facts,
                fix="delete its folder, and start again: it is written anew",
            )
        )
    return True


def _try_classifier(config: Config, run: Path) -> str:
    """What the exported classifier says about a few test tiles, with its own prompts and with new ones."""
    from clipit.models.inference import load_classifier

    tiles = Materials(config).tiles(config.seed).of_split("test")
    some = np.linspace(0, len(tiles) - 1, 4).astype(int)
    images = [tiles.read(int(row)) for row in some]
    classifier = load_classifier(run / "classifier")
    predicted = classifier.predict(images)
    lines = [f"The exported classifier ({run.name}) on {len(images)} test tiles:"]
    lines += [
        f"  {tiles.ids[row]}: {found} (truth: {tiles.classes[int(tiles.truth[row])]})"
        for row, found in zip(some, predicted, strict=True)
    ]
    if classifier.spec.vlm is not None:  # trained with text, so it answers new questions in words
        question = {
            "tumour": ["a tumour with atypical glands", "carcinoma with marked nuclear pleomorphism"],
            "no tumour": ["benign tissue without tumour", "normal glands", "fat", "connective tissue", "lymphocytes"],
        }
        shares = [f"{answer[0]:.0%}" for answer in classifier.zero_shot(images, question)]
        lines.append(f"asked in words whether they show tumour: {', '.join(shares)}")
    return "\n".join(lines)
