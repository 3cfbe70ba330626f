"""Compare the arms under several conditions, such as few and many labels: one study per condition, one common table."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd

from clipit.config.file import ConfigFile
from clipit.config.load import check_keys_once, dotted, merge, nested, validate_file, without
from clipit.config.paths import to_file_name
from clipit.distributed import get_processes
from clipit.errors import ConfigError, repeats, shortlist
from clipit.evaluation.intervals import t_interval
from clipit.evaluation.metrics import weighted_scores
from clipit.evaluation.significance import Significance, holm, paired_t_test
from clipit.mil.mil_arms import ARMS
from clipit.mil.mil_study import NAME, SCORES, SUMMARY, mil_study
from clipit.output_files.artifacts import locked
from clipit.output_files.whole_files import read_csv_frame, write_frame, write_text
from clipit.reporting.html import Links, PageSection, Table, Text
from clipit.reporting.html import page as render_page
from clipit.reporting.tables import LABELS, difference, markdown_table, mean_sd

logger = logging.getLogger(__name__)

METRICS = ("auroc", "balanced_accuracy")
"""Metrics of the table; contrasts are tested on the first metric."""
CONTRASTS = "contrasts.csv"
_TEXT_COLUMNS = ("arm", "bag", "patient", "split", "label", "predicted")  # text columns of `SCORES`
_EXPLANATION = (
    "Scores on the test bags are means and standard deviations over seeds. Contrasts are paired by seed, and given as "
    "mean differences with 95% t-intervals over seeds. The p-values are from paired t-tests over seeds, Holm-corrected "
    "over all contrasts and conditions."
)


@dataclass(frozen=True)
class MilContrast:
    """Difference between an arm that learns from reports and a control, in one condition.

    Attributes:
        control: Control that the arm is compared with.
        differences: Difference of the metric for each seed.
        test: Holm-corrected test over seeds.
    """

    condition: str
    arm: str
    control: str
    differences: tuple[float, ...]
    test: Significance


def plan_conditions(file: ConfigFile) -> dict[str, ConfigFile]:
    """Return the configuration of each condition; keys given on the command line apply to all of them.

    Raises:
        ConfigError: A condition's name cannot be used as a folder name, a condition changes the output folder, or a key
            is invalid; all problems are reported together.
    """
    values: dict[str, Any] = file.run.model_dump() | {"mil": file.mil.model_dump()}
    plans, errors = {}, []
    for name, keys in file.mil.conditions.items():
        where = f"mil.conditions.{name}"
        slug = to_file_name(name)
        forbidden = [
            key for key in keys if key.partition(".")[0] in ("name", "output") or key.startswith("mil.conditions")
        ]
        if not slug or forbidden:
            problem, fix = "the name has no letter or digit", "use a name with a letter or digit"
            if forbidden:
                problem, fix = f"conditions cannot change {', '.join(forbidden)}", "remove these keys"
            errors.append(str(ConfigError(problem, where=where, fix=fix)))
            continue
        kept = without(nested(keys), file.run.overrides)
        if replaced := sorted({*dotted(nested(keys))} - {*dotted(kept)}):
            logger.info(f"note: condition {name}: {', '.join(replaced)} as given on the command line")
        changes = merge(kept, {"name": f"{file.run.name}-{slug}"})
        try:
            check_keys_once(keys, where)
            plans[name] = validate_file(
                merge(values, changes | {"mil": {**changes.get("mil", {}), "conditions": {}}}), where
            )
        except ConfigError as error:
            errors.append(str(error))
    if repeated := repeats([plan.run.name for plan in plans.values()], [*plans].__getitem__):
        problem = f"two conditions have the same folder: {shortlist(repeated)}"
        errors.append(str(ConfigError(problem, where="mil.conditions", fix="rename one")))
    if errors:
        raise ConfigError("\n".join(errors))
    return plans


def conditions_study(file: ConfigFile) -> Path:
    """Compare the arms in every condition of `mil.conditions`.

    Each condition is a separate study (`mil_study`) in `mil/<name>-<condition>`. Writes `mil.parquet` (the rows of
    all studies with their condition), `contrasts.csv`, `mil.md` and `mil.html` to `mil/<name>`.

    Returns:
        The folder `mil/<name>`.

    Raises:
        ConfigError: A condition is invalid; raised before any training.
        DataError: There are too few bags in a condition.
    """
    folders = {}
    for name, plan in plan_conditions(file).items():
        logger.info(f"condition {name}")
        folders[name] = mil_study(plan.run, plan.mil)
    folder = file.run.output / NAME / file.run.name
    if get_processes().main:
        with locked(folder):  # another command may be writing the same study
            _write(file, folders, folder)
    get_processes().barrier()
    return folder


def score_seeds(table: pd.DataFrame, metric: str) -> dict[str, dict[int, float]]:
    """Compute a metric on the test bags for each arm and seed; undefined values are dropped.

    As in the study of one condition, the scores of a bag are centred on their mean over the classes (see `SlideSet`),
    because the scores of `zero_shot` are cosine similarities. Centring does not change the metrics of probabilities,
    because probabilities sum to 1.

    Args:
        table: Scores as in `bag_scores.csv`.
    """
    columns = [name for name in table.columns if name.startswith("score_")]
    classes = [name.removeprefix("score_") for name in columns]
    rows = table[(table["split"] == "test") & table["label"].isin(classes)]
    scores: dict[str, dict[int, float]] = {}
    for key, group in rows.groupby(["arm", "seed"], sort=False):
        arm, seed = str(key[0]), int(str(key[1]))
        labels = np.array([classes.index(name) for name in group["label"]], dtype=np.int64)
        values = group[columns].to_numpy(np.float64)
        relative = (values - values.mean(axis=1, keepdims=True)).astype(np.float32)
        value = float(weighted_scores(labels, relative, np.ones((len(group), 1)), (metric,))[metric][0])
        if np.isfinite(value):
            scores.setdefault(arm, {})[seed] = value
    return scores


def find_contrasts(scores: dict[str, dict[str, dict[int, float]]]) -> list[MilContrast]:
    """Compare each arm that learns from reports with its controls, in every condition.

    Args:
        scores: Scores by condition, arm and seed.
    """
    differences: dict[tuple[str, str, str], tuple[float, ...]] = {}
    for condition, arms in scores.items():
        for arm in arms:
            for control in ARMS[arm].controls if arm in ARMS else ():
                seeds = sorted(arms[arm].keys() & arms.get(control, {}).keys())
                if seeds:
                    differences[condition, arm, control] = tuple(arms[arm][s] - arms[control][s] for s in seeds)
    tests = holm({key: paired_t_test(values) for key, values in differences.items()})
    return [MilContrast(*key, values, tests[key]) for key, values in differences.items()]


def _write(file: ConfigFile, folders: dict[str, Path], folder: Path) -> None:
    tables = {name: read_csv_frame(path / SCORES, _TEXT_COLUMNS) for name, path in folders.items()}
    rows = [
        pd.read_parquet(path / f"{NAME}.parquet", page_checksum_verification=True).assign(condition=name)
        for name, path in folders.items()
    ]
    scores = {metric: {name: score_seeds(table, metric) for name, table in tables.items()} for metric in METRICS}
    contrasts = find_contrasts(scores[METRICS[0]])
    write_frame(folder / f"{NAME}.parquet", pd.concat(rows, ignore_index=True))
    write_frame(folder / CONTRASTS, pd.DataFrame([_contrast_row(each) for each in contrasts]))
    headers = ("arm", *folders)
    by_metric = {metric: _score_rows(scores[metric]) for metric in METRICS}
    contrast_table = (
        ("condition", "arm", "against", f"{LABELS[METRICS[0]]} in points", "p (Holm)"),
        [
            [each.condition, each.arm, each.control, _format_difference(each.differences), _format_p(each.test)]
            for each in contrasts
        ],
    )
    parts = [f"# {file.run.name}", *([file.run.note] if file.run.note else []), _EXPLANATION]
    parts += [f"{LABELS[metric]} in %:\n\n{markdown_table(headers, table)}" for metric, table in by_metric.items()]
    parts += [markdown_table(*contrast_table, left=3)] if contrasts else []
    write_text(folder / SUMMARY, "\n\n".join(part.strip() for part in parts) + "\n")
    sections = [PageSection(f"{LABELS[metric]} in %", [Table(headers, table)]) for metric, table in by_metric.items()]
    if contrasts:
        sections.append(
            PageSection("Arms that learn from reports, compared with controls", [Table(*contrast_table, left=3)])
        )
    pages = [(name, [("page", os.path.relpath(path / f"{NAME}.html", folder))]) for name, path in folders.items()]
    sections.append(PageSection("How to read this", [Text(_EXPLANATION), Links(pages, "Page of each condition")]))
    write_text(folder / f"{NAME}.html", render_page(f"{file.run.name}: conditions", file.run.note or "", sections))


def _score_rows(scores: dict[str, dict[str, dict[int, float]]]) -> list[list[str]]:
    arms = dict.fromkeys(arm for by_arm in scores.values() for arm in by_arm)
    return [
        [arm, *(mean_sd([100 * v for v in by_arm.get(arm, {}).values()], 1) for by_arm in scores.values())]
        for arm in arms
    ]


def _format_difference(differences: Sequence[float]) -> str:
    points = [100 * value for value in differences]
    bounds = t_interval(points)
    limits = None if bounds.low is None or bounds.high is None else (bounds.low, bounds.high)
    return difference(fmean(points), limits, 1)


def _format_p(test: Significance) -> str:
    return test.reason or "" if test.p is None else f"{test.p:.3f}"


def _contrast_row(each: MilContrast) -> dict[str, object]:
    bounds = t_interval(each.differences)
    return {
        "condition": each.condition,
        "arm": each.arm,
        "control": each.control,
        "metric": METRICS[0],
        "seeds": len(each.differences),
        "difference": fmean(each.differences),
        "sd": stdev(each.differences) if len(each.differences) > 1 else None,
        "low": bounds.low,
        "high": bounds.high,
        "p_holm": each.test.p,
        "reason": each.test.reason,
    }
