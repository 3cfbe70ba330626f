"""Markdown tables, and the text format of scores, intervals and differences."""

import re
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from clipit.errors import counted

UNDEFINED = "n/a"
MAX_CLASSES = 40
"""Maximum number of classes for which a confusion matrix is displayed."""
LABELS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "auroc": "AUROC",
    "kappa": "Cohen's kappa",
    "ece": "calibration error (ECE)",
}
"""Names of the scores in tables and plots."""
ECE_INTERVAL = "Resampling increases the ECE, so its interval is shifted upwards and may exclude the score."
"""Note on the bootstrap interval of the calibration error."""


def number(value: float | int | None, digits: int = 3, *, signed: bool = False) -> str:
    """Format a score with a fixed number of digits; `n/a` for None."""
    if value is None:
        return UNDEFINED
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def percent(value: float | int | None) -> str:
    """Format a score as `75.3%`; `undefined` for None."""
    return "undefined" if value is None else f"{100 * value:.1f}%"


def interval(low: float | None, high: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Format an interval as `[low, high]`; empty if it is undefined."""
    if low is None or high is None:
        return ""
    return f"[{number(low, digits, signed=signed)}, {number(high, digits, signed=signed)}]"


def with_interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """Format a score and its interval as `value [low, high]`."""
    return f"{number(value, digits)} {interval(low, high, digits)}".rstrip()


def mean_sd(values: Sequence[float | int | None], digits: int = 3) -> str:
    """Format scores over seeds as `mean ± sd` (sample standard deviation), or a single score; `n/a` if any is None."""
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return UNDEFINED
    if len(defined) == 1:
        return number(defined[0], digits)
    return f"{number(mean(defined), digits)} ± {number(stdev(defined), digits)}"


def difference(value: float | None, bounds: tuple[float, float] | None, digits: int = 3) -> str:
    """Format a paired difference with its interval: `+0.021 [+0.003, +0.039]`."""
    low, high = bounds or (None, None)
    return f"{number(value, digits, signed=True)} {interval(low, high, digits, signed=True)}".rstrip()


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """Format a Markdown table that is also readable as plain text; the first `left` columns are left-aligned."""
    cells = [[_cell(value) for value in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(cells[0]), f"|{rule}|", *(line(row) for row in cells[1:])])


def key_value_table(values: Mapping[str, object]) -> str:
    """Format a two-column Markdown table of names and values."""
    return markdown_table(("quantity", "value"), list(values.items()), left=2)


def from_groups(scored: Mapping[str, Any], one: str = "group", several: str = "") -> str:
    """Format the number of groups of the scored tiles, such as " from 7 groups"; "" if no group is known.

    Args:
        scored: Results of one split.
        one: Name of a group.
        several: Plural of this name; by default with an s.
    """
    groups = scored.get("groups")
    if not groups:
        return ""
    complete = scored.get("resampled") in (None, f"{groups} groups")
    return f" from {counted(groups, one, several)}{'' if complete else ', others unknown'}"


def console_block(block: str) -> str:
    """Remove the Markdown markup from a heading, a note or a line in bold."""
    if block.startswith("**") and block.endswith("**"):
        return block[2:-2]
    return block.lstrip("#").lstrip().replace("> **Note.** ", "note: ") if block.startswith(("#", ">")) else block


def console_summary(markdown: str, end: str = "## Provenance") -> str:
    """Convert a Markdown summary to text for the console, up to the heading `end`."""
    blocks = markdown.strip().split("\n\n")
    count = next((place for place, block in enumerate(blocks) if block.startswith(end)), len(blocks))
    return "\n\n".join(map(console_block, blocks[:count]))


def metrics_table(results: Mapping[str, Any]) -> str:
    """Format results as Markdown, with a column for each split, its zero-shot scores and its annotators."""
    columns: dict[str, Mapping[str, Any]] = {}
    for split, split_results in results["splits"].items():
        columns[f"{split} (n = {split_results['labelled']})"] = split_results["metrics"]
        if "zero_shot" in split_results:
            columns[f"{split}, zero-shot"] = split_results["zero_shot"]["metrics"]
        if "annotators" in split_results:
            means = split_results["annotators"]["mean"]
            columns[f"{split}, annotators"] = {
                name: {"value": means.get(name), "low": None, "high": None} for name in split_results["metrics"]
            }
    names = list(next(iter(columns.values())))
    rows = [
        [
            LABELS.get(name, name),
            *(with_interval(c[name]["value"], c[name]["low"], c[name]["high"]) for c in columns.values()),
        ]
        for name in names
    ]
    return markdown_table(["score", *columns], rows)


def per_class_table(per_class: Sequence[Mapping[str, Any]]) -> str:
    """Format precision, recall, F1 and support of each class."""
    rows = [
        [row["class"], *(number(row[key]) for key in ("precision", "recall", "f1")), row["support"]]
        for row in per_class
    ]
    return markdown_table(("class", "precision", "recall", "F1", "tiles"), rows)


def confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Format a confusion matrix as a Markdown table: rows are true classes, columns predicted classes."""
    return markdown_table(
        ("true \\ predicted", *classes), [[name, *row] for name, row in zip(classes, confusion, strict=True)]
    )


def markdown_text(text: str) -> str:
    """Escape HTML tags, links and images in a text that may contain data, such as class names, for Markdown.

    Everything else stays as it is, so that the Markdown is also readable as plain text.
    """
    escaped = re.sub("<(?=[A-Za-z/!?])", "&lt;", text)
    # Backslashes are doubled, because one before the bracket would undo the escape.
    return re.sub(r"(?<!\\)(\\*)\](?=[(\[:])", r"\1\1\]", escaped)


def markdown_line(text: object) -> str:
    """Escape a text like `markdown_text`, on one line."""
    return markdown_text(" ".join(str(text).split()))


def fenced(text: str) -> str:
    """Format preformatted text as a fenced block with a fence longer than any run of backticks in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _cell(value: object) -> str:
    # A backslash before the bar would turn its escape into an escaped backslash.
    return re.sub(r"(?<!\\)\|", r"\|", re.sub(r"(?<=\\)\|", "&#124;", markdown_line(value)))
