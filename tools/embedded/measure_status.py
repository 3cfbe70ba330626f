"""Measure how well a VLM predicts the molecular status in a case world, for the data card."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int64

from clipit.config.run import TilesConfig, VLMConfig
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.models.vlm import load_vlm
from clipit.prompts.prompt_set import load_prompts
from clipit.synthetic.case_world import STATUS_PROMPT_FILE
from clipit.synthetic.status_words import MUTATED, WILD_TYPE
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet
from tools.embedded.measure import text_vectors, vlm_images

_CLASSES = (WILD_TYPE, MUTATED)


def check_status(vlm_folder: str, world: Path) -> dict[str, float]:
    """Measure the balanced accuracy of predicting a case's status, on the tumour tiles of both test sets.

    `zero_shot_*`: with `status_prompts.yaml`. `probe_*`: a logistic regression on the image embeddings of all
    training tumour tiles, labelled with the true status of their case; the validation tiles select its penalty.

    Args:
        vlm_folder: Folder or name of a VLM.
        world: Folder written by `write_case_world`.
    """
    vlm = load_vlm(VLMConfig(name=vlm_folder))
    tiles, shift = _tumour_tiles(world, "tiles"), _tumour_tiles(world, "tiles_shift")
    parts = {name: tiles.of_split(name) for name in ("train", "validation", "test")} | {"shift": shift}
    images_of = {name: vlm_images(vlm, part) for name, part in parts.items()}
    prompts = load_prompts(world / STATUS_PROMPT_FILE)
    classes = prompt_embeddings(prompts, lambda texts: text_vectors(vlm, list(texts)), classes=_CLASSES)
    train, validation = parts["train"].truth, parts["validation"].truth
    probe = linear_probe(images_of["train"], train, images_of["validation"], validation, len(_CLASSES))
    return {
        f"{method}_{name}": _balanced(scores(images_of[name]), parts[name].truth)
        for name in ("test", "shift")
        for method, scores in (("zero_shot", lambda images: images @ classes.T), ("probe", probe.probabilities))
    }


def _tumour_tiles(world: Path, name: str) -> TileSet:
    config = TilesConfig(
        source="table",
        path=str(world / f"{name}.csv"),
        images=str(world / f"{name}.zip"),
        columns={"label": "status"},
        class_map={status: status for status in _CLASSES},
        classes=_CLASSES,
    )
    return read_tiles(config)


def _balanced(scores: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"]) -> float:
    correct = scores.argmax(axis=1) == truth
    return float(np.mean([correct[truth == k].mean() for k in range(len(_CLASSES))]))
