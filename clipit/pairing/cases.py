"""Cases: join the training tiles with the reports of the same patients."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np
from jaxtyping import Int64, Shaped

from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.pairing.leaks import patient_of
from clipit.patients import patients
from clipit.reports.metadata import parse_date
from clipit.reports.readers import Report
from clipit.tiles.tileset import TileSet

_SHOWN = 3  # maximum number of groups in a message


@dataclass(frozen=True)
class CaseCounts:
    """Numbers of tiles, patients and reports in the join.

    Attributes:
        tiles: Number of training tiles.
        tiles_without_patient: Number of training tiles without a group.
        cases: Number of patients with training tiles.
        cases_with_report: Number of patients with a used report; all their tiles are training tiles.
        cases_with_several: Number of patients with several used reports.
        reports: Number of reports in the corpus.
        own: Number of used reports.
        later_splits: Number of reports of patients with validation or test tiles; these reports are never used.
        both_sides: Number of patients with both training tiles and validation or test tiles; their reports are never
            used.
        external: Number of reports of patients without tiles.
        without_patient: Number of reports without a group.
    """

    tiles: int
    tiles_without_patient: int
    cases: int
    cases_with_report: int
    cases_with_several: int
    reports: int
    own: int
    later_splits: int
    both_sides: int
    external: int
    without_patient: int

    def text(self) -> str:
        """Summarise the counts: used reports, unused reports, and problems with the tiles' groups."""
        unused = {
            "from patients with validation or test tiles (never read for training)": self.later_splits,
            "from patients without tiles": self.external,
            "without a group": self.without_patient,
        }
        lines = [
            f"{counted_of(self.cases_with_report, self.cases, 'training patient has', 'training patients have')} a "
            f"report of their own ({counted(self.own, 'report')}; "
            f"{counted(self.cases_with_several, 'patient has', 'patients have')} "
            "several)",
            "other reports: " + (", ".join(f"{count:,} {kind}" for kind, count in unused.items() if count) or "none"),
        ]
        if self.tiles_without_patient:
            lines.append(
                f"{counted_of(self.tiles_without_patient, self.tiles, 'training tile has', 'training tiles have')} no "
                "group"
            )
        if self.both_sides:
            lines.append(
                f"{counted(self.both_sides, 'patient has', 'patients have')} tiles in both the training "
                "split and a held-out split, so their reports are not used"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Cases:
    """Training tiles and the reports of the same patients.

    Attributes:
        names: Patients with a report, sorted.
        reports: Reports of each of these patients, sorted by date (undated reports first), then by id.
        case_of: Index into `names` of each training tile's patient; -1 if the patient has no report.
        patients: Patient of each training tile; "" if unknown.
        counts: Numbers of tiles, patients and reports.
    """

    names: tuple[str, ...]
    reports: tuple[tuple[Report, ...], ...]
    case_of: Int64[np.ndarray, "n"]
    patients: np.ndarray
    counts: CaseCounts

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the patients' own reports: ids, texts, organs, labels and dates, by patient."""
        digest = hashlib.sha256()
        for name, reports in zip(self.names, self.reports, strict=True):
            for r in reports:
                line = json.dumps([name, r.report_id, r.text, r.organ, r.label, r.date], ensure_ascii=True)
                digest.update(line.encode() + b"\n")
        return digest.hexdigest()[:16]

    @property
    def organs(self) -> list[str]:
        """Organ of each patient's first report; "" if it is unknown or there is no report."""
        return [(reports[0].organ or "") if reports else "" for reports in self.reports]

    def with_all_patients(self) -> "Cases":
        """Add the training patients without a used report, with an empty tuple in `reports`.

        This includes patients who also have tiles in a held-out split; only their training tiles are used.
        """
        reports_of = dict(zip(self.names, self.reports, strict=True))
        names = sorted(set(self.patients.tolist()) - {""})
        return replace(
            self,
            names=tuple(names),
            reports=tuple(reports_of.get(name, ()) for name in names),
            case_of=_indices(names, self.patients),
        )

    def latest(self) -> "Cases":
        """Keep only the latest report of each patient.

        Raises:
            DataError: The latest report of a patient is ambiguous, because dates are missing or equal.
        """
        ambiguous = [
            name
            for name, reports in zip(self.names, self.reports, strict=True)
            if len(reports) > 1
            and (any(r.date is None for r in reports) or _by_date(reports[-1])[0] == _by_date(reports[-2])[0])
        ]
        if ambiguous:
            raise DataError(
                f"{counted(len(ambiguous), 'patient has', 'patients have')} several reports with missing or equal "
                f"dates: {shortlist(ambiguous, _SHOWN)}",
                where="reports.date_column",
                fix="choose a column that has a date for every report, or set own_report.several=all",
            )
        return replace(self, reports=tuple(reports[-1:] for reports in self.reports))


def join_cases(reports: Sequence[Report], tiles: TileSet) -> Cases:
    """Join the training tiles with the reports of the same patients.

    The patient of a tile or report is its group or, if it has none, the TCGA barcode in its id. TCGA barcodes are
    truncated to the patient. Reports of patients with validation or test tiles are only counted.

    Raises:
        DataError: The tiles or the reports have no groups, or no training patient has a report.
    """
    return join_patients(reports, patients(tiles.groups, tiles.ids), tiles.splits)


def join_patients(
    reports: Sequence[Report], owners: Shaped[np.ndarray, " n"], splits: Shaped[np.ndarray, " n"]
) -> Cases:
    """Join training tiles, slides or other samples with the reports of the same patients, like `join_cases`.

    Args:
        owners: Patient of each sample; "" where unknown.
        splits: Split of each sample; patients with samples in a split other than "train" are excluded.

    Raises:
        DataError: The samples or the reports have no groups, or no training patient has a report.
    """
    tile_patients = owners[splits == "train"]
    training = set(tile_patients.tolist()) - {""}
    evaluated = set(owners[splits != "train"].tolist()) - {""}
    by_patient: dict[str, list[Report]] = {}
    for report in reports:
        by_patient.setdefault(patient_of(report), []).append(report)
    _check_groups(training, by_patient.keys() - {""})
    names = sorted(name for name in training - evaluated if name in by_patient)
    with_tiles = training | evaluated | {""}
    counts = CaseCounts(
        tiles=len(tile_patients),
        tiles_without_patient=int((tile_patients == "").sum()),
        cases=len(training),
        cases_with_report=len(names),
        cases_with_several=sum(len(by_patient[name]) > 1 for name in names),
        reports=len(reports),
        own=sum(len(by_patient[name]) for name in names),
        later_splits=sum(len(of_patient) for name, of_patient in by_patient.items() if name in evaluated),
        both_sides=len(training & evaluated),
        external=sum(len(of_patient) for name, of_patient in by_patient.items() if name not in with_tiles),
        without_patient=len(by_patient.get("", ())),
    )
    if not names:
        raise _no_match(training, by_patient.keys() - {""}, counts)
    return Cases(
        names=tuple(names),
        reports=tuple(tuple(sorted(by_patient[name], key=_by_date)) for name in names),
        case_of=_indices(names, tile_patients),
        patients=tile_patients,
        counts=counts,
    )


def _by_date(report: Report) -> tuple[datetime, str]:
    """Return the key that sorts reports by date (undated reports first), then by id."""
    return datetime.min if report.date is None else parse_date(report.date), report.report_id


def _indices(names: Sequence[str], tile_patients: np.ndarray) -> Int64[np.ndarray, "n"]:
    """Return the index in `names` of each tile's patient, or -1."""
    index_of = {name: index for index, name in enumerate(names)}
    return np.asarray([index_of.get(name, -1) for name in tile_patients.tolist()], dtype=np.int64)


def _check_groups(tile_patients: set[str], report_patients: set[str]) -> None:
    for kind, names, fix in (
        (
            "training tiles",
            tile_patients,
            "add a `group` column with the patient ids to the tile table (tiles.columns)",
        ),
        ("reports", report_patients, "set reports.group_column, or reports.metadata for reports without columns"),
    ):
        if not names:
            message = f"the {kind} have no groups, so the patients' own reports cannot be found"
            raise DataError(message, where="groups", fix=fix)


def _no_match(tile_patients: set[str], report_patients: set[str], counts: CaseCounts) -> DataError:
    """Build the error for groups without a match, with examples and spelling changes that would produce matches."""
    tile_names, report_names = sorted(tile_patients), sorted(report_patients)
    hints = _spelling_hints(tile_patients, report_patients)
    cause = "; ".join(hints) or "no simple spelling change would produce a match"
    if counts.later_splits:
        cause = (
            f"{counted(counts.later_splits, 'report belongs', 'reports belong')} to patients with validation or "
            f"test tiles; {cause}"
        )
    if counts.both_sides:
        cause = (
            f"{counted(counts.both_sides, 'training patient also has', 'training patients also have')} tiles in a "
            f"held-out split, so their reports are not used; {cause}"
        )
    return DataError(
        f"no training patient has a report; the tile groups are {shortlist(tile_names, _SHOWN)}, the report "
        f"groups {shortlist(report_names, _SHOWN)}; {cause}",
        where="tile and report groups",
        fix="use the same patient ids in both, or assign groups to reports with reports.metadata",
    )


def _spelling_hints(tile_patients: set[str], report_patients: set[str]) -> list[str]:
    """Describe up to `_SHOWN` spelling changes, on one or both sides, that would match the most patients."""
    matches: list[tuple[int, str]] = []
    for description, change in (
        ("in lower case", str.casefold),
        ("after Unicode normalisation (NFC)", lambda name: unicodedata.normalize("NFC", name)),
        ("without leading zeros", lambda name: name.lstrip("0")),
        ("if cut at the first '-'", lambda name: name.partition("-")[0]),
        ("if cut at the last '-'", lambda name: name.rpartition("-")[0] or name),
        ("if cut at the first '_'", lambda name: name.partition("_")[0]),
        ("without file suffixes", lambda name: name.partition(".")[0]),
        ("if cut to 12 characters, like a TCGA barcode", lambda name: name[:12]),
    ):
        changed_tiles, changed_reports = set(map(change, tile_patients)), set(map(change, report_patients))
        sides = (
            (len(changed_tiles & changed_reports), ""),
            (len(changed_tiles & report_patients), " (tile groups only)"),
            (len(tile_patients & changed_reports), " (report groups only)"),
        )
        count, side = max(sides, key=lambda item: item[0])  # the first of equal counts
        matches += [(count, f"{count} would match {description}{side}")] if count else []
    return [text for _, text in sorted(matches, key=lambda item: -item[0])[:_SHOWN]]
