"""Labels, groups and dates of reports from a separate metadata table."""

import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.reports.readers import read_reports


def texts(folder: Path, *names: str) -> Path:
    """Create a folder with one text file per name."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.txt").write_text(f"Report {name}. Adenocarcinoma.", encoding="utf-8")
    return folder


def table(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_metadata_by_report(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", "a", "b", "c")
    metadata = table(
        tmp_path / "m.csv", "report_id,group,status,signed", "a,P1,mutated,2024-05-31", "b,P2,NA,", "x,P9,wild,"
    )
    config = ReportsConfig(path=str(folder), metadata=metadata, label_column="status", date_column="signed")
    reports = read_reports(config)
    values = [(r.report_id, r.group, r.label, r.date) for r in reports.reports]
    assert values == [("a", "P1", "mutated", "2024-05-31"), ("b", "P2", None, None), ("c", None, None, None)]
    assert any("no row for 1 report (c)" in problem for problem in reports.problems)
    assert any("1 row without a report (x)" in problem for problem in reports.problems)


def test_columns_missing_from_reports_and_metadata_are_an_error(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", "a", "b")
    metadata = table(tmp_path / "m.csv", "report_id,patient,Label", "a,P1,x", "b,P2,y")
    config = ReportsConfig(path=str(folder), metadata=metadata, group_column="patient", label_column="label")
    with pytest.raises(DataError, match=r"does not have these columns: label \(reports.label_column\)"):
        read_reports(config)
    corrected = config.model_copy(update={"label_column": "Label"})
    assert [(each.group, each.label) for each in read_reports(corrected).reports] == [("P1", "x"), ("P2", "y")]


def test_metadata_by_patient_matches_tcga_barcodes_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "reports.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("d/TCGA-AB-1234.0F.txt", "Gleason 3+3.")
        archive.writestr("d/TCGA-AB-1235.0F.txt", "Gleason 4+4.")
    metadata = table(tmp_path / "m.csv", "group,gleason", "tcga-ab-1234-01Z,6", "TCGA-AB-1235,8")
    config = ReportsConfig(path=str(path), format="tcga", metadata=metadata, label_column="gleason")
    reports = read_reports(config).reports
    assert [(r.group, r.label) for r in reports] == [("TCGA-AB-1234", "6"), ("TCGA-AB-1235", "8")]


def test_columns_of_the_reports_are_read_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "A tumour.", "patient": "P1"}) + "\n", encoding="utf-8")
    metadata = table(tmp_path / "m.csv", "group,status", "P1,wild")
    config = ReportsConfig(
        path=str(path), id_column="id", group_column="patient", label_column="status", metadata=metadata
    )
    (report,) = read_reports(config).reports
    assert (report.group, report.label) == ("P1", "wild")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("id,status", "a,x"), "neither a report_id column nor a group column"),
        (("report_id,stage", "a,x"), "none of the configured columns"),
        (("report_id,status", "a,x", "a,y"), "report_id 'a' occurs twice"),
        (
            ("id,group,status", "a,P1,x", "b,P1,y"),
            r"(?s)group 'P1' occurs twice.*or set reports\.metadata_id_column to the column with report ids",
        ),
        (("report_id,status", ",y"), "empty report_id"),
        (("Report_ID,group,status", "a,P1,x"), r"(?s)no column report_id; 'Report_ID' would.*metadata_id_column"),
        (("report_id,Group,status", "a,P1,x"), r"(?s)no column group; 'Group' would.*reports\.group_column"),
        (("report_id,status", "q,y"), "no report has a row; the report ids are a"),
    ],
)
def test_metadata_that_cannot_be_joined_is_an_error(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    folder = texts(tmp_path / "texts", "a")
    config = ReportsConfig(path=str(folder), metadata=table(tmp_path / "m.csv", *lines), label_column="status")
    with pytest.raises(DataError, match=message):
        read_reports(config)


@pytest.mark.parametrize("columns", [{"group_column": "group"}, {"group_column": "group", "organ_column": "organ"}])
def test_reports_without_groups_can_be_joined_by_id_as_the_error_says(tmp_path: Path, columns: dict[str, str]) -> None:
    metadata = table(tmp_path / "m.csv", "name,group,organ", "a,P1,colon", "b,P2,lung")
    config = ReportsConfig.model_validate(
        {"path": str(texts(tmp_path / "t", "a", "b")), "metadata": metadata, **columns}
    )
    with pytest.raises(
        DataError, match=r"fix: .*matched by patient \(column group\).* set reports\.metadata_id_column"
    ):
        read_reports(config)
    by_id = config.model_copy(update={"metadata_id_column": "name"})
    assert [report.group for report in read_reports(by_id).reports] == ["P1", "P2"]


def test_reports_without_ids_cannot_be_joined_by_id(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("report_id,text\na,A tumour.\n", encoding="utf-8")
    metadata = table(tmp_path / "m.csv", "report,status", "a,wild")
    config = ReportsConfig(path=str(path), metadata=metadata, metadata_id_column="report", label_column="status")
    message = r"(?s)the report ids are \w{12}, but the column report contains a.*set reports\.id_column"
    with pytest.raises(DataError, match=message):
        read_reports(config)
    (report,) = read_reports(config.model_copy(update={"id_column": "report_id"})).reports
    assert report.label == "wild"


def test_ids_that_clipit_gave_to_reports_can_be_joined(tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text("A polyp.\n---\nA polyp.\nA tumour.\n", encoding="utf-8")
    ids = [report.report_id for report in read_reports(ReportsConfig(path=str(path))).reports]
    metadata = table(tmp_path / "m.csv", "report_id,status", *(f"{name},s{row}" for row, name in enumerate(ids)))
    config = ReportsConfig(path=str(path), metadata=metadata, label_column="status")
    assert [(each.report_id, each.label) for each in read_reports(config).reports] == [
        (ids[0], "s0"), (f"{ids[0]}-2", "s1"), (ids[2], "s2")
    ]  # fmt: skip
    for lines, kind in ((("report_id,status", "7,x"), "id"), (("group,status", "P1,x"), "group")):
        config = config.model_copy(update={"metadata": table(tmp_path / "m.csv", *lines)})
        with pytest.raises(
            DataError, match=rf"save the reports as a table, such as csv, and set reports\.{kind}_column"
        ):
            read_reports(config)


def test_ids_are_compared_as_file_names(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", "Gru\u0308n", "b")
    (folder / "c.TXT").write_text("A tumour.", encoding="utf-8")
    (folder / "north").mkdir()
    (folder / "north/d.txt").write_text("A polyp.", encoding="utf-8")
    rows = ["Gr\u00fcn,1", "b,2", "c.Txt,3", "north\\d.txt,4"]
    metadata = table(tmp_path / "m.csv", "report_id,status", *rows)
    reports = read_reports(ReportsConfig(path=str(folder), metadata=metadata, label_column="status"))
    assert [report.label for report in reports.reports] == ["1", "2", "3", "4"]
    metadata = table(tmp_path / "m.csv", "report_id,status", *rows, "c.txT,5")  # two rows for one file
    reports = read_reports(ReportsConfig(path=str(folder), metadata=metadata, label_column="status"))
    assert [report.label for report in reports.reports] == ["1", "2", None, "4"]


def test_patients_are_compared_in_composed_characters(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("text,patient\nA tumour.,Gru\u0308n\n", encoding="utf-8")
    metadata = table(tmp_path / "m.csv", "group,status", "Gr\u00fcn,wild")
    config = ReportsConfig(path=str(path), group_column="patient", metadata=metadata, label_column="status")
    assert [report.label for report in read_reports(config).reports] == ["wild"]


def test_a_metadata_table_in_another_encoding_than_the_reports_is_named(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", "a", "b")
    metadata = tmp_path / "m.csv"
    keys = {"path": str(folder), "metadata": str(metadata), "organ_column": "organ"}
    metadata.write_text("report_id,organ\na,L\u00f8ver\nb,\n", encoding="utf-8")
    (problem,) = read_reports(ReportsConfig(**keys, encoding="cp1252")).problems
    assert "m.csv: misread characters, such as \u00c3\u00b8; if this table is UTF-8" in problem
    metadata.write_text("report_id,organ\na,L\u00f8ver\nb,\n", encoding="utf-8-sig")
    reports = read_reports(ReportsConfig(**keys, encoding="cp1252"))
    assert reports.reports[0].organ == "L\u00f8ver" and not reports.problems
    metadata.write_text("report_id,organ\na,L\u00f8ver\nb,\n", encoding="cp1252")
    with pytest.raises(
        DataError, match=r"(?s)m\.csv, line 2.*fix: save it as \.xlsx, or as UTF-8.*same encoding as this"
    ):
        read_reports(ReportsConfig(**keys))
    assert read_reports(ReportsConfig(**keys, encoding="cp1252")).reports[0].organ == "L\u00f8ver"


def test_metadata_id_column_and_file_names_without_folder(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", "a", "b")
    (folder / "deep").mkdir()
    (folder / "a.txt").rename(folder / "deep" / "a.txt")
    metadata = table(tmp_path / "m.tsv", "file\tstatus", "a.txt\twild", "b\tmutated", "c\twild")
    config = ReportsConfig(path=str(folder), metadata=metadata, metadata_id_column="file", label_column="status")
    reports = read_reports(config)
    assert [(r.report_id, r.label) for r in reports.reports] == [("b", "mutated"), ("deep/a", "wild")]
    assert reports.notes == (
        "m.tsv: joined by report (column file); 2 of 2 reports have a row, 2 of 3 rows match a report",
    )
    with pytest.raises(DataError, match=r"no column 'name'; the columns are file, status"):
        read_reports(config.model_copy(update={"metadata_id_column": "name"}))


def test_patients_with_several_reports_and_duplicate_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("patient,text\nP1,A tumour.\nP1,Another tumour.\nP3,Benign.\n", encoding="utf-8")
    metadata = table(tmp_path / "m.csv", "who,slide,status", "P1,s1,wild", "P1,s2,wild", "P2,s3,mutated")
    config = ReportsConfig(
        path=str(path), group_column="patient", metadata=metadata, metadata_group_column="who", label_column="status"
    )
    reports = read_reports(config)
    assert [r.label for r in reports.reports] == ["wild", "wild", None]
    assert "by patient (column who); 2 of 3 reports have a row, 1 of 2 rows matches a report" in reports.notes[0]
    assert any("1 row without a report (P2)" in problem for problem in reports.problems)
    table(tmp_path / "m.csv", "who,slide,status", "P1,s1,wild", "P1,s2,mutated")
    with pytest.raises(DataError, match=r"who 'P1' occurs twice(.|\n)*lines 2 and 3"):
        read_reports(config)


def test_the_only_column_of_barcodes_is_the_patient_column(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", "TCGA-AB-1234.x", "TCGA-AB-1235.x")
    metadata = table(tmp_path / "m.csv", "n,barcode,gleason", "1,TCGA-AB-1234,6", "2,TCGA-AB-1235,[Not Available]")
    config = ReportsConfig(path=str(folder), metadata=metadata, label_column="gleason")
    assert [r.label for r in read_reports(config).reports] == ["6", None]
    with pytest.raises(DataError, match=r"neither a report_id column(.|\n)*metadata_group_column"):
        read_reports(config.model_copy(update={"tcga_barcodes": False}))


REAL = Path(os.environ.get("CLIPIT_TEST_DATA", "absent")) / "reports"


@pytest.mark.skipif(not REAL.is_dir(), reason="set CLIPIT_TEST_DATA to the folder with real reports")
def test_gleason_scores_of_an_xlsx_file_are_joined_with_prostate_reports() -> None:
    config = ReportsConfig(
        path=str(REAL / "tcga_prad_reports_denoised.zip"),
        metadata=str(REAL / "tcga_prad_gleason_labels.xlsx"),
        metadata_sheet="nationwidechildrens.org_clinica",
        metadata_group_column="bcr_patient_barcode",
        label_column="gleason_score",
    )
    reports = read_reports(config)
    scores = Counter(report.label for report in reports.reports)
    assert set(scores) == {"6", "7", "8", "9", "10", None} and scores[None] == 8
    assert "404 of 404 reports have a row, 404 of 500 rows match a report" in reports.notes[1]
    assert any("96 rows without a report (TCGA-EJ-7218" in problem for problem in reports.problems)


def test_missing_file_and_invalid_date(tmp_path: Path) -> None:
    folder = texts(tmp_path / "texts", "a")
    with pytest.raises(DataError, match="no such file"):
        read_reports(ReportsConfig(path=str(folder), metadata=str(tmp_path / "m.csv"), label_column="s"))
    metadata = table(tmp_path / "m.csv", "report_id,signed", "a,31.5.2024")
    with pytest.raises(DataError, match=r"not in ISO 8601 format: 31\.5\.2024"):
        read_reports(ReportsConfig(path=str(folder), metadata=metadata, date_column="signed"))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
def test_a_metadata_table_in_another_format_of_reports_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    rows = pd.DataFrame({"report_id": ["a"], "status": ["wild"]})
    rows.to_parquet(path) if suffix == "parquet" else rows.to_json(path, orient="records", lines=suffix == "jsonl")
    config = ReportsConfig(path=str(texts(tmp_path / "texts", "a")), metadata=str(path), label_column="status")
    with pytest.raises(
        DataError, match=rf"csv, tsv or xlsx files, not \.{suffix}\n(.|\n)*fix: save the table as \.csv"
    ):
        read_reports(config)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "folder"])
def test_metadata_replaces_values_of_reports_and_replacements_are_counted(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": f"S{n}", "text": "Adenoma.", "label": f"old{n}", "organ": "colon"} for n in range(4)]
    path = tmp_path / f"r.{suffix}"
    match suffix:
        case "csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        case "parquet":
            pd.DataFrame(rows).to_parquet(path)
        case "jsonl":
            pd.DataFrame(rows).to_json(path, orient="records", lines=True)
        case _:
            path.mkdir()
            pd.DataFrame(rows).to_csv(path / "r.csv", index=False)
    metadata = table(tmp_path / "m.csv", "report_id,label,signed", "S0,new,2024-01-02", "S1,,2024-01-03", "S2,old2,")
    columns = {"id_column": "id", "label_column": "label", "organ_column": "organ", "date_column": "signed"}
    corpus = read_reports(ReportsConfig(path=str(path), metadata=metadata, **columns))
    assert [report.label for report in corpus.reports] == ["new", "old1", "old2", "old3"]
    assert [(report.organ, report.date) for report in corpus.reports] == [
        ("colon", "2024-01-02"),
        ("colon", "2024-01-03"),
        ("colon", None),
        ("colon", None),
    ]
    replaced = [problem for problem in corpus.problems if "replaced" in problem]
    assert replaced == [f"{metadata}: 1 report has a different label, which is replaced (S0: 'old0' by 'new')"]
    with pytest.raises(DataError, match="no column 'site'"):
        read_reports(ReportsConfig(path=str(path), metadata=metadata, **{**columns, "organ_column": "site"}))
