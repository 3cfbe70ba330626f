"""Leaks as a job: what training does about them, and the command that lists them."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from clipit.artifacts import fingerprint, whole_file, write_json
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, shortlist
from clipit.pairing.leaks import Leak, Prints, find_copies, find_leaks, patient_of, report_leaks
from clipit.reporting.tables import markdown_table
from clipit.tiles.datasets import DATASETS
from clipit.tiles.load import read_tiles
from clipit.tiles.perceptual import Fingerprints
from clipit.tiles.splits import patients
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.tile_hashes import tile_digests, tile_hashes

if TYPE_CHECKING:
    from clipit.reports.readers import Reports

logger = logging.getLogger(__name__)

_WHAT = {
    "group": "of a patient or slide with tiles in a later split",
    "exact": "with the very pixels of a tile in a later split",
    "near": "that look like a tile in a later split",
    "report": "of patients with validation or test tiles",
}


def checked_tiles(tiles: TileSet, config: RunConfig) -> TileSet:
    """The tiles as training may use them; called by all processes.

    Args:
        tiles: Of all splits, their groups unchecked.
        config: `leaks` says what is looked for, and what is done about it.

    Raises:
        DataError: There are leaks and the policy is `error`, or a split would be left without a tile.
    """
    if config.leaks.policy == "off":
        return tiles
    leaks = find_leaks(tiles, config.leaks, _prints(tiles, config, config.leaks.pixels))
    if not leaks:
        return tiles
    note = _decide(leaks, config, tiles.where, "tiles")
    if config.leaks.policy == "note":
        return replace(tiles, notes=(*tiles.notes, note))
    kept = tiles.select(~np.isin(tiles.ids, [leak.id for leak in leaks]))
    gone = [split for split in SPLITS if (tiles.splits == split).any() and not (kept.splits == split).any()]
    if gone:
        raise DataError(
            f"without the leaks nothing is left of {', '.join(gone)}; {note}",
            where=tiles.where,
            fix="split the tiles anew, by patient",
        )
    return replace(kept, notes=(*kept.notes, note))


def checked_shifted(tests: TileSet, own: TileSet, learnt: TileSet, name: str, config: RunConfig) -> TileSet:
    """A shifted test set without the images that training or validation has seen; called by all processes.

    Equal pixels are looked for and, with `leaks.pixels: near`, images that look like one another; tiles of one colour
    are passed over. With the policy `exclude` the shifted tiles go, not those of training: what a student learns from
    must not depend on the further test sets that a comparison happens to have.

    Args:
        tests: Of the shifted set.
        own: All tiles of the configuration, as read.
        learnt: Those of them that are trained on or validated with.
        name: Of the shifted set.
        config: `leaks` says what is done.

    Raises:
        DataError: There are such images and the policy is `error`, or none would be left.
    """
    prints = None if config.leaks.policy == "off" else _prints(own, config, config.leaks.pixels)
    if prints is None or not len(tests):
        return tests
    rows = np.flatnonzero(np.isin(own.ids, learnt.ids))
    of_tests = (tile_hashes if isinstance(prints, Fingerprints) else tile_digests)(config.output / "artefacts", tests)
    found = find_copies(tests, of_tests, own.select(rows), _some(prints, rows), config.leaks)
    if not found:
        return tests
    where, ids = f"comparison.shifted.{name}", sorted(found)
    near = sum(leak.kind == "near" for leak in found.values())
    what = f"{len(ids)} of {len(tests)} shifted tiles are images of training or validation tiles"
    what += f" ({near} of them only look like one)" if near else ""
    if config.leaks.policy == "error":
        fix = "take them out of one side; or --leaks.policy=exclude leaves them out of this set, note only says so"
        pairs = [f"{leak.other_id} (of {leak.id})" for _, leak in sorted(found.items())]
        raise DataError(f"{what}: {shortlist(pairs)}", where=where, fix=fix)
    excluded = config.leaks.policy == "exclude"
    if excluded and len(ids) == len(tests):
        raise DataError(f"without the leaks nothing is left; {what}", where=where, fix="give other tiles")
    note = f"{where}: {what}, {'left out' if excluded else 'kept on request (leaks.policy: note)'}"
    if get_processes().main:
        path = _folder(config) / f"shifted-{fingerprint(name)[:8]}.json"
        write_json(path, {"set": name, "policy": config.leaks.policy, "leaks": [asdict(found[i]) for i in ids]})
        logger.info(f"note: {note}; listed in {path}")
    kept = tests.select(~np.isin(tests.ids, ids)) if excluded else tests
    return replace(kept, notes=(*kept.notes, note))


def _some(prints: Prints, rows: Int64[np.ndarray, " m"]) -> Prints:
    if not isinstance(prints, Fingerprints):
        return np.asarray(prints[rows])
    return Fingerprints(prints.digests[rows], prints.hashes[rows], prints.thumbnails[rows])


def _prints(tiles: TileSet, config: RunConfig, pixels: str) -> Prints | None:
    """What the kinds of leaks that are asked for are found by; called by all processes."""
    if pixels == "off":
        return None
    return (tile_hashes if pixels == "near" else tile_digests)(config.output / "artefacts", tiles)


def checked_reports(reports: "Reports", tiles: Callable[[], TileSet], config: RunConfig) -> "Reports":
    """The reports that snippets may be made of.

    Args:
        reports: As read.
        tiles: Gives the tiles of all splits; called only when a report says whose it is.
        config: `leaks.policy` says what is done.

    Raises:
        DataError: A validation or test patient's report is among them and the policy is `error`, or none is left.
    """
    if config.leaks.policy == "off" or not any(patient_of(report) for report in reports.reports):
        return reports
    leaks = report_leaks(reports.reports, tiles())
    if not leaks:
        return reports
    note = _decide(leaks, config, reports.source, "reports")
    if config.leaks.policy == "note":
        return reports
    out = {leak.id for leak in leaks}
    kept = tuple(report for report in reports.reports if report.report_id not in out)
    if not kept:
        raise DataError(f"no report is left; {note}", where=reports.source, fix="give further reports")
    return replace(reports, reports=kept, problems=(*reports.problems, note))


def _decide(leaks: Sequence[Leak], config: RunConfig, where: object, what: str) -> str:
    """Raise, or say and list what was found; the sentence that was said."""
    counts = "; ".join(_count_lines(leaks))
    if config.leaks.policy == "error":
        raise DataError(
            f"leaks between the splits: {counts}",
            where=where,
            fix="correct the data; or --leaks.policy=exclude leaves these out of training, note only says so. "
            "All of them: scripts/check_leaks.py --config ...",
        )
    path = _folder(config) / f"{what}.json"
    excluded = config.leaks.policy == "exclude"
    note = f"leaks, {'left out' if excluded else 'kept on request (leaks.policy: note)'}: {counts}"
    if get_processes().main:
        write_json(path, {"policy": config.leaks.policy, "leaks": [asdict(leak) for leak in leaks]})
        logger.info(f"{note}; listed in {path}")
    return note


def _count_lines(leaks: Sequence[Leak]) -> list[str]:
    """One phrase per kind: how many tiles or reports, of which split, and the first of them."""
    lines = []
    for kind, what in _WHAT.items():
        ids = sorted({(leak.id, leak.split) for leak in leaks if leak.kind == kind})
        if ids:
            counts = Counter(split for _, split in ids)
            of = f"{len(ids)} reports" if kind == "report" else _tiles_of(counts)
            groups = sorted({leak.group for leak in leaks if leak.kind == kind and leak.group})
            named = f", {len(groups)} groups: {shortlist(groups, 3)}" if groups else ""
            lines.append(f"{of} {what} ({shortlist([name for name, _ in ids], 3)}{named})")
    return lines


def _tiles_of(counts: Counter[str]) -> str:
    return " and ".join(f"{counts[split]} {split} tiles" for split in SPLITS if counts[split])


def _folder(config: RunConfig) -> Path:
    return config.output / "leaks" / config.name


def check_leaks(config: RunConfig, pixels: str | None = None, shifted: Sequence[str] = ()) -> tuple[Path, int]:
    """Look for every kind of leak and write the list (`scripts/check_leaks.py`).

    Args:
        config: The policy does not matter here: nothing is left out.
        pixels: off, exact or near; None: as configured.
        shifted: Names of the shifted test sets, which are reported as not checked.

    Returns:
        leaks.json (leaks.parquet beside it), and the number of tiles and reports that leak.
    """
    from clipit.reports.readers import read_reports

    section = config.leaks.model_copy(update={"pixels": pixels or config.leaks.pixels})
    tiles = read_tiles(config.tiles, check=False)
    reports = read_reports(config.reports).reports if config.reports else ()
    prints = _prints(tiles, config, section.pixels)
    leaks = find_leaks(tiles, section, prints, reports)
    unchecked = _unchecked(tiles, config.tiles.source, section.pixels, reports, prints, section.spread)
    unchecked += [f"comparison.shifted: {name}" for name in shifted]
    path = _folder(config) / "leaks.json"
    if get_processes().main:
        facts = {
            "tiles": tiles.fingerprint,
            "where": tiles.where,
            "counts": {split: int((tiles.splits == split).sum()) for split in SPLITS},
            "leaks": dict(Counter(leak.kind for leak in leaks)),
            "thresholds": section.model_dump(exclude={"policy"}),
            "not_checked": unchecked,
        }
        write_json(path, facts | {"found": [asdict(leak) for leak in leaks]})
        with whole_file(path.with_suffix(".parquet")) as temporary:
            pq.write_table(pa.Table.from_pylist([asdict(leak) for leak in leaks], schema=_SCHEMA), temporary)
        logger.info(
            "\n".join([tiles.describe(), "", leaks_table(leaks), *(f"not checked: {line}" for line in unchecked)])
        )
    return path, len({(leak.kind == "report", leak.id) for leak in leaks})


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "id", "split", "other_id", "other_split", "group")),
        ("distance", pa.int16()),
        ("similarity", pa.float32()),
    ]
)


def leaks_table(leaks: Sequence[Leak]) -> str:
    """Per kind and pair of splits: how many tiles or reports on either side, and an example."""
    rows = []
    for kind, split, other in sorted({(leak.kind, leak.split, leak.other_split) for leak in leaks}):
        some = [leak for leak in leaks if (leak.kind, leak.split, leak.other_split) == (kind, split, other)]
        on_both = [len({leak.id for leak in some}), len({leak.other_id for leak in some})]
        rows.append([kind, split or "reports", other, *on_both, f"{some[0].id} ~ {some[0].other_id}"])
    if not rows:
        return "no leak found"
    return markdown_table(("kind", "leaking from", "into", "here", "there", "example"), rows, left=3)


def _unchecked(
    tiles: TileSet, source: str, pixels: str, reports: Sequence[Any], prints: Prints | None, spread: float
) -> list[str]:
    """What could not be looked at, and why."""
    found = []
    row = DATASETS.get(source)
    if row is not None and row.group_is:
        found.append(f"patients: {row.title} names only the {row.group_is} of a tile, which is its group here")
    nameless = int((patients(tiles.groups, tiles.ids) == "").sum())
    if nameless:
        found.append(f"patients of {nameless} of {len(tiles)} tiles: the data do not name them")
    unknown = sum(not patient_of(report) for report in reports)
    if unknown:
        found.append(f"patients of {unknown} of {len(reports)} reports: none named (reports.group_column)")
    if pixels != "near":
        found.append(f"near-duplicates: leaks.pixels is {pixels}")
    elif isinstance(prints, Fingerprints):
        flat = int((prints.spread < spread).sum())
        found += [f"near-duplicates among {flat} nearly empty tiles (grey deviation below {spread:g})"] if flat else []
    return found
