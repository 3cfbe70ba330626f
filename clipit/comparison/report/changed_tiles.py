"""Tiles that a comparison's main arms gain and lose against its baseline, with their pictures."""

from collections.abc import Callable, Mapping, Sequence

from clipit.comparison.report.cost_table import place_told
from clipit.comparison.report.tables import predictions_source
from clipit.comparison.statistics import ArmKey, ArmResult
from clipit.errors import DataError
from clipit.evaluation.predictions import Predictions, read_predictions
from clipit.reporting.comparison_tiles import MOST_TILES, change_parts, changed_tiles
from clipit.reporting.html import Folded, Part, Section, Text
from clipit.reporting.thumbnails import jpeg_uri, thumbnail
from clipit.tiles.tileset import TileSet

MAIN_ARMS = ("clip_it_all", "image_embedding")
_MOST_ARMS = 3
_SIDE, _QUALITY = 96, 70  # pixels and JPEG quality of the pictures
_MANY, _FEW_TILES = 4, 4  # from more than so many data sets and backbones on, only so many tiles of each kind
Place = tuple[str, str]
"""Data set and backbone."""


def main_arms(arms: Sequence[str], baseline: str) -> list[str]:
    """At most three arms to look at tile by tile: text, the control of the image embedding, then as they come."""
    others = [arm for arm in arms if arm != baseline]
    return [arm for arm in (*MAIN_ARMS, *(a for a in others if a not in MAIN_ARMS)) if arm in others][:_MOST_ARMS]


def tile_sections(
    made: Sequence[ArmResult], arms: Sequence[str], baseline: str, tiles: Mapping[Place, TileSet]
) -> list[Section]:
    """One section per data set and backbone: test tiles gained and lost by each main arm.

    Args:
        made: The comparison's lines.
        arms: Its arms.
        baseline: The one that the others are compared with.
        tiles: The tiles of each data set and backbone, for pictures; those that are missing go without.
    """
    found = {line.key: line for line in made if line.key.part == "test" and not line.reference}
    places = list(dict.fromkeys(key.place for key in found))
    most = MOST_TILES if len(places) <= _MANY else _FEW_TILES
    sections = []
    for place in places:
        base = found.get(ArmKey(*place, "test", baseline))
        shown = [
            line for arm in main_arms(arms, baseline) if (line := found.get(ArmKey(*place, "test", arm))) is not None
        ]
        if base is None or not shown:
            continue
        picture = _pictures(tiles.get(place))
        parts: list[Part] = [
            Text(
                f"Test tiles whose answer changes from {baseline}: for looking, chosen by their labels; some change by "
                "chance between any two arms. In a card: the true class with the change of its mean probability, then "
                "for each arm in how many seeds the tile is right, the class that most seeds predict (of equals "
                "the more probable), and the mean probability of that class over seeds."
            )
        ]
        for line in shown:
            changes = changed_tiles(_tables(base), _tables(line))
            told = f"{line.key.arm}: {len(changes.gained)} gained, {len(changes.lost)} lost"
            source = f"{predictions_source(base)}; {predictions_source(line)}"
            n = (len(base.rows), len(line.rows))
            cards = change_parts(changes, (baseline, line.key.arm), n, picture, source, most)
            parts.append(Folded(told, cards))
        sections.append(Section(f"Tiles gained and lost{place_told(place, places)}", parts))
    return sections


def _tables(line: ArmResult) -> list[Predictions]:
    return [read_predictions(row.predictions_file()).select("test") for row in line.rows]


def _pictures(tiles: TileSet | None) -> Callable[[str], str | None]:
    """Tile id to the data URI of its picture; each is made once."""
    rows = {} if tiles is None else {str(tile_id): row for row, tile_id in enumerate(tiles.ids.tolist())}
    made: dict[str, str | None] = {}

    def picture(tile_id: str) -> str | None:
        """None when there is no such tile, or its image cannot be read any more."""
        if tile_id not in made:
            encoded = None
            if tiles is not None and tile_id in rows:
                try:
                    encoded = thumbnail(tiles, rows[tile_id], side=_SIDE, quality=_QUALITY)
                except DataError:  # its file is gone: after hours of training, a page without it is better than none
                    encoded = None
            made[tile_id] = jpeg_uri(encoded) if encoded else None
        return made[tile_id]

    return picture
