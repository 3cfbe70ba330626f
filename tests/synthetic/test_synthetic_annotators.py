"""Synthetic annotators label tiles according to their confusion matrices."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from clipit.errors import ArtifactError, ConfigError
from clipit.synthetic.latents import CLASSES, HIGH, LOW
from clipit.synthetic.synthetic_annotators import (
    BIAS,
    add_annotators,
    draw_annotations,
    make_annotators,
    true_confusions,
)


def write_tiles(folder: Path, count: int) -> dict[str, str]:
    """Write `tiles.csv` and return the class of each tile."""
    truth = {f"train-{row:05d}": CLASSES[row % len(CLASSES)] for row in range(count)}
    lines = [f"{tile},{label}" for tile, label in truth.items()]
    (folder / "tiles.csv").write_text("\n".join(["id,label", *lines]) + "\n", encoding="utf-8")
    return truth


def read_annotations(folder: Path) -> list[dict[str, str]]:
    with (folder / "annotations.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_label_frequencies_match_the_confusion_matrices(tmp_path: Path) -> None:
    truth = write_tiles(tmp_path, 4000)
    config = make_annotators(3, seed=5, biased=1, coverage=0.6)
    add_annotators(tmp_path, config)
    rows = read_annotations(tmp_path)
    facts = json.loads((tmp_path / "annotators.json").read_text(encoding="utf-8"))
    assert len(rows) == pytest.approx(4000 * (3 * 0.6 + 0.4**3), rel=0.02), "every tile has at least one annotation"
    assert {row["tile"] for row in rows} == set(truth)
    for name, expected in facts["annotators"].items():
        counts = np.zeros((8, 8))
        for row in rows:
            if row["annotator"] == name:
                counts[CLASSES.index(truth[row["tile"]]), CLASSES.index(row["label"])] += 1
        observed = counts / counts.sum(axis=1, keepdims=True)
        assert np.abs(observed - np.array(expected["confusion"])).max() < 0.09
    assert facts["annotators"]["A1"]["biased"] and not facts["annotators"]["A2"]["biased"]


def test_matrices_reflect_skills_and_bias() -> None:
    matrices = true_confusions(make_annotators(5, biased=1))
    assert np.allclose(matrices.sum(axis=2), 1)
    assert np.diagonal(matrices[1:], axis1=1, axis2=2).mean(axis=1) == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert matrices[0, HIGH, LOW] == BIAS and matrices[0, LOW, LOW] == 0.9


def test_annotations_of_a_tile_do_not_depend_on_other_tiles() -> None:
    config = make_annotators(4, coverage=0.5)
    names, truth = np.array(["b", "a", "c"]), np.array([3, 1, 2])
    labels = draw_annotations(config, names, truth)
    assert (labels[[1]] == draw_annotations(config, names[[1]], truth[[1]])).all()
    assert (labels >= 0).any(axis=1).all()
    many = np.array([f"t{row}" for row in range(1000)])
    some = draw_annotations(make_annotators(4, coverage=0.5, annotated=0.3), many, np.zeros(1000, dtype=np.int64))
    all_of_them = draw_annotations(config, many, np.zeros(1000, dtype=np.int64))
    annotated = (some >= 0).any(axis=1)
    assert 0.25 < annotated.mean() < 0.35 and (some[annotated] == all_of_them[annotated]).all()


def test_annotations_with_other_settings_and_user_files_are_not_overwritten(tmp_path: Path) -> None:
    write_tiles(tmp_path, 16)
    path = add_annotators(tmp_path, make_annotators(2))
    before = path.read_bytes()
    add_annotators(tmp_path, make_annotators(2))
    with pytest.raises(ArtifactError, match=r"coverage: 1\.0 in the folder, 0\.5 now"):
        add_annotators(tmp_path, make_annotators(2, coverage=0.5))
    (tmp_path / "annotators.json").unlink()
    with pytest.raises(ArtifactError, match="was not written by this command"):
        add_annotators(tmp_path, make_annotators(2))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "keys", [{"count": 0}, {"count": 2, "skills": [0.9]}, {"count": 1, "skills": [1.5]}, {"count": 2, "biased": 3}]
)
def test_invalid_annotator_settings_are_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        make_annotators(**keys)  # type: ignore[arg-type]
