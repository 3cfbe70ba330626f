"""Patients whose names are spelled differently in tiles and reports, or in two sets of tiles, are pointed out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipit.config.load import validate
from clipit.config.run import LeaksConfig, RunConfig
from clipit.images.image_readers import FileReader
from clipit.pairing.leaks import SeenTiles, report_leaks
from clipit.pairing.patient_spelling import misspelled_reports, misspelled_tests
from clipit.reports.readers import Report, Reports
from clipit.runs.training_tiles import check_test_patients, write_training_tiles
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


def configured(policy: str) -> RunConfig:
    keys: dict[str, Any] = {"name": "spelling", "tiles": {"source": "table", "path": "tiles.csv"}}
    return validate({**keys, "leaks": {"policy": policy, "pixels": "off"}}, "test")


OWN = tiles(["Pat-1", "Pat-2", "Pat-3"], ["train", "validation", "test"])


def reports(*groups: str | None) -> tuple[Report, ...]:
    return tuple(Report(f"r{place}", "carcinoma", group=group) for place, group in enumerate(groups))


@pytest.mark.parametrize("name", ["pat-3", "Pat\u20133", "Pat-3\u200b", "\u0420at-3"])
def test_a_report_of_a_test_patient_in_another_spelling(name: str) -> None:
    corpus = Reports(reports(name, "Pat-9", None), (), "reports.csv")
    assert not report_leaks(corpus.reports, OWN)
    kept = enforce_on_reports(corpus, lambda: OWN, configured("error"))
    assert len(kept.reports) == 3
    assert "1 report may belong to patients of validation or test tiles" in kept.problems[0]
    assert "and 'Pat-3'" in kept.problems[0]


def test_reports_of_other_patients_and_of_training_patients_need_no_warning() -> None:
    assert misspelled_reports(reports("Pat-2", "pat-1", "Pat-30", None), OWN) == ""


def test_new_tiles_of_a_training_patient_in_another_spelling(tmp_path: Path) -> None:
    new = tiles(["PAT-1", "PAT-1", "Pat-7"], ["test"] * 3)
    seen = SeenTiles(OWN.ids, OWN.splits, OWN.groups)
    assert "2 new tiles may belong to patients of training or validation tiles" in misspelled_tests(new, seen)
    kept, leaks = enforce_on_external(new, seen, None, configured("exclude"), "centre2")
    assert not leaks
    assert "'PAT-1' and 'Pat-1'" in kept.notes[-1]
    write_training_tiles(tmp_path, OWN, "fingerprint")
    assert "'PAT-1' and 'Pat-1'" in check_test_patients(tmp_path, new, LeaksConfig())[-1]
