"""Write the files of a synthetic world atomically: tiles, reports and prompt sets."""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import UInt8

from clipit.config.section import Section
from clipit.errors import ArtifactError, disk_errors
from clipit.free_memory import keep_freed_memory
from clipit.output_files.artifacts import locked, whole_file
from clipit.output_files.differences import difference_lines, list_differences
from clipit.output_files.whole_files import write_rows, write_text
from clipit.synthetic import vocabulary as words
from clipit.synthetic.latents import CLASSES
from clipit.synthetic.tile_draws import MPP, Draw

logger = logging.getLogger(__name__)


def write_tiles(
    folder: Path,
    name: str,
    draws: Mapping[str, Draw],
    extra_columns: Mapping[str, Mapping[str, Sequence[object]]] | None = None,
) -> str:
    """Write `<name>.zip` and `<name>.csv`; return the SHA-256 of all pixels, in order.

    Args:
        draws: Tiles by split; the split `shift` is written as `test`.
        extra_columns: Additional columns of the table, by split and name, with one value per tile.
    """
    digest = hashlib.sha256()
    rows = []
    with whole_file(folder / f"{name}.zip") as path, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for split, draw in draws.items():
            columns = {} if extra_columns is None else extra_columns[split]
            for row, image in enumerate(draw.images):
                tile = f"{split}-{row:05d}"
                # The date is fixed, so that identical tiles give identical bytes.
                archive.writestr(zipfile.ZipInfo(f"{split}/{tile}.png", (1980, 1, 1, 0, 0, 0)), _png(image))
                digest.update(image.tobytes())
                rows.append(
                    {
                        "id": tile,
                        "path": f"{split}/{tile}.png",
                        "label": CLASSES[draw.latents.tissue[row]],
                        **{column: values[row] for column, values in columns.items()},
                        "split": "test" if split == "shift" else split,
                        "group": patient_name(split, int(draw.patients[row])),
                        "mpp": MPP,
                        "centre": draw.centres[row],
                    }
                )
    write_rows(folder / f"{name}.csv", list(rows[0]), rows)
    return digest.hexdigest()


def patient_name(split: str, number: int) -> str:
    """Return the name of a patient, which is the `group` of the tiles and reports."""
    return f"{split}-P{number:04d}"


def _png(image: UInt8[np.ndarray, "64 64 3"]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def write_reports(path: Path, reports: Iterable[object]) -> None:
    """Write the fields of report dataclasses as JSON lines."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for report in reports:
            lines.write(json.dumps(report.__dict__) + "\n")


def write_prompt_bags(folder: Path) -> None:
    """Write `morphology.yaml` and `boilerplate.yaml`, the prompt bags of the snippet filter."""
    for name, texts in (("morphology", words.MORPHOLOGY_BAG), ("boilerplate", words.BOILERPLATE_BAG)):
        write_yaml(folder / f"{name}.yaml", {"name": f"synthetic-{name}", "version": 1, "texts": list(texts)})


def prompt_set(name: str, names: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the content of a prompt set with these class names."""
    classes = {label: list(class_names) for label, class_names in names.items()}
    return {"name": name, "version": 1, "templates": list(words.PROMPT_TEMPLATES), "classes": classes}


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a YAML file, with the keys in the given order."""
    write_text(path, yaml.safe_dump(dict(content), sort_keys=False, width=120))


def ensure_written(folder: Path, config: Section, write: Callable[[Path], object]) -> Path:
    """Write a world to a folder, atomically, unless it already exists.

    Args:
        config: Configuration that `world.json` in the folder must contain under `config`.
        write: Function that writes all files of the world to a folder, `world.json` last.

    Raises:
        ArtifactError: The folder contains other files or a different world; nothing in it is changed.
    """
    world = folder.absolute()  # because the lock and the partial folder are next to it, even for "."
    if _is_written(world, config):
        return world
    with locked(world):
        if not _is_written(world, config):
            logger.info(f"writing the synthetic data set to {world}")
            keep_freed_memory()
            partial = Path(f"{world}.partial")
            write(partial)
            with disk_errors(world):
                for leftover in partial.glob(".*.tmp"):  # left by a killed process
                    leftover.unlink()
                if not world.is_dir():
                    partial.rename(world)
                    return world
                # An existing empty folder may be the working directory, so it is filled and not replaced.
                for path in sorted(partial.iterdir(), key=lambda path: path.name == "world.json"):
                    path.rename(world / path.name)
                partial.rmdir()
    return world


def _is_written(world: Path, config: Section) -> bool:
    """Return whether the folder contains this world; False if it is empty or missing.

    Raises:
        ArtifactError: The folder contains something else.
    """
    with disk_errors(world):
        if not world.exists() or not any(world.iterdir()):
            return False
    facts = world / "world.json"
    if not facts.is_file():
        raise ArtifactError(
            "the folder for a synthetic data set contains other files and was not changed",
            where=world,
            fix="choose a new folder (--output of clipit world; for the demo, tiles.path and the other paths "
            "of its configuration); for your own tiles use clipit train or clipit compare; a partly written "
            "data set may be deleted",
        )
    settings, recorded = config.model_dump(mode="json"), _read_settings(facts)
    if recorded != settings:
        changes = [] if recorded is None else list_differences(recorded, settings)
        raise ArtifactError(
            "this synthetic data set differs from the one that this version writes for these settings"
            + (f":\n    {difference_lines(changes)}" if changes else ""),
            where=facts,
            fix="delete its folder and run the command again to rewrite it",
        )
    return True


def _read_settings(facts: Path) -> dict[str, Any] | None:
    """Read the settings of a world from its world.json; None if the file is damaged."""
    try:
        settings = json.loads(facts.read_text(encoding="utf-8"))["config"]
    except (ValueError, KeyError, TypeError):
        return None
    return settings if isinstance(settings, dict) else None
