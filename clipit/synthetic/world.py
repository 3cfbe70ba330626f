"""Write a synthetic world to a folder: tiles in zips, tables, reports, prompt sets and prompt bags."""

import csv
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import UInt8
from pydantic import Field, model_validator

from clipit.artifacts import locked, whole_file, write_json
from clipit.config.run import Section
from clipit.errors import ArtifactError, disk_errors
from clipit.synthetic import vocabulary as words
from clipit.synthetic.corpora import CaseReport, SyntheticReport, draw_cases, draw_other_organ, draw_reports
from clipit.synthetic.draws import MPP, VLM_CENTRES, Draw, draw_tiles
from clipit.synthetic.latents import CLASSES, stream

logger = logging.getLogger(__name__)

CASES = "case_reports.jsonl"
GRADE_PROMPTS = "grade_prompts.yaml"
ALL_NAMES = "grade_prompts_all_names.yaml"
GRADE_CLASSES = {"tumour_low_grade": "low grade", "tumour_high_grade": "high grade"}
"""`tiles.class_map` of the task "low or high grade", on tumour tiles only."""
_COLUMNS = ("id", "path", "label", "split", "group", "mpp", "centre")


class WorldConfig(Section):
    """Size and centres of a synthetic world; its seed is independent of the seeds of runs."""

    seed: int = Field(0, ge=0)
    train: int = Field(2080, ge=8)
    """Number of training tiles; the run's configuration decides which of them are labelled."""
    validation: int = Field(400, ge=8)
    test: int = Field(1500, ge=8)
    shift: int = Field(1500, ge=8)
    """Number of test tiles from centres that training never sees."""
    reports: int = Field(500, ge=1)
    """Number of reports per corpus; the corpus of cases has 40 % more, of another organ."""
    centres: tuple[int, ...] = (6, 7)
    """Centres of train, validation and test."""
    shift_centres: tuple[int, ...] = (8, 9)
    tiles_per_patient: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _disjoint_centres(self) -> "WorldConfig":
        if set(self.centres) & set(self.shift_centres):
            raise ValueError("centres and shift_centres must not share a centre")
        if {*self.centres, *self.shift_centres} & set(VLM_CENTRES):
            raise ValueError(f"centres {VLM_CENTRES} were used to train the embedded VLM; use others, from 6")
        return self


def write_world(folder: Path, config: WorldConfig) -> dict[str, Any]:
    """Write the files of a world to a folder; the same configuration gives the same bytes.

    `tiles.zip` with `tiles.csv` (train, validation and test), `tiles_shift.zip` with `tiles_shift.csv`
    (a second test part: unseen stain), `reports.jsonl`, `case_reports.jsonl`, `prompts.yaml`,
    `grade_prompts.yaml`, `grade_prompts_all_names.yaml`, `morphology.yaml`, `boilerplate.yaml`, and last
    `world.json`: the configuration, counts and SHA-256 of each image set.

    Returns:
        The content of `world.json`.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    parts = {
        split: draw_tiles(config.seed, f"world/{split}", count, centres, config.tiles_per_patient)
        for split, count, centres in (
            ("train", config.train, config.centres),
            ("validation", config.validation, config.centres),
            ("test", config.test, config.centres),
            ("shift", config.shift, config.shift_centres),
        )
    }
    digests = {
        "tiles": _write_tiles(folder, "tiles", {split: parts[split] for split in ("train", "validation", "test")}),
        "tiles_shift": _write_tiles(folder, "tiles_shift", {"shift": parts["shift"]}),
    }
    _write_reports(folder / "reports.jsonl", draw_reports(stream(config.seed, "world/reports"), config.reports))
    add_cases(folder, config)
    _write_prompts(folder)
    facts = {
        "config": config.model_dump(mode="json"),
        "classes": list(CLASSES),
        "counts": {
            split: {name: int((part.latents.tissue == k).sum()) for k, name in enumerate(CLASSES)}
            for split, part in parts.items()
        },
        "reports": config.reports,
        "pixels_sha256": digests,
    }
    write_json(folder / "world.json", facts)
    return facts


def add_cases(folder: Path, config: WorldConfig) -> None:
    """Write the corpus of cases, `case_reports.jsonl`, and two prompt sets of the two tumour grades.

    `grade_prompts.yaml` uses only the word grade, `grade_prompts_all_names.yaml` the names of `prompts.yaml`. Existing
    files are kept, so that worlds of earlier versions can be completed.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    if not (folder / CASES).is_file():
        main_organ = draw_cases(stream(config.seed, "world/cases"), config.reports)
        other_organ = draw_other_organ(
            stream(config.seed, "world/cases of another organ"), max(1, config.reports * 2 // 5)
        )
        _write_reports(folder / CASES, chain(main_organ, other_organ))
    for file, name, prompt_names in (
        (GRADE_PROMPTS, "synthetic-grades", words.GRADE_NAMES),
        (ALL_NAMES, "synthetic-grades-all-names", words.PROMPT_NAMES),
    ):
        if not (folder / file).is_file():
            names = {grade: prompt_names[label] for label, grade in GRADE_CLASSES.items()}
            _write_yaml(folder / file, _prompt_set(name, names))


def _write_reports(path: Path, reports: Iterable[SyntheticReport | CaseReport]) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream_out:
        for report in reports:
            stream_out.write(json.dumps(report.__dict__) + "\n")


def _write_tiles(folder: Path, name: str, parts: dict[str, Draw]) -> str:
    """Write `<name>.zip` and `<name>.csv`; returns the SHA-256 of all pixels in order."""
    digest = hashlib.sha256()
    rows = []
    with whole_file(folder / f"{name}.zip") as path, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for split, part in parts.items():
            for row, image in enumerate(part.images):
                tile = f"{split}-{row:05d}"
                # A fixed date, so that equal tiles give equal bytes.
                archive.writestr(zipfile.ZipInfo(f"{split}/{tile}.png", (1980, 1, 1, 0, 0, 0)), _png(image))
                digest.update(image.tobytes())
                patient, centre = part.patients[row], part.centres[row]
                label = CLASSES[part.latents.tissue[row]]
                used_as = "test" if split == "shift" else split
                rows.append((tile, f"{split}/{tile}.png", label, used_as, f"{split}-P{patient:04d}", MPP, centre))
    with whole_file(folder / f"{name}.csv") as path, path.open("w", encoding="utf-8", newline="") as stream_out:
        writer = csv.writer(stream_out, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(rows)
    return digest.hexdigest()


def _png(image: UInt8[np.ndarray, "64 64 3"]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _write_prompts(folder: Path) -> None:
    bags = {
        "prompts": _prompt_set("synthetic-8", {label: words.PROMPT_NAMES[label] for label in CLASSES}),
        "morphology": {"name": "synthetic-morphology", "version": 1, "texts": list(words.MORPHOLOGY_BAG)},
        "boilerplate": {"name": "synthetic-boilerplate", "version": 1, "texts": list(words.BOILERPLATE_BAG)},
    }
    for name, content in bags.items():
        _write_yaml(folder / f"{name}.yaml", content)


def _prompt_set(name: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    classes = {label: list(class_names) for label, class_names in names.items()}
    return {"name": name, "version": 1, "templates": list(words.PROMPT_TEMPLATES), "classes": classes}


def _write_yaml(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, width=120), encoding="utf-8")


def ensure_world(folder: Path, config: WorldConfig) -> Path:
    """Write a synthetic world to a folder unless it exists, completely or not at all.

    Raises:
        ArtifactError: The folder holds other files or another world; nothing in it is changed.
    """
    world = folder.absolute()  # absolute, because lock and partial folder lie next to it, even for "."
    if _is_written(world, config):
        return world
    with locked(world):
        if not _is_written(world, config):
            logger.info(f"writing the synthetic world (tiles, reports, prompts) to {world}")
            partial = Path(f"{world}.partial")
            write_world(partial, config)
            with disk_errors(world):
                for leftover in partial.glob(".*.tmp"):  # left by a killed attempt
                    leftover.unlink()
                if not world.is_dir():
                    partial.rename(world)
                    return world
                # An existing empty folder may be the working directory: fill it rather than replace it.
                for path in sorted(partial.iterdir(), key=lambda path: path.name == "world.json"):
                    path.rename(world / path.name)
                partial.rmdir()
    return world


def _is_written(world: Path, config: WorldConfig) -> bool:
    """Return whether the folder contains this world; False if it is empty or missing.

    Raises:
        ArtifactError: The folder holds something else.
    """
    with disk_errors(world):
        if not world.exists() or not any(world.iterdir()):
            return False
    facts = world / "world.json"
    if not facts.is_file():
        raise ArtifactError(
            "the folder for the demo's synthetic world (tiles.path) holds other files and was not changed",
            where=world,
            fix="choose a new folder in tiles.path and the other paths of the demo's configuration; for your own "
            "tiles use scripts/train.py or scripts/compare.py; a half-written world may be deleted",
        )
    try:
        same = json.loads(facts.read_text(encoding="utf-8"))["config"] == config.model_dump(mode="json")
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ArtifactError(
            f"this synthetic world differs from the one that this version writes for seed {config.seed}",
            where=facts,
            fix="delete its folder and run the command again to rewrite it",
        )
    return True
