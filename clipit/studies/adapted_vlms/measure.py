"""Evaluate a VLM on labelled tiles: zero-shot classification, a linear probe, and class-match retrieval."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int64, Shaped

from clipit.config.run import RunConfig
from clipit.config.studies import ProbingConfig
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.features import Features
from clipit.evaluation.intervals import Statistics
from clipit.evaluation.metrics import explain_undefined, weighted_scores
from clipit.evaluation.model_comparison import ItemResults
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.retrieval import RetrievalScore
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.prompts.prompt_set import PromptSet
from clipit.studies.model_features import FrozenFeatures
from clipit.studies.probing.text_retrieval import text_retrieval
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

METRICS = ("balanced_accuracy", "weighted_f1", "auroc")
"""Classification metrics."""
_PERMUTATIONS = 1000
_LEVEL = 0.025


@dataclass(frozen=True)
class TileResults:
    """Results of one VLM on the test tiles.

    Attributes:
        zero_shot: Zero-shot classification; None without prompts or labelled test tiles.
        probes: Linear probe on the labels that each seed may use; empty without labels.
        retrieval: Class-match retrieval with prompts and recall of captions, as pairs of task and score.
        labels: Number of training and validation labels of the probe, by seed.
        problems: Reasons for missing results.
        below_chance: Balanced accuracy on the labelled validation tiles and their number, if zero-shot classification
            is worse than chance; otherwise None.
    """

    zero_shot: ItemResults | None
    probes: Mapping[int, ItemResults]
    retrieval: list[tuple[str, RetrievalScore]]
    labels: Mapping[int, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    below_chance: tuple[float, int] | None = None


def measure_tiles(
    config: RunConfig, probing: ProbingConfig, workspace: Workspace, joint: FrozenFeatures, seeds: tuple[int, ...]
) -> TileResults:
    """Evaluate the VLM of a workspace on its test tiles; called by all processes, but only the main one fits probes.

    Args:
        config: Run configuration, whose `tiles.labels` selects the labels of the probe.
        probing: Section `probing`, with the numbers of retrieved items and the captions.
    """
    zero_shot = measure_zero_shot(workspace, joint)
    below_chance = _below_chance(workspace, joint, seeds[0])
    retrieval = text_retrieval(probing, workspace, joint)
    if not get_processes().main:
        return TileResults(zero_shot, {}, retrieval, below_chance=below_chance)
    probes: dict[int, ItemResults] = {}
    labels: dict[int, int] = {}
    problems: list[str] = []
    test = joint.split(workspace.all_tiles, "test").labelled()
    for seed in seeds if len(test) and config.tiles.labels.kind != "none" else ():
        visible = workspace.tiles(seed)
        train, validation = joint.split(visible, "train").labelled(), joint.split(visible, "validation").labelled()
        try:
            probes[seed] = _probe(train, validation, test, workspace.all_tiles)
        except DataError as error:
            problems.append(f"no linear probe: {str(error).splitlines()[0]}")
            probes = {}
            break
        labels[seed] = len(train) + len(validation)
    return TileResults(zero_shot, probes, retrieval, labels, problems, below_chance)


def measure_zero_shot(
    workspace: Workspace, joint: FrozenFeatures, test_ids: Shaped[np.ndarray, " n"] | None = None
) -> ItemResults | None:
    """Classify the labelled test tiles with prompts; return None without prompts or labels.

    Embeddings are not centred.

    Args:
        test_ids: Ids of the test tiles to score; None for all.
    """
    tiles, prompts = workspace.all_tiles, workspace.prompts
    test = joint.split(tiles, "test")
    if test_ids is not None:
        scored = set(test_ids.tolist())
        test = test.take(np.array([name in scored for name in test.ids.tolist()], dtype=np.bool_))
    test = test.labelled()
    if prompts is None or not len(test):
        return None
    return _classified(test, _zero_shot(workspace, prompts, test), tiles.classes)


def worse_than_chance(labels: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"]) -> float | None:
    """Return the balanced accuracy if predictions are worse than chance, else None.

    Predictions are worse than chance if at most 2.5% of 1,000 random permutations of the labels give a balanced
    accuracy that is at least as low (a permutation test).

    Args:
        predicted: Predicted class indices.
    """
    classes, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = 1 / (len(classes) * counts[class_of])  # contribution of a correct tile to the balanced accuracy
    accuracy = float(weights @ (predicted == labels))
    random = np.random.default_rng(0)
    orders = random.permuted(np.tile(np.arange(len(labels)), (_PERMUTATIONS, 1)), axis=1)
    permuted_accuracy = ((predicted == labels[orders]) * weights[orders]).sum(axis=1)
    as_low = 1 + int((permuted_accuracy <= accuracy + 1e-9).sum())
    return accuracy if as_low / (_PERMUTATIONS + 1) <= _LEVEL else None


def _below_chance(workspace: Workspace, joint: FrozenFeatures, seed: int) -> tuple[float, int] | None:
    """Classify the labelled validation tiles of a seed with prompts, and compare the accuracy with chance."""
    prompts = workspace.prompts
    tiles = joint.split(workspace.tiles(seed), "validation").labelled()
    if prompts is None or not len(tiles):
        return None
    accuracy = worse_than_chance(tiles.labels, _zero_shot(workspace, prompts, tiles).argmax(axis=1))
    return None if accuracy is None else (accuracy, len(tiles))


def _zero_shot(workspace: Workspace, prompts: PromptSet, tiles: Features) -> Float[np.ndarray, "n c"]:
    classes = prompt_embeddings(prompts, workspace.encode, None, workspace.all_tiles.classes)
    vectors = np.asarray(tiles.vectors, dtype=np.float32)
    return zero_shot_probabilities(vectors, classes, workspace.vlm.logit_scale)


def _probe(train: Features, validation: Features, test: Features, tiles: TileSet) -> ItemResults:
    fitted = linear_probe(train.vectors, train.labels, validation.vectors, validation.labels, len(tiles.classes))
    return _classified(test, fitted.probabilities(test.vectors), tiles.classes)


def _classified(test: Features, probabilities: Float[np.ndarray, "n c"], classes: tuple[str, ...]) -> ItemResults:
    return ItemResults(
        ids=test.ids,
        groups=test.groups,
        scores=_classification(test.labels, probabilities),
        random={},
        reasons={name: explain_undefined(name, test.labels, classes) for name in METRICS},
    )


def _classification(labels: Int64[np.ndarray, " n"], probabilities: Float[np.ndarray, "n c"]) -> Statistics:
    def scores(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        return weighted_scores(labels, probabilities, weights, METRICS)

    return scores


def query_scores(
    ids: Shaped[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    values: Mapping[str, Float[np.ndarray, " n"]],
    random: Mapping[str, float],
) -> ItemResults:
    """Return results whose scores are weighted means of one value per query.

    Args:
        groups: Patient or slide of each query; "" where unknown.
        values: Value of each query, by name of the score.
        random: Score expected by chance, by name of the score.
    """

    def scores(weights: Float[np.ndarray, "n r"]) -> dict[str, Float[np.ndarray, " r"]]:
        total = weights.sum(axis=0)
        return {name: value @ weights / total for name, value in values.items()}

    return ItemResults(ids, groups, scores, random, {})
