"""Error rates of the adaptation guard, measured against the true change in score."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from clipit.reporting.study_page import iter_groups
from clipit.studies.robustness.scores import RobustnessRow

UNPERTURBED = "test and shifted sets"
WHOLE_SETS, BATCHES = "all whole sets", "batches, other shares of classes"


@dataclass(frozen=True)
class GuardErrors:
    """Errors of a guard over adaptations whose true change in score is known.

    Attributes:
        without_interval: Number of adaptations whose change has no interval.
        harmful: Number of adaptations whose change has a 95% interval below 0.
        let_through: Number of harmful adaptations accepted by the guard.
        helpful: Number of adaptations whose change has a 95% interval above 0.
        refused: Number of helpful adaptations refused by the guard.
        share_let_through: Fraction of harmful adaptations that were accepted; None if none is harmful.
        share_refused: Fraction of helpful adaptations that were refused; None if none is helpful.
        change_always: Mean change if every adaptation is applied; None without cases.
        change_guarded: Mean change over all cases if only accepted adaptations are applied; None without cases.
    """

    cases: int
    accepted: int
    without_interval: int
    harmful: int
    let_through: int
    helpful: int
    refused: int
    share_let_through: float | None
    share_refused: float | None
    change_always: float | None
    change_guarded: float | None


@dataclass(frozen=True)
class GuardSummary:
    """Errors of the guard for one adaptation method and one kind of setting."""

    method: str
    settings: str
    metric: str
    errors: GuardErrors

    def flatten(self) -> dict[str, object]:
        """Return the fields of the summary and its errors as one dictionary, for robustness.json."""
        return {"method": self.method, "settings": self.settings, "metric": self.metric, **asdict(self.errors)}


def count_guard_errors(outcomes: pd.DataFrame) -> GuardErrors:
    """Count harmful adaptations that were accepted and helpful ones that were refused.

    Adaptations whose interval contains 0 or is missing count as neither harmful nor helpful.

    Args:
        outcomes: One row per adaptation, with the columns guard (`accepted` or `refused`), change, change_low and
            change_high.
    """
    accepted = outcomes.guard == "accepted"
    low, high = outcomes.change_low.astype(float), outcomes.change_high.astype(float)
    harmful, helpful = high < 0, low > 0
    let_through, refused = int((harmful & accepted).sum()), int((helpful & ~accepted).sum())
    n, n_harmful, n_helpful = len(outcomes), int(harmful.sum()), int(helpful.sum())
    return GuardErrors(
        cases=n,
        accepted=int(accepted.sum()),
        without_interval=int((low.isna() | high.isna()).sum()),
        harmful=n_harmful,
        let_through=let_through,
        helpful=n_helpful,
        refused=refused,
        share_let_through=let_through / n_harmful if n_harmful else None,
        share_refused=refused / n_helpful if n_helpful else None,
        change_always=sum(outcomes.change) / n if n else None,
        change_guarded=sum(outcomes.change[accepted]) / n if n else None,
    )


def summarise_guard(rows: pd.DataFrame) -> list[GuardSummary]:
    """Summarise the errors of the guard per adaptation method and kind of setting.

    A setting is a model (with its seed), an output, and a set of tiles: a whole set (the test tiles, a shifted set, or
    the test tiles at one level of a perturbation), or a batch drawn from such a set with different class proportions.
    Settings whose true change is unknown are dropped.

    Args:
        rows: Rows of the study with the columns of `RobustnessRow`.

    Returns:
        Summaries per method: `test and shifted sets`, each perturbation, `all whole sets`, and batches.
    """
    known = rows[rows.guard.notna() & rows.change.notna()]
    summaries = []
    for (method,), part in iter_groups(known, ["method"]):
        whole_sets, batches = part[part.analysis != "batch"], part[part.analysis == "batch"]
        whole_sets = whole_sets.assign(kind=whole_sets.perturbation.fillna(UNPERTURBED))
        groups = [*whole_sets.groupby("kind"), (WHOLE_SETS, whole_sets), (BATCHES, batches)]
        summaries += [
            GuardSummary(method, str(kind), group.metric.iloc[-1], count_guard_errors(group))
            for kind, group in groups
            if len(group)
        ]
    return summaries


def guard_rows(rows: Sequence[RobustnessRow]) -> Iterator[RobustnessRow]:
    """Build rows with the guard's errors for each model and output; they add up to those of `summarise_guard`."""
    frame = to_frame(rows)
    for (subject, output), group in iter_groups(frame[frame.guard.notna()], ["subject", "output"]):
        for summary in summarise_guard(group):
            yield RobustnessRow(
                analysis="guard", subject=subject, output=output, test_set="test", method=summary.method,
                settings=summary.settings, metric=summary.metric, errors=vars(summary.errors),
            )  # fmt: skip


def to_frame(rows: Sequence[RobustnessRow]) -> pd.DataFrame:
    """Convert rows to a table without provenance."""
    columns = list(RobustnessRow.__dataclass_fields__)
    return pd.DataFrame([vars(row) for row in rows], columns=columns, dtype=object)
