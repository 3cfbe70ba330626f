"""Make the weights that ship in the package: train both models, record their hashes, measure them."""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from clipit.artifacts import file_sha256, versions, write_json
from clipit.experiments.embedded_backbone import BackboneRecipe, train_backbone
from clipit.experiments.embedded_checks import check_embedded
from clipit.experiments.embedded_vlm import VLMRecipe, train_vlm
from clipit.synthetic.world import WorldConfig, write_world

SUMS = "SHA256SUMS.json"
CARD = "measured.json"
GATE = 0.80
"""Zero-shot accuracy below which a trial saw the gain of distilled text vanish."""


def make_embedded_weights(
    folder: Path,
    seed: int,
    vlm: VLMRecipe | None = None,
    backbone: BackboneRecipe | None = None,
    world: WorldConfig | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Train the embedded VLM and backbone and measure them on a world that shares no tile or report with them.

    Writes `vlm/`, `backbone/`, `SHA256SUMS.json` (hash of each file) and `measured.json` (recipes, versions,
    scores) into `folder`. What was there is replaced once both are trained.

    Args:
        folder: Where the two model folders go.
        seed: Of the training draws and of the training; a world's seed means other streams.
        vlm: Size and training of the VLM; the shipped one by default.
        backbone: Pretraining of the backbone; the shipped one by default.
        world: Where they are measured; the demo's by default.
        threads: Of torch; the same number gives the same weights on the same machine.

    Returns:
        What `measured.json` says.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    torch.set_num_threads(threads)
    vlm, backbone, world = vlm or VLMRecipe(), backbone or BackboneRecipe(), world or WorldConfig()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        start = time.perf_counter()
        facts: dict[str, Any] = {"seed": seed, "threads": threads, "recipes": {"vlm": vlm, "backbone": backbone}}
        facts["recipes"] = {key: vars(recipe) for key, recipe in facts["recipes"].items()}
        facts["vlm"] = train_vlm(work / "vlm", seed, vlm)
        facts["backbone"] = train_backbone(work / "backbone", seed, backbone)
        facts["training_seconds"] = round(time.perf_counter() - start)
        write_world(work / "world", world)
        facts["world"] = world.model_dump(mode="json")
        facts["scores"] = check_embedded(work / "vlm", work / "backbone", work / "world")
        facts["gate"] = {"zero_shot": GATE, "passed": facts["scores"]["zero_shot_test"] >= GATE}
        facts["versions"] = versions()
        for part in ("vlm", "backbone"):
            _replace(work / part, folder / part)
    write_json(folder / SUMS, sums(folder))
    write_json(folder / CARD, facts)
    return facts


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the two model folders, by relative path."""
    files = [path for part in ("vlm", "backbone") for path in sorted((folder / part).iterdir())]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _replace(source: Path, target: Path) -> None:
    from clipit.errors import disk_errors

    with disk_errors(target):
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for path in source.iterdir():
            (target / path.name).write_bytes(
                path.read_bytes()
            )  # as new files, readable by all as the user's mask has it
