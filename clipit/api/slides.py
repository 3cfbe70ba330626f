"""Process whole-slide images in Python: tile, score and map slides, and compare arms on slide labels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd

from clipit.api.entry import public
from clipit.api.slide_options import grid_options, open_scorer, vlm_section, zero_shot_classes
from clipit.api.study_result import ResultFiles
from clipit.config.paths import output_path
from clipit.errors import counted
from clipit.output_files.whole_files import read_csv_frame

if TYPE_CHECKING:
    from clipit.config.run import VLMConfig
    from clipit.models.inference import Classifier
    from clipit.runs.text_neighbours import TextNeighbours
    from clipit.runs.tile_scorer import TileScorer

logger = logging.getLogger(__name__)

_TEXT_COLUMNS = frozenset(
    {"slide", "path", "label", "split", "group", "status", "reason", "fix", "format", "notes", "predicted", "arm"}
)
"""Text columns of the slide tables."""

Inputs = str | Path | Sequence[str | Path]
"""Slide, folder of slides or table of slides, or a list of slides and folders."""


@dataclass(frozen=True)
class SlidesResult(ResultFiles):
    """Processed slides.

    Attributes:
        folder: Output folder; the files of a slide are in `slides/<name>/`.
        text: Summary, as printed by the command.
        page: HTML page of all slides; None if the slides were only tiled.
    """

    folder: Path
    text: str
    page: Path | None = None

    @cached_property
    def slides(self) -> pd.DataFrame:
        """Slides, one row each: slide, path, label, split, group, status, reason, tiles, mpp and additional columns."""
        return read_csv_frame(self.folder / "slides.csv", _TEXT_COLUMNS)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Slide scores, one row per slide, pooling and smoothing.

        Columns: slide, tiles, pooling, smoothed, pooled, score_<class>, predicted and tied.
        """
        return read_csv_frame(self.folder / "slide_scores.csv", _TEXT_COLUMNS)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Metrics of labelled slides, one row per split, level, pooling and metric; empty without labels.

        Columns: split, level (`slide` or `patient`), pooling, smoothed, chosen, metric, value with its interval (low,
        high), and the numbers of labelled slides or patients.
        """
        path = self.folder / "slide_metrics.csv"
        return read_csv_frame(path, _TEXT_COLUMNS) if path.is_file() else pd.DataFrame()


@dataclass(frozen=True)
class SlideCompareResult(ResultFiles):
    """Arms compared on slide labels.

    Attributes:
        folder: Output folder.
        text: Summary, as printed by the command.
        page: HTML page of the comparison.
    """

    folder: Path
    text: str
    page: Path

    @cached_property
    def table(self) -> pd.DataFrame:
        """Main table, one row per split, level (`slide` or `patient`), metric and arm, with scores from 0 to 1.

        Columns: mean and sd over seeds; difference from the reference with its bootstrap interval over patients (low,
        high) and its t-interval over seeds (seeds_low, seeds_high); p (paired t-test) and p_holm (Holm-corrected over
        the arms); the pooling of the arm; the numbers of seeds, of labelled slides or patients, and of patients.
        """
        return read_csv_frame(self.folder / "slide_comparison.csv", _TEXT_COLUMNS)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Slide scores of every arm and seed, one row per slide, pooling and smoothing."""
        return read_csv_frame(self.folder / "slide_scores.csv", _TEXT_COLUMNS)

    @cached_property
    def verdict(self) -> str:
        """Verdict on which arms are better than the reference, in one sentence."""
        from clipit.output_files.artifacts import read_json

        record = read_json(self.folder / "slide_comparison.json", "delete it and compare again; the scores are kept")
        return str(record["verdict"])


@public
def tile_slides(
    slides: Inputs,
    out: str | Path,
    *,
    extras: Sequence[Literal["png", "h5"]] = (),
    images: str | Path | None = None,
    mpp: float | None = None,
    tile_mpp: float | None = None,
    tile_pixels: int | None = None,
    overlap: float = 0.0,
    min_tissue: float = 0.5,
    contours: str | Path | None = None,
) -> SlidesResult:
    """Find the tissue of slides and lay a grid of tiles over it.

    Slides that cannot be used are listed in `slides.csv`, and the others are processed.

    Example:
        >>> result = clipit.tile_slides("slides/", "grids", tile_mpp=0.5, tile_pixels=224)
        >>> result.slides[["slide", "status", "tiles"]]

    Args:
        slides: Slides, folders of slides, or one table with a `slide` column.
        out: Folder to write to.
        extras: `png` to also write the tiles as files, `h5` to also write their coordinates in TRIDENT's format.
        images: Folder that the file paths in a table are relative to; None for the folder of the table.
        mpp: Micrometres per pixel of the finest level, for slides without this metadata.
        tile_mpp: Micrometres per pixel of the tiles; None for 0.5.
        tile_pixels: Edge length of a tile in pixels; None for 224.
        overlap: Overlap of adjacent tiles as a fraction of their edge length.
        min_tissue: Fraction of a tile that must be tissue.
        contours: GeoJSON contours of the tissue, or a folder with one file per slide; None to detect tissue.

    Raises:
        DataError: No slide can be used, or a package for reading slides is missing.
        ConfigError: An option is invalid.
    """
    from clipit.reporting.tables import markdown_table
    from clipit.slide_tasks.output_folder import output_folder
    from clipit.slide_tasks.slide_inputs import list_inputs
    from clipit.slide_tasks.tile import TILING as RECORD
    from clipit.slide_tasks.tile import tile_slides as tile

    folder = output_path(Path(out))
    config, _ = grid_options(folder, tile_mpp, tile_pixels, overlap, min_tissue, contours)
    listed = list_inputs(_paths(slides), mpp, None if images is None else Path(images))
    with output_folder(folder, RECORD):
        table = tile(listed, config, folder, tuple(extras))
    shown = table[table["status"] == "ok"]
    rows = [[row.slide, row.format, f"{row.mpp:.4g}", f"{row.tissue:.0%}", row.tiles] for row in shown.itertuples()]
    text = markdown_table(["slide", "format", "µm per pixel", "tissue", "tiles"], rows[:20])
    more = f"\n... and {len(rows) - 20} more" if len(rows) > 20 else ""
    failed = int((table["status"] == "failed").sum())
    note = f"\nnote: {counted(failed, 'slide')} cannot be used; see the `reason` column" if failed else ""
    return SlidesResult(folder, f"{text}{more}{note}\ntable: {folder / 'slides.csv'}")


@public
def score_slides(
    slides: Inputs,
    out: str | Path,
    *,
    classifier: "str | Path | Classifier | None" = None,
    prompts: str | Path | None = None,
    classes: str | Sequence[str] | None = None,
    vlm: "str | VLMConfig | None" = None,
    images: str | Path | None = None,
    mpp: float | None = None,
    tile_mpp: float | None = None,
    tile_pixels: int | None = None,
    overlap: float = 0.0,
    min_tissue: float = 0.5,
    contours: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    bf16: bool = False,
    trust_remote_code: bool = False,
    leaks_policy: Literal["error", "note"] = "error",
    maps: bool = False,
    top: int = 8,
    snippets: str | Path | None = None,
) -> SlidesResult:
    """Score slides with a classifier, or zero-shot from class prompts with a student or a VLM; optionally map them.

    Every tile is scored, and the scores are pooled per slide (`clipit.evaluation.slide_scores`). After an
    interruption, the same call continues with the slides that are left. If the table of slides has labels, the scores
    are evaluated.

    Example:
        >>> result = clipit.score_slides("slides.csv", "scores", classifier="outputs/run")
        >>> result.scores.query("pooling == 'mean' and not smoothed")

    Args:
        slides: Slides, folders of slides, or one table with a `slide` column and, if known, `label`, `split` and
            `group` columns.
        out: Folder to write to.
        classifier: Folder of a classifier or of a run, or a loaded classifier; None to use a VLM with prompts.
        prompts: Prompt file, packaged prompt set, or prompt set stored in the classifier, to score zero-shot. All names
            and templates of a class are averaged; with only a VLM, the sampled prompt sets in a published file
            (MI-Zero, KEP) are also scored one by one, and their median is reported.
        classes: Classes, as a list or separated by semicolons, used as prompts without templates.
        vlm: VLM that encodes prompts.
        images: Folder that the file paths in a table are relative to; None for the folder of the table.
        mpp: Micrometres per pixel of the finest level, for slides without this metadata.
        tile_mpp: Micrometres per pixel of the tiles; None for the resolution of the model's training tiles.
        tile_pixels: Edge length of a tile in pixels; None for the size of the model's training tiles.
        overlap: Overlap of adjacent tiles as a fraction of their edge length.
        min_tissue: Fraction of a tile that must be tissue.
        contours: GeoJSON contours of the tissue, or a folder with one file per slide; None to detect tissue.
        batch_size: Tiles per batch.
        workers: Threads that read tiles while the model runs; 0 for one per core, at most 8.
        device: Device such as `cuda:1`; None for the GPU, if there is one.
        bf16: Whether to compute in bfloat16.
        trust_remote_code: Whether the backbone or the VLM may run Python code from its own repository.
        leaks_policy: What to do if a patient of labelled slides is in two splits, or if the run of the classifier was
            trained on tiles of patients with test slides: raise an error, or only note it.
        maps: Whether to write heat maps, QuPath files and a page per slide.
        top: Number of tiles shown per class on a slide's page.
        snippets: Configuration whose snippets are shown next to the top tiles; None to show none.

    Raises:
        ConfigError: There is neither a classifier nor a VLM with prompts, or an option is invalid.
        DataError: No slide can be used, a package for reading slides is missing, or leaks are found.
        ModelError: The model cannot be loaded, or does not support zero-shot classification.
    """
    from clipit.runs.prediction_chunks import PredictionOptions
    from clipit.slide_tasks.output_folder import output_folder
    from clipit.slide_tasks.score import RECORD, write_slide_scores
    from clipit.slide_tasks.score import score_slides as score
    from clipit.slide_tasks.slide_inputs import list_inputs
    from clipit.slide_tasks.slide_runs import check_patients, run_of_classifier

    folder = output_path(Path(out))
    grid, stated = grid_options(folder, tile_mpp, tile_pixels, overlap, min_tissue, contours)
    listed = list_inputs(_paths(slides), mpp, None if images is None else Path(images))
    path = Path(classifier) if isinstance(classifier, str | Path) else None
    runs: list[Path] | None = []  # a VLM with prompts does not come from a run
    if classifier is not None:
        runs = None if path is None else run_of_classifier(path)
    notes = check_patients(listed, runs, leaks_policy, vlm_section(vlm) if classifier is None else None)
    scorer = open_scorer(classifier, prompts, classes, vlm, device, bf16, trust_remote_code)
    with output_folder(folder, RECORD):
        scored = score(listed, scorer, grid, stated, folder, PredictionOptions(batch_size, workers))
        pages = None
        if maps:
            from clipit.slide_tasks.map import MapOptions, map_slides

            texts = None if snippets is None else _snippets(snippets, scorer)
            pages = map_slides(scored, scorer, folder, MapOptions(top, texts))
        summary = write_slide_scores(scored, scorer, folder, pages, notes)
    return SlidesResult(folder, summary.text, summary.page)


@public
def compare_slides(
    slides: Inputs,
    runs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    reference: str,
    vlm: "str | VLMConfig | None" = None,
    prompts: str | Path | None = None,
    images: str | Path | None = None,
    mpp: float | None = None,
    tile_mpp: float | None = None,
    tile_pixels: int | None = None,
    overlap: float = 0.0,
    min_tissue: float = 0.5,
    contours: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    bf16: bool = False,
    trust_remote_code: bool = False,
    leaks_policy: Literal["error", "note"] = "error",
) -> SlideCompareResult:
    """Compare the arms of trained runs on slide labels, optionally with a zero-shot VLM as an additional arm.

    The arm and seed of a run are read from its configuration. Every run scores the slides as `score_slides` does. After
    an interruption, the same call continues where it stopped. The pooling of each arm is chosen on the validation
    slides of the table, if there are any, and the arms are compared on the other slides, except those in the split
    `train`.

    Example:
        >>> result = clipit.compare_slides("slides.csv", "outputs/runs/demo", "compared", reference="image_only")
        >>> print(result.verdict)

    Args:
        slides: Table of slides with the columns `slide` and `label` and, if known, `split` and `group`.
        runs: Folders of runs, or folders that contain runs.
        out: Folder to write to.
        reference: Arm that the others are compared with.
        vlm: VLM whose zero-shot prediction is an additional arm, `VLM zero-shot`; None for no such arm.
        prompts: Prompt file or packaged prompt set for the VLM.
        images: Folder that the file paths in a table are relative to; None for the folder of the table.
        mpp: Micrometres per pixel of the finest level, for slides without this metadata.
        tile_mpp: Micrometres per pixel of the tiles; None for the resolution of each model's training tiles.
        tile_pixels: Edge length of a tile in pixels; None for the size of each model's training tiles.
        overlap: Overlap of adjacent tiles as a fraction of their edge length.
        min_tissue: Fraction of a tile that must be tissue.
        contours: GeoJSON contours of the tissue, or a folder with one file per slide; None to detect tissue.
        batch_size: Tiles per batch.
        workers: Threads that read tiles while the model runs; 0 for one per core, at most 8.
        device: Device such as `cuda:1`; None for the GPU, if there is one.
        bf16: Whether to compute in bfloat16.
        trust_remote_code: Whether a backbone or the VLM may run Python code from its own repository.
        leaks_policy: What to do if a patient of labelled slides is in two splits, or if a run was trained on tiles of
            patients with test slides: raise an error, or only note it.

    Raises:
        ConfigError: An option is invalid, or only one of `vlm` and `prompts` is given.
        DataError: The runs cannot be compared on these slides, leaks are found, or no slide can be used.
        ArtifactError: A run is damaged.
        ModelError: A model cannot be loaded.
    """
    from clipit.distributed import get_processes
    from clipit.runs.prediction_chunks import PredictionOptions
    from clipit.slide_tasks.compare_slides import RECORD, ComparisonOptions, check_resolution
    from clipit.slide_tasks.compare_slides import compare_slides as compare
    from clipit.slide_tasks.output_folder import output_folder
    from clipit.slide_tasks.slide_inputs import list_inputs
    from clipit.slide_tasks.slide_runs import check_comparison, check_patients, find_runs

    folder = output_path(Path(out))
    grid, stated = grid_options(folder, tile_mpp, tile_pixels, overlap, min_tissue, contours)
    listed = list_inputs(_paths(slides), mpp, None if images is None else Path(images))
    compared, notes = find_runs(_paths(runs))
    zero_shot = zero_shot_classes(vlm, prompts)
    check_comparison(compared, reference, listed, zero_shot)
    if get_processes().main:
        for note in notes:
            logger.info(f"note: {note}")
    leaks = check_patients(listed, [run.folder for run in compared], leaks_policy, vlm_section(vlm))
    scorer = None if vlm is None else open_scorer(None, prompts, None, vlm, device, bf16, trust_remote_code)
    if "mpp" not in stated:
        check_resolution(compared, scorer)
    options = ComparisonOptions(reference, PredictionOptions(batch_size, workers), device, bf16, trust_remote_code)
    with output_folder(folder, RECORD):
        summary = compare(listed, compared, scorer, grid, stated, folder, options, leaks)
    return SlideCompareResult(folder, summary.text, summary.page)


def _snippets(config: str | Path, scorer: "TileScorer") -> "TextNeighbours":
    """Open the snippets of a configuration, embedded with the text tower of the scoring model."""
    from clipit.api.configuration import load_config
    from clipit.runs.text_neighbours import snippet_neighbours
    from clipit.workspace.workspace import Workspace

    return snippet_neighbours(Workspace(load_config(config).run), scorer.vlm, scorer.text_mean)


def _paths(slides: Inputs) -> list[Path]:
    listed = [slides] if isinstance(slides, str | Path) else list(slides)
    return [Path(path) for path in listed]
