"""Arms over seeds, data sets and backbones: runs, reference rows, paired differences, and the reasons."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import git_commit, read_json, whole_file, write_json
from clipit.config import Config
from clipit.distributed import processes
from clipit.errors import DataError, explain
from clipit.experiments.cells import Setting, settings_of
from clipit.experiments.comparison_numbers import keep_planes, numbers
from clipit.experiments.comparison_pairs import write_pairing_page
from clipit.experiments.comparison_report import write_report
from clipit.experiments.comparison_rows import RECORD, add_costs, reference_rows_of, run_rows
from clipit.experiments.identity import run_folder
from clipit.experiments.materials import Materials
from clipit.experiments.record import write_record
from clipit.experiments.run import train_run
from clipit.experiments.why import findings
from clipit.experiments.why_parts import Finding
from clipit.prompts.prompt_set import check_classes, load_prompts
from clipit.reporting.comparison_tables import PERCENT
from clipit.training.arms import resolve_arm


def compare(config: Config, say: Callable[[str], None] = print) -> Path:
    """Run every arm with every seed (those finished are skipped) and write the comparison.

    Args:
        config: Its `comparison` section says what is compared.
        say: Takes lines for the user.

    Returns:
        The folder with comparison.md, .tex, .html, .parquet and .json.

    Raises:
        ConfigError: An arm's keys do not fit, or the arms were searched unlike.
        DataError: A data set has no test tile, or a prompt set other classes than the tiles.
    """
    settings = settings_of(config)
    shared: dict[str, Any] = {}
    all_materials = [Materials(setting.config, say, shared) for setting in settings]
    for setting, materials in zip(settings, all_materials, strict=True):
        _check_tests(setting, materials)
    folder = config.output / "comparisons" / config.name
    rows: list[dict[str, Any]] = []
    why: list[Finding] = []
    for setting, materials in zip(settings, all_materials, strict=True):
        found = _runs(setting, materials, say)
        beside = folder / "predictions" / setting.config.name
        found += reference_rows_of(setting, materials, beside)
        if processes().main:
            add_costs(setting, found, materials)
        why += findings(setting, materials, found, beside)
        write_pairing_page(setting, materials, found)
        rows += found
    if processes().main:
        why = keep_planes(why, folder)
        made, against, notes = write_report(config, settings, rows, why, folder, [m.some_tiles for m in all_materials])
        _write_rows(config, rows, numbers(made, against, why) | {"notes": notes}, folder)
    processes().wait()
    return folder


def _runs(setting: Setting, materials: Materials, say: Callable[[str], None]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in setting.config.comparison.seeds:
        for arm in setting.arms:
            run = setting.run(arm, seed)
            done = (run_folder(run) / "results.json").is_file()
            folder = train_run(run, materials, say)
            new = run_rows(setting, materials, folder, arm, seed)
            rows += new
            shown = ", ".join(f"{row['part']} {_shown(row['score'])}" for row in new)
            where = "" if setting.data_set == setting.config.name else f" on {setting.data_set}"
            materials.say(f"{'kept' if done else 'done'}: {arm}{where}, seed {seed}: {new[0]['metric']} % {shown}")
    return rows


def _shown(score: float | None) -> str:
    return "not defined" if score is None else f"{PERCENT * score:.1f}"


def _check_tests(setting: Setting, materials: Materials) -> None:
    """Find missing test tiles and prompts of other classes before anything is trained."""
    tests = materials.some_tiles.of_split("test")
    if not (tests.labels >= 0).any() or "test" not in setting.config.evaluation.splits:
        raise DataError(
            explain(
                "a comparison needs labelled test tiles",
                where=f"tiles.splits and evaluation.splits ({setting.data_set})",
                fix="give tiles of the split test, and keep test among evaluation.splits",
            )
        )
    for name in setting.config.comparison.shifted:
        materials.shifted_tiles(name)
    seed = setting.config.comparison.seeds[0]
    asked = dict.fromkeys([setting.config.prompts, *(resolve_arm(setting.run(a, seed)).prompts for a in setting.arms)])
    for prompts in asked:
        if prompts:
            check_classes(load_prompts(prompts), materials.some_tiles.classes)


def _write_rows(config: Config, rows: list[dict[str, Any]], shown: dict[str, Any], folder: Path) -> None:
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
