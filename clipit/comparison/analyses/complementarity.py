"""Complementarity (R in CLIP-IT's figure 3) of every arm, and of two classifiers that are not students.

The two classifiers are a linear head on the snippets that a tile retrieves (text only) and a linear probe of the VLM's
image embeddings. They serve only this analysis: pairs for test tiles are never stored, and no student is trained on
them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from clipit.comparison.analyses.pairing import prepare_rules, search_snippets
from clipit.comparison.analyses.result import AnalysisResult, heading, predictions_file, read_test_predictions
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT
from clipit.comparison.vlm_reference import reference_file, write_in_main_process
from clipit.errors import DataError, counted
from clipit.evaluation.complementarity import Complementarity, complementarity
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.score_row import ScoreRow
from clipit.pairing.pair_rules import Selection, snippet_weights
from clipit.reporting.tables import interval, number
from clipit.vectors import unit
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

TEXT_ONLY = "text only: a head on the retrieved snippets"
IMAGE_PROBE = "the VLM's image probe"

_Classifier = tuple[Predictions, Path]
"""Predictions for the test tiles, and their file."""


@dataclass(frozen=True)
class _SeedResult:
    """Complementarity of a classifier to the baseline with the same seed."""

    counts: Complementarity
    predictions: Path
    vision: Path

    @property
    def accuracy(self) -> float:
        """Accuracy of the classifier on the tiles that both predicted."""
        return (self.counts.both + self.counts.only_other) / self.counts.tiles


def analyse_complementarity(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path
) -> list[AnalysisResult]:
    """Compute R for every arm and reference classifier, against the baseline with the same seed."""
    config, c = plan.config, plan.comparison
    first = c.seeds[0]
    compared: dict[str, dict[int, _SeedResult]] = {}
    for seed in c.seeds:
        vision, vision_file = _run_classifier(rows, c.baseline, seed)
        # The table shows intervals for the first seed only.
        resamples = config.evaluation.bootstrap if seed == first else 0
        for name, (other, file) in _other_classifiers(plan, workspace, rows, folder, seed).items():
            counts = complementarity(vision, other, resamples, seed)
            compared.setdefault(name, {})[seed] = _SeedResult(counts, file, vision_file)
    return [
        AnalysisResult(
            heading=heading(plan, "Complementarity: correct where vision is wrong"),
            text="R counts the test tiles that another classifier classifies correctly and "
            f"{c.baseline} with the same seed does not (CLIP-IT, figure 3). `over seeds`: mean, with the range over "
            f"seeds in brackets; the other columns are for seed {first}, and the interval of the excess is a bootstrap "
            "over the test tiles. R is above 0 for any two classifiers, so it needs a reference: `expected` is R under "
            "independent errors, and a different seed of the same arm shows how large R becomes without text, through "
            "a different initialisation alone (with few labels, also through different labelled tiles). The text-only "
            "head uses the `pairing` rules of the configuration for all tiles, even if an arm sets its own.",
            header=(
                "other classifier",
                "R % over seeds",
                "excess % over seeds",
                f"seed {first}: accuracy %",
                "R (tiles)",
                "R %",
                "% of vision's errors",
                "expected %",
                "excess %",
            ),
            rows=tuple((name, *_table_cells(by_seed, first, len(c.seeds))) for name, by_seed in compared.items()),
            source=f"predictions.parquet of the runs; predictions/{folder.name}: text-only and image-probe, by seed",
            values=tuple(
                {"classifier": name, "seed": seed} | _values(result)
                for name, by_seed in compared.items()
                for seed, result in by_seed.items()
            ),
        )
    ]


def _run_classifier(rows: Sequence[ScoreRow], arm: str, seed: int) -> _Classifier:
    return read_test_predictions(rows, arm, seed), predictions_file(rows, arm, seed)


def _other_classifiers(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path, seed: int
) -> dict[str, _Classifier]:
    """Collect the predictions of all classifiers that are compared with a seed's baseline."""
    c, others = plan.comparison, dict[str, _Classifier]()

    def save(name: str, predictions: Predictions) -> _Classifier:
        file = reference_file(folder, name, seed, "test")
        write_in_main_process(file, predictions)
        return predictions, file

    try:
        if plan.config.reports is not None:
            others[TEXT_ONLY] = save("text-only", text_only_predictions(workspace, seed))
        others[IMAGE_PROBE] = save("image-probe", image_probe_predictions(workspace, seed))
    except DataError as error:  # too few labels for a head; the other rows are kept
        reason = str(error).splitlines()[0]
        logger.info(f"note: {reason}; the text-only classifier and the image probe are skipped for seed {seed}")
    if len(c.seeds) > 1:
        next_seed = c.seeds[(c.seeds.index(seed) + 1) % len(c.seeds)]
        others[f"{c.baseline}, the next seed"] = _run_classifier(rows, c.baseline, next_seed)
    return others | {arm: _run_classifier(rows, arm, seed) for arm in plan.arms if arm != c.baseline}


def _values(result: _SeedResult) -> dict[str, Any]:
    counts = result.counts
    bounds = {
        f"{name}_{end}": getattr(limits, end) for name, limits in counts.intervals.items() for end in ("low", "high")
    }
    return {
        "predictions": str(result.predictions),
        "vision": str(result.vision),
        "tiles": counts.tiles,
        "accuracy": result.accuracy,
        **{name: getattr(counts, name) for name in ("both", "only_vision", "only_other", "neither")},
        **{name: getattr(counts, name) for name in ("share", "of_wrong", "expected", "excess")},
        **bounds,
    }


def _table_cells(by_seed: dict[int, _SeedResult], first: int, seeds: int) -> tuple[str, ...]:
    over_seeds = (
        _mean_and_range([result.counts.share for result in by_seed.values()], seeds),
        _mean_and_range([result.counts.excess for result in by_seed.values()], seeds, signed=True),
    )
    if first not in by_seed:
        return *over_seeds, *["n/a"] * 6
    counts = by_seed[first].counts
    excess = counts.intervals["excess"]
    low, high = (None if bound is None else PERCENT * bound for bound in (excess.low, excess.high))
    return (
        *over_seeds,
        number(PERCENT * by_seed[first].accuracy, 1),
        str(counts.only_other),
        number(PERCENT * counts.share, 1),
        number(None if counts.of_wrong is None else PERCENT * counts.of_wrong, 1),
        number(PERCENT * counts.expected, 1),
        f"{number(PERCENT * counts.excess, 1, signed=True)} {interval(low, high, 1, signed=True)}".rstrip(),
    )


def _mean_and_range(values: Sequence[float], seeds: int, *, signed: bool = False) -> str:
    """Format `mean (lowest to highest)` in %, with the number of seeds if some have no value."""
    mean, low, high = (number(PERCENT * f(values), 1, signed=signed) for f in (fmean, min, max))
    cell = f"{mean} (one seed)" if len(values) == 1 else f"{mean} ({low} to {high})"
    return cell if len(values) in (1, seeds) else f"{cell}, {len(values)} of {counted(seeds, 'seed')}"


def text_only_predictions(workspace: Workspace, seed: int) -> Predictions:
    """Classify the test tiles from text alone, with a logistic regression on the snippets that tiles retrieve.

    Each tile of every split is represented by the mean of its `pairing.k` nearest snippets under the `pairing` rules
    (as in training), or by a zero vector if the rules leave it unpaired. Statistics over all tiles (hubness correction,
    mutual neighbours) come only from the training tiles. `exclude_same_group` applies only to training tiles; reports
    of validation and test patients are handled according to `leaks`. The head is fitted on the training labels that
    runs with this seed may use, and its regularisation is chosen on their validation labels. The paper's text
    classifier has two layers and a fine-tuned text tower; here, the head is linear and the tower is frozen.

    Raises:
        ConfigError: There are no reports, or a rule needs all scores and the index is not Flat.
        DataError: There are too few labels for a probe, or no report is of an organ named in a rule.
    """
    return _probe_predictions(workspace, seed, retrieved_text(workspace))


def image_probe_predictions(workspace: Workspace, seed: int) -> Predictions:
    """Classify the test tiles with the same head on the VLM's image embeddings.

    Raises:
        DataError: There are too few labels for a probe.
    """
    return _probe_predictions(workspace, seed, _image_embeddings(workspace))


def retrieved_text(workspace: Workspace) -> dict[str, Float32[np.ndarray, "_ dim"]]:
    """Return, for each split, the unit-norm mean embedding of the snippets that each tile retrieves."""
    rules, images = prepare_rules(workspace), _image_embeddings(workspace)
    train = workspace.all_tiles.of_split("train")
    groups = rules.owners[workspace.tile_store("train").positions(train.ids)]
    return {
        split: mean_snippets(workspace, rules, vectors, groups if split == "train" else None)
        for split, vectors in images.items()
    }


def mean_snippets(
    workspace: Workspace,
    rules: Selection,
    vectors: Float32[np.ndarray, "n dim"],
    groups: Int[np.ndarray, " n"] | None = None,
) -> Float32[np.ndarray, "n dim"]:
    """Return the unit-norm mean embedding of the snippets that each tile retrieves; zeros for a tile without snippets.

    Args:
        vectors: Unit-norm tile embeddings.
        groups: Group numbers of training tiles (see `search_snippets`).
    """
    index, temperature = workspace.index, rules.rules.score_temperature
    means = [np.empty((0, vectors.shape[1]), dtype=np.float32)]
    for candidates, kept in search_snippets(workspace, rules, vectors, groups):
        rows, cosines = candidates.rows[:, :-1], candidates.cosines[:, :-1]
        share = kept.astype(np.float32) if temperature is None else snippet_weights(cosines, kept, temperature)
        means.append(unit((index.vectors(np.maximum(rows, 0)) * share[..., None]).sum(axis=1).astype(np.float32)))
    return np.concatenate(means)


def _image_embeddings(workspace: Workspace) -> dict[str, Float32[np.ndarray, "_ dim"]]:
    embeddings = {}
    for split in ("train", "validation", "test"):
        store = workspace.tile_store(split)
        embeddings[split] = store.rows(store.positions(workspace.all_tiles.of_split(split).ids))
    return embeddings


def _probe_predictions(
    workspace: Workspace, seed: int, vectors: dict[str, Float32[np.ndarray, "_ dim"]]
) -> Predictions:
    """Fit a linear probe on the labels that runs with this seed may use, and classify the test tiles."""
    tiles = workspace.tiles(seed)
    train, validation, test = (tiles.of_split(split) for split in ("train", "validation", "test"))
    probe = linear_probe(vectors["train"], train.labels, vectors["validation"], validation.labels, len(tiles.classes))
    probabilities = probe.probabilities(vectors["test"])
    return Predictions(test.ids, test.splits, test.labels, test.groups, tiles.classes, probabilities)
