"""Reports exported by other programs: patients as decimals, misread UTF-8, escape sequences, truncated texts."""

import json
import time
from pathlib import Path

import pandas as pd
import pytest

from clipit.config.run import ReportsConfig
from clipit.errors import DataError
from clipit.input_files.data_files import without_decimals
from clipit.reports.encodings import describe_controls, describe_replaced, describe_surrogates, describe_unknown_symbols
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
    assert problem.startswith("1 report contains characters such as Ã¤: another program has misread UTF-8")


@pytest.mark.parametrize(
    ("length", "count", "detected"), [(4000, 1, True), (300, 3, True), (300, 2, False), (90, 5, False)]
)
def test_truncated_reports_of_equal_length_are_a_problem(
    tmp_path: Path, length: int, count: int, detected: bool
) -> None:
    texts = [f"Report {number}. " + "Sections show glands and stroma. " * 200 for number in range(count)]
    rows = [text[: length - 1] + "x" for text in texts]
    (tmp_path / "r.csv").write_text("text\nAdenoma of the colon.\n" + "\n".join(rows) + "\n")
    problems = read_reports(ReportsConfig(path=str(tmp_path / "r.csv"))).problems
    listed = [problem for problem in problems if "truncated" in problem]
    assert len(listed) == detected
    if detected:
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


def test_xml_documents_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text('<?xml version="1.0"?><ClinicalDocument><text>Adenoma</text></ClinicalDocument>\n')
    with pytest.raises(DataError, match="an XML document, not plain text"):
        read_reports(ReportsConfig(path=str(tmp_path / "r.txt")))


def test_replacement_characters_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("Mucosa \ufffdber dem Pr\ufffdparat.\nSkin nevus.\n", encoding="utf-8")
    [problem] = read_reports(ReportsConfig(path=str(tmp_path / "r.txt"))).problems
    assert problem.startswith("1 report contains replacement characters (U+FFFD) such as \ufffdber: ")


def test_lone_surrogates_are_a_problem(tmp_path: Path) -> None:
    """Decoding with errors="surrogateescape" produces lone surrogates."""
    texts = ["Mucosa \udcfcber dem Pr\udce4parat.", "Skin nevus \ud83d", "Polyp \U0001f600."]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    [problem] = read_reports(ReportsConfig(path=str(tmp_path / "r.jsonl"))).problems
    assert problem.startswith("2 reports contain lone surrogates, which stand for no letter, such as \\udcfcber, ")


def test_control_characters_of_a_wrong_encoding_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_bytes(b"Tumor \x93benign\x94, 5 \xb5m.\nSkin\x85nevus.\n")
    [problem, _] = read_reports(ReportsConfig(path=str(tmp_path / "r.txt"), encoding="latin-1")).problems[::-1]
    assert problem.startswith("1 report contains control characters such as \\x93benign\\x94,: reports.encoding is")


@pytest.mark.parametrize(
    ("text", "encoding", "hint"),
    [
        ("Tumor, mäßig differenziert, Übergang", "cp1252", "--reports.encoding=cp1252"),
        ("Tumor, mäßig differenziert, Übergang", "cp850", "--reports.encoding=cp850"),
        ('id,text\n007,"Präparat",P1\n', "cp1252", "cp1252 '007,\"Präparat\",P1'"),
        ("Rak średnio zróżnicowany, naciekający ścianę", "cp1250", "--reports.encoding=cp1250"),
        ("a segment of 45 µm – “note”", "cp1252", "cp1252 'note' (Western Europe), cp850"),  # noqa: RUF001
        ("Znamię skóry", "cp1250", "cp1252 'Znamiê' (Western Europe), cp1250 'Znamię' (Central Europe)"),
        ("Опухоль толстой кишки", "cp1251", "cp1251 'Опухоль' (Cyrillic)"),
        ("Dokuda değişiklik görüldü, ışık", "cp1254", "cp1254 'değişiklik' (Turkish)"),  # noqa: RUF001
        ("胃腺癌，中分化", "gb2312", "gb18030 '胃腺癌，中分化' (Chinese), cp949"),  # noqa: RUF001
        ("Węzły chłonne są wolne, żołądek", "cp852", "--reports.encoding=cp852"),
        ("Węzły chłonne są wolne, źle", "iso8859_2", "iso8859_2 'są'"),
        ("Опухоль толстой кишки", "koi8_r", "koi8_r"),
        ("Опухоль толстой кишки", "cp866", "cp866"),
        ("Опухоль толстой кишки", "iso8859_5", "iso8859_5"),
        ("Άφθονη βλέννη", "iso8859_7", "iso8859_7 'Άφθονη' (Greek)"),
        ("中分化腺癌浸潤肌層", "big5", "big5"),
        ("リンパ節転移なし", "euc_jp", "euc_jp 'リンパ節転移なし' (Japanese)"),
        ("Reste bénin — “café”", "utf-8", "--reports.encoding=utf-8"),
    ],
)
def test_the_suggested_encoding_keeps_all_letters(tmp_path: Path, text: str, encoding: str, hint: str) -> None:
    (tmp_path / "r.txt").write_bytes(f"{text}\nAdenoma\n".encode(encoding))
    with pytest.raises(DataError) as error:
        read_reports(ReportsConfig(path=str(tmp_path / "r.txt"), encoding="utf-8" if encoding != "utf-8" else "ascii"))
    assert hint in error.value.fix
    assert "latin-1" not in error.value.fix


def test_a_stray_quotation_mark_in_the_first_column(tmp_path: Path) -> None:
    rows = 'text,id\n"Skin nevus,A\nColon polyp,B\nLung 3",C\n"Tumor 1,5 cm\nbenign",D\n"Skin, arm\nNevus",E\n'
    (tmp_path / "r.csv").write_text(rows)
    [problem] = read_reports(ReportsConfig(path=str(tmp_path / "r.csv"), id_column="id")).problems
    assert "line 2: this report spans several lines that look like rows" in problem
    (tmp_path / "r.csv").write_text('text\n"Skin nevus\nColon polyp"\n')
    assert not read_reports(ReportsConfig(path=str(tmp_path / "r.csv"))).problems


def test_a_repeated_header_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("id,text\n1,Adenoma\n\ufeffid,text\n2,Nevus\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"repeats the header.*\n.*line 3\n.*remove the row"):
        read_reports(ReportsConfig(path=str(tmp_path / "r.csv")))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("S1\tP1\tAdenoma\nS2\tP2\tNevus\nS3\tP3\tMelanoma\n", r"every line contains 2 tabs(.|\n)*format to tsv"),
        ('id,text\n1,"Adenocarcinoma,\nwell differentiated"\n', r"the header of a table(.|\n)*format to csv"),
        ("CASE_ID;REPORT\n1;Adenoma\n", r"the header of a table(.|\n)*format to csv"),
        ("patient\ttext\n1\tAdenoma\n", r"the header of a table(.|\n)*format to tsv"),
        ("id|text\n1|Adenoma\n", r"the header of a table(.|\n)*save the table as comma-separated"),
        ('{"id": 1, "text": "Adenoma"}\n{"id": 2, "text": "Nevus"}\n', r"a JSON object(.|\n)*format to jsonl"),
        ('[{"id": 1, "text": "Adenoma"},\n{"id": 2, "text": "Nevus"}]\n', r"a JSON object(.|\n)*format to jsonl"),
    ],
)
def test_tables_in_txt_files_are_errors(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        read_reports(ReportsConfig(path=str(tmp_path / "r.txt")))
    if "tabs" not in message:
        with pytest.raises(DataError, match=message):
            read_reports(ReportsConfig(path=str(tmp_path)))


def test_texts_that_resemble_tables_are_read(tmp_path: Path) -> None:
    lines = [
        "Skin, arm, benign nevus",
        "Site:\tcolon",
        "{Addendum} Adenoma",
        "[1] Polyp",
        "report, final",
        "ID\tS24123",
    ]
    (tmp_path / "r.txt").write_text("\n".join(lines))
    assert [report.text for report in read_reports(ReportsConfig(path=str(tmp_path / "r.txt"))).reports] == lines
    for line in lines:
        (tmp_path / "r.txt").write_text(line)
        assert len(read_reports(ReportsConfig(path=str(tmp_path))).reports) == 1


def test_search_for_undecodable_characters_takes_linear_time_in_long_words() -> None:
    for describe, character in (
        (describe_replaced, "\ufffd"),
        (describe_surrogates, "\udcfc"),
        (describe_controls, "\x93"),
        (describe_unknown_symbols, "\ue123"),
    ):
        texts = ["a" * 400_000, "a" * 30 + character]
        start = time.process_time()
        assert describe(texts).startswith("1 report contains")
        assert time.process_time() - start < 5, "quadratic time would take minutes"


def test_symbols_of_unknown_fonts_are_counted(tmp_path: Path) -> None:
    texts = ["Margin \uf03e 10 mm, \uf062-catenin positive", "Score \ue123 of the tumour", "No tumour"]
    (tmp_path / "r.txt").write_text("\n".join(texts), encoding="utf-8")
    (problem,) = read_reports(ReportsConfig(path=str(tmp_path / "r.txt"))).problems
    assert problem.startswith("1 report contains private-use characters, which are dropped, such as \\ue123")


def test_report_of_private_use_characters_is_not_empty(tmp_path: Path) -> None:
    text = "Adenocarcinoma of the colon"
    (tmp_path / "r.txt").write_text("".join(chr(0xF000 + ord(char)) for char in text), encoding="utf-8")
    corpus = read_reports(ReportsConfig(path=str(tmp_path / "r.txt")))
    assert [report.text for report in corpus.reports] == [text] and not corpus.problems
