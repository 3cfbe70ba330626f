"""Published figures to stand beside ours: another protocol, other seeds, so never a baseline."""

from collections.abc import Mapping

SOURCE = "CLIP-IT, arXiv 2504.16181, table 1 (accuracy %, image only -> CLIP-IT, means of three runs)"

_TABLE_1: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "uni": {"pcam": (94.24, 95.49), "bach": (78.89, 81.79), "nct_crc": (94.66, 95.92)},
    "kaiko-vitl14": {"pcam": (88.88, 92.32), "bach": (84.26, 86.11), "nct_crc": (94.40, 95.91)},
    "kaiko-vitb16": {"pcam": (88.13, 91.42), "bach": (80.78, 82.94), "nct_crc": (95.86, 95.67)},
    "kaiko-vits16": {"pcam": (88.43, 90.93), "bach": (82.90, 84.64), "nct_crc": (93.77, 95.34)},
    "kaiko-vitb8": {"pcam": (87.54, 91.92), "bach": (86.90, 84.91), "nct_crc": (95.71, 95.66)},
    "kaiko-vits8": {"pcam": (87.90, 90.24), "bach": (81.01, 82.55), "nct_crc": (94.90, 95.55)},
}
_ABLATIONS: Mapping[str, float] = {  # UNI on PCAM
    "clip_it_paper_frozen": 93.86,
    "late_fusion_without_text": 94.31,
    "word_drop": 95.39,
}
_METRICS: Mapping[str, tuple[str, ...]] = {
    # PCam's official test split holds as many tiles with tumour as without (but for a few of 32,768), so that a mean
    # over tiles and a mean over classes are the same figure there.
    "pcam": ("accuracy", "balanced_accuracy"),
    "bach": ("balanced_accuracy",),
    "nct_crc": ("balanced_accuracy",),
}
CAUTION = (
    "The published CRC and BACH figures were selected and reported on the same split, and are balanced accuracy there "
    "(the metric's default); they are shown for orientation, not as a baseline."
)


def fits(source: str, metric: str) -> bool:
    """Whether the published figures of a data set (`tiles.source`) are in the metric of a comparison."""
    return metric in _METRICS.get(source, ())


def published_metric(source: str) -> str:
    """The metric of the published figures of a data set, in words."""
    return _METRICS[source][0].replace("_", " ")


def published(source: str, backbone: str, arm: str) -> str:
    """The published score of an arm on a data set (`tiles.source`) with a backbone, in %; empty where there is none."""
    pair = _TABLE_1.get(backbone, {}).get(source)
    if pair is None:
        return ""
    if arm in ("image_only", "clip_it_paper"):
        return f"{pair[arm == 'clip_it_paper']:.2f}"
    if (backbone, source) == ("uni", "pcam") and arm in _ABLATIONS:
        return f"{_ABLATIONS[arm]:.2f}"
    return ""
