"""The notebook of the Python API, as it is run for the site."""

import re
import tempfile
from pathlib import Path

import pytest

import clipit.runs.evaluate  # noqa: F401  (so that plots of runs are empty figures)
from tools.tutorial import render_notebook

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_tables_and_pictures() -> None:
    rendered = render_notebook(ROOT / "docs/tutorial_python.py")
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", rendered.markdown)
    assert links == [*rendered.pictures] and len(links) == 3
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 3000 for picture in rendered.pictures.values())
    assert rendered.markdown.count("<table") == 4 and "did you mean 'lora.rank'?" in rendered.markdown
    assert tempfile.gettempdir() not in rendered.markdown and "Traceback" not in rendered.markdown


def test_cells_share_names_and_an_error_names_its_cell(tmp_path: Path) -> None:
    path = tmp_path / "small.py"
    path.write_text("# %% [markdown]\n# # Title\n\n# %%\nx = 2\nprint('printed')\n\n# %%\nx + 1\n", encoding="utf-8")
    rendered = render_notebook(path)
    assert rendered.markdown.startswith("# Title\n") and "```text\nprinted\n```" in rendered.markdown
    assert "```text\n3\n```" in rendered.markdown and not rendered.pictures
    path.write_text("# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError):
        render_notebook(path)
