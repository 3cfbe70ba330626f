"""Read csv tables that clipit wrote, for result objects."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd


def read_csv_table(path: Path, texts: Collection[str]) -> pd.DataFrame:
    """Read a table with names as they were written: `007` stays a text, and `NA` is a name.

    Args:
        path: Csv file.
        texts: Names of columns that contain text. Only empty cells are missing there; in other columns, so is `nan`.
    """
    columns = pd.read_csv(path, nrows=0).columns
    missing = {name: [""] if name in texts else ["", "nan"] for name in columns}
    types = {name: str for name in columns if name in texts}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=missing)
