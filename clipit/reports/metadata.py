"""Organ, group, label and date of reports from a separate table, joined by report or by patient."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.input_files.csv_tables import CsvTable
from clipit.input_files.data_files import MISSING_VALUES, cell_text, without_decimals
from clipit.input_files.mangled_names import check_mangled
from clipit.input_files.nearby_files import similar_names
from clipit.input_files.spelling import check_column_spelling
from clipit.patients import leading_patient
from clipit.reports.encodings import find_misread
from clipit.reports.report_tables import DELIMITERS, TABLE_FORMATS, OptionalColumn, read_csv_table
from clipit.reports.textfiles import RawReport
from clipit.reports.workbooks import read_workbook

_FIELDS = ("organ", "group", "label", "date")
_TCGA_MISSING = frozenset({"[Not Available]", "[Not Applicable]", "[Not Evaluated]", "[Unknown]", "[Discrepancy]"})
"""Markers of missing values in TCGA's clinical tables."""
_SAVE = "save it as .xlsx, or as UTF-8 with a byte order mark (in Excel: CSV UTF-8), whatever reports.encoding is"


@dataclass(frozen=True)
class Metadata:
    """Metadata table, with one row per report or per patient.

    Attributes:
        column: Name of the column with report ids or patients.
        by_report: Whether there is one row per report; otherwise one per patient.
        rows: Values by field, for each report id or patient.
        notes: Remarks on the table, such as hidden rows.
    """

    path: Path
    column: str
    by_report: bool
    rows: dict[str, dict[str, str | None]]
    fields: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def for_reports(self, config: ReportsConfig) -> ReportsConfig:
        """Return the configuration for reading the reports, which may lack the columns that this table provides."""
        columns = {f"{field}_column": getattr(config, f"{field}_column") for field in self.fields}
        return config.model_copy(update={key: OptionalColumn(name) for key, name in columns.items() if name})

    def add(
        self,
        reports: Sequence[RawReport],
        config: ReportsConfig,
        format_name: str,
        notes: list[str],
        problems: list[str],
    ) -> list[RawReport]:
        """Add the fields to the reports; a report keeps its own value where the table has none.

        The number of reports with a row is added to `notes`; unmatched reports and rows, and values that differ from
        those of the table, are counted in `problems`.

        Args:
            reports: Reports with ids.
            format_name: Format of the reports.

        Raises:
            DataError: No report has a row; the message lists examples of the ids of reports and rows.
        """
        problems += self.notes
        patients = [_patient(report) for report in reports]
        keys = self._report_keys(reports) if self.by_report else self._patient_keys(patients)
        matched = [key in self.rows for key in keys]
        if not any(matched):
            kind = "id" if self.by_report else "group"
            known = [key for key in keys if key]
            raise DataError(
                f"no report has a row; the report {kind}s are {shortlist(known, 3) or 'unknown'}, "
                f"but the column {self.column} contains {shortlist(list(self.rows), 3)}",
                where=self.path,
                fix=self._identification(config, format_name, has_groups=bool(known)),
            )
        unit = "report" if self.by_report else "patient"
        notes.append(
            f"{self.path.name}: joined by {unit} (column {self.column}); "
            f"{counted_of(sum(matched), len(reports), 'report has', 'reports have')} "
            f"a row, {counted_of(len(self.rows.keys() & set(keys)), len(self.rows), 'row matches', 'rows match')} a "
            "report"
        )
        if not all(matched):
            missing = [
                report.report_id or report.where for report, row in zip(reports, matched, strict=True) if not row
            ]
            problems.append(f"{self.path}: no row for {counted(len(missing), 'report')} ({shortlist(missing, 3)})")
        unused = sorted(self.rows.keys() - set(keys))
        if unused:
            problems.append(f"{self.path}: {counted(len(unused), 'row')} without a report ({shortlist(unused, 3)})")
        replaced: dict[str, list[str]] = {}
        added = []
        for report, key in zip(reports, keys, strict=True):
            changes: dict[str, Any] = {
                name: value for name, value in self.rows.get(key, {}).items() if value is not None
            }
            for field, value in changes.items():
                previous = getattr(report, field)
                if previous not in (None, value, *MISSING_VALUES):
                    shown = f"{report.report_id or report.where}: {previous!r} by {value!r}"
                    replaced.setdefault(field, []).append(shown)
            added.append(report._replace(**changes))
        for field, cases in replaced.items():
            reports_with = counted(len(cases), "report has", "reports have")
            listed = shortlist(cases, 3)
            problems.append(f"{self.path}: {reports_with} a different {field}, which is replaced ({listed})")
        return added

    def _identification(self, config: ReportsConfig, format_name: str, *, has_groups: bool) -> str:
        """Return advice if no report has a row."""
        kind = "id" if self.by_report else "group"
        write = f"write the report {kind}s into the column {self.column}"
        is_table = format_name not in ("lines", "texts", "tcga")
        has_ids = config.id_column is not None if is_table else format_name != "lines"
        if has_ids if self.by_report else has_groups:
            fix = write
        elif is_table:
            fix = f"set reports.{kind}_column to the column of the reports that contains their {kind}s"
        else:
            fix = f"save the reports as a table, such as csv, and set reports.{kind}_column to a column with their "
            fix += f"{kind}s; or {write}" if self.by_report else f"{kind}s"
        return fix if self.by_report else fix + _by_report(config, self.column)

    def _report_keys(self, reports: Sequence[RawReport]) -> list[str]:
        """Return the key of each report: its id, or its file name if that is unique; the suffix .txt is optional.

        Ids that occur in no row are also compared as file names: without regard to composed and decomposed (macOS)
        characters, backslashes and the case of the suffix.
        """
        names = Counter(PurePosixPath(report.report_id or "").name for report in reports)
        row_of = _unique_forms(self.rows, _file_form)
        keys = []
        for report in reports:
            report_id = report.report_id or ""
            name = PurePosixPath(report_id).name
            own = (report_id, name) if names[name] == 1 else (report_id,)
            spellings = [spelling for each in own for spelling in (each, f"{each}.txt")]
            spellings += [row_of[form] for form in map(_file_form, own) if form in row_of]
            keys.append(next((spelling for spelling in spellings if spelling in self.rows), report_id))
        return keys

    def _patient_keys(self, patients: Sequence[str]) -> list[str]:
        """Return the key of each report: its patient, in composed or decomposed characters."""
        row_of = _unique_forms(self.rows, _composed)
        keys = [key or "" for key in without_decimals(patients)]
        return [key if key in self.rows else row_of.get(_composed(key), key) for key in keys]


_composed = partial(unicodedata.normalize, "NFC")


def _file_form(name: str) -> str:
    name = _composed(name.replace("\\", "/"))
    return name[:-4] if name.lower().endswith(".txt") else name


def _unique_forms(names: Iterable[str], form: Callable[[str], str]) -> dict[str, str]:
    """Map the normal form of each name to the name, without the forms that several names share."""
    names_of: dict[str, list[str]] = {}
    for name in names:
        names_of.setdefault(form(name), []).append(name)
    return {key: each[0] for key, each in names_of.items() if len(each) == 1}


def read_metadata(config: ReportsConfig) -> Metadata | None:
    """Read the configured metadata table; None if none is configured.

    Rows with the same key and values are merged, such as one row per slide of a patient.

    Raises:
        DataError: The file is missing or malformed, has no key column or none of the configured columns; a key is
            empty; or rows with the same key have different values.
    """
    if config.metadata is None:
        return None
    path = Path(config.metadata)
    if not path.is_file():
        raise DataError(f"no such file; {similar_names(config.metadata)}", where=path, fix="correct reports.metadata")
    table = _read_rows(path, config)
    _check_spelling(table, config, path)
    column, by_report = _key_column(table, config, path)
    columns = {field: getattr(config, f"{field}_column") for field in _FIELDS}
    if by_report and columns["group"] is None and "group" in table.header:
        columns["group"] = "group"
    fields = tuple(field for field in _FIELDS if columns[field] in table.header and (by_report or field != "group"))
    if not fields:
        raise DataError(
            "none of the configured columns exists"
            + ("" if by_report else f", except the column of patients, {column}")
            + f"; the columns are {shortlist(table.header, 10)}",
            where=path,
            fix="set reports.label_column, organ_column, group_column or date_column to one of these columns"
            + ("" if by_report else _by_report(config, column)),
        )
    rows: dict[str, dict[str, str | None]] = {}
    first_lines: dict[str, int] = {}
    parsed = [
        dict(zip(table.header, (_text(cell, path, line) for cell in cells), strict=True))
        for line, cells in zip(table.lines, table.rows, strict=True)
    ]
    keys = [values[column] for values in parsed]
    check_mangled(keys, column, lambda row: f"row {table.lines[row]}", path)
    names = [values[column] if by_report else (leading_patient(values[column]) or values[column]) for values in parsed]
    keys = names if by_report else [key or "" for key in without_decimals(names)]
    for line, values, key in zip(table.lines, parsed, keys, strict=True):
        row = {field: values[columns[field]] or None for field in fields}
        first_line = first_lines.setdefault(key, line)
        if not key or rows.setdefault(key, row) != row:
            raise DataError(
                f"{column} {key!r} occurs twice, with different values" if key else f"empty {column}",
                where=f"{path}, line {line}" if first_line == line else f"{path}, lines {first_line} and {line}",
                fix="write one row per report"
                if by_report
                else "write one row per patient, or set reports.metadata_id_column to the column with report ids",
            )
    misread = find_misread([value for row in rows.values() for value in row.values() if value])
    note = f"{path}: misread characters, such as {shortlist(misread, 3)}; if this table is UTF-8 text, {_SAVE}"
    return Metadata(path, column, by_report, rows, fields, (*table.notes, note) if misread else table.notes)


def _read_rows(path: Path, config: ReportsConfig) -> CsvTable:
    """Read a csv, tsv or xlsx file with a header; files with suffixes of no table are read as csv."""
    format_name = TABLE_FORMATS.get(path.suffix.lower(), "csv")
    if format_name == "xlsx":
        return read_workbook(path, config.metadata_sheet, None, "reports.metadata_sheet")
    if format_name not in DELIMITERS:
        raise DataError(
            f"metadata tables are csv, tsv or xlsx files, not {path.suffix}", where=path, fix="save the table as .csv"
        )
    try:
        return read_csv_table(path, config.encoding, DELIMITERS[format_name])
    except DataError as error:
        if "reports.encoding" not in error.fix:
            raise
        fix = f"{_SAVE}; or, if the reports have the same encoding as this table, {error.fix}"
        raise DataError(error.what, where=error.where, fix=fix) from error


def _check_spelling(table: CsvTable, config: ReportsConfig, path: Path) -> None:
    """Reject a column such as `Report_ID` or `Group` in place of a default column; see `check_column_spelling`."""
    if config.metadata_group_column is not None:
        return
    by_report = config.metadata_id_column is not None or "report_id" in table.header
    fields = ["report_id"] if config.metadata_id_column is None else []
    fields += ["group"] if config.group_column is None or not by_report else []
    configured = {getattr(config, f"{field}_column") for field in _FIELDS}
    present = [name for name in table.header if name not in configured]
    fix = "rename the column, or set reports.metadata_id_column (report ids), reports.group_column or "
    check_column_spelling(
        {name: name for name in fields}, present, path, f"{fix}reports.metadata_group_column (patients)"
    )


def _key_column(table: CsvTable, config: ReportsConfig, path: Path) -> tuple[str, bool]:
    """Return the key column, and whether it contains report ids rather than patients.

    Raises:
        DataError: The configured column does not exist, or none is configured and no default column exists.
    """
    key_columns = {
        "metadata_id_column": config.metadata_id_column,
        "metadata_group_column": config.metadata_group_column,
    }
    for key, column in key_columns.items():
        if column is not None:
            if column not in table.header:
                raise DataError(
                    f"no column {column!r}; the columns are {shortlist(table.header, 20)}",
                    where=path,
                    fix=table.hint((column,)) or f"set reports.{key} to one of these columns",
                )
            return column, key == "metadata_id_column"
    for column, by_report in (("report_id", True), ("group", False)):
        if column in table.header:
            return column, by_report
    if config.tcga_barcodes and table.rows:
        barcodes = [
            name for index, name in enumerate(table.header) if all(leading_patient(row[index]) for row in table.rows)
        ]
        if len(barcodes) == 1:
            return barcodes[0], False
    raise DataError(
        f"neither a report_id column nor a group column; the columns are {shortlist(table.header, 10)}",
        where=path,
        fix=table.hint()
        or "set reports.metadata_id_column or reports.metadata_group_column to the column with report ids or patients",
    )


def _by_report(config: ReportsConfig, column: str) -> str:
    """Return advice to join by report, if only the name or the content of the key column shows that it has patients."""
    if config.metadata_group_column is not None:
        return ""
    return (
        f"; rows are matched by patient (column {column}): if another column contains report ids or file names, set "
        "reports.metadata_id_column to it"
    )


def check_dates(dates: Sequence[str | None], where: str) -> None:
    """Check that all dates are ISO 8601 dates or times; None stands for an unknown date.

    Raises:
        DataError: Some dates are invalid; the message counts and lists them.
    """
    invalid = [date for date in dates if date is not None and not _is_date(date)]
    if invalid:
        listed = shortlist(sorted(set(invalid)), 3)
        raise DataError(
            f"{counted(len(invalid), 'date is', 'dates are')} not in ISO 8601 format: {listed}",
            where=f"{where}, reports.date_column",
            fix="write dates as 2024-05-31",
        )


def parse_date(text: str) -> datetime:
    """Parse an ISO 8601 date or time; times with an offset are converted to UTC, so that all can be compared.

    Raises:
        ValueError: The text is not a date or time.
    """
    date = datetime.fromisoformat(text)
    return date if date.tzinfo is None else date.astimezone(UTC).replace(tzinfo=None)


def _is_date(text: str) -> bool:
    try:
        parse_date(text)
    except (ValueError, OverflowError):
        return False
    return True


def _patient(report: RawReport) -> str:
    """Return the patient of a report: its group, or the TCGA patient in its file name."""
    name = report.group or leading_patient(PurePosixPath(report.report_id or "").name) or ""
    return leading_patient(name) or name


def _text(cell: str, path: Path, line: int) -> str:
    try:
        text = cell_text(cell)
    except ValueError as error:
        raise DataError(f"a cell contains {error}", where=f"{path}, line {line}", fix="correct the cell") from None
    return "" if text in MISSING_VALUES | _TCGA_MISSING else text
