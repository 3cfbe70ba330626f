"""Pairing browser for each data set of a comparison, with the predictions of the first arm that uses reports."""

import logging
from collections.abc import Sequence

from clipit.comparison.plan import Plan
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.score_row import ScoreRow
from clipit.progress import progress
from clipit.reporting.pairing_page import choose_tiles
from clipit.runs.predict_tiles import open_classifier
from clipit.training.arms import resolve_arm
from clipit.training.terms.term_table import uses_reports
from clipit.workspace.pairs_page import TilePredictions, write_pairs_page
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_BATCH = 64  # images in memory at a time


def write_pairing_page(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow]) -> None:
    """Write `<output>/pairings/<name>/pairs.html` if reports are configured; must be called by all processes.

    If the page cannot be built, because no pair passes the rules or a tile's file is missing, the reason is logged.

    Args:
        plan: Plan for a data set and backbone, whose `comparison.pairing_page` sets the number of tiles.
        workspace: Cached inputs of the plan's configuration.
        rows: Rows of the plan's finished runs.
    """
    config, max_tiles = plan.config, plan.comparison.pairing_page
    if not max_tiles or config.reports is None:
        return
    try:
        shown = choose_tiles(workspace.pairs.table, max_tiles)
        if get_processes().main:  # takes a few seconds; the other processes do not wait
            write_pairs_page(config, workspace, max_tiles, given=_predict(plan, workspace, rows, shown))
    except DataError as error:
        logger.info(f"note: no pairing browser for {plan.data_set}: {str(error).splitlines()[0]}")


def _predict(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], shown: Sequence[str]
) -> tuple[TilePredictions, str] | None:
    """Classify training tiles with a run of the first arm that uses reports; None if there is no such arm.

    Returns:
        The predictions, and a note that names the run.
    """
    seed = plan.comparison.seeds[0]
    arm = next((name for name in plan.arms if uses_reports(resolve_arm(plan.run_config(name, seed)))), None)
    if arm is None:
        return None
    run = next(row.run_folder() for row in rows if (row.arm, row.seed) == (arm, seed))
    classifier = open_classifier(plan.config, run)
    train = workspace.all_tiles.of_split("train")
    tiles = train.select(train.among(shown))
    predictions: dict[str, tuple[int, float]] = {}
    with progress("classifying paired tiles", len(tiles)) as advance:
        for start in range(0, len(tiles), _BATCH):
            batch_rows = range(start, min(start + _BATCH, len(tiles)))
            batch = classifier.predict_proba([tiles.read(i) for i in batch_rows])
            for i, probabilities in zip(batch_rows, batch, strict=True):
                predictions[str(tiles.ids[i])] = int(probabilities.argmax()), float(probabilities.max())
            advance(len(batch_rows))
    note = (
        f"Predictions: the classifier of {run.parent.name}/{run.name}, applied to these tiles. It was trained on these "
        "tiles, including their labels where available, so correct predictions here do not measure its accuracy."
    )
    pairing = plan.config.pairing
    if resolve_arm(plan.run_config(arm, seed)).pairing != pairing:
        note += f" {arm} overrides pairing keys: it was trained with different pairs."
    return predictions, note
