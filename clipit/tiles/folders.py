"""Class folders: `<split>/<class>/*` or `<class>/*`."""

import os
from collections.abc import Sequence
from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import DataError, shortlist
from clipit.tiles.images import is_image
from clipit.tiles.readers import FileReader, file_stamp
from clipit.tiles.source import ALIASES, SourceTiles
from clipit.tiles.splits import part_map

UNLABELLED = "unlabelled"
"""A folder of this name holds tiles without a label."""


def read_folders(config: TilesConfig) -> SourceTiles:
    """Tiles in class folders; the id of a tile is its path inside `tiles.path`.

    The first level is taken for splits when one of its folders is called like a split. Folders inside a class folder
    belong to that class. A folder called `unlabelled` holds tiles without a label.

    Raises:
        DataError: Nothing there, images outside class folders, or an unknown or missing class folder.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError("the folder with the tiles is not there", where=root, fix="correct tiles.path")
    top = subfolders(root)
    mapping = part_map(config.splits, ALIASES)
    with_splits = any(name in mapping or name.lower() in mapping for name in top)
    ids: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    others: list[str] = []
    for part in top if with_splits else [""]:
        base = root / part
        _no_loose_images(base, with_splits=with_splits)
        for name in subfolders(base):
            files, strange = image_files(base / name)
            found = [(base / name / file).relative_to(root).as_posix() for file in files]
            ids += found
            labels += ["" if name == UNLABELLED and name not in (config.classes or ()) else name] * len(found)
            parts += [part] * len(found)
            others += [str(base / name / file) for file in strange]
    if not ids:
        raise DataError(
            "no images in class folders", where=root, fix="put them into <split>/<class>/ or <class>/ folders"
        )
    _check_class_folders(config, root, set(labels) - {""})
    notes = (f"{len(others)} files are no images and were left out: {shortlist(others)}",) if others else ()
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
    """Names of the folders inside, sorted, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Images below a folder and files that are none, as sorted relative paths; hidden ones do not count."""
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
            f"{len(loose)} images lie outside class folders: {shortlist(loose, 3)}",
            where=folder,
            fix="move them into folders named by their class (or `unlabelled`)"
            + (", one level below the split" if with_splits else ""),
        )


def _check_class_folders(config: TilesConfig, root: Path, found: set[str]) -> None:
    if config.classes is None:
        return
    problems: Sequence[tuple[str, list[str]]] = (
        ("unknown class folders", sorted(found - set(config.classes))),
        ("no images for the classes", [name for name in config.classes if name not in found]),
    )
    wrong = [f"{what}: {shortlist(names)}" for what, names in problems if names]
    if wrong:
        raise DataError(
            "; ".join(wrong),
            where=root,
            fix=f"tiles.classes is {', '.join(config.classes)}: correct it, or rename or remove the folders",
        )
