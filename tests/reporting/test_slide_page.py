"""Test the page of a slide: its content, and the map in a headless browser."""

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, HOSTILE, opened
from PIL import Image

from clipit.reporting.slide_page import Neighbour, SlidePage, TopTile, outline_path, slide_page, top_rows
from clipit.reporting.thumbnails import encode_jpeg, jpeg_uri
from clipit.slides.grid import SlideGrid
from clipit.slides.polygons import trace

CLASSES = ["tumour", HOSTILE, "stroma"]
SLIDE = "case 1 <i>"


def grid_of(columns: int, rows: int, edge: int = 100, step: int = 100) -> SlideGrid:
    x, y = (corners.ravel().astype(np.int32) for corners in np.meshgrid(np.arange(columns), np.arange(rows)))
    size = ((columns - 1) * step + edge, (rows - 1) * step + edge)
    return SlideGrid(SLIDE, *size, 0.5, edge, float(step), x * step, y * step, np.ones(len(x), dtype=np.float32))


def content(columns: int = 16, rows: int = 12) -> SlidePage:
    grid = grid_of(columns, rows)
    scores = np.random.default_rng(0).dirichlet([1, 1, 1], len(grid)).astype(np.float32)
    picture = jpeg_uri(base64.b64encode(encode_jpeg(Image.new("RGB", (50, 50), "pink"), 50, 70)).decode())
    prompts = [Neighbour("an image of tumour", 0.3125, "tumour"), Neighbour("glands & <b>stroma</b>", 0.25)]
    snippets = [Neighbour(f"Invasive carcinoma. {HOSTILE}", 0.5, "report-7-2")]
    top = [
        [TopTile(row, picture if row % 2 else None, prompts, snippets) for row in chosen]
        for chosen in top_rows(grid, scores, 3)
    ]
    mask = np.zeros((rows, columns), dtype=bool)
    mask[1:-1, 1:-1] = True
    return SlidePage(
        grid, CLASSES, scores, Image.new("RGB", (grid.width // 2, grid.height // 2), "#eed0e0"), trace(mask, 100.0),
        {"classifier": "runs/x/classifier"}, {"mean of the top 5 tiles": [0.75, 0.5, None]}, top, "Research use only.",
    )  # fmt: skip


@pytest.fixture(scope="module")
def text() -> str:
    return slide_page(content())


def test_the_page_shows_all_facts_scores_and_texts(text: str) -> None:
    shown = unescape(re.sub("<script>.*?</script>", "", text, flags=re.DOTALL))
    for expected in (
        f"Slide {SLIDE}", "1,600 x 1,200 pixels (0.80 x 0.60 mm)", "0.5 µm per pixel", "192; edge 50 µm, step 50 µm",
        "runs/x/classifier", "mean of the top 5 tiles", "0.750", "n/a", "glands & <b>stroma</b>", "0.312", "report-7-2",
        "Nearest snippets", "Research use only.", "most probable class", "no picture",
    ):  # fmt: skip
        assert expected in shown, expected
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", text)
    assert headings[:2] == ["Slide scores", "Map"]
    assert text.count('class="go"') == 9 and len(re.findall('class="layer"', text)) == 4


def test_the_page_links_back_to_all_slides() -> None:
    assert '<a href="../../slides.html">all slides</a>' in slide_page(replace(content(), index="../../slides.html"))


def test_texts_are_escaped_and_nothing_external_is_loaded(text: str) -> None:
    body = re.sub("<script>.*</script>", "", text, flags=re.DOTALL)
    assert HOSTILE not in text and "<b>stroma" not in body and "<i>" not in body and "<script" not in body
    assert text.count("</script>") == 1 and text.count("<script") == 1
    sources = re.findall(r'\b(?:src|href|action|data)="([^"]*)"', body)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert "default-src 'none'; img-src data:" in text and "sourceMappingURL" not in text


def test_the_viewer_comes_with_its_licence() -> None:
    folder = resources.files("clipit.reporting") / "vendor/openseadragon"
    version = re.search(r"openseadragon (\d+\.\d+\.\d+)", (folder / "openseadragon.min.js").read_text(encoding="utf-8"))
    assert version and version[1] in (folder / "README.md").read_text(encoding="utf-8")
    assert "Redistribution and use in source and binary forms" in (folder / "LICENSE.txt").read_text(encoding="utf-8")


def layer_of(text: str, number: int) -> np.ndarray:
    encoded = re.findall(r'class="layer" src="data:image/png;base64,([^"]*)"', text)[number]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return np.asarray(picture.convert("RGBA"))


def test_a_layer_has_its_class_colour_and_the_probability_as_opacity() -> None:
    slide = content(8, 6)
    keep = np.arange(1, 48)
    grid = replace(slide.grid, x=slide.grid.x[keep], y=slide.grid.y[keep], tissue=slide.grid.tissue[keep])
    colours = ["#0a141e", "#c80000", "#00c800"]
    text = slide_page(replace(slide, grid=grid, scores=slide.scores[keep], top=[[], [], []], colours=colours))
    assert "No top tiles were selected." in text
    layer, best = layer_of(text, 1), layer_of(text, 0)
    assert layer.shape == (6, 8, 4) and layer[0, 0, 3] == 0 and best[0, 0, 3] == 0, (
        "a cell without a tile should be transparent"
    )
    np.testing.assert_allclose(layer.reshape(-1, 4)[keep, 3] / 255, slide.scores[keep, 0], atol=0.02)
    assert (layer[..., :3] == [10, 20, 30]).all()
    expected = [list(bytes.fromhex(colours[i][1:])) for i in slide.scores[keep].argmax(axis=1)]
    np.testing.assert_array_equal(best.reshape(-1, 4)[keep, :3], expected)


def test_images_are_reduced_to_the_size_limits_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipit.reporting.slide_page._LAYER_BYTES", 12_000)
    monkeypatch.setattr("clipit.reporting.slide_page._OVERVIEW_BYTES", 20_000)
    rng = np.random.default_rng(0)
    grid = grid_of(101, 61, edge=64, step=16)
    scores = rng.random((len(grid), 3)).astype(np.float32)
    overview = Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8))
    text = slide_page(replace(content(), grid=grid, scores=scores, overview=overview, top=[[], [], []]))
    encoded = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]*)"', text)
    assert len(encoded[0]) <= 27_000 and sum(map(len, encoded[1:])) <= 12_000
    assert layer_of(text, 1).shape[1] in (13, 26, 52), "cells should be averaged"
    across = float(re.findall(r'data-across="([^"]*)"', text)[0])
    assert 1 <= across < 1.1, "the map should still cover the slide"


def test_a_page_is_written_for_a_slide_without_tiles() -> None:
    slide = content(8, 6)
    empty = np.zeros(0, dtype=np.int32)
    grid = replace(slide.grid, x=empty, y=empty, tissue=empty.astype(np.float32))
    scores = np.zeros((0, 3), dtype=np.float32)
    assert top_rows(grid, scores, 3) == [[], [], []]
    text = slide_page(replace(slide, grid=grid, scores=scores, top=[[], [], []], tissue=[]))
    assert "No top tiles were selected." in text and (layer_of(text, 0)[..., 3] == 0).all()


def test_top_tiles_do_not_overlap_and_are_sorted() -> None:
    grid = grid_of(5, 1, edge=100, step=50)
    scores = np.array([[0.9, 0.1], [0.95, 0.2], [0.5, 0.3], [0.4, 0.4], [0.3, 0.5]])
    assert top_rows(grid, scores, 3) == [[1, 3], [4, 2, 0]]
    assert top_rows(grid, scores, 1) == [[1], [4]]


def test_outlines_are_rounded_to_their_unit_and_tiny_rings_dropped() -> None:
    mask = np.zeros((12, 12), dtype=bool)
    mask[2:10, 2:10], mask[0, 0] = True, True
    assert outline_path(trace(mask, 10.0), 10.0) == "M1 0L1 1L0 1L0 0ZM10 2L10 10L2 10L2 2Z"
    assert outline_path(trace(mask, 10.0), 50.0) == "M2 0L2 2L0 2L0 0Z"


STEPS = """
const colour = () => Array.from(document.querySelector("#view canvas").getContext("2d")
  .getImageData(Math.round(viewer.container.clientWidth / 2), 200, 1, 1).data);
// The page's clock does not wait for the picture to be decoded: count, which takes real time, until it is drawn.
const steps = (left) => setTimeout(() => {
  if (left && !colour()[3]) { for (let i = 0; i < 3e7; i++); viewer.forceRedraw(); steps(left - 1); return; }
  const seen = {}, drawn = () => layers.map((layer) => layer.checkVisibility());
  const zoom = () => viewer.viewport.getZoom() / viewer.viewport.getHomeZoom();
  seen.first = drawn(); seen.outline = outline.checkVisibility(); seen.home = zoom(); seen.colour = colour();
  seen.stage = at("stage").checkVisibility(); seen.where = at("where").textContent;
  boxes[0].click(); boxes[2].click(); at("show-outline").click();
  seen.second = drawn(); seen.noOutline = outline.checkVisibility();
  at("opacity").value = 20; at("opacity").dispatchEvent(new Event("input"));
  seen.opacity = getComputedStyle(layers[2]).opacity;
  const view = at("view").getBoundingClientRect();
  const corner = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0.5, 0.25));
  const place = { clientX: view.left + corner.x, clientY: view.top + corner.y };
  at("view").dispatchEvent(new PointerEvent("pointermove", place));
  seen.pointer = at("where").textContent;
  const tile = document.querySelectorAll(".go")[1];
  seen.tile = [Number(tile.dataset.x), Number(tile.dataset.y)];
  tile.focus(); tile.click();
  setTimeout(() => {
    const middle = viewer.viewport.getCenter();
    seen.centre = [middle.x * WIDTH, middle.y * WIDTH];
    seen.zoomed = zoom(); seen.mark = mark.checkVisibility(); seen.focus = document.activeElement === viewer.canvas;
    at("whole").click();
    setTimeout(() => {
      seen.again = zoom();
      document.body.append(Object.assign(document.createElement("samp"), { textContent: JSON.stringify(seen) }));
    }, 3000);
  }, 3000);
}, 100);
viewer.addOnceHandler("open", () => setTimeout(() => steps(100), 500));
"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_layers_opacity_pointer_and_top_tiles_work_in_a_browser(text: str, tmp_path: Path) -> None:
    dom = opened(text, tmp_path, then=STEPS, milliseconds=20_000)
    seen = json.loads(unescape(re.findall("<samp>(.*?)</samp>", dom)[0]))
    assert seen["first"] == [True, False, False, False] and seen["outline"] and not seen["stage"]
    assert seen["colour"] == pytest.approx([0xEE, 0xD0, 0xE0, 255], abs=3), "the overview should be drawn"
    assert seen["where"].startswith("centre of the view: x 800, y 600 pixels of level 0 (400.0, 300.0")
    assert seen["second"] == [False, False, True, False] and not seen["noOutline"]
    assert seen["opacity"] == "0.2"
    assert seen["pointer"].startswith("pointer: x 800, y 400 pixels of level 0 (400.0, 200.0")
    assert seen["centre"] == pytest.approx([seen["tile"][0] + 50, seen["tile"][1] + 50], abs=1)
    assert seen["mark"] and seen["focus"], "the tile should be marked, and the map focused"
    assert seen["zoomed"] > 1.3 and seen["home"] == seen["again"] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_the_map_opens_with_the_content_security_policy(text: str, tmp_path: Path) -> None:
    dom = opened(text, tmp_path, milliseconds=5_000)
    assert re.search('<body data-ready="[0-9]+"', dom) and 'aria-label="Map of the slide: arrow keys' in dom
    assert f"<title>Slide {SLIDE.replace('<', '&lt;').replace('>', '&gt;')}</title>" in dom
    assert "taken" not in re.findall("<title>(.*?)</title>", dom)
