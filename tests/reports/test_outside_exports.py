"""Reports as other programs export them: patients as decimals, misread UTF-8, escape sequences, truncated texts."""

from pathlib import Path

import pandas as pd
import pytest

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.input_files.data_files import without_decimals
from clipit.reports.readers import read_reports


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (["1.0", "12.0", ""], ["1", "12", ""]),
        (["1.0", None], ["1", None]),
        (["1.0", "1.5"], ["1.0", "1.5"]),
        (["1.0", "p2"], ["1.0", "p2"]),
        (["1", "2"], ["1", "2"]),
        (["", None], ["", None]),
    ],
)
def test_whole_numbers_written_as_decimals(values: list[str | None], read: list[str | None]) -> None:
    assert without_decimals(values) == read


def test_patients_beside_an_empty_cell_are_whole_numbers(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": [f"Gland {i} is benign." for i in range(3)], "patient": [7, None, 12]})
    table.to_csv(tmp_path / "r.csv", index=False)
    table.to_parquet(tmp_path / "r.parquet")
    assert "7.0" in (tmp_path / "r.csv").read_text()
    for name in ("r.csv", "r.parquet"):
        reports = read_reports(ReportsConfig(path=str(tmp_path / name), group_column="patient"))
        assert [report.group for report in reports.reports] == ["7", None, "12"]


def test_metadata_by_patient_joins_decimals_with_whole_numbers(tmp_path: Path) -> None:
    pd.DataFrame({"text": ["Gland one is benign.", "Gland two is not."], "patient": [7, 12]}).to_csv(
        tmp_path / "r.csv", index=False
    )
    pd.DataFrame({"group": [7.0, 12.0], "organ": ["colon", "skin"]}).to_csv(tmp_path / "m.csv", index=False)
    config = ReportsConfig(
        path=str(tmp_path / "r.csv"), group_column="patient", organ_column="organ", metadata=str(tmp_path / "m.csv")
    )
    assert [report.organ for report in read_reports(config).reports] == ["colon", "skin"]


def test_misread_utf8_is_a_problem(tmp_path: Path) -> None:
    right = "mäßig differenziertes „Adenom“ des Dünndarms"
    wrong = right.encode().decode("cp1252", "replace")
    (tmp_path / "r.txt").write_text(f"{right}\n{wrong}\nÂge de l'arbre\n", encoding="utf-8")
    (problem,) = read_reports(ReportsConfig(path=str(tmp_path / "r.txt"))).problems
    assert problem.startswith("1 report contains characters such as Ã¤: UTF-8 that another program misread")


@pytest.mark.parametrize(
    ("length", "count", "found"), [(4000, 1, True), (300, 3, True), (300, 2, False), (90, 5, False)]
)
def test_reports_of_one_length_that_end_within_a_sentence_are_a_problem(
    tmp_path: Path, length: int, count: int, found: bool
) -> None:
    texts = [f"Report {number}. " + "Sections show glands and stroma. " * 200 for number in range(count)]
    rows = [text[: length - 1] + "x" for text in texts]
    (tmp_path / "r.csv").write_text("text\nAdenoma of the colon.\n" + "\n".join(rows) + "\n")
    problems = read_reports(ReportsConfig(path=str(tmp_path / "r.csv"))).problems
    listed = [problem for problem in problems if "truncated" in problem]
    assert len(listed) == found
    if found:
        assert listed[0].startswith(f"{count} report")
        assert f"{length:,} characters" in listed[0]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("DIAGNOSIS:\\.br\\Adenoma of the colon", "\\.br\\"),
        ("Adenoma\\X0D0A\\of the colon", "\\X0D0A\\"),
        ("Adenoma \\u2265 5 mm", "\\u2265"),
        ("Adenoma with =C3=BClceration", "=C3=BC"),
        ("b'Adenoma of the colon'", "b'"),
    ],
)
def test_escape_sequences_of_other_formats_are_a_problem(tmp_path: Path, text: str, shown: str) -> None:
    (tmp_path / "r.txt").write_text(f"{text}\nAdenoma = 5 mm, see C:\\new\\a.txt\n")
    [problem] = read_reports(ReportsConfig(path=str(tmp_path / "r.txt"))).problems
    assert problem.startswith(f"1 report contains escape sequences such as {shown}:")


def test_an_xml_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text('<?xml version="1.0"?><ClinicalDocument><text>Adenoma</text></ClinicalDocument>\n')
    with pytest.raises(DataError, match="an XML document, not plain text"):
        read_reports(ReportsConfig(path=str(tmp_path / "r.txt")))
