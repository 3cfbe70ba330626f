"""Text, csv and Parquet files that are written completely or not at all, and Parquet read with its checksums."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import reading, whole_file


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a csv file with these columns atomically, in UTF-8."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, table: pa.Table, *, checksums: bool = False) -> None:
    """Write a Parquet file atomically, with checksums of its pages for files that no manifest verifies."""
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, write_page_checksum=checksums)


def read_parquet(path: Path, fix: str) -> pa.Table:
    """Read a Parquet file that this package wrote, and verify the checksums of its pages.

    Raises:
        ArtifactError: The file is missing or damaged; the error recommends `fix`.
    """
    with reading(path, fix):
        return pq.read_table(path, page_checksum_verification=True)


def read_frame(path: Path, fix: str) -> pd.DataFrame:
    """Read a Parquet file as `read_parquet` does, as a data frame."""
    with reading(path, fix):
        return pd.read_parquet(path, page_checksum_verification=True)
