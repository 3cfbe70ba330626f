"""Find files whose names are spelled differently in a table, and report missing files."""

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.input_files.folder_files import is_hidden
from clipit.input_files.zip_files import describe_code_page

_MAX_LISTED = 20_000
"""Maximum number of files to compare with missing names, since the folder may be a whole disk."""
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")
_SPELLINGS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", lambda name: name),
    ("in letter case", str.casefold),
    ("in the suffix", lambda name: posixpath.splitext(name)[0]),
    ("in letter case and suffix", lambda name: posixpath.splitext(name)[0].casefold()),
    ("in the folders", posixpath.basename),
)


def normalise(name: str) -> str:
    """Return a path in composed Unicode characters (NFC), with forward slashes and without redundant parts."""
    return unicodedata.normalize("NFC", posixpath.normpath(name.replace("\\", "/")))


def spelled_on_disk(folder: Path, name: str) -> str | None:
    """Find a file by other spellings of its path: composed or decomposed (macOS) characters, or backslashes."""
    composed, decomposed = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    for spelling in (composed, decomposed, name.replace("/", "\\")):
        if spelling != name and (folder / spelling).is_file():
            return spelling
    return None


def spelled_in_zip(members: Iterable[str], where: Path) -> Mapping[str, str]:
    """Map normalised names to the names of zip members.

    Raises:
        DataError: Two members have the same normalised name.
    """
    member_of: dict[str, str] = {}
    for member in members:
        other = member_of.setdefault(normalise(member), member)
        if other != member:
            raise DataError(
                f"two files in the zip have the same name: {shortlist([other, member])}",
                where=where,
                fix="repack the zip without one of them",
            )
    return member_of


def files_below(folder: Path) -> list[str]:
    """List files under a folder, up to a limit, to compare with missing names; unreadable subfolders are skipped."""
    names: list[str] = []
    for base, folders, files in os.walk(folder):
        folders.sort()
        names += [(Path(base) / name).relative_to(folder).as_posix() for name in sorted(files)]
        if len(names) > _MAX_LISTED:
            break
    return names


def missing_files(
    missing: Sequence[str], total: int, present: Sequence[str], images: Path, table: Path, fix: str
) -> DataError:
    """Build the error for missing files, with examples of existing files and how their names differ.

    Args:
        missing: Normalised names that were not found.
        total: Number of files in the table.
        present: Names of existing files, as returned by `files_below`.
    """
    code_page = describe_code_page(missing, present)
    difference = "" if code_page else _difference(missing, present)
    shown = [name for name in present if not _is_system_file(name)]
    contents = f"{counted(len(shown), 'file')}, such as {shortlist(shown[:3])}" if shown else "no file"
    hint = f"; all missing files match if {difference}" if difference else f"; {code_page}" if code_page else ""
    archives = [name for name in present if name.lower().endswith(_ARCHIVES)]
    if archives and not difference:
        hint = f"; among them are archives: {shortlist(archives, 3)}"
    if any(name.split(":")[0] in ("http", "https", "s3", "gs", "file") and ":/" in name for name in missing):
        hint = "; the paths are URLs, which clipit does not download"
    return DataError(
        f"{counted_of(len(missing), total, 'file in the table is', 'files in the table are')} missing: "
        f"{shortlist(missing)}; {images} contains {contents}{hint}",
        where=f"{table}, images in {images}",
        fix=fix,
    )


def _is_system_file(name: str) -> bool:
    """Return whether an operating system wrote this file, such as .DS_Store and the members of __MACOSX in a zip."""
    name = normalise(name)
    return posixpath.basename(name) == "Thumbs.db" or is_hidden(name)


def _difference(missing: Sequence[str], present: Sequence[str]) -> str:
    """Describe a change to the table's paths that would find all missing files; "" if there is none."""
    for words, spell in _SPELLINGS:
        known = {spell(normalise(name)) for name in present}
        names = [spell(normalise(name)) for name in missing]
        also = f" and differences {words} are corrected" if words else ""
        if words and len(set(names)) == len(names) and all(name in known for name in names):
            return f"differences {words} are corrected"
        for drop, add in _prefixes(names[0], known):
            if all(name.startswith(drop) and add + name[len(drop) :] in known for name in names):
                change = [f"'{drop}' is removed from the start of the paths"] if drop else []
                change += [f"'{add}' is prepended to the paths"] if add else []
                return " and ".join(change) + also
    return ""


def _prefixes(name: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """Return (prefix to drop, prefix to add) pairs that turn a name into one of the known names."""
    parts = name.split("/")
    pairs = set()
    for other in known:
        other_parts = other.split("/")
        shared = 0
        while shared < min(len(parts), len(other_parts)) and parts[-1 - shared] == other_parts[-1 - shared]:
            shared += 1
        if shared:
            tail = "/".join(parts[-shared:])
            pairs.add((name[: len(name) - len(tail)], other[: len(other) - len(tail)]))
    return sorted(pairs, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))
