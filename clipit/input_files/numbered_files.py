"""Detect data files that are missing from a numbered set, ignored because of their names, or duplicated."""

import filecmp
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from clipit.errors import DataError, counted, shortlist
from clipit.input_files.data_files import has_only_images, hub_id, is_saved_dataset
from clipit.input_files.dataset_paths import split_files
from clipit.input_files.folder_files import hidden_names, hidden_note, is_hidden, list_files

_OF_TOTAL = re.compile(r"(?P<head>.*?)(?P<number>\d+)(?P<of>-of-(?P<total>\d+))(?P<tail>.*)", re.DOTALL)
_NUMBERED = re.compile(r"(?P<head>.*?)(?P<number>0\d+|\d{5,})(?P<of>)(?P<total>)(?P<tail>\D*)", re.DOTALL)
"""A number with a leading zero, or with five digits or more, as in names of the parts of a data set."""
_MAX_FILES = 1_000_000  # per set
_COMPANIONS = frozenset({".idx", ".index", ".json", ".txt", ".md5", ".sha1", ".sha256", ".lock", ".crc", ".metadata"})
"""Suffixes of files that describe a data file, such as `a.tar.idx`."""
_COMPRESSED_TARS = frozenset({".tgz", ".tbz", ".tbz2", ".txz", ".tzst"})
_COMPARED = 2**16  # bytes at the start of files of equal size that are compared before the rest
_DATA_FILES = frozenset({".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".tar"})


def missing_parts(files: Sequence[Path]) -> str:
    """Describe the missing files of numbered sets, for a note; "" if none are missing.

    Files called `train-00001-of-00005.parquet` state the size of their set. Other sets, such as `train-000003.tar`, are
    expected to count from 0 or 1, and to be complete up to their last number. Sets with more gaps than files are
    skipped, because their numbers may have another meaning.
    """
    missing = [str(path) for numbers in _missing_by_set(files).values() for path in numbers]
    if not missing:
        return ""
    return (
        f"WARNING: {counted(len(missing), 'file seems', 'files seem')} to be missing from a numbered set: "
        f"{shortlist(missing)}"
    )


def missing_data_files(path: str) -> tuple[str, ...]:
    """Describe the files that seem to be missing from a data set's folder, as `missing_parts` does; () if none are.

    Args:
        path: Local folder; ids on the Hugging Face Hub are complete.
    """
    folder = Path(path).expanduser()
    if hub_id(path) is not None or not folder.is_dir():
        return ()
    listed = list_files(folder, lambda file: file.suffix.lower() in _DATA_FILES and not is_hidden(file.name))
    note = missing_parts(listed.files)
    return (note,) if note else ()


def unfinished_data_files(path: str, read: Iterable[Path]) -> tuple[str, ...]:
    """Describe hidden, compressed and unfinished files next to the data files, such as `a.tar.gz` and `a.tar.part`.

    Args:
        path: Local folder; ids on the Hugging Face Hub are not checked.
        read: Data files that are read; other files are listed only if their names contain a suffix of these files.
    """
    folder = Path(path).expanduser()
    if hub_id(path) is not None or not folder.is_dir():
        return ()
    known = {os.path.realpath(file) for file in read}
    suffixes = {Path(file).suffix.lower() for file in known} & _DATA_FILES

    def is_unfinished(file: Path) -> bool:
        *inner, last = [suffix.lower() for suffix in file.suffixes] or [""]
        added = not suffixes.isdisjoint(inner) and last not in _COMPANIONS | suffixes
        return not file.name.startswith((".", "_")) and (added or (".tar" in suffixes and last in _COMPRESSED_TARS))

    listed = list_files(folder, is_unfinished)
    hidden = hidden_note(hidden_names(listed, folder, lambda file: file.suffix.lower() in suffixes), "data file")
    unread = [str(file) for file in listed.files if os.path.realpath(file) not in known]
    if not unread:
        return hidden
    return (
        *hidden,
        f"WARNING: {counted(len(unread), 'compressed or unfinished file is', 'compressed or unfinished files are')} "
        f"not read: {shortlist(unread)}",
    )


def check_copied_files(files: Sequence[Path], where: object) -> None:
    """Check that no two data files have the same content, such as `a.tar` and `a (1).tar`.

    Raises:
        DataError: Two files have the same content.
    """
    alike: dict[tuple[int, bytes], list[Path]] = {}
    sizes = [file.stat().st_size for file in files]
    count_of = Counter(sizes)
    for file, size in zip(files, sizes, strict=True):
        if count_of[size] > 1:
            with file.open("rb") as stream:
                alike.setdefault((size, stream.read(_COMPARED)), []).append(file)
    copies = [
        f"{first} = {second}"
        for group in alike.values()
        for first, second in combinations(group, 2)
        if filecmp.cmp(first, second, shallow=False)
    ]
    if copies:
        raise DataError(
            f"{counted(len(copies), 'data file is a copy', 'data files are copies')}: {shortlist(copies, 3)}",
            where=where,
            fix="remove the copies, so that their rows do not count twice",
        )


def unread_data_files(path: str) -> tuple[str, ...]:
    """Describe the files in a data set's folder that the datasets package does not read; () if there are none.

    If some files are named after splits, such as `train.parquet`, the package ignores the others.

    Args:
        path: Local folder; ids on the Hugging Face Hub are not checked.

    Raises:
        DataError: Two files of a split have the same content.
    """
    folder = Path(path).expanduser()
    if hub_id(path) is not None or not folder.is_dir() or is_saved_dataset(folder) or has_only_images(folder):
        return ()
    parts = split_files(path, "the path")
    for files in parts.values():
        check_copied_files(files, path)
    read = {os.path.realpath(file) for files in parts.values() for file in files}
    unfinished = unfinished_data_files(path, map(Path, read))
    suffixes = {Path(file).suffix.lower() for file in read} & _DATA_FILES
    listed = list_files(folder, lambda file: file.suffix.lower() in suffixes and not file.name.startswith((".", "_")))
    unread = [str(file) for file in listed.files if os.path.realpath(file) not in read]
    if not unread:
        return unfinished
    return (
        *unfinished,
        f"WARNING: {counted(len(unread), 'file is', 'files are')} not read: {shortlist(unread)}; the datasets "
        "package reads only the files named after splits, such as train",
    )


def _missing_by_set(files: Iterable[Path]) -> dict[tuple[str, ...], list[Path]]:
    """Return the missing files of each set of numbered files."""
    numbers_of: dict[tuple[str, ...], dict[int, str]] = {}
    for path in files:
        match = _OF_TOTAL.fullmatch(path.name) or _NUMBERED.fullmatch(path.name)
        if match is not None:
            width = str(len(match["number"]))
            key = (str(path.parent), match["head"], width, match["of"], match["total"], match["tail"])
            numbers_of.setdefault(key, {})[int(match["number"])] = path.name
    return {key: gaps for key, numbers in numbers_of.items() if (gaps := _gaps(key, set(numbers)))}


def _gaps(key: tuple[str, ...], numbers: set[int]) -> list[Path]:
    parent, head, width, of_total, total, tail = key
    first = min(numbers)
    if total:
        start = 1 if int(total) in numbers else 0
        expected = set(range(start, min(int(total), _MAX_FILES) + start))
    else:
        expected = set(range(first, min(max(numbers), _MAX_FILES) + 1)) if first in (0, 1) else numbers
    gaps = sorted(expected - numbers)
    if not total and len(gaps) > len(numbers):
        return []
    return [Path(parent, f"{head}{number:0{int(width)}d}{of_total}{tail}") for number in gaps]
