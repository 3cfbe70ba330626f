"""Published scores of CLIP-IT, shown for context: they were obtained with a different protocol and other seeds."""

from collections.abc import Mapping, Sequence

from clipit.comparison.own_report_arms import recipe, resolve_plan_arm
from clipit.comparison.plan import Plan
from clipit.training.arms import resolve_arm

SOURCE = "CLIP-IT, arXiv 2504.16181, table 1 (scores in %, image only -> CLIP-IT, means of three runs)"
CAUTION = (
    "The published CRC and BACH scores are balanced accuracies, with checkpoints selected on the split on which they "
    "are reported; they are shown for context, not as a baseline."
)

_PAIR = ("image_only", "clip_it_paper")
_TABLE_1: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "uni": {"pcam": (94.24, 95.49), "bach": (78.89, 81.79), "nct_crc": (94.66, 95.92)},
    "kaiko-vitl14": {"pcam": (88.88, 92.32), "bach": (84.26, 86.11), "nct_crc": (94.40, 95.91)},
    "kaiko-vitb16": {"pcam": (88.13, 91.42), "bach": (80.78, 82.94), "nct_crc": (95.86, 95.67)},
    "kaiko-vits16": {"pcam": (88.43, 90.93), "bach": (82.90, 84.64), "nct_crc": (93.77, 95.34)},
    "kaiko-vitb8": {"pcam": (87.54, 91.92), "bach": (86.90, 84.91), "nct_crc": (95.71, 95.66)},
    "kaiko-vits8": {"pcam": (87.90, 90.24), "bach": (81.01, 82.55), "nct_crc": (94.90, 95.55)},
}
_ABLATIONS: Mapping[str, float] = {  # UNI on PCam
    "clip_it_paper_frozen": 93.86,
    "late_fusion_without_text": 94.31,
    "word_drop": 95.39,
}
_METRICS: Mapping[str, tuple[str, ...]] = {
    # PCam's official test split is balanced to within a few of its 32,768 tiles, so both metrics agree there.
    "pcam": ("accuracy", "balanced_accuracy"),
    "bach": ("balanced_accuracy",),
    "nct_crc": ("balanced_accuracy",),
}

PublishedScores = Mapping[tuple[str, str, str], str]
"""Published scores in % by data set, backbone and arm."""


def published_score(source: str, backbone: str, arm: str) -> str:
    """Return the published score of a built-in arm in %; "" if none is known.

    Args:
        source: Tile source of the data set (`tiles.source`).
    """
    pair = _TABLE_1.get(backbone, {}).get(source)
    if pair is None:
        return ""
    if arm in _PAIR:
        return f"{pair[_PAIR.index(arm)]:.2f}"
    if (backbone, source) == ("uni", "pcam") and arm in _ABLATIONS:
        return f"{_ABLATIONS[arm]:.2f}"
    return ""


def collect_published(plans: Sequence[Plan], metric: str) -> tuple[PublishedScores, list[str]]:
    """Collect the published scores that use the comparison's metric.

    Returns:
        The scores, and a sentence for each data set whose published scores use a different metric.
    """
    scores, notes = dict[tuple[str, str, str], str](), list[str]()
    for plan in plans:
        source = plan.config.tiles.source
        if plan.config.tiles.labels.kind != "all":  # the published scores used all labels
            continue
        for arm in plan.arms:
            score = published_score(source, plan.backbone, _built_in(plan, arm))
            if score and metric not in _METRICS[source]:
                published, reported = (name.replace("_", " ") for name in (_METRICS[source][0], metric))
                notes.append(f"Published scores for {source} are omitted: they are {published}, not {reported}.")
            elif score:
                scores[(plan.data_set, plan.backbone, arm)] = score
    return scores, list(dict.fromkeys(notes))


def _built_in(plan: Plan, arm: str) -> str:
    """Return the built-in arm with published scores whose recipe equals this arm's; "" if there is none."""
    if arm not in plan.comparison.arms:
        return ""
    arm_recipe = recipe(plan, resolve_plan_arm(plan, arm))
    published = [plan.config.model_copy(update={"arm": name, "arms": {}}) for name in (*_PAIR, *_ABLATIONS)]
    return next((str(config.arm) for config in published if recipe(plan, resolve_arm(config)) == arm_recipe), "")
