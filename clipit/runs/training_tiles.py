"""Record of a run's training tiles, used to check new test sets for leaks without rereading the images."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from clipit.config.data import LeaksConfig
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ClipitError, DataError, as_note, counted, counted_of, shortlist
from clipit.evaluation.predictions import read_run_predictions
from clipit.output_files.artifacts import reading
from clipit.output_files.run_files import recorded_fingerprint
from clipit.output_files.whole_files import write_parquet
from clipit.pairing.leaks import ImageHashes, SeenTiles, find_shared_patients
from clipit.pairing.patient_spelling import misspelled_tests
from clipit.patients import patients
from clipit.runs.folder import read_run_config, read_training
from clipit.tiles.tileset import TileSet
from clipit.training.terms.term_table import models_of, uses_reports
from clipit.workspace.adapted_patients import RUN_KEY, TRAINING_TILES, adaptation_notes, read_training_table
from clipit.workspace.external_leaks import note_reports
from clipit.workspace.leak_policy import hash_images, select_hashes
from clipit.workspace.tile_hashes import cached_hashes
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_HASHED_KEY = b"clipit_hashed_tiles"
_COLUMNS = ("id", "split", "group")
_REREAD = "delete this file; the training tiles are then re-read"


@dataclass(frozen=True)
class TrainingTiles:
    """Tiles on which a run was trained or validated, as far as known.

    Attributes:
        tiles: Ids, splits and groups.
        image_hashes: Hashes of their images, in the same order; None if images cannot be compared.
        problems: Checks that cannot be made, each with its reason.
    """

    tiles: SeenTiles
    image_hashes: ImageHashes | None
    problems: tuple[str, ...] = ()


def write_training_tiles(folder: Path, tiles: TileSet, tiles_fingerprint: str) -> None:
    """Record the training and validation tiles of a run in its folder.

    Args:
        tiles: Tiles of the run, after leaks have been dropped.
        tiles_fingerprint: Fingerprint of all tiles as read; it identifies the artefact with their image hashes.
    """
    seen = tiles.select(tiles.splits != "test")
    columns = [pa.array(values.tolist(), pa.string()) for values in (seen.ids, seen.splits, seen.groups)]
    table = pa.table(dict(zip(_COLUMNS, columns, strict=True)))
    metadata = {_HASHED_KEY: tiles_fingerprint.encode(), RUN_KEY: (recorded_fingerprint(folder) or "").encode()}
    table = table.replace_schema_metadata(metadata)
    write_parquet(folder / TRAINING_TILES, table, checksums=True)


def find_training_tiles(folder: Path, config: RunConfig, workspace: Workspace) -> TrainingTiles:
    """Find the training and validation tiles of a run, with image hashes; must be called by all processes.

    The record in the run's folder and the cached hashes in the workspace are used if they exist. Otherwise, the tiles
    are read and hashed again. If that fails as well, `problems` lists the checks that cannot be made.

    Args:
        config: Configuration of the run, with the section `leaks` that applies to the check.
    """
    recorded = _read_record(folder)
    trained_on = str(read_training(folder).get("tiles", ""))
    pixels = config.leaks.pixels
    hashes = None if pixels == "off" else cached_hashes(workspace.root, recorded[1] if recorded else trained_on)
    if recorded is None:
        return _without_record(folder, config, workspace, trained_on, hashes)
    tiles = recorded[0]
    if pixels == "off":
        return TrainingTiles(tiles, None, ("images: leaks.pixels is off",))
    image_hashes, problem = _match(tiles, hashes), ""
    if image_hashes is None:
        image_hashes, problem = _hash_again(tiles, config, workspace)
    if image_hashes is not None and pixels == "near" and isinstance(image_hashes, np.ndarray):
        problem = "near-duplicates: the training images were only compared for identical pixels (leaks.pixels: exact)"
    return TrainingTiles(tiles, image_hashes, (problem,) if problem else ())


def check_test_patients(
    run: Path, tests: TileSet | SeenTiles, leaks: LeaksConfig, unit: Literal["tile", "slide"] = "tile"
) -> tuple[str, ...]:
    """Check that a run was not trained or validated on patients who occur in a study's test tiles or slides.

    Images are not compared. Test tiles cannot be removed from the training data of a finished run, so the policy
    `exclude` is treated like `error`.

    Args:
        run: Folder of the finished run whose classifier the study uses.
        leaks: Section `leaks` of the study.
        unit: Whether `tests` contains tiles or slides. Slides are also compared by name with those of the run.

    Returns:
        Notes on shared patients (policy `note`) and on checks that could not be made.

    Raises:
        DataError: Patients are shared, and the policy is neither `note` nor `off`.
    """
    if leaks.policy == "off" or not len(tests):
        return ()
    seen, problems = _patients_of_training(run)
    if unit == "slide":
        tests = _with_trained_slides(tests, seen)
    unknown = int((patients(tests.groups, tests.ids) == "").sum())
    if unknown:
        problems = (*problems, f"patients (unknown for {unknown} of {counted(len(tests), f'test {unit}')})")
    notes = [f"WARNING: not compared with the training tiles of {run.name}: {problem}" for problem in problems]
    notes += misspelled_tests(tests, seen)
    notes += _note_inputs(run, tests, unit)
    shared = find_shared_patients(tests, seen)
    request = "leaks.policy: note" if unit == "tile" else "--leaks-policy=note"
    if shared:
        names = sorted({leak.group for leak in shared.values()})
        message = (
            f"{counted_of(len(shared), len(tests), f'test {unit} belongs', f'test {unit}s belong')} to "
            f"{counted(len(names), 'patient')} whose {'other ' if unit == 'tile' else ''}tiles the run {run.name} was "
            f"trained or validated on: {shortlist(names)}"
        )
        if leaks.policy != "note":
            raise DataError(
                message,
                where=run,
                fix="use a run that was trained without these patients, or other test patients; or "
                f"{'set' if unit == 'tile' else 'pass'} {request} to keep and count the {unit}s. If different patients "
                "have the same name, rename them",
            )
        notes.insert(0, f"WARNING: {message}; kept on request ({request})")
    for note in notes:
        logger.info(as_note(note))
    return tuple(notes)


def _note_inputs(run: Path, tests: TileSet | SeenTiles, unit: str) -> list[str]:
    """Return warnings if the run, or one of its models, may have been trained with data of the test patients."""
    try:
        config = read_run_config(run)
    except ClipitError:  # raised again when the study opens the run
        return []
    reports = note_reports(tests, config, run.name, f"test {unit}s") if uses_reports(config) else ""
    models = [getattr(config, name) for name in models_of(config)]
    return [*filter(None, [reports]), *adaptation_notes(tests, models, f"test {unit}", run.name)]


def _with_trained_slides(slides: TileSet | SeenTiles, seen: SeenTiles) -> SeenTiles:
    """Give each slide the group of its training and validation tiles (`slide@x,y,edge`), if there are any."""
    owners = patients(seen.groups, seen.ids).tolist()
    group_of = {tile.rpartition("@")[0]: owner for tile, owner in zip(seen.ids.tolist(), owners, strict=True)}
    pairs = zip(slides.ids.tolist(), slides.groups.tolist(), strict=True)
    groups = np.asarray([group_of.get(name) or group for name, group in pairs], dtype=object)
    return SeenTiles(slides.ids, slides.splits, groups)


def _patients_of_training(run: Path) -> tuple[SeenTiles, tuple[str, ...]]:
    """Return the training tiles of a run, from its record or its data set, and why patients cannot be checked."""
    recorded = _read_record(run)
    if recorded is not None:
        return recorded[0], ()
    try:
        config = read_run_config(run)
        config = config.model_copy(update={"leaks": config.leaks.model_copy(update={"pixels": "off"})})
        training = find_training_tiles(run, config, Workspace(config))
    except ClipitError as error:
        empty = np.zeros(0, dtype=object)
        reason = str(error).splitlines()[0]
        return SeenTiles(empty, empty, empty), (f"patients: the run did not record its training tiles ({reason})",)
    return training.tiles, tuple(problem for problem in training.problems if not problem.startswith("images"))


def _read_record(folder: Path) -> tuple[SeenTiles, str] | None:
    """Read the recorded tiles, and the fingerprint of the hashed tiles; None for runs of earlier versions."""
    path = folder / TRAINING_TILES
    if not path.is_file():
        return None
    facts = read_training(folder) if (folder / "training.json").is_file() else {}
    expected = facts.get("training_tiles")
    with reading(path, _REREAD):
        table = read_training_table(path, _REREAD)
        columns = [np.asarray(table[name].to_pylist(), dtype=object) for name in _COLUMNS]
        count = int((columns[1] == "train").sum())
        if expected not in (None, count):
            raise ArtifactError(
                f"{counted(count, 'training tile')} instead of {expected:,}: the file has changed",
                where=path,
                fix=_REREAD,
            )
        return SeenTiles(*columns), (table.schema.metadata or {}).get(_HASHED_KEY, b"").decode()


def _match(tiles: SeenTiles, hashes: "tuple[np.ndarray, ImageHashes] | None") -> ImageHashes | None:
    """Select the cached hashes of these tiles, in their order; None if any is missing."""
    if hashes is None:
        return None
    rows = {name: row for row, name in enumerate(hashes[0].tolist())}
    matching_rows = [rows.get(name, -1) for name in tiles.ids.tolist()]
    return None if -1 in matching_rows else select_hashes(hashes[1], np.asarray(matching_rows, dtype=np.int64))


def _hash_again(tiles: SeenTiles, config: RunConfig, workspace: Workspace) -> tuple[ImageHashes | None, str]:
    """Hash the training images again, or return the reason why this is not possible."""
    try:
        current = workspace.tiles_as_read
        image_hashes = hash_images(current, config, config.leaks.pixels)
    except (ClipitError, OSError) as error:
        reason = str(error).splitlines()[0]
        return None, f"images: the training images cannot be read, and their hashes are not cached ({reason})"
    matched = None if image_hashes is None else _match(tiles, (current.ids, image_hashes))
    if matched is None:
        return None, "images: some training tiles are no longer in the data set, and their hashes are not cached"
    return matched, ""


def _without_record(
    folder: Path,
    config: RunConfig,
    workspace: Workspace,
    trained_on: str,
    hashes: "tuple[np.ndarray, ImageHashes] | None",
) -> TrainingTiles:
    """Find the training tiles of a run whose folder does not record them, as in earlier versions."""
    try:
        current = workspace.all_tiles
    except (ClipitError, OSError) as error:
        return _from_hashes(folder, hashes, str(error).splitlines()[0])
    seen = current.select(current.splits != "test")
    tiles = SeenTiles(seen.ids, seen.splits.astype(object), seen.groups)
    changed = trained_on not in ("", current.fingerprint)
    problems = ("the data set has changed since training, so its current tiles are compared",) if changed else ()
    if config.leaks.pixels == "off":
        return TrainingTiles(tiles, None, (*problems, "images: leaks.pixels is off"))
    image_hashes, problem = _hash_again(tiles, config, workspace)
    return TrainingTiles(tiles, image_hashes, (*problems, problem) if problem else problems)


def _from_hashes(folder: Path, hashes: "tuple[np.ndarray, ImageHashes] | None", reason: str) -> TrainingTiles:
    """Treat all hashed tiles except the run's test tiles as training tiles; only TCGA barcodes identify patients."""
    patient_problem = f"patients: the training tiles cannot be read, and the run did not record them ({reason})"
    empty = np.zeros(0, dtype=object)
    if hashes is None:
        image_problem = "images: the training tiles cannot be read, and their hashes are not cached"
        return TrainingTiles(SeenTiles(empty, empty, empty), None, (patient_problem, image_problem))
    try:
        tested = set(read_run_predictions(folder).select("test").ids.tolist())
    except DataError:
        tested = set()
    rows = np.asarray([row for row, name in enumerate(hashes[0].tolist()) if name not in tested], dtype=np.int64)
    ids = hashes[0][rows]
    unknown = np.full(len(ids), "", dtype=object)
    splits = np.full(len(ids), "train", dtype=object)
    return TrainingTiles(SeenTiles(ids, splits, unknown), select_hashes(hashes[1], rows), (patient_problem,))
