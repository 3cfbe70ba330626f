"""List the image files in a folder and its subfolders, with stamps that change when a file changes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from clipit.errors import DataError, counted, shortlist
from clipit.images.decode import SUFFIXES, is_image
from clipit.images.image_readers import file_stamp
from clipit.input_files.folder_files import (
    BROKEN_LINK,
    hidden_names,
    hidden_note,
    is_hidden,
    list_files,
    output_note,
    reject_repeated,
)


@dataclass(frozen=True)
class ImageFiles:
    """Files of a folder and its subfolders, as sorted relative paths.

    Attributes:
        images: Image files.
        others: Other files.
        notes: Notes on hidden images, images in hidden folders and outputs of clipit, which are skipped.
    """

    images: list[str]
    others: list[str]
    notes: tuple[str, ...]


def has_suffix(path: PurePath) -> bool:
    """Return whether a file name, which may be hidden, has an image suffix."""
    return path.suffix.lower() in SUFFIXES


def image_files(folder: Path, unreadable: Literal["error", "quarantine"]) -> ImageFiles:
    """List images and other files in a folder and its subfolders; hidden files and folders are skipped.

    Args:
        folder: Folder; links to folders are followed.
        unreadable: With `quarantine`, dangling links with an image name are listed as images, which are dropped and
            counted when images are checked. Other dangling links may be class folders, and always raise an error.

    Raises:
        DataError: A folder cannot be read, a name is not UTF-8, a link's target does not exist, or a link leads to a
            folder that is also read under another path, which may stand for another class or split.
    """
    listed = list_files(folder, lambda path: path.name != "Thumbs.db" and not path.name.startswith("."))
    reject_repeated(listed.repeated, folder)
    files, dangling, undecodable = (
        _relative_to(folder, paths) for paths in (listed.files, listed.dangling, listed.undecodable)
    )
    if undecodable:
        raise DataError(
            f"{counted(len(undecodable), 'file has a name that is', 'files have names that are')} not UTF-8: "
            f"{shortlist(undecodable)}",
            where=folder,
            fix="rename them, for example with convmv",
        )
    broken = [name for name in dangling if unreadable == "error" or not is_image(name)]
    if broken:
        raise dangling_links(broken, folder)
    images: list[str] = []
    others: list[str] = []
    for name in sorted([*files, *dangling]):
        (images if is_image(name) else others).append(name)
    notes = (*hidden_note(hidden_names(listed, folder, has_suffix), "image"), *output_note(listed, folder))
    return ImageFiles(images, others, notes)


def dangling_links(links: Sequence[str], folder: Path) -> DataError:
    """Build the error for links whose target does not exist."""
    return DataError(
        f"{counted(len(links), 'link points', 'links point')} to files that do not exist: {shortlist(links)}",
        where=folder,
        fix="correct or remove the links"
        + (", or set tiles.unreadable: quarantine to drop and list such images" if any(map(is_image, links)) else ""),
    )


def _relative_to(folder: Path, paths: Sequence[Path]) -> list[str]:
    """Return the paths relative to a folder that contains all of them."""
    start = len((folder / "x").as_posix()) - 1
    return [path.as_posix()[start:] for path in paths]


def image_stamps(root: Path, names: Sequence[str]) -> list[str]:
    """Return a stamp for each file (see `file_stamp`); all dangling links have the same stamp."""
    stamps: list[str] = []
    for name in names:
        try:
            stamps.append(file_stamp(root / name))
        except OSError as error:
            if error.errno not in BROKEN_LINK:
                raise
            stamps.append("dangling link")
    return stamps


def subfolders(folder: Path) -> list[str]:
    """List the names of the subfolders that are not hidden.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise DataError(
            f"cannot read this folder: {error.strerror or error}", where=folder, fix="correct its permissions"
        ) from error
