"""Check the parquet and Arrow files of a data set: the class names in each file, and damage to Arrow files."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clipit.errors import DataError
from clipit.input_files.git_lfs import check_pointer

_REQUESTS = 8  # number of files read at the same time
_ARROW = ".arrow"
_KEY = b"huggingface"  # key in the schema's metadata
_ARROW_FILE, _STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
"""First and last bytes of an Arrow file, and last bytes of an Arrow stream."""
_COPY_AGAIN = "save or download it again"
_URL = re.compile(r"hf://datasets/(?P<name>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+\.parquet)")


def check_parquet_classes(files: Iterable[Path | str]) -> None:
    """Check that all parquet and Arrow files of a data set list the same classes in the same order.

    Each file stores labels as indices into its own list, but `datasets` reads all of them with the list of one file.
    Files without class names, and damaged local files, are not checked. On the Hub, only the footers are read.

    Args:
        files: Local paths, or `hf://` URLs; files of other formats are skipped.

    Raises:
        DataError: Two files list the classes of a column differently.
        Exception: A file on the Hub cannot be read; `fsspec` and the Hub's client raise many types.
    """
    first: dict[str, tuple[str, list[str]]] = {}
    for path, column, names in _classes_of_files(files):
        other, expected = first.setdefault(column, (path, names))
        if names != expected:
            raise DataError(
                f"the classes of the column {column} are {', '.join(names)}, but {', '.join(expected)} in "
                f"{Path(other).name}: their indices would be mixed up",
                where=path,
                fix="read each file separately, cast the column to one list of classes (cast_column with "
                "datasets.ClassLabel), and save all files again",
            )


def check_described_classes(files: Iterable[Path | str], loaded: Any) -> None:
    """Check that the description of a data set lists the classes in the order of its files.

    `datasets` gives the list in README.md or dataset_info.json precedence over that of a file, so a stale list
    silently swaps labels. New names for classes are accepted.

    Args:
        files: Local paths, or `hf://` URLs; files of other formats are skipped.
        loaded: Data set, or a dictionary from split to data set.

    Raises:
        DataError: A class has a different index in the description.
        Exception: A file on the Hub cannot be read; `fsspec` and the Hub's client raise many types.
    """
    rows = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
    features = getattr(rows, "features", None) or {}
    for path, column, names in _classes_of_files(files):
        described = getattr(features.get(column), "names", None) or []
        if any(name in names and names.index(name) != index for index, name in enumerate(described)):
            raise DataError(
                f"the classes of the column {column} are {', '.join(names)} in this file, but {', '.join(described)} "
                "in the description of the data set (README.md or dataset_info.json): labels would be swapped",
                where=path,
                fix="correct the order of the classes in the description, or remove them from it",
            )


def _classes_of_files(files: Iterable[Path | str]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (path, column, class names) for every column with class names in the parquet and Arrow files."""
    paths = sorted(path for path in map(str, files) if path.lower().endswith((".parquet", _ARROW)))
    with ThreadPoolExecutor(_REQUESTS) as pool:
        classes_of_files = list(pool.map(_class_names, paths))
    for path, classes in zip(paths, classes_of_files, strict=True):
        for column, names in classes.items():
            yield path, column, names


def hub_parquet(name: str, revision: str | None) -> list[str]:
    """List the URLs of a Hub data set's parquet files; errors of `datasets` and the Hub are not converted.

    The list is empty offline, because `datasets` then reads the copy that it converted earlier.
    """
    import datasets

    parts = datasets.load_dataset_builder(name, revision=revision).config.data_files or {}
    return [str(file) for files in parts.values() for file in files if _URL.fullmatch(str(file))]


def cached_parquet(name: str, revision: str | None) -> list[Path]:
    """List the parquet files that loading a data set from the Hub has left in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        urls = hub_parquet(name, revision)
    except Exception:  # the data set is already loaded, so a failure of this second request does not matter
        return []
    files = []
    for url in urls:
        if match := _URL.fullmatch(url):
            file = try_to_load_from_cache(match["name"], match["file"], revision=match["revision"], repo_type="dataset")
            files += [Path(file)] if isinstance(file, str) else []
    return files


def _class_names(path: str) -> dict[str, list[str]]:
    """Return the class names of a file; see `class_names`."""
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    is_remote = "://" in path
    try:
        with fsspec.open(path, "rb") if is_remote else Path(path).open("rb") as stream:
            schema = pa.ipc.open_stream(stream).schema if path.lower().endswith(_ARROW) else pq.read_schema(stream)
            metadata = schema.metadata or {}
    except Exception:
        if is_remote:
            raise
        return {}  # damaged, which is reported when the file is read
    return class_names(metadata)


def class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Read the class names of all columns with class indices from the metadata of a file's schema."""
    try:
        features = json.loads(metadata[_KEY])["info"]["features"]
        listed = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
        return {name: names for name, names in listed.items() if isinstance(names, list)}
    except (KeyError, TypeError, ValueError, AttributeError):  # not written by the datasets package
        return {}


def name_class(value: Any, names: Sequence[str]) -> Any:
    """Replace a class index with its name: None for -1 and other indices without a class; other values stay."""
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value


def check_arrow_ends(files: Sequence[Path]) -> None:
    """Check that local Arrow files have their end marker; pyarrow does not report files cut off between two batches.

    Raises:
        DataError: A file is truncated.
    """
    for file in files:
        if file.suffix.lower() != ".arrow":
            continue
        check_pointer(file)
        with file.open("rb") as stream:
            start = stream.read(len(_ARROW_FILE))
            stream.seek(-min(len(_STREAM_END), file.stat().st_size), os.SEEK_END)
            end = stream.read()
        if not end.endswith(_ARROW_FILE if start == _ARROW_FILE else _STREAM_END):
            raise DataError("truncated Arrow file: its end marker is missing", where=file, fix=_COPY_AGAIN)


def check_arrow(rows: Any, where: str) -> None:
    """Check the offsets and texts of a data set's Arrow tables; reading damaged tables may crash the interpreter.

    Args:
        rows: A `datasets.Dataset`.

    Raises:
        DataError: The tables are damaged.
    """
    try:
        rows.data.table.validate(full=True)
    except Exception as error:  # pyarrow and datasets raise several types
        raise DataError(f"damaged Arrow file: {error}", where=where, fix=_COPY_AGAIN) from error
