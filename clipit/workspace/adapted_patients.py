"""Patients whose data a VLM was adapted to: record them next to the VLM, and compare them with test patients."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipit.config.run import RunConfig, VLMConfig
from clipit.errors import as_note, counted, counted_of, shortlist
from clipit.models.adapted_base import base_of_adapted
from clipit.output_files.run_files import read_run_json, write_run_json
from clipit.pairing.leaks import SeenTiles, find_shared_patients
from clipit.patients import patients
from clipit.tiles.tileset import TileSet

logger = logging.getLogger(__name__)

ADAPTED_PATIENTS = "adapted_patients.json"
"""File in the folder of an adaptation, outside the exported folders, with the patients whose data were used."""
CHECKED = "the test patients are not those of the adaptation"
"""Key of the shared cache that is set while an adaptation, which has checked all leaks, evaluates its own VLM."""
_WARNING = "WARNING: the VLM "


def write_adapted_patients(folder: Path, used: Sequence[TileSet | SeenTiles], vlm: VLMConfig) -> None:
    """Record the patients whose images or texts a VLM is adapted to, and those of its earlier adaptations.

    Args:
        folder: Folder of the adaptation.
        used: Images that are used, and reports with their patients.
        vlm: VLM before the adaptation.
    """
    names = [name for tiles in used for name in patients(tiles.groups, tiles.ids).tolist()]
    known, problem = {*names} - {""}, ""
    if unknown := names.count(""):
        problem = f"{counted_of(unknown, len(names), 'image or report has', 'images or reports have')} no patient"
    if (exported := _exported_folder(vlm)) is not None:
        earlier, earlier_problem = _read(exported)
        known, problem = known | {*earlier}, problem or earlier_problem
    write_run_json(folder / ADAPTED_PATIENTS, {"patients": sorted(known), "problem": problem}, folder)


def note_adapted_vlms(tiles: TileSet, config: RunConfig, cached: Callable[[str, Callable[[], Any]], Any]) -> TileSet:
    """Warn if labelled test tiles belong to patients whose data a VLM was adapted to, or if this is unknown."""
    tests = tiles.select((tiles.splits == "test") & (tiles.truth >= 0))
    if config.leaks.policy == "off" or not len(tests):
        return tiles
    notes = [note for vlm in (config.vlm, config.second_vlm) if vlm is not None for note in _compare(tests, vlm)]
    for note in notes:
        cached(f"logged {note}", partial(logger.info, as_note(note)))
    return replace(tiles, notes=(*tiles.notes, *notes)) if notes else tiles


def adapted_vlm_notes(tile_sets: Sequence[TileSet]) -> list[str]:
    """Return the warnings of `note_adapted_vlms`, for pages that do not show the notes of the tiles."""
    return list(dict.fromkeys(note for tiles in tile_sets for note in tiles.notes if note.startswith(_WARNING)))


def _compare(tests: TileSet, vlm: VLMConfig) -> list[str]:
    exported = _exported_folder(vlm)
    if exported is None:
        return []
    names, problem = _read(exported)
    seen = np.asarray(names, dtype=object)
    shared = find_shared_patients(tests, SeenTiles(seen, np.full(len(seen), "train", dtype=object), seen))
    name, notes = f"{_WARNING}{exported.parent.name}/{exported.name}", []
    if shared:
        found = sorted({leak.group for leak in shared.values()})
        count = counted_of(len(shared), len(tests), "labelled test tile belongs", "labelled test tiles belong")
        notes.append(
            f"{name} was adapted to data of test patients, so its scores on them may be too high: {count} to "
            f"{counted(len(found), 'such patient')} ({shortlist(found)})"
        )
    unknown = int((patients(tests.groups, tests.ids) == "").sum())
    if not problem and unknown:
        problem = f"{counted_of(unknown, len(tests), 'labelled test tile has', 'labelled test tiles have')} no patient"
    if problem:
        of = f"of {counted(len(names), 'known patient')} and others" if names else "of patients"
        notes.append(
            f"{name} was adapted to data {of}, which cannot be compared with the test patients ({problem}): check that "
            "none of them is a test patient"
        )
    return notes


def _exported_folder(vlm: VLMConfig) -> Path | None:
    """Return the folder that an adaptation exported, if the VLM or its adapter is one."""
    if vlm.adapter is not None:
        return Path(vlm.adapter).expanduser().resolve()
    source = (vlm.path or vlm.name).removeprefix("hf-hub:").removeprefix("clip:")
    return None if base_of_adapted(source) == source else Path(source).expanduser().resolve()


def _read(exported: Path) -> tuple[list[str], str]:
    """Return the recorded patients, and why others may be missing; "" if the record is complete."""
    path = exported.parent / ADAPTED_PATIENTS
    if not path.is_file():
        return [], f"there is no {ADAPTED_PATIENTS} next to its folder"
    record = read_run_json(path, path.parent, "restore the file, or delete it; the patients are then not compared")
    return list(record["patients"]), str(record["problem"])
