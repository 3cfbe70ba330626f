"""The pairing browser of each data set of a comparison, with what its first text arm predicts."""

import logging
from collections.abc import Sequence

import numpy as np

from clipit.comparison.plan import Plan
from clipit.distributed import get_processes
from clipit.errors import DataError
from clipit.evaluation.score_row import ScoreRow
from clipit.progress import progress
from clipit.reporting.pairing_page import chosen_tiles
from clipit.training.active_terms import uses_reports
from clipit.training.arms import resolve_arm
from clipit.workspace.pairs_page import Answers, write_pairs_page
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_AT_ONCE = 64  # pictures in memory


def write_pairing_page(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow]) -> None:
    """Write `<output>/pairings/<name>/pairs.html`, if there are reports; call it in all processes.

    A page that cannot be made (no pair is left by the rules, a tile's file is gone) is told of: the comparison stands.

    Args:
        plan: Data set and backbone; its `comparison.pairing_page` says how many tiles.
        workspace: Of its configuration.
        rows: Of its finished runs.
    """
    config, most = plan.config, plan.comparison.pairing_page
    if not most or config.reports is None:
        return
    try:
        shown = chosen_tiles(workspace.pairs.table, most)
        if get_processes().main:  # alone: seconds of work, and nothing that others wait for
            write_pairs_page(config, workspace, most, given=_predicted(plan, workspace, rows, shown))
    except DataError as error:
        logger.info(f"note: no page of the pairing of {plan.data_set}: {str(error).splitlines()[0]}")


def _predicted(
    plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], shown: Sequence[str]
) -> tuple[Answers, str] | None:
    """What the first arm that is taught by reports says of these training tiles; None without such an arm."""
    from clipit.models.inference import load_classifier

    seed, trust = plan.comparison.seeds[0], plan.config.backbone.trust_remote_code
    arm = next((name for name in plan.arms if uses_reports(resolve_arm(plan.run_config(name, seed)))), None)
    if arm is None:
        return None
    run = next(row.run_folder() for row in rows if (row.arm, row.seed) == (arm, seed))
    classifier = load_classifier(run / "classifier", get_processes().device, trust_remote_code=trust)
    train = workspace.all_tiles.of_split("train")
    tiles = train.select(np.isin(train.ids, np.asarray(shown, dtype=np.str_)))
    answers: dict[str, tuple[int, float]] = {}
    with progress("predicting paired tiles", len(tiles)) as advance:
        for start in range(0, len(tiles), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(tiles)))
            found = classifier.predict_proba([tiles.read(i) for i in part])
            for i, probabilities in zip(part, found, strict=True):
                answers[str(tiles.ids[i])] = int(probabilities.argmax()), float(probabilities.max())
            advance(len(part))
    told = (
        f"Predictions: the classifier of {run.parent.name}/{run.name}, applied to these tiles. It was trained on them, "
        "and saw the labels of those that were labelled: right answers here are no measure of it."
    )
    pairing = plan.config.pairing
    if resolve_arm(plan.run_config(arm, seed)).pairing != pairing:
        told += f" {arm} has pairing keys of its own: it was taught by other pairs than these."
    return answers, told
