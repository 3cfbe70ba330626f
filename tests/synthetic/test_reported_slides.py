"""Synthetic slides with reports: masks, table and reports agree, and slides are otherwise unchanged."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipit.cli.world import main
from clipit.reports.rules import label_report, load_rules
from clipit.synthetic.latents import CLASSES, HIGH, LOW, stream
from clipit.synthetic.reported_slides import (
    ReportedSlidesConfig,
    add_slide_variants,
    ensure_reported_slides,
    write_slide_reports,
)
from clipit.synthetic.slide_render import draw_status
from clipit.synthetic.slide_world import SlideWorldConfig, draw_slide

pytest.importorskip("tifffile")

CONFIG = ReportedSlidesConfig(
    seed=4,
    train=6,
    validation=0,
    test=3,
    size=320,
    earlier=0.25,
    silent=0.0,
    wrong=0.0,
    noise=0.0,
    slides_per_patient=2,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_reported_slides(tmp_path_factory.mktemp("slides") / "world", CONFIG)


def rows(world: Path) -> list[dict[str, str]]:
    with (world / "slides.csv").open(encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_only_part_of_a_mutated_tumour_shows_its_status(world: Path) -> None:
    assert {row["status"] for row in rows(world)} == {"mutated", "wild_type"}
    for row in rows(world):
        labels, status = (np.asarray(Image.open(world / row[column])) for column in ("mask", "status_mask"))
        tumour = (labels == LOW + 1) | (labels == HIGH + 1)
        assert tumour.any() and row["label"] in (CLASSES[LOW], CLASSES[HIGH]) and not status[~tumour].any()
        share = status.sum() / max(1, tumour.sum())
        assert abs(share - (CONFIG.shows if row["status"] == "mutated" else 0)) < 0.02


def test_slides_that_do_not_show_the_status_equal_those_of_a_world_without_reports() -> None:
    plain = SlideWorldConfig(seed=4, size=256)
    first = draw_slide(plain, "one", LOW, 6)
    second = draw_slide(ReportedSlidesConfig(seed=4, size=256), "one", LOW, 6, shows=0.0)
    mutated = draw_slide(plain, "one", LOW, 6, shows=0.5)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.labels, mutated.labels) and np.array_equal(first.artefacts, mutated.artefacts)
    changed = (first.image != mutated.image).any(axis=-1)
    assert changed[mutated.status].mean() > 0.9


def test_reports_state_the_status_of_the_slides(world: Path) -> None:
    rules = load_rules(str(world / "status_rules.yaml"))
    status = {row["group"]: row["status"] for row in rows(world)}
    reports = lines(world / "reports.jsonl")
    assert {report["group"] for report in reports} == set(status)
    detected = 0
    for report in reports:
        early = report["id"].endswith("biopsy")
        assert report["status"] == ("" if early else status[report["group"]])
        class_name = label_report(report["text"], rules).class_name
        assert class_name in (report["status"], "none", "uncertain")
        detected += class_name == status[report["group"]]
    assert detected > 0


def test_reports_state_the_grade_of_the_slides(world: Path) -> None:
    grade = {CLASSES[LOW]: "low", CLASSES[HIGH]: "high"}
    expected = {row["group"]: grade[row["label"]] for row in rows(world)}
    assert all(report["grade"] == expected[report["group"]] for report in lines(world / "reports.jsonl"))


def test_variants_change_only_the_stated_status(world: Path) -> None:
    (path,) = add_slide_variants(world, CONFIG, [["wrong=1", "earlier=0"]])
    assert path.name == "reports_wrong1_earlier0.jsonl"
    stated = {report["group"]: report["status"] for report in lines(world / "reports.jsonl") if report["status"]}
    other = {"mutated": "wild_type", "wild_type": "mutated"}
    varied = {report["group"]: report["status"] for report in lines(path) if report["status"]}
    assert varied == {group: other[status] for group, status in stated.items()}
    rewritten = world / "again.jsonl"
    write_slide_reports(rewritten, CONFIG)
    assert rewritten.read_bytes() == (world / "reports.jsonl").read_bytes()


def test_foci_are_contiguous_and_cover_the_configured_share() -> None:
    labels = np.full((640, 640), LOW + 1, dtype=np.uint8)
    labels[:, :100] = 1
    status = draw_status(stream(0, "foci"), labels, 0.25)
    assert abs(status[:, 100:].mean() - 0.25) < 0.01 and not status[:, :100].any()
    assert (status[1:] != status[:-1]).mean() < 0.01
    assert not draw_status(stream(0, "foci"), labels, 0.0).any()


def test_options_without_effect_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for options, message in (
        (["--reports"], "add --slides"),
        (["--slides", "1", "--variant", "wrong=1"], "add --cases or --reports"),
        (["--slides", "1", "--reports", "--variant", "wrong=2"], "share from 0 to 1"),
    ):
        monkeypatch.setattr(sys, "argv", ["world", "--output", str(tmp_path / "out"), *options])
        with pytest.raises(SystemExit, match="2"):
            main()
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
