"""Own reports on a comparison's page: contrasts with the controls, verdicts, and facts about the labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipit.comparison.own_reports import report_probe_name, resolve_plan_arm
from clipit.comparison.plan import Plan
from clipit.comparison.report.tables import interval_cell, p_cell, place_label
from clipit.comparison.report_reference import STRENGTH_WITHOUT_VALIDATION
from clipit.comparison.statistics import PERCENT, ArmKey, ArmResult
from clipit.comparison.verdict import Contrast, OwnReportResult
from clipit.reporting.html import PageSection, Table, Text
from clipit.reporting.tables import difference, markdown_line, markdown_table
from clipit.runs.folder import read_training

HEADING = "Own reports"
RULE = (
    "Differences are those of the test split, arm minus control, paired by seed; p is Holm-corrected over all rows of "
    "this table. An arm is better than a control if the 95 % interval over seeds lies above 0; an interval that "
    "includes 0 may also mean that there are too few seeds. An arm that is not better than the VLM's linear probe on "
    "the same report labels (or on the labels of tiles), although the arm or the probe is better than the baseline, is "
    "not needed: use the probe. Without a gain over the baseline, the verdict is no gain, or worse if the interval "
    "lies below 0. If the arm is not better than own_case, whose labels are spread over the tiles of a patient without "
    "text, its gain is due to knowing which tiles belong to one patient. Text from own reports adds information if the "
    "arm is better than every control that was run, among them own_case or own_shuffled (for snippets, own_case or "
    "other snippets); controls that were not run are named. Intervals over seeds do not cover the choice of test "
    "patients."
)
_HEADER = ("data set", "backbone", "arm", "compared with", "difference", "t over seeds", "p (Holm)")
_TEXT_COLUMNS = _HEADER[:4]


def own_report_sections(own: Sequence[OwnReportResult]) -> list[PageSection]:
    """Build the section of contrasts and verdicts; none without arms with own reports."""
    if not own:
        return []
    header, rows = _table(own)
    source = "comparison.json: own_reports, made from comparison.parquet: column score of the part test"
    table = Table(header, rows, source=source, left=_count_left(header))
    return [PageSection(HEADING, [*(Text(text) for text in _verdicts(own)), table, Text(RULE)])]


def own_report_markdown(own: Sequence[OwnReportResult]) -> list[str]:
    """Return the paragraphs of the section in Markdown; none without arms with own reports."""
    if not own:
        return []
    header, rows = _table(own)
    verdicts = [markdown_line(text) for text in _verdicts(own)]
    return [f"## {HEADING}", *verdicts, markdown_table(header, rows, left=_count_left(header)), RULE]


def own_report_notes(plans: Sequence[Plan], arms: Sequence[ArmResult]) -> list[str]:
    """Write a note on the labels of each arm with own reports, from training.json of its first seed.

    Runs without that record, such as those whose folder was moved away, have no note.
    """
    by_key, places = {result.key: result for result in arms}, [(plan.data_set, plan.backbone) for plan in plans]
    notes: dict[str, list[str]] = {}
    for plan in plans:
        where = place_label((plan.data_set, plan.backbone), places)
        for arm in plan.arms:
            result = by_key.get(ArmKey(plan.data_set, plan.backbone, "test", arm))
            if result is None or resolve_plan_arm(plan, arm).soft_labels.source != "own_report":
                continue
            folder = result.rows[0].run_folder()
            if (folder / "training.json").is_file() and (facts := read_training(folder).get("own_reports")):
                notes.setdefault(f"{where}: {_describe(facts, result.rows[0].seed)}", []).append(arm)
            probe = by_key.get(result.key._replace(arm=report_probe_name(arm)))
            if probe is not None and probe.mean is not None and _without_validation(probe):
                text = f"{where}: fitted with C = {STRENGTH_WITHOUT_VALIDATION:g}: no validation tile has a label"
                notes.setdefault(text, []).append(probe.key.arm)
    return [f"{', '.join(names)}{text}." for text, names in notes.items()]


def _describe(facts: Mapping[str, Any], seed: int) -> str:
    """Describe the record of the labels in training.json: how many, which, and how often they are right."""
    answers = ", ".join(f"{name} {count:,}" for name, count in facts["answers"].items()) or "none"
    text = f"{facts['labelled_cases']:,} of {facts['cases']['cases']:,} training patients have a label ({answers})"
    if "compared_cases" not in facts:  # labels of tiles, spread over their patients
        return f"{text} (seed {seed})"
    if not facts["compared_cases"]:
        return f"{text}; none of them has a labelled tile to compare with (seed {seed})"
    return (
        f"{text}; it agrees with {facts['agreeing_tiles']:,} of {facts['compared_tiles']:,} labelled tiles and "
        f"{facts['agreeing_cases']:,} of {facts['compared_cases']:,} patients (seed {seed})"
    )


def _without_validation(probe: ArmResult) -> bool:
    return any(row.provenance.validation_labels == 0 for row in probe.rows)


def _verdicts(own: Sequence[OwnReportResult]) -> list[str]:
    places = [result.key.place for result in own]
    return [f"{result.key.arm}{place_label(result.key.place, places)}: {result.verdict}" for result in own]


def _table(own: Sequence[OwnReportResult]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of all contrasts, without columns of data set or backbone that are constant."""
    rows = [[*result.key.place, result.key.arm, *_cells(contrast)] for result in own for contrast in result.contrasts]
    keep = [i for i in range(len(_HEADER)) if i > 1 or len({row[i] for row in rows}) > 1]
    return [_HEADER[i] for i in keep], [[row[i] for i in keep] for row in rows]


def _cells(contrast: Contrast) -> list[str]:
    if contrast.difference is None:
        return [contrast.describe(), contrast.interval.reason, "", ""]
    mean = difference(PERCENT * contrast.difference, None, 1)
    return [contrast.describe(), mean, interval_cell(contrast.interval), p_cell(contrast.p_holm)]


def _count_left(header: Sequence[str]) -> int:
    return sum(name in _TEXT_COLUMNS for name in header)
