"""Who is asked in a prompt study: the VLM as it comes, the VLM centred as pairing is, and a trained student."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Shaped

from clipit.config.run import RunConfig
from clipit.config.studies import PromptStudyConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, ModelError, explain
from clipit.progress import progress
from clipit.stores.embed import Store, centred
from clipit.studies.features import classifier_fingerprint, run_facts, vlm_facts
from clipit.tiles.tileset import TileSet
from clipit.types import TextEncoder
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.inference import Classifier


@dataclass(frozen=True)
class Subject:
    """Tiles and texts in one common space.

    Attributes:
        name: As tables call it.
        test: Vectors of the labelled test tiles.
        screening: Vectors of some training tiles, for the mode `screened`.
        screening_splits: Their splits (all `train`).
        place: Texts to unit vectors of the same space.
        logit_scale: Factor on cosines before the softmax.
        facts: What must stand beside each of its figures.
    """

    name: str
    test: Float32[np.ndarray, "n D"]
    screening: Float32[np.ndarray, "m D"]
    screening_splits: Shaped[np.ndarray, " m"]
    place: TextEncoder
    logit_scale: float
    facts: Mapping[str, Any]


def study_tiles(config: RunConfig, settings: PromptStudyConfig, workspace: Workspace) -> tuple[TileSet, TileSet]:
    """The labelled test tiles, and the training tiles that prompts are screened with (drawn by seed), each by id.

    Raises:
        DataError: No test tile has a label, or there is no training tile.
    """
    tiles = workspace.all_tiles
    test, train = tiles.of_split("test"), tiles.of_split("train")
    test = test.select(test.labels >= 0)
    if not len(test) or not len(train):
        what = "no labelled test tile" if not len(test) else "no training tile (prompts are screened with them)"
        raise DataError(explain(what, where=config.tiles.path, fix="give tiles of the splits train and test"))
    test, train = test.select(np.argsort(test.ids)), train.select(np.argsort(train.ids))
    drawn = np.random.default_rng(settings.seed).permutation(len(train))[: settings.screening_tiles]
    return test, train.select(np.sort(drawn))


def vlm_subjects(workspace: Workspace, test: TileSet, screening: TileSet) -> list[Subject]:
    """The VLM, and, when pairing is centred, the VLM with tiles and texts centred in the same way."""
    encode = remembered(workspace.encode)
    stores = workspace.tile_store("test"), workspace.tile_store("train")
    vectors = [_vectors(store, tiles) for store, tiles in zip(stores, (test, screening), strict=True)]
    scale, facts = workspace.vlm.logit_scale, vlm_facts(workspace)
    found = [Subject("VLM", vectors[0], vectors[1], screening.splits, encode, scale, facts)]
    text_mean, tile_mean = workspace.text_mean, workspace.tile_mean
    if text_mean is not None:

        def centred_texts(texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
            """Unit vectors around the snippets' mean."""
            return centred(encode(texts), text_mean)

        moved = [centred(part, tile_mean) for part in vectors]
        facts = facts | {"index": workspace.index.artifact.fingerprint}  # the texts' mean is that of its snippets
        found.append(Subject("VLM, centred", moved[0], moved[1], screening.splits, centred_texts, scale, facts))
    return found


def student_subject(folder: Path, workspace: Workspace, test: TileSet, screening: TileSet) -> Subject:
    """The classifier of a run's folder: its predicted text embeddings, and texts in the space it was taught.

    Raises:
        ModelError: There is no classifier, it was trained without text, or by another VLM than the configuration's.
        DataError: It knows other classes than the tiles have.
    """
    from clipit.models.inference import load_classifier

    classifier = load_classifier(folder / "classifier", get_processes().device)
    if classifier.spec.vlm is None:
        raise ModelError(
            explain(
                "this run's student was trained without text and answers no zero-shot questions",
                where=folder,
                fix="give a run of an arm with a projector (student.projector_layers: 1 or 2)",
            )
        )
    if classifier.spec.vlm["fingerprint"] != workspace.vlm.fingerprint:
        raise ModelError(
            explain(
                f"the student was taught by another VLM ({classifier.spec.vlm['name']}) than {workspace.vlm.name}",
                where=folder,
                fix="give the configuration of that run, or a run of this configuration",
            )
        )
    if set(classifier.classes) != set(test.classes):
        raise DataError(
            explain(
                f"the classifier knows {', '.join(classifier.classes)}; the tiles have {', '.join(test.classes)}",
                where=folder / "classifier",
                fix="give the configuration of that run",
            )
        )
    encode = remembered(workspace.encode)

    def taught(texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        """Unit vectors, centred as in the student's training."""
        distinct = list(dict.fromkeys(texts))
        given = dict(zip(distinct, encode(distinct), strict=True))
        placed = dict(zip(distinct, classifier.prompt_embeddings(given), strict=True))
        return np.stack([placed[text] for text in texts]).astype(np.float32)

    wanted = classifier.spec.preprocess
    facts: dict[str, Any] = {
        "model": str(folder / "classifier"),
        "fingerprint": classifier_fingerprint(folder / "classifier"),
    }
    facts |= {"preprocess": wanted.hash, "pixels": wanted.size}
    return Subject(
        name=f"student {folder.name}",
        test=_projected(classifier, test, "student: test tiles"),
        screening=_projected(classifier, screening, "student: training tiles"),
        screening_splits=screening.splits,
        place=taught,
        logit_scale=float(classifier.spec.vlm["logit_scale"]),
        facts=run_facts(folder) | facts,
    )


def remembered(encode: TextEncoder) -> TextEncoder:
    """The encoder with a memory: no text is embedded twice."""
    known: dict[str, Float32[np.ndarray, " D"]] = {}

    def lookup(texts: Sequence[str]) -> Float32[np.ndarray, "n D"]:
        """Vectors of the texts, those not met before through the encoder."""
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            known.update(zip(missing, encode(missing), strict=True))
        return np.stack([known[text] for text in texts])

    return lookup


def cut_tokens(count_tokens: Callable[[Sequence[str]], list[int]], budget: int, texts: Sequence[str]) -> list[int]:
    """Per text, how many tokens its text tower does not read."""
    return [max(0, count - budget) for count in count_tokens(texts)]


def _projected(classifier: "Classifier", tiles: TileSet, title: str) -> Float32[np.ndarray, "n D"]:
    """Predicted text embeddings of tiles; the processes share the batches."""
    processes, size = get_processes(), 64
    starts = range(0, len(tiles), size)
    own: dict[int, Float32[np.ndarray, "_ D"]] = {}
    with progress(title, len(starts), shown=processes.main) as advance:
        for start in processes.share(starts):
            stop = min(start + size, len(tiles))
            own[start] = classifier.project([tiles.read(i) for i in range(start, stop)])
            advance(processes.count)
    merged: dict[int, Float32[np.ndarray, "_ D"]] = {}
    for share in processes.gather(own):
        merged |= share
    return np.concatenate([merged[start] for start in starts]).astype(np.float32)


def _vectors(store: Store, tiles: TileSet) -> Float32[np.ndarray, "n D"]:
    return store.rows(store.positions(tiles.ids))
