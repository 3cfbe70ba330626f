"""Check the path of a Hugging Face data set, and find the files of its splits."""

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from clipit.errors import DataError, counted, shortlist
from clipit.input_files.dataset_errors import load_error
from clipit.input_files.nearby_files import similar_names

HUB = "hf:"
"""Prefix of ids on the Hub."""
_PATTERN = re.compile(r"\[[^]]+\]|[*?]|::")


def check_dataset_path(path: str, key: str) -> None:
    """Check that a path identifies exactly one data set, on the Hub or in a local folder.

    `datasets` prefers a local folder to a data set on the Hub with the same name, and reads all revisions in a folder
    of the Hub's cache as one data set, so each row occurs several times.

    Args:
        path: Local folder, or id on the Hub with the prefix `hf:`.
        key: Configuration key of the path, for error messages.

    Raises:
        DataError: The folder does not exist, an id on the Hub is also a local folder, or a folder in the Hub's cache
            has several revisions.
    """
    folder = Path(path.removeprefix(HUB)).expanduser()
    if path.startswith(HUB):
        if folder.is_dir():
            raise DataError(
                f"{HUB} stands for a data set on the Hugging Face Hub, but {folder} is a local folder, which would be "
                "read instead",
                where=path,
                fix=f"remove {HUB} from {key} to read the folder, or run the command in another folder",
            )
        return
    if not folder.is_dir():
        raise DataError(
            "this path is a file, not the folder of a data set"
            if folder.is_file()
            else "no such folder, and local paths are not looked up on the Hugging Face Hub",
            where=path,
            fix=f"correct {key}"
            + ("" if folder.is_file() else f"; {similar_names(path)}")
            + f"; for a data set on the Hub, use {HUB}owner/name",
        )
    snapshots = folder / "snapshots"
    if (folder / "blobs").is_dir() and snapshots.is_dir():
        revisions = sorted(each.name for each in snapshots.iterdir() if each.is_dir())
        if len(revisions) > 1:
            raise DataError(
                f"this folder in the Hub's cache has {counted(len(revisions), 'revision')} of the data set, which "
                f"would be read as one: {shortlist(revisions, 3)}",
                where=folder,
                fix=f"set {key} to one of the folders in {snapshots}",
            )


def check_no_pattern(folder: Path) -> None:
    """Check that the path of a folder is not a pattern, as which `datasets` would read it; it may match other files.

    Raises:
        DataError: The path contains a pattern.
    """
    if match := _PATTERN.search(str(folder.resolve())):
        problem = f"the datasets package reads {match[0]} in a path as a pattern"
        raise DataError(problem, where=folder, fix="rename the folder")


def split_files(path: str, key: str, *, images: bool = False) -> dict[str, list[Path]]:
    """Return the data files of each split in a local folder; the `datasets` package assigns files to splits by name.

    Args:
        path: Local folder.
        key: Configuration key of the path, for error messages.
        images: Whether to also return the files of an image folder, whose tables describe the images.

    Returns:
        Files by split; empty for a folder of images, unless `images` is set.

    Raises:
        DataError: The folder does not exist or contains no data files, or its path contains a pattern.
    """
    check_dataset_path(path, key)
    check_no_pattern(Path(path).expanduser())
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(Path(path).expanduser()))
    except Exception as error:  # datasets and its dependencies raise many types
        raise load_error(path, key, error, local=True, files=[]) from error
    if builder.name == "imagefolder" and not images:
        return {}
    return {str(name): list(map(Path, files)) for name, files in (builder.config.data_files or {}).items()}


def cache_folder(files: Sequence[Path]) -> str:
    """Return the folder in which `datasets` caches its copy of local files; each version of the files has its own.

    By default, `datasets` distinguishes versions of a file only by the modification time, which copies and archives may
    preserve.
    """
    import datasets

    states = [(str(file), file.stat()) for file in files]
    versions = [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"local-{sha256(repr(versions).encode()).hexdigest()[:16]}")
