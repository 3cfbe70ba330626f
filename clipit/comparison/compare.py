"""Arms over seeds, data sets and backbones: runs, reference rows, paired differences, and the reasons."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import git_commit, read_json, whole_file, write_json
from clipit.comparison.analyses.finding import Finding
from clipit.comparison.analyses.registry import findings
from clipit.comparison.plan import Plan, plan_comparison
from clipit.comparison.report.pairing_browser import write_pairing_page
from clipit.comparison.report.write import write_report
from clipit.comparison.results_json import keep_planes, numbers
from clipit.comparison.rows import RECORD, add_costs, reference_rows_of, run_rows
from clipit.comparison.statistics import PERCENT
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, explain
from clipit.prompts.prompt_set import check_classes, load_prompts
from clipit.reporting.csv_record import write_record
from clipit.runs.folder import run_folder
from clipit.runs.train import train_run
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)


def compare(config: RunConfig) -> Path:
    """Run every arm with every seed (those finished are skipped) and write the comparison.

    Args:
        config: Its `comparison` section says what is compared.

    Returns:
        The folder with comparison.md, .tex, .html, .parquet and .json.

    Raises:
        ConfigError: An arm's keys do not fit, or the arms were searched unlike.
        DataError: A data set has no test tile, or a prompt set other classes than the tiles.
    """
    plans = plan_comparison(config)
    shared: dict[str, Any] = {}
    workspaces = [Workspace(plan.config, shared) for plan in plans]
    for plan, workspace in zip(plans, workspaces, strict=True):
        _check_tests(plan, workspace)
    folder = config.output / "comparisons" / config.name
    rows: list[dict[str, Any]] = []
    why: list[Finding] = []
    for plan, workspace in zip(plans, workspaces, strict=True):
        found = _runs(plan, workspace)
        beside = folder / "predictions" / plan.config.name
        found += reference_rows_of(plan, workspace, beside)
        if get_processes().main:
            add_costs(plan, found, workspace)
        why += findings(plan, workspace, found, beside)
        write_pairing_page(plan, workspace, found)
        rows += found
    if get_processes().main:
        why = keep_planes(why, folder)
        made, against, notes = write_report(config, plans, rows, why, folder, [m.all_tiles for m in workspaces])
        _write_rows(config, rows, numbers(made, against, why) | {"notes": notes}, folder)
    get_processes().barrier()
    return folder


def _runs(plan: Plan, workspace: Workspace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in plan.config.comparison.seeds:
        for arm in plan.arms:
            run = plan.run(arm, seed)
            done = (run_folder(run) / "results.json").is_file()
            folder = train_run(run, workspace)
            new = run_rows(plan, workspace, folder, arm, seed)
            rows += new
            shown = ", ".join(f"{row['part']} {_shown(row['score'])}" for row in new)
            where = "" if plan.data_set == plan.config.name else f" on {plan.data_set}"
            logger.info(f"{'kept' if done else 'done'}: {arm}{where}, seed {seed}: {new[0]['metric']} % {shown}")
    return rows


def _shown(score: float | None) -> str:
    return "not defined" if score is None else f"{PERCENT * score:.1f}"


def _check_tests(plan: Plan, workspace: Workspace) -> None:
    """Find missing test tiles and prompts of other classes before anything is trained."""
    tests = workspace.all_tiles.of_split("test")
    if not (tests.labels >= 0).any() or "test" not in plan.config.evaluation.splits:
        raise DataError(
            explain(
                "a comparison needs labelled test tiles",
                where=f"tiles.splits and evaluation.splits ({plan.data_set})",
                fix="give tiles of the split test, and keep test among evaluation.splits",
            )
        )
    for name in plan.config.comparison.shifted:
        workspace.shifted_tiles(name)
    seed = plan.config.comparison.seeds[0]
    asked = dict.fromkeys([plan.config.prompts, *(resolve_arm(plan.run(a, seed)).prompts for a in plan.arms)])
    for prompts in asked:
        if prompts:
            check_classes(load_prompts(prompts), workspace.all_tiles.classes)


def _write_rows(config: RunConfig, rows: list[dict[str, Any]], shown: dict[str, Any], folder: Path) -> None:
    """comparison.parquet, the rows alone; comparison.json, with all numbers that the tables show."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    whole = [{key: row.get(key) for key in keys} for row in rows]
    with whole_file(folder / "comparison.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(whole), temporary)
    facts = {"config": config.model_dump(mode="json"), "commit": git_commit(), "rows": whole}
    write_json(folder / "comparison.json", facts | shown)


def record(folder: Path, path: Path) -> None:
    """Write the rows of a comparison as CSV, for keeping beside the code (`results/*.csv`): no path of this machine.

    Raises:
        DataError: There is no comparison in the folder.
        ArtifactError: Nothing can be written there.
    """
    source = folder / "comparison.json"
    if not source.is_file():
        raise DataError(explain("no comparison here", where=folder, fix="run scripts/compare.py first"))
    rows = read_json(source, "delete it and start scripts/compare.py again: finished runs are kept")["rows"]
    write_record(path, RECORD, rows)
