"""R of CLIP-IT's figure 3 for every arm, beside classifiers that need no report: who is right where vision is wrong."""

import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from clipit.comparison.analyses.result import AnalysisResult, predictions_of, read_test_predictions, title
from clipit.comparison.analyses.text_classifier import image_probe_predictions, text_only_predictions
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT
from clipit.comparison.vlm_reference import predictions_file, write_once
from clipit.errors import DataError
from clipit.evaluation.complementarity import Complementarity, complementarity
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.score_row import ScoreRow
from clipit.reporting.tables import interval, number
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

TEXT_ONLY = "text only: a head on the snippets that test tiles find"
IMAGE_PROBE = "the VLM's image probe"
_Classifier = tuple[Predictions, str]
"""What it says of the test tiles, and the file in which that lies."""


def right_where_vision_is_wrong(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path
) -> list[AnalysisResult]:
    """R of every arm and of the classifiers beside them, against the baseline of the same seed.

    Args:
        plan: Data set and backbone.
        workspace: Of its configuration.
        rows: Of its runs.
        folder: Where the predictions of the classifiers that only this analysis needs are kept.
    """
    config, c = plan.config, plan.comparison
    base = c.baseline
    found: dict[str, dict[int, tuple[Complementarity, str]]] = {}
    for seed in c.seeds:
        vision = read_test_predictions(rows, base, seed)
        resamples = config.evaluation.bootstrap if seed == c.seeds[0] else 0  # intervals are shown of one seed alone
        for name, (other, file) in _others(plan, workspace, rows, folder, seed).items():
            found.setdefault(name, {})[seed] = complementarity(vision, other, resamples, seed), file
    first = c.seeds[0]
    return [
        AnalysisResult(
            title(plan, "Who is right where vision is wrong"),
            f"R counts test tiles that another classifier gets right and {base} of the same seed gets wrong (CLIP-IT, "
            "figure 3). `over seeds`: mean, with the lowest and the highest seed in brackets; the columns after these "
            f"are of seed {first} alone, with a bootstrap interval over its test tiles. Any two classifiers have "
            "R > 0: `expected` is R if both erred independently, and another seed of the same arm shows what another "
            "start (and, with few labels, other labelled tiles) gives without text. The text-only head reads the "
            "snippets that the rules of `pairing` give to all tiles alike; rules that an arm has for itself do not "
            "count.",
            (
                "other classifier",
                "R % over seeds",
                "excess % over seeds",
                f"seed {first}: its accuracy %",
                "R (tiles)",
                "R %",
                "of vision's errors %",
                "expected %",
                "excess %",
            ),
            tuple((name, *_cells(by_seed, first, len(c.seeds))) for name, by_seed in found.items()),
            f"predictions.parquet of the runs; predictions/{folder.name}: text-only and image-probe, by seed",
            {},
            tuple(
                {"classifier": name, "seed": seed, "predictions": file, "vision": str(predictions_of(rows, base, seed))}
                | _values(one)
                for name, by_seed in found.items()
                for seed, (one, file) in by_seed.items()
            ),
        )
    ]


def _others(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path, seed: int
) -> dict[str, _Classifier]:
    """Every classifier to be set beside the baseline of a seed."""
    config, c = plan.config, plan.comparison
    base, others = c.baseline, dict[str, _Classifier]()

    def kept(name: str, predictions: Predictions) -> _Classifier:
        """Predictions of a head that belongs to this analysis, and the file in which they now lie."""
        path = predictions_file(folder, name, seed, "test")
        write_once(path, predictions)
        return predictions, str(path)

    try:
        if config.reports is not None:
            others[TEXT_ONLY] = kept("text-only", text_only_predictions(config, workspace, seed))
        others[IMAGE_PROBE] = kept("image-probe", image_probe_predictions(config, workspace, seed))
    except DataError as error:  # too few labels for a head: the other rows stand
        told = str(error).splitlines()[0]
        logger.info(f"note: {told}; seed {seed} is left out for the text-only classifier and the image probe")
    if len(c.seeds) > 1:
        another = c.seeds[(c.seeds.index(seed) + 1) % len(c.seeds)]
        others[f"{base}, the next seed"] = (
            read_test_predictions(rows, base, another),
            str(predictions_of(rows, base, another)),
        )
    others |= {
        arm: (read_test_predictions(rows, arm, seed), str(predictions_of(rows, arm, seed)))
        for arm in plan.arms
        if arm != base
    }
    return others


def _values(found: Complementarity) -> dict[str, Any]:
    """The counts and shares of a row, as numbers."""
    named = {name: getattr(found, name) for name in ("both", "only_vision", "only_other", "neither")}
    shares = {name: getattr(found, name) for name in ("share", "of_wrong", "expected", "excess")}
    bounds = {
        f"{name}_{end}": getattr(limits, end) for name, limits in found.intervals.items() for end in ("low", "high")
    }
    return {"tiles": found.tiles, "accuracy": _accuracy(found), **named, **shares, **bounds}


def _accuracy(found: Complementarity) -> float:
    return (found.both + found.only_other) / found.tiles


def _cells(by_seed: dict[int, tuple[Complementarity, str]], first: int, seeds: int) -> tuple[str, ...]:
    every = [found for found, _ in by_seed.values()]
    over = (
        _over([found.share for found in every], seeds),
        _over([found.excess for found in every], seeds, signed=True),
    )
    if first not in by_seed:
        return *over, *["n/a"] * 6
    found, _ = by_seed[first]
    excess = found.intervals["excess"]
    low, high = (None if v is None else PERCENT * v for v in (excess.low, excess.high))
    bounds = interval(low, high, 1, signed=True)
    return (
        *over,
        number(PERCENT * _accuracy(found), 1),
        str(found.only_other),
        number(PERCENT * found.share, 1),
        number(None if found.of_wrong is None else PERCENT * found.of_wrong, 1),
        number(PERCENT * found.expected, 1),
        f"{number(PERCENT * found.excess, 1, signed=True)} {bounds}".rstrip(),
    )


def _over(values: Sequence[float], seeds: int, *, signed: bool = False) -> str:
    """Mean (lowest to highest) in %; it is said when not every seed has a value."""
    mean, low, high = (number(PERCENT * f(values), 1, signed=signed) for f in (fmean, min, max))
    told = f"{mean} (one seed)" if len(values) == 1 else f"{mean} ({low} to {high})"
    return told if len(values) in (1, seeds) else f"{told}, {len(values)} of {seeds} seeds"
