"""Files of a synthetic world: tiles in zips, tables, reports, prompt sets and prompt bags."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from clipit.config.run import Section
from clipit.output_files.artifacts import write_json
from clipit.synthetic import vocabulary as words
from clipit.synthetic.corpora import draw_case_reports, draw_other_organ, draw_reports
from clipit.synthetic.latents import CLASSES, stream
from clipit.synthetic.tile_draws import check_centres, draw_splits, draw_tiles
from clipit.synthetic.world_files import (
    ensure_written,
    prompt_set,
    write_prompt_bags,
    write_reports,
    write_tiles,
    write_yaml,
)

CASES = "case_reports.jsonl"
GRADE_PROMPTS = "grade_prompts.yaml"
ALL_NAMES = "grade_prompts_all_names.yaml"
GRADE_CLASSES = {"tumour_low_grade": "low grade", "tumour_high_grade": "high grade"}
"""`tiles.class_map` for classifying tumour tiles alone as low or high grade."""


class WorldConfig(Section):
    """Size and centres of a synthetic world; its seed is independent of run seeds."""

    seed: int = Field(0, ge=0)
    train: int = Field(2080, ge=8)
    """Number of training tiles; the run configuration determines which of them are labelled."""
    validation: int = Field(400, ge=8)
    test: int = Field(1500, ge=8)
    shift: int = Field(1500, ge=8)
    """Number of test tiles from centres without training tiles."""
    reports: int = Field(500, ge=1)
    """Number of reports per corpus; the case corpus has 40% additional reports, on a different organ."""
    centres: tuple[int, ...] = (6, 7)
    """Centres of the train, validation and test splits."""
    shift_centres: tuple[int, ...] = (8, 9)
    tiles_per_patient: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _check_centres(self) -> "WorldConfig":
        check_centres(self.centres, self.shift_centres)
        return self


def write_world(folder: Path, config: WorldConfig) -> dict[str, Any]:
    """Write the files of a world to a folder; the same configuration gives the same bytes.

    The files are `tiles.zip` with `tiles.csv` (train, validation and test), `tiles_shift.zip` with `tiles_shift.csv`
    (a second test set with an unseen stain), `reports.jsonl`, `case_reports.jsonl`, `prompts.yaml`,
    `grade_prompts.yaml`, `grade_prompts_all_names.yaml`, `morphology.yaml`, `boilerplate.yaml`, and last `world.json`,
    with the configuration, counts, and the SHA-256 of each image set.

    Returns:
        The content of `world.json`.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    sizes = {
        "train": (config.train, config.centres),
        "validation": (config.validation, config.centres),
        "test": (config.test, config.centres),
        "shift": (config.shift, config.shift_centres),
    }
    draws = draw_splits(
        lambda split: draw_tiles(config.seed, f"world/{split}", *sizes[split], config.tiles_per_patient), sizes
    )
    digests = {
        "tiles": write_tiles(folder, "tiles", {split: draws[split] for split in ("train", "validation", "test")}),
        "tiles_shift": write_tiles(folder, "tiles_shift", {"shift": draws["shift"]}),
    }
    write_reports(folder / "reports.jsonl", draw_reports(stream(config.seed, "world/reports"), config.reports))
    add_cases(folder, config)
    prompts = prompt_set("synthetic-8", {label: words.PROMPT_NAMES[label] for label in CLASSES})
    write_yaml(folder / "prompts.yaml", prompts)
    write_prompt_bags(folder)
    facts = {
        "config": config.model_dump(mode="json"),
        "classes": list(CLASSES),
        "counts": {
            split: {name: int((draw.latents.tissue == k).sum()) for k, name in enumerate(CLASSES)}
            for split, draw in draws.items()
        },
        "reports": config.reports,
        "pixels_sha256": digests,
    }
    write_json(folder / "world.json", facts)
    return facts


def add_cases(folder: Path, config: WorldConfig) -> None:
    """Write the case corpus, `case_reports.jsonl`, and two prompt sets for the two tumour grades.

    The names in `grade_prompts.yaml` state only the grade; those in `grade_prompts_all_names.yaml` are the names in
    `prompts.yaml`. Existing files are kept, so that worlds written by earlier versions can be completed.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    if not (folder / CASES).is_file():
        main_organ = draw_case_reports(stream(config.seed, "world/cases"), config.reports)
        other_organ = draw_other_organ(
            stream(config.seed, "world/cases of another organ"), max(1, config.reports * 2 // 5)
        )
        write_reports(folder / CASES, chain(main_organ, other_organ))
    for file, name, prompt_names in (
        (GRADE_PROMPTS, "synthetic-grades", words.GRADE_NAMES),
        (ALL_NAMES, "synthetic-grades-all-names", words.PROMPT_NAMES),
    ):
        if not (folder / file).is_file():
            write_yaml(folder / file, grade_prompts(name, prompt_names))


def grade_prompts(name: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the content of a prompt set for the two grades, with the given names of the two tumour classes."""
    return prompt_set(name, {grade: names[label] for label, grade in GRADE_CLASSES.items()})


def ensure_world(folder: Path, config: WorldConfig) -> Path:
    """Write a synthetic world to a folder unless it already exists; the folder is created once the world is complete.

    Raises:
        ArtifactError: The folder contains other files or a different world; nothing in it is changed.
    """
    return ensure_written(folder, config, lambda partial: write_world(partial, config))
