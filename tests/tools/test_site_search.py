"""Search of the documentation site when pages are opened from disk."""

import shutil
from pathlib import Path

import pytest
import yaml
from browser import CHROMIUM, opened

ROOT = Path(__file__).parents[2]
PAGE = """<html><head><title>waiting</title><script src="iframe-worker.js"></script></head><body><script>
const worker = new Worker("double.js");
worker.addEventListener("message", (event) => { document.title = "answer " + event.data; });
worker.postMessage(21);
</script></body></html>"""
WORKER = """addEventListener("message", async (event) => {
  await importScripts("factor.js");
  postMessage(factor * event.data);
});
"""


def test_the_site_ships_its_worker_polyfill() -> None:
    scripts = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.SafeLoader)["extra"]["polyfills"]
    assert scripts == ["iframe-worker.js"] and (ROOT / "docs" / scripts[0]).is_file()


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_a_worker_runs_in_a_page_opened_from_disk(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs/iframe-worker.js", tmp_path)
    (tmp_path / "factor.js").write_text("self.factor = 2;\n", encoding="utf-8")
    (tmp_path / "double.js").write_text(WORKER, encoding="utf-8")
    assert "<title>answer 42</title>" in opened(PAGE, tmp_path, milliseconds=3000)
