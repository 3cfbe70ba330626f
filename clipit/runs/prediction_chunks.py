"""Classify images in chunks, which are distributed over processes and stored on disk so that a command can resume."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from clipit.distributed import get_processes
from clipit.errors import ArtifactError, ModelError, counted
from clipit.evaluation.predictions import softmax
from clipit.evaluation.zero_shot import zero_shot_probabilities
from clipit.images.decode import Unreadable
from clipit.images.device_copies import copy_ahead, stack
from clipit.images.image_set import ImageSet
from clipit.images.read_ahead import ReadingClock, check_batches, read_ahead, reading_threads
from clipit.output_files.whole_files import read_parquet, write_parquet
from clipit.progress import progress
from clipit.runs.prediction_inputs import ZeroShotClasses

if TYPE_CHECKING:
    from clipit.models.inference import Classifier

REASON = "reason"
"""Column with the reason why an image could not be read; null for images with predictions."""
_MOST_PROBABLE = {"p_": "predicted", "zs_": "zero_shot"}
"""Column with the most probable class, by the prefix of the columns with the probabilities."""
_MAX_CHUNK = 1024  # images per chunk; a killed process loses at most one chunk
_MIN_CHUNKS = 16  # approximate number of chunks of a small set, so that several processes can share it

ReadResult = UInt8[np.ndarray, "3 h w"] | Unreadable


@dataclass(frozen=True)
class PredictionOptions:
    """Options for reading and batching images or slide tiles.

    Attributes:
        batch_size: Images per forward pass.
        workers: Number of threads that read images while the model runs; 0 for one per core, at most 8.
    """

    batch_size: int = 64
    workers: int = 0

    def __post_init__(self) -> None:
        """Check that both numbers are valid.

        Raises:
            ConfigError: A number is not an integer, or is too small.
        """
        check_batches(self.batch_size, self.workers)


def chunk_starts(total: int, batch_size: int) -> range:
    """Return the first rows of the chunks, which consist of whole batches.

    Args:
        total: Number of images.
        batch_size: Batch size of the first command; a resumed command has the same chunks.
    """
    size = min(_MAX_CHUNK, -(-total // _MIN_CHUNKS))
    return range(0, total, max(1, -(-size // batch_size)) * batch_size)


def chunk_file(folder: Path, start: int) -> Path:
    """Return the file of the chunk that starts at this row."""
    return folder / f"rows-{start:09d}.parquet"


def write_chunks(
    folder: Path,
    classifier: "Classifier",
    images: ImageSet,
    zero_shot: ZeroShotClasses | None,
    options: PredictionOptions,
    starts: range,
) -> list[Path]:
    """Classify the images of missing chunks, distributed over all processes.

    Args:
        zero_shot: Classes for zero-shot prediction; None to skip it.
        starts: First rows of the chunks, from `chunk_starts`.

    Returns:
        Files of all chunks, in order, after all processes have written theirs.
    """
    processes = get_processes()
    total = len(images)
    files = {start: chunk_file(folder, start) for start in starts}
    missing = processes.broadcast([start for start in starts if not files[start].is_file()])
    done = total - sum(min(starts.step, total - start) for start in missing)
    preprocess = classifier.spec.preprocess

    def read(row: int) -> ReadResult:
        image = images.try_read(row)
        return image if isinstance(image, Unreadable) else preprocess.pixels(image)

    own_chunks = processes.share(missing)
    batches = [batch for start in own_chunks for batch in _batches(start, min(start + starts.step, total), options)]
    chunk, clock, device = _Chunk(classifier, images, zero_shot), ReadingClock(), classifier.device
    with (
        progress("predicting images", total, shown=processes.main, done=done) as advance,
        torch.inference_mode(),
        reading_threads(options.workers) as pool,
    ):
        read_images = read_ahead(batches, read, pool, clock=clock)
        stacked = (((rows, _reasons(results)), stack(_readable(results), device)) for rows, results in read_images)
        for (rows, reasons), pixels in copy_ahead(stacked, device):
            chunk.add(rows, reasons, pixels)
            if rows.stop == total or rows.stop % starts.step == 0:
                write_parquet(files[chunk.start], chunk.finish(), checksums=True)
            advance(len(rows) * processes.count)
    clock.report("predicting images", "the number of reader threads (--workers)")
    processes.barrier()
    return list(files.values())


def read_chunks(
    files: Sequence[Path], images: ImageSet, starts: range, head_classes: Mapping[str, tuple[str, ...]]
) -> Iterator[pa.Table]:
    """Iterate over the tables of the chunks.

    Args:
        files: Files of the chunks, in order.
        images: All images.
        starts: Number of the first image of each chunk.
        head_classes: Classes by prefix of their columns.

    Raises:
        ArtifactError: A chunk is unreadable, or does not contain the predictions of its images.
    """
    fix = "delete this file and start the same command again"
    schema = pa.schema([("id", pa.string())])
    for prefix, classes in head_classes.items():
        schema = schema.append(pa.field(_MOST_PROBABLE[prefix], pa.string()))
        for name in classes:
            schema = schema.append(pa.field(prefix + name, pa.float32()))
    schema = schema.append(pa.field(REASON, pa.string()))
    for file, start in zip(files, starts, strict=True):
        table = read_parquet(file, fix)
        if table.schema != schema or table["id"].to_pylist() != list(images.ids[start : start + starts.step]):
            raise ArtifactError("this file has changed: its rows or columns differ", where=file, fix=fix)
        readable = table.filter(pc.is_null(table[REASON]))
        if not all(_are_predictions(readable, prefix, classes) for prefix, classes in head_classes.items()):
            raise ArtifactError("this file has changed: it contains impossible probabilities", where=file, fix=fix)
        yield table


def _are_predictions(table: pa.Table, prefix: str, classes: Sequence[str]) -> bool:
    """Return whether probabilities are between 0 and 1, and the predicted class is the most probable one."""
    values = np.stack([table[prefix + name].to_numpy() for name in classes], axis=1)  # NaN where null
    most_probable = [classes[index] for index in values.argmax(axis=1)]
    is_possible = bool(((values >= 0) & (values <= 1)).all())
    return is_possible and table[_MOST_PROBABLE[prefix]].to_pylist() == most_probable


def _batches(start: int, stop: int, options: PredictionOptions) -> Iterator[range]:
    for first in range(start, stop, options.batch_size):
        yield range(first, min(first + options.batch_size, stop))


def _reasons(results: Sequence[ReadResult]) -> list[str | None]:
    return [result.reason if isinstance(result, Unreadable) else None for result in results]


def _readable(results: Sequence[ReadResult]) -> list[UInt8[np.ndarray, "3 h w"]]:
    return [result for result in results if not isinstance(result, Unreadable)]


class _Chunk:
    """Predictions of the current chunk, kept on the device until the chunk is finished to avoid waiting for copies."""

    def __init__(self, classifier: "Classifier", images: ImageSet, zero_shot: ZeroShotClasses | None) -> None:
        self._classifier, self._images, self._zero_shot = classifier, images, zero_shot
        self._clear()

    def _clear(self) -> None:
        self._rows: list[int] = []
        self._reasons: list[str | None] = []
        self._outputs: list[tuple[Tensor, Tensor | None]] = []

    @property
    def start(self) -> int:
        return self._rows[0]

    def add(self, rows: range, reasons: Sequence[str | None], pixels: UInt8[Tensor, "b 3 h w"]) -> None:
        """Classify a batch.

        Args:
            rows: Rows of the images.
            reasons: Reason why each image could not be read; None for readable images.
            pixels: Pixels of the readable images, on the device.
        """
        self._rows += rows
        self._reasons += reasons
        if len(pixels):
            self._outputs.append(self._classifier.forward(self._classifier.spec.preprocess.normalise(pixels)))

    def finish(self) -> pa.Table:
        """Return the table of the chunk, and start the next one."""
        readable = np.array([reason is None for reason in self._reasons])
        columns: dict[str, pa.Array] = {"id": pa.array([self._images.ids[row] for row in self._rows], pa.string())}
        classes = self._classifier.classes
        probabilities = self._probabilities(classes)
        columns |= _columns("p_", classes, probabilities, readable)
        if self._zero_shot is not None:
            probabilities = self._zero_shot_probabilities(self._zero_shot)
            columns |= _columns("zs_", self._zero_shot.classes, probabilities, readable)
        columns[REASON] = pa.array(self._reasons, pa.string())
        self._clear()
        return pa.table(columns)

    def _probabilities(self, classes: Sequence[str]) -> Float32[np.ndarray, "n C"]:
        if not self._outputs:
            return np.empty((0, len(classes)), dtype=np.float32)
        logits = torch.cat([logits for logits, _ in self._outputs]).float().cpu().numpy()
        invalid = ~np.isfinite(logits).all(axis=1)
        if invalid.any():
            rows = [row for row, reason in zip(self._rows, self._reasons, strict=True) if reason is None]
            raise ModelError(
                f"the classifier's outputs are NaN or infinite for {int(invalid.sum())} of "
                f"{counted(len(invalid), 'image')}",
                where=self._images.reader.where(rows[int(invalid.argmax())]),
                fix="predict without --bf16, on a different device, or check the classifier's weights",
            )
        return softmax(logits)

    def _zero_shot_probabilities(self, zero_shot: ZeroShotClasses) -> Float32[np.ndarray, "n K"]:
        projected = [output for _, output in self._outputs if output is not None]
        if not projected:
            return np.empty((0, len(zero_shot.classes)), dtype=np.float32)
        vectors = torch.cat(projected).float().cpu().numpy()
        return zero_shot_probabilities(vectors, zero_shot.embeddings, zero_shot.logit_scale)


def _columns(
    prefix: str, classes: Sequence[str], values: Float32[np.ndarray, "n C"], readable: np.ndarray
) -> dict[str, pa.Array]:
    """Build a column with the most probable class and one column per class; null where an image is unreadable."""
    filled = np.full((len(readable), len(classes)), np.nan, dtype=np.float32)
    filled[readable] = values
    names = np.array(classes, dtype=object)[filled.argmax(axis=1)]
    columns = {_MOST_PROBABLE[prefix]: pa.array(names, pa.string(), mask=~readable)}
    return columns | {prefix + name: pa.array(filled[:, c], mask=~readable) for c, name in enumerate(classes)}
