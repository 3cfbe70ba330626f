"""Evaluate test-time adaptation on whole sets of tiles and on batches with shifted class proportions."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int64

from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.errors import DataError
from clipit.evaluation.adaptation_guard import TrainingMixture, fit_mixture, judge_adaptation
from clipit.evaluation.test_time_adaptation import MIN_TILES, align_statistics, compute_feature_statistics, transductive
from clipit.studies.robustness.measured_models import ZERO_SHOT_OUTPUT, MeasuredModel, Readout, Vectors
from clipit.studies.robustness.scores import RobustnessRow, SetVectors, compute_score, score_row
from clipit.tiles.tileset import TileSet

METHODS = {"statistics": "feature statistics (transductive)", "transductive": "transductive, text prior"}
"""Value of the column `method` for each value of `robustness.adaptation`."""
BATCHES = ((0.3, 30), (0.3, 100), (0.3, 200), (1.0, 30), (1.0, 100), (1.0, 200))
"""Dirichlet concentration of the class proportions, and number of tiles, of each batch drawn from a set."""


@dataclass(frozen=True)
class TrainingReference:
    """Vectors of training tiles from one model: the reference for adaptation and its guard.

    Attributes:
        vectors: Vectors of training tiles by output.
        mixtures: Mixture model of the guard by output, or the reason why it could not be fitted.
    """

    vectors: Vectors
    mixtures: Mapping[str, TrainingMixture | str]


def fit_reference(model: MeasuredModel, vectors: Vectors) -> TrainingReference:
    """Fit the guard's mixture model for every output.

    Args:
        vectors: Vectors of training tiles by output.
    """
    mixtures: dict[str, TrainingMixture | str] = {}
    for output, readout in model.readouts.items():
        try:
            mixtures[output] = fit_mixture(vectors[output], readout(vectors[output]))
        except DataError as error:
            mixtures[output] = str(error).splitlines()[0]
    return TrainingReference(vectors, mixtures)


def adaptation_rows(
    config: RunConfig,
    robustness: RobustnessConfig,
    models: list[MeasuredModel],
    test_sets: Mapping[str, TileSet],
    set_vectors: SetVectors,
    references: Mapping[str, TrainingReference],
) -> Iterator[RobustnessRow]:
    """Evaluate every adaptation of every model on every set: the guard's verdict and the true change in score."""
    for model in models:
        for name, tiles in test_sets.items():
            vectors, reference = set_vectors[model.name, name], references[model.name]
            for row in adapt_tiles(config, robustness, tiles, model, vectors, reference, name):
                yield replace(row, test_set=name)


def adapt_tiles(
    config: RunConfig,
    robustness: RobustnessConfig,
    tiles: TileSet,
    model: MeasuredModel,
    vectors: Vectors,
    reference: TrainingReference,
    name: str,
) -> Iterator[RobustnessRow]:
    """Evaluate the adaptations of one model on a set of tiles and on batches drawn from it, one row per output.

    Args:
        robustness: Configuration of the study, with adaptations and number of batches.
        vectors: Vectors of these tiles by output.
        name: Name of the set, which seeds the batches.
    """
    batches = list(draw_batches(tiles, robustness.batches, name, robustness.seed))
    for output, readout in model.readouts.items():
        for method in robustness.adaptation:
            if method == "transductive" and output != ZERO_SHOT_OUTPUT:
                continue  # the method needs a text prior
            task = _AdaptedOutput(
                config, readout, reference.vectors[output], reference.mixtures[output], method,
                model.not_adaptable.get(output, "") if method == "statistics" else "",
            )  # fmt: skip
            row = RobustnessRow(analysis="adaptation", subject=model.name, output=output, method=METHODS[method])
            yield task.measure(row, robustness.metric, tiles, vectors[output])
            for concentration, chosen in batches if not task.not_adaptable else []:
                share = float(np.bincount(tiles.labels[chosen]).max() / len(chosen))
                row = replace(row, analysis="batch", concentration=concentration, largest_share=share)
                yield task.measure(row, "accuracy", tiles.select(chosen), vectors[output][chosen])


@dataclass(frozen=True)
class _AdaptedOutput:
    """Adaptation method applied to one output of one model."""

    config: RunConfig
    readout: Readout
    training: Float32[np.ndarray, "m d"]
    mixture: TrainingMixture | str
    method: str
    not_adaptable: str

    def measure(
        self, row: RobustnessRow, metric: str, tiles: TileSet, vectors: Float32[np.ndarray, "n d"]
    ) -> RobustnessRow:
        """Complete the row with the scores without and with adaptation, and the guard's verdict."""
        before = self.readout(vectors)
        row = replace(row, metric=metric, n=len(tiles), unadapted=compute_score(metric, tiles, before))
        if self.not_adaptable:
            return replace(row, reason=self.not_adaptable)
        try:
            after = self.predict(tiles, vectors, before)
        except DataError as error:
            return replace(row, reason=str(error).splitlines()[0])
        if isinstance(self.mixture, str):
            row = replace(row, guard="refused", guard_reasons=self.mixture)
        else:
            verdict = judge_adaptation(self.mixture, vectors)
            guard = "accepted" if verdict.accepted else "refused"
            row = replace(row, guard=guard, misfit=verdict.misfit, guard_reasons=verdict.reason)
        return score_row(row, self.config, metric, tiles, after, before)

    def predict(
        self, tiles: TileSet, vectors: Float32[np.ndarray, "n d"], before: Float32[np.ndarray, "n c"]
    ) -> Float32[np.ndarray, "n c"]:
        """Predict class probabilities with adaptation."""
        if self.method == "transductive":
            return transductive(tiles.ids, vectors, before)
        target, training = compute_feature_statistics(vectors), compute_feature_statistics(self.training, "training")
        return self.readout(align_statistics(vectors, target, training))


def draw_batches(tiles: TileSet, repeats: int, name: str, seed: int) -> Iterator[tuple[float, Int64[np.ndarray, " n"]]]:
    """Draw batches with Dirichlet class proportions, without replacement; yield concentration and rows of each batch.

    In practice, batches of tiles are rarely balanced, and adaptation is most likely to harm unbalanced ones. Labels
    are used to draw the batches and to evaluate the guard, but not by the guard itself. Each batch is as large as
    possible, up to its nominal size, without exhausting a class, so that it has the drawn proportions. Sets with a
    single class, and batches of fewer than `MIN_TILES` tiles, are skipped.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    classes, counts = np.unique(tiles.labels, return_counts=True)
    for _ in range(repeats if len(classes) > 1 else 0):
        for concentration, size in BATCHES:
            proportions = generator.dirichlet(np.full(len(classes), concentration))
            limit = int(min(size, (counts / np.maximum(proportions, 1e-9)).min()))
            sizes = np.minimum(generator.multinomial(limit, proportions), counts)
            if sizes.sum() >= MIN_TILES:
                members = (np.flatnonzero(tiles.labels == label) for label in classes)
                chosen = [generator.choice(m, n, replace=False) for m, n in zip(members, sizes, strict=True)]
                yield concentration, np.sort(np.concatenate(chosen))
