"""Read CSV tables that clipit wrote, for result objects."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd


def read_csv_table(path: Path, text_columns: Collection[str]) -> pd.DataFrame:
    """Read a table without converting names: `007` stays a string, and `NA` is not a missing value.

    Args:
        text_columns: Names of text columns, in which only empty cells are missing values; in other columns, `nan` also
            counts as missing.
    """
    columns = pd.read_csv(path, nrows=0).columns
    missing = {name: [""] if name in text_columns else ["", "nan"] for name in columns}
    types = {name: str for name in columns if name in text_columns}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
