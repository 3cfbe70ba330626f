"""Reference rows for arms that use the patients' own reports: the VLM's linear probe on each arm's report labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipit.comparison.own_report_arms import label_sources, report_probe_name
from clipit.comparison.plan import Plan
from clipit.comparison.vlm_reference import (
    fit_vlm_probe,
    probe_provenance,
    reference_file,
    reference_test_sets,
    score_reference,
)
from clipit.config.run import RunConfig
from clipit.evaluation.probes import DEFAULT_GRID
from clipit.evaluation.score_row import ScoreRow
from clipit.tiles.tileset import TileSet
from clipit.training.arms import resolve_arm
from clipit.training.terms.own_reports import own_report_labels
from clipit.workspace.workspace import Workspace

STRENGTH_WITHOUT_VALIDATION = 1.0
"""C of the probe if no validation tile has a label."""


def score_report_probes(plan: Plan, workspace: Workspace, folder: Path) -> list[ScoreRow]:
    """Fit a linear probe of the VLM on each arm's report labels, and score it on the test sets of a plan.

    The probe is a logistic regression on the VLM's image embeddings, fitted to the tile labels that the arm may use
    and, for other tiles, to the most probable class according to the report; tile weights are ignored. Its C is chosen
    on the validation labels that the arms with the same seed may use; it is 1 if there are none.

    Returns:
        One row per seed, test set and arm with distinct report labels (see `label_sources`).
    """
    rows = []
    for arm in dict.fromkeys(label_sources(plan).values()):
        for seed in plan.comparison.seeds:
            config = resolve_arm(plan.run_config(arm, seed))
            own_workspace = workspace.for_config(config)
            tiles = own_workspace.tiles(seed)
            validation_labels = int((tiles.of_split("validation").labels >= 0).sum())
            grid = DEFAULT_GRID if validation_labels else (STRENGTH_WITHOUT_VALIDATION,)
            probe, reason = fit_vlm_probe(own_workspace, tiles, _training_labels(config, own_workspace, tiles), grid)
            provenance = replace(
                probe_provenance(own_workspace, tiles),
                validation_labels=validation_labels,
                training_tiles=len(tiles.of_split("train")),
            )
            for set_name, (test, store) in reference_test_sets(plan, own_workspace).items():
                row = ScoreRow(
                    data_set=plan.data_set,
                    backbone=plan.backbone,
                    arm=report_probe_name(arm),
                    seed=seed,
                    provenance=provenance,
                    test_set=set_name,
                    tiles=0,
                    metric=plan.comparison.metric,
                    score=None,
                    reason=reason,
                )
                if probe is not None:
                    probabilities = probe.probabilities(store.rows(store.positions(test.ids)))
                    file = reference_file(folder, f"vlm-probe-on-labels-of-{arm}", seed, set_name)
                    row = score_reference(row, test, probabilities, file)
                rows.append(row)
    return rows


def _training_labels(config: RunConfig, workspace: Workspace, tiles: TileSet) -> Int64[np.ndarray, " n"]:
    """Return the class of each training tile: its own label, or else the report's; -1 if it has neither."""
    labels = tiles.of_split("train").labels
    return np.where(labels >= 0, labels, own_report_labels(config, workspace, tiles).classes)
