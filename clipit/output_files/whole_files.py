"""Write text, csv, Parquet and .npy files atomically, and read csv and Parquet files written by clipit."""

import csv
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipit.output_files.artifacts import reading, whole_file

_MAX_PADDING = 2**20  # characters that an array of fixed width may add to short texts


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a csv file with these columns atomically, in UTF-8."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, table: pa.Table, *, checksums: bool = False) -> None:
    """Write a Parquet file atomically; `checksums` adds page checksums, for files that no manifest verifies."""
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=checksums)


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a data frame without its index atomically: as csv, or as Parquet with page checksums (.parquet)."""
    with whole_file(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False, write_page_checksum=True)
        else:
            frame.to_csv(temporary, index=False, lineterminator="\n")


def write_array(path: Path, values: np.ndarray) -> None:
    """Write an array as .npy atomically."""
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, values, allow_pickle=False)


def text_array(texts: Iterable[str]) -> np.ndarray:
    """Convert texts to an array of fixed width, or of objects if a single long text would widen all others."""
    values = list(texts)
    lengths = [len(text) for text in values]
    is_compact = max(lengths, default=0) * len(lengths) <= 4 * sum(lengths) + _MAX_PADDING
    return np.array(values, dtype=np.str_ if is_compact else object)


def read_parquet(path: Path, fix: str) -> pa.Table:
    """Read a Parquet file written by this package, and verify its page checksums.

    Raises:
        ArtifactError: The file is missing or damaged; the message ends with `fix`.
    """
    with reading(path, fix):
        return pq.read_table(path, page_checksum_verification=True)


def read_frame(path: Path, fix: str) -> pd.DataFrame:
    """Read a Parquet file like `read_parquet`, and return it as a data frame."""
    with reading(path, fix):
        return pd.read_parquet(path, page_checksum_verification=True)


def read_csv_frame(path: Path, text_columns: Collection[str]) -> pd.DataFrame:
    """Read a csv file written by this package, without converting names: `007` stays a string, and `NA` is a name.

    Args:
        text_columns: Names of text columns, in which only empty cells are missing values; in other columns, `nan` also
            counts as missing.

    Raises:
        ArtifactError: The file is missing or damaged.
    """
    with reading(path, "run the command that writes this file again"):
        columns = pd.read_csv(path, nrows=0).columns
        missing = {name: [""] if name in text_columns else ["", "nan"] for name in columns}
        types = {name: str for name in columns if name in text_columns}
        return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
