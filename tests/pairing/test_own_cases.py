"""Test cases: training tiles joined with the reports of the same patients."""

import re
import time

import numpy as np
import pytest

from clipit.errors import DataError
from clipit.pairing.cases import join_cases
from clipit.reports.readers import Report
from clipit.tiles.tileset import TileSet


class NoImages:
    """Reader that fails if an image is read."""

    def read(self, row: int) -> None:
        raise AssertionError("images should not be read")

    def where(self, row: int) -> str:
        return f"row {row}"


def tiles(*rows: tuple[str, str]) -> TileSet:
    """Make a tile set from tuples of split and group."""
    n = len(rows)
    return TileSet(
        ids=np.array([f"t{i}" for i in range(n)], dtype=object),
        labels=np.zeros(n, dtype=np.int64),
        truth=np.zeros(n, dtype=np.int64),
        classes=("a", "b"),
        splits=np.array([split for split, _ in rows], dtype=object),
        groups=np.array([group for _, group in rows], dtype=object),
        mpp=np.full(n, np.nan),
        rows=np.arange(n),
        stamps=np.array(["s"] * n, dtype=object),
        reader=NoImages(),  # type: ignore[arg-type]
        where="test",
    )


def report(name: str, group: str | None, date: str | None = None, label: str | None = None) -> Report:
    return Report(name, f"Text of {name}.", None, group, label, date)


TILES = tiles(
    ("train", "TCGA-AA-0001-01Z"), ("train", "TCGA-AA-0001-01Z"), ("train", "TCGA-AA-0002-01Z"), ("train", ""),
    ("train", "TCGA-AA-0003-01A"), ("validation", "TCGA-AA-0004-01Z"), ("test", "TCGA-AA-0003-01Z"),
)  # fmt: skip


def test_barcodes_are_truncated_to_patients_and_all_reports_are_counted() -> None:
    cases = join_cases(
        [
            report("late", "TCGA-AA-0001", "2021-01-01"),
            report("early", "tcga-aa-0001", "2020-01-01"),
            report("validation", "TCGA-AA-0004"),
            report("both", "TCGA-AA-0003"),
            report("stranger", "TCGA-ZZ-9999"),
            report("nobody", None),
        ],
        TILES,
    )
    assert cases.names == ("TCGA-AA-0001",)
    assert [r.report_id for r in cases.reports[0]] == ["early", "late"], "reports are sorted by date"
    assert cases.case_of.tolist() == [0, 0, -1, -1, -1]
    counts = cases.counts
    assert (counts.cases, counts.cases_with_report, counts.cases_with_several) == (3, 1, 1)
    assert (counts.own, counts.later_splits, counts.both_sides) == (2, 2, 1)
    assert (counts.external, counts.without_patient, counts.tiles_without_patient) == (1, 1, 1)
    assert "1 of 3 training patients has a report of their own (2 reports; 1 patient has several)" in counts.text()


def test_reports_of_held_out_splits_do_not_affect_the_fingerprint() -> None:
    training = report("own", "TCGA-AA-0001")
    first = join_cases([training, report("v", "TCGA-AA-0004"), report("x", "Z")], TILES)
    other = join_cases([training, report("w", "TCGA-AA-0004", label="b"), report("both", "TCGA-AA-0003")], TILES)
    assert first.fingerprint == other.fingerprint
    assert first.fingerprint != join_cases([report("own", "TCGA-AA-0001", label="b")], TILES).fingerprint


def test_the_latest_report_requires_unambiguous_dates() -> None:
    dated = [report("a", "TCGA-AA-0001", "2021-01-01"), report("b", "TCGA-AA-0001", "2020-12-31")]
    latest = join_cases(dated, TILES).latest()
    assert [r.report_id for r in latest.reports[0]] == ["a"]
    for date in (None, "2021-01-01"):
        ambiguous = [dated[0], report("b", "TCGA-AA-0001", date)]
        with pytest.raises(DataError, match=r"(?s)1 patient has several reports.*TCGA-AA-0001.*date_column"):
            join_cases(ambiguous, TILES).latest()


def test_dates_in_different_formats_are_compared() -> None:
    for early, late in (
        ("2020-12-31", "20210101"),
        ("20201231", "2021-01-01"),
        ("2021-01-01T08:00+09:00", "2021-01-01"),
    ):
        cases = join_cases([report("a", "TCGA-AA-0001", late), report("b", "TCGA-AA-0001", early)], TILES)
        assert [r.report_id for r in cases.latest().reports[0]] == ["a"], (early, late)


def test_all_patients_include_those_without_a_report() -> None:
    cases = join_cases([report("a", "TCGA-AA-0001")], TILES).with_all_patients()
    assert cases.names == ("TCGA-AA-0001", "TCGA-AA-0002", "TCGA-AA-0003")
    assert [len(reports) for reports in cases.reports] == [1, 0, 0] and cases.case_of.tolist() == [0, 0, 1, -1, 2]


def test_time_is_linear_in_the_number_of_patients() -> None:
    n = 20_000  # quadratic time would take several seconds
    many = tiles(*(("train", f"P{i}") for i in range(n)))
    reports = [report(f"r{i}", f"P{i + 1}") for i in range(n)]
    start = time.process_time()
    assert join_cases(reports, many).counts.external == 1
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("groups", "names", "hint"),
    [
        (("p1", "p2"), ("P1", "P3"), "1 would match in lower case"),
        (("0017", "0018"), ("17", "19"), "1 would match without leading zeros"),
        (("P1-A", "P2-B"), ("P1", "P9"), "1 would match if cut at the last '-'"),
        (("Jose\u0301",), ("Jos\u00e9",), "1 would match after Unicode normalisation"),
        (("AB-CDEF-0001-x", "AB-CDEF-0002-y"), ("AB-CDEF-0001", "Q"), "1 would match if cut to 12 characters"),
        (
            ("X-P1", "X-P2", "X-P3"),
            ("X-P1-B", "X-P2-B", "X-P3-B"),
            "3 would match if cut at the last '-' (report groups only); 1 would match if cut at the first '-'",
        ),
        (("P1", "P2"), ("Q1", "Q2"), "no simple spelling change would produce a match"),
    ],
)
def test_groups_without_a_match_give_a_hint(groups: tuple[str, ...], names: tuple[str, ...], hint: str) -> None:
    with pytest.raises(DataError) as error:
        join_cases([report(f"r{name}", name) for name in names], tiles(*(("train", group) for group in groups)))
    message = str(error.value)
    assert hint in message and all(name in message for name in (*groups, *names)), message


def test_at_most_three_unmatched_groups_are_shown() -> None:
    with pytest.raises(DataError) as error:
        join_cases([report(f"r{i}", f"Q{i}") for i in range(9)], tiles(*(("train", f"P{i}") for i in range(9))))
    shown = re.findall(r"\b[PQ]\d\b", str(error.value))
    assert sorted(shown) == ["P0", "P1", "P2", "Q0", "Q1", "Q2"], error.value


def test_tiles_or_reports_without_groups_are_errors() -> None:
    with pytest.raises(DataError, match="the training tiles have no groups"):
        join_cases([report("a", "P1")], tiles(("train", ""), ("test", "P1")))
    with pytest.raises(DataError, match=r"(?s)the reports have no groups.*reports\.metadata"):
        join_cases([report("a", None)], tiles(("train", "P1")))


def test_reports_of_held_out_patients_only_are_an_error() -> None:
    with pytest.raises(DataError, match="1 report belongs to patients with validation or test tiles"):
        join_cases([report("a", "P2")], tiles(("train", "P1"), ("test", "P2")))
    with pytest.raises(DataError, match="1 training patient also has tiles in a held-out split"):
        join_cases([report("a", "P1")], tiles(("train", "P1"), ("test", "P1")))
