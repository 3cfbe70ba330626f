"""A guard that reads no label, and does not do its job on tiles (see its limits below); how often it is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clipit.errors import DataError, explain

LEAST_AGREEMENT = 0.75
MOST_MOVED = 0.15
LEAST_INFORMATION = 0.05
"""These three were set while looking at 600 simulated sets of embeddings (tests/evaluation/adaptation_worlds.py, seeds
1 and 2): no real tile, no test label. On 300 further ones (seed 3), where a change of balanced accuracy by more than
0.5 points counted, they let 32 of 133 harmful transductive adaptations through (24 %) and refused 43 of 108 helpful
ones (40 %); the mean change was -2.8 points without the guard and +0.7 points with it.

On tiles the guard does not do its job. For 9 students and the VLM on the world of configs/demo.yaml (300 test tiles,
30 levels of perturbation and 2 sets), counted alike, it let 44 of 45 harmful feature statistics through (98 %) and
refused 113 of 366 helpful ones (31 %): +3.4 points of balanced accuracy without it, +1.4 with it. Of transductive
adaptations 64 of 66 harmful ones passed (97 %) and 25 of 125 helpful ones were refused (20 %): +2.1 and +1.1. Half a
point of 300 tiles is a tile or two, so some of these are chance; `guard_errors` now counts by intervals. It looks at
how far predictions move and at whether they said anything before: neither tells a right move from a wrong one. Do not
rely on it: measure an adaptation on labelled tiles of the target, or do without.
"""


@dataclass(frozen=True)
class Verdict:
    """What the guard says of one adaptation.

    Attributes:
        accepted: Whether to use it.
        agreement: Share of tiles whose predicted class stays the same.
        moved: Half the sum over classes of |share predicted after - share predicted before|, from 0 to 1.
        information: (H(mean p) - mean H(p)) / log C of the predictions before: 0 when they say nothing about the tiles
            or name one class only, 1 when they are sure and name all classes equally often (Krause et al., NIPS 2010).
        reasons: Why not; empty when accepted.
    """

    accepted: bool
    agreement: float
    moved: float
    information: float
    reasons: tuple[str, ...]


def judge(before: Float[np.ndarray, "n c"], after: Float[np.ndarray, "n c"]) -> Verdict:
    """Accept an adaptation that refines predictions which say something, and refuse one that overturns them.

    An adaptation helps when the predictions before are mostly right and its picture of the tiles agrees with them. Then
    few tiles change class, and the classes keep their shares. Where it finds another grouping of the tiles (by stain or
    centre, say), many tiles change and classes grow or vanish. It is accepted with agreement >= 0.75, moved <= 0.15 and
    information >= 0.05, all of which are known without a label.

    Args:
        before: Probabilities without adaptation.
        after: Of the same tiles, in the same order, with it.

    Raises:
        DataError: There is no tile.
    """
    if not len(before):
        raise DataError(explain("no tile to judge an adaptation by", where="the target tiles", fix="give some tiles"))
    n_classes = before.shape[1]
    old, new = before.argmax(axis=1), after.argmax(axis=1)
    agreement = float((old == new).mean())
    shares = [np.bincount(found, minlength=n_classes) / len(found) for found in (old, new)]
    moved = float(np.abs(shares[1] - shares[0]).sum() / 2)
    p = before.astype(np.float64)
    information = float((_entropy(p.mean(axis=0)[None])[0] - _entropy(p).mean()) / np.log(n_classes))
    reasons = []
    if agreement < LEAST_AGREEMENT:
        reasons.append(f"{1 - agreement:.0%} of the tiles would change class (at most {1 - LEAST_AGREEMENT:.0%})")
    if moved > MOST_MOVED:
        reasons.append(f"{moved:.0%} of the tiles would move between classes on balance (at most {MOST_MOVED:.0%})")
    if information < LEAST_INFORMATION:
        reasons.append(f"the predictions say little (information {information:.2f}, at least {LEAST_INFORMATION:g})")
    return Verdict(not reasons, agreement, moved, information, tuple(reasons))


@dataclass(frozen=True)
class Case:
    """One adaptation that the guard judged, and what it truly did.

    Attributes:
        accepted: Whether the guard let it be used.
        change: Of the score.
        low: Lower bound of the change's paired 95 % interval over tiles; None: there is no interval.
        high: Upper bound.
    """

    accepted: bool
    change: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class GuardErrors:
    """How often a guard was wrong over some adaptations whose true change is known.

    Attributes:
        cases: Adaptations judged.
        accepted: Those that the guard let be used.
        without_interval: Those of which nothing can be said but the mean change.
        harmful: Those whose change has its 95 % interval below 0 ...
        let_through: ... and how many of these the guard accepted.
        helpful: Those whose change has its 95 % interval above 0 ...
        refused: ... and how many of these the guard refused.
        share_let_through: let_through / harmful; None without harmful ones.
        share_refused: refused / helpful; None without helpful ones.
        change_always: Mean change of the score over all cases when every adaptation is used; None without cases.
        change_guarded: The same when only accepted ones are.
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


def guard_errors(cases: Sequence[Case]) -> GuardErrors:
    """Count the guard's errors: accepted among the harmful, refused among the helpful.

    Adaptations whose interval holds 0, or that have none, are neither harmful nor helpful. Labels are read for the
    changes, to measure the guard, and never by it.
    """
    harmful = [case for case in cases if case.high is not None and case.high < 0]
    helpful = [case for case in cases if case.low is not None and case.low > 0]
    let_through, refused = sum(case.accepted for case in harmful), sum(not case.accepted for case in helpful)
    n = len(cases)
    return GuardErrors(
        cases=n,
        accepted=sum(case.accepted for case in cases),
        without_interval=sum(case.low is None or case.high is None for case in cases),
        harmful=len(harmful),
        let_through=let_through,
        helpful=len(helpful),
        refused=refused,
        share_let_through=let_through / len(harmful) if harmful else None,
        share_refused=refused / len(helpful) if helpful else None,
        change_always=sum(case.change for case in cases) / n if n else None,
        change_guarded=sum(case.change for case in cases if case.accepted) / n if n else None,
    )


def _entropy(p: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    found: Float[np.ndarray, " n"] = -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1)
    return found
