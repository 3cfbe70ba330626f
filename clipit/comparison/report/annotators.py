"""Human ceiling of a comparison on tiles labelled by several annotators."""

from collections.abc import Mapping

from clipit.comparison.report.tables import setting_label
from clipit.evaluation.human_ceiling import human_ceiling
from clipit.reporting.annotators_section import annotator_parts, ceiling_note
from clipit.reporting.html import PageSection
from clipit.tiles.tileset import TileSet


def annotator_notes(tiles_by_setting: Mapping[tuple[str, str], TileSet], metric: str) -> list[str]:
    """Write a note on the scores of the annotators on the test tiles of each data set; none without annotators.

    Args:
        metric: Metric of the comparison; accuracy is used where annotators have none, as for AUROC.
    """
    notes = []
    for setting, tiles in tiles_by_setting.items():
        ceiling = human_ceiling(tiles.of_split("test"))
        text = ceiling and (ceiling_note(ceiling, metric) or ceiling_note(ceiling, "accuracy"))
        if text:
            name = setting_label(setting, list(tiles_by_setting))[2:-1]
            notes.append(f"{name}: {text}." if name else f"{text[0].upper()}{text[1:]}.")
    return list(dict.fromkeys(notes))


def annotator_sections(tiles_by_setting: Mapping[tuple[str, str], TileSet]) -> list[PageSection]:
    """Build a section with the scores of each annotator on the test tiles of each data set; none without annotators."""
    parts = []
    for data_set in dict.fromkeys(data_set for data_set, _ in tiles_by_setting):
        tiles = next(each for (name, _), each in tiles_by_setting.items() if name == data_set)
        ceiling = human_ceiling(tiles.of_split("test"))
        if ceiling is not None:
            source = "results.json of each run: splits.test.annotators"
            parts += annotator_parts(ceiling, f"Annotators on the test tiles of {data_set}", source)
    return [PageSection("Annotators", parts)] if parts else []
