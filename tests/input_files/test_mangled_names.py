"""Test the detection of names that were changed by a spreadsheet program."""

import pytest

from clipit.errors import DataError
from clipit.input_files.mangled_names import check_mangled, check_rounded, placeholder_notes


def check(names: list[str]) -> None:
    check_mangled(names, "patient", lambda row: f"row {row}", "tiles.csv")


@pytest.mark.parametrize(
    "names",
    [
        ["Pat-01", "Pat-02", "Pat-99", "Pat-100"],
        ["12-Abc", "p1", "p2"],
        ["2019-01-05", "2019-02-17", "2019-02-117"],
        ["2019-13-05", "2019-00-17", "p3"],
        ["2-Sep", "3-Oct"],
        ["01.03.2021", "02.03.2021"],
        ["1.2.3", "1.13.20210", "p4", "4/5"],
        ["1E10", "2E11"],
    ],
)
def test_ordinary_names_are_accepted(names: list[str]) -> None:
    check(names)


@pytest.mark.parametrize(
    "name",
    [
        "1.20E+11",
        "1,2E+11",
        "####",
        "2-Sep",
        "Mar-01",
        "1. Okt",
        "01. Mrz",
        "01.03.2021",
        "3/1/2021",
        "2019-01-05",
        "12:30:00",
    ],
)
def test_changed_names_are_errors_with_the_row(name: str) -> None:
    with pytest.raises(DataError, match=r"(?s)1 value in column patient: .*in row 2.*format the column as text"):
        check(["p1", "p2", name])


def test_rounded_numbers_are_errors_but_not_dates() -> None:
    """Rounding may merge several names of tiles or annotators, but dates remain distinct."""
    check_rounded(["2-Sep", "p1", "p2", "1E10", "a1.2E+11"], "tile", str, "tiles.csv")
    for name in ("1.2E+11", "-1,20E+11", "1E+20", "####"):
        with pytest.raises(DataError, match=r"1 value in column tile: .* in 1\n"):
            check_rounded(["p1", name], "tile", str, "tiles.csv")


PATIENTS = {f"P{number}": 2 for number in range(4)}
ANONYMOUS = ["\\N", ".", "*", "N.A.", "(null)", "[NULL]", "TBD", "undefined", "Unbekannt", "0", "999", "XXXX"]


@pytest.mark.parametrize("name", ANONYMOUS)
def test_a_large_group_with_a_placeholder_name_gives_a_warning(name: str) -> None:
    [note] = placeholder_notes({**PATIENTS, "": 7, name: 5}, "tile")
    assert note.startswith(f"WARNING: 5 tiles with the group {name!r} count as one patient")
    assert not placeholder_notes({**PATIENTS, name: 1}, "tile")


@pytest.mark.parametrize(
    "names",
    [
        ["P1", "P2", "P13"],
        ["0", "1", "2", "3"],
        ["999", "1000", "998"],
        ["Smith", "O'Neil", "van der Berg"],
        ["S24-1", "S24-12-A", "S24-3"],
        ["TCGA-AA-3500", "TCGA-AB-A0SB"],
        ["QWERT", "A1B2C", "7ABCD", "XY12Z"],  # random identifiers
        ["deadbeef", "0a1b2c3d", "12345678", "ffff0000"],
        ["-5", "-4", "3"],
        ["A", "12"],
    ],
)
def test_ordinary_groups_give_no_warning(names: list[str]) -> None:
    for largest in names:
        assert not placeholder_notes({**dict.fromkeys(names, 2), largest: 5}, "tile")
