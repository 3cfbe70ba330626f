"""TCGA reports: the published csv file and folders of texts."""

import csv
import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.patients import leading_patient
from clipit.reports.barcodes import ORGANS
from clipit.reports.readers import read_reports
from clipit.reports.tcga import CSV

REAL = Path(os.environ.get("CLIPIT_TEST_DATA", "absent")) / "reports"
KIDNEY = "TCGA-BP-5195.25c0b433-5557-4165-922e-2c1eac9c26f0"


def config(path: Path, **more: object) -> ReportsConfig:
    return ReportsConfig.model_validate({"path": str(path), "format": "tcga", **more})


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Table in the format of TCGA_Reports.csv: barcodes with scan names, and multi-line texts."""
    path = tmp_path / "TCGA_Reports.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("patient_filename", "text"))
        writer.writerow((KIDNEY, 'Diagnosis: "clear cell" carcinoma,\ngrade 2.'))
        writer.writerow(("TCGA-D7-8573.4F5C1A51-0000-4165-922E-2C1EAC9C26F0", "Stomach, adenocarcinoma."))
        writer.writerow(("TCGA-D7-8573.AAAA1A51-0000-4165-922E-2C1EAC9C26F0", "Addendum."))
        writer.writerow(("TCGA-ZZ-0001.00000000-0000-0000-0000-000000000000", "Unknown project."))
    return path


@pytest.fixture
def types(tmp_path: Path) -> Path:
    path = tmp_path / "tcga_patient_to_cancer_type.csv"
    path.write_bytes(b"patient_id, cancer_type\r\nTCGA-BP-5195, KIRC\r\nTCGA-D7-8573,STAD")
    return path


def test_the_published_csv(published: Path, types: Path) -> None:
    reports = read_reports(config(published, cancer_types=str(types)))
    first = reports.reports[0]
    assert first.report_id == KIDNEY
    assert first.text == 'Diagnosis: "clear cell" carcinoma,\ngrade 2.'
    assert [(report.group, report.organ) for report in reports.reports] == [
        ("TCGA-BP-5195", "kidney"),
        ("TCGA-D7-8573", "stomach"),
        ("TCGA-D7-8573", "stomach"),
        ("TCGA-ZZ-0001", None),
    ]
    assert any("no cancer type for 1 patient (TCGA-ZZ-0001)" in problem for problem in reports.problems)


def test_without_cancer_types_reports_have_groups_but_no_organs(published: Path) -> None:
    reports = read_reports(config(published))
    assert {report.organ for report in reports.reports} == {None}
    assert len({report.group for report in reports.reports}) == 3
    with pytest.raises(
        DataError, match=r"(?s)no report has the organ stomach; organs in the corpus: unknown.*reports.cancer_types"
    ):
        read_reports(config(published, organs=("stomach",)))


def test_filter_by_organ(published: Path, types: Path) -> None:
    reports = read_reports(config(published, cancer_types=str(types), organs=("stomach",)))
    assert {report.group for report in reports.reports} == {"TCGA-D7-8573"}
    assert any("dropped 2 reports with other or unknown organs" in problem for problem in reports.problems)
    assert len(read_reports(config(published, cancer_types=str(types), organs=(" Stomach",))).reports) == 2
    with pytest.raises(DataError, match="no report has the organ lung; organs in the corpus: kidney, stomach"):
        read_reports(config(published, cancer_types=str(types), organs=("stomach", "lung")))


def test_texts_named_by_barcode(tmp_path: Path, types: Path) -> None:
    folder = tmp_path / "texts" / "part"
    folder.mkdir(parents=True)
    (folder / f"{KIDNEY}.pdf.txt").write_text("Kidney.")
    (folder / "tcga-d7-8573-01Z.txt").write_text("Stomach.")
    (folder / "README.txt").write_text("About these files.")
    reports = read_reports(config(tmp_path / "texts", cancer_types=str(types)))
    assert [(report.report_id, report.group, report.organ) for report in reports.reports] == [
        (f"part/{KIDNEY}.pdf", "TCGA-BP-5195", "kidney"),
        ("part/tcga-d7-8573-01Z", "TCGA-D7-8573", "stomach"),
    ]
    assert any("README.txt: skipped because its name does not begin with" in problem for problem in reports.problems)


def test_invalid_input_is_an_error(tmp_path: Path, published: Path, types: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("patient_filename,text\nBP-5195.x,text\n")
    with pytest.raises(DataError, match=r"(?s)'BP-5195.x' does not begin with a TCGA barcode.*line 2"):
        read_reports(config(wrong))
    wrong.write_text("name,text\nTCGA-BP-5195,text\n")
    with pytest.raises(DataError, match="no column 'patient_filename'"):
        read_reports(config(wrong))
    packed = tmp_path / "TCGA_Reports.csv.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(published, "TCGA_Reports.csv")
    with pytest.raises(DataError, match=r"(?s)a csv cannot be read from a zip: TCGA_Reports.csv.*unpack the zip"):
        read_reports(config(packed))
    packed.write_bytes(packed.read_bytes().replace(b"PK\1\2", b"PK\1\3"))
    with pytest.raises(DataError, match=r"(?s)cannot read this zip file: .*TCGA_Reports\.csv\.zip"):
        read_reports(config(packed))
    (tmp_path / "a.txt").write_text("one report")
    with pytest.raises(DataError, match=r"neither a \.csv file nor a zip"):
        read_reports(config(tmp_path / "a.txt"))
    with pytest.raises(ValidationError, match="cancer_types requires format=tcga or tcga_barcodes"):
        ReportsConfig(path="x.csv", cancer_types=str(types), tcga_barcodes=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("patient,type\nTCGA-BP-5195,KIRC\n", "expected the columns patient_id and cancer_type, found patient, type"),
        ("patient_id,cancer_type\nTCGA-BP-5195,KIDNEY\n", r"(?s)'KIDNEY' is not a cancer type.*line 2"),
        ("patient_id,cancer_type\nBP-5195,KIRC\n", "'BP-5195' is not a TCGA patient barcode"),
        ("patient_id,cancer_type\nTCGA-BP-5195,KIRC\nTCGA-BP-5195,LUAD\n", "two organs are given for TCGA-BP-5195"),
        (None, "cannot read the cancer types"),
    ],
)
def test_invalid_cancer_types_are_an_error(published: Path, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "types.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_reports(config(published, cancer_types=str(path)))


def test_barcodes() -> None:
    assert leading_patient("TCGA-BP-5195-01Z-00-DX1.ABC") == "TCGA-BP-5195"
    assert leading_patient("tcga-a8-a08b.x") == "TCGA-A8-A08B"
    assert leading_patient("TCGA-BP-51955.x") == ""
    assert leading_patient("my TCGA-BP-5195") == ""


needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="set CLIPIT_TEST_DATA to the folder with real reports")


@needs_real
def test_real_prostate_reports() -> None:
    types = REAL / "tcga_patient_to_cancer_type.csv"
    reports = read_reports(config(REAL / "tcga_prad_reports_denoised.zip", cancer_types=str(types)))
    organs = Counter(report.organ for report in reports.reports)
    assert len(reports.reports) == 404
    assert organs.most_common(1)[0][0] == "prostate" and organs["prostate"] > 395
    assert all(report.group and report.group.startswith("TCGA-") for report in reports.reports)


@needs_real
def test_real_cancer_types_are_all_known(tmp_path: Path) -> None:
    with (REAL / "tcga_patient_to_cancer_type.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["cancer_type"] for row in rows} == set(ORGANS)
    path = tmp_path / "all.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("patient_filename", "text")] + [(row["patient_id"] + ".x", "a") for row in rows])
    reports = read_reports(config(path, cancer_types=str(REAL / "tcga_patient_to_cancer_type.csv")))
    counts = Counter(report.organ for report in reports.reports)
    assert len(reports.reports) == 11_160
    assert (counts["kidney"], counts["prostate"], counts["brain"]) == (941, 500, 1_111)


def test_other_csv_files_are_recognised_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("id,text\na,b\n")
    with pytest.raises(DataError, match=r"(?s)no column 'patient_filename'; the columns are: id, text.*TCGA_Reports"):
        read_reports(config(tmp_path / "other.csv"))


def test_duplicate_rows_are_an_error(published: Path) -> None:
    with published.open("a", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerow((KIDNEY, "Another text."))
    with pytest.raises(DataError, match=rf"(?s)patient_filename '{KIDNEY}' occurs twice.*line 2 and .*line 7") as e:
        read_reports(config(published))
    assert "id_column" not in str(e.value)


def test_the_folder_of_the_csv_is_an_error_that_names_the_file(published: Path, types: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)the folder contains TCGA_Reports.csv.*the file: .*/TCGA_Reports.csv"):
        read_reports(config(published.parent))


def test_malformed_csv_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / CSV
    path.write_text(f'patient_filename,text\n{KIDNEY},"Kidney\nTCGA-D7-8573.x,Stomach\n')
    with pytest.raises(DataError, match="malformed row"):
        read_reports(config(path))
    path.write_text(f'patient_filename,text\n"{KIDNEY},a\nTCGA-D7-8573.x",b\n')
    with pytest.raises(DataError, match=r"column 'patient_filename' contains a line break"):
        read_reports(config(path))
    path.write_text('"patient_filename,text\n' + "a" * 200_000)
    with pytest.raises(DataError, match="malformed row"):
        read_reports(config(path))


@pytest.mark.parametrize(
    ("first", "hint"),
    [("patient_filename\ttext", "one column that contains tabs"), ("sep=;", "first line declares a delim")],
)
def test_other_delimiters_are_an_error(tmp_path: Path, first: str, hint: str) -> None:
    path = tmp_path / CSV
    path.write_text(f"{first}\n{KIDNEY};Kidney\n")
    with pytest.raises(DataError, match=hint):
        read_reports(config(path))


def test_zip_members_with_backslashes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr(f"part\\{KIDNEY}.txt", "Kidney.")
    (report,) = read_reports(config(tmp_path / "texts.zip")).reports
    assert (report.report_id, report.group) == (f"part/{KIDNEY}", "TCGA-BP-5195")


def test_linked_folders_of_texts(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / f"{KIDNEY}.TXT").write_text("Kidney.")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.csv").write_text("a,b\n")
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "outside")
    assert [r.report_id for r in read_reports(config(tmp_path / "texts")).reports] == [f"linked/{KIDNEY}"]


def test_a_stray_quotation_mark_does_not_merge_reports(tmp_path: Path) -> None:
    lines = ["patient_filename,text", *(f"TCGA-AA-{i:04}.file-{i},Colon adenocarcinoma {i}." for i in range(40))]
    lines[3] = lines[3].replace(",Colon", ',"Colon')
    lines[18] += '"'
    (tmp_path / "r.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"(?s)contains another row .* begins with TCGA-AA-0003\.file-3.*line 4"):
        read_reports(ReportsConfig(path=str(tmp_path / "r.csv"), format="tcga"))
