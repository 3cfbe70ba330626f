"""Warn about patients whose names are spelled differently in two sources, since each would count as two patients."""

from collections.abc import Sequence

from clipit.errors import counted, shortlist
from clipit.input_files.spelling import format_pairs, spelled_differently
from clipit.pairing.leaks import SeenTiles, patient_of
from clipit.patients import patients
from clipit.reports.readers import Report
from clipit.tiles.tileset import TileSet


def misspelled_reports(reports: Sequence[Report], tiles: TileSet) -> str:
    """Return a warning if reports and validation or test tiles spell patient names differently; "" otherwise."""
    names = [patient_of(report) for report in reports]
    later = tiles.select(tiles.splits != "train")
    return _warning(("report", "reports"), names, later, "validation or test tiles")


def misspelled_tests(tests: TileSet, seen: TileSet | SeenTiles) -> str:
    """Return a warning if new tiles and training or validation tiles spell patient names differently; "" otherwise."""
    names = patients(tests.groups, tests.ids).tolist()
    return _warning(("new tile", "new tiles"), names, seen, "training or validation tiles")


def misspelled_pairs(pairs: TileSet, tests: TileSet) -> str:
    """Return a warning if images with texts and tiles of later splits spell patient names differently; "" otherwise."""
    names = patients(pairs.groups, pairs.ids).tolist()
    return _warning(("image with texts", "images with texts"), names, tests, "tiles of later splits")


def _warning(items: tuple[str, str], names: Sequence[str], tiles: TileSet | SeenTiles, kind: str) -> str:
    others = set(patients(tiles.groups, tiles.ids).tolist()) - {""}
    pairs = spelled_differently({name for name in names if name}, others)
    if not pairs:
        return ""
    count = sum(name in pairs for name in names)
    return (
        f"WARNING: {counted(count, *items)} may belong to patients of {kind}, but count as different patients because "
        f"the names are spelled differently: {shortlist(format_pairs(pairs), 5)}; use one spelling for each patient"
    )
