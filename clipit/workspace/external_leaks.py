"""Apply `leaks.policy` to a new test set of a finished run: tiles of training patients, and copied tiles."""

import logging
from dataclasses import replace

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ClipitError, DataError, counted, counted_of, shortlist
from clipit.pairing.leaks import (
    ImageHashes,
    Leak,
    SeenTiles,
    count_reports_of,
    digests_of,
    find_copies,
    find_shared_patients,
)
from clipit.pairing.patient_spelling import misspelled_tests
from clipit.patients import patients
from clipit.tiles.perceptual import PerceptualHashes
from clipit.tiles.tileset import TileSet
from clipit.workspace.leak_policy import hash_images

logger = logging.getLogger(__name__)


def enforce_on_external(
    tests: TileSet, seen: TileSet | SeenTiles, seen_hashes: ImageHashes | None, config: RunConfig, where: str
) -> tuple[TileSet, list[Leak]]:
    """Apply `leaks.policy` to tiles of a new test set that leak from training or validation.

    Call this function in all processes.

    Args:
        seen: Tiles on which the run, or the adaptation of its VLM, was trained or validated.
        seen_hashes: Image hashes of `seen`, in the same order; None to compare only patients.
        config: Run configuration with the section `leaks`.

    Returns:
        The tiles to score, and all leaks (shared patients and copies), sorted by the id of the new tile.

    Raises:
        DataError: There are leaks and the policy is `error`, or the set would become empty.
    """
    policy = config.leaks.policy
    if policy == "off" or not len(tests):
        return tests, []
    warnings = misspelled_tests(tests, seen)
    tests = replace(tests, notes=(*tests.notes, *warnings))
    for warning in warnings if get_processes().main else ():
        logger.warning(f"{where}: {warning}")
    leaks = list(find_shared_patients(tests, seen).values())
    if seen_hashes is not None and len(seen):
        comparison = "near" if isinstance(seen_hashes, PerceptualHashes) and config.leaks.pixels == "near" else "exact"
        known = seen_hashes if comparison == "near" else digests_of(seen_hashes)
        test_hashes = hash_images(tests, config, comparison)
        if test_hashes is not None:
            leaks += find_copies(tests, test_hashes, seen, known, config.leaks).values()
    if not leaks:
        return tests, []
    leaks.sort(key=lambda leak: (leak.other_id, leak.kind))
    message = describe_leaks(leaks, len(tests))
    if policy == "error":
        pairs = [
            f"{leak.other_id} ({f'in group {leak.group} with' if leak.group else 'copy of'} {leak.id})"
            for leak in leaks
        ]
        raise DataError(
            f"{message}: {shortlist(pairs)}",
            where=where,
            fix="remove these tiles from the new set, or set --leaks.policy=exclude to drop and count them, or "
            "--leaks.policy=note to only count them. If different patients have the same name, rename them",
        )
    if policy == "note":
        outcome = "kept on request (leaks.policy: note)"
        kept = tests
    else:
        outcome = "dropped"
        kept = tests.select(~tests.among(leak.other_id for leak in leaks))
        if not len(kept):
            raise DataError(f"no tiles remain after dropping leaks; {message}", where=where, fix="use other tiles")
    note = f"{message}, {outcome}"
    if get_processes().main:
        logger.warning(f"{where}: {note}")
    return replace(kept, notes=(*kept.notes, note)), leaks


def note_reports(tests: TileSet | SeenTiles, config: RunConfig, run: str = "the run", unit: str = "new tiles") -> str:
    """Return a warning if reports of a run belong to patients in a test set, or cannot be read; else "".

    Args:
        run: Name of the run in the warning.
        unit: Noun for the items of the test set in the warning.
    """
    from clipit.reports.readers import read_reports

    if not (patients(tests.groups, tests.ids) != "").any() or config.reports is None:
        return ""
    try:
        reports = read_reports(config.reports).reports
    except (ClipitError, OSError) as error:
        reason = str(error).splitlines()[0]
        return f"patients of the reports of {run} were not compared with those of the {unit}: {reason}"
    count = count_reports_of(reports, tests)
    text = counted(count, f"report of {run} belongs", f"reports of {run} belong")
    return f"WARNING: {text} to patients with {unit}; the run may have been trained on their text" if count else ""


def describe_leaks(leaks: list[Leak], total: int) -> str:
    """State how many tiles of a new set leak, by kind, such as `3 of 24 new tiles leak ...`."""
    groups = len({leak.group for leak in leaks if leak.group})
    descriptions = {
        "group": f"from {counted(groups, 'shared patient or slide', 'shared patients or slides')}",
        "exact": "with the same pixels",
        "near": "similar in appearance",
    }
    counts = [
        f"{count} {text}"
        for kind, text in descriptions.items()
        if (count := len({leak.other_id for leak in leaks if leak.kind == kind}))
    ]
    tiles = len({leak.other_id for leak in leaks})
    return (
        f"{counted_of(tiles, total, 'new tile leaks', 'new tiles leak')} from training or validation: "
        f"{', '.join(counts)}"
    )
