"""Errors of the `datasets` package, whose exceptions do not name the file."""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipit.errors import DataError, shortlist

_FAILED = re.compile(r"Failed to read file '(?P<file>.+?)' with error")
_NO_ROWS = "BatchSize must be greater than 0"
_CONFIGURATIONS = "Config name is missing"
_NAMES = re.compile(r"configs: \[(.+)\]")
_ZIP_AS_CLASS = "Invalid string class label"
_ACCESS = "accept its terms"
_ADVICE = {
    _CONFIGURATIONS: "add `default: true` to one of the configurations in its README.md",
    "infer the same data file format for all splits": "convert the files of all splits to the same format",
    "Dataset scripts are no longer supported": "convert it to parquet files, for example with to_parquet in a version "
    "of the datasets package below 4, and remove the script",
    "is a gated dataset": f"{_ACCESS} on its page on the Hugging Face Hub, and log in with `hf auth login`",
}
"""What to do about errors of `datasets`, by a part of the message."""
_READERS = "datasets.packaged_modules."


@contextmanager
def failed_files() -> Iterator[list[str]]:
    """Collect the names of files that `datasets` fails to read in the block; they are logged, but not in exceptions."""
    files: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        match = _FAILED.match(record.getMessage())
        files.extend([match["file"]] if match else [])
        return match is None  # the error names the file

    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(_READERS)]
    for logger in loggers:
        logger.addFilter(collect)
    try:
        yield files
    finally:
        for logger in loggers:
            logger.removeFilter(collect)


def load_error(path: str, key: str, error: Exception, *, local: bool, files: list[str]) -> DataError:
    """Build the error for a data set that cannot be loaded.

    Args:
        path: Folder or id on the Hub.
        key: Configuration key that contains the path.
        local: Whether the path is a local folder.
        files: Files that could not be read, from `failed_files`.
    """
    import datasets

    if isinstance(error, datasets.exceptions.DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the outer error only states that something failed
    fix = (
        f"check that {key} is the folder of a data set; copy it again if it is damaged, or run git lfs pull"
        if local
        else "check the spelling of the id, the network and HF_HUB_OFFLINE, or use a local folder"
    )
    if advice := next((advice for mark, advice in _ADVICE.items() if mark in str(error)), ""):
        hub = f"download it (hf download --repo-type dataset), set {key} to the folder, and "
        fix = advice if local or advice.startswith(_ACCESS) else f"{hub}{advice}"
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    if isinstance(error, OSError) and error.filename and _prevents_writing(error, cache):
        fix = f"set HF_HOME or HF_DATASETS_CACHE to a folder that you can write to; it is now {cache}"
    if local and "doesn't contain any data files" in str(error):
        fix = f"set {key} to the folder of a data set; the datasets package does not follow links to folders"
    if local and isinstance(error, datasets.exceptions.DataFilesNotFoundError):
        names = sorted(file.name for file in Path(path).expanduser().rglob("*") if file.suffix != file.suffix.lower())
        fix = f"write the suffixes of the files in lower case: {shortlist(names, 3)}" if names else fix
    fix = zip_advice(path, error) or fix
    return DataError(f"cannot load this data set: {describe_error(error)}", where=files[-1] if files else path, fix=fix)


def zip_advice(path: str, error: Exception) -> str:
    """Return advice if `datasets` took the name of a folder with a zip for a class; "" for any other error.

    Args:
        path: Local folder, or id on the Hub.
    """
    if _ZIP_AS_CLASS not in str(error) or not any(Path(path).expanduser().rglob("*.zip")):
        return ""
    return (
        "unpack each zip into a folder of the same name and move the zip away, because the datasets package does not "
        "take labels from folders in a zip; or, for one zip, set tiles.source: folders and tiles.path to it"
    )


def _prevents_writing(error: OSError, cache: Path) -> bool:
    """Return whether the error means that the cache cannot be created, or that files in it cannot be written."""
    is_denied = isinstance(error, PermissionError) or error.errno == errno.EROFS
    return cache.is_relative_to(error.filename) or (is_denied and Path(error.filename).is_relative_to(cache))


def describe_error(error: Exception) -> str:
    """Describe an error of `datasets` by its type and message, or in plain words."""
    if _NO_ROWS in str(error):
        return "a parquet file has no rows: remove it"
    if _CONFIGURATIONS in str(error) and (names := _NAMES.search(str(error))):
        return f"it has several configurations, and none of them is the default: {names[1]}"
    return f"{type(error).__name__}: {error}"
