"""Synthetic slides of patients with reports; most reports state the status of the tumour."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image
from pydantic import Field

from clipit.config.section import Share
from clipit.errors import disk_errors
from clipit.output_files.artifacts import write_json
from clipit.synthetic import vocabulary as words
from clipit.synthetic.case_latents import Case
from clipit.synthetic.case_reports import ReportOptions, write_own_reports
from clipit.synthetic.case_world import REPORTS, STATUS_PROMPT_FILE, STATUS_RULE_FILE, write_variants
from clipit.synthetic.language import choose
from clipit.synthetic.latents import HIGH, LOW, Latents, attributes, stream
from clipit.synthetic.slide_world import (
    STATUS_MASK,
    ListedSlide,
    SlideWorldConfig,
    ensure_slides,
    list_world_slides,
    write_slide_files,
)
from clipit.synthetic.status_words import MUTATED, STATUS_PROMPTS, STATUS_RULES, WILD_TYPE
from clipit.synthetic.world_files import prompt_set, write_prompt_bags, write_yaml

_N_PIXELS = 40
"""Number of pixels sampled per slide; the report may describe their tissues."""


class ReportedSlidesConfig(SlideWorldConfig):
    """Synthetic slides with a report per patient."""

    mutated: Share = 0.5
    """Probability that a patient's tumour is mutated."""
    shows: Share = Field(0.8, gt=0)
    """Fraction of a mutated tumour that has the mutant morphology, arranged in foci."""
    reported: Share = 1.0
    """Fraction of the patients who have a report."""
    earlier: Share = 0.1
    """Fraction of the patients who have a second report, on an earlier biopsy, which does not state the status."""
    silent: Share = 0.1
    """Fraction of the patients whose report does not state the status; half of these mention it as uncertain."""
    wrong: Share = 0.05
    """Fraction of the other patients whose report states the wrong status."""
    noise: Share = 0.01
    """Fraction of a report's characters that are misread."""


def write_reported_slides(folder: Path, config: ReportedSlidesConfig) -> dict[str, Any]:
    """Write synthetic slides with the reports of their patients; the same configuration gives the same bytes.

    The files are those of `write_slides`, but every slide has a tumour, and the table has two additional columns:
    `status` (`mutated` or `wild_type`), and `status_mask`, the path of a mask that is 1 where the tumour has the
    mutant morphology. As in a case world, there are also `reports.jsonl`, `status_prompts.yaml`,
    `status_rules.yaml`, `morphology.yaml` and `boilerplate.yaml`.

    Returns:
        Content of `world.json`.

    Raises:
        DataError: tifffile is not installed; nothing is written.
        ArtifactError: The folder cannot be written.
    """
    facts = write_slide_files(folder, config, _list_with_status(config))
    reports = write_slide_reports(folder / REPORTS, config)
    write_yaml(folder / STATUS_PROMPT_FILE, prompt_set("synthetic-status", STATUS_PROMPTS))
    write_yaml(folder / STATUS_RULE_FILE, STATUS_RULES)
    write_prompt_bags(folder)
    facts |= {"reports": reports}
    write_json(folder / "world.json", facts)
    return facts


def ensure_reported_slides(folder: Path, config: ReportedSlidesConfig) -> Path:
    """Write synthetic slides with reports to a folder, atomically, unless it already contains them.

    Raises:
        DataError: tifffile is not installed.
        ArtifactError: The folder contains other files or a different world; nothing in it is changed.
    """
    return ensure_slides(folder, config, write_reported_slides)


def add_slide_variants(folder: Path, config: ReportedSlidesConfig, variants: Sequence[Sequence[str]]) -> list[Path]:
    """Write additional reports of a slide world's patients, as `add_variants` does for a case world."""
    return write_variants(folder, config, variants, write_slide_reports)


def write_slide_reports(path: Path, config: ReportedSlidesConfig) -> dict[str, dict[str, int]]:
    """Write the reports for a slide world; reports describe tissues in the masks, which are in the same folder.

    Returns:
        Counts by split, as in `write_case_reports`.

    Raises:
        ArtifactError: A mask cannot be read, or the file cannot be written.
    """
    tissues: dict[str, list[Int64[np.ndarray, " k"]]] = {}
    patients: dict[str, ListedSlide] = {}
    for slide in _list_with_status(config):
        patients[str(slide.row["group"])] = slide
        mask = path.parent / str(slide.row["mask"])
        with disk_errors(mask):
            labels = np.asarray(Image.open(mask))
        codes = labels[labels > 0].astype(np.int64) - 1
        rng = stream(config.seed, "slides", slide.name, "fields")
        tissues.setdefault(str(slide.row["group"]), []).append(rng.choice(codes, _N_PIXELS))
    cases_of_split: dict[str, list[Case]] = {"train": [], "validation": [], "test": []}
    for name, slide in patients.items():
        case = _describe_case(config, slide, np.concatenate(tissues[name]))
        cases_of_split[str(slide.row["split"])].append(case)
    return write_own_reports(path, ReportOptions.of(config), cases_of_split)


def _list_with_status(config: ReportedSlidesConfig) -> Iterator[ListedSlide]:
    """List slides that all have a tumour, and draw the status of each patient independently of the grade."""
    for slide in list_world_slides(config, (LOW, HIGH)):
        mutated = stream(config.seed, "slides", str(slide.row["group"]), "mutated").random() < config.mutated
        status = MUTATED if mutated else WILD_TYPE
        row = slide.row | {"status": status, STATUS_MASK: f"masks/{slide.name}_status.png"}
        yield replace(slide, row=row, shows=config.shows if status == MUTATED else 0.0)


def _describe_case(config: ReportedSlidesConfig, slide: ListedSlide, tissue: Int64[np.ndarray, " k"]) -> Case:
    """Draw the case that a patient's report describes: its organ, and the attributes of the tissues on the slides."""
    name = str(slide.row["group"])
    rng = stream(config.seed, "slides", name, "case")
    grade = "low" if slide.main == LOW else "high"
    diagnosis = f"{grade}_grade_tumour"
    organ = choose(rng, words.ORGANS)
    count = len(tissue)
    latents = Latents(tissue, np.full(count, -1, dtype=np.int64), np.zeros(count), **attributes(rng, tissue))
    return Case(name, diagnosis, grade, str(slide.row["status"]), organ, slide.centre, latents)
