"""Pages of the studies in a headless browser."""

import html
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, HOSTILE, opened

from clipit.config.load import merge, nested, validate_file
from clipit.studies.probing.probing_study import probe
from clipit.studies.prompt_wording.prompt_study import prompt_study
from clipit.studies.robustness.robustness_study import measure_robustness
from clipit.workspace.workspace import Workspace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed"),
]
KEYS = {
    "note": HOSTILE,
    "name": "seen",
    "prompt_study.draws": 3,
    "prompt_study.organs": ["", HOSTILE],
    "prompt_study.magnifications": [""],
    "probing.episodes": 3,
    "probing.shots": [1],
    "probing.shares": [0.5, 1.0],
    "probing.seeds": [0],
    "robustness.perturbations": {"blur": [1.0], "jpeg": [20]},
    "evaluation.bootstrap": 20,
}
WATCH = """
addEventListener("load", () => {
  const pictures = Array.from(document.images, (picture) => picture.naturalWidth > 100);
  document.body.dataset.pictures = pictures.length + " " + pictures.every(Boolean);
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const boxes = Array.from(document.querySelectorAll(".filter"));
  const box = boxes[boxes.length - 1], input = box.querySelector("input");
  input.value = "WORDS";
  input.dispatchEvent(new Event("input"));
  document.body.dataset.count = box.querySelector("output").textContent;
  document.body.dataset.wide = String(document.documentElement.scrollWidth > innerWidth);
});"""


@pytest.fixture(scope="module")
def folders(world: dict[str, Any], shared_output: Path) -> dict[str, Path]:
    """Folder of each study by name."""
    file = validate_file(merge({**world, "output": shared_output}, nested(KEYS)), "test")

    return {
        "prompts": prompt_study(file.run, file.prompt_study, Workspace(file.run)),
        "probing": probe(file.run, file.probing),
        "robustness": measure_robustness(file.run, file.robustness, []),
    }


@pytest.mark.parametrize(
    ("name", "pictures", "filter_text", "column"),
    [
        ("prompts", 2, "cell", "kind"),
        ("probing", 1, "few_shot", "task"),
        ("robustness", 3, "adaptation", "analysis"),
    ],
)
def test_pages_of_studies_are_self_contained_and_can_be_filtered(
    folders: dict[str, Path], tmp_path: Path, name: str, pictures: int, filter_text: str, column: str
) -> None:
    text = (folders[name] / f"{name}.html").read_text(encoding="utf-8")
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    dom = opened(text, alone)
    title = re.search("<title>(.*?)</title>", dom)
    assert title and "seen" in title[1] and "taken" not in title[1], (
        "text of notes and prompts does not run as a script"
    )
    assert html.escape(HOSTILE, quote=False) in dom
    assert not re.search(r'(?:src|href)="(?!data:|#)', dom), "the page loads no external resources"
    rows = pq.read_table(folders[name] / f"{name}.parquet").to_pylist()
    kept = sum(row[column] == filter_text for row in rows)
    dom = opened(text, alone, then=WATCH.replace("WORDS", filter_text))
    assert f'data-pictures="{pictures} true"' in dom
    assert f'data-count="{kept} of {len(rows)} rows"' in dom
    assert 'data-wide="false"' in dom, "the page is too wide"
    assert "<title>taken" not in dom
    sources = re.findall(r'<details class="source"[^>]*><summary>source</summary><p>(.*?)</p>', dom)
    assert sources and all(f"from {name}" in source for source in sources)
