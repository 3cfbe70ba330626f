"""Tables of a comparison's results, shared by its Markdown, LaTeX and HTML output."""

from collections.abc import Iterable, Sequence
from statistics import mean

import numpy as np

from clipit.comparison.published_scores import PublishedScores
from clipit.comparison.statistics import PERCENT, ArmKey, ArmResult
from clipit.comparison.verdict import ArmVerdict
from clipit.config.comparison import ComparisonConfig
from clipit.evaluation.intervals import Interval
from clipit.evaluation.score_row import COSTS, ScoreRow
from clipit.evaluation.significance import MIN_SEEDS, Significance
from clipit.reporting.tables import difference, interval, markdown_table, mean_sd, number

Setting = tuple[str, str]
"""Data set and backbone."""
HEADER = (
    "data set",
    "backbone",
    "test set",
    "arm",
    "mean ± sd",
    "difference",
    "t over seeds",
    "over tiles",
    "p (Holm)",
)
COST_NOTE = (
    "All columns are means over seeds. chosen: step with the best validation score. seconds: training time, including "
    "validation and reading the tiles for the first time. parameters and tiles/s: image-only inference. zero-shot: "
    "score of the same student on the test split, from its projection and the class prompts."
)
CONTROL_NOTE = (
    "The same runs compared with the control instead of the baseline; p-values are corrected over the arms, data sets "
    "and backbones of this table."
)
_COST_HEADER = (
    "arm", "learning rate", "steps", "chosen", "tiles seen", "seconds", "parameters", "tiles/s", "zero-shot %",
)  # fmt: skip


def predictions_source(result: ArmResult) -> str:
    """Describe the prediction files of an arm's runs by their folders in runs/."""
    return "predictions.parquet (test) of " + ", ".join("/".join(row.run_folder().parts[-2:]) for row in result.rows)


def setting_label(setting: tuple[str, ...], settings: Iterable[tuple[str, ...]]) -> str:
    """Format data set and backbone in brackets, to append to a heading; empty if there is only one."""
    differs = [len(set(column)) > 1 for column in zip(*settings, strict=True)]
    names = " / ".join(name for name, several in zip(setting, differs, strict=True) if several)
    return f" ({names})" if names else ""


def cells(result: ArmResult) -> list[str]:
    """Format an arm's cells in the columns of `HEADER`, with scores in %."""
    percent = [None if value is None else PERCENT * value for value in result.scores.values()]
    same = result.reference and len({row.predictions for row in result.rows}) == 1  # it does not depend on the seed
    shown = [*result.key, number(percent[0], 1) if same else mean_sd(percent, 1)]
    if not result.differences:
        return [*shown, "", "", "", ""]
    return [
        *shown,
        difference(PERCENT * mean(result.differences.values()), None, 1),
        interval_cell(result.over_seeds),
        interval_cell(result.over_tiles.interval if result.over_tiles else None),
        p_cell(result.p_holm),
    ]


def main_table(results: Sequence[ArmResult], published: PublishedScores | None = None) -> str:
    """Format the main table as Markdown, without columns that are constant."""
    header, rows = shown_columns(results, published)
    return markdown_table(header, rows, left=count_left(header))


def count_left(header: Sequence[str]) -> int:
    """Count the left-aligned columns of the main table: data set, backbone, test set and arm."""
    return sum(name in HEADER[:4] for name in header)


def shown_columns(
    results: Sequence[ArmResult], published: PublishedScores | None = None
) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the main table, with a column of published scores if any are known."""
    rows = [cells(result) for result in results]
    header = list(HEADER)
    by_arm = published or {}
    keys = [result.key for result in results]
    scores = [by_arm.get((*key.setting, key.arm), "") if key.test_set == "test" else "" for key in keys]
    if any(scores):
        header.append("published")
        rows = [[*row, text] for row, text in zip(rows, scores, strict=True)]
    keep = [i for i in range(len(header)) if i not in (0, 1, 2) or len({row[i] for row in rows}) > 1]
    return [header[i] for i in keep], [[row[i] for i in keep] for row in rows]


def main_arms(comparison: ComparisonConfig, verdicts: Sequence[ArmVerdict]) -> list[str]:
    """List the arms except the baseline: the first with a verdict, its text-free control, then the others in order."""
    others = [arm for arm in comparison.arms if arm != comparison.baseline]
    first: list[str | None] = []
    for verdict in verdicts[:1]:
        without_text = verdict.contrast("image embedding")
        first = [verdict.key.arm, without_text.control if without_text else None]
    return list(dict.fromkeys(arm for arm in (*first, *others) if arm in others))


def paper_tables(
    comparison: ComparisonConfig, results: Sequence[ArmResult], verdicts: Sequence[ArmVerdict]
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, header and rows of the tables in the layout of CLIP-IT's table 1; empty if there is one arm."""
    arms = main_arms(comparison, verdicts)[:1]
    return [(f"{comparison.baseline} -> {arm}", *paper_table(results, comparison.baseline, arm)) for arm in arms]


def paper_table(results: Sequence[ArmResult], baseline: str, arm: str) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows as in CLIP-IT's table 1: test scores `baseline -> arm` by backbone and data set."""
    by_key = {result.key: result for result in results if result.key.test_set == "test"}
    data_sets = list(dict.fromkeys(key.data_set for key in by_key))
    rows = []
    for backbone in dict.fromkeys(key.backbone for key in by_key):
        row = [backbone]
        for data_set in data_sets:
            first, second = (by_key.get(ArmKey(data_set, backbone, "test", name)) for name in (baseline, arm))
            if first is None or second is None or first.mean is None or second.mean is None:
                row += ["", ""]
                continue
            texts = (mean_sd([PERCENT * (v or 0.0) for v in result.scores.values()], 1) for result in (first, second))
            row.append(" -> ".join(texts))
            row.append(difference(PERCENT * (second.mean - first.mean), _percent(second.over_seeds), 1))
        rows.append(row)
    return ["backbone", *(text for name in data_sets for text in (name, "difference"))], rows


def cost_table(results: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of each arm's costs, on the test split."""
    tested = [result for result in results if result.key.test_set == "test"]
    several = len({result.key.setting for result in results}) > 1
    rows = []
    for result in tested:
        zero_shot = [row.zero_shot for row in result.rows if row.zero_shot is not None]
        by_prompts = f"{PERCENT * mean(zero_shot):.1f}" if zero_shot else ""
        name = " / ".join((*result.key.setting, result.key.arm)) if several else result.key.arm
        rows.append([name, *(_mean_cost(result.rows, key) for key in COSTS), by_prompts])
    return list(_COST_HEADER), rows


def _mean_cost(rows: Sequence[ScoreRow], key: str) -> str:
    values = [value for row in rows if (value := getattr(row, key)) is not None]
    if not values:
        return ""
    return f"{np.mean(values):g}" if key == "learning_rate" else f"{np.mean(values):,.0f}"


def describe_holm_family(results: Sequence[ArmResult]) -> str:
    """Describe the family of tests for which p-values are corrected, or explain why there are no p-values."""
    families: dict[str, int] = {}
    for result in results:
        if result.p_holm.p is not None:
            families[result.key.test_set] = families.get(result.key.test_set, 0) + 1
    if not families:
        return f"No p-values: a paired t-test needs at least {MIN_SEEDS} seeds."
    counts = ", ".join(f"{test_set}: {n}" for test_set, n in families.items())
    return (
        "p: paired t-test over seeds, Holm-corrected over all arms, data sets and backbones of a test set (tests in "
        f"each family: {counts})."
    )


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, left: int = 1) -> str:
    """Format a booktabs table with the first `left` columns left-aligned; needs `\\usepackage{booktabs}`."""
    body = "\n".join(" & ".join(_escape_latex(cell) for cell in row) + r" \\" for row in rows)
    alignment = "l" * left + "r" * (len(header) - left)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_escape_latex(caption)}}}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule\n"
        f"{' & '.join(_escape_latex(name) for name in header)} \\\\\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "\u2192": r"$\rightarrow$", "<": "$<$",
    ">": "$>$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    arrows = str(text).replace("->", "\u2192")
    return "".join(_LATEX.get(char, char) for char in arrows)


def _percent(bounds: Interval | None) -> tuple[float, float] | None:
    if bounds is None or bounds.low is None or bounds.high is None:
        return None
    return PERCENT * bounds.low, PERCENT * bounds.high


def interval_cell(bounds: Interval | None) -> str:
    """Format the interval in %, or the reason why it is undefined."""
    low, high = _percent(bounds) or (None, None)
    return interval(low, high, 1, signed=True) or (bounds.reason if bounds else "none")


def p_cell(test: Significance) -> str:
    """Format a p-value, or the reason why it is undefined."""
    if test.p is None:
        return f"none: {test.reason}"
    return f"{test.p:.3f}" if test.p >= 0.001 else "< 0.001"
