"""The registry of published data sets and their data cards."""

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from clipit.config.data import TileSource
from clipit.config.load import validate
from clipit.errors import ConfigError
from clipit.tiles.datasets import DATASETS
from clipit.tiles.load_tiles import SOURCES

CARDS = Path(__file__).parents[2] / "data_cards"
SECTIONS = (
    "Origin",
    "Licence",
    "Counts",
    "Splits",
    "Classes",
    "Pixels",
    "Known issues",
    "How clipit reads it",
    "What was tested",
)
NAMES = sorted({row.card for row in DATASETS.values()} | {"tcga_reports"})


def test_every_configurable_source_has_a_reader() -> None:
    assert set(get_args(TileSource)) == set(SOURCES) | set(DATASETS)
    for name, row in DATASETS.items():
        assert (row.reader == "own") == (name in SOURCES), name
        assert bool(row.pattern) == (row.reader == "names"), name
        assert bool(row.table) == (row.reader == "table"), name


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_rows_are_consistent(name: str) -> None:
    row = DATASETS[name]
    assert {label for _, label, _ in row.counts if label} <= set(row.classes)
    assert set(row.labels.values()) <= set(row.classes)
    assert row.files or row.access, "the row has neither a download nor instructions"
    assert all(re.fullmatch("[0-9a-f]{32}", remote.md5) and remote.url.startswith("https://") for remote in row.files)
    assert row.page.startswith("https://") and row.layout and row.citation and row.licence
    assert bool(row.classes) != (row.class_count is not None)
    if row.pattern:
        assert "label" in re.compile(row.pattern).groupindex
        assert bool(row.counts_at) == ("magnification" in re.compile(row.pattern).groupindex)


def test_breakhis_counts_add_up_over_magnifications() -> None:
    for name in ("breakhis", "breakhis_types"):
        row = DATASETS[name]
        for part, label, number in row.counts:
            assert number == sum(n for rows in row.counts_at.values() for p, c, n in rows if (p, c) == (part, label))
    assert [sum(n for _, _, n in DATASETS["breakhis"].counts_at[m]) for m in ("40X", "100X", "200X", "400X")] == [
        n for rows in DATASETS["breakhis_types"].counts_at.values() for _, _, n in rows
    ]  # fmt: skip


def test_a_misspelt_source_gives_one_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"1 configuration error:\n.*did you mean 'breakhis'\?.*sicapv2"):
        validate({"tiles": {"source": "brekhis", "path": "x"}}, "test")
    assert validate({"tiles": {"source": "breakhis", "path": "x"}}, "test").tiles.source == "breakhis"


@pytest.mark.parametrize("name", NAMES)
def test_cards_follow_the_hugging_face_format_and_have_all_sections(name: str) -> None:
    _, head, body = (CARDS / f"{name}.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(head)
    assert {"pretty_name", "license", "task_categories", "size_categories", "tags"} <= set(front)
    assert front["license"] != "other" or {"license_name", "license_link"} <= set(front)
    assert re.findall(r"^## (.+)$", body, flags=re.MULTILINE) == list(SECTIONS)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_cards_agree_with_the_registry(name: str) -> None:
    row = DATASETS[name]
    text = (CARDS / f"{row.card}.md").read_text(encoding="utf-8")
    assert row.page in text
    assert re.search(rf"`(tiles.source: )?{name}`", text)
    plain = text.replace(",", "")
    for part, label, number in row.counts:
        assert re.search(rf"\b{number}\b", plain), (part, label, number)
    for label in row.classes:
        assert re.search(rf"\b{label}\b", text), label
