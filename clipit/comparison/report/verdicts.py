"""Verdicts on a comparison's page, one per arm, each with the underlying contrasts."""

from collections.abc import Sequence

from clipit.comparison.contrasts import Contrast
from clipit.comparison.judged_arms import OWN_REPORTS
from clipit.comparison.report.comparison_tables import interval_cell, p_cell, setting_label
from clipit.comparison.statistics import PERCENT
from clipit.comparison.verdict import ArmVerdict
from clipit.reporting.html import PageSection, Table, Text
from clipit.reporting.tables import difference, markdown_line, markdown_table

HEADING = "Verdicts"
RULE = (
    "Differences are arm minus control on the test split, paired by seed; p is Holm-corrected over all rows of this "
    "table. An arm is better than a control if the 95% interval over seeds is above 0; an interval that includes 0 "
    "may also mean that there are too few seeds. Without a gain over the baseline, the verdict is "
    '"No gain shown", or "Worse" if the interval is below 0. Intervals over seeds do not account for the choice of '
    "test patients."
)
TEXT_RULE = (
    "Text adds information if the arm is better than every control that was run, including `image_embedding`, which "
    "learns from the VLM's embedding of the tile instead of text; controls that were not run are named."
)
OWN_RULE = (
    "The patients' own reports: if the arm or the VLM's linear probe on the same report labels (or on the tile labels) "
    "is better than the baseline, but the arm is not better than the probe, the arm is not needed: use the probe. If "
    "the arm is not better than `own_case`, which propagates tile labels to the other tiles of the same patient, "
    "without text, its gain is due to knowing which tiles belong to the same patient. Text from the patients' own "
    "reports adds information if the arm is better than every control that was run, including `own_case` or "
    "`own_shuffled` (for snippets, `own_case` or other snippets); controls that were not run are named."
)
_HEADER = ("data set", "backbone", "arm", "compared with", "difference", "t over seeds", "p (Holm)")
_TEXT_COLUMNS = _HEADER[:4]


def verdict_sections(verdicts: Sequence[ArmVerdict]) -> list[PageSection]:
    """Build the section of verdicts and contrasts; none without verdicts."""
    if not verdicts:
        return []
    header, rows = _table(verdicts)
    source = "comparison.json: verdicts, computed from column score of comparison.parquet where test_set is test"
    table = Table(header, rows, source=source, left=_count_left(header))
    return [PageSection(HEADING, [*(Text(text) for text in _sentences(verdicts)), table, Text(_rule(verdicts))])]


def verdict_markdown(verdicts: Sequence[ArmVerdict]) -> list[str]:
    """Return the paragraphs of the section in Markdown; empty without verdicts."""
    if not verdicts:
        return []
    header, rows = _table(verdicts)
    sentences = [markdown_line(text) for text in _sentences(verdicts)]
    table = markdown_table(header, rows, left=_count_left(header))
    return [f"## {HEADING}", *sentences, table, _rule(verdicts)]


def _rule(verdicts: Sequence[ArmVerdict]) -> str:
    texts = {verdict.text for verdict in verdicts}
    rules = [RULE, TEXT_RULE if "reports" in texts else "", OWN_RULE if OWN_REPORTS in texts else ""]
    return " ".join(rule for rule in rules if rule)


def _sentences(verdicts: Sequence[ArmVerdict]) -> list[str]:
    settings = [result.key.setting for result in verdicts]
    return [f"{result.key.arm}{setting_label(result.key.setting, settings)}: {result.verdict}" for result in verdicts]


def _table(verdicts: Sequence[ArmVerdict]) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of all contrasts, without the data set and backbone columns if constant."""
    rows = [
        [*result.key.setting, result.key.arm, *_cells(contrast)] for result in verdicts for contrast in result.contrasts
    ]
    keep = [i for i in range(len(_HEADER)) if i > 1 or len({row[i] for row in rows}) > 1]
    return [_HEADER[i] for i in keep], [[row[i] for i in keep] for row in rows]


def _cells(contrast: Contrast) -> list[str]:
    if contrast.difference is None:
        return [contrast.describe(), contrast.interval.reason, "", ""]
    mean = difference(PERCENT * contrast.difference, None, 1)
    return [contrast.describe(), mean, interval_cell(contrast.interval), p_cell(contrast.p_holm)]


def _count_left(header: Sequence[str]) -> int:
    return sum(name in _TEXT_COLUMNS for name in header)
