"""Synthetic case world: patients with tiles, a report, and a molecular status unknown to the bundled VLM."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clipit.config.section import Section
from clipit.errors import ConfigError
from clipit.output_files.artifacts import write_json
from clipit.synthetic import vocabulary as words
from clipit.synthetic.case_latents import EXTERNAL, Case, CaseWorldConfig, draw_cases
from clipit.synthetic.case_reports import write_case_reports
from clipit.synthetic.latents import CLASSES, HIGH, LOW, Latents, stream
from clipit.synthetic.render import render
from clipit.synthetic.status_words import NOT_TUMOUR, STATUS_PROMPTS, STATUS_RULES
from clipit.synthetic.tile_draws import Draw, draw_splits
from clipit.synthetic.tile_world import GRADE_PROMPTS, grade_prompts
from clipit.synthetic.world_files import ensure_written, prompt_set, write_prompt_bags, write_tiles, write_yaml

STATUS_PROMPT_FILE = "status_prompts.yaml"
TISSUE_PROMPT_FILE = "tissue_prompts.yaml"
STATUS_RULE_FILE = "status_rules.yaml"
REPORTS = "reports.jsonl"
VARIED = ("reported", "silent", "wrong", "earlier")
"""Keys of the configuration that change only the reports of a world."""

ConfigT = TypeVar("ConfigT", bound=Section)


def ensure_case_world(folder: Path, config: CaseWorldConfig) -> Path:
    """Write a case world to a folder unless it already exists; the folder is created once the world is complete.

    Raises:
        ArtifactError: The folder contains other files or a different world; nothing in it is changed.
    """
    return ensure_written(folder, config, lambda partial: write_case_world(partial, config))


def write_case_world(folder: Path, config: CaseWorldConfig) -> dict[str, Any]:
    """Write the files of a case world to a folder; the same configuration gives the same bytes.

    The files are `tiles.zip` with `tiles.csv` (train, validation and test), `tiles_shift.zip` with `tiles_shift.csv`
    (unseen stain), `reports.jsonl` (see `write_case_reports`), `status_prompts.yaml`, `tissue_prompts.yaml`,
    `grade_prompts.yaml`, `morphology.yaml`, `boilerplate.yaml`, `status_rules.yaml`, and last `world.json`, with the
    configuration, counts, and the SHA-256 of each image set. In the tables, `status` and `grade` are those of the case
    for tumour tiles, and `not_tumour` for other tiles; `shows` is 1 for tiles with the mutant morphology.

    Returns:
        The content of `world.json`.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    cases = {split: draw_cases(config, split) for split in config.splits if split != EXTERNAL}
    draws = draw_splits(lambda split: _render(config.seed, split, cases[split]), cases)
    columns = {split: _columns(cases[split], draws[split].latents) for split in draws}
    digests = {
        name: write_tiles(folder, name, {split: draws[split] for split in splits}, columns)
        for name, splits in (("tiles", ("train", "validation", "test")), ("tiles_shift", ("shift",)))
    }
    reports = write_case_reports(folder / REPORTS, config)
    _write_prompts(folder)
    facts = {
        "config": config.model_dump(mode="json"),
        "classes": list(CLASSES),
        "counts": {split: _counts(columns[split], draw.latents) for split, draw in draws.items()},
        "reports": reports,
        "pixels_sha256": digests,
    }
    write_json(folder / "world.json", facts)
    return facts


def check_variants(config: Section, variants: Sequence[Sequence[str]]) -> None:
    """Check the variants of `add_variants` without writing anything.

    Raises:
        ConfigError: A key is unknown, or a value is not a number from 0 to 1.
    """
    for items in variants:
        vary_config(config, items)


def add_variants(folder: Path, config: CaseWorldConfig, variants: Sequence[Sequence[str]]) -> list[Path]:
    """Write additional reports of a world's cases, such as `reports_reported0.25.jsonl`; existing files are kept.

    Args:
        variants: Changed keys of `VARIED` for each file, such as `["reported=0.25", "wrong=0.4"]`.

    Returns:
        Paths of the files, in the order of `variants`.

    Raises:
        ConfigError: A key is unknown, or a value is not a number from 0 to 1; nothing is written.
        ArtifactError: A file cannot be written.
    """
    return write_variants(folder, config, variants, write_case_reports)


def write_variants(
    folder: Path, config: ConfigT, variants: Sequence[Sequence[str]], write: Callable[[Path, ConfigT], object]
) -> list[Path]:
    """Write variants of a world's reports, calling `write` with each path and configuration; see `add_variants`."""
    configs = {
        folder / f"reports_{'_'.join(item.replace('=', '') for item in items)}.jsonl": vary_config(config, items)
        for items in variants
    }
    for path, varied in configs.items():
        if not path.is_file():
            write(path, varied)
    return list(configs)


def vary_config(config: ConfigT, items: Sequence[str]) -> ConfigT:
    """Change keys of `VARIED`, given as `["reported=0.25"]`.

    Raises:
        ConfigError: A key is unknown, or a value is not a number from 0 to 1.
    """
    values = dict(item.partition("=")[::2] for item in items)
    try:
        if unknown := set(values) - set(VARIED):
            raise ValueError(f"unknown key {min(unknown)!r}")
        changes = {key: float(value) for key, value in values.items()}
        return type(config).model_validate(config.model_dump() | changes)
    except ValueError as error:
        raise ConfigError(
            f"invalid variant of the reports: {' '.join(items)}",
            where="--variant",
            fix=f"use KEY=SHARE with a key of {', '.join(VARIED)} and a share from 0 to 1, such as reported=0.25",
        ) from error


def _render(seed: int, split: str, cases: list[Case]) -> Draw:
    latents = Latents.concatenate([case.latents for case in cases])
    counts = [len(case.latents) for case in cases]
    centres = np.repeat(np.array([case.centre for case in cases], dtype=np.int64), counts)
    patients = np.repeat(np.arange(len(cases), dtype=np.int64), counts)
    return Draw(render(stream(seed, "cases", split, "pixels"), latents, centres), latents, centres, patients)


def _columns(cases: list[Case], latents: Latents) -> dict[str, list[object]]:
    tumour = (latents.tissue == LOW) | (latents.tissue == HIGH)
    owners = [case for case in cases for _ in range(len(case.latents))]
    shown = np.zeros(len(latents), dtype=np.int64) if latents.status is None else latents.status
    return {
        "status": [case.status if is_tumour else NOT_TUMOUR for case, is_tumour in zip(owners, tumour, strict=True)],
        "grade": [case.grade if is_tumour else NOT_TUMOUR for case, is_tumour in zip(owners, tumour, strict=True)],
        "shows": shown.tolist(),
    }


def _counts(columns: dict[str, list[object]], latents: Latents) -> dict[str, Any]:
    statuses = columns["status"]
    return {
        "tissue": {name: int((latents.tissue == k).sum()) for k, name in enumerate(CLASSES)},
        "status": {name: statuses.count(name) for name in sorted(set(map(str, statuses)))},
        "shows": columns["shows"].count(1),
    }


def _write_prompts(folder: Path) -> None:
    tissues = {label: words.PROMPT_NAMES[label] for label in CLASSES}
    for file, content in (
        (STATUS_PROMPT_FILE, prompt_set("synthetic-status", STATUS_PROMPTS)),
        (TISSUE_PROMPT_FILE, prompt_set("synthetic-8", tissues)),
        (GRADE_PROMPTS, grade_prompts("synthetic-grades", words.GRADE_NAMES)),
        (STATUS_RULE_FILE, STATUS_RULES),
    ):
        write_yaml(folder / file, content)
    write_prompt_bags(folder)
