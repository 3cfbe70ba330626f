"""Models of a prompt study: the VLM, the VLM with centred embeddings, and a trained student."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from clipit.config.run import RunConfig
from clipit.config.studies import PromptStudyConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, ModelError
from clipit.progress import progress
from clipit.runs.feature_stores import classifier_fingerprint, run_facts, vlm_facts
from clipit.runs.predict_tiles import open_classifier
from clipit.tiles.tileset import TileSet
from clipit.types import TextEncoder
from clipit.vectors import centred
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.inference import Classifier

SCREENED = "screened"
"""Mode that averages prompts with confident predictions on unlabelled training tiles."""
_BATCH = 64


@dataclass(frozen=True)
class ZeroShotModel:
    """Tile embeddings and a text encoder in one joint space.

    Attributes:
        test: Embeddings of the labelled test tiles.
        screening: Embeddings of training tiles, for the mode `screened`.
        screening_splits: Split of each screening tile (all `train`).
        encode: Function from texts to unit vectors in the same space.
        logit_scale: Factor applied to cosines before the softmax.
    """

    name: str
    test: Float32[np.ndarray, "n D"]
    screening: Float32[np.ndarray, "m D"]
    screening_splits: Shaped[np.ndarray, " m"]
    encode: TextEncoder
    logit_scale: float
    facts: Mapping[str, object]


def select_tiles(config: RunConfig, options: PromptStudyConfig, workspace: Workspace) -> tuple[TileSet, TileSet]:
    """Return the labelled test tiles, and a random sample of training tiles for screening prompts, each sorted by id.

    The sample is empty if no prompts are screened.

    Raises:
        DataError: No test tile has a label, or there are no training tiles although a mode or centring needs them.
    """
    tiles = workspace.all_tiles
    test, train = tiles.of_split("test"), tiles.of_split("train")
    test = test.select(test.labels >= 0)
    if not len(test):
        raise DataError("no labelled test tiles", where=config.tiles.path, fix="label tiles of the test split")
    is_screened = SCREENED in options.modes
    if not len(train) and (is_screened or options.centred):
        other = "prompt_study.modes='[single, ensemble, sampled]'" if is_screened else "prompt_study.centred=false"
        raise DataError(
            f"no training tiles to {'screen prompts' if is_screened else 'centre embeddings'} on",
            where=config.tiles.path,
            fix=f"add tiles to the train split, or set --{other}",
        )
    test, train = test.select(np.argsort(test.ids)), train.select(np.argsort(train.ids))
    limit = options.screening_tiles if is_screened else 0
    sample = np.random.default_rng(options.seed).permutation(len(train))[:limit]
    return test, train.select(np.sort(sample))


def load_vlm_models(workspace: Workspace, test: TileSet, screening: TileSet, *, centre: bool) -> list[ZeroShotModel]:
    """Load the VLM and, if requested, a second model with centred embeddings.

    Args:
        centre: Whether to add the second model; it is not added if pairing does not use centring.
    """
    encode = memoise(workspace.encode)
    test_vectors, train_vectors = _embeddings(workspace, test, "test"), _embeddings(workspace, screening, "train")
    scale, facts = workspace.vlm.logit_scale, vlm_facts(workspace)
    models = [ZeroShotModel("VLM", test_vectors, train_vectors, screening.splits, encode, scale, facts)]
    text_mean, tile_mean = (workspace.text_mean, workspace.tile_mean) if centre else (None, None)
    if text_mean is not None:

        def encode_centred(texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
            return centred(encode(texts), text_mean)

        facts = facts | {"index": workspace.index.artifact.fingerprint}  # text_mean belongs to this index
        test_vectors, train_vectors = centred(test_vectors, tile_mean), centred(train_vectors, tile_mean)
        splits = screening.splits
        models.append(ZeroShotModel("VLM, centred", test_vectors, train_vectors, splits, encode_centred, scale, facts))
    return models


def _embeddings(workspace: Workspace, tiles: TileSet, split: str) -> Float32[np.ndarray, "n D"]:
    """Return the VLM's embeddings of some tiles of a split; for no tiles, the split is not embedded."""
    if not len(tiles):
        return np.zeros((0, workspace.vlm.joint_dim), dtype=np.float32)
    store = workspace.tile_store(split)
    return store.rows(store.positions(tiles.ids))


def load_student(run: Path, workspace: Workspace, test: TileSet, screening: TileSet) -> ZeroShotModel:
    """Load the classifier of a run: its predicted text embeddings, and an encoder for its target text space.

    Raises:
        ModelError: The classifier is missing, or was trained without text or with a VLM that is not the configured one.
        DataError: The classifier's classes differ from those of the tiles.
    """
    classifier = open_classifier(workspace.config, run)
    vlm, preprocess = classifier.spec.vlm, classifier.spec.preprocess
    if vlm is None:
        raise ModelError(
            "this run's student was trained without text and has no zero-shot predictions",
            where=run,
            fix="use a run whose arm has a projector (student.projector_layers=1 or 2)",
        )
    if vlm["fingerprint"] != workspace.vlm.fingerprint:
        raise ModelError(
            f"the student was trained with the VLM {vlm['name']}, not with {workspace.vlm.name}",
            where=run,
            fix="use the configuration of that run, or a run with this configuration",
        )
    if set(classifier.classes) != set(test.classes):
        raise DataError(
            f"the classifier has the classes {', '.join(classifier.classes)}; the tiles have {', '.join(test.classes)}",
            where=run / "classifier",
            fix="use the configuration of that run",
        )
    encode = memoise(workspace.encode)

    def encode_for_student(texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        distinct = list(dict.fromkeys(texts))
        prompts = dict(zip(distinct, encode(distinct), strict=True))
        embeddings = dict(zip(distinct, classifier.prompt_embeddings(prompts), strict=True))
        return np.stack([embeddings[text] for text in texts]).astype(np.float32)

    facts = run_facts(run) | {
        "model": str(run / "classifier"),
        "fingerprint": classifier_fingerprint(run / "classifier"),
        "preprocess": preprocess.hash,
        "pixels": preprocess.size,
    }
    projected = _project(classifier, test, "student: test tiles")
    return ZeroShotModel(
        name=f"student {run.name}",
        test=projected,
        screening=_project(classifier, screening, "student: training tiles") if len(screening) else projected[:0],
        screening_splits=screening.splits,
        encode=encode_for_student,
        logit_scale=float(vlm["logit_scale"]),
        facts=facts,
    )


def memoise(encode: TextEncoder) -> TextEncoder:
    """Wrap an encoder so that each text is encoded only once."""
    cache: dict[str, Float32[np.ndarray, " D"]] = {}

    def lookup(texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        missing = [text for text in dict.fromkeys(texts) if text not in cache]
        if missing:
            cache.update(zip(missing, encode(missing), strict=True))
        return np.stack([cache[text] for text in texts])

    return lookup


def count_truncated_tokens(
    count_tokens: Callable[[Sequence[str]], list[int]], context_length: int, texts: Sequence[str]
) -> list[int]:
    """Count the tokens of each text beyond the context length of the text tower."""
    return [max(0, count - context_length) for count in count_tokens(texts)]


def _project(classifier: "Classifier", tiles: TileSet, title: str) -> Float32[np.ndarray, "n D"]:
    """Predict text embeddings for tiles; batches are distributed over the processes."""
    processes = get_processes()
    with progress(title, -(-len(tiles) // _BATCH), shown=processes.main) as advance:

        def project(rows: Int64[np.ndarray, "_"]) -> Float32[np.ndarray, "_ D"]:
            advance(processes.count)
            return classifier.project([tiles.read(row) for row in rows])

        batches = processes.map_blocks(len(tiles), _BATCH, project)
    return np.concatenate(batches).astype(np.float32)
