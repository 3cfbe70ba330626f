"""Rows beside every comparison: the VLM itself, zero-shot and as a linear probe on the same labels."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from clipit.artifacts import fingerprint
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.predictions import Predictions, write_predictions
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.stores.embed import Store, centred, embed_tiles
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

ZERO_SHOT = "reference: VLM zero-shot"
CENTRED = "reference: VLM zero-shot, centred"
PROBE = "reference: VLM linear probe"
_FILES = {ZERO_SHOT: "vlm-zero-shot", CENTRED: "vlm-zero-shot-centred", PROBE: "vlm-linear-probe"}


def reference_rows(config: RunConfig, workspace: Workspace, folder: Path) -> list[dict[str, Any]]:
    """Scores of the VLM on the comparison's test sets, in the form of a comparison's rows.

    Zero-shot as the VLM comes, and, when pairing is centred, with images and prompts centred in the same way (the
    means of the training tiles and of the snippets: no test tile has a part in them). The probe is a logistic
    regression on the VLM's image embeddings, fitted on the labels that the arms of the same seed see, its strength
    chosen on their validation labels. The zero-shot rows do not depend on labels: their predictions are one file for
    all seeds.

    Args:
        config: What is compared.
        workspace: Of this configuration.
        folder: Where the predictions are kept; each row names its file under `predictions`.
    """
    tests = {"test": (workspace.all_tiles.of_split("test"), workspace.tile_store("test"))}
    for name in config.comparison.shifted:
        shifted = workspace.shifted_tiles(name)
        size = config.vlm.batch_size
        tests[name] = (shifted, embed_tiles(workspace.root, workspace.vlm, shifted, batch_size=size))
    rows: list[dict[str, Any]] = []
    zero_shot = _zero_shot_readings(workspace)
    for seed in config.comparison.seeds:
        tiles = workspace.tiles(seed)
        train, validation = tiles.of_split("train"), tiles.of_split("validation")
        beside = {"training_labels": int((train.labels >= 0).sum()), "tiles_fingerprint": tiles.fingerprint}
        try:
            probe = linear_probe(
                _vectors(workspace.tile_store("train"), train),
                train.labels,
                _vectors(workspace.tile_store("validation"), validation),
                validation.labels,
                len(tiles.classes),
            )
        except DataError as error:  # too few labels for a probe: an honest blank, after all runs are done
            probe, reason = None, str(error).splitlines()[0]
        for part, (test, store) in tests.items():
            vectors = _vectors(store, test)
            found = {} if probe is None else {PROBE: probe.probabilities(vectors)}
            if probe is None:
                rows.append({"arm": PROBE, "seed": seed, "part": part, "tiles": 0, "score": None, "reason": reason})
            for name, (mean, classes) in zero_shot.items():
                found[name] = zero_shot_probabilities(centred(vectors, mean), classes, workspace.vlm.logit_scale)
            known = test.labels >= 0
            for name, probabilities in found.items():
                score = compute_metrics(test.labels[known], probabilities[known])[config.comparison.metric]
                predictions = Predictions(test.ids, test.splits, test.labels, test.groups, test.classes, probabilities)
                file = predictions_file(folder, _FILES[name], seed if name == PROBE else None, part)
                keep(file, predictions)
                own = {"arm": name, "seed": seed, "part": part, "tiles": int(known.sum()), "score": score}
                rows.append(beside | own | {"predictions": str(file)})
    return sorted(rows, key=lambda row: row["arm"])


def predictions_file(folder: Path, name: str, seed: int | None, part: str) -> Path:
    """Where the predictions of a classifier that belongs to a comparison, not to a run, lie.

    Args:
        folder: Of one data set and backbone.
        name: Of the classifier, in letters of file names.
        seed: None: the same for all seeds.
        part: Test set; a name that is no file name gets a mark, so that two of them never share a file.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", part)
    told = part if plain == part else f"{plain}-{fingerprint(part)[:6]}"
    return folder / "-".join([name, *([] if seed is None else [f"seed{seed}"]), f"{told}.parquet"])


def keep(path: Path, predictions: Predictions) -> None:
    """Write predictions that every process has, once."""
    if get_processes().main:
        write_predictions(path, predictions)


Reading = tuple[Float32[np.ndarray, "dim"] | None, Float32[np.ndarray, "classes dim"]]


def _zero_shot_readings(workspace: Workspace) -> dict[str, Reading]:
    """Name of the row -> the images' mean to subtract, and the class embeddings to compare with."""
    if workspace.prompts is None:
        return {}
    names = workspace.all_tiles.classes
    found: dict[str, Reading] = {ZERO_SHOT: (None, prompt_embeddings(workspace.prompts, workspace.encode, None, names))}
    if workspace.text_mean is not None:
        classes = prompt_embeddings(workspace.prompts, workspace.encode, workspace.text_mean, names)
        found[CENTRED] = (workspace.tile_mean, classes)
    return found


def inference_cost(source: PixelSource, forward: "Callable[[Tensor], object]") -> dict[str, float]:
    """Tiles per second of a forward pass over batches that are read already: the median of a few.

    Args:
        source: Tiles, resized as the model wants them.
        forward: Takes uint8 pixels [b, 3, h, w].
    """
    import torch

    device = get_processes().device
    rows = np.arange(min(256, len(source.tiles)))
    pixels = torch.from_numpy(source.batch(rows)).to(device)
    seconds = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            forward(pixels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return {"tiles_per_second": len(rows) / median(seconds[1:])}


def _vectors(store: Store, tiles: TileSet) -> Float32[np.ndarray, "n dim"]:
    return store.rows(store.positions(tiles.ids))
