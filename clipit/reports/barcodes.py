"""Patients and organs from TCGA barcodes in the file names or table rows of reports."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clipit.config.run import ReportsConfig
from clipit.errors import DataError, counted, shortlist
from clipit.input_files.csv_tables import read_utf8_csv
from clipit.patients import all_patients_in, leading_patient
from clipit.reports.textfiles import RawReport

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
_PROJECT = re.compile(rf"(?<![A-Z0-9])TCGA-({'|'.join(ORGANS)})(?![A-Z0-9-])", re.IGNORECASE)
_PROJECT_COLUMNS = frozenset({"project", "project_id", "cancer_type", "study"})
_MAX_NAME_LENGTH = 300  # maximum length of a cell that may be a name or path; longer cells contain report text


def tcga_names(cells: Mapping[str, Any], text_column: str) -> tuple[str, ...]:
    """Select the cells of a row that contain a TCGA barcode or project.

    A project is written `TCGA-COAD`, or `COAD` in a column named project, project_id, cancer_type or study.
    """
    names = []
    for column, value in cells.items():
        if column == text_column or not isinstance(value, str) or len(value) > _MAX_NAME_LENGTH:
            continue
        if column.lower() in _PROJECT_COLUMNS and value.strip().upper() in ORGANS:
            names.append(f"TCGA-{value.strip()}")
        elif "tcga-" in value.lower():
            names.append(value)
    return tuple(names)


def add_patients(
    reports: Iterable[RawReport], config: ReportsConfig, notes: list[str], problems: list[str]
) -> Iterator[RawReport]:
    """Set the group and organ of reports from the TCGA barcode and project in their id or table row.

    Groups and organs given by the source are kept. Reports with barcodes of several patients get neither a group nor
    an organ, and are counted in `problems`. The numbers of groups and organs that were set are added to `notes`.

    Raises:
        DataError: The cancer type table is invalid.
    """
    organ_of = read_organs(Path(config.cancer_types).expanduser()) if config.cancer_types else {}
    total = n_groups = n_organs = 0
    several: list[str] = []
    unknown: set[str] = set()
    for raw in reports:
        total += 1
        names = " ".join((raw.report_id or "", *raw.names))
        if "tcga-" not in names.lower():
            yield raw
            continue
        patients = all_patients_in(names)
        if len(patients) > 1:
            several.append(raw.report_id or raw.where)
            yield raw
            continue
        patient = next(iter(patients), None)
        projects = {match[1].upper() for match in _PROJECT.finditer(names)}
        organs = {ORGANS[project] for project in projects}
        if patient in organ_of:
            organs = {organ_of[patient]}
        elif organ_of and patient:
            unknown.add(patient)
        organ = next(iter(organs)) if len(organs) == 1 else None
        if patient and raw.group is None:
            raw, n_groups = raw._replace(group=patient), n_groups + 1
        if organ and raw.organ is None:
            raw, n_organs = raw._replace(organ=organ), n_organs + 1
        yield raw
    if n_groups or n_organs:
        notes.append(
            f"group (patient) taken from TCGA barcodes for {n_groups:,} of {counted(total, 'report')}, and organ taken "
            f"from TCGA projects for {n_organs:,}; to disable this, set reports.tcga_barcodes: false"
        )
    if several:
        problems.append(
            f"{counted(len(several), 'report has', 'reports have')} barcodes of several TCGA patients, so no group is "
            f"set ({shortlist(several, 3)})"
        )
    if unknown:
        problems.append(
            f"{config.cancer_types}: no cancer type for {counted(len(unknown), 'patient')} "
            f"({shortlist(sorted(unknown))})"
        )


def read_organs(path: Path) -> dict[str, str]:
    """Read the organ of each patient from a csv file with the columns patient_id and cancer_type.

    Raises:
        DataError: The file is missing or lacks a column; a cancer type is unknown; or a patient has two organs.
    """
    fix = "set reports.cancer_types to the TCGA-Reports file tcga_patient_to_cancer_type.csv"
    try:
        table = read_utf8_csv(path)
    except OSError as error:
        raise DataError(f"cannot read the cancer types: {error}", where=path, fix=fix) from error
    if not {"patient_id", "cancer_type"} <= set(table.header):
        columns = shortlist(table.header, 20)
        raise DataError(
            f"expected the columns patient_id and cancer_type, found {columns}",
            where=path,
            fix=table.hint(("patient_id", "cancer_type")) or fix,
        )
    organ_of: dict[str, str] = {}
    for line, cells in zip(table.lines, table.rows, strict=True):
        row = dict(zip(table.header, map(str.strip, cells), strict=True))
        patient, code = leading_patient(row["patient_id"]), row["cancer_type"].upper().removeprefix("TCGA-")
        if not patient or code not in ORGANS:
            raise DataError(
                f"{row['patient_id']!r} is not a TCGA patient barcode, or {row['cancer_type']!r} is not a cancer type",
                where=f"{path}, line {line}",
                fix=f"correct the row; the cancer types are {', '.join(ORGANS)}",
            )
        if organ_of.setdefault(patient, ORGANS[code]) != ORGANS[code]:
            raise DataError(f"two organs are given for {patient}", where=f"{path}, line {line}", fix="keep one organ")
    return organ_of
