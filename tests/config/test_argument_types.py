"""Arguments of the functions of the Python API: their types, and `~` and variables in paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clipit.config.argument_types import checked_arguments
from clipit.errors import ConfigError


def test_pandas_columns_and_numpy_numbers_are_accepted() -> None:
    @checked_arguments
    def count_paths(paths: Sequence[str | Path], size: int, share: float, quick: bool = False) -> int:
        return len(paths)

    table = pd.DataFrame({"path": ["a.png", "b.png"]})
    assert count_paths(table["path"], np.int64(3), np.float32(0.5), np.True_) == 2
    assert count_paths(table["path"].to_numpy(), 3, 1) == 2
    assert count_paths((name for name in ("a.png", Path("b.png"), "c.png")), 3, 1) == 3
    with pytest.raises(ConfigError, match="strings or paths, not a list with an int"):
        count_paths(["a.png", 3], 3, 1)
    for wrong in (table, {"a.png"}, iter([3]), {"a.png": 1}):
        with pytest.raises(ConfigError, match="paths must be a list of strings or paths, not"):
            count_paths(wrong, 3, 1)


def test_home_folder_and_variables_are_expanded_in_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUN_FOLDER", f"{tmp_path}/run")

    @checked_arguments
    def given(path: "str | Path | None", listed: str | Path | Sequence[str | Path], name: str) -> tuple[Any, ...]:
        return path, listed, name

    run = tmp_path / "run"
    assert given("~/run", Path("$RUN_FOLDER/a.png"), "~$HOME") == (str(run), run / "a.png", "~$HOME")
    assert given(None, ["${RUN_FOLDER}", Path("~/run"), "owner/name"], "") == (None, [str(run), run, "owner/name"], "")
    assert given(Path(), "..", ".") == (Path.cwd(), str(Path.cwd().parent), ".")
    with pytest.raises(ConfigError, match=r"variable \$NO_SUCH_FOLDER is not set"):
        given("run", ["a", "$NO_SUCH_FOLDER/b"], "")
