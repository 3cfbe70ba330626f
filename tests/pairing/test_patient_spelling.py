"""Test patients that are spelled differently in tiles and reports, or in two tile sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipit.config.load import validate
from clipit.config.run import LeaksConfig, RunConfig
from clipit.errors import DataError
from clipit.images.image_readers import FileReader
from clipit.pairing.leaks import SeenTiles, find_shared_patients, group_leaks, report_leaks
from clipit.pairing.patient_spelling import describe_match, misspelled_reports, misspelled_splits, misspelled_tests
from clipit.patients import slides_of_patients
from clipit.reports.readers import Report, Reports
from clipit.runs.training_tiles import check_test_patients, write_training_tiles
from clipit.tiles.splits import check_groups
from clipit.tiles.tileset import TileSet
from clipit.workspace.external_leaks import enforce_on_external
from clipit.workspace.leak_policy import enforce_on_reports


def tiles(groups: list[str], splits: list[str]) -> TileSet:
    n = len(groups)
    codes = np.zeros(n, dtype=np.int64)
    return TileSet(
        ids=np.asarray([f"{place}.png" for place in range(n)], dtype=object),
        labels=codes,
        truth=codes,
        splits=np.asarray(splits, dtype="<U10"),
        groups=np.asarray(groups, dtype=object),
        mpp=np.full(n, np.nan),
        classes=("stroma",),
        reader=FileReader(Path(), ["absent.png"] * n),
        rows=np.arange(n, dtype=np.int64),
        stamps=np.asarray([b"s"] * n),
    )


def make_config(policy: str) -> RunConfig:
    keys: dict[str, Any] = {"name": "spelling", "tiles": {"source": "table", "path": "tiles.csv"}}
    return validate({**keys, "leaks": {"policy": policy, "pixels": "off"}}, "test")


TILES = tiles(["Pat-1", "Pat-2", "Pat-3"], ["train", "validation", "test"])


def reports(*groups: str | None) -> tuple[Report, ...]:
    return tuple(Report(f"r{place}", "carcinoma", group=group) for place, group in enumerate(groups))


@pytest.mark.parametrize("name", ["pat-3", "Pat\u20133", "Pat-3\u200b", "\u0420at-3"])
def test_reports_of_test_patients_in_a_different_spelling_give_a_warning(name: str) -> None:
    corpus = Reports(reports(name, "Pat-9", None), (), "reports.csv")
    assert not report_leaks(corpus.reports, TILES)
    kept = enforce_on_reports(corpus, lambda: TILES, make_config("error"))
    assert len(kept.reports) == 3
    assert "1 report may belong to patients with validation or test tiles" in kept.problems[0]
    assert "and 'Pat-3'" in kept.problems[0]


def test_reports_of_other_patients_and_of_training_patients_need_no_warning() -> None:
    assert misspelled_reports(reports("Pat-2", "pat-1", "Pat-30", None), TILES) == []


def test_new_tiles_of_training_patients_in_a_different_spelling_give_a_warning(tmp_path: Path) -> None:
    new = tiles(["PAT-1", "PAT-1", "Pat-7"], ["test"] * 3)
    seen = SeenTiles(TILES.ids, TILES.splits, TILES.groups)
    assert "2 new tiles may belong to patients with training or validation tiles" in misspelled_tests(new, seen)[0]
    kept, leaks = enforce_on_external(new, seen, None, make_config("exclude"), "centre2")
    assert not leaks
    assert "'PAT-1' and 'Pat-1'" in kept.notes[-1]
    write_training_tiles(tmp_path, TILES, "fingerprint")
    assert "'PAT-1' and 'Pat-1'" in check_test_patients(tmp_path, new, LeaksConfig())[-1]


# Slides and patients ----------------------------------------------------------------------------------------------

SPLITS = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
BY_SLIDE = tiles([f"P{number:03d}-S1" for number in range(8)], SPLITS)
BY_PATIENT = tiles([f"P{number:03d}" for number in range(8)], SPLITS)


@pytest.mark.parametrize("separator", ["-", "_", ".", " ", "/"])
def test_report_patients_match_tiles_grouped_by_slide(separator: str) -> None:
    by_slide = tiles([f"P{number:03d}{separator}S1" for number in range(8)], SPLITS)
    corpus = reports(*(f"P{number:03d}" for number in range(8)), "X9")
    assert [leak.id for leak in report_leaks(corpus, by_slide)] == ["r4", "r5", "r6", "r7"]
    assert describe_match(corpus, by_slide)[0].startswith("8 groups count as slides of a patient: P000")
    kept = enforce_on_reports(Reports(corpus, (), "reports.csv"), lambda: by_slide, make_config("exclude"))
    assert [report.report_id for report in kept.reports] == ["r0", "r1", "r2", "r3", "r8"]


def test_report_slides_match_tiles_grouped_by_patient() -> None:
    corpus = reports(*(f"P{number:03d}-{part}" for number in range(8) for part in "AB"))
    assert len(report_leaks(corpus, BY_PATIENT)) == 8


def test_new_tiles_grouped_by_slide_match_training_patients() -> None:
    new = tiles(["P000-S2", "P001-S2", "P900-S1"], ["test"] * 3)
    assert sorted(find_shared_patients(new, BY_PATIENT)) == ["0.png", "1.png"]
    splits = tiles(["P0", "P1", "P2", "P0_a", "P1_a"], ["train", "train", "train", "test", "test"])
    assert [leak.id for leak in group_leaks(splits)] == ["0.png", "1.png"]
    with pytest.raises(DataError, match="P0 "):
        check_groups(splits)


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["P1", "P2", "P3"], ["P10", "P11", "P20"]),
        (["2024-1", "2024-2", "2024-3"], ["2024-4", "2024-5", "2024-6"]),
        (["north", "south"], [f"{place}-{number}" for place in ("north", "south") for number in range(40)]),
        ([f"test-{number}" for number in range(9)], [f"train-{number}" for number in range(9)]),
        (["A-1", "B-1", "C-1", "D-1"], ["A-2", "B-3", "C-4", "D-5"]),
    ],
)
def test_names_with_a_common_prefix_are_different_patients(names: list[str], groups: list[str]) -> None:
    corpus, test = reports(*names), tiles(groups, ["test"] * len(groups))
    assert report_leaks(corpus, test) == []
    assert not slides_of_patients(names, groups)
    if "north" not in names:  # names of hospitals may be ambiguous
        assert misspelled_reports(corpus, test) == []
    assert "reports and tiles have no group in common" in describe_match(corpus, test)[0]


def test_a_few_possible_slides_of_one_patient_give_a_warning() -> None:
    corpus = reports("P1", *(f"Q{number}" for number in range(9)))
    test = tiles(["P1-A", *(f"R{number}" for number in range(9))], ["test"] * 10)
    assert report_leaks(corpus, test) == []
    (warning,) = misspelled_reports(corpus, test)
    assert warning.startswith("WARNING: 1 report may belong to patients with validation or test tiles")
    assert "'P1' and 'P1-A'" in warning and "tiles.group_pattern" in warning


def test_slides_of_one_case_in_two_splits_are_a_warning() -> None:
    groups = [f"S24-{number:03d}-A1" for number in range(6)] + ["S24-003-B1", "S24-004-B1-2", "S24-900-A1"]
    (warning,) = misspelled_splits(tiles(groups, ["train"] * 6 + ["test"] * 3))
    assert "1 train tile may belong to patients with validation or test tiles" in warning
    assert "'S24-003-A1' and 'S24-003-B1'" in warning
    assert misspelled_splits(BY_SLIDE) == []
    assert misspelled_splits(tiles([f"s-{number}" for number in range(8)], SPLITS)) == []


def test_barcodes_with_dots_are_recognised() -> None:
    test = tiles(["TCGA-AA-0001-01Z", "TCGA.AA.0002.11"], ["train", "test"])
    corpus = (Report("r1", "text", group="TCGA.AA.0002"), Report("a/TCGA.AA.0002.9f1c.txt", "text"))
    assert [leak.group for leak in report_leaks(corpus, test)] == ["TCGA-AA-0002"] * 2
    assert len(group_leaks(tiles(["TCGA.AA.0002.11", "TCGA-AA-0002"], ["train", "test"]))) == 1


def test_reports_without_groups_are_noted() -> None:
    corpus = Reports(reports(None, None), (), "reports.txt")
    note = "the reports have no group (reports.group_column), so reports of validation and test patients"
    assert note in enforce_on_reports(corpus, lambda: TILES, make_config("error")).notes[0]
    partly_grouped = enforce_on_reports(Reports(reports("Pat-1", None), (), ""), lambda: TILES, make_config("error"))
    assert partly_grouped.notes[0].startswith("1 of 2 reports has no group")
    assert enforce_on_reports(Reports(reports("Pat-1"), (), ""), lambda: TILES, make_config("error")).notes == ()
    assert enforce_on_reports(corpus, lambda: TILES, make_config("off")).notes == ()
