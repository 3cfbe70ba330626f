"""Grade classification scores of a small world with the shipped VLM."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipit.errors import DataError
from clipit.models.loading import EMBEDDED
from clipit.synthetic.latents import HIGH, LOW
from clipit.synthetic.tile_draws import tile_latents
from clipit.synthetic.tile_world import CASES, GRADE_PROMPTS, WorldConfig, write_world
from tools.embedded.make_weights import check_grades

SMALL = WorldConfig(seed=3, train=160, validation=96, test=8, shift=8, reports=30)


def test_reports_of_one_grade_are_correct_for_tiles_of_that_grade_only(tmp_path: Path) -> None:
    world = tmp_path / "world"
    write_world(world, SMALL)
    rows = [json.loads(line) for line in (world / CASES).read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "grade": "high" if row["grade"] else ""} for row in rows]
    (world / CASES).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scores = check_grades(EMBEDDED / "vlm", world, tmp_path / "out")
    latents = tile_latents(3, "world/train", 160)
    tumour = (latents.tissue == LOW) | (latents.tissue == HIGH)
    ambiguous = tumour & (latents.pleo == 1) & (latents.gland == 1)
    assert (scores["all"]["tiles"], scores["ambiguous"]["tiles"]) == (40, ambiguous.sum())
    for name, keep in (("all", tumour), ("ambiguous", ambiguous)):
        share = np.mean((latents.tissue == HIGH)[keep])
        for centring in ("centred", "uncentred"):
            assert scores[name][centring]["nearest_case"] == pytest.approx(share)
            assert scores[name][centring]["consensus"] == pytest.approx(share)
            assert scores[name][centring]["nearest_case_none"] == 0
    # The shipped VLM was trained with all names of the grades.
    assert all(scores["all"][centring]["all_names"] > 0.75 for centring in ("centred", "uncentred"))
    assert scores["all"]["centred"]["all_names"] != scores["all"]["uncentred"]["all_names"]
    assert scores["all"]["probe"] > 0.6

    prompts = yaml.safe_load((world / GRADE_PROMPTS).read_text(encoding="utf-8"))
    prompts["classes"]["necrosis"] = prompts["classes"].pop("low grade")
    (world / GRADE_PROMPTS).write_text(yaml.safe_dump(prompts), encoding="utf-8")
    with pytest.raises(DataError, match="low grade"):
        check_grades(EMBEDDED / "vlm", world, tmp_path / "out")
