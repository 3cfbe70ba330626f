"""Test the HTML of pages: escaping, no external resources, and correct sources of all numbers."""

import json
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from jinja2 import TemplateNotFound
from logged_lines import capture_log
from markupsafe import Markup
from PIL import Image

from clipit.comparison.report.sections import row_section, seed_figure
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ConfigError, DataError
from clipit.evaluation.predictions import Predictions, softmax, write_predictions
from clipit.evaluation.run_scores import evaluate_predictions
from clipit.evaluation.score_row import ScoreRow
from clipit.reporting.html import (
    Card,
    Cards,
    Figure,
    Folded,
    Include,
    Links,
    PageSection,
    Passage,
    Passages,
    Quote,
    Rows,
    Table,
    Text,
    facts_table,
    page,
)
from clipit.reporting.pairing_page import choose_tiles, pairing_page
from clipit.reporting.plots import inline_svg, plot_lines, plot_reliability
from clipit.reporting.run_page import extreme_tiles, run_page
from clipit.reporting.tables import with_interval
from clipit.reporting.thumbnails import encode_jpeg
from clipit.runs.folder import run_folder
from clipit.runs.page import write_pages
from clipit.workspace.pairs_page import write_pairs_page
from clipit.workspace.workspace import Workspace

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><b>&amp;'\u2028{{body}}"
VOID = {"meta", "img", "input", "br", "line", "path", "rect", "circle"}
MakeConfig = Callable[..., RunConfig]


class PageParser(HTMLParser):
    """Parser that collects texts and elements, and checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if self.open.pop() != tag:
            raise AssertionError(f"</{tag}> does not match the open tag")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def attributes_of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def example(n: int = 120, classes: tuple[str, ...] = ("adipose", "stroma", "tumour"), seed: int = 0) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(-1, len(classes), n)
    noise = generator.normal(size=(n, len(classes)))
    return Predictions(
        ids=np.array([f"t{i:03d}" for i in range(n)]),
        splits=np.array(["test", "validation"] * (n // 2)),
        labels=labels,
        groups=np.array([f"g{i // 4}" for i in range(n)]),
        classes=classes,
        probabilities=softmax(np.eye(len(classes))[labels] + noise),
        zero_shot=softmax(noise),
    )


def results_of(predictions: Predictions, **more: Any) -> dict[str, Any]:
    evaluation = evaluate_predictions(predictions, ["validation", "test"], 20)
    provenance = {"command": "scripts/train.py --config x.yaml", "commit": "abc", "versions": {"numpy": "2.0"}}
    return json.loads(json.dumps(evaluation | {"provenance": provenance} | more))


def look_up(results: Any, keys: str) -> Any:
    for key in keys.split("."):
        results = results[key]
    return results


def test_all_text_is_escaped_and_nothing_external_is_loaded() -> None:
    parts = [
        Text(HOSTILE),
        Text(HOSTILE, preformatted=True),
        Table((HOSTILE, "b"), [(HOSTILE, HOSTILE)], traces=[HOSTILE], caption=HOSTILE, source=HOSTILE),
        Rows((HOSTILE,), [(HOSTILE,)], HOSTILE, HOSTILE),
        Figure(b"\x89PNG", HOSTILE, source=HOSTILE),
        Cards([Card(None, HOSTILE, [HOSTILE], HOSTILE), Card("data:image/jpeg;base64,AA", HOSTILE, [])], HOSTILE),
        facts_table({HOSTILE: HOSTILE}),
        seed_figure({HOSTILE: {HOSTILE: 1.0}}, label=HOSTILE, baseline=HOSTILE, source=HOSTILE),
        Figure(inline_svg(plot_lines({HOSTILE: ([1, 2], [1.0, 2.0])}, y_label=HOSTILE), HOSTILE), HOSTILE),
        Links([(HOSTILE, [(HOSTILE, HOSTILE)])], HOSTILE),
        Folded(HOSTILE, [Text(HOSTILE)]),
        Passages([Passage(HOSTILE, HOSTILE, [Quote(HOSTILE, [(HOSTILE, HOSTILE), (HOSTILE, "")])], HOSTILE)]),
    ]
    text = page(HOSTILE, HOSTILE, [PageSection(HOSTILE, parts), PageSection("end", [], folded=True)])
    parsed = PageParser(text)
    assert not parsed.open
    assert sum(HOSTILE in part for part in parsed.texts) >= 25
    assert all((image["src"] or "").startswith("data:") for image in parsed.attributes_of("img"))
    assert len(parsed.attributes_of("script")) == 1 and len(parsed.attributes_of("b")) == 0
    assert not [attributes for _, attributes in parsed.elements if any(key.startswith("on") for key in attributes)]
    links = [value for _, attributes in parsed.elements for key, value in attributes.items() if key in ("src", "href")]
    assert all(value and value.startswith(("data:", "#", "%3C/script%3E")) for value in links)


def test_only_markup_of_plots_is_not_escaped() -> None:
    figure = Figure(Markup("<svg></svg>"), "caption")
    object.__setattr__(figure, "picture", HOSTILE)  # plain text instead of the SVG of a plot
    parsed = PageParser(page("t", "", [PageSection("s", [figure])]))
    assert HOSTILE in "".join(parsed.texts) and not parsed.attributes_of("img")
    with pytest.raises(TemplateNotFound):
        page("t", "", [PageSection("s", [Include("/etc/passwd")])])


def test_json_in_a_script_element_is_escaped_without_changing_its_value() -> None:
    value = {"text": [HOSTILE, "\u2028\u2029", "é ü"], HOSTILE: 1}
    text = page("t", "", [], data=value).split('id="data">')[1].split("</script>")[0]
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        page("t", "", [], data=[float("nan")])


def test_tables_have_scopes_and_sources() -> None:
    table = Table(("arm", "score"), [("a", 0.25), ("b", None)], traces=["x.parquet: 1", "x.parquet: 2"], caption="c")
    parsed = PageParser(page("t", "", [PageSection("s", [table])]))
    assert [cell.get("scope") for cell in parsed.attributes_of("th")] == ["col", "col", "row", "row"]
    assert "n/a" in parsed.texts and "0.25" in parsed.texts and "x.parquet: 2" in parsed.texts
    common = {"data_set": "d", "backbone": "b", "test_set": "test", "seed": 0, "metric": "accuracy"}
    rows = [ScoreRow(arm="a", score=1.0, **common), ScoreRow(arm="b", score=None, **common)]
    folded, raw = row_section(rows).parts
    assert isinstance(folded, Folded) and isinstance(folded.parts[0], Table) and isinstance(raw, Rows)
    assert [tuple(row) for row in folded.parts[0].rows] == [*common.items()], (
        "values shared by all rows should be shown once"
    )
    assert list(raw.header) == ["arm", "score"]
    assert [list(row) for row in raw.rows] == [["a", 1.0], ["b", None]]


def test_each_score_of_a_run_matches_its_stated_source() -> None:
    results = results_of(example())
    text = run_page(
        "a run",
        results,
        example(),
        curves={"loss": ([1, 2], [1.0, 0.5])},
        losses=["loss"],
        texts={"Snippets": "400 <b>"},
    )
    scores = text[text.index('id="s0"') : text.index('id="s1"')]
    columns = re.findall(r'<th scope="col" class="n">([^<]*)</th>', scores)
    assert columns == ["test", "test, zero-shot", "validation", "validation, zero-shot"]
    rows = re.findall(r'<tr><th scope="row">([^<]*)</th>((?:<td class="n">[^<]*</td>)+)', scores)
    sources = re.findall(r"<dt>([^<]*)</dt><dd>results\.json: ([\w., ]+)</dd>", scores)
    assert [name for name, _ in rows] == [name for name, _ in sources] and len(rows) == 7
    for (_, cells), (_, keys) in zip(rows, sources, strict=True):
        shown = re.findall(r">([^<]+)<", cells)
        assert len(shown) == len(columns)
        for cell, key in zip(shown, keys.split(", "), strict=True):
            score = look_up(results, key)
            assert cell == with_interval(score["value"], score["low"], score["high"]), key
    for keys in re.findall(r"from results\.json: ([\w.]+)<", text):
        assert look_up(results, keys)
    parsed = PageParser(text)
    assert not parsed.open
    for row in results["splits"]["test"]["confusion"]:
        assert all(str(count) in parsed.texts for count in row)
    assert "400 <b>" in parsed.texts and "abc" in parsed.texts and "version of numpy" in parsed.texts
    assert len(parsed.attributes_of("svg")) == 3 and all(
        picture["aria-label"] for picture in parsed.attributes_of("svg")
    )


def test_tiles_without_a_group_are_mentioned_separately() -> None:
    predictions = replace(example(), groups=np.full(len(example().ids), "p1"))
    assert "labelled tiles from 1 group;" in run_page("a run", results_of(predictions), predictions)
    predictions.groups[:20] = ""
    assert "labelled tiles from 1 group, others unknown;" in run_page("a run", results_of(predictions), predictions)


def test_undefined_scores_are_explained() -> None:
    predictions = example()
    predictions.labels[predictions.labels == 1] = 0
    text = run_page("a run", results_of(predictions, note="only a proof"), predictions)
    assert "Undefined, or averaged over only some classes: test, AUROC: no tile of class stroma." in text
    assert "n/a" in text and "only a proof" in text
    predictions.labels[:] = -1
    text = run_page("a run", results_of(predictions), predictions)
    assert "no labelled tile" in text and "No labelled tile is misclassified." in text
    reasons = re.findall(r"Undefined, or averaged over only some classes: test, ([^<]*): no labelled tile", text)
    assert len(reasons) == 1 and reasons[0].startswith("accuracy, balanced accuracy, ")


def test_extreme_tiles_match_an_exhaustive_search() -> None:
    predictions = example(300, seed=3)
    predictions.probabilities[:40] = predictions.probabilities[0]  # ties
    rows = range(299, -1, -1)
    confidence = {i: float(predictions.probabilities[i].max()) for i in rows}
    predicted = {i: int(predictions.probabilities[i].argmax()) for i in rows}
    in_order = sorted(
        (i for i in rows if predictions.labels[i] >= 0), key=lambda i: (-confidence[i], predictions.ids[i])
    )
    wrong, correct = extreme_tiles(predictions, 9)
    assert wrong.tolist() == [i for i in in_order if predicted[i] != predictions.labels[i]][:9]
    assert correct.tolist() == [i for i in in_order if predicted[i] == predictions.labels[i]][:9]


def test_plots_in_a_page_have_tooltips_and_inherit_colours() -> None:
    bins = [{"low": 0.0, "high": 1.0, "n": 5, "accuracy": 0.5, "confidence": 0.75}]
    text = inline_svg(plot_reliability(bins), "label")
    assert text == inline_svg(plot_reliability(bins), "label"), "equal plots should give equal SVG"
    assert text.count("<title>confidence 0.00 to 1.00: 5 tiles, accuracy 0.500, mean confidence 0.750</title>") == 3
    assert "currentColor" in text and "#000000" not in text and "metadata" not in text
    ids, others = (re.findall(r' id="([^"]+)"', svg) for svg in (text, inline_svg(plot_reliability(bins), "other")))
    assert len(ids) == len(set(ids)) and not set(ids) & set(others), "ids should be unique within a page"


def pairs_table(n: int, k: int = 2) -> pa.Table:
    rows = [(f"t{i:04d}", rank, f"s{(i + rank) % 7}", i / n - 0.1 * rank) for i in range(n) for rank in range(k)]
    tile_ids, ranks, snippets, scores = zip(*rows, strict=True)
    return pa.table({"tile_id": tile_ids, "rank": pa.array(ranks, pa.int16()), "snippet_id": snippets, "score": scores})


def test_tiles_of_a_limited_page_are_spread_over_the_scores() -> None:
    table = pairs_table(1000)
    assert choose_tiles(table, 1000) == [f"t{i:04d}" for i in range(1000)]
    chosen = choose_tiles(table, 11)
    places = [int(tile_id[1:]) for tile_id in chosen]
    assert places[0] == 0 and places[-1] == 999 and set(np.diff(places)) <= {99, 100}
    order = np.random.default_rng(0).permutation(table.num_rows)
    assert choose_tiles(table.take(order), 11) == chosen, "the order of the rows should not matter"


def test_pairing_data_contains_the_pairs_and_counts_all_tiles() -> None:
    table = pairs_table(70)
    texts = {f"s{i}": f"{HOSTILE} {i}" for i in range(7)}
    shown = choose_tiles(table, 10)
    text = pairing_page(
        HOSTILE, "", table, texts, shown,
        classes=(HOSTILE, "b"), labels={shown[0]: 1}, predictions={shown[1]: (0, 0.75)}, pictures={shown[0]: "AAAA"},
    )  # fmt: skip
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["tiles"]["id"] == shown
    assert data["tiles"]["label"][:2] == [1, -1] and data["tiles"]["predicted"][:2] == [-1, 0]
    for tile_id, pairs in zip(shown, data["tiles"]["pairs"], strict=True):
        i = int(tile_id[1:])
        assert [data["snippets"]["id"][s] for s in pairs[::2]] == [f"s{i % 7}", f"s{(i + 1) % 7}"]
        assert pairs[1::2] == [pytest.approx(i / 70, abs=1e-4), pytest.approx(i / 70 - 0.1, abs=1e-4)]
    assert data["snippets"]["tiles"] == [20] * len(data["snippets"]["id"]), (
        "all tiles should be counted, not only those shown"
    )
    assert "10 of 70 paired tiles are on this page" in text
    assert text.count("</script>") == 2 and "<img" not in text


def test_thumbnails_are_small_jpegs() -> None:
    import io

    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    data = encode_jpeg(Image.fromarray(noise), 64, 70)
    small = Image.open(io.BytesIO(data))
    assert small.format == "JPEG" and small.size == (43, 64) and len(data) < 5000


def fake_run(config: RunConfig, workspace: Workspace, splits: tuple[str, ...]) -> Path:
    """Write the files of a finished run without training."""
    tiles = workspace.tiles(config.seed)
    tiles = tiles.select(np.isin(tiles.splits, splits))
    chance = np.random.default_rng(0).normal(size=(len(tiles), len(tiles.classes)))
    predictions = Predictions(
        tiles.ids, tiles.splits, tiles.truth, tiles.groups, tiles.classes, softmax(np.eye(3)[tiles.truth] + chance)
    )
    folder = run_folder(config)
    write_predictions(folder / "predictions.parquet", predictions)
    results = evaluate_predictions(predictions, [s for s in splits if s != "train"], 10)
    results |= {"provenance": {"tiles": tiles_fingerprint(workspace)}, "note": ""}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "training.json").write_text(json.dumps({"sections": {"Pairing": "as told"}}))
    return folder


def tiles_fingerprint(workspace: Workspace) -> str:
    return workspace.all_tiles.fingerprint


def test_pages_of_a_run_and_its_pairing(configure: MakeConfig) -> None:
    config = configure(name="paged", arm="clip_it_all")
    workspace = Workspace(config)
    folder = fake_run(config, workspace, ("train", "validation", "test"))
    leftover = folder / ".pairs.html.99999999.tmp"
    leftover.touch()
    report, pairs = write_pages(config, workspace)
    assert report == folder / "report.html" and pairs == folder / "pairs.html" and not leftover.exists()
    text = report.read_text(encoding="utf-8")
    assert "as told" in text and text.count("data:image/jpeg;base64,") >= 24 and "no picture" not in text
    data = json.loads(pairs.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])
    truth = dict(zip(workspace.all_tiles.ids.tolist(), workspace.all_tiles.truth.tolist(), strict=True))
    assert len(data["tiles"]["id"]) == 72 and min(data["tiles"]["predicted"]) >= 0
    assert data["tiles"]["label"] == [truth[tile_id] for tile_id in data["tiles"]["id"]]
    assert all(data["tiles"]["picture"]) and set(data["snippets"]["text"]) <= set(workspace.snippet_texts().values())
    results = json.loads((folder / "results.json").read_text())
    results["provenance"]["tiles"] = "0123456789abcdef"
    (folder / "results.json").write_text(json.dumps(results))
    with pytest.raises(ArtifactError, match="was trained on tiles with the fingerprint"):
        write_pages(config, workspace)


def test_a_run_without_training_predictions_explains_how_to_get_them(configure: MakeConfig) -> None:
    config = configure(name="without", arm="clip_it_all")
    workspace = Workspace(config)
    _, pairs = write_pages(config, workspace) if fake_run(config, workspace, ("test",)) else []
    text = pairs.read_text(encoding="utf-8")
    assert "evaluation.splits that include train" in text and '"predicted":false' in text


def test_missing_run_is_noted_if_only_the_page_of_pairs_is_written(configure: MakeConfig) -> None:
    """As with the config.yaml of a run that was moved, whose output folder is the original one."""
    config = configure(name="moved", arm="clip_it_all")
    messages = capture_log()
    (pairs,) = write_pages(config, Workspace(config))
    assert pairs.is_file() and f"note: no finished run in {run_folder(config)}, so only" in "\n".join(messages)


def test_pages_that_cannot_be_written_are_errors(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(reports=None, arm="image_only", name="nothing")
    with pytest.raises(DataError, match="no finished run"):
        write_pages(config, Workspace(config))
    with pytest.raises(ConfigError, match="page of 1 tile is"):
        write_pairs_page(config, Workspace(config), 1)
    folder = run_folder(config)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"unreadable(?s:.*)results\.json"):
        write_pages(config, Workspace(config))


def test_the_script_prints_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["pages.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "pages.py"), run_name="__main__")
    assert end.value.code == 0 and "--max-tiles" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["pair.py", "pages.py"])
def test_scripts_write_the_page_of_a_pairing(
    script: str,
    write_config: Callable[..., Path],
    shared_output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config({"name": script.removesuffix(".py")}, output=shared_output)
    monkeypatch.setattr(sys, "argv", [script, "--config", str(config)])
    runpy.run_path(str(Path(__file__).parents[2] / "scripts" / script), run_name="__main__")
    path = shared_output / "pairings" / script.removesuffix(".py") / "pairs.html"
    assert f"page: {path} (" in capsys.readouterr().out
    assert "All 72 paired tiles are on this page" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_writes_its_page(configure: MakeConfig) -> None:
    from clipit.runs.train import train_run

    config = configure(**{"name": "own_page", "arm": "image_only", "training.steps": 2})
    folder = train_run(config, Workspace(config))
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = (folder / "report.html").read_text(encoding="utf-8")
    accuracy = results["splits"]["test"]["metrics"]["accuracy"]
    assert f'<td class="n">{with_interval(accuracy["value"], accuracy["low"], accuracy["high"])}</td>' in text
    assert "<dt>accuracy</dt><dd>results.json: splits.test.metrics.accuracy, splits.validation" in text
    assert "Loss, validation score, learning rate over steps" in text and results["provenance"]["preprocess"] in text
