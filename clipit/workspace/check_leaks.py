"""List all leaks between splits, for `clipit check-leaks`."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import as_note, counted, shortlist
from clipit.output_files.whole_files import write_parquet
from clipit.pairing.leaks import ImageHashes, Leak, digests_of, find_leaks, match_report_patients, patient_of
from clipit.pairing.patient_spelling import describe_match, misspelled_reports, misspelled_splits
from clipit.patients import patients
from clipit.reporting.tables import markdown_table
from clipit.tiles.datasets import DATASETS
from clipit.tiles.perceptual import PerceptualHashes
from clipit.tiles.splits import patients_across_splits
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.leak_policy import hash_images, leak_folder, write_leaks
from clipit.workspace.near_duplicates import conflicting_labels
from clipit.workspace.preflight import check_output
from clipit.workspace.tile_reading import artefacts_of, read_with_overview, with_kept_size

if TYPE_CHECKING:
    from clipit.reports.readers import Report

logger = logging.getLogger(__name__)

_GROUP_ADVICE = (
    "name the patient or slide of each tile in a `group` column, or set --tiles.columns.group=COLUMN or "
    "--tiles.group_pattern=REGEX"
)
_MAX_NAMES = 50  # maximum number of patients listed for a pair of splits; leaks.json lists all patients
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("kind", "id", "split", "other_id", "other_split", "group")),
        ("distance", pa.int16()),
        ("similarity", pa.float32()),
    ]
)


class _Comparable(NamedTuple):
    """Numbers of tiles that are compared by image, and of tiles that are excluded from the comparison.

    Attributes:
        equal: Number of tiles checked for identical images.
        plain: Number of tiles of a single colour, which are not checked for identical images.
        similar: Number of tiles checked for near-duplicates.
        flat: Number of nearly empty tiles, which are not checked for near-duplicates.
        in_two_splits: Whether at least two splits have tiles that were checked for near-duplicates or, without this
            check, for identical ones.
    """

    equal: int = 0
    plain: int = 0
    similar: int = 0
    flat: int = 0
    in_two_splits: bool = True

    @classmethod
    def of(cls, image_hashes: ImageHashes | None, tiles: TileSet, spread: float) -> "_Comparable":
        if image_hashes is None:
            return cls()
        near = isinstance(image_hashes, PerceptualHashes)
        equal = digests_of(image_hashes).any(axis=1)
        similar = image_hashes.spread >= spread if isinstance(image_hashes, PerceptualHashes) else np.zeros_like(equal)
        two = len(set(tiles.splits[similar if near else equal].tolist())) > 1
        return cls(int(equal.sum()), int((~equal).sum()), int(similar.sum()), int((~similar).sum()) * near, two)


class LeakCheck(NamedTuple):
    """Result of a search for leaks.

    Attributes:
        path: Path of leaks.json.
        leaking: Number of tiles and reports that leak.
        compared_patients: Whether patients or slides are known in at least two splits and were therefore compared.
        compared_images: Whether at least two splits have tiles whose images were compared as requested; true if no
            comparison was requested.
    """

    path: Path
    leaking: int
    compared_patients: bool
    compared_images: bool


def check_leaks(config: RunConfig, pixels: str | None = None, shifted: Sequence[str] = ()) -> LeakCheck:
    """Find leaks of all kinds, and write them to leaks.json and leaks.parquet.

    Args:
        config: Run configuration; its `leaks.policy` is ignored, so nothing is dropped.
        pixels: Comparison of images (off, exact or near); `leaks.pixels` by default.
        shifted: Names of the shifted test sets, to be listed as not checked.
    """
    from clipit.reports.readers import read_reports

    check_output(config.output)
    section = config.leaks.model_copy(update={"pixels": pixels or config.leaks.pixels})
    listed = with_kept_size(config.tiles, config)
    tiles = read_with_overview(listed, lambda _, read: read(), root=artefacts_of(config), check=False)
    reports = read_reports(config.reports).reports if config.reports else ()
    image_hashes = hash_images(tiles, config, section.pixels)
    leaks = find_leaks(tiles, section, image_hashes, reports)
    known = _known_patients(tiles)
    compared = sum(count > 0 for count, _ in known.values()) > 1
    unchecked = [*_unnamed_patients(tiles, compared)]
    images = _Comparable.of(image_hashes, tiles, section.spread)
    unchecked += _unchecked(config.tiles.source, section.pixels, reports, images, section.spread)
    unchecked += [f"comparison.shifted: {name}" for name in shifted]
    remarks = [
        *misspelled_splits(tiles),
        *conflicting_labels(tiles, image_hashes),
        *misspelled_reports(reports, tiles),
        *describe_match(reports, tiles),
    ]
    checked = _comparisons_made(known, compared, section.pixels, images, reports)
    path = leak_folder(config) / "leaks.json"
    if get_processes().main:
        records = [asdict(leak) for leak in leaks]
        write_leaks(
            path,
            {
                "tiles": tiles.fingerprint,
                "where": tiles.where,
                "counts": {split: int((tiles.splits == split).sum()) for split in SPLITS},
                "leaks": dict(Counter(leak.kind for leak in leaks)),
                "thresholds": {name: getattr(section, name) for name in ("pixels", "distance", "similarity", "spread")},
                "checked": checked,
                "not_checked": unchecked,
                "remarks": remarks,
                "found": records,
            },
        )
        write_parquet(path.with_suffix(".parquet"), pa.Table.from_pylist(records, schema=_SCHEMA))
        logger.info(
            "\n".join(
                [
                    "",
                    leaks_table(leaks, tiles, reports),
                    *list_patients(leaks),
                    *_hint(leaks, tiles),
                    *(f"checked: {x}" for x in checked or ["nothing"]),
                    *(f"not checked: {x}" for x in unchecked),
                    *map(as_note, remarks),
                ]
            )
        )
    return LeakCheck(path, len({(leak.kind == "report", leak.id) for leak in leaks}), compared, images.in_two_splits)


def _known_patients(tiles: TileSet) -> dict[str, tuple[int, int]]:
    """Count the tiles with a known patient or slide, and all tiles, of each split that is not empty."""
    known = patients(tiles.groups, tiles.ids) != ""
    masks = {split: tiles.splits == split for split in SPLITS}
    return {split: (int(known[mask].sum()), int(mask.sum())) for split, mask in masks.items() if mask.any()}


def _comparisons_made(
    known: Mapping[str, tuple[int, int]],
    compared: bool,
    pixels: str,
    images: _Comparable,
    reports: Sequence["Report"],
) -> list[str]:
    """List the comparisons that were made."""
    lines = []
    if compared:
        counts = ", ".join(f"{count:,} of {counted(total, f'{split} tile')}" for split, (count, total) in known.items())
        lines.append(f"patients or slides of {counts}")
    if pixels != "off" and images.equal:
        lines.append(f"identical images among {counted(images.equal, 'tile')}")
    if pixels == "near" and images.similar:
        lines.append(f"near-duplicates among {counted(images.similar, 'tile')}")
    with_patient = sum(bool(patient_of(report)) for report in reports)
    if with_patient and any(count for split, (count, _) in known.items() if split != "train"):
        lines.append(f"patients of {with_patient:,} of {counted(len(reports), 'report')}")
    return lines


def leaks_table(leaks: Sequence[Leak], tiles: TileSet, reports: Sequence["Report"]) -> str:
    """Tabulate the leaks by kind and pair of splits: number of tiles or reports in each split, and an example."""
    rows = []
    owners = {  # a leak of a patient names only one tile of the held-out split, but all its tiles are counted
        "group": patients_across_splits(tiles.groups, tiles.ids, tiles.splits),
        "report": np.asarray(match_report_patients(reports, tiles)[1], dtype=object),
    }
    for kind, split, other in sorted({(leak.kind, leak.split, leak.other_split) for leak in leaks}):
        group = [leak for leak in leaks if (leak.kind, leak.split, leak.other_split) == (kind, split, other)]
        into = len({leak.other_id for leak in group})
        if kind in owners:
            leaking = {leak.group for leak in group}
            into = sum(owner in leaking for owner in owners[kind][tiles.splits == other])
        counts = [len({leak.id for leak in group}), into]
        rows.append([kind, split or "reports", other, *counts, f"{group[0].id} ~ {group[0].other_id}"])
    if not rows:
        return "no leaks found"
    return markdown_table(("kind", "from", "into", "from (count)", "into (count)", "example"), rows, left=3)


def list_patients(leaks: Sequence[Leak]) -> list[str]:
    """List the patients or slides that two splits share, one line per pair of splits."""
    pairs = sorted({(leak.split, leak.other_split) for leak in leaks if leak.kind == "group"})
    lines = []
    for split, other in pairs:
        names = {
            leak.group for leak in leaks if leak.kind == "group" and (leak.split, leak.other_split) == (split, other)
        }
        lines.append(
            f"patients or slides in {split} and {other} ({len(names)}): {shortlist(sorted(names), _MAX_NAMES)}"
        )
    return lines


def _hint(leaks: Sequence[Leak], tiles: TileSet) -> list[str]:
    """Explain what near-duplicates in two splits suggest, if no tile has a known patient or slide."""
    if (patients(tiles.groups, tiles.ids) == "").all() and any(leak.kind == "near" for leak in leaks):
        return ["near-duplicates in two splits often show the same patient or slide, so further tiles may leak"]
    return []


def _unnamed_patients(tiles: TileSet, compared: bool) -> Iterator[str]:
    """Describe, in at most one line, tiles whose patients or slides could not be compared."""
    unnamed = int((patients(tiles.groups, tiles.ids) == "").sum())
    subject = "patients" if compared else "patients and slides"
    if unnamed:
        advice = tiles.advice or _GROUP_ADVICE
        yield f"{subject} of {unnamed:,} of {counted(len(tiles), 'tile')}: not named in the data; {advice}"
    elif not compared:
        yield f"{subject}: known in fewer than two splits"


def _unchecked(source: str, pixels: str, reports: Sequence[Any], images: _Comparable, spread: float) -> list[str]:
    """List the other comparisons that could not be made, with reasons."""
    lines = []
    card = DATASETS.get(source)
    if card is not None and card.group_kind:
        lines.append(f"patients: {card.title} names only the {card.group_kind} of a tile, which is used as its group")
    unknown = sum(not patient_of(report) for report in reports)
    if unknown:
        lines.append(f"patients of {unknown} of {counted(len(reports), 'report')}: not named (reports.group_column)")
    if images.plain:
        lines.append(f"identical images among {counted(images.plain, 'tile')} of a single colour")
    if pixels != "near":
        kinds = "identical images, near-duplicates" if pixels == "off" else "near-duplicates"
        lines.append(f"{kinds}: leaks.pixels is {pixels}")
    elif images.flat:
        lines.append(
            f"near-duplicates among {counted(images.flat, 'nearly empty tile')} (standard deviation of grey values "
            f"below {spread:g})"
        )
    return lines
