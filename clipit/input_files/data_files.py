"""Read users' data files, for both tiles and reports: folders, table cells and Hugging Face data sets."""

import mimetypes
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from clipit.errors import DataError, has_controls, shortlist
from clipit.input_files.dataset_errors import failed_files, load_error
from clipit.input_files.dataset_paths import HUB, cache_folder, check_dataset_path, check_no_pattern, split_files
from clipit.input_files.folder_files import is_unicode, list_files, reject_unlisted
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
            pandas infers the type, so that 007 becomes 7. Streamed image folders are read once for any columns, so all
            their metadata are read as text.

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
            if texts and (text_options := _text_options(loaded, None if streaming else texts)):
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


def _text_options(loaded: Any, texts: Sequence[str] | None) -> dict[str, Any]:
    """Return options that read columns as text, if pandas inferred other types for them; else an empty dictionary.

    Args:
        texts: Columns to read as text; None for all columns.
    """
    import datasets

    rows = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
    features = rows.features or {}
    values = {name for name, kind in features.items() if isinstance(kind, datasets.Value)}
    names = values if texts is None else values & {*texts}
    if all("string" in features[name].dtype for name in names):
        return {}
    if rows.info.builder_name == "csv":
        return {"converters": dict.fromkeys(values if texts is None else texts, str)}
    if rows.info.builder_name == "imagefolder":
        text = datasets.Value("string")
        return {"features": datasets.Features({name: text if name in values else features[name] for name in features})}
    return {}


def count_suffixes(folder: Path) -> Counter[str]:
    """Count the files of a folder and its subfolders by lower-case suffix, without hidden files.

    Raises:
        DataError: There are files that `datasets` would not list (links to missing files, names that are not UTF-8,
            files in linked folders), or outputs of clipit.
    """
    listed = list_files(folder, _is_visible)
    reject_unlisted([*listed.dangling, *listed.undecodable], folder)
    if listed.outputs:
        raise DataError(
            f"outputs of clipit, which the datasets package would read as data: {shortlist(listed.outputs)}",
            where=folder,
            fix="move the output folder out of this folder, and set output (--output) to its new path",
        )
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
