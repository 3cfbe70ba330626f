"""Patients whose data a VLM or backbone was trained on: record them, and compare them with test patients."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.errors import ArtifactError, as_note, counted, counted_of, shortlist
from clipit.models.adapted_base import base_of_adapted
from clipit.models.classifier_spec import DESCRIPTION
from clipit.output_files.artifacts import reading
from clipit.output_files.run_files import check_same_run, read_run_json, write_run_json
from clipit.pairing.leaks import SeenTiles, find_shared_patients
from clipit.patients import patients
from clipit.tiles.tileset import TileSet

logger = logging.getLogger(__name__)

ADAPTED_PATIENTS = "adapted_patients.json"
"""File in the folder of an adaptation, outside the exported folders, with the patients whose data were used."""
TRAINING_TILES = "training_tiles.parquet"
"""File in a run's folder with the id, split and group of each training and validation tile."""
RUN_KEY = b"clipit_run_fingerprint"
"""Entry of its metadata that repeats the fingerprint of the run."""
CHECKED = "the test patients are not those of the adaptation"
"""Key of the shared cache that is set while an adaptation, which has checked all leaks, evaluates its own VLM."""
_WARNINGS = ("WARNING: the VLM ", "WARNING: the backbone ")
_RESTORE = "restore the file, or delete it; the patients are then not compared"
_Seen = tuple[Path, str, list[str], str]
"""Folder of a model, how it used data ("was trained on"), the known patients, and why others may be missing."""


def write_adapted_patients(folder: Path, used: Sequence[TileSet | SeenTiles], vlm: VLMConfig) -> None:
    """Record the patients whose images or texts a VLM is adapted to, and those of its earlier adaptations.

    Args:
        folder: Folder of the adaptation.
        used: Images that are used, and reports with their patients.
        vlm: VLM before the adaptation.
    """
    names = [name for tiles in used for name in patients(tiles.groups, tiles.ids).tolist()]
    known, problem = _known(names, "image or report has", "images or reports have")
    if (exported := _exported_folder(vlm)) is not None:
        earlier, earlier_problem = _read(exported.parent / ADAPTED_PATIENTS)
        known, problem = sorted({*known, *earlier}), problem or earlier_problem
    write_run_json(folder / ADAPTED_PATIENTS, {"patients": known, "problem": problem}, folder)


def note_adapted_vlms(
    tiles: TileSet,
    config: RunConfig,
    cached: Callable[[str, Callable[[], Any]], Any],
    unit: str = "test tile",
) -> TileSet:
    """Warn if test tiles belong to patients whose data the models of a configuration saw.

    If test tiles have labels, only those are compared; otherwise, masks or bags are scored.
    """
    if config.leaks.policy == "off":
        return tiles
    tests = tiles.of_split("test")
    if (tests.truth >= 0).any():
        tests, unit = tests.select(tests.truth >= 0), f"labelled {unit}"
    notes = adaptation_notes(tests, (config.vlm, config.second_vlm, config.backbone), unit)
    for note in notes:
        cached(f"logged {note}", partial(logger.info, as_note(note)))
    return replace(tiles, notes=(*tiles.notes, *notes)) if notes else tiles


def adapted_vlm_notes(notes: Iterable[str]) -> list[str]:
    """Select the warnings of `note_adapted_vlms`, for pages that do not show all notes of the tiles."""
    return list(dict.fromkeys(note for note in notes if note.startswith(_WARNINGS)))


def adaptation_notes(
    tests: TileSet | SeenTiles, models: Iterable[VLMConfig | BackboneConfig | None], unit: str, run: str = ""
) -> list[str]:
    """Warn if test patients are among those whose data a model was trained on, or if this is unknown.

    Args:
        tests: Labelled test tiles or slides.
        models: VLMs, which may have been adapted, and backbones, which may belong to an adapted VLM or be the
            classifier of a finished run.
        unit: Noun for an item of `tests` in the warnings, such as `test tile`.
        run: Name of the run that uses the models; "" for the current configuration.
    """
    notes = []
    for model in models if len(tests) else ():
        if model is None:
            continue
        kind = "VLM" if isinstance(model, VLMConfig) else "backbone"
        seen = _seen_by_vlm(model) if isinstance(model, VLMConfig) else _seen_by_backbone(model)
        if seen is not None:
            name = f"WARNING: the {kind} {seen[0].parent.name}/{seen[0].name}{f' of the run {run}' if run else ''}"
            notes += [f"{name} {note}" for note in _compare(tests, *seen[1:], unit)]
    return notes


def _compare(tests: TileSet | SeenTiles, history: str, names: list[str], problem: str, unit: str) -> list[str]:
    seen = np.asarray(names, dtype=object)
    shared = find_shared_patients(tests, SeenTiles(seen, np.full(len(seen), "train", dtype=object), seen))
    notes = []
    if shared:
        shared_groups = sorted({leak.group for leak in shared.values()})
        count = counted_of(len(shared), len(tests), f"{unit} belongs", f"{unit}s belong")
        notes.append(
            f"{history} data of test patients, so its scores on them may be too high: {count} to "
            f"{counted(len(shared_groups), 'such patient')} ({shortlist(shared_groups)})"
        )
    if not problem:
        problem = _known(patients(tests.groups, tests.ids).tolist(), f"{unit} has", f"{unit}s have")[1]
    if problem:
        of = f"of {counted(len(names), 'known patient')} and others" if names else "of patients"
        notes.append(
            f"{history} data {of}, which cannot be compared with the test patients ({problem}): check that "
            "none of them is a test patient"
        )
    return notes


def _known(names: Sequence[str], one: str, many: str) -> tuple[list[str], str]:
    """Return the known patients, and a phrase that counts images, reports or tiles without a patient."""
    unknown = list(names).count("")
    return sorted({*names} - {""}), f"{counted_of(unknown, len(names), one, many)} no patient" if unknown else ""


def read_training_table(file: Path, fix: str) -> pa.Table:
    """Read the `training_tiles.parquet` of a run, and check that it belongs to the run in whose folder it is."""
    table = pq.read_table(file, page_checksum_verification=True)
    run = (table.schema.metadata or {}).get(RUN_KEY, b"").decode()
    check_same_run(file, run or None, file.parent, fix)
    if empty := [name for name in table.column_names if table[name].null_count]:
        raise ArtifactError(f"empty cells in {', '.join(empty)}: the file has changed", where=file, fix=fix)
    return table


def _seen_by_vlm(vlm: VLMConfig) -> _Seen | None:
    exported = _exported_folder(vlm)
    return None if exported is None else (exported, "was adapted to", *_read(exported.parent / ADAPTED_PATIENTS))


def _seen_by_backbone(backbone: BackboneConfig) -> _Seen | None:
    """Look in and above a backbone's folder for the record of an adaptation, or of a run whose classifier it is."""
    path = Path(backbone.path or backbone.name.removeprefix("hf-hub:")).expanduser()
    if not backbone.pretrained or not path.exists():
        return None
    folder = path.resolve()
    for above in (folder, *folder.parents):
        if (above / ADAPTED_PATIENTS).is_file():
            return (folder, "belongs to a VLM that was adapted to", *_read(above / ADAPTED_PATIENTS))
        if (file := above / TRAINING_TILES).is_file():
            with reading(file, _RESTORE):
                table = read_training_table(file, _RESTORE)
                ids, groups = (np.asarray(table[name].to_pylist(), dtype=object) for name in ("id", "group"))
            return (folder, "was trained on", *_known(patients(groups, ids).tolist(), "tile has", "tiles have"))
    if (folder / DESCRIPTION).is_file():
        return (folder, "was trained on", [], f"there is no {TRAINING_TILES} next to its folder")
    return None


def _exported_folder(vlm: VLMConfig) -> Path | None:
    """Return the folder that an adaptation exported, if the VLM or its adapter is one."""
    if vlm.adapter is not None:
        return Path(vlm.adapter).expanduser().resolve()
    source = (vlm.path or vlm.name).removeprefix("hf-hub:").removeprefix("clip:")
    return None if base_of_adapted(source) == source else Path(source).expanduser().resolve()


def _read(path: Path) -> tuple[list[str], str]:
    """Return the recorded patients, and why others may be missing; "" if the record is complete."""
    if not path.is_file():
        return [], f"there is no {ADAPTED_PATIENTS} next to its folder"
    record = read_run_json(path, path.parent, _RESTORE)
    return list(record["patients"]), str(record["problem"])
