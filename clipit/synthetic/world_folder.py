"""Clipit/synthetic/world_folder.py."""

import json
import logging
from pathlib import Path

from clipit.artifacts import locked
from clipit.errors import ArtifactError, disk_errors, explain
from clipit.synthetic.world import WorldConfig, write_world

logger = logging.getLogger(__name__)


def write_whole_world(folder: Path, settings: WorldConfig) -> Path:
    """Write a synthetic world into a folder, unless it is there; the folder appears whole or not at all.

    Raises:
        ArtifactError: The folder holds something else, or another world; nothing in it was changed.
    """
    world = folder.absolute()  # absolute: lock and partial folder lie beside it, also for "."
    if _is_written(world, settings):
        return world
    with locked(world):
        if not _is_written(world, settings):
            logger.info(f"writing the synthetic world (tiles, reports, prompts) to {world}")
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
