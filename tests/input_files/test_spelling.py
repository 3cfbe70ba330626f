"""Test which names are considered different spellings of the same name."""

import pytest

from clipit.input_files.spelling import format_pairs, spelled_alike, spelled_differently


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Pat-1", "Pat\u20131"),  # an en dash, as inserted by word processors
        ("-1", "\u22121"),
        ("Barrett's", "Barrett\u2019s"),
        ("AC", "\u0410C"),  # a Cyrillic A
        ("P\u04301", "Pa1"),
        ("\u039aI", "KI"),  # a Greek K
        ("\u041d\u0415\u0422", "\u043d\u0435\u0442"),  # a Russian word in upper and lower case
        ("007", "7.0"),
        ("stroma ", "Stroma"),
        ("2019-02-17", "2019-02-17 00:00:00"),  # a date as written by pandas and Excel
        ("2019-02-17T00:00:00.000", "2019-02-17 00:00:00"),
        ("P001", "P-001"),
        ("P_001", "P 1"),
        ("Pat.007", "pat 7"),
        ("site-A_12", "Site-A012"),
        ("S24-00123", "S24-123"),  # an accession number without its leading zeros
        ("S24-123", "s24_00123"),
        ("TCGA_02_0001", "TCGA-02-0001"),
        ("2024/00123", "2024-123"),
        ("B-2019 0007", "B_2019-7"),
        ("case_1_slide_02", "case-1-slide-2"),
        ("P007a", "P7A"),
        ("normal_mucosa", "Normal mucosa"),
    ],
)
def test_spellings_of_one_name(first: str, second: str) -> None:
    assert len(spelled_alike([first, second])) == 1
    assert spelled_differently([first], [second]) == {first: second}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Pat-01", "Pat-10"),
        ("2019-02-17", "2019-02-18"),
        ("TGF-\u03b1", "TGF-a"),
        ("1-2", "12"),
        ("T1a", "T1b"),
        ("2019-02-17", "2019-02-17 00:00:01"),
        ("2019-02-17-A", "2019-02-17-B"),
        ("slide 00:00:00", "slide"),
        ("P-1-2", "P-12"),
        ("P1.2", "P12"),
        ("score -1", "score 1"),
        ("S1-A", "S1A"),
        ("P0", "P"),
        ("S24-123", "S24123"),
        ("S24-123", "S24-1230"),
        ("1.05", "1.5"),  # zeros after a decimal point are not leading zeros
        ("P1.05", "P1.5"),
        ("ER/PR", "ER-PR"),
        ("3+4", "3-4"),
        ("HER2-", "HER2"),
    ],
)
def test_different_names(first: str, second: str) -> None:
    assert not spelled_alike([first, second])
    assert not spelled_differently([first], [second])


def test_prefixes_of_numbers_can_be_compared_with_punctuation() -> None:
    assert spelled_alike(["A1", "A-1", "A01", "a1"], numbered=False) == ["'A1' and 'a1'"]
    assert not spelled_alike(["S24-00123", "S24-123", "S24_123"], numbered=False)


def test_look_alike_letters_are_shown_with_their_code_point() -> None:
    assert spelled_alike(["AC", "\u0410C"]) == ["'AC' and '\u0410C' (\u0410 is U+0410)"]
    assert format_pairs(spelled_differently(["pat-1", "Pat-2"], ["Pat-1", "Pat-2"])) == ["'pat-1' and 'Pat-1'"]
