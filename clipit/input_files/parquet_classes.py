"""Class names that the `datasets` package writes to each parquet file of a data set."""

import json
from collections.abc import Iterable
from pathlib import Path

from clipit.errors import DataError

_KEY = b"huggingface"  # key in the schema's metadata


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


def _class_names(path: Path) -> dict[str, list[str]]:
    """Return the class names of each column of class indices."""
    import pyarrow.parquet as pq

    try:
        features = json.loads((pq.read_schema(path).metadata or {})[_KEY])["info"]["features"]
        listed = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
        return {name: names for name, names in listed.items() if isinstance(names, list)}
    except Exception:  # the metadata are missing, or the file is damaged, which is reported when it is read
        return {}
