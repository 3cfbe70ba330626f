"""Evaluate the bundled models on a synthetic world, for their data card."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from clipit.config.run import BackboneConfig, LabelsConfig, ReportsConfig, TilesConfig, VLMConfig
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.models.backbones import Backbone, load_backbone
from clipit.models.vlm import VLM, load_vlm
from clipit.prompts.prompt_set import load_prompt_bag, load_prompts
from clipit.reports.build import build_snippets
from clipit.reports.readers import read_reports
from clipit.synthetic import vocabulary as words
from clipit.synthetic.latents import CLASSES
from clipit.tiles.hidden_labels import hide_labels
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.tileset import TileSet
from clipit.vectors import centred, unit

Vectors = Float[np.ndarray, "n d"]
_CANONICAL = str.maketrans("il0c5qhv", "11oesgbu")
"""Translation table from characters that OCR confuses to one canonical character."""


def check_embedded(vlm_folder: Path, backbone_folder: Path, world: Path, seeds: int = 5) -> dict[str, Any]:
    """Measure zero-shot accuracy, probes with 10 labels per class, and the pairing of a world's tiles with its reports.

    Args:
        vlm_folder: Folder of a VLM.
        backbone_folder: Folder of a backbone.
        world: Folder written by `write_world`.
        seeds: Number of draws of labelled tiles over which the probes are averaged.
    """
    vlm, backbone = load_vlm(VLMConfig(name=str(vlm_folder))), load_backbone(BackboneConfig(name=str(backbone_folder)))
    tiles, shift = _tiles(world, "tiles"), _tiles(world, "tiles_shift")
    encode = lambda texts: text_vectors(vlm, list(texts))  # noqa: E731
    classes = prompt_embeddings(load_prompts(world / "prompts.yaml"), encode, classes=CLASSES)
    parts = {name: tiles.of_split(name) for name in ("train", "validation", "test")} | {"shift": shift}
    embeddings = {name: vlm_images(vlm, part) for name, part in parts.items()}
    features = {name: _backbone_images(backbone, part) for name, part in parts.items()}
    scores: dict[str, Any] = {
        f"zero_shot_{name}": _accuracy(embeddings[name] @ classes.T, parts[name].truth) for name in ("test", "shift")
    }
    scores["zero_shot_per_class"] = {
        name: _accuracy(
            (embeddings["test"] @ classes.T)[parts["test"].truth == k],
            np.full(int((parts["test"].truth == k).sum()), k),
        )
        for k, name in enumerate(CLASSES)
    }
    scores["vlm_probe"] = _probe(embeddings, parts, world, seeds)
    scores["backbone_probe"] = _probe(features, parts, world, seeds)
    return scores | _pairing(vlm, embeddings["train"], parts["train"].truth, world)


def _pairing(vlm: VLM, images: Vectors, truth: Int64[np.ndarray, " n"], world: Path) -> dict[str, Any]:
    """Evaluate pairs with the nearest snippet: all or filtered snippets, with and without centring."""
    config = ReportsConfig(
        path=str(world / "reports.jsonl"), organ_column="organ", id_column="id", group_column="group"
    )
    snippets = build_snippets(read_reports(config), config, vlm.count_tokens, vlm.context_length, None).snippets
    texts = snippets["text"].to_pylist()
    vectors = text_vectors(vlm, texts)
    classes_named = np.array([named_class(text) for text in texts])
    mean = vectors.mean(0)
    nearest = [
        (
            centred(vectors, mean)
            @ centred(text_vectors(vlm, list(load_prompt_bag(world / f"{name}.yaml").texts)), mean).T
        ).max(1)
        for name in ("morphology", "boilerplate")
    ]
    kept = nearest[0] >= nearest[1]
    result: dict[str, Any] = {
        "snippets": len(texts),
        "snippets_naming_a_class": int((classes_named >= 0).sum()),
        "filter_keeps_of_naming": float(kept[classes_named >= 0].mean()),
        "filter_keeps_of_others": float(kept[classes_named < 0].mean()),
    }
    for corpus, chosen in (("all", np.ones_like(kept)), ("filtered", kept)):
        for centring in (False, True):
            text, image = vectors[chosen], images
            if centring:
                text, image = centred(text, text.mean(0)), centred(image, image.mean(0))
            best = (image @ text.T).argmax(1)
            use_counts = np.sort(np.bincount(best, minlength=len(text)))[::-1]
            result[f"pairing_{corpus}{'_centred' if centring else ''}"] = {
                "class_match": float((classes_named[chosen][best] == truth).mean()),
                "names_no_class": float((classes_named[chosen][best] < 0).mean()),
                "held_by_top_1_percent": float(use_counts[: max(1, len(use_counts) // 100)].sum() / len(image)),
            }
    return result


def _tiles(world: Path, name: str, labels: LabelsConfig | None = None, seed: int = 0) -> TileSet:
    config = TilesConfig(
        source="table",
        path=str(world / f"{name}.csv"),
        images=str(world / f"{name}.zip"),
        classes=CLASSES,
        labels=labels or LabelsConfig(),
    )
    return hide_labels(read_tiles(config), config.labels, seed)


def _probe(features: dict[str, Vectors], parts: dict[str, TileSet], world: Path, seeds: int) -> dict[str, float]:
    """Compute test accuracies of a linear probe with 10 labels per class, and 10 per class to select its penalty."""
    accuracies: dict[str, list[float]] = {"test": [], "shift": []}
    for seed in range(seeds):
        tiles = _tiles(world, "tiles", LabelsConfig(kind="per_class", value=10), seed)
        labels = {name: tiles.of_split(name).labels for name in ("train", "validation")}
        probe = linear_probe(
            features["train"], labels["train"], features["validation"], labels["validation"], len(CLASSES)
        )
        for name, values in accuracies.items():
            values.append(_accuracy(probe.probabilities(features[name]), parts[name].truth))
    return {name: float(np.mean(values)) for name, values in accuracies.items()}


def _accuracy(scores: Float[np.ndarray, "n c"], truth: Int64[np.ndarray, " n"]) -> float:
    return float((scores.argmax(1) == truth).mean())


def named_class(text: str) -> int:
    """Return the class named in a sentence of a synthetic report, as an index into `CLASSES`; -1 if there is none.

    The first name wins, because attributes such as "a little extracellular mucin" follow the class; if two names start
    at the same position, the longer one wins.
    """
    canonical = text.lower().translate(_CANONICAL)
    matches = [
        (canonical.find(name.lower().translate(_CANONICAL)), -len(name), k)
        for k, label in enumerate(CLASSES)
        for name in words.SHARED_NAMES[label] + words.HELD_OUT_NAMES[label]
    ]
    matches = [match for match in matches if match[0] >= 0]
    return min(matches)[2] if matches else -1


def text_vectors(vlm: VLM, texts: list[str]) -> Vectors:
    """Encode texts as unit vectors."""
    parts = [vlm.encode_texts(texts[start : start + 256], truncate=True) for start in range(0, len(texts), 256)]
    return unit(torch.cat(parts).numpy())


def _pixels(tiles: TileSet, model: VLM | Backbone) -> list[torch.Tensor]:
    images = [torch.from_numpy(model.preprocess.pixels(tiles.read(row))) for row in range(len(tiles.ids))]
    return list(torch.split(torch.stack(images), 128))


def vlm_images(vlm: VLM, tiles: TileSet) -> Vectors:
    """Encode the images of tiles as unit vectors."""
    return unit(torch.cat([vlm.encode_images(part) for part in _pixels(tiles, vlm)]).numpy())


@torch.inference_mode()
def _backbone_images(backbone: Backbone, tiles: TileSet) -> Vectors:
    parts = [backbone.module(backbone.preprocess.normalise(part)) for part in _pixels(tiles, backbone)]
    return np.asarray(torch.cat(parts).numpy())
