"""Tables and words that a comparison's Markdown, LaTeX and page share."""

from collections.abc import Iterable, Sequence
from statistics import mean

import numpy as np

from clipit.comparison.report.tables import table_one
from clipit.comparison.statistics import PERCENT, ArmResult
from clipit.config.comparison import ComparisonConfig
from clipit.evaluation.score_row import COSTS, ScoreRow
from clipit.evaluation.significance import MIN_SEEDS

COST_NOTE = (
    "chosen: the step with the best validation score. seconds: training, with validation and the first reading of "
    "tiles. parameters and tiles/s: at inference, of images only. by prompts: the same student read through its "
    "projection and the class prompts, test split."
)
AGAINST = (
    "The same runs with the control in the place of the baseline; p-values are corrected over this table's arms, data "
    "sets and backbones."
)
_COST_HEADER = (
    "arm", "learning rate", "steps", "chosen", "tiles seen", "seconds", "parameters", "tiles/s", "by prompts %",
)  # fmt: skip


def place_told(place: tuple[str, ...], places: Iterable[tuple[str, ...]]) -> str:
    """What tells one data set and backbone from the others, in brackets behind a heading; "" for the only one."""
    differs = [len(set(column)) > 1 for column in zip(*places, strict=True)]
    told = " / ".join(part for part, other in zip(place, differs, strict=True) if other)
    return f" ({told})" if told else ""


def costs(made: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what each arm costs, on the test split."""
    rows = []
    for line in made:
        if line.key.part == "test":
            read = [row.zero_shot for row in line.rows if row.zero_shot is not None]
            shown = f"{PERCENT * mean(read):.1f}" if read else ""
            rows.append(
                [" / ".join((*line.key.place, line.key.arm)), *(_plain(line.rows, key) for key in COSTS), shown]
            )
    alone = len({line.key.place for line in made}) == 1
    return list(_COST_HEADER), [[row[0].rsplit(" / ", 1)[-1] if alone else row[0], *row[1:]] for row in rows]


def _plain(rows: Sequence[ScoreRow], key: str) -> str:
    values = [value for row in rows if (value := getattr(row, key)) is not None]
    if not values:
        return ""
    return f"{np.mean(values):g}" if key == "learning_rate" else f"{np.mean(values):,.0f}"


def ones(c: ComparisonConfig, made: Sequence[ArmResult]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of the table in the form of CLIP-IT's table 1; none where there is one arm only."""
    others = [arm for arm in c.arms if arm != c.baseline]
    arms = [arm for arm in ("clip_it_paper", "clip_it_all", *others) if arm in others][:1]
    return [(f"{c.baseline} -> {arm}", *table_one(made, c.baseline, arm)) for arm in arms]


def holm_family(made: Sequence[ArmResult]) -> str:
    """Which tests the p-values are corrected over, with their number; or why there is none."""
    families: dict[str, int] = {}
    for line in made:
        if line.p.p is not None:
            families[line.key.part] = families.get(line.key.part, 0) + 1
    if not families:
        return f"No p-values: a paired t-test over seeds needs {MIN_SEEDS}."
    counts = ", ".join(f"{part}: {n}" for part, n in families.items())
    return (
        "p: paired t-test over seeds, Holm-corrected over all arms, data sets and backbones of a test set (tests in "
        f"each family: {counts})."
    )
