"""Confusion matrices and reliability of a comparison's arms, over all seeds together."""

from collections.abc import Sequence

import numpy as np

from clipit.comparison.report.cost_table import place_told
from clipit.comparison.report.tables import predictions_source
from clipit.comparison.statistics import ArmResult
from clipit.evaluation.metrics import confusion_matrix, reliability_bins
from clipit.evaluation.predictions import read_predictions
from clipit.reporting.charts import reliability_chart
from clipit.reporting.html import Figure, Folded, Part, Section, Table, Text

_MOST_CLASSES = 20  # larger matrices are left to the runs' own pages


def confusion_sections(made: Sequence[ArmResult]) -> list[Section]:
    """One section per data set and backbone: for each arm its confusion matrix and its reliability, test split."""
    sections = []
    places = list(dict.fromkeys(line.key.place for line in made))
    for place in places:
        parts: list[Part] = [
            Text("Test split, tiles of all seeds together (each tile counts once per seed). Rows: true classes."),
        ]
        for line in made:
            if line.key.place == place and line.key.part == "test" and not line.reference:
                parts.append(Folded(line.key.arm, _of_arm(line)))
        sections.append(Section(f"Errors and calibration{place_told(place, places)}", parts))
    return sections


def _of_arm(line: ArmResult) -> list[Part]:
    tables = [read_predictions(row.predictions_file()).select("test") for row in line.rows]
    classes = tables[0].classes
    labels = np.concatenate([table.labels for table in tables])
    probabilities = np.concatenate([table.probabilities for table in tables])[labels >= 0]
    labels = labels[labels >= 0]
    source = predictions_source(line)
    arm, parts = line.key.arm, list[Part]()
    if len(classes) <= _MOST_CLASSES:
        counts = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
        shades = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        rows = [[name, *row] for name, row in zip(classes, counts.tolist(), strict=True)]
        told = f"{arm}: numbers of tiles; shade: share of the true class (row)"
        header = ("true \\ predicted", *classes)
        parts.append(Table(header, rows, caption=told, source=source, shades=shades.tolist()))
    chart = reliability_chart(reliability_bins(labels, probabilities), label=f"reliability of {arm}")
    parts.append(Figure(chart, f"{arm}: accuracy over confidence", source=source))
    return parts
