"""Apply `leaks.policy` to leaks between splits, in tiles, in shifted test sets and in reports."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, as_note, counted, counted_of, shortlist
from clipit.output_files.artifacts import fingerprint, write_json
from clipit.output_files.leftovers import delete_leftovers
from clipit.pairing.leaks import (
    ImageHashes,
    Leak,
    find_copies,
    find_leaks,
    find_shared_patients,
    patient_of,
    report_leaks,
)
from clipit.pairing.patient_spelling import describe_match, misspelled_reports, misspelled_splits, misspelled_tests
from clipit.tiles.perceptual import PerceptualHashes
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.adapted_patients import adapted_vlm_notes
from clipit.workspace.near_duplicates import conflicting_labels
from clipit.workspace.tile_hashes import tile_digests, tile_hashes
from clipit.workspace.tile_reading import artefacts_of

if TYPE_CHECKING:
    from clipit.reports.readers import Reports

logger = logging.getLogger(__name__)

_DESCRIPTIONS = {
    "group": "of a patient or slide with tiles in a held-out split",
    "exact": "with the same pixels as a tile in a held-out split",
    "near": "that look like a tile in a held-out split",
    "report": "of patients with validation or test tiles",
}
_KEPT_ON_REQUEST = "kept on request (leaks.policy: note)"


def enforce_on_tiles(tiles: TileSet, config: RunConfig) -> TileSet:
    """Apply `leaks.policy` to the tiles of a run. Must be called by all processes.

    Args:
        tiles: Tiles of all splits, as read.
        config: Run configuration with the section `leaks`.

    Raises:
        DataError: There are leaks and the policy is `error`, or a split would become empty.
    """
    if config.leaks.policy == "off":
        return tiles
    image_hashes = hash_images(tiles, config, config.leaks.pixels)
    tiles = _with_notes(tiles, [*misspelled_splits(tiles), *conflicting_labels(tiles, image_hashes)])
    leaks = find_leaks(tiles, config.leaks, image_hashes)
    if not leaks:
        return tiles
    note = _enforce(leaks, config, tiles.where, "tiles")
    if config.leaks.policy == "note":
        return replace(tiles, notes=(*tiles.notes, note))
    kept = tiles.select(~tiles.among(leak.id for leak in leaks))
    emptied = [split for split in SPLITS if (tiles.splits == split).any() and not (kept.splits == split).any()]
    if emptied:
        raise DataError(
            f"dropping leaks leaves no tiles in {', '.join(emptied)}; {note}",
            where=tiles.where,
            fix="split the tiles again, by patient",
        )
    return replace(kept, notes=(*kept.notes, note))


def leak_notes(notes: Iterable[str]) -> list[str]:
    """Select the notes of tiles on leaks that make test scores too high, for pages that do not show all of them.

    These are leaks between the splits that are kept on request, and models that were trained on test patients.
    """
    notes = list(notes)
    return [
        *adapted_vlm_notes(notes),
        *dict.fromkeys(note for note in notes if note.startswith(f"leaks, {_KEPT_ON_REQUEST}")),
    ]


def enforce_on_shifted(tests: TileSet, run_tiles: TileSet, seen: TileSet, name: str, config: RunConfig) -> TileSet:
    """Apply `leaks.policy` to tiles of a shifted test set that leak from training or validation.

    Call this function in all processes. With the policy `exclude`, tiles are dropped from the shifted set, not from
    training: the training tiles must not depend on the additional test sets of a comparison.

    Args:
        run_tiles: All tiles of the configuration, before leaks are dropped.
        seen: Tiles of `run_tiles` that are used for training or validation.
        config: Run configuration with the section `leaks`.

    Raises:
        DataError: Patients are shared (unless the policy is `note` or `off`), images are shared and the policy is
            `error`, or the set would become empty.
    """
    policy, where = config.leaks.policy, f"comparison.shifted.{name}"
    if policy == "off" or not len(tests):
        return tests
    notes = [*_check_patients(tests, seen, policy, where), *misspelled_tests(tests, seen)]
    tests = _with_notes(tests, [f"{where}: {note}" for note in notes])
    training_hashes, test_hashes = (hash_images(tiles, config, config.leaks.pixels) for tiles in (run_tiles, tests))
    if training_hashes is None or test_hashes is None:
        return tests
    rows = np.flatnonzero(run_tiles.among(seen.ids.tolist()))
    copies = find_copies(tests, test_hashes, run_tiles.select(rows), select_hashes(training_hashes, rows), config.leaks)
    if not copies:
        return tests
    ids = sorted(copies)
    near = sum(leak.kind == "near" for leak in copies.values())
    message = (
        f"{counted_of(len(ids), len(tests), 'shifted tile has', 'shifted tiles have')} the same image as a "
        "training or validation tile"
    )
    message += f" ({counted(near, 'image is', 'images are')} similar, not identical)" if near else ""
    if policy == "error":
        fix = (
            "remove these tiles from one of the two sets, or set --leaks.policy=exclude to drop them from this set, or "
            "--leaks.policy=note to only log them"
        )
        pairs = [f"{leak.other_id} (copy of {leak.id})" for _, leak in sorted(copies.items())]
        raise DataError(f"{message}: {shortlist(pairs)}", where=where, fix=fix)
    if policy == "exclude" and len(ids) == len(tests):
        raise DataError(f"no tiles remain after dropping leaks; {message}", where=where, fix="use other tiles")
    note = f"{where}: {message}, {_outcome(policy)}"
    if get_processes().main:
        path = leak_folder(config) / f"shifted-{fingerprint(name)[:8]}.json"
        write_leaks(path, {"set": name, "policy": policy, "leaks": [asdict(copies[i]) for i in ids]})
        logger.info(f"note: {note}; listed in {path}")
    kept = tests.select(~tests.among(ids)) if policy == "exclude" else tests
    return replace(kept, notes=(*kept.notes, note))


def enforce_on_reports(reports: "Reports", read_tiles: Callable[[], TileSet], config: RunConfig) -> "Reports":
    """Apply `leaks.policy` to the reports, and return those that may supply snippets.

    If tiles are paired with reports of the same patients (`pairing.reports`), the corpus usually has the reports of
    all patients. The reports of validation and test patients are then dropped, whatever the policy.

    Args:
        reports: Reports before leaks are dropped.
        read_tiles: Function that returns the tiles of all splits; called only if a report names its patient.
        config: Run configuration with the section `leaks`.

    Raises:
        DataError: Reports of validation or test patients exist and the policy is `error`, or no report would remain.
    """
    config = with_report_policy(config)
    if config.leaks.policy == "off":
        return reports
    reports = replace(reports, notes=(*reports.notes, *_logged(_unknown_patients(reports))))
    if not any(patient_of(report) for report in reports.reports):
        return reports
    tiles = read_tiles()
    reports = replace(
        reports,
        problems=(*reports.problems, *_logged(misspelled_reports(reports.reports, tiles))),
        notes=(*reports.notes, *_logged(describe_match(reports.reports, tiles))),
    )
    leaks = report_leaks(reports.reports, tiles)
    if not leaks:
        return reports
    note = _enforce(leaks, config, reports.source, "reports")
    if config.leaks.policy == "note":
        return reports
    leaking = {leak.id for leak in leaks}
    kept = tuple(report for report in reports.reports if report.report_id not in leaking)
    if not kept:
        raise DataError(f"no reports remain; {note}", where=reports.source, fix="add reports of training patients")
    return replace(reports, reports=kept, problems=(*reports.problems, note))


def with_report_policy(config: RunConfig) -> RunConfig:
    """Return a configuration with the policy for reports: `exclude` if tiles are paired with their own reports."""
    if config.pairing.reports == "any":
        return config
    return config.model_copy(update={"leaks": config.leaks.model_copy(update={"policy": "exclude"})})


def hash_images(tiles: TileSet, config: RunConfig, pixels: str) -> ImageHashes | None:
    """Hash the images for a comparison (off, exact or near); None for off. Must be called by all processes."""
    if pixels == "off":
        return None
    return (tile_hashes if pixels == "near" else tile_digests)(artefacts_of(config), tiles)


def leak_folder(config: RunConfig) -> Path:
    """Return the folder to which leaks are written."""
    return config.output / "leaks" / config.name


def write_leaks(path: Path, value: Mapping[str, Any]) -> None:
    """Write a list of leaks, and delete what killed processes left in its folder."""
    write_json(path, value)
    delete_leftovers(path.parent)


def _unknown_patients(reports: "Reports") -> list[str]:
    """Describe, in at most one line, reports whose patients cannot be compared with those of the tiles."""
    unknown, total = sum(not patient_of(report) for report in reports.reports), len(reports.reports)
    if not unknown:
        return []
    count = "the reports have" if unknown == total else counted_of(unknown, total, "report has", "reports have")
    return [f"{count} no group (reports.group_column), so reports of validation and test patients cannot be excluded"]


def _logged(notes: Sequence[str]) -> Sequence[str]:
    """Log notes and warnings in the main process, and return them."""
    for note in notes if get_processes().main else ():
        logger.log(logging.WARNING if "WARNING: " in note else logging.INFO, as_note(note))
    return notes


def _with_notes(tiles: TileSet, notes: Sequence[str]) -> TileSet:
    return replace(tiles, notes=(*tiles.notes, *_logged(notes))) if notes else tiles


def _check_patients(tests: TileSet, seen: TileSet, policy: str, where: str) -> list[str]:
    """Reject or describe patients of a shifted test set whose tiles are used for training or validation."""
    shared = {leak.group for leak in find_shared_patients(tests, seen).values()}
    if not shared:
        return []
    message = (
        f"{counted(len(shared), 'patient of the shifted set is', 'patients of the shifted set are')} also in "
        f"training or validation: {shortlist(sorted(shared))}"
    )
    if policy != "note":
        fix = "remove these patients from one of the two sets, or set leaks.policy=note"
        raise DataError(message, where=where, fix=fix)
    return [f"{message}, {_outcome(policy)}"]


def select_hashes(image_hashes: ImageHashes, rows: Int64[np.ndarray, " m"]) -> ImageHashes:
    """Select the hashes of the given rows."""
    if not isinstance(image_hashes, PerceptualHashes):
        return np.asarray(image_hashes[rows])
    return PerceptualHashes(image_hashes.digests[rows], image_hashes.hashes[rows], image_hashes.thumbnails[rows])


def _enforce(leaks: Sequence[Leak], config: RunConfig, where: object, name: str) -> str:
    """Raise an error, or log and list the leaks and return the logged note."""
    counts = "; ".join(_count(leaks))
    if config.leaks.policy == "error":
        raise DataError(
            f"leaks between the splits: {counts}",
            where=where,
            fix="correct the data, or set --leaks.policy=exclude to drop the leaks, or --leaks.policy=note to only log "
            "them. To list all leaks: clipit check-leaks --config ...",
        )
    path = leak_folder(config) / f"{name}.json"
    note = f"leaks, {_outcome(config.leaks.policy)}: {counts}"
    if get_processes().main:
        write_leaks(path, {"policy": config.leaks.policy, "leaks": [asdict(leak) for leak in leaks]})
        logger.info(f"{note}; listed in {path}")
    return note


def _outcome(policy: str) -> str:
    return "dropped" if policy == "exclude" else _KEPT_ON_REQUEST


def _count(leaks: Sequence[Leak]) -> list[str]:
    """Format one phrase per kind of leak: the number of tiles or reports of each split, and the first ids."""
    phrases = []
    for kind, description in _DESCRIPTIONS.items():
        ids = sorted({(leak.id, leak.split) for leak in leaks if leak.kind == kind})
        if ids:
            counts = Counter(split for _, split in ids)
            by_split = " and ".join(counted(counts[split], f"{split} tile") for split in SPLITS if counts[split])
            number = counted(len(ids), "report") if kind == "report" else by_split
            groups = sorted({leak.group for leak in leaks if leak.kind == kind and leak.group})
            group_list = f", {counted(len(groups), 'group')}: {shortlist(groups, 3)}" if groups else ""
            phrases.append(f"{number} {description} ({shortlist([name for name, _ in ids], 3)}{group_list})")
    return phrases
