"""Classify images with an exported classifier: write a table, a list of unreadable images, a summary and a page."""

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from clipit.distributed import get_processes
from clipit.errors import ArtifactError, DataError, as_note, shortlist
from clipit.images.image_set import ImageSet
from clipit.output_files.artifacts import file_sha256, fingerprint, locked, make_folder, read_json, write_record
from clipit.output_files.leftovers import delete_leftovers
from clipit.output_files.whole_files import write_text
from clipit.reporting.prediction_page import prediction_page
from clipit.runs.prediction_chunks import PredictionOptions, chunk_starts, read_chunks, write_chunks
from clipit.runs.prediction_files import (
    BATCH_SIZE,
    UNREADABLE_SHA256,
    PredictionPaths,
    different_keys,
    list_unreadable,
    write_table,
)
from clipit.runs.prediction_inputs import ZeroShotClasses
from clipit.tiles.view_warnings import view_warnings

if TYPE_CHECKING:
    from clipit.models.inference import Classifier

logger = logging.getLogger(__name__)


def predict_images(
    classifier: "Classifier",
    images: ImageSet,
    out: Path,
    *,
    zero_shot: ZeroShotClasses | None = None,
    options: PredictionOptions | None = None,
) -> dict[str, Any]:
    """Classify images, distributed over all processes, and write the table and the files next to it.

    An interrupted call resumes from the finished chunks of images in `<out>.partial`, with the batch size recorded
    there. The files depend neither on interruptions nor on the number of processes.

    Args:
        out: Table to write, .csv or .parquet.
        zero_shot: Classes for zero-shot prediction; None to skip it.

    Returns:
        The summary: number of images, and count, share and mean confidence per class.

    Raises:
        ArtifactError: Existing files belong to other inputs or options, or files cannot be written.
        DataError: No image can be read.
    """
    options, paths, processes = options or PredictionOptions(), PredictionPaths(out), get_processes()
    inputs = _inputs(classifier, images, zero_shot, options)
    make_folder(out.absolute().parent)
    complete = paths.is_complete(inputs)
    processes.barrier()  # no process writes before all have checked
    if not complete:
        with locked(paths.partial) if processes.main else nullcontext():
            # another command may have finished while the main process waited for the lock
            complete = processes.broadcast(processes.main and paths.is_complete(inputs))
            if not complete:
                warnings = _view_warnings(classifier, images) if processes.main else []
                notes = (*images.notes, *warnings)
                inputs = processes.broadcast(_prepare(paths, inputs, notes) if processes.main else inputs)
                starts = chunk_starts(len(images), inputs[BATCH_SIZE])
                files = write_chunks(paths.partial, classifier, images, zero_shot, options, starts)
                if processes.main:
                    chunks = read_chunks(files, images, starts, _head_classes(classifier, zero_shot))
                    _finish(paths, chunks, inputs, classifier, images, zero_shot, warnings)
            if processes.main:
                _delete_chunks(paths)  # before the lock is released: a waiting command may then write to the folder
    elif processes.main:
        _delete_chunks(paths)  # left by a command that was killed while deleting them
    if processes.main and complete:
        logger.info("nothing to do: the same command has already finished")
    processes.barrier()
    return read_json(paths.summary, "delete it and start again")


def _inputs(
    classifier: "Classifier", images: ImageSet, zero_shot: ZeroShotClasses | None, options: PredictionOptions
) -> dict[str, Any]:
    """Collect everything that determines the predictions."""
    return {
        "classifier": fingerprint(asdict(classifier.spec)),
        "images": f"{len(images)}, fingerprint {images.fingerprint}",
        "zero_shot": ""
        if zero_shot is None
        else f"{zero_shot.source}, fingerprint "
        + fingerprint([zero_shot.classes, zero_shot.embeddings.tolist(), zero_shot.logit_scale]),
        BATCH_SIZE: options.batch_size,
        "precision": str(classifier.dtype).removeprefix("torch."),
        "device": classifier.device.type,
    }


def _prepare(paths: PredictionPaths, inputs: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Create the folder for the chunks, record the inputs, and log the notes.

    Returns:
        The recorded inputs. If an interrupted command left chunks, these are its inputs, including its batch size.

    Raises:
        ArtifactError: The folder contains chunks for other inputs or options.
    """
    if paths.command.is_file() and any(paths.partial.glob("rows-*.parquet")):
        recorded = dict(read_json(paths.command, "delete the folder and start again"))
        differing = different_keys(recorded, inputs)
        if differing:
            raise ArtifactError(
                f"this folder contains unfinished predictions for other inputs or options: {shortlist(differing)}",
                where=paths.partial,
                fix="run the earlier command again to finish them, or delete this folder",
            )
        inputs = recorded
    make_folder(paths.partial)
    write_record(paths.command, inputs)
    for note in notes:
        logger.info(as_note(note))
    return inputs


def _head_classes(classifier: "Classifier", zero_shot: ZeroShotClasses | None) -> dict[str, tuple[str, ...]]:
    """Return the classes by the prefix of their columns."""
    return {"p_": classifier.classes} | ({"zs_": zero_shot.classes} if zero_shot else {})


def _finish(
    paths: PredictionPaths,
    chunks: Iterable[pa.Table],
    inputs: Mapping[str, Any],
    classifier: "Classifier",
    images: ImageSet,
    zero_shot: ZeroShotClasses | None,
    warnings: Sequence[str],
) -> None:
    """Write the table, the list of unreadable images, the page and the summary.

    Raises:
        DataError: No image can be read; nothing is written.
    """
    outcomes, unreadable = write_table(paths.table, chunks, images, _head_classes(classifier, zero_shot))
    if len(unreadable) == len(images):
        paths.table.unlink()
        _delete_chunks(paths)
        raise DataError(
            f"no image can be read ({len(images):,} tried): "
            + shortlist([f"{reason} ({name})" for name, _, reason in unreadable], 3),
            where=images.where,
            fix="convert files in unsupported formats, and replace damaged ones",
        )
    list_unreadable(paths.unreadable, unreadable)
    summary: dict[str, Any] = {
        "images": len(images),
        "predicted": len(images) - len(unreadable),
        "unreadable": len(unreadable),
        "note": " ".join(filter(None, [_synthetic_warning(classifier), *warnings])),
        **outcomes["p_"].summarise(),
    }
    if zero_shot:
        summary["zero_shot"] = {"prompts": zero_shot.source, **outcomes["zs_"].summarise()}
    page = prediction_page(
        paths.table.name,
        summary,
        outcomes["p_"],
        outcomes.get("zs_"),
        images,
        _describe_classifier(classifier),
        unreadable,
    )
    write_text(paths.page, page)
    hashes = {"sha256": file_sha256(paths.table)}
    hashes |= {UNREADABLE_SHA256: file_sha256(paths.unreadable)} if unreadable else {}
    write_record(paths.summary, {**summary, **hashes, "inputs": dict(inputs)})


def _describe_classifier(classifier: "Classifier") -> dict[str, object]:
    spec = classifier.spec
    return {
        "run": spec.provenance.get("run", "unknown"),
        "backbone": spec.provenance.get("backbone", {}).get("name", "unknown"),
        "classes": ", ".join(spec.classes),
        "preprocessing": spec.preprocess.describe(),
        "expected micrometres per pixel": "unknown"
        if spec.mpp is None
        else f"{spec.mpp:g}{' (assumed from the backbone)' if spec.mpp_assumed else ''}",
    }


def _view_warnings(classifier: "Classifier", images: ImageSet) -> list[str]:
    """Return warnings if the images show much more or less tissue than the training tiles, or are cropped."""
    mpp, spec = np.array(images.mpp or [np.nan] * len(images)), classifier.spec
    warnings = view_warnings(
        images.try_read,
        mpp,
        pixels=spec.tile_pixels,
        expected=spec.mpp,
        model="the classifier",
        crops=spec.preprocess.crops,
    )
    return [f"WARNING: {warning}." for warning in warnings]


def _synthetic_warning(classifier: "Classifier") -> str:
    """Return a warning if the backbone was trained on synthetic tiles, or ""."""
    if classifier.spec.provenance.get("backbone", {}).get("name") != "embedded":
        return ""
    return "The bundled backbone was trained on synthetic tiles: on real tiles, its predictions are meaningless."


def _delete_chunks(paths: PredictionPaths) -> None:
    """Delete the chunks, and the temporary files of killed processes.

    The record of the chunks is deleted first, so that a command killed here counts as finished.
    """
    paths.command.unlink(missing_ok=True)
    shutil.rmtree(paths.partial, ignore_errors=True)
    delete_leftovers(paths.table.parent, paths.table.stem)
