"""Facts about reports from a csv file beside them: organ, group, label and date, by report or by patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from clipit.config.run import ReportsConfig
from clipit.data_files import MISSING_VALUES, cell_text, delimiter_hint, neighbours
from clipit.errors import DataError, shortlist
from clipit.reports.tables import read_csv_table
from clipit.reports.tcga import patient_of
from clipit.reports.textfiles import RawReport

_FACTS = ("organ", "group", "label", "date")


@dataclass(frozen=True)
class Metadata:
    """Rows of the csv file, by report or by patient.

    Attributes:
        path: The file.
        by_report: Whether the rows belong to reports; otherwise to patients.
        rows: Fact -> value, by report id or patient.
        facts: Facts that the file contains.
    """

    path: Path
    by_report: bool
    rows: dict[str, dict[str, str | None]]
    facts: tuple[str, ...]

    def without_columns(self, config: ReportsConfig) -> ReportsConfig:
        """Return the configuration of the reports themselves, without the columns that this file has."""
        return config.model_copy(update={f"{fact}_column": None for fact in self.facts})

    def add(self, reports: Sequence[RawReport], problems: list[str]) -> list[RawReport]:
        """Add the facts to the reports; reports and rows that do not match are counted in `problems`.

        Raises:
            DataError: No report has a row; the message shows ids of both.
        """
        keys = [(report.report_id or "") if self.by_report else _patient(report) for report in reports]
        matched = [key in self.rows for key in keys]
        name = "report_id" if self.by_report else "group"
        if not any(matched):
            raise DataError(
                f"no report has a row: the reports have {shortlist([key for key in keys if key] or ['no group'], 3)}, "
                f"column {name} has {shortlist(list(self.rows), 3)}",
                where=self.path,
                fix=f"write the {'ids' if self.by_report else 'groups'} of the reports into the column {name}",
            )
        if not all(matched):
            missing = [
                report.report_id or report.where for report, row in zip(reports, matched, strict=True) if not row
            ]
            problems.append(f"{self.path}: no row for {len(missing)} reports ({shortlist(missing, 3)})")
        unused = sorted(self.rows.keys() - set(keys))
        if unused:
            problems.append(f"{self.path}: {len(unused)} rows without a report ({shortlist(unused, 3)})")
        added = []
        for report, key in zip(reports, keys, strict=True):
            changes: dict[str, Any] = dict(self.rows.get(key, dict.fromkeys(self.facts)))
            if changes.get("group") is None:  # keep a group that the reports have
                changes.pop("group", None)
            added.append(report._replace(**changes))
        return added


def read_metadata(config: ReportsConfig) -> Metadata | None:
    """Read the configured csv file; None if there is none.

    Raises:
        DataError: The file is missing or malformed, has neither or both of the key columns or none of the configured
            columns, or a key is empty or repeated.
    """
    if config.metadata is None:
        return None
    path = Path(config.metadata)
    if not path.is_file():
        raise DataError(
            f"no such file; {neighbours(config.metadata)}".rstrip("; "), where=path, fix="correct reports.metadata"
        )
    table = read_csv_table(path, config.encoding)
    keys = [name for name in ("report_id", "group") if name in table.header]
    if not keys:
        raise DataError(
            f"neither a column report_id nor a column group; the columns are {shortlist(table.header, 10)}",
            where=path,
            fix=delimiter_hint(table.header) or "name the column with the reports' ids or patients so",
        )
    by_report = "report_id" in keys
    columns = {fact: getattr(config, f"{fact}_column") for fact in _FACTS}
    if by_report and columns["group"] is None and "group" in table.header:
        columns["group"] = "group"
    facts = tuple(fact for fact in _FACTS if columns[fact] in table.header and (by_report or fact != "group"))
    if not facts:
        raise DataError(
            f"none of the configured columns; the columns are {shortlist(table.header, 10)}",
            where=path,
            fix="set reports.label_column, organ_column, group_column or date_column to one of them",
        )
    rows: dict[str, dict[str, str | None]] = {}
    for line, cells in zip(table.lines, table.rows, strict=True):
        values = dict(zip(table.header, (_text(cell, path, line) for cell in cells), strict=True))
        key = values[keys[0]] if by_report else (patient_of(values["group"]) or values["group"])
        if not key or key in rows:
            raise DataError(
                f"{keys[0]} {key!r} occurs twice" if key else f"an empty {keys[0]}",
                where=f"{path}, line {line}",
                fix=f"write one row per {'report' if by_report else 'patient'}",
            )
        rows[key] = {fact: values[columns[fact]] or None for fact in facts}
    return Metadata(path, by_report, rows, facts)


def check_dates(dates: Sequence[str | None], where: str) -> None:
    """Check that all dates are ISO 8601 dates or times; None is an unknown date.

    Raises:
        DataError: Some are not; the message counts and shows them.
    """
    wrong = [date for date in dates if date is not None and not _is_date(date)]
    if wrong:
        raise DataError(
            f"{len(wrong)} dates are not ISO 8601 dates: {shortlist(sorted(set(wrong)), 3)}",
            where=f"{where}, reports.date_column",
            fix="write dates as 2024-05-31",
        )


def parse_date(text: str) -> datetime:
    """Parse an ISO 8601 date or time; times with an offset are converted to UTC, so that all can be compared.

    Raises:
        ValueError: The text is neither.
    """
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is None else found.astimezone(UTC).replace(tzinfo=None)


def _is_date(text: str) -> bool:
    try:
        parse_date(text)
    except (ValueError, OverflowError):
        return False
    return True


def _patient(report: RawReport) -> str:
    """Return the patient of a report: its group, or the TCGA patient in its file name."""
    name = report.group or patient_of(PurePosixPath(report.report_id or "").name) or ""
    return patient_of(name) or name


def _text(cell: str, path: Path, line: int) -> str:
    try:
        text = cell_text(cell)
    except ValueError as error:
        raise DataError(f"a cell contains {error}", where=f"{path}, line {line}", fix="correct this cell") from None
    return "" if text in MISSING_VALUES else text
