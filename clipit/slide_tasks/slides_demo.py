"""Slide demo: map synthetic slides with a classifier and with prompts alone, and compare the maps with masks."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image

from clipit.config.data import SlidesConfig
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import counted
from clipit.evaluation.map_agreement import MapAgreement, compare_with_mask
from clipit.models.vlm import load_vlm
from clipit.prompts.prompt_set import load_prompts
from clipit.reporting.tables import markdown_table
from clipit.runs.predict_tiles import open_exported
from clipit.runs.prediction_chunks import PredictionOptions
from clipit.runs.tile_scorer import TileScorer, classifier_scorer, vlm_scorer
from clipit.slide_tasks.map import PAGE, MapOptions, map_slides
from clipit.slide_tasks.score import score_slides, write_slide_scores
from clipit.slide_tasks.slide_inputs import list_inputs
from clipit.slide_tasks.tile_scores import read_scores
from clipit.slides.prepare import PreparedSlide
from clipit.synthetic.latents import CLASSES
from clipit.synthetic.slide_world import SLIDES, SlideWorldConfig, ensure_slides
from clipit.tiles.mask_files import IGNORED

WORLD = SlideWorldConfig(seed=0, train=0, validation=0, test=3)
"""Slides of the demo, one per label."""
_OVERLAP = 0.5
_CELL = 16  # downsample at which maps and masks are compared: a quarter of a tile's edge


def demo_slides(run: Path, out: Path, config: RunConfig) -> str:
    """Score synthetic slides with a run's classifier and zero-shot with the VLM, and map the first slide.

    Args:
        run: Folder of the run.
        out: Output folder, with the slides in `world/` and the maps in `classifier/` and `prompts/`.
        config: Configuration of the run, with its VLM and whether the backbone's code may run.

    Returns:
        The agreement of both maps with the masks, as text.
    """
    world = ensure_slides(out / "world", WORLD)
    scorers = {
        "classifier": classifier_scorer(
            open_exported(run, vlm=config.vlm, trust_remote_code=config.backbone.trust_remote_code)
        ),
        "prompts": vlm_scorer(load_vlm(config.vlm, get_processes().device), load_prompts(str(world / "prompts.yaml"))),
    }
    listed = list_inputs([world / SLIDES])
    tiling = SlidesConfig(overlap=_OVERLAP, grids=str(out / "grids"))
    rows: list[list[object]] = []
    for name, scorer in scorers.items():
        folder = out / name
        scored = score_slides(listed, scorer, tiling, (), folder, PredictionOptions())
        pages = map_slides(replace(scored, prepared=scored.prepared[:1]), scorer, folder, MapOptions())
        write_slide_scores(scored, scorer, folder, pages)
        agreement = _agreement(scored.prepared, scorer, folder, world)
        if not rows:
            rows += [_row("most frequent tissue everywhere", agreement["floor"])]
            majority = _row("majority tissue per tile", agreement["majority"])
        rows.append(_row(f"map of the {scorer.title}", agreement["map"]))
    table = markdown_table(("agreement with the masks", "pixels", "mean Dice"), [*rows, majority])
    page = out / "classifier" / "slides" / listed.slides[0].name / PAGE
    classes = len(scorers["classifier"].classes)
    return (
        f"{counted(len(listed.slides), 'synthetic slide')}, {classes} tissue classes, agreement in %:\n\n"
        f"{table}\n\nMap of one slide: {page}"
    )


def _row(title: str, agreement: MapAgreement) -> list[object]:
    return [title, f"{100 * agreement.accuracy:.1f}", f"{100 * agreement.mean_dice:.1f}"]


def _agreement(
    slides: Sequence[PreparedSlide], scorer: TileScorer, folder: Path, world: Path
) -> dict[str, MapAgreement]:
    """Sum the agreement with the masks over all slides."""
    with (world / SLIDES).open(encoding="utf-8", newline="") as stream:
        mask_of = {row["slide"]: world / row["mask"] for row in csv.DictReader(stream)}
    total: dict[str, MapAgreement] = {}
    for slide in slides:
        scores = read_scores(slide, scorer, folder)
        truth = read_mask(mask_of[slide.name], scorer.classes)
        by_map = compare_with_mask(scores.grid, scorer.probabilities(scores.scores), truth, float(_CELL))
        total = {name: total[name].plus(part) if name in total else part for name, part in by_map.items()}
    return total


def read_mask(path: Path, classes: Sequence[str]) -> Int64[np.ndarray, "h w"]:
    """Sample the mask of a synthetic slide at the centre of each map pixel; -1 for glass.

    Args:
        path: Mask, in which the value k + 1 stands for class k of the synthetic world.
        classes: Classes of the world, in the order of the result.
    """
    with Image.open(path) as image:
        labels = np.asarray(image)
    middles = np.arange(_CELL // 2, len(labels), _CELL)
    code_of = np.array([IGNORED, *(list(classes).index(name) for name in CLASSES)], dtype=np.int64)
    return np.asarray(code_of[labels[np.ix_(middles, middles)]], dtype=np.int64)
