"""Rows of test-time adaptation: whole sets of tiles, and batches of them with other shares of the classes."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, Shaped

from clipit.config.run import RunConfig
from clipit.config.studies import RobustnessConfig
from clipit.errors import DataError
from clipit.evaluation.adaptation import FEWEST_TILES, align_statistics, statistics_of, transductive
from clipit.evaluation.adaptation_guard import Reference, judge, reference_of
from clipit.studies.robustness.scores import Found, Row, score_cell
from clipit.studies.robustness.subjects import ZERO, Answer, Subject, Vectors
from clipit.tiles.tileset import TileSet

STATISTICS = "feature statistics (transductive)"
TRANSDUCTIVE = "transductive, text prior"
BATCHES = ((0.3, 30), (0.3, 100), (0.3, 200), (1.0, 30), (1.0, 100), (1.0, 200))
"""Dirichlet concentration of the shares of the classes, and tiles, of the batches drawn from each set."""


@dataclass(frozen=True)
class Known:
    """What adaptation and its guard know of the training's origin, of one subject.

    Attributes:
        training: Reading -> vectors of training tiles.
        references: Reading -> what the guard compares with; a text: why there is none.
    """

    training: Vectors
    references: Mapping[str, Reference | str]


def known_of(subject: Subject, training: Vectors) -> Known:
    """Collect it.

    Args:
        subject: The model.
        training: Reading -> vectors of training tiles.
    """
    references: dict[str, Reference | str] = {}
    for reading, answer in subject.answers.items():
        try:
            references[reading] = reference_of(training[reading], answer(training[reading]))
        except DataError as error:
            references[reading] = str(error).splitlines()[0]
    return Known(training, references)


def adaptation_rows(
    config: RunConfig,
    settings: RobustnessConfig,
    subjects: list[Subject],
    parts: Mapping[str, TileSet],
    all_vectors: Found,
    known: Mapping[str, Known],
) -> list[Row]:
    """Every adaptation on every set, with the guard's verdict beside the true gain or loss.

    Args:
        config: Configuration of the runs.
        settings: Section of the study.
        subjects: Models.
        parts: Test tiles and shifted sets.
        all_vectors: Of these.
        known: Subject -> of the training's origin.
    """
    rows = []
    for subject in subjects:
        for part, tiles in parts.items():
            found = adapted_rows(
                config, settings, tiles, subject, all_vectors[subject.name, part], known[subject.name], part
            )
            rows += [row | {"part": part} for row in found]
    return rows


def adapted_rows(
    config: RunConfig,
    settings: RobustnessConfig,
    tiles: TileSet,
    subject: Subject,
    vectors: Vectors,
    known: Known,
    name: str,
) -> list[Row]:
    """One row per reading and adaptation of one subject on one set of tiles, and one per batch drawn from them.

    Args:
        config: Configuration of the runs.
        settings: Adaptations, and number of batches.
        tiles: All with a label.
        subject: The model.
        vectors: Reading -> vectors of these tiles, in their order.
        known: Of the training's origin.
        name: Of the set; batches depend on it.
    """
    rows: list[Row] = []
    batches = list(drawn_batches(tiles, settings.batches, name, settings.seed))
    for reading, answer in subject.answers.items():
        for method in settings.adaptation:
            if method == "transductive" and reading != ZERO:
                continue  # it needs a text prior
            told = STATISTICS if method == "statistics" else TRANSDUCTIVE
            base: Row = {"subject": subject.name, "reading": reading, "method": told}
            reason = subject.fixed.get(reading, "") if method == "statistics" else ""
            adapt = _Adapt(config, settings, answer, known.training[reading], known.references[reading], method, reason)
            rows.append(base | {"what": "adaptation"} | adapt.cell(tiles, vectors[reading]))
            for concentration, chosen in batches if not reason else []:
                cell = adapt.cell(tiles.select(chosen), vectors[reading][chosen], "accuracy")
                share = float(np.bincount(tiles.labels[chosen]).max() / len(chosen))
                rows.append(base | {"what": "batch", "concentration": concentration, "largest_share": share} | cell)
    return rows


@dataclass(frozen=True)
class _Adapt:
    """One adaptation of one reading of one model."""

    config: RunConfig
    settings: RobustnessConfig
    answer: Answer
    training: Float32[np.ndarray, "m d"]
    reference: Reference | str
    method: str
    reason: str

    def cell(self, tiles: TileSet, vectors: Float32[np.ndarray, "n d"], metric: str = "") -> Row:
        """Scores without and with it, and the guard's verdict."""
        before = self.answer(vectors)
        plain = score_cell(self.config, self.settings, tiles, before, None, 0, metric)
        reason, after = self.reason, None
        try:
            after = None if reason else self._adapted(tiles.ids, vectors, before)
        except DataError as error:
            reason = str(error).splitlines()[0]
        if after is None:
            return {"metric": plain["metric"], "n": len(tiles), "unadapted": plain["value"], "reason": reason}
        facts: Row = {"unadapted": plain["value"]}
        if isinstance(self.reference, str):
            facts |= {"guard": "refused", "guard_reasons": self.reference}
        else:
            verdict = judge(self.reference, vectors)
            facts |= {"guard": "accepted" if verdict.accepted else "refused", "misfit": verdict.misfit}
            facts |= {"guard_reasons": "; ".join(verdict.reasons)}
        return (
            score_cell(self.config, self.settings, tiles, after, before, self.config.evaluation.bootstrap, metric)
            | facts
        )

    def _adapted(
        self, ids: Shaped[np.ndarray, " n"], vectors: Float32[np.ndarray, "n d"], before: Float32[np.ndarray, "n c"]
    ) -> Float32[np.ndarray, "n c"]:
        if self.method == "transductive":
            return transductive(ids, vectors, before)
        return self.answer(align_statistics(vectors, statistics_of(vectors), statistics_of(self.training, "training")))


def drawn_batches(tiles: TileSet, times: int, name: str, seed: int) -> Iterator[tuple[float, Int64[np.ndarray, " n"]]]:
    """Concentration and rows of each batch: shares of the classes from a Dirichlet law, tiles without replacement.

    A hospital's tiles of a week are seldom balanced; such batches are where adaptation harms. The labels draw them, to
    measure the guard, and are not shown to it. A batch is as large as it can be without using up a class, so that it
    has the shares that were drawn; none is drawn from a set of one class, or where fewer than 20 tiles would be left.
    """
    draws = np.random.default_rng([seed, zlib.crc32(name.encode())])
    classes, counts = np.unique(tiles.labels, return_counts=True)
    for _ in range(times if len(classes) > 1 else 0):
        for concentration, size in BATCHES:
            shares = draws.dirichlet(np.full(len(classes), concentration))
            most = int(min(size, (counts / np.maximum(shares, 1e-9)).min()))
            wanted = np.minimum(draws.multinomial(most, shares), counts)
            if wanted.sum() >= FEWEST_TILES:
                rows = (np.flatnonzero(tiles.labels == label) for label in classes)
                chosen = [draws.choice(own, n, replace=False) for own, n in zip(rows, wanted, strict=True)]
                yield concentration, np.sort(np.concatenate(chosen))
