"""Tile groups (patients or slides) from patterns in names, and advice if a source seems to contain groups."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from clipit.errors import DataError, counted, shortlist
from clipit.input_files.spelling import folded_name
from clipit.patients import patient_in
from clipit.tiles.source import SourceTiles

GROUP_COLUMNS = (
    "patientid", "patient", "patientbarcode", "bcrpatientbarcode", "patientno", "patientnumber", "patientname",
    "subjectid", "subject", "donorid", "donor", "participantid", "participant",
    "caseid", "case", "casesubmitterid", "submitterid", "caseno", "casenumber",
    "slideid", "slide", "slidename", "slidebarcode", "wsiid", "wsi", "wsiname", "specimenid", "specimen",
)  # fmt: skip
"""Column names that usually identify patients or slides, as returned by `folded_name`; best choice first."""
_BARCODES: Mapping[str, str] = {
    "TCGA barcodes": r"TCGA-[A-Za-z0-9]{2}-[A-Za-z0-9]{4}",
    "CPTAC barcodes": r"C3[LN]-\d{5}",
    "GTEx barcodes": r"GTEX-[A-Z0-9]{4,5}",
    "patient ids": r"(?i:patient|subject|donor)[-_ ]?[a-z]?\d+",
    "case ids": r"(?i:case)[-_ ]?[a-z]?\d+",
    "slide ids": r"(?i:slide|wsi)[-_ ]?[a-z]?\d+",
}
"""Patterns for barcodes and for common patient, case and slide ids in file names; best choice first."""
_MIN_SHARE = 0.5  # fraction of the tiles in which a pattern must occur


def is_group_column(column: str) -> bool:
    """Return whether a column with this name usually identifies patients or slides."""
    return folded_name(column) in GROUP_COLUMNS


def add_groups(source: SourceTiles, pattern: str | None) -> SourceTiles:
    """Set groups by matching `tiles.group_pattern` against the tile ids, or else against the tile paths.

    Raises:
        DataError: The source already has groups, or no tile matches.
    """
    if pattern is None:
        return source
    if any(source.groups):
        raise DataError(
            "the source already has groups, which tiles.group_pattern would replace",
            where=source.where,
            fix="remove tiles.group_pattern, or the group column",
        )
    compiled = re.compile(pattern)
    groups = _find(source, compiled)
    if compiled.groups > 1:
        _check_first_group(source, compiled)
    missing = [name for name, group in zip(source.ids, groups, strict=True) if not group]
    if len(missing) == len(groups):
        raise DataError(
            f"tiles.group_pattern {pattern!r} matches no tile; tile ids: {shortlist(source.ids, 3)}",
            where=source.where,
            fix="correct the regular expression",
        )
    note = (
        f"{counted(len(missing), 'tile')} without a group: tiles.group_pattern does not match {shortlist(missing, 3)}"
    )
    return replace(source, groups=groups, notes=(*source.notes, note) if missing else source.notes)


def group_advice(source: SourceTiles) -> str:
    """Suggest a key that sets groups, if a source without groups seems to identify patients; otherwise return ""."""
    if any(source.groups) or any(map(patient_in, source.ids)):
        return ""
    if advice := column_advice(source.groups, source.ids, source.columns):
        return advice
    for kind, pattern in _BARCODES.items():
        values = _find(source, re.compile(pattern))
        if _is_shared(values):
            count = len({value for value in values if value})
            example = next(value for value in values if value)
            return (
                f"the ids or paths contain {count} {kind}, such as {example}, but no groups are set: set "
                f"--tiles.group_pattern='{pattern}'"
            )
    return ""


def column_advice(
    groups: Sequence[str], ids: Sequence[str], columns: Mapping[str, Sequence[str]], fix: str = ""
) -> str:
    """Suggest a column that seems to identify patients or slides, if no groups are known; otherwise return "".

    Args:
        groups: Patient or slide of each row; "" if unknown.
        ids: Name of each row, which may contain a TCGA barcode.
        columns: Additional columns whose names suggest patients or slides.
        fix: What to do; "" to set tiles.columns.group.
    """
    if any(groups) or any(map(patient_in, ids)):
        return ""
    for name in sorted(columns, key=lambda name: GROUP_COLUMNS.index(folded_name(name))):
        if _is_shared(columns[name]):
            count = len({value for value in columns[name] if value})
            return (
                f"the column {name} identifies {counted(count, 'patient or slide', 'patients or slides')}, but is "
                f"not used: {fix or f'set --tiles.columns.group={shlex.quote(name)}'}"
            )
    return ""


def _matches(source: SourceTiles, pattern: re.Pattern[str]) -> list[re.Match[str] | None]:
    """Return the match of a pattern in each tile id, or else in the tile path."""
    paths = source.paths or [""] * len(source.ids)
    return [pattern.search(name) or pattern.search(path) for name, path in zip(source.ids, paths, strict=True)]


def _find(source: SourceTiles, pattern: re.Pattern[str]) -> list[str]:
    """Return the text that the pattern matches for each tile; "" without a match."""
    matches = _matches(source, pattern)
    return ["" if match is None else (match[1] or "" if pattern.groups else match[0]) for match in matches]


def _check_first_group(source: SourceTiles, pattern: re.Pattern[str]) -> None:
    """Reject a pattern whose first capturing group takes no part in a match, as in `A_(\\d+)|B_(\\d+)`."""
    matches = _matches(source, pattern)
    without = [name for name, match in zip(source.ids, matches, strict=True) if match is not None and match[1] is None]
    if without:
        raise DataError(
            f"tiles.group_pattern {pattern.pattern!r} matches {counted(len(without), 'tile')} without its first "
            f"capturing group, the only one that is used: {shortlist(without, 3)}",
            where=source.where,
            fix="use a single capturing group, and write the others as (?:...)",
        )


def _is_shared(values: Sequence[str]) -> bool:
    """Return whether values may be groups: known for at least half of the tiles, and shared by some but not all."""
    known = [value for value in values if value]
    distinct = len(set(known))
    return len(known) >= _MIN_SHARE * len(values) and 1 < distinct < len(known)
