"""Warn about patient names that are spelled differently in two sources or splits, and would count as two patients."""

from collections.abc import Sequence

from clipit.errors import counted, shortlist
from clipit.input_files.spelling import format_pairs, spelled_differently
from clipit.pairing.leaks import SeenTiles, patient_of
from clipit.patients import match_patients, patients, similar_slides, slides_of_patients
from clipit.reports.readers import Report
from clipit.tiles.tileset import TileSet

_SHOWN = 3  # maximum number of names in a note


def misspelled_reports(reports: Sequence[Report], tiles: TileSet) -> list[str]:
    """Warn about patient names that are spelled differently in reports and in validation or test tiles."""
    names = [patient_of(report) for report in reports]
    later = tiles.select(tiles.splits != "train")
    return _warnings(("report", "reports"), names, later, "validation or test tiles")


def describe_match(reports: Sequence[Report], tiles: TileSet) -> list[str]:
    """Describe groups that were matched as slides of a patient, and reports and tiles without a common patient."""
    names, owners = [patient_of(report) for report in reports], patients(tiles.groups, tiles.ids).tolist()
    notes = []
    if joined := slides_of_patients(names, owners):
        shown = shortlist([f"{slide} of {patient}" for slide, patient in sorted(joined.items())], _SHOWN)
        count = counted(len(joined), "group counts as a slide", "groups count as slides")
        notes.append(f"{count} of a patient: {shown}")
    report_patients, tile_patients = ({*names} - {""} for names in match_patients(names, owners))
    if report_patients and tile_patients and not report_patients & tile_patients:
        examples = [shortlist(sorted(groups), 1) for groups in (report_patients, tile_patients)]
        notes.append(
            f"reports and tiles have no group in common (reports: {examples[0]}; tiles: {examples[1]}), so no report "
            "is matched to a patient with tiles"
        )
    return notes


def misspelled_tests(tests: TileSet | SeenTiles, seen: TileSet | SeenTiles) -> list[str]:
    """Warn about patient names that are spelled differently in new tiles and in training or validation tiles."""
    names = patients(tests.groups, tests.ids).tolist()
    return _warnings(("new tile", "new tiles"), names, seen, "training or validation tiles")


def misspelled_pairs(pairs: TileSet, tests: TileSet) -> list[str]:
    """Warn about patient names that are spelled differently in images with texts and in held-out tiles."""
    names = patients(pairs.groups, pairs.ids).tolist()
    return _warnings(("image with texts", "images with texts"), names, tests, "tiles in held-out splits")


def misspelled_splits(tiles: TileSet, unit: str = "tile") -> list[str]:
    """Warn about groups in two splits that may be slides of one patient; `read_tiles` compares their spelling."""
    names, warnings = patients(tiles.groups, tiles.ids), []
    for split, later in (("train", ("validation", "test")), ("validation", ("test",))):
        inside, others = tiles.splits == split, (tiles.splits[:, None] == later).any(axis=1)
        items = (f"{split} {unit}", f"{split} {unit}s")
        warnings += _similar(items, names[inside].tolist(), names[others].tolist(), f"{' or '.join(later)} {unit}s")
    return warnings


def _warnings(items: tuple[str, str], names: Sequence[str], tiles: TileSet | SeenTiles, kind: str) -> list[str]:
    others = patients(tiles.groups, tiles.ids).tolist()
    pairs = spelled_differently({name for name in names if name}, set(others) - {""})
    warnings = _similar(items, names, others, kind)
    if pairs:
        count = sum(name in pairs for name in names)
        warnings.insert(
            0,
            f"WARNING: {counted(count, *items)} may belong to patients with {kind}, but count as different patients "
            f"because the names are spelled differently: {shortlist(format_pairs(pairs), 5)}; use one spelling for "
            "each patient",
        )
    return warnings


def _similar(items: tuple[str, str], names: Sequence[str], others: Sequence[str], kind: str) -> list[str]:
    pairs = similar_slides(names, others)
    if not pairs:
        return []
    count = sum(name in pairs for name in names)
    return [
        f"WARNING: {counted(count, *items)} may belong to patients with {kind}, because their groups share a "
        f"prefix: {shortlist(format_pairs(pairs), _SHOWN)}; if these are slides of one patient, use the patient as the "
        "group (from a patient column or tiles.group_pattern)"
    ]
