"""The page, figures and table that describe several annotators."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clipit
from clipit.api.labels import AnnotatorsResult
from clipit.config.load import validate_file
from clipit.errors import ConfigError

CLASSES = ("low", "high")
HOSTILE = "<b>eve</b>"
SKILLS = {"ann": 0.95, "ben": 0.9, HOSTILE: 0.6}


def describe(values: dict[str, Any], **options: int) -> AnnotatorsResult:
    return clipit.describe_annotators(validate_file(values, "test"), **options)


def test_leftovers_of_a_killed_process_are_deleted(make: "Make", tmp_path: Path) -> None:
    folder = describe(make(tmp_path)).folder
    leftover = folder / ".annotators.html.99999999.tmp"
    leftover.touch()
    assert describe(make(tmp_path)).folder == folder and not leftover.exists()


Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that gives a configuration with sixty tiles, twenty patients and three annotators."""
    folder = tmp_path_factory.mktemp("annotated")
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=60)
    tiles, annotations, counts = ["path,split,group"], ["tile,annotator,label"], ["tile,low,high"]
    for tile, label in enumerate(truth.tolist()):
        Image.new("RGB", (16, 16), (tile, 0, 0)).save(folder / f"t{tile}.png")
        tiles.append(f"t{tile}.png,{'train' if tile < 40 else 'test'},p{tile // 3}")
        given_labels = [label if rng.random() < skill else 1 - label for skill in SKILLS.values()]
        annotations += [f"t{tile}.png,{a},{CLASSES[g]}" for a, g in zip(SKILLS, given_labels, strict=True)]
        counts.append(f"t{tile}.png,{given_labels.count(0)},{given_labels.count(1)}")
    for name, rows in (("tiles", tiles), ("annotations", annotations), ("counts", counts)):
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def values(output: Path, table: str = "annotations", **keys: Any) -> dict[str, Any]:
        section = {"path": str(folder / f"{table}.csv"), **keys}
        tiles = {"source": "table", "path": str(folder / "tiles.csv"), "annotations": section}
        return {"name": "read", "output": str(output), "tiles": tiles, "evaluation": {"bootstrap": 50}}

    return values


def test_the_page_shows_agreement_confusions_ceiling_and_disputed_tiles(make: Make, tmp_path: Path) -> None:
    result = describe(make(tmp_path), shown=5)
    record = result.record
    alpha = record["agreement"]
    assert 0 < alpha["low"] < alpha["alpha"] < alpha["high"] < 1 and alpha["units"] == "groups"
    accuracy = {annotator["annotator"]: annotator["accuracy"] for annotator in record["training"]["annotators"]}
    assert accuracy["ann"] > accuracy[HOSTILE] + 0.1 and record["test"]["tiles"] == 20
    assert record["pairs"][0]["agreement"][0] == 1.0 and record["pairs"][0]["shared"] == [60, 60, 60]
    assert record["human_ceiling"]["independent"] == "no"
    page = result.page.read_text(encoding="utf-8")
    assert HOSTILE not in page and "&lt;b&gt;eve&lt;/b&gt;" in page, "names are escaped"
    assert page.count("data:image/jpeg") == 5 and "annotators of the test labels also label" in page
    assert f"alpha: {alpha['alpha']:.3f}" in result.summary
    assert "EM has converged" not in page and "had almost stopped increasing, at a log-likelihood of" in page


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_each_part_lists_the_annotators_who_labelled_its_tiles(make: Make, tmp_path: Path) -> None:
    values = make(tmp_path)
    lines = Path(values["tiles"]["annotations"]["path"]).read_text(encoding="utf-8").splitlines()
    is_test = ["annotator" not in line and int(line.split(".")[0][1:]) >= 40 for line in lines]
    rows = [line for line, test in zip(lines, is_test, strict=True) if (",ann," in line) <= test]
    path = tmp_path / "halves.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    values["tiles"]["annotations"]["path"] = str(path)
    record = describe(values, shown=0).record
    names = {part: [row["annotator"] for row in record[part]["annotators"]] for part in ("training", "test")}
    assert names == {"training": [HOSTILE, "ben"], "test": [HOSTILE, "ann", "ben"]}
    assert record["facts"]["training annotators"] == f"{HOSTILE}, ben"


def test_the_table_has_votes_majority_consensus_and_posterior_of_each_tile(make: Make, tmp_path: Path) -> None:
    table = describe(make(tmp_path), shown=0).tiles
    assert len(table) == 60 and (table.votes_low + table.votes_high == 3).all()
    assert np.allclose(table.p_low + table.p_high, 1, atol=1e-5) and not table.tied.any()
    assert ((table.p_high > 0.5) == (table.consensus == "high")).all()
    assert ((table.votes_high > 1) == (table.majority == "high")).all()


def test_anonymous_votes_have_one_confusion_matrix_and_no_pairs(make: Make, tmp_path: Path) -> None:
    result = describe(make(tmp_path, "counts", counts={"low": "low", "high": "high"}) | {"name": "counted"}, shown=3)
    assert result.record["pairs"] is None and len(result.record["training"]["annotators"]) == 1
    assert result.record["facts"]["annotators"] == "not named"
    assert re.search("high: [12]; low: [12]", result.page.read_text(encoding="utf-8"))


def test_the_page_states_that_agreement_is_undefined_for_one_annotator_per_tile(make: Make, tmp_path: Path) -> None:
    values = make(tmp_path, labels="majority")
    rows = Path(values["tiles"]["annotations"]["path"]).read_text(encoding="utf-8").splitlines()
    path = tmp_path / "one.csv"
    path.write_text("\n".join([rows[0], *rows[1::3]]) + "\n", encoding="utf-8")
    values["tiles"]["annotations"]["path"] = str(path)
    result = describe(values)
    assert result.record["agreement"]["alpha"] is None and result.record["human_ceiling"] is None
    assert "No tile has labels from two annotators" in result.page.read_text(encoding="utf-8")
    assert "undefined" in result.summary


def test_missing_annotators_and_an_invalid_number_are_errors(make: Make, tmp_path: Path) -> None:
    values = make(tmp_path)
    with pytest.raises(ConfigError, match="cannot show -1 tiles"):
        describe(values, shown=-1)
    del values["tiles"]["annotations"]
    with pytest.raises(ConfigError, match=r"tiles\.annotations\.path"):
        describe(values | {"tiles": values["tiles"] | {"labels": {"kind": "none"}}})
