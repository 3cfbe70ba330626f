"""Read users' data files, for both tiles and reports: folders, table cells and Hugging Face data sets."""

import errno
import mimetypes
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.errors import DataError, counted, has_controls, shortlist
from clipit.input_files.dataset_errors import failed_files, load_error
from clipit.input_files.dataset_paths import HUB, cache_folder, check_dataset_path, check_no_pattern, split_files
from clipit.input_files.parquet_classes import (
    cached_parquet,
    check_arrow_ends,
    check_described_classes,
    check_parquet_classes,
)

_TEXT_FORMULA = re.compile(r'="([^"]*)"')
_WHOLE_DECIMAL = re.compile(r"-?\d+\.0+")
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"
"""Byte order mark (of a file that was appended to another one), zero-width characters, direction marks."""
_PLAIN_TABLES = frozenset({".csv", ".tsv"})
_SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")
_SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN", "@eaDir"})
"""Folders that operating systems and network storage create, often unreadable."""
_COPIES = frozenset({".git", ".hg", ".svn", ".snapshot", ".snapshots", ".zfs"})
"""Hidden folders with earlier versions of files, often many times as many; they are neither read nor counted."""

BROKEN_LINK = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG})
"""Error numbers for links without a target: missing, cyclic, through a file, or too long."""
MISSING_VALUES = frozenset(
    {"#N/A", "#n/a", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "n/a", "NA", "na", "NaN", "Nan", "NAN", "nan"}
    | {"NaT", "None", "NULL", "Null", "null", "(null)", "<null>", r"\N"}
    | {"#REF!", "#NAME?", "#VALUE!", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!"}
    | {"#NV", "#N/D", "#N/B", "#WERT!", "#BEZUG!", "#ZAHL!"}
)
"""Texts used as placeholders for a missing value, and error values of spreadsheet programs in several languages. Case
matters: `none` and `NONE` may be a grade or a finding."""
NO_CLASS = "-1"
"""Number that marks a missing class in Hugging Face data sets and many tables."""
NO_CLASSES = frozenset({NO_CLASS, f"{NO_CLASS}.0"})
"""Spellings of `NO_CLASS`: programs write -1.0 in columns with empty cells."""


@dataclass(frozen=True)
class FolderFiles:
    """Sorted lists of the files found in a folder and its subfolders.

    Attributes:
        files: Regular files, including links to files.
        dangling: Links whose target does not exist.
        undecodable: Files whose names are not UTF-8; ids and tables cannot contain them.
        hidden: Hidden files (whether they are accepted or not) and hidden folders, whose files are not listed.
        repeated: Links to folders that are listed under another path, or folders inside such links.
    """

    files: list[Path]
    dangling: list[Path]
    undecodable: list[Path]
    hidden: list[Path]
    repeated: list[Path]


def list_files(folder: Path, accept: Callable[[Path], bool] = lambda path: True) -> FolderFiles:
    """List the files of a folder and its subfolders for which `accept` returns True.

    Links without a target are also listed if their names have no suffix, because they may have been links to folders.

    Links to folders are followed, but every real folder is listed only once: under its own path if it is inside
    `folder`, otherwise under the first link to it. A link to a parent folder therefore adds nothing. Hidden folders and
    system folders, such as lost+found, are skipped.

    Raises:
        DataError: A folder cannot be read.
    """
    listed = FolderFiles([], [], [], [], [])
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
        except OSError as error:
            raise DataError(
                f"cannot read this folder: {error.strerror or error}",
                where=current,
                fix="correct its permissions, or move it out of the data",
            ) from error
        decodable = is_unicode(str(current.relative_to(folder)))
        for entry, is_folder in inside:
            path = current / entry.name
            if is_hidden(entry.name) and entry.name not in _COPIES:
                listed.hidden.append(path)
            if is_folder:
                if not is_hidden(entry.name) and entry.name not in _SYSTEM_FOLDERS:
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
    for paths in (listed.files, listed.dangling, listed.undecodable, listed.repeated):
        paths.sort()
    return listed


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


def cell_text(value: Any) -> str:
    """Convert a cell of a table to text without surrounding spaces or byte order marks; null and NaN become "".

    The formula ="007", which protects zeros from spreadsheet programs, becomes 007.

    Raises:
        ValueError: The cell contains a list, a line break or another control character, or characters that are not
            valid Unicode; the message states which.
    """
    if value is None or value != value:  # NaN is the only value that differs from itself
        return ""
    if isinstance(value, list | tuple | dict):
        raise ValueError(f"a {type(value).__name__} ({shortlist([str(value)[:60]])})")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise ValueError("bytes that are not UTF-8") from None
    text = trimmed(str(value))
    text = formula[1].strip() if (formula := _TEXT_FORMULA.fullmatch(text)) else text
    if "\n" in text or "\r" in text:
        raise ValueError(f"a line break ({shortlist([text[:60]])})")
    if "\0" in text:
        raise ValueError(f"a null character ({shortlist([text[:60]])})")
    if has_controls(text.replace("\t", " ")):
        raise ValueError(f"a control character ({shortlist([text[:60]])})")
    if not is_unicode(text):
        raise ValueError(f"characters that are not valid Unicode ({shortlist([text[:60]])})")
    return text


def trimmed(text: str) -> str:
    """Strip spaces, byte order marks and other invisible characters from both ends of a text."""
    return text.strip().strip(_INVISIBLE).strip()


def missing_markers(values: Collection[str]) -> set[str]:
    """Return the values that mark missing values: placeholders such as NA, and -1 if the other values are names.

    In a column of whole numbers, -1 is not returned, because its meaning depends on the column.
    """
    placeholders = {value for value in values if value in MISSING_VALUES}
    others = {*values} - placeholders - NO_CLASSES - {""}
    return placeholders if all(map(is_whole, others)) else placeholders | NO_CLASSES.intersection(values)


def is_whole(value: str) -> bool:
    """Return whether a text is a whole number, possibly written as a decimal such as 2.0."""
    return re.fullmatch(r"[+-]?\d+(?:\.0)?", value) is not None


def without_decimals(values: Sequence[str | None]) -> list[str | None]:
    """Strip ".0" from names if all of them are whole numbers with this ending.

    Programs such as pandas write a column of integers with empty cells as decimals, so that patient 12 of one table is
    12.0 in another.
    """
    if not all(_WHOLE_DECIMAL.fullmatch(value) for value in values if value) or not any(values):
        return list(values)
    return [value.partition(".")[0] if value else value for value in values]


def _resolves_to(is_kind: Callable[[], bool]) -> bool:
    """Return whether an entry, or the target of a link, is of this kind; broken links have no target."""
    try:
        return is_kind()
    except OSError as error:
        if error.errno in BROKEN_LINK:
            return False
        raise


def is_saved_dataset(folder: Path) -> bool:
    """Return whether this folder was written by `save_to_disk` of the datasets package."""
    return any((folder / name).is_file() for name in _SAVED_BY_DATASETS)


def hub_id(path: str) -> str | None:
    """Return the Hub id in a path of the form `hf:owner/name`; None for local paths."""
    return path.removeprefix(HUB) if path.startswith(HUB) else None


def hub_revision(path: str, key: str) -> str | None:
    """Look up the newest commit of a data set on the Hub, for `load_huggingface`; None for local sets and offline.

    Raises:
        DataError: The data set does not exist, or the Hub cannot be reached.
    """
    name = hub_id(path)
    if name is None:
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return str(HfApi().dataset_info(name).sha)
    except OfflineModeIsEnabled:  # load_huggingface uses the cache
        return None
    except Exception as error:  # huggingface_hub, its HTTP client and the network raise many types
        raise load_error(path, key, error, local=False, files=[]) from error


def load_huggingface(
    path: str, key: str, *, streaming: bool = False, revision: str | None = None, texts: Sequence[str] = ()
) -> Any:
    """Load a Hugging Face data set: `hf:owner/name` on the Hub, a local folder, or one written by `save_to_disk`.

    Args:
        path: Local folder, or id on the Hub with the prefix `hf:`. A local path is never looked up on the Hub.
        streaming: Whether to open streams instead of downloading and converting; has no effect on folders written
            by `save_to_disk`.
        revision: Commit of a data set on the Hub; None for the newest one, or the cached one offline.
        texts: Columns to read as text from csv and tsv files and from the metadata of image folders. For other columns,
            pandas infers the type, so that 007 becomes 7.

    Returns:
        A `datasets.Dataset` (with `streaming`, a `datasets.IterableDataset`), or a dictionary from split to data set.

    Raises:
        DataError: The path is ambiguous or does not exist, the data set cannot be loaded, an Arrow file is truncated,
            or the classes of a column are numbered differently in its files or in its description.
    """
    name, folder = hub_id(path), Path(path).expanduser()
    check_dataset_path(path, key)
    import datasets

    with failed_files() as failed:
        try:
            if name is None and is_saved_dataset(folder):
                saved = list_files(folder, lambda file: not file.name.startswith(("cache-", "tmp", ".")))
                check_arrow_ends(saved.files)
                loaded = datasets.load_from_disk(str(folder))
                for split, rows in (loaded if isinstance(loaded, dict) else {"": loaded}).items():
                    check_described_classes([file for file in saved.files if file.is_relative_to(folder / split)], rows)
                return loaded
            if name is None:
                check_no_pattern(folder)
            files = list[Path]()
            options: dict[str, Any] = {"streaming": True} if streaming else {}
            options |= {} if revision is None else {"revision": revision}
            if name is None and texts and {*count_suffixes(folder)} <= _PLAIN_TABLES:
                options["converters"] = dict.fromkeys(texts, str)
            if name is None and not has_only_images(folder):
                files = [file for part in split_files(path, key, images=True).values() for file in part]
                check_parquet_classes(files)
                check_arrow_ends(files)
                options |= {} if streaming else {"cache_dir": cache_folder(files)}
            loaded = datasets.load_dataset(str(folder) if name is None else name, **options)
            if texts and (text_options := _text_options(loaded, texts)):
                loaded = datasets.load_dataset(str(folder) if name is None else name, **options, **text_options)
            if name is not None and not streaming:
                files = cached_parquet(name, revision)
                check_parquet_classes(files)
            check_described_classes(files, loaded)
            return loaded
        except DataError:
            raise
        except Exception as error:  # datasets, its dependencies and the network raise many types
            raise load_error(path, key, error, local=name is None, files=failed) from error


def _text_options(loaded: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Return options that read columns as text, if pandas inferred other types for them; else an empty dictionary."""
    import datasets

    rows = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
    features = rows.features or {}
    values = {name for name, kind in features.items() if isinstance(kind, datasets.Value)}
    if all("string" in features[name].dtype for name in values & {*texts}):
        return {}
    if rows.info.builder_name == "csv":
        return {"converters": dict.fromkeys(texts, str)}
    if rows.info.builder_name == "imagefolder":
        text = datasets.Value("string")
        return {"features": datasets.Features({name: text if name in values else features[name] for name in features})}
    return {}


def count_suffixes(folder: Path) -> Counter[str]:
    """Count the files of a folder and its subfolders by lower-case suffix, without hidden files.

    Raises:
        DataError: There are files that `datasets` would not list: links to missing files, names that are not UTF-8, or
            files in linked folders.
    """
    listed = list_files(folder, _is_visible)
    reject_unlisted([*listed.dangling, *listed.undecodable], folder)
    parents = {parent for parent in {file.parent for file in listed.files} if parent != folder}
    parents |= {other for parent in parents for other in parent.parents if other.is_relative_to(folder)} - {folder}
    if links := sorted({*listed.repeated, *filter(Path.is_symlink, parents)}):
        names = shortlist([path.relative_to(folder) for path in links])
        raise DataError(
            f"the datasets package does not follow links to folders: {names}",
            where=folder,
            fix="copy the files into the folder, link each one, or remove links whose files are not needed; for images "
            "in class folders, set tiles.source: folders",
        )
    return Counter(file.suffix.lower() for file in listed.files)


def has_only_images(folder: Path) -> bool:
    """Return whether a folder contains images and no data files or archives, which `datasets` would copy or unpack."""
    kinds = (mimetypes.guess_type(f"file{suffix}")[0] or "" for suffix in count_suffixes(folder))
    return all(kind.startswith("image/") for kind in kinds)


def _is_visible(path: Path) -> bool:
    return not path.name.startswith((".", "_", "dataset_info")) and path.stem.upper() != "README"
