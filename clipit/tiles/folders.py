"""Tiles in class folders: `<split>/<class>/*` or `<class>/*`."""

import os
from collections.abc import Sequence
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, shortlist
from clipit.images import is_image
from clipit.tiles.readers import FileReader, file_stamp
from clipit.tiles.source import ALIASES, SourceTiles
from clipit.tiles.splits import part_map

UNLABELLED = "unlabelled"
"""Name of a folder with unlabelled tiles."""


def read_folders(config: TilesConfig) -> SourceTiles:
    """Read tiles from class folders; the id of a tile is its path inside `tiles.path`.

    The first level holds splits if one of its folders has the name of a split. Folders inside a class folder belong to
    that class. A folder `unlabelled` holds tiles without a label.

    Raises:
        DataError: No images, images outside class folders, or an unknown or missing class folder.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError("the tile folder does not exist", where=root, fix="correct tiles.path")
    top_folders = subfolders(root)
    mapping = part_map(config.splits, ALIASES)
    with_splits = any(name in mapping or name.lower() in mapping for name in top_folders)
    ids: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    others: list[str] = []
    for part in top_folders if with_splits else [""]:
        base = root / part
        _no_loose_images(base, with_splits=with_splits)
        for name in subfolders(base):
            images, other_files = image_files(base / name)
            ids += [(base / name / file).relative_to(root).as_posix() for file in images]
            labels += ["" if name == UNLABELLED and name not in (config.classes or ()) else name] * len(images)
            parts += [part] * len(images)
            others += [str(base / name / file) for file in other_files]
    if not ids:
        raise DataError(
            "no images in class folders", where=root, fix="put them into <split>/<class>/ or <class>/ folders"
        )
    _check_class_folders(config, root, set(labels) - {""})
    notes = (f"{len(others)} files are not images and were dropped: {shortlist(others)}",) if others else ()
    return SourceTiles(
        ids=ids,
        labels=labels,
        parts=parts,
        groups=[""] * len(ids),
        mpp=[float("nan")] * len(ids),
        stamps=[file_stamp(root / name) for name in ids],
        reader=FileReader(root, ids),
        where=str(root),
        notes=notes,
    )


def subfolders(folder: Path) -> list[str]:
    """List the subfolders by name, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """List images and other files below a folder, as sorted relative paths without hidden ones."""
    images: list[str] = []
    others: list[str] = []
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            relative = (Path(base) / name).relative_to(folder).as_posix()
            if is_image(name):
                images.append(relative)
            elif not name.startswith(".") and name != "Thumbs.db":
                others.append(relative)
    return sorted(images), sorted(others)


def _no_loose_images(folder: Path, *, with_splits: bool) -> None:
    loose = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and is_image(entry.name))
    if loose:
        raise DataError(
            f"{len(loose)} images are outside class folders: {shortlist(loose, 3)}",
            where=folder,
            fix="move them into folders named by their class (or `unlabelled`)"
            + (", one level below the split" if with_splits else ""),
        )


def _check_class_folders(config: TilesConfig, root: Path, present: set[str]) -> None:
    if config.classes is None:
        return
    problems: Sequence[tuple[str, list[str]]] = (
        ("unknown class folders", sorted(present - set(config.classes))),
        ("no images for the classes", [name for name in config.classes if name not in present]),
    )
    wrong = [f"{what}: {shortlist(names)}" for what, names in problems if names]
    if wrong:
        raise DataError(
            "; ".join(wrong),
            where=root,
            fix=f"tiles.classes is {', '.join(config.classes)}: correct it, or rename or remove the folders",
        )
