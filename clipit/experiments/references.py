"""Rows beside every comparison: the VLM itself, zero-shot and as a linear probe on the same labels."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from clipit.config import Config
from clipit.embedding import Store, centred, embed_tiles
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.zero_shot import zero_shot_probabilities
from clipit.experiments.materials import Materials
from clipit.tiles.load import load_tiles
from clipit.tiles.tileset import TileSet

ZERO_SHOT = "reference: VLM zero-shot"
PROBE = "reference: VLM linear probe"


def reference_rows(config: Config, materials: Materials) -> list[dict[str, Any]]:
    """Scores of the VLM on the comparison's test sets, in the form of a comparison's rows.

    The probe is a logistic regression on the VLM's image embeddings, fitted on the labels that the arms of the same
    seed see, its strength chosen on their validation labels. The zero-shot row does not depend on labels.
    """
    tests = {"test": (materials.some_tiles.of_split("test"), materials.tile_store("test"))}
    if config.comparison.shifted is not None:
        shifted = load_tiles(config.comparison.shifted, config.seed).of_split("test")
        size = config.vlm.batch_size
        tests["shifted"] = (shifted, embed_tiles(materials.root, materials.vlm, shifted, batch_size=size))
    rows = []
    classes = materials.class_embeddings()
    for seed in config.comparison.seeds:
        tiles = materials.tiles(seed)
        train, validation = tiles.of_split("train"), tiles.of_split("validation")
        probe = linear_probe(
            _vectors(materials.tile_store("train"), train),
            train.labels,
            _vectors(materials.tile_store("validation"), validation),
            validation.labels,
            len(tiles.classes),
        )
        for part, (test, store) in tests.items():
            vectors = _vectors(store, test)
            found = {PROBE: probe.probabilities(vectors)}
            if classes is not None:
                scale = materials.vlm.logit_scale
                found[ZERO_SHOT] = zero_shot_probabilities(centred(vectors, materials.tile_mean), classes, scale)
            known = test.labels >= 0
            for name, probabilities in found.items():
                score = compute_metrics(test.labels[known], probabilities[known])[config.comparison.metric]
                rows.append({"arm": name, "seed": seed, "part": part, "score": score, "zero_shot": None})
    return sorted(rows, key=lambda row: row["arm"])


def _vectors(store: Store, tiles: TileSet) -> Float32[np.ndarray, "n dim"]:
    return store.rows(store.positions(tiles.ids))
