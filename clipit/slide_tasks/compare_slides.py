"""Compare the classifiers of runs on slide labels: score the slides with every run, then compare arms."""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from clipit.config.data import SlidesConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, DataError
from clipit.evaluation.slide_arms import SlideComparison, compare_slide_arms
from clipit.output_files.artifacts import write_record
from clipit.output_files.whole_files import write_frame, write_text
from clipit.reporting.slide_arms_page import ComparedRun, slide_arms_page, slide_arms_summary, slide_verdict
from clipit.reporting.tables import console_summary
from clipit.runs.predict_tiles import open_exported
from clipit.runs.prediction_chunks import PredictionOptions
from clipit.runs.tile_scorer import TileScorer, classifier_scorer
from clipit.slide_tasks.score import PAGE as SCORES_PAGE
from clipit.slide_tasks.score import ScoredSlides, SlideSummary, caution, score_slides, write_slide_scores
from clipit.slide_tasks.slide_runs import ZERO_SHOT, SlideRun
from clipit.slide_tasks.tile import SlideOutcome, slides_table, write_slides_table
from clipit.slides.prepare import FailedSlide
from clipit.tiles.slide_source import SlideList
from clipit.versions import git_commit, package_version, versions

logger = logging.getLogger(__name__)

TABLE, SCORES, RECORD = "slide_comparison.csv", "slide_scores.csv", "slide_comparison.json"
PAGE, SUMMARY = "comparison.html", "summary.md"
RUNS = "runs"
"""Folder with the scores of each run."""


@dataclass(frozen=True)
class ComparisonOptions:
    """Options for opening and comparing runs.

    Attributes:
        reference: Arm that all others are compared with.
        device: Device; None for the device of the process.
        bf16: Whether to compute in bfloat16.
        trust_remote_code: Whether to run Python code that defines a backbone.
    """

    reference: str
    scoring: PredictionOptions
    device: str | None = None
    bf16: bool = False
    trust_remote_code: bool = False
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class _ScoredArm:
    run: ComparedRun
    scored: ScoredSlides
    caution: str


def compare_slides(
    listed: SlideList,
    runs: Sequence[SlideRun],
    vlm: TileScorer | None,
    requested: SlidesConfig,
    stated: Sequence[str],
    out: Path,
    options: ComparisonOptions,
    notes: Sequence[str] = (),
) -> SlideSummary:
    """Score slides with every run and compare the arms; called by all processes, which share the slides.

    Writes `runs/<arm>-seed<seed>/` with the scores of each run, as `clipit slides score` does, and `slides.csv`,
    `slide_scores.csv` (all runs), `slide_comparison.csv`, `slide_comparison.json` (provenance), `summary.md` and
    `comparison.html`. Slides that one of the runs cannot score are dropped for all and listed.

    Args:
        runs: Runs that can be compared (`slide_runs.check_comparison`).
        vlm: Zero-shot VLM as an additional arm; None for no such arm.
        requested: Requested resolution and size of tiles; unset values follow each model.
        stated: Those of `mpp` and `pixels` that the user set; otherwise, the values of each model apply.
        options: Options for opening and comparing the runs.
        notes: Notes on patients of the slides (`slide_runs.check_patients`), shown on every page.

    Raises:
        DataError: No slide can be used, or no slide can be scored by every run.
    """
    arms: list[_ScoredArm] = []
    for arm, seed, model, name, open_scorer in _models(runs, vlm, options):
        if get_processes().main:
            logger.info(f"{name}:")
        scorer, scores_folder = open_scorer(), out / RUNS / name
        scored = score_slides(listed, scorer, requested, stated, scores_folder, options.scoring)
        write_slide_scores(scored, scorer, scores_folder, notes=notes)
        run = ComparedRun(arm, seed, model, str(scored.facts["tiles read"]), f"{RUNS}/{name}/{SCORES_PAGE}")
        if arms:  # tile positions are needed only once, not for each run
            scored = replace(scored, prepared=(), outcome=replace(scored.outcome, prepared=()))
        arms.append(_ScoredArm(run, scored, caution(scorer, notes)))
        if scorer.device.type == "cuda":
            del scorer
            gc.collect()  # frees the memory of the device before the next model is loaded
    return _write_comparison(listed, arms, runs[0].classes, out, options)


def _models(
    runs: Sequence[SlideRun], vlm: TileScorer | None, options: ComparisonOptions
) -> Iterator[tuple[str, int, str, str, Callable[[], TileScorer]]]:
    """Yield arm, seed, folder or title, and name of each model, and the function that opens it."""
    for run in runs:
        yield run.arm, run.seed, str(run.folder), run.name, partial(_open, run.folder, options)
    if vlm is not None:
        yield ZERO_SHOT, 0, vlm.title, "vlm", lambda: vlm


def _open(folder: Path, options: ComparisonOptions) -> TileScorer:
    dtype = "bfloat16" if options.bf16 else None
    return classifier_scorer(
        open_exported(folder, options.device, dtype=dtype, trust_remote_code=options.trust_remote_code)
    )


def check_resolution(runs: Sequence[SlideRun], vlm: TileScorer | None) -> None:
    """Check that every model specifies the resolution of its training tiles.

    Raises:
        ConfigError: A model does not specify the resolution.
    """
    unknown = [run.name for run in runs if run.mpp is None]
    if vlm is not None and vlm.mpp is None:
        unknown.append(vlm.title)
    if unknown:
        raise ConfigError(
            "these models do not specify the resolution of their training tiles",
            where=", ".join(unknown),
            fix="set the resolution, for example --tile-mpp 0.5",
        )


def _write_comparison(
    listed: SlideList, arms: Sequence[_ScoredArm], classes: Sequence[str], out: Path, options: ComparisonOptions
) -> SlideSummary:
    """Compare the scores and write tables, page and record.

    Must be called by all processes; only the main one writes.
    """
    processes = get_processes()
    outcome = _common_slides(listed, arms)
    names = {slide.name for slide in outcome.prepared}
    slides = slides_table(outcome)
    tables: dict[str, dict[int, pd.DataFrame]] = {}
    for entry in arms:
        table = entry.scored.table
        tables.setdefault(entry.run.arm, {})[entry.run.seed] = table[table["slide"].isin(names)]
    comparison = compare_slide_arms(
        tables, slides, classes, options.reference, resamples=options.resamples, seed=options.seed
    )
    facts = _facts(listed, arms, outcome, options)
    runs, failed = [entry.run for entry in arms], [(slide.name, slide.reason) for slide in outcome.failed]
    note = next((entry.caution for entry in arms if entry.caution), "")
    text = slide_arms_summary(note, comparison, classes, runs, failed, facts)
    if processes.main:
        write_slides_table(out, slides)
        write_frame(out / TABLE, comparison.table)
        frames = [
            table.assign(arm=arm, seed=seed) for arm, by_seed in tables.items() for seed, table in by_seed.items()
        ]
        write_frame(out / SCORES, pd.concat(frames, ignore_index=True))
        write_text(out / SUMMARY, text)
        write_text(out / PAGE, slide_arms_page(note, comparison, classes, runs, failed, facts))
        write_record(out / RECORD, _record(comparison, arms, outcome, options))
    processes.barrier()
    return SlideSummary(
        f"{console_summary(text, '## Runs')}\n\npage: {out / PAGE}\ntables: {out / TABLE}, {out / SCORES}", out / PAGE
    )


def _common_slides(listed: SlideList, arms: Sequence[_ScoredArm]) -> SlideOutcome:
    """Return the slides that every arm scored, and the failed slides with the reason from the first arm that failed.

    Raises:
        DataError: No slide was scored by every arm.
    """
    failed: dict[str, FailedSlide] = {}
    for entry in arms:
        for slide in entry.scored.outcome.failed:
            everywhere = all(slide.name in {each.name for each in arm.scored.outcome.failed} for arm in arms)
            reason = slide.reason if everywhere else f"{entry.run.name}: {slide.reason}"
            failed.setdefault(slide.name, FailedSlide(slide.name, slide.path, reason, slide.fix))
    prepared = tuple(slide for slide in arms[0].scored.prepared if slide.name not in failed)
    if not prepared:
        raise DataError(
            "no slide can be scored by every arm", where=listed.where, fix="see slides.csv in the folder of each run"
        )
    return SlideOutcome(listed, prepared, tuple(failed[name] for name in sorted(failed)))


def _facts(
    listed: SlideList, arms: Sequence[_ScoredArm], outcome: SlideOutcome, options: ComparisonOptions
) -> Mapping[str, object]:
    seeds: dict[str, list[str]] = {}
    for entry in arms:
        if entry.run.arm != ZERO_SHOT:
            seeds.setdefault(entry.run.arm, []).append(str(entry.run.seed))
    return {
        "slides": f"{len(outcome.prepared)} of {len(listed.slides)} in {listed.where}",
        "reference": options.reference,
        "seeds": "; ".join(f"{arm}: {', '.join(numbers)}" for arm, numbers in seeds.items()),
        "bootstrap": f"{options.resamples} resamples, seed {options.seed}",
        "commit": git_commit(),
        "clipit": package_version(),
    }


def _record(
    comparison: SlideComparison, arms: Sequence[_ScoredArm], outcome: SlideOutcome, options: ComparisonOptions
) -> dict[str, object]:
    return {
        "verdict": slide_verdict(comparison),
        "reference": comparison.reference,
        "poolings": {arm: choice.sentence for arm, choice in comparison.choices.items()},
        "runs": [
            {
                "arm": entry.run.arm,
                "seed": entry.run.seed,
                "model": entry.run.model,
                "facts": dict(entry.scored.facts),
                "tiles": entry.scored.config.model_dump(mode="json", exclude={"grids"}),
            }
            for entry in arms
        ],
        "slides": {slide.name: slide.stamp for slide in outcome.prepared},
        "failed": {slide.name: slide.reason for slide in outcome.failed},
        "bootstrap": {"resamples": options.resamples, "seed": options.seed},
        "commit": git_commit(),
        "versions": versions(),
    }
