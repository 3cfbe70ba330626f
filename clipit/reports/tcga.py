"""TCGA reports: the csv of TCGA-Reports, or text files named by barcode."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from clipit.config.run import ReportsConfig
from clipit.data_files import delimiter_hint, list_files, read_csv
from clipit.errors import DataError, shortlist
from clipit.reports.tables import csv_reports, read_csv_table
from clipit.reports.textfiles import RawReport, is_text, read_texts, zip_members

ID_COLUMN = "patient_filename"
"""Column of the published csv: barcode, dot, name of the scanned file."""
CSV = "TCGA_Reports.csv"
"""File name of the published csv."""
ORGANS: Mapping[str, str] = {
    "ACC": "adrenal gland",
    "BLCA": "bladder",
    "BRCA": "breast",
    "CESC": "cervix",
    "CHOL": "bile duct",
    "COAD": "colon",
    "DLBC": "lymph node",
    "ESCA": "oesophagus",
    "GBM": "brain",
    "HNSC": "head and neck",
    "KICH": "kidney",
    "KIRC": "kidney",
    "KIRP": "kidney",
    "LAML": "bone marrow",
    "LGG": "brain",
    "LIHC": "liver",
    "LUAD": "lung",
    "LUSC": "lung",
    "MESO": "pleura",
    "OV": "ovary",
    "PAAD": "pancreas",
    "PCPG": "adrenal gland",
    "PRAD": "prostate",
    "READ": "rectum",
    "SARC": "soft tissue",
    "SKCM": "skin",
    "STAD": "stomach",
    "TGCT": "testis",
    "THCA": "thyroid",
    "THYM": "thymus",
    "UCEC": "uterus",
    "UCS": "uterus",
    "UVM": "eye",
}
"""Organ of the primary tumour by TCGA project code, without `TCGA-`.

Two codes have no single organ: DLBC (lymphoma, mostly of lymph nodes) and SARC (soft tissue of any site).
"""
_BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE)


def read_tcga(path: Path, config: ReportsConfig, problems: list[str]) -> Iterator[RawReport]:
    """Read the csv of TCGA-Reports, or a folder or zip of .txt files named by barcode.

    The id is `patient_filename`, or the file's path without .txt; the group is the patient. With
    `reports.cancer_types` the organ is that of the patient's cancer type; patients not in the table have no organ.

    Raises:
        DataError: A csv row has no barcode or a repeated id, a folder or zip contains a csv, or the table of cancer
            types is invalid.
    """
    organ_of = _read_organs(Path(config.cancer_types).expanduser()) if config.cancer_types else {}
    unknown: set[str] = set()
    for raw in _read_raw(path, config, problems):
        patient = patient_of(PurePosixPath(raw.report_id or "").name)
        if patient is None:
            if _is_csv(path):
                raise DataError(
                    f"{ID_COLUMN} {raw.report_id!r} does not begin with a TCGA barcode such as TCGA-BP-5195",
                    where=raw.where,
                    fix="correct the row, or read the file with reports.format: csv",
                )
            problems.append(f"{raw.where}: skipped, its name does not begin with a TCGA barcode")
            continue
        if organ_of and patient not in organ_of:
            unknown.add(patient)
        yield raw._replace(organ=organ_of.get(patient), group=patient)
    if unknown:
        problems.append(
            f"{config.cancer_types}: no cancer type for {len(unknown)} patients ({shortlist(sorted(unknown))}); "
            "their reports have no organ"
        )


def patient_of(name: str) -> str | None:
    """Return the patient barcode (`TCGA-BP-5195`) at the beginning of a name; None without one."""
    match = _BARCODE.match(name)
    return match[1].upper() if match else None


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
            raise DataError(f"the zip contains {names[0]}", where=path, fix="unpack it and set reports.path to the csv")
    else:
        raise DataError(
            "neither a .csv nor a zip",
            where=path,
            fix="set reports.path to the csv of TCGA-Reports, or to a folder or zip of .txt files",
        )
    return read_texts(path, config.encoding, problems)


def _read_published_csv(path: Path, config: ReportsConfig) -> Iterator[RawReport]:
    """Read the published csv.

    Raises:
        DataError: The column `patient_filename` is missing or repeats a value.
    """
    table = read_csv_table(path, config.encoding)
    if ID_COLUMN not in table.header:
        columns = shortlist(table.header, 20) or "none"
        raise DataError(
            f"not the csv of TCGA-Reports: no column {ID_COLUMN!r}; the columns are: {columns}",
            where=path,
            fix=delimiter_hint(table.header)
            or f"set reports.path to {CSV} as published, or read this file with reports.format: csv",
        )
    keys = {"id_column": ID_COLUMN, "organ_column": None, "group_column": None}
    where_of: dict[str, str] = {}
    for raw in csv_reports(table, path, config.model_copy(update=keys)):
        first = where_of.setdefault(raw.report_id or "", raw.where)
        if first != raw.where:
            raise DataError(
                f"{ID_COLUMN} {raw.report_id!r} occurs twice, but a file is one report",
                where=f"{first} and {raw.where}",
                fix="remove one of the rows, or copy the csv again",
            )
        yield raw


def _read_organs(path: Path) -> dict[str, str]:
    """Read the organ of each patient from a csv with the columns patient_id and cancer_type.

    Raises:
        DataError: The file is missing or lacks a column; a cancer type is unknown; or a patient has two organs.
    """
    fix = "set reports.cancer_types to the file tcga_patient_to_cancer_type.csv of TCGA-Reports"
    try:
        table = read_csv(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the cancer types: {error}", where=path, fix=fix) from error
    if not {"patient_id", "cancer_type"} <= set(table.header):
        columns = shortlist(table.header, 20)
        raise DataError(
            f"expected the columns patient_id and cancer_type, found {columns}",
            where=path,
            fix=delimiter_hint(table.header) or fix,
        )
    organ_of: dict[str, str] = {}
    for line, cells in zip(table.lines, table.rows, strict=True):
        row = dict(zip(table.header, cells, strict=True))
        patient, code = patient_of(row["patient_id"]), row["cancer_type"].upper().removeprefix("TCGA-")
        if patient is None or code not in ORGANS:
            raise DataError(
                f"{row['patient_id']!r} with cancer type {row['cancer_type']!r} is no TCGA patient or project code",
                where=f"{path}, line {line}",
                fix=f"correct the row; the codes are {', '.join(ORGANS)}",
            )
        if organ_of.setdefault(patient, ORGANS[code]) != ORGANS[code]:
            raise DataError(f"two organs for {patient}", where=f"{path}, line {line}", fix="keep one row")
    return organ_of
