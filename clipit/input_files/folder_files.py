"""List the files of a folder for all readers: links are followed, hidden files and outputs of clipit are skipped."""

import errno
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipit.errors import DataError, counted, shortlist

_SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN", "@eaDir"})
"""Folders that operating systems and network storage create, often unreadable."""
_COPIES = frozenset({".git", ".hg", ".svn", ".snapshot", ".snapshots", ".zfs"})
"""Hidden folders with earlier versions of files, often many times as many; they are neither read nor counted."""
_OUTPUTS = frozenset(
    {
        "adapt",
        "annotators",
        "artefacts",
        "comparisons",
        "label_issues",
        "leaks",
        "mil",
        "pairings",
        "probing",
        "prompts",
    }
    | {"report_labels", "robustness", "runs", "segmentation", "sweeps", "tuning"}
)
"""Subfolders of an output folder: plots, tables and stored tiles would be taken for data."""
_ARTEFACT = re.compile(r"[a-z_]+-[0-9a-f]{16}")

BROKEN_LINK = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG})
"""Error numbers for links without a target: missing, cyclic, through a file, or too long."""


@dataclass(frozen=True)
class FolderFiles:
    """Sorted lists of the files found in a folder and its subfolders.

    Attributes:
        files: Regular files, including links to files.
        dangling: Links whose target does not exist.
        undecodable: Files whose names are not UTF-8; ids and tables cannot contain them.
        hidden: Hidden files (whether they are accepted or not) and hidden folders, whose files are not listed.
        repeated: Links to folders that are listed under another path, or folders inside such links.
        outputs: Folders with outputs of clipit, whose files are not listed.
    """

    files: list[Path]
    dangling: list[Path]
    undecodable: list[Path]
    hidden: list[Path]
    repeated: list[Path]
    outputs: list[Path]


def list_files(folder: Path, accept: Callable[[Path], bool] = lambda path: True) -> FolderFiles:
    """List the files of a folder and its subfolders for which `accept` returns True.

    Links without a target are also listed if their names have no suffix, because they may have been links to folders.

    Links to folders are followed, but every real folder is listed only once: under its own path if it is inside
    `folder`, otherwise under the first link to it. A link to a parent folder therefore adds nothing. Hidden folders,
    system folders, such as lost+found, and the subfolders of an output folder (`artefacts`, `runs` etc.) are skipped.

    Raises:
        DataError: A folder cannot be read.
    """
    listed = FolderFiles([], [], [], [], [], [])
    visited: set[tuple[int, int]] = set()
    real, linked = [folder], list[Path]()
    while real or linked:
        current = real.pop() if real else linked.pop(0)
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in visited:
                listed.repeated.append(current)
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                inside = [
                    (entry, _resolves_to(entry.is_dir)) for entry in sorted(entries, key=lambda entry: entry.name)
                ]
            outputs = _output_folders(current, [entry.name for entry, is_folder in inside if is_folder])
        except OSError as error:
            raise DataError(
                f"cannot read this folder: {error.strerror or error}",
                where=current,
                fix="correct its permissions, or move it out of the data",
            ) from error
        decodable = is_unicode(str(current.relative_to(folder)))
        listed.outputs.extend(current / name for name in outputs)
        for entry, is_folder in inside:
            path = current / entry.name
            if is_hidden(entry.name) and entry.name not in _COPIES:
                listed.hidden.append(path)
            if is_folder:
                if not is_hidden(entry.name) and entry.name not in _SYSTEM_FOLDERS and entry.name not in outputs:
                    (linked if entry.is_symlink() else real).append(path)
            elif not _resolves_to(entry.is_file):
                if entry.is_symlink() and (accept(path) or not (path.suffix or is_hidden(entry.name))):
                    listed.dangling.append(path)
            elif not accept(path):
                continue
            elif decodable and is_unicode(entry.name):
                listed.files.append(path)
            else:
                listed.undecodable.append(path)
    for paths in (listed.files, listed.dangling, listed.undecodable, listed.repeated, listed.outputs):
        paths.sort()
    return listed


def _output_folders(folder: Path, names: Collection[str]) -> list[str]:
    """Return which subfolders contain outputs, if the folder is an output folder; [] if it is none."""
    artefacts = (folder / "artefacts").iterdir() if "artefacts" in names else ()
    has_artefacts = any(_ARTEFACT.fullmatch(path.name) for path in artefacts)
    has_runs = "runs" in names and any((folder / "runs").glob("*/*/run.json"))
    return sorted(_OUTPUTS.intersection(names)) if has_artefacts or has_runs else []


def is_hidden(name: str) -> bool:
    """Return whether a file on a relative path, or one of its folders, is hidden, or is a folder of the system."""
    return any(
        part in _SYSTEM_FOLDERS or (part.startswith((".", "__MACOSX")) and part not in (".", ".."))
        for part in name.split("/")
    )


def hidden_names(listed: FolderFiles, folder: Path, wanted: Callable[[Path], bool]) -> list[str]:
    """List the wanted files that are hidden or in hidden folders, unless they are also read through a link.

    Args:
        folder: Folder whose files are listed; the names are relative to it.
        wanted: Whether a file would be read if it were not hidden.
    """
    read = {os.path.realpath(parent) for parent in {file.parent for file in listed.files}} if listed.hidden else set()
    files = [path for path in listed.hidden if not path.is_dir()]
    for parent, _, names in (walked for hidden in listed.hidden for walked in os.walk(hidden)):
        if os.path.realpath(parent) not in read:
            files += [Path(parent) / name for name in names]
    files = [file for file in files if wanted(file)]
    linked = {os.path.realpath(file) for file in listed.files if file.is_symlink()} if files else set()
    return sorted(file.relative_to(folder).as_posix() for file in files if os.path.realpath(file) not in linked)


def hidden_note(names: Sequence[str], noun: str) -> tuple[str, ...]:
    """Return a note on hidden files, and files in hidden folders, that were skipped; () if there are none."""
    return (f"skipped {counted(len(names), f'hidden {noun}')}: {shortlist(names, 3)}",) if names else ()


def output_note(listed: FolderFiles, folder: Path) -> tuple[str, ...]:
    """Return a note on outputs of clipit that were skipped in a folder; () if there are none."""
    names = [path.relative_to(folder).as_posix() for path in listed.outputs]
    return (f"skipped outputs of clipit: {shortlist(names, 3)}",) if names else ()


def reject_unlisted(paths: Sequence[Path], folder: Path) -> None:
    """Raise an error if files were not listed because of a missing link target or a name that is not UTF-8.

    Args:
        paths: Files from `FolderFiles.dangling` and `FolderFiles.undecodable`.
        folder: Folder that contains them.
    """
    if paths:
        raise DataError(
            f"links to missing files, or names that are not UTF-8: {shortlist([p.relative_to(folder) for p in paths])}",
            where=folder,
            fix="restore or remove these files, or rename them, for example with convmv",
        )


def reject_repeated(repeated: Sequence[Path], folder: Path) -> None:
    """Raise an error for `FolderFiles.repeated`: the paths of a linked folder may stand for several classes or splits.

    Args:
        repeated: Links that were not followed.
        folder: Folder that contains them.
    """
    if repeated:
        raise DataError(
            f"links to folders that are also read elsewhere: {shortlist([p.relative_to(folder) for p in repeated])}",
            where=folder,
            fix="remove the links, or link each folder once",
        )


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; Python marks other bytes of file names with surrogates."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _resolves_to(is_kind: Callable[[], bool]) -> bool:
    """Return whether an entry, or the target of a link, is of this kind; broken links have no target."""
    try:
        return is_kind()
    except OSError as error:
        if error.errno in BROKEN_LINK:
            return False
        raise
