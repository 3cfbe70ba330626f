"""Classify images in Python: files, folders, zips and tables of images, with an exported classifier."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipit.api.entry import public
from clipit.api.study_result import ResultFiles
from clipit.config.paths import output_path
from clipit.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from clipit.config.data import SlidesConfig
    from clipit.config.run import VLMConfig
    from clipit.models.inference import Classifier

logger = logging.getLogger(__name__)

_AGAIN = "run the prediction again"


@dataclass(frozen=True)
class PredictResult(ResultFiles):
    """Files written by `predict`.

    Attributes:
        table: Table of the predictions, CSV or Parquet.
        page: HTML page with the most and least certain images.
        summary_file: Summary as JSON.
        unreadable_file: List of unreadable images, CSV; None if there are none.
    """

    table: Path
    page: Path
    summary_file: Path
    unreadable_file: Path | None

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Number of images, and count, share and mean confidence per class."""
        from clipit.output_files.artifacts import read_json

        return read_json(self.summary_file, _AGAIN)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Predictions, one row per readable image.

        Columns: id, predicted, one probability p_<class> per class and, with zero-shot classes, zero_shot (predicted
        class) and its probabilities zs_<class>.

        Raises:
            ArtifactError: The table is missing, unreadable, or does not match the SHA-256 in the summary.
        """
        from clipit.output_files.artifacts import reading

        with reading(self.table, _AGAIN):
            _check_unchanged(self.table, self.summary.get("sha256"))
            if self.table.suffix.lower() == ".parquet":
                return pd.read_parquet(self.table)
            texts = {"id": str, "predicted": str, "zero_shot": str}
            return pd.read_csv(self.table, dtype=texts, keep_default_na=False)

    @cached_property
    def unreadable(self) -> pd.DataFrame:
        """Unreadable images: id, file and reason.

        Raises:
            ArtifactError: The list is missing, unreadable, or does not match the SHA-256 in the summary.
        """
        from clipit.output_files.artifacts import reading
        from clipit.runs.prediction_files import UNREADABLE_SHA256

        if self.unreadable_file is None:
            return pd.DataFrame(columns=["id", "file", "reason"], dtype=str)
        with reading(self.unreadable_file, _AGAIN):
            _check_unchanged(self.unreadable_file, self.summary.get(UNREADABLE_SHA256))
            return pd.read_csv(self.unreadable_file, dtype=str, keep_default_na=False)


def _check_unchanged(path: Path, sha256: str | None) -> None:
    from clipit.output_files.artifacts import file_sha256

    if sha256 not in (None, file_sha256(path)):
        raise ArtifactError("this file has changed since it was written", where=path, fix=_AGAIN)


@public
def predict(
    classifier: "str | Path | Classifier",
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    prompts: str | Path | None = None,
    classes: str | Sequence[str] | None = None,
    images: str | Path | None = None,
    path_column: str | None = None,
    id_column: str | None = None,
    mpp: float | None = None,
    tile_mpp: float | None = None,
    batch_size: int = 64,
    workers: int = 0,
    bf16: bool = False,
    device: str | None = None,
    vlm: "str | VLMConfig | None" = None,
    trust_remote_code: bool = False,
) -> PredictResult:
    """Predict the classes of images, and write a table, a page and a summary.

    After an interruption, the same call continues with the images that are left. Unreadable images are listed and
    counted.

    Example:
        >>> result = clipit.predict(run.classifier, "new_tiles/", "predictions.csv", classes="tumour; normal mucosa")
        >>> result.predictions["predicted"].value_counts()

    Args:
        classifier: Folder of a classifier or of a run, or a loaded classifier.
        inputs: Image files, folders, zips, tables (.csv, .tsv, .parquet) with a path column, and slides, whose
            tissue tiles are classified.
        out: Table to write, .csv or .parquet.
        prompts: Prompts for zero-shot classes: a file, a packaged set, or one of the sets stored with the classifier.
        classes: Zero-shot classes, as a list or separated by semicolons, used as prompts without templates.
        images: Folder or zip that the paths in tables are relative to; None for the folder of each table.
        path_column: Name of the path column in tables; None for `path`.
        id_column: Name of the id column in tables; None for `id` if it exists, or else the paths.
        mpp: Micrometres per pixel of the finest level, for slides without this metadata.
        tile_mpp: Micrometres per pixel of the tiles cut from slides; None for the resolution of the classifier's
            training tiles.
        batch_size: Images per batch.
        workers: Threads that read images while the model runs; 0 for one per core, at most 8.
        bf16: Whether to load the classifier in bfloat16; a loaded classifier keeps its own type and device.
        device: Device such as `cuda:1`; None for the GPU, if there is one.
        vlm: VLM that encodes new prompts; see `load_classifier`.
        trust_remote_code: Whether the backbone or the VLM may run Python code from its own repository.

    Raises:
        ArtifactError: The output exists and was written for other inputs or options.
        DataError: An input is missing, ids are repeated, or no image can be read.
        ModelError: The classifier cannot be loaded, or does not support zero-shot classification.
    """
    from clipit.runs.prediction_files import PredictionPaths
    from clipit.runs.prediction_inputs import check_vlm_use, open_inputs, read_prompts
    from clipit.tiles.slide_source import is_slide_input

    listed = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    paths = PredictionPaths(output_path(Path(out)))
    folder = None if images is None else Path(images)
    input_paths = [Path(path) for path in listed]
    has_slides = any(is_slide_input(path) for path in input_paths)
    if not has_slides:
        if mpp is not None or tile_mpp is not None:
            raise ConfigError(
                "--mpp and --tile-mpp apply only to slides, but no input is a slide",
                where=input_paths[0],
                fix="remove the option, or add a slide",
            )
        source = open_inputs(input_paths, folder, path_column, id_column)
    name = None if prompts is None else str(prompts)
    prompt_set = read_prompts(name, classes) or name
    check_vlm_use(vlm, prompt_set)

    # Import torch here, so that errors in the inputs are reported without delay.
    from clipit.runs.predict_images import predict_images
    from clipit.runs.predict_tiles import open_exported
    from clipit.runs.prediction_chunks import PredictionOptions
    from clipit.runs.prediction_inputs import embed_classes

    loaded = (
        open_exported(
            classifier, device, vlm=vlm, dtype="bfloat16" if bf16 else None, trust_remote_code=trust_remote_code
        )
        if isinstance(classifier, str | Path)
        else classifier
    )
    if has_slides:  # the tiles to cut depend on the classifier
        source = open_inputs(
            input_paths, folder, path_column, id_column, _tiles_of_slides(loaded, tile_mpp, paths.table), mpp
        )
    zero_shot = embed_classes(loaded, prompt_set) if prompt_set else None
    options = PredictionOptions(batch_size, workers)
    predict_images(loaded, source, paths.table, zero_shot=zero_shot, options=options)
    return PredictResult(
        paths.table, paths.page, paths.summary, paths.unreadable if paths.unreadable.is_file() else None
    )


def _tiles_of_slides(classifier: "Classifier", tile_mpp: float | None, table: Path) -> "SlidesConfig":
    """Choose the tiling of slides for a classifier; grids are stored next to the table."""
    from clipit.config.data import SlidesConfig
    from clipit.distributed import get_processes
    from clipit.runs.tile_scorer import choose_tiling, classifier_scorer

    stated = {} if tile_mpp is None else {"mpp": tile_mpp}
    grids = str(table.with_name("slide_grids"))
    tiles, warnings = choose_tiling(classifier_scorer(classifier), SlidesConfig(grids=grids, **stated), list(stated))
    if get_processes().main:
        for warning in warnings:
            logger.warning(warning)
    return tiles
