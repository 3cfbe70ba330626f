"""Test the pages in a headless browser (Chromium), opened from disk."""

import base64
import csv
import html
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from browser import CHROMIUM, HOSTILE, opened
from PIL import Image

from clipit.reporting.html import PageSection, Rows, page
from clipit.reporting.pairing_page import choose_tiles, pairing_page
from clipit.reporting.thumbnails import encode_jpeg

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]


def pairs_page(n: int, k: int = 2, run: bool = True) -> str:
    """Build a page on which tile i has label i % 3 (2: unlabelled), prediction i % 2, and snippets i % 7 and i % 7 + 1.

    The score of the first snippet is i / n, that of the next is lower by 0.01.
    """
    ids = [f"tile-{i:05d}" for i in range(n)]
    rows = [(ids[i], rank, f"s{i % 7 + rank}", i / n - 0.01 * rank) for i in range(n) for rank in range(k)]
    tile_ids, ranks, snippets, scores = zip(*rows, strict=True)
    columns = {"tile_id": tile_ids, "rank": pa.array(ranks, pa.int16()), "snippet_id": snippets, "score": scores}
    table = pa.table(columns)
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    pictures = [base64.b64encode(encode_jpeg(Image.fromarray(pixels), 64, 70)).decode() for pixels in noise]
    return pairing_page(
        "pairs", "", table, {f"s{i}": f"Words of number{i}. {HOSTILE}" for i in range(8)}, choose_tiles(table, n),
        classes=("adipose", "<b>stroma"),
        labels={tile_id: (0, 1, -1)[i % 3] for i, tile_id in enumerate(ids)},
        predictions={tile_id: (i % 2, 0.9) for i, tile_id in enumerate(ids)} if run else None,
        pictures={tile_id: pictures[i % 20] for i, tile_id in enumerate(ids)},
        origins={f"s{i}": f"microscopic, report {HOSTILE}" for i in range(8)}, key="pairs-1",
    )  # fmt: skip


def rows_of(dom: str) -> list[str]:
    """Return the ids of the tiles that are shown."""
    return re.findall(r'<th scope="row"[^>]*>([^<]*)</th>', dom)


def test_a_page_of_3000_tiles_loads_and_hostile_text_is_not_executed(tmp_path: Path) -> None:
    text = pairs_page(3000)
    started = time.perf_counter()
    dom = opened(text, tmp_path)
    ready = re.search(r'data-ready="(\d+)"', dom)
    print(f"{len(text) / 1e6:.1f} MB, 3000 tiles: usable after {ready and ready[1]} ms, "
          f"{time.perf_counter() - started:.1f} s with the browser's start")  # fmt: skip
    assert rows_of(dom) == [f"tile-{i:05d}" for i in range(2999, 2899, -1)]
    assert "tiles 1 to 100 of 3000 (" in dom
    assert len(re.findall(r'<img [^>]*alt="tile tile-\d+"', dom)) == 100, (
        "only pictures of the shown rows should be decoded"
    )
    assert "<title>pairs</title>" in dom and "onerror" not in re.sub('&lt;.*?&gt;|id="data">.*?</script>', "", dom)
    assert dom.count("&lt;/script&gt;&lt;img src=x onerror=") >= 200


def test_hostile_text_adds_no_images(tmp_path: Path) -> None:
    dom = opened(pairs_page(30), tmp_path, then="document.body.dataset.seen = document.images.length")
    assert "<title>pairs</title>" in dom
    assert 'data-seen="30"' in dom, "the page should contain only the pictures of the tiles"


FILTERS: dict[str, Callable[[int], bool]] = {
    "label=1": lambda i: i % 3 == 1,
    "label=-1": lambda i: i % 3 == 2,
    "predicted=wrong": lambda i: i % 3 < 2 and i % 3 != i % 2,
    "predicted=right&label=0": lambda i: i % 3 == 0 and i % 2 == 0,
    "predicted=1": lambda i: i % 2 == 1,
    "from=0.4&to=0.6": lambda i: 24 <= i <= 36,
    "words=NUMBER0": lambda i: i % 7 == 0,
    "words=words+number7": lambda i: i % 7 == 6,
    "snippet=s3": lambda i: i % 7 in (2, 3),
    "snippet=s3&from=0.5": lambda i: (i % 7 == 3 and i >= 30) or (i % 7 == 2 and i / 60 - 0.01 >= 0.5),
    "words=nowhere": lambda i: False,
    "rated=none&label=1": lambda i: i % 3 == 1,
    "rated=good": lambda i: False,
}


def test_filters_match_an_exhaustive_search(tmp_path: Path) -> None:
    visit = """
    for (const filter of %s) {
      history.replaceState(null, "", "#" + filter + "&order=id");
      recall();
      const ids = Array.from(document.querySelectorAll("#list th"), (cell) => cell.textContent);
      const line = { textContent: filter + ": " + ids.join(" ") };
      document.body.append(Object.assign(document.createElement("samp"), line));
    }"""
    dom = opened(pairs_page(60), tmp_path, then=visit % json.dumps(list(FILTERS)))
    lines = [html.unescape(line) for line in re.findall("<samp>(.*?)</samp>", dom)]
    shown = dict(line.split(": ") for line in lines)
    expected = {filter: [f"tile-{i:05d}" for i in range(60) if keeps(i)] for filter, keeps in FILTERS.items()}
    assert {filter: ids.split() for filter, ids in shown.items()} == expected
    assert "no tiles match these filters" in dom


def test_a_page_without_a_run_shows_no_predictions(tmp_path: Path) -> None:
    visible = (
        "document.body.dataset.predictions = ['for-predicted', 'head-predicted'].map((id) => at(id).checkVisibility())"
    )
    assert 'data-predictions="true,true"' in opened(pairs_page(5), tmp_path, then=visible)
    dom = opened(pairs_page(5, run=False), tmp_path, "#predicted=wrong", then=visible)
    assert 'data-predictions="false,false"' in dom and len(rows_of(dom)) == 5


def test_clicks_on_snippets_and_page_buttons(tmp_path: Path) -> None:
    click = "document.querySelectorAll('#list .snippet')[1].click();"  # second snippet of the best tile
    dom = opened(pairs_page(700), tmp_path, then=click)
    shown = [int(tile_id[5:]) for tile_id in rows_of(dom)]  # tile 699 has snippets 6 and 7
    assert shown == [i for i in range(699, -1, -1) if i % 7 == 6][:100]
    assert "paired tiles in total: 100" in dom
    dom = opened(
        pairs_page(250),
        tmp_path,
        "#order=low",
        then="for (let i = 0; i < 5; i++) document.querySelector('.on').click();",
    )
    assert rows_of(dom) == [f"tile-{i:05d}" for i in range(200, 250)]
    assert "tiles 201 to 250 of 250 (" in dom


def test_a_click_enlarges_a_tile_and_decodes_its_picture(tmp_path: Path) -> None:
    click = """
    document.body.dataset.before = at("viewer").open + " " + document.images.length;
    document.querySelector("#list .enlarge").click();
    const caption = at("large-caption").textContent;
    document.body.dataset.after = at("viewer").open + " " + document.images.length + " " + caption;
    at("close").click();
    document.body.dataset.closed = at("viewer").open;"""
    dom = opened(pairs_page(5), tmp_path, then=click)
    assert 'data-before="false 5"' in dom and 'data-closed="false"' in dom
    assert re.search(r'data-after="true 6 tile-00004: &lt;b&gt;stroma|data-after="true 6 tile-00004: <b>stroma', dom)


RATE = """
const set = (field, value) => { field.value = value; field.dispatchEvent(new Event("input")); };
const [first, second, third] = document.querySelectorAll("#list .rating");
set(first.children[0], "good");
set(second.children[0], "wrong");
set(second.children[1], 'no, "glands", here');
set(third.children[0], "partly");
set(third.children[0], "");
"""
SAVE = """
document.body.dataset.kept = document.querySelector("#list .rating select").value;
const parts = [], Given = Blob;
Blob = function (content, options) { parts.push(...content); return new Given(content, options); };
at("save").click();
document.body.append(Object.assign(document.createElement("samp"), { textContent: JSON.stringify(parts) }));
at("rated").value = "wrong";
at("rated").dispatchEvent(new Event("input"));
"""


def test_ratings_are_restored_and_can_be_saved_as_csv(tmp_path: Path) -> None:
    text = pairs_page(12)
    assert "2 pairs rated" in opened(text, tmp_path, "#order=low", then=RATE)
    dom = opened(text, tmp_path, "#order=low", then=SAVE)  # new browser session
    assert 'data-kept="good"' in dom and "2 pairs rated" in dom
    (saved,) = json.loads(html.unescape(re.findall("<samp>(.*?)</samp>", dom)[0]))
    rows = list(csv.DictReader(io.StringIO(saved)))
    assert [(row["tile_id"], row["snippet_id"], row["rank"], row["rating"], row["comment"]) for row in rows] == [
        ("tile-00000", "s0", "0", "good", ""),
        ("tile-00000", "s1", "1", "wrong", 'no, "glands", here'),
    ]
    assert rows_of(dom) == ["tile-00000"], "only tiles with this rating should be shown"
    assert "Words" not in saved, "texts of reports should not be exported"


def test_raw_rows_of_a_comparison_are_filtered(tmp_path: Path) -> None:
    rows = [(arm, seed, HOSTILE) for arm in ("image_only", "clip_it") for seed in range(3)]
    text = page("c", "", [PageSection("Rows", [Rows(("arm", "seed", "text"), rows, "All rows")])])
    dom = opened(text, tmp_path)
    assert "<title>c</title>" in dom and dom.count("<tr hidden") == 0
    script = (
        "const it = document.querySelector('.filter input'); it.value = 'clip 2'; it.dispatchEvent(new Event('input'))"
    )
    dom = opened(text, tmp_path, then=script)
    assert dom.count("<tr hidden") == 5 and "1 of 6 rows" in dom
