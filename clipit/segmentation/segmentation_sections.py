"""Rows, tables and sections of a segmentation study."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from clipit.errors import counted
from clipit.evaluation.segmentation_scores import FALSE_AREA, MEAN, MaskScore
from clipit.reporting.html import Figure, PageSection, Table, Text, facts_table
from clipit.reporting.study_page import StudyRow, iter_rows, undefined_section
from clipit.reporting.tables import mean_sd, number, with_interval

_LABELS = {"dice": "Dice", "iou": "IoU", "precision": "precision", "recall": "recall"}
_SOURCE = "segmentation.parquet"


@dataclass(frozen=True, kw_only=True)
class SegmentationRow(StudyRow):
    """Score of one segmentation, floor or ceiling.

    Attributes:
        kind: `method`, `floor`, `ceiling` (of the mean Dice over images), or `majority class` (per tile, or in the
            windows of a method).
        class_name: Class, or `mean of the foreground`.
        averaging: `images` or `pixels`.
        value: Score in 0..1.
        low: Lower end of the 95% interval over patients.
        high: Upper end.
        training_masks: Number of masks trained on.
        validation_masks: Number of masks used to choose a threshold or scales.
        threshold: Threshold on the probability of the second class; None for the most probable class.
        validation_dice: Foreground Dice on the validation masks.
        choice: Description of the chosen window scales, with the score of each candidate.
        tile_um: Edge length of a ceiling's tiles in micrometres.
    """

    kind: str
    class_name: str = ""
    averaging: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    images: int = 0
    training_masks: int | None = None
    validation_masks: int | None = None
    threshold: float | None = None
    validation_dice: float | None = None
    choice: str = ""
    tile_um: float | None = None

    def with_score(self, score: MaskScore) -> "SegmentationRow":
        """Return a copy of the row with a score."""
        return replace(
            self, metric=score.metric, class_name=score.class_name, averaging=score.averaging, value=score.value,
            low=score.low, high=score.high, reason=score.reason, images=score.images,
        )  # fmt: skip


def segmentation_sections(
    frame: pd.DataFrame, provenance: Mapping[str, Any], plots: Mapping[str, Sequence[Figure]]
) -> list[PageSection]:
    """Build the sections: all methods alongside floors and ceilings, then each method with its pictures.

    Args:
        plots: Pictures of each method that has a section; for a method with several seeds, pictures of the first seed.
    """
    order = {"floor": 0, "method": 1, "majority class": 2, "ceiling": 3}
    subjects = sorted(dict.fromkeys(frame.subject), key=lambda s: order[frame[frame.subject == s].kind.iloc[0]])
    sections = [
        PageSection(
            "Scores",
            [
                Text(_explanation(provenance)),
                _overview(frame, subjects, "images"),
                *_over_seeds(frame),
                _overview(frame, subjects, "pixels"),
                *[Text(f"Note: {note}.") for note in provenance["notes"]],
            ],
        )
    ]
    for subject in subjects:
        if subject in plots:
            sections.append(PageSection(subject, [*_method_parts(frame, subject, provenance), *plots[subject]]))
    reasons = [
        (f"{row.subject}: {_LABELS.get(row.metric, row.metric)} of {row.class_name}", str(row.reason))
        for row in iter_rows(frame[frame.metric != FALSE_AREA])
        if row.reason
    ]
    common = [reason for reason, count in Counter(reason for _, reason in reasons).items() if count > len(frame) / 2]
    undefined = [("intervals for all defined scores", reason) for reason in common]
    undefined += [(value, reason) for value, reason in reasons if reason not in common]
    return sections + undefined_section(undefined, f"{_SOURCE}: reason")


def _explanation(provenance: Mapping[str, Any]) -> str:
    masks, unknown = provenance["masks"], int(provenance["masks_of_unknown_patients"])
    return (
        f"{counted(masks['test'], 'test mask')} from {counted(provenance['patients'], 'patient')}"
        f"{f' ({unknown:,} of unknown patients)' if unknown else ''}; "
        f"{counted(masks['train'], 'training mask')} and {counted(masks['validation'], 'validation mask')}. "
        "For methods without training, thresholds and scales are chosen on the validation masks. The foreground is "
        f"{', '.join(provenance['foreground'])}. Means "
        "over images include only the images that contain it. Floors need no model. A ceiling is the highest mean Dice "
        "over images that can be reached by predicting one class per tile. The majority class of a tile, or of a "
        "method's window, is the class of most of its pixels; for windows, a threshold is chosen as for the method. "
        "Predicting the majority class maximises accuracy, not Dice. Because Dice penalises under-segmentation more "
        "than over-segmentation, other predictions, and even the floor that predicts one class everywhere, can have a "
        "higher Dice. Intervals are 95% bootstrap intervals over patients"
        + ("; masks of unknown patients are resampled one by one, or slide by slide." if unknown else ".")
    )


def _labels(frame: pd.DataFrame) -> dict[str, str]:
    """Return the labels of the metrics to show; the false area is shown only if an image lacks a class."""
    shown = frame[frame.metric == FALSE_AREA].value.notna().any()
    return _LABELS | ({FALSE_AREA: "false area in images without the class"} if shown else {})


def without_seed(subject: str, seed: int | float | None) -> str:
    """Return the name of a method without its seed."""
    return subject if seed is None or pd.isna(seed) else subject.removesuffix(f", seed {int(seed)}")


def _over_seeds(frame: pd.DataFrame) -> list[Table]:
    """Build the table of the mean foreground Dice over seeds; an empty list if no method has several seeds."""
    dice = frame[(frame.kind == "method") & (frame.metric == "dice") & (frame.class_name == MEAN)]
    names = [without_seed(row.subject, row.seed) for row in iter_rows(dice)]
    rows: list[list[object]] = []
    for name, scores in dice.assign(name=names).groupby("name", sort=False):
        count = scores.seed.nunique()
        if count > 1:
            values = [scores[scores.averaging == kind].value.map(_or_none).tolist() for kind in ("images", "pixels")]
            rows.append([name, int(scores.training_masks.iloc[0]), count, *map(mean_sd, values)])
    if not rows:
        return []
    header = ("segmentation", "training masks", "seeds", "Dice, mean over images", "Dice, all pixels pooled")
    caption = (
        "Foreground Dice: mean and standard deviation over seeds. Training masks are drawn for each seed; in rows "
        "with all training masks, the seeds differ only in training"
    )
    return [Table(header, rows, caption=caption, source=f"{_SOURCE}: value, seed")]


def _overview(frame: pd.DataFrame, subjects: Sequence[str], averaging: str) -> Table:
    """Build the table of all methods, floors and ceilings with their foreground scores."""
    rows = []
    for subject in subjects:
        cells = _cells(frame, subject, MEAN, averaging)
        first = frame[frame.subject == subject].iloc[0]
        masks = ["" if pd.isna(count) else int(count) for count in (first.training_masks, first.validation_masks)]
        rows.append([subject, first.kind, *masks, *cells])
    averaged_over = "mean over images" if averaging == "images" else "all pixels pooled"
    return Table(
        ("segmentation", "kind", "training masks", "validation masks", *_labels(frame).values()), rows,
        caption=f"Mean of the foreground classes, {averaged_over}", source=f"{_SOURCE}: value, low, high", left=2,
    )  # fmt: skip


def _method_parts(frame: pd.DataFrame, subject: str, provenance: Mapping[str, Any]) -> list[Text | Table]:
    """Build one method's description, its scores by class with the Dice of the references, and its provenance."""
    first = frame[frame.subject == subject].iloc[0]
    floors = list(dict.fromkeys(frame[frame.kind == "floor"].subject))
    own_windows = f"majority class in the windows of {subject}"
    tiles = list(dict.fromkeys(frame[frame.tile_um.notna()].subject))
    references = [*floors, *([own_windows] if own_windows in set(frame.subject) else tiles)]
    rows = []
    for name in [*provenance["class_names"], MEAN]:
        dice = [_value(frame, other, name, "dice") for other in references]
        rows.append([name, *_cells(frame, subject, name, "images"), *dice])
    rule = (
        f"Predicts {provenance['class_names'][1]} where its probability is at least {first.threshold:.4g}, chosen on "
        f"the validation masks (Dice {number(_or_none(first.validation_dice))})."
        if _or_none(first.threshold) is not None
        else "Predicts the most probable class."
    )
    parts: list[Text | Table] = [Text(f"{rule} Windows: {first.choice}." if first.choice else rule)]
    header = ("class", *_labels(frame).values(), *(f"Dice, {other}" for other in references))
    parts.append(Table(header, rows, caption="Mean over images, by class", source=f"{_SOURCE}: value"))
    facts = {key: value for key, value in provenance["subjects"][subject].items() if value is not None}
    parts.append(facts_table(facts, "segmentation.json: subjects"))
    return parts


def _cells(frame: pd.DataFrame, subject: str, class_name: str, averaging: str) -> list[str]:
    rows = frame[(frame.subject == subject) & (frame.class_name == class_name) & (frame.averaging == averaging)]
    by_metric = {row.metric: row for row in iter_rows(rows)}
    return [
        with_interval(_or_none(row.value), _or_none(row.low), _or_none(row.high))
        for row in (by_metric[name] for name in _labels(frame))
    ]


def _value(frame: pd.DataFrame, subject: str, class_name: str, metric: str) -> str:
    rows = frame[(frame.subject == subject) & (frame.class_name == class_name) & (frame.averaging == "images")]
    return number(_or_none(rows[rows.metric == metric].value.iloc[0]))


def _or_none(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)
