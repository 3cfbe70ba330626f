"""Read TCGA reports: the TCGA-Reports csv, or text files named by barcode."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, counted, shortlist
from clipit.input_files.folder_files import list_files
from clipit.patients import leading_patient
from clipit.reports.barcodes import read_organs
from clipit.reports.report_tables import csv_reports, read_csv_table
from clipit.reports.textfiles import RawReport, is_text, read_texts, zip_members

ID_COLUMN = "patient_filename"
"""Column of the published csv: barcode and name of the scanned file, joined by a dot."""
CSV = "TCGA_Reports.csv"
"""File name of the published csv."""
_JOINED_ROW = re.compile(r'\n"?(TCGA-\w\w-\w{4}[^,\s]*),')


def read_tcga(path: Path, config: ReportsConfig, problems: list[str]) -> Iterator[RawReport]:
    """Read the TCGA-Reports csv, or a folder or zip of .txt files named by barcode.

    The id is `patient_filename`, or the file's path without .txt; the group is the patient. With
    `reports.cancer_types`, the organ follows from the patient's cancer type; it is unknown for patients not in that
    table.

    Raises:
        DataError: A csv row has no barcode or a repeated id, a folder or zip contains a csv instead of text files, or
            the cancer type table is invalid.
    """
    organ_of = read_organs(Path(config.cancer_types).expanduser()) if config.cancer_types else {}
    unknown: set[str] = set()
    for raw in _read_raw(path, config, problems):
        patient = leading_patient(PurePosixPath(raw.report_id or "").name)
        if not patient:
            if _is_csv(path):
                raise DataError(
                    f"{ID_COLUMN} {raw.report_id!r} does not begin with a TCGA barcode such as TCGA-BP-5195",
                    where=raw.where,
                    fix="correct the row, or read the file with reports.format=csv",
                )
            problems.append(f"{raw.where}: skipped because its name does not begin with a TCGA barcode")
            continue
        if organ_of and patient not in organ_of:
            unknown.add(patient)
        yield raw._replace(organ=organ_of.get(patient), group=patient)
    if unknown:
        problems.append(
            f"{config.cancer_types}: no cancer type for {counted(len(unknown), 'patient')} "
            f"({shortlist(sorted(unknown))}); the organ of their reports is unknown"
        )


def _is_csv(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".csv"


def _read_raw(path: Path, config: ReportsConfig, problems: list[str]) -> Iterator[RawReport]:
    if _is_csv(path):
        return _read_published_csv(path, config)
    if path.is_dir():
        files = list_files(path, lambda file: file.suffix.lower() in (".csv", ".txt")).files
        tables = [file for file in files if file.suffix.lower() == ".csv"]
        if tables and not any(is_text(file.relative_to(path).as_posix()) for file in files):
            table = next((table for table in tables if table.name == CSV), tables[0])
            raise DataError(
                f"the folder contains {table.relative_to(path)} and no .txt file",
                where=path,
                fix=f"set reports.path to the file: {table}",
            )
    elif zipfile.is_zipfile(path):
        names = [name for name in zip_members(path) if name.lower().endswith(".csv")]
        if names:
            raise DataError(
                f"a csv cannot be read from a zip: {names[0]}",
                where=path,
                fix="unpack the zip, and set reports.path to the csv",
            )
    else:
        raise DataError(
            "neither a .csv file nor a zip",
            where=path,
            fix="set reports.path to the TCGA-Reports csv, or to a folder or zip of .txt files",
        )
    return read_texts(path, config.encoding, problems)


def _read_published_csv(path: Path, config: ReportsConfig) -> Iterator[RawReport]:
    """Read the published csv.

    Raises:
        DataError: The column `patient_filename` is missing or repeats a value, or a stray quotation mark joins rows.
    """
    table = read_csv_table(path, config.encoding)
    if ID_COLUMN not in table.header:
        columns = shortlist(table.header, 20) or "none"
        raise DataError(
            f"not the TCGA-Reports csv: no column {ID_COLUMN!r}; the columns are: {columns}",
            where=path,
            fix=table.hint((ID_COLUMN,))
            or f"set reports.path to {CSV} as published, or read this file with reports.format=csv",
        )
    keys = {"id_column": ID_COLUMN, "organ_column": None, "group_column": None}
    where_of: dict[str, str] = {}
    for raw in csv_reports(table, path, config.model_copy(update=keys)):
        if joined := _JOINED_ROW.search(raw.text):
            raise DataError(
                f"this report contains another row of the table, which begins with {joined[1]}",
                where=raw.where,
                fix="remove the stray quotation marks, or double those that belong to the text",
            )
        first = where_of.setdefault(raw.report_id or "", raw.where)
        if first != raw.where:
            raise DataError(
                f"{ID_COLUMN} {raw.report_id!r} occurs twice, but each file is one report",
                where=f"{first} and {raw.where}",
                fix="remove one of the rows, or copy the csv again",
            )
        yield raw
