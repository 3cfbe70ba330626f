"""TCGA barcodes in ids, file names and cells of any format."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from clipit.config.run import ReportsConfig
from clipit.reports.readers import Reports, read_reports
from clipit.reports.snippet_summary import SnippetSummary


def read(path: Path, **keys: Any) -> Reports:
    return read_reports(ReportsConfig(path=str(path), **keys))


def groups_and_organs(reports: Reports) -> list[tuple[str | None, str | None]]:
    return [(report.group, report.organ) for report in reports.reports]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "reports.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("TCGA-PRAD/report_TCGA-AB-1234-01Z-00-DX1.txt", "Gleason 3+3.")
        archive.writestr("other/tcga-ab-1235.0F.pdf.txt", "Gleason 4+4.")
        archive.writestr("own/12.txt", "Our report, compared with TCGA-AB-9999.")
    return path


def test_zip_members_yield_patients_and_organs(archive: Path) -> None:
    reports = read(archive)
    assert groups_and_organs(reports) == [("TCGA-AB-1234", "prostate"), ("TCGA-AB-1235", None), (None, None)]
    assert reports.reports[0].report_id == "TCGA-PRAD/report_TCGA-AB-1234-01Z-00-DX1"
    (note,) = reports.notes
    assert (
        "group (patient) taken from TCGA barcodes for 2 of 3 reports" in note
        and "organ taken from TCGA projects for 1;" in note
        and "tcga_barcodes: false" in note
    )
    summary = SnippetSummary(3, 3, 0, 0, {}, 3, {}, 77, {"1-10": 3})
    assert note in summary.text(reports)


def test_a_folder_is_read_like_a_zip(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "unpacked")
    assert read(tmp_path / "unpacked").reports == read(archive).reports


def test_barcodes_can_be_disabled(archive: Path) -> None:
    reports = read(archive, tcga_barcodes=False)
    assert groups_and_organs(reports) == [(None, None)] * 3 and reports.notes == ()


def test_barcodes_in_any_column_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(
        "bcr_patient_barcode,project_id,text\nTCGA-AB-1234-01A,TCGA-COAD,A tumour.\nTCGA-AB-1235,OV,As TCGA-AB-0000.\n"
        ",,A tumour like TCGA-AB-0001.\n"
    )
    assert groups_and_organs(read(path)) == [("TCGA-AB-1234", "colon"), ("TCGA-AB-1235", "ovary"), (None, None)]
    lines = [{"text": "A tumour.", "slide": "TCGA-AB-1234-01A", "n": 3}, {"text": "B.", "slide": None, "n": 4}]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert groups_and_organs(read(tmp_path / "r.jsonl")) == [("TCGA-AB-1234", None), (None, None)]


@pytest.mark.parametrize("form", ["file", "folder", "saved"])
def test_barcodes_in_any_column_of_parquet_files_and_data_sets(tmp_path: Path, form: str) -> None:
    import datasets

    features = datasets.Features(
        {
            "slide": datasets.Value("string"),
            "study": datasets.ClassLabel(names=["LUAD", "PRAD"]),
            "text": datasets.Value("string"),
            "size": datasets.Value("float64"),
        }
    )
    rows = [
        {"slide": "TCGA-XY-0007-01Z-00-DX1", "study": 1, "text": "Acinar carcinoma.", "size": 0.5},
        {"slide": "own slide", "study": -1, "text": "As in TCGA-XY-0008.", "size": None},
    ]
    saved = datasets.Dataset.from_list(rows, features=features)
    path = tmp_path / {"file": "reports.parquet", "folder": "reports", "saved": "reports"}[form]
    if form == "saved":
        saved.save_to_disk(str(path))
    else:
        (tmp_path / "reports").mkdir()
        saved.to_parquet(str(path / "train.parquet" if form == "folder" else path))
    assert groups_and_organs(read(path)) == [("TCGA-XY-0007", "prostate"), (None, None)]
    assert groups_and_organs(read(path, tcga_barcodes=False)) == [(None, None)] * 2


def test_configured_group_and_organ_columns_take_precedence(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("id,patient,organ,text\nTCGA-AB-1234,P1,skin,A tumour.\n")
    reports = read(path, id_column="id", group_column="patient", organ_column="organ")
    assert groups_and_organs(reports) == [("P1", "skin")] and reports.notes == ()


def test_rows_with_barcodes_of_several_patients_have_no_group(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("a,b,text\nTCGA-AB-1234,TCGA-AB-1235,A tumour.\nTCGA-AB-1234,TCGA-AB-1234-01,A tumour.\n")
    reports = read(path)
    assert groups_and_organs(reports) == [(None, None), ("TCGA-AB-1234", None)]
    assert any("1 report has barcodes of several TCGA patients" in problem for problem in reports.problems)


def test_organs_from_cancer_types_in_any_format(archive: Path, tmp_path: Path) -> None:
    types = tmp_path / "types.csv"
    types.write_text("patient_id,cancer_type\nTCGA-AB-1234,KIRC\n")
    reports = read(archive, cancer_types=str(types))
    assert groups_and_organs(reports) == [("TCGA-AB-1234", "kidney"), ("TCGA-AB-1235", None), (None, None)]
    assert any("no cancer type for 1 patient (TCGA-AB-1235)" in problem for problem in reports.problems)
