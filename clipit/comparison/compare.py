"""Compare arms over seeds, data sets and backbones: plan, train, collect scores, compute statistics, write pages."""

import glob
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipit.comparison.agents import additional_agents, claim_runs
from clipit.comparison.analyses.registry import run_analyses
from clipit.comparison.analyses.result import AnalysisResult
from clipit.comparison.cards import write_cards
from clipit.comparison.export_tables import export_comparison, write_points
from clipit.comparison.headline import judge_comparison
from clipit.comparison.judged_arms import check_controls
from clipit.comparison.own_report_arms import resolve_plan_arm
from clipit.comparison.plan import FailedRun, Plan, describe_failed, plan_comparison, without_failed
from clipit.comparison.report.pairing_browser import write_pairing_page
from clipit.comparison.report.write import write_report
from clipit.comparison.report_reference import score_report_probes
from clipit.comparison.rows import add_costs, cropped_set_notes, model_and_set_notes, read_run_rows
from clipit.comparison.statistics import PERCENT, compute_statistics
from clipit.comparison.vlm_reference import score_vlm
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, DivergenceError, counted
from clipit.evaluation.score_row import ScoreRow
from clipit.output_files.artifacts import locked
from clipit.pairing.leaks import count_reports_of
from clipit.progress import RunCounter
from clipit.prompts.prompt_set import check_classes, load_prompts
from clipit.reports.readers import Report
from clipit.runs.folder import run_folder
from clipit.runs.train import train_run
from clipit.tiles.tileset import TileSet
from clipit.training.arms import resolve_arm
from clipit.training.terms.own_reports import own_report_labels
from clipit.training.terms.term_table import models_of, uses_own_report_labels, uses_reports
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)


def compare(config: RunConfig, comparison: ComparisonConfig, agents: int = 1) -> Path:
    """Train every arm with every seed, skipping finished runs, and write the comparison.

    Args:
        config: Configuration that all runs share.
        comparison: Arms, seeds, data sets and backbones to compare.
        agents: Number of processes that share the runs; each trains whole runs.

    Returns:
        Folder with comparison.md, .tex, .html, .parquet and .json.

    Raises:
        ConfigError: An arm's keys are invalid, or the arms' hyperparameters were tuned differently.
        DataError: A data set has no test tile, or a prompt set's classes differ from those of the tiles.
        DivergenceError: Training diverged in so many runs that nothing can be compared.
    """
    plans, workspaces = _plan(config, comparison)
    for plan, workspace in zip(plans, workspaces, strict=True):
        _check_test_sets(plan, workspace)
        _check_reports(plan, workspace)
    folder = config.output / "comparisons" / config.name
    with additional_agents(agents, "compare", config, comparison):
        trained, failed = _train(plans, workspaces)
    total = len(comparison.seeds) * sum(len(plan.arms) for plan in plans)
    plans = without_failed(plans, failed)
    compared = plans[0].comparison
    all_rows: list[ScoreRow] = []
    analyses: list[AnalysisResult] = []
    noted, cropped = list[str](), list[str]()
    for plan, workspace, finished in zip(plans, workspaces, trained, strict=True):
        rows = [row for row in finished if row.seed in compared.seeds]
        predictions = folder / "predictions" / plan.config.name
        rows += score_vlm(plan, workspace, predictions) + score_report_probes(plan, workspace, predictions)
        if get_processes().main:
            rows = add_costs(plan, rows, workspace)
        analyses += run_analyses(plan, workspace, rows, predictions)
        write_pairing_page(plan, workspace, rows)
        cropped += cropped_set_notes(plan, workspace, rows)
        noted += model_and_set_notes(plan, workspace)
        all_rows += rows
    if get_processes().main:
        with locked(folder):  # another command may be writing the same comparison
            analyses = write_points(analyses, folder)
            results = compute_statistics(compared, all_rows, config.evaluation.bootstrap)
            tiles = [workspace.all_tiles for workspace in workspaces]
            warnings = list(dict.fromkeys([*noted, *cropped]))
            verdict = judge_comparison(plans, results.arms, comparison.metric)
            failure = describe_failed(plans, failed, total)
            notes = write_report(config, compared, plans, results, analyses, folder, verdict, tiles, warnings, failure)
            export_comparison(config, comparison, results, analyses, notes, folder, verdict, failed)
            write_cards(plans, results)
    get_processes().barrier()
    return folder


def train_share(config: RunConfig, comparison: ComparisonConfig) -> None:
    """Train runs of a comparison together with other agents, until all are finished."""
    _train(*_plan(config, comparison), include_finished=False)


def _plan(config: RunConfig, comparison: ComparisonConfig) -> tuple[list[Plan], list[Workspace]]:
    """Plan the runs, create a workspace for each plan, and check the inputs of the runs."""
    plans = plan_comparison(config, comparison)
    shared: dict[str, Any] = {}
    workspaces = [Workspace(plan.config, shared) for plan in plans]
    for plan, workspace in zip(plans, workspaces, strict=True):
        _check_inputs(plan, workspace)
    return plans, workspaces


def _train(
    plans: Sequence[Plan], workspaces: Sequence[Workspace], *, include_finished: bool = True
) -> tuple[list[list[ScoreRow]], list[FailedRun]]:
    """Train all runs that no other agent is training, and return the rows of each plan, and runs that diverged.

    A run that diverges does not stop the others. All other errors stop the comparison, because they may concern every
    run: missing files, too little memory, a full disk.

    Args:
        plans: Runs to train.
        workspaces: Workspace of each plan.
        include_finished: Whether to verify and read runs that were already finished.
    """
    runs = [
        (plan, workspace, arm, seed)
        for plan, workspace in zip(plans, workspaces, strict=True)
        for seed in plan.comparison.seeds
        for arm in plan.arms
    ]
    configs = [plan.run_config(arm, seed) for plan, _, arm, seed in runs]
    folders = [run_folder(run) for run in configs]
    finished = [(folder / "results.json").is_file() for folder in folders]
    rows: dict[int, list[ScoreRow]] = {}
    failed: dict[int, FailedRun] = {}
    counter = RunCounter(len(runs))
    for index in claim_runs(folders):
        if not include_finished and (folders[index] / "results.json").is_file():
            continue
        plan, workspace, arm, seed = runs[index]
        where = "" if plan.data_set == plan.config.name else f" on {plan.data_set}"
        try:
            trained = train_run(configs[index], workspace, _same_arm_runs(configs[index]))
        except DivergenceError as error:  # raised in all processes
            failed[index] = FailedRun(plan.data_set, plan.backbone, arm, seed, error.what)
            logger.info(f"failed: {arm}{where}, seed {seed}: {error.what} ({counter.finish(kept=False)})")
            continue
        new = read_run_rows(plan, workspace, trained, arm, seed)
        rows[index] = new
        scores = ", ".join(f"{row.test_set} {_percent(row.score)}" for row in new)
        status, remaining = "kept" if finished[index] else "done", counter.finish(kept=finished[index])
        logger.info(f"{status}: {arm}{where}, seed {seed}: {new[0].metric} % {scores} ({remaining})")
    kept = [[row for index in sorted(rows) if runs[index][0] is plan for row in rows[index]] for plan in plans]
    return kept, [failed[index] for index in sorted(failed)]


def _same_arm_runs(config: RunConfig) -> list[Path]:
    """Find runs with the same arm and seed on other data sets, or in other comparisons of the output folder.

    An arm that does not use what distinguishes two data sets, such as their reports, is thus trained only once. With a
    tracker, every run is trained, because a copied run would have no curves in the tracker.
    """
    if config.tracking.tracker != "none":
        return []
    folder = run_folder(config)
    return sorted(folder.parent.parent.glob(f"*/{glob.escape(folder.name)}"))


def _percent(score: float | None) -> str:
    return "undefined" if score is None else f"{PERCENT * score:.1f}"


def _check_reports(plan: Plan, workspace: Workspace) -> None:
    """Check the reports, and labels from the patients' own reports, before training."""
    if plan.config.reports is not None and plan.config.prompts is not None:  # for the centred zero-shot reference row
        _ = workspace.reports
    for arm in plan.arms:
        config = resolve_plan_arm(plan, arm)
        arm_workspace = workspace.for_config(config)
        if uses_reports(config):
            _warn_about_shifted_patients(plan, workspace, arm_workspace.reports.reports, arm)
        if uses_own_report_labels(config):
            # The labelled tiles, and labels that depend on them, differ between seeds.
            for seed in plan.comparison.seeds if config.own_report.uses_tile_labels else plan.comparison.seeds[:1]:
                seeded = resolve_arm(plan.run_config(arm, seed))
                own_report_labels(seeded, arm_workspace.for_config(seeded), arm_workspace.tiles(seed))


def _warn_about_shifted_patients(plan: Plan, workspace: Workspace, reports: Sequence[Report], arm: str) -> None:
    """Warn about reports in the corpus whose patients have tiles in a shifted test set."""
    for name, section in plan.comparison.shifted.items():
        tiles = workspace.shifted_tiles(name, section)
        if count := count_reports_of(reports, tiles):
            logger.warning(
                f"{arm} may retrieve snippets from {counted(count, 'report')} of patients in the shifted set {name}; "
                "remove these reports from the corpus"
            )


def _check_inputs(plan: Plan, workspace: Workspace) -> None:
    """Check the controls, the inputs of the arms and the labelled test tiles before images are decoded."""
    configs = {arm: resolve_plan_arm(plan, arm) for arm in plan.arms}
    check_controls(configs, plan.comparison, plan.config.arms)
    for config in configs.values():
        check_inputs(workspace.for_config(config), [*models_of(config), "vlm"], reports=uses_reports(config))
    _require_test_tiles(plan, workspace.listed_tiles)


def _require_test_tiles(plan: Plan, tiles: TileSet) -> None:
    tests = tiles.of_split("test")
    if not (tests.labels >= 0).any() or "test" not in plan.config.evaluation.splits:
        raise DataError(
            "a comparison needs labelled test tiles",
            where=f"tiles.splits and evaluation.splits ({plan.data_set})",
            fix="add test tiles, or set tiles.test_fraction or tiles.folds, and keep test in evaluation.splits",
        )


def _check_test_sets(plan: Plan, workspace: Workspace) -> None:
    """Check the test tiles of every test set, and the classes of the prompts, before training."""
    _require_test_tiles(plan, workspace.all_tiles)
    for name, section in plan.comparison.shifted.items():
        workspace.shifted_tiles(name, section)
    seed = plan.comparison.seeds[0]
    prompt_sets = dict.fromkeys(
        [plan.config.prompts, *(resolve_arm(plan.run_config(a, seed)).prompts for a in plan.arms)]
    )
    for prompts in prompt_sets:
        if prompts:
            check_classes(load_prompts(prompts), workspace.all_tiles.classes)
