"""Score slides, evaluate the scores if labels are known, and write tables and a page."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from clipit.config.data import SlidesConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, shortlist
from clipit.evaluation.slide_metrics import choose_pooling, evaluate_slides
from clipit.evaluation.slide_prompts import ENSEMBLE, PUBLISHED_DRAWS, score_prompts
from clipit.evaluation.slide_scores import pool_slide, slide_table
from clipit.evaluation.slide_sets import PoolingKey, collect_slides
from clipit.models.adapted_base import base_of_adapted
from clipit.output_files.artifacts import write_record
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_frame, write_text
from clipit.reporting.html import Table
from clipit.reporting.slide_scores_page import slide_scores_page, slide_scores_summary
from clipit.reporting.subtyping_table import subtyping_tables
from clipit.reporting.tables import console_summary
from clipit.runs.prediction_chunks import PredictionOptions
from clipit.runs.tile_scorer import TileScorer, choose_tiling
from clipit.slide_tasks.prompt_draws import read_draw_scores, split_draws
from clipit.slide_tasks.tile import SlideOutcome, prepare_listed, slides_table, write_slides_table
from clipit.slide_tasks.tile_scores import read_scores, score_tiles, slide_folder
from clipit.slides.prepare import PreparedSlide
from clipit.tiles.slide_source import SlideList
from clipit.versions import git_commit, versions

logger = logging.getLogger(__name__)

SCORES, METRICS, RECORD, PAGE = "slide_scores.csv", "slide_metrics.csv", "scoring.json", "slides.html"
SUMMARY = "summary.md"
_KNOWN = ["slide", "label", "split", "group"]


@dataclass(frozen=True)
class ScoredSlides:
    """Scored slides; the same in all processes.

    Attributes:
        config: Resolution and size of the tiles that were scored.
        table: Slide scores, one row per slide, pooling and smoothing.
        draws: Slide scores for each sampled prompt set; empty without sampled sets.
    """

    outcome: SlideOutcome
    prepared: tuple[PreparedSlide, ...]
    config: SlidesConfig
    table: pd.DataFrame
    facts: Mapping[str, object]
    draws: Sequence[pd.DataFrame] = ()


@dataclass(frozen=True)
class SlideSummary:
    """Summary of scored slides: text for the console, and the page."""

    text: str
    page: Path


def score_slides(
    listed: SlideList,
    scorer: TileScorer,
    requested: SlidesConfig,
    stated: Sequence[str],
    out: Path,
    options: PredictionOptions,
) -> ScoredSlides:
    """Score the tiles of all slides and pool the scores; called by all processes, which share the slides.

    Args:
        requested: Requested resolution and size of tiles; unset values follow the model.
        stated: Which of `mpp` and `pixels` the user set; the other values are taken from the model.

    Raises:
        ConfigError: The model does not specify a resolution, and the user did not set one.
        DataError: No slide can be used, or a label is not a class of the model.
    """
    processes = get_processes()
    config, warnings = choose_tiling(scorer, requested, stated)
    assumed = scorer.mpp_assumed and "mpp" not in stated
    _check_labels(listed, scorer)
    if processes.main:
        for warning in warnings:
            logger.warning(warning)
        logger.info(f"{config.pixels}-pixel tiles at {config.mpp:g} µm per pixel, {scorer.title}")
    outcome = prepare_listed(listed, config)
    unread = score_tiles(outcome.prepared, scorer, out, options)
    lost = {slide.name for slide in unread}
    prepared = tuple(slide for slide in outcome.prepared if slide.name not in lost)
    pooled = {}
    unreadable = {}
    by_draw = []
    for slide in processes.share(prepared):
        scores = read_scores(slide, scorer, out)
        pooled[slide.name] = pool_slide(scores.scores, scores.grid.cells)
        if scores.unreadable:
            unreadable[slide.name] = scores.unreadable
        if scorer.draws is not None:
            by_draw.append(read_draw_scores(slide_folder(out, slide.name)))
    parts = processes.gather((pooled, unreadable, by_draw))
    merged = {name: entry for part, _, _ in parts for name, entry in part.items()}
    table = slide_table({slide.name: merged[slide.name] for slide in prepared}, scorer.classes)
    damaged = {name: count for _, part, _ in parts for name, count in part.items()}
    draws = split_draws([each for _, _, part in parts for each in part])
    facts: dict[str, object] = {
        "model": scorer.title,
        "classes": ", ".join(scorer.classes),
        "scores": "probabilities" if scorer.kind == "classifier" else "cosine similarities to the class prompts",
        "tiles read": f"{config.pixels} px at {config.mpp:g} µm per pixel, overlap {config.overlap:g}, "
        f"tissue {config.min_tissue:g}{'; resolution assumed from the backbone' if assumed else ''}",
        **{name: value for name, value in scorer.facts.items() if isinstance(value, str)},
    }
    if damaged:
        facts["unreadable tiles"] = ", ".join(f"{name}: {count}" for name, count in sorted(damaged.items()))
    outcome = SlideOutcome(outcome.listed, outcome.prepared, (*outcome.failed, *unread))
    return ScoredSlides(outcome, prepared, config, table, facts, draws)


def _check_labels(listed: SlideList, scorer: TileScorer) -> None:
    """Check the labels of slides before anything is scored."""
    unknown = sorted({label for label in listed.labels if label} - set(scorer.classes))
    if unknown:
        raise DataError(
            f"labels that are not classes of the model: {shortlist(unknown)}; "
            f"its classes are {', '.join(scorer.classes)}",
            where=listed.where,
            fix="correct or clear the label column, or score with prompts for these classes",
        )


def chosen_pooling(scored: ScoredSlides, scorer: TileScorer) -> PoolingKey | None:
    """Choose the pooling on labelled validation slides; None if there are none."""
    known = slides_table(scored.outcome)[_KNOWN]
    return choose_pooling(collect_slides(scored.table, known, scorer.classes)).key


def write_slide_scores(
    scored: ScoredSlides,
    scorer: TileScorer,
    out: Path,
    pages: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> SlideSummary:
    """Write tables, summary and page of all slides. Must be called by all processes; only the main one writes.

    Writes `slides.csv`, `slide_scores.csv`, `slide_metrics.csv` (if labels are known), `summary.md`, `slides.html` and
    `scoring.json`, which records the model, the tiles and versions.

    Args:
        pages: Path of each slide's page relative to `out`, by slide name.
        notes: Notes on patients of the slides (`slide_runs.check_patients`).
    """
    processes = get_processes()
    table = slides_table(scored.outcome)
    known = table[_KNOWN]
    failures = {slide.name: slide.explain() for slide in scored.outcome.failed}
    evaluation = evaluate_slides(scored.table, known, scorer.classes, failures=failures)
    note = caution(scorer, notes)
    title = f"Slides scored by the {scorer.title}"
    published = [] if scorer.kind == "classifier" else _tables_with_published(scored, known, scorer)
    text = slide_scores_summary(title, note, evaluation, scored.facts, published)
    if processes.main:
        write_slides_table(out, table)
        write_frame(out / SCORES, scored.table)
        if (known["label"] != "").any():
            write_frame(out / METRICS, evaluation.scores)
        else:
            (out / METRICS).unlink(missing_ok=True)  # written for an earlier list with labels
        write_text(out / SUMMARY, text)
        write_text(out / PAGE, slide_scores_page(title, note, evaluation, scored.facts, pages, published))
        record = {
            "model": dict(scored.facts),
            "tiles": scored.config.model_dump(mode="json", exclude={"grids"}),
            "slides": {slide.name: slide.stamp for slide in scored.prepared},
            "chosen": str(evaluation.choice.sentence),
            "commit": git_commit(),
            "versions": versions(),
        }
        write_record(out / RECORD, record)
        delete_leftovers(out)
    processes.barrier()
    tables = [out / SCORES, out / "slides.csv", *([out / METRICS] if (known["label"] != "").any() else [])]
    shown = console_summary(text)
    if damaged := scored.facts.get("unreadable tiles"):
        shown += f"\n\nnote: unreadable tiles: {damaged}"
    return SlideSummary(f"{shown}\n\npage: {out / PAGE}\ntables: {', '.join(map(str, tables))}", out / PAGE)


def _tables_with_published(scored: ScoredSlides, known: pd.DataFrame, scorer: TileScorer) -> list[Table]:
    """Tabulate zero-shot scores by prompt set, followed by published scores for the same classes.

    Empty if there are neither sampled prompt sets nor published scores for these classes.
    """
    tables = {ENSEMBLE: [scored.table]} | ({PUBLISHED_DRAWS: scored.draws} if scored.draws else {})
    scores = score_prompts(tables, known, scorer.classes)
    return subtyping_tables(scores, scorer.classes, scorer.title)


def caution(scorer: TileScorer, notes: Sequence[str]) -> str:
    """Compose the note at the top of a page: `embedded_caution`, and notes on patients."""
    listed = [note.removeprefix("WARNING: ") for note in notes]
    return " ".join(filter(None, [embedded_caution(scorer), *(f"{note[:1].upper()}{note[1:]}." for note in listed)]))


def embedded_caution(scorer: TileScorer) -> str:
    """Return a warning if the models were trained only on synthetic tiles; "" otherwise."""
    names = (str(scorer.facts.get(role, "")) for role in ("backbone", "vlm"))
    if "embedded" not in map(base_of_adapted, names):
        return ""
    return (
        "The bundled models were trained only on synthetic tiles: on real slides, these scores show only that the "
        "code runs."
    )
