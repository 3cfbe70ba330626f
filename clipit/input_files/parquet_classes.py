"""Class names that the `datasets` package writes to each parquet file of a data set."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from clipit.errors import DataError

_KEY = b"huggingface"  # key in the schema's metadata
_URL = re.compile(r"hf://datasets/(?P<name>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+\.parquet)")


def check_parquet_classes(files: Iterable[Path]) -> None:
    """Check that all parquet files of a data set list the same classes in the same order.

    Each file stores labels as indices into its own list, but `datasets` reads all of them with the list of one file.
    Files without class names, and files that cannot be read, are not checked.

    Raises:
        DataError: Two files list the classes of a column differently.
    """
    first: dict[str, tuple[Path, list[str]]] = {}
    for path in sorted(files):
        for column, names in _class_names(path).items():
            other, expected = first.setdefault(column, (path, names))
            if names != expected:
                raise DataError(
                    f"the classes of the column {column} are {', '.join(names)}, but {', '.join(expected)} in "
                    f"{other.name}: their indices would be mixed up",
                    where=path,
                    fix="read each file on its own, cast the column to one list of classes (cast_column with "
                    "datasets.ClassLabel), and save all files again",
                )


def cached_parquet(name: str, revision: str | None) -> list[Path]:
    """List the parquet files that loading a data set from the hub has left in the hub's cache.

    The list may be empty offline, where `datasets` reads the copy that it converted earlier.
    """
    import datasets
    from huggingface_hub import try_to_load_from_cache

    try:
        parts = datasets.load_dataset_builder(name, revision=revision).config.data_files or {}
    except Exception:  # the data set is already loaded, so a failure of this second request does not matter
        return []
    found = []
    for url in (str(file) for files in parts.values() for file in files):
        if match := _URL.fullmatch(url):
            file = try_to_load_from_cache(match["name"], match["file"], revision=match["revision"], repo_type="dataset")
            found += [Path(file)] if isinstance(file, str) else []
    return found


def _class_names(path: Path) -> dict[str, list[str]]:
    """Return the class names of each column of class indices."""
    import pyarrow.parquet as pq

    try:
        features = json.loads((pq.read_schema(path).metadata or {})[_KEY])["info"]["features"]
        listed = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
        return {name: names for name, names in listed.items() if isinstance(names, list)}
    except Exception:  # the metadata are missing, or the file is damaged, which is reported when it is read
        return {}
