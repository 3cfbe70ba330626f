"""A comparison in figures: one line per data set, backbone, arm and test set; as Markdown and as LaTeX."""

from collections.abc import Mapping, Sequence
from statistics import mean

from clipit.comparison.statistics import PERCENT, ArmKey, ArmResult
from clipit.evaluation.intervals import Interval
from clipit.evaluation.significance import Significance
from clipit.reporting.tables import difference, interval, markdown_table, mean_sd, number


def predictions_source(line: ArmResult) -> str:
    """The files that a line of students was predicted into, by their folders below runs/."""
    return "predictions.parquet (test) of " + ", ".join("/".join(row.run_folder().parts[-2:]) for row in line.rows)


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


def cells(line: ArmResult) -> list[str]:
    """A line as text, in the columns of `HEADER`; scores in %."""
    percent = [None if value is None else PERCENT * value for value in line.scores.values()]
    same = line.reference and len(set(percent)) == 1  # nothing of it depends on the seed
    shown = [*line.key, number(percent[0], 1) if same else mean_sd(percent, 1)]
    if not line.differences:
        return [*shown, "", "", "", ""]
    tiles = line.over_tiles.interval if line.over_tiles else None
    return [
        *shown,
        difference(PERCENT * mean(line.differences.values()), None, 1),
        _interval(line.over_seeds),
        _interval(tiles),
        _p(line.p_holm),
    ]


def main_table(made: Sequence[ArmResult], published: Mapping[tuple[str, str, str], str] | None = None) -> str:
    """Markdown; columns that say the same in every row are left out."""
    header, rows = shown_columns(made, published)
    return markdown_table(header, rows, left=sum(name in HEADER[:4] for name in header))


def shown_columns(
    made: Sequence[ArmResult], published: Mapping[tuple[str, str, str], str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the main table, with a column of published figures where there are any."""
    rows = [cells(line) for line in made]
    header = list(HEADER)
    known = [(published or {}).get((line.key.data_set, line.key.backbone, line.key.arm), "") for line in made]
    known = [text if line.key.part == "test" else "" for text, line in zip(known, made, strict=True)]
    if any(known):
        header.append("published")
        rows = [[*row, text] for row, text in zip(rows, known, strict=True)]
    keep = [i for i in range(len(header)) if i not in (0, 1, 2) or len({row[i] for row in rows}) > 1]
    return [header[i] for i in keep], [[row[i] for i in keep] for row in rows]


def table_one(made: Sequence[ArmResult], baseline: str, arm: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows as in CLIP-IT's table 1: backbones by data sets, `baseline -> arm`, on the test split."""
    found = {line.key: line for line in made if line.key.part == "test"}
    data_sets = list(dict.fromkeys(key.data_set for key in found))
    rows = []
    for backbone in dict.fromkeys(key.backbone for key in found):
        row = [backbone]
        for data_set in data_sets:
            first, second = (found.get(ArmKey(data_set, backbone, "test", name)) for name in (baseline, arm))
            if first is None or second is None or first.mean is None or second.mean is None:
                row += ["", ""]
                continue
            texts = (mean_sd([PERCENT * (v or 0.0) for v in line.scores.values()], 1) for line in (first, second))
            row.append(" -> ".join(texts))
            row.append(difference(PERCENT * (second.mean - first.mean), _percent(second.over_seeds), 1))
        rows.append(row)
    return ["backbone", *(text for name in data_sets for text in (name, "difference"))], rows


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, left: int = 1) -> str:
    """A booktabs table, the first `left` columns aligned left; needs `\\usepackage{booktabs}`."""
    body = "\n".join(" & ".join(_latex(cell) for cell in row) + r" \\" for row in rows)
    return (
        "\\begin{table}\n\\centering\n"
        f"\\caption{{{_latex(caption)}}}\n\\begin{{tabular}}{{{'l' * left}{'r' * (len(header) - left)}}}\n\\toprule\n"
        f"{' & '.join(_latex(name) for name in header)} \\\\\n\\midrule\n{body}\n\\bottomrule\n"
        "\\end{tabular}\n\\end{table}\n"
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "\u2192": r"$\rightarrow$", "<": "$<$",
    ">": "$>$",
}  # fmt: skip


def _latex(text: str) -> str:
    arrows = str(text).replace("->", "\u2192")
    return "".join(_LATEX.get(letter, letter) for letter in arrows)


def _percent(bounds: Interval | None) -> tuple[float, float] | None:
    if bounds is None or bounds.low is None or bounds.high is None:
        return None
    return PERCENT * bounds.low, PERCENT * bounds.high


def _interval(bounds: Interval | None) -> str:
    """The interval in %, or why there is none."""
    low, high = _percent(bounds) or (None, None)
    return interval(low, high, 1, signed=True) or (bounds.reason if bounds else "none")


def _p(test: Significance) -> str:
    if test.p is None:
        return f"none: {test.reason}"
    return f"{test.p:.3f}" if test.p >= 0.001 else "< 0.001"
