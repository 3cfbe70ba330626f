"""TCGA reports: the csv of TCGA-Reports, or texts named by barcode; patient as group, organ by cancer type."""

import csv
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, shortlist
from clipit.reports.tables import read_csv
from clipit.reports.textfiles import Row, codec, decoding, read_texts

ID_COLUMN = "patient_filename"
"""Column of the published csv: the barcode, a dot, and the name of the scanned file."""
CSV = "TCGA_Reports.csv"
"""Name of the published csv."""
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
"""TCGA project code without `TCGA-` -> organ of the primary tumour.

Two codes have no single organ: DLBC (lymphoma, mostly of lymph nodes) and SARC (soft tissue of any place).
"""
_BARCODE = re.compile(r"(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])", re.IGNORECASE)


def patient_of(name: str) -> str | None:
    """Patient barcode (`TCGA-BP-5195`) at the beginning of a name; None: there is none."""
    found = _BARCODE.match(name)
    return found[1].upper() if found else None


def read_tcga(path: Path, config: ReportsConfig, problems: list[str]) -> Iterator[Row]:
    """Reports of TCGA-Reports' csv, or of a folder or zip of .txt files named by barcode.

    The id is `patient_filename`, or the file's path without .txt; the group is the patient. The organ follows from
    the patient's cancer type when `reports.cancer_types` names the table; patients that it lacks have no organ.

    Raises:
        DataError: A csv row without a barcode or with the id of another, a zip or folder that holds the csv, or a
            table of cancer types that makes no sense.
    """
    organ_of = _organs(Path(config.cancer_types).expanduser()) if config.cancer_types else {}
    unknown: set[str] = set()
    for row in _rows(path, config, problems):
        patient = patient_of(PurePosixPath(row.report_id or "").name)
        if patient is None:
            if path.is_file() and path.suffix.lower() == ".csv":
                raise DataError(
                    f"{ID_COLUMN} {row.report_id!r} does not begin with a TCGA barcode such as TCGA-BP-5195",
                    where=row.where,
                    fix="correct the row, or read the file with reports.format: csv",
                )
            problems.append(f"{row.where}: passed over, the name does not begin with a TCGA barcode")
            continue
        if organ_of and patient not in organ_of:
            unknown.add(patient)
        yield row._replace(organ=organ_of.get(patient), group=patient)
    if unknown:
        problems.append(
            f"{config.cancer_types}: no cancer type for {len(unknown)} patients ({shortlist(sorted(unknown))}); "
            "their reports have no organ"
        )


def _rows(path: Path, config: ReportsConfig, problems: list[str]) -> Iterator[Row]:
    if path.is_file() and path.suffix.lower() == ".csv":
        columns = {"id_column": ID_COLUMN, "organ_column": None, "group_column": None}
        return _once_each(read_csv(path, config.model_copy(update=columns), ","), path, config.encoding)
    if path.is_dir():
        beside = sorted(path.glob("*.csv"))
        if beside and not any(path.rglob("*.txt")):
            named = next((table for table in beside if table.name == CSV), beside[0])
            raise DataError(
                f"the folder holds {named.name}, and no .txt", where=path, fix=f"give reports.path the file: {named}"
            )
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            tables = [name for name in archive.namelist() if name.lower().endswith(".csv")]
        if tables:
            raise DataError(
                f"the zip holds {tables[0]}", where=path, fix="unpack it and give reports.path the csv that it holds"
            )
    elif path.is_file():
        raise DataError(
            "neither a .csv nor a zip", where=path, fix="give the csv of TCGA-Reports, or a folder or zip of .txt"
        )
    return read_texts(path, config.encoding, problems)


def _once_each(rows: Iterator[Row], path: Path, encoding: str) -> Iterator[Row]:
    """The rows of the csv, each id once.

    Raises:
        DataError: It has no column `patient_filename`, or one of its values twice.
    """
    with decoding(path, encoding), path.open(encoding=codec(encoding), newline="") as stream:
        header = next(csv.reader(stream), [])
    if ID_COLUMN not in header:
        raise DataError(
            f"not the csv of TCGA-Reports: no column {ID_COLUMN!r}; the columns are: {', '.join(header) or 'none'}",
            where=path,
            fix=f"give reports.path {CSV} as published, or read this file with reports.format: csv",
        )
    seen: dict[str, str] = {}  # id -> where
    for row in rows:
        first = seen.setdefault(row.report_id or "", row.where)
        if first != row.where:
            raise DataError(
                f"{ID_COLUMN} {row.report_id!r} stands there twice: a file is one report",
                where=f"{first} and {row.where}",
                fix="remove one of the rows, or copy the csv again",
            )
        yield row


def _organs(path: Path) -> dict[str, str]:
    """Patient -> organ, from a csv with the columns patient_id and cancer_type.

    Raises:
        DataError: It is missing, has other columns, a cancer type that is not TCGA's, or two for one patient.
    """
    fix = "give reports.cancer_types the file tcga_patient_to_cancer_type.csv of TCGA-Reports"
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the cancer types cannot be read: {error}", where=path, fix=fix) from error
    if not {"patient_id", "cancer_type"} <= set(columns):
        raise DataError(
            f"expected the columns patient_id and cancer_type, found {', '.join(columns)}", where=path, fix=fix
        )
    organ_of: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        patient = patient_of(row["patient_id"] or "")
        code = (row["cancer_type"] or "").upper().removeprefix("TCGA-")
        if patient is None or code not in ORGANS:
            raise DataError(
                f"{row['patient_id']!r} with cancer type {row['cancer_type']!r}: no TCGA patient or project code",
                where=f"{path}, line {line}",
                fix=f"correct the row; the codes are {', '.join(ORGANS)}",
            )
        if organ_of.setdefault(patient, ORGANS[code]) != ORGANS[code]:
            raise DataError(f"two organs for {patient}", where=f"{path}, line {line}", fix="keep one row")
    return organ_of
