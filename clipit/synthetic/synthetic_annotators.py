"""Synthetic annotators with known skill: `annotations.csv` and `annotators.json` of a synthetic data set (world)."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int64, Shaped
from pydantic import Field, ValidationError, model_validator

from clipit.config.run import Section
from clipit.errors import ArtifactError, ConfigError, counted, disk_errors
from clipit.output_files.artifacts import read_json, whole_file, write_json
from clipit.output_files.differences import difference_lines, list_differences
from clipit.synthetic.latents import CLASSES, HIGH, LOW, stream

ANNOTATIONS, ANNOTATORS = "annotations.csv", "annotators.json"
BIAS = 0.8
"""Probability that a biased annotator labels a high-grade tumour as a low-grade one."""
_MAX_SKILL, _MIN_SKILL = 0.9, 0.5

Skill = Annotated[float, Field(ge=0, le=1)]


class AnnotatorsConfig(Section):
    """Synthetic annotators, whose errors are independent given the class of the tile."""

    seed: int = Field(0, ge=0)
    skills: tuple[Skill, ...] = Field(min_length=1)
    """Probability of the correct label, by annotator; the wrong labels are equally probable."""
    biased: int = Field(0, ge=0)
    """Number of annotators, starting with A1, who label most tiles of `tumour_high_grade` as `tumour_low_grade`."""
    coverage: float = Field(1.0, gt=0, le=1)
    """Probability that an annotator labels an annotated tile; every annotated tile has at least one label."""
    annotated: float = Field(1.0, gt=0, le=1)
    """Probability that a tile is annotated; other tiles have no annotator labels."""

    @model_validator(mode="after")
    def _check_biased(self) -> "AnnotatorsConfig":
        if self.biased > len(self.skills):
            raise ValueError(f"{counted(self.biased, 'biased annotator')}, but {len(self.skills)} in total")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the annotators, from A1; numbers are zero-padded, so that names sort by number."""
        width = len(str(len(self.skills)))
        return tuple(f"A{number:0{width}d}" for number in range(1, len(self.skills) + 1))


def make_annotators(
    count: int,
    *,
    seed: int = 0,
    skills: Sequence[float] = (),
    biased: int = 0,
    coverage: float = 1.0,
    annotated: float = 1.0,
) -> AnnotatorsConfig:
    """Configure annotators with skills evenly spaced from 0.9 down to 0.5, or with given skills.

    Args:
        skills: Skill of each annotator; empty for evenly spaced skills.
        biased: Number of biased annotators, starting with A1.
        coverage: Probability that an annotator labels a tile.
        annotated: Probability that a tile is annotated.

    Raises:
        ConfigError: A number is out of range, or the number of skills differs from the number of annotators.
    """
    if skills and len(skills) != count:
        raise ConfigError(
            f"{counted(len(skills), 'skill')} for {counted(count, 'annotator')}",
            where="--skills",
            fix="give one skill per annotator",
        )
    spaced = [round(float(skill), 4) for skill in np.linspace(_MAX_SKILL, _MIN_SKILL, max(count, 0))]
    keys = {
        "seed": seed,
        "skills": list(skills) or spaced,
        "biased": biased,
        "coverage": coverage,
        "annotated": annotated,
    }
    try:
        return AnnotatorsConfig.model_validate(keys)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors())
        raise ConfigError(
            f"invalid annotator settings: {problems}",
            where="--annotators, --skills, --biased, --coverage or --annotated",
            fix="use at least one annotator, skills from 0 to 1, at most as many biased annotators as annotators, and "
            "a coverage and a fraction of annotated tiles that are above 0 and at most 1",
        ) from error


def true_confusions(config: AnnotatorsConfig) -> Float[np.ndarray, "annotators c c"]:
    """Compute the confusion matrix of each annotator, P(label | class), with one row per class."""
    c = len(CLASSES)
    matrices = np.empty((len(config.skills), c, c))
    for annotator, skill in enumerate(config.skills):
        matrices[annotator] = (1 - skill) / (c - 1)
        np.fill_diagonal(matrices[annotator], skill)
        if annotator < config.biased:
            row = np.full(c, (1 - BIAS) / (c - 1))
            row[LOW] = BIAS
            matrices[annotator, HIGH] = row
    return matrices


def draw_annotations(
    config: AnnotatorsConfig, tiles: Shaped[np.ndarray, " n"], truth: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, "n annotators"]:
    """Draw each annotator's label for each tile; -1 where the annotator does not label the tile.

    Each tile has its own random stream, named after its id, so that its labels do not depend on other tiles.

    Args:
        tiles: Tile ids.
        truth: True class index of each tile.
    """
    cumulative = true_confusions(config).cumsum(axis=2)
    annotators = np.arange(len(config.skills))
    labels = np.full((len(tiles), len(annotators)), -1, dtype=np.int64)
    for row, (tile, code) in enumerate(zip(tiles.tolist(), truth.tolist(), strict=True)):
        generator = stream(config.seed, "annotators", tile)
        coverage_draws, label_draws = generator.random(len(annotators)), generator.random(len(annotators))
        if generator.random() >= config.annotated:
            continue
        covered = coverage_draws < config.coverage
        covered[coverage_draws.argmin()] = True
        drawn = (label_draws[:, None] >= cumulative[:, code, :-1]).sum(axis=1)
        labels[row, covered] = drawn[covered]
    return labels


def add_annotators(folder: Path, config: AnnotatorsConfig) -> Path:
    """Write annotations and the annotators' true confusion matrices to the folder of a synthetic data set.

    `annotations.csv` has the columns `tile`, `annotator` and `label`, for the tiles of all splits in `tiles.csv`;
    `annotators.json` contains the settings and the true confusion matrix of each annotator. Existing files with the
    same settings are kept.

    Returns:
        Path of `annotations.csv`.

    Raises:
        ArtifactError: The folder contains annotations with different settings, or cannot be written to.
    """
    path, facts = folder / ANNOTATIONS, folder / ANNOTATORS
    if facts.is_file():
        _check_settings(facts, config)
    elif path.exists():
        raise ArtifactError(
            f"{ANNOTATIONS} was not written by this command and is not overwritten", where=path, fix="rename or move it"
        )
    if path.is_file():
        return path
    with disk_errors(folder / "tiles.csv"), (folder / "tiles.csv").open(encoding="utf-8", newline="") as lines:
        table = list(csv.DictReader(lines))
    tiles = np.array([row["id"] for row in table])
    labels = draw_annotations(config, tiles, np.array([CLASSES.index(row["label"]) for row in table], dtype=np.int64))
    write_json(facts, _facts(config))
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("tile", "annotator", "label"))
        writer.writerows(
            (tiles[row], config.names[annotator], CLASSES[labels[row, annotator]])
            for row, annotator in np.argwhere(labels >= 0).tolist()
        )
    return path


def _facts(config: AnnotatorsConfig) -> dict[str, Any]:
    confusions = true_confusions(config)
    return {
        "config": config.model_dump(mode="json"),
        "classes": list(CLASSES),
        "annotators": {
            name: {"skill": skill, "biased": number < config.biased, "confusion": confusions[number].round(6).tolist()}
            for number, (name, skill) in enumerate(zip(config.names, config.skills, strict=True))
        },
    }


def _check_settings(facts: Path, config: AnnotatorsConfig) -> None:
    fix = f"delete {ANNOTATORS} and {ANNOTATIONS} and run the command again, or write a different data set"
    recorded, settings = read_json(facts, fix).get("config"), config.model_dump(mode="json")
    if recorded != settings:
        changes = list_differences(recorded, settings) if isinstance(recorded, dict) else []
        raise ArtifactError(
            "this data set already has annotators with different settings"
            + (f":\n    {difference_lines(changes)}" if changes else ""),
            where=facts,
            fix=fix,
        )
