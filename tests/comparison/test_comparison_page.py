"""Tests of the comparison page: its sections and size, in a real browser, and rebuilt without training."""

import html
import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup, escape
from tiny_models import MakeConfig, MakeFile

from clipit.comparison.compare import compare
from clipit.comparison.contrasts import Contrast
from clipit.comparison.published_scores import CAUTION, SOURCE
from clipit.comparison.rebuild import rebuild_comparison
from clipit.comparison.report.arm_figures import confusion_sections, curve_sections, mean_curves
from clipit.comparison.report.changed_tiles import tile_sections
from clipit.comparison.report.comparison_tables import describe_holm_family, main_arms
from clipit.comparison.report.links import link_sections
from clipit.comparison.report.sections import cost_section, row_section, score_sections
from clipit.comparison.report.write import _latex
from clipit.comparison.statistics import ArmKey, ArmResult, compute_results
from clipit.comparison.verdict import ArmVerdict
from clipit.config.comparison import ComparisonConfig
from clipit.config.file import ConfigFile
from clipit.config.load import validate
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, DataError
from clipit.evaluation.intervals import Interval
from clipit.evaluation.predictions import Predictions, softmax, write_predictions
from clipit.evaluation.score_row import Provenance, ScoreRow
from clipit.evaluation.significance import Significance
from clipit.output_files.whole_files import write_text
from clipit.reporting.html import Links, page
from clipit.reporting.plots import inline_svg, plot_lines, plot_reliability
from clipit.reporting.score_plots import plot_seed_scores

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
in_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


def big_comparison(folder: Path, arms: int, data_sets: int = 2, seeds: int = 5) -> list[ScoreRow]:
    """Write predictions and logs of runs with hostile names; return score rows for two test sets per run."""
    names = ["image_only", *(f"a_rather_long_name_of_an_arm_{i:02d}" for i in range(1, arms))]
    generator = np.random.default_rng(0)
    n, classes = 200, (HOSTILE, *(f"class_of_tissue_{c}" for c in range(7)))
    labels = generator.integers(0, len(classes), n)
    rows = []
    for arm in names:
        logits = np.eye(len(classes))[labels] * 2 + generator.normal(size=(n, len(classes)))
        ids = np.array([f"{HOSTILE}{i:03d}" for i in range(n)])
        predictions = Predictions(ids, np.full(n, "test"), labels, np.full(n, ""), classes, softmax(logits))
        run = folder / "runs" / arm
        write_predictions(run / "predictions.parquet", predictions)
        log = [{"step": s, "loss": 2.0 / s, "validation_accuracy": 1 - 1 / s} for s in range(1, 302, 10)]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
        (run / "report.html").write_text("a run's page")
        for data_set in range(data_sets):
            for seed in range(seeds):
                for test_set in ("test", "another centre"):
                    command = f"scripts/compare.py --config x.yaml --seed={seed}"
                    rows.append(
                        ScoreRow(
                            data_set=f"{HOSTILE} {data_set}",
                            backbone="small",
                            arm=arm,
                            seed=seed,
                            test_set=test_set,
                            metric="accuracy",
                            score=float(generator.uniform(0.6, 0.9)),
                            run=run,
                            predictions=run / "predictions.parquet",
                            steps=300,
                            provenance=Provenance(command=command, versions="x" * 150),
                        )
                    )
    return rows


def big_page(folder: Path, config: RunConfig, arms: int) -> str:
    """Comparison page of `big_comparison`."""
    rows = big_comparison(folder, arms)
    results = compute_results(rows, "image_only", lambda *_: None)
    names = list(dict.fromkeys(row.arm for row in rows))
    sections = [
        *score_sections(ComparisonConfig(), results, {"image_only": results}, {}, [HOSTILE], []),
        *tile_sections(results, names[1:], "image_only", {}),
        *confusion_sections(results),
        *curve_sections(results, "image_only"),
        cost_section(results),
        *link_sections(config, [], results, folder / "comparisons" / "big"),
        row_section(rows),
    ]
    return page(HOSTILE, HOSTILE, sections)


@pytest.fixture(autouse=True, scope="module")
def _no_comparison_plots() -> None:
    """Override the fixture in conftest.py, since pages are tested with their plots."""


@contextmanager
def draw_each_plot_once() -> Iterator[None]:
    """Draw one plot of each kind and reuse it for the others; a page of 28 arms has about eighty."""
    drawn: dict[str, Markup] = {}

    def once(plot: Callable[..., Any]) -> Callable[..., Any]:
        kind = plot.__name__
        return lambda *args, **kwargs: (kind, None if kind in drawn else plot(*args, **kwargs))

    def draw(figure: Any, label: str) -> Markup:
        kind, plot = figure
        if plot is not None:
            drawn[kind] = inline_svg(plot, "label of a plot")
        return Markup(drawn[kind].replace("label of a plot", str(escape(label))))

    modules = {"arm_figures": (plot_reliability, plot_lines), "sections": (plot_seed_scores,)}
    with pytest.MonkeyPatch.context() as patch:
        for name, plots in modules.items():
            for plot in plots:
                patch.setattr(f"clipit.comparison.report.{name}.{plot.__name__}", once(plot))
            patch.setattr(f"clipit.comparison.report.{name}.inline_svg", draw)
        yield


@pytest.fixture(scope="module")
def page_of_28_arms(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("big")
    with draw_each_plot_once():
        return big_page(folder, validate({**world, "output": folder}, "test"), 28)


def visit(text: str, folder: Path, then: str = "", hash: str = "") -> tuple[str, str, float]:
    """Open a page in a window 1280 pixels wide; return its DOM, the console messages and the seconds taken."""
    if then:  # the page's content security policy forbids additional scripts
        text = re.sub("<meta http-equiv=[^>]*>", "", text).replace("</body>", f"<script>{then}</script></body>")
    path = folder / "comparison.html"
    write_text(path, text)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    started = time.perf_counter()
    completed = subprocess.run(
        [*command, "--enable-logging=stderr", "--window-size=1280,900", f"--user-data-dir={folder / 'profile'}",
         f"{path.as_uri()}{hash}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if completed.returncode:
        raise AssertionError(completed.stderr)
    messages = "\n".join(line for line in completed.stderr.splitlines() if "CONSOLE" in line)
    return completed.stdout, messages, time.perf_counter() - started


def test_large_page_is_folded_and_below_8_mb(page_of_28_arms: str) -> None:
    text = page_of_28_arms
    print(f"560 rows: {len(text) / 1e6:.1f} MB")
    assert len(text) < 8e6
    assert text.count("<summary>a_rather_long_name_of_an_arm_27</summary>") == 2, "one confusion matrix per data set"
    assert "(560 rows)" in text and '<details class="section"><summary><h2' in text
    assert HOSTILE not in text and str(escape(HOSTILE)) in text
    targets = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(found.startswith(("#", "data:", "../../runs/")) for found in targets), "a link leaves the output folder"


@pytest.mark.slow
@in_browser
def test_large_page_in_a_browser(page_of_28_arms: str, tmp_path: Path) -> None:
    text = page_of_28_arms
    dom, messages, seconds = visit(text, tmp_path)
    print(f"560 rows, 28 arms: {seconds:.1f} s with the browser's start")
    assert messages == "", "the console must be empty under the page's content security policy"
    assert f"<title>{html.escape(HOSTILE, quote=False)}</title>" in dom, "a name was parsed as markup"
    measure = """
    const root = document.documentElement;
    document.querySelectorAll("details").forEach((one) => { one.open = true; });
    document.body.dataset.wide = [root.scrollWidth, root.clientWidth, document.body.scrollWidth];
    document.body.dataset.pictures = document.images.length;
    const box = document.querySelector(".filter input");
    box.value = "arm_27 centre";
    const start = performance.now();
    box.dispatchEvent(new Event("input"));
    document.body.dataset.filtered = performance.now() - start;
    """
    dom, messages, _ = visit(text, tmp_path, measure)
    assert messages == ""
    wide = re.search(r'data-wide="(\d+),(\d+),(\d+)"', dom)
    assert wide and wide[1] == wide[2] == wide[3], "content other than scrollable tables is wider than the window"
    assert 'data-pictures="0"' in dom
    filtered = re.search(r'data-filtered="([\d.]+)"', dom)
    assert "10 of 560 rows" in dom and filtered and float(filtered[1]) < 1000


@pytest.mark.slow
@in_browser
def test_link_unfolds_its_section(configure: MakeConfig, tmp_path: Path) -> None:
    with draw_each_plot_once():
        text = big_page(tmp_path, configure(), 4)
    number = re.search(r'href="#(s\d+)">Comparison with image_only', text)
    assert number
    opened = "document.body.dataset.open = document.querySelector('details.section').open"
    assert 'data-open="false"' in visit(text, tmp_path, opened)[0]
    assert 'data-open="true"' in visit(text, tmp_path, opened, hash=f"#{number[1]}")[0]


def test_mean_curves_cover_the_steps_common_to_all_seeds() -> None:
    nan = float("nan")
    first = {"loss": ([1, 10, 20], [4.0, 2.0, 1.0]), "validation_accuracy": ([10], [0.5])}
    second = {"loss": ([1, 20, 30], [2.0, 3.0, 9.0]), "learning_rate": ([1], [0.1])}
    assert mean_curves([first, second]) == {"loss": ([1, 20], [3.0, 2.0])}
    assert mean_curves([first, {"loss": ([1, 20], [nan, 5.0])}]) == {"loss": ([20], [3.0])}
    assert mean_curves([]) == {}


def test_main_arms_start_with_the_judged_arm_and_its_control() -> None:
    def contrast(role: str, control: str | None) -> Contrast:
        untested = Significance(None, "not tested")
        return Contrast(role, control, {}, Interval(None, None, ""), untested, untested)

    comparison = ComparisonConfig(arms=("image_only", "a", "as_text", "b", "mine", "c"))
    contrasts = (contrast("baseline", "image_only"), contrast("image embedding", "as_text"))
    verdicts = [ArmVerdict(ArmKey("d", "b", "test", name), "reports", contrasts) for name in ("mine", "c")]
    assert main_arms(comparison, verdicts) == ["mine", "as_text", "a", "b", "c"]
    assert main_arms(comparison, []) == ["a", "as_text", "b", "mine", "c"]


def results_of(scores: dict[str, list[float]], run: str = "") -> list[ArmResult]:
    """Results on one data set."""
    rows = [
        ScoreRow(
            data_set="d",
            backbone="b",
            test_set="test",
            arm=arm,
            seed=seed,
            metric="accuracy",
            score=score,
            run=Path(run) if run else None,
        )
        for arm, values in scores.items()
        for seed, score in enumerate(values)
    ]
    return compute_results(rows, "image_only", lambda *_: None)


def test_latex_captions_state_the_correction_and_published_scores(configure_file: MakeFile) -> None:
    file = configure_file(**{"comparison.arms": ["image_only", "bags"], "comparison.seeds": [0, 1, 2, 3, 4]})
    five = results_of({"image_only": [0.5, 0.6, 0.5, 0.6, 0.5], "bags": [0.6, 0.6, 0.7, 0.6, 0.6]})
    main, one = _latex(file.run, file.comparison, five, {("d", "b", "bags"): "95.92"}, SOURCE, []).split(
        "\\end{table}"
    )[:2]
    assert "Holm-corrected over all arms, data sets and backbones of a test set (tests in each family: test: 1)" in main
    assert "arXiv 2504.16181" in main and CAUTION[:40] in main and "95.92" in main
    assert r"\begin{tabular}{lrrrrrr}" in main and "Holm" not in one and "t over seeds" in one
    assert "Published" not in _latex(file.run, file.comparison, five, {}, "", [])
    assert describe_holm_family(results_of({"image_only": [0.5], "bags": [0.6]})) == (
        "No p-values: a paired t-test needs at least 5 seeds."
    )


def test_only_existing_pages_are_linked(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure(output=tmp_path, name="c")
    folder = tmp_path / "comparisons" / "c"
    run = tmp_path / "runs" / "c" / 'bags"><b>-seed0'
    results = results_of({"image_only": [0.5], "bags": [0.6]}, str(run))
    assert link_sections(config, [], results, folder) == []
    others = ("robustness/c/robustness.html", "pairings/c/pairs.html", "probing/other/probing.html")
    for path in (run / "report.html", *(tmp_path / name for name in others)):
        path.parent.mkdir(parents=True)
        path.write_text("")
    (section,) = link_sections(config, [], results, folder)
    runs, pages = (part for part in section.parts if isinstance(part, Links))
    assert [(name, len(links)) for name, links in runs.rows] == [("image_only", 1), ("bags", 1)]
    assert dict(pages.rows) == {
        "pairs: c": [("pairs.html", "../../pairings/c/pairs.html")],
        "robustness: c": [("robustness.html", "../../robustness/c/robustness.html")],
    }
    text = page("t", "", [section])
    assert "<b>" not in text and "../../runs/c/bags%22%3E%3Cb%3E-seed0/report.html" in text


@pytest.fixture
def small(configure_file: MakeFile, tmp_path: Path) -> ConfigFile:
    keys = {"training.steps": 2, "training.evaluate_every": 1, "evaluation.bootstrap": 20}
    compared = {"comparison.arms": ["image_only", "clip_it_all"], "comparison.seeds": [1]}
    compared |= {"comparison.analyses": ["classes", "embeddings"], "comparison.pairing_page": 20}
    return configure_file({"output": tmp_path / "out", "name": "small", **keys, **compared})


@pytest.mark.slow
def test_comparison_is_rebuilt_without_training(
    small: ConfigFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compare(small.run, small.comparison)
    first = {kind: (folder / f"comparison.{kind}").read_text(encoding="utf-8") for kind in ("md", "tex", "html")}
    page = first["html"]
    assert all(f'<h2 id="s{i}"' in page for i in range(8)) and "Tiles gained and lost" in page
    assert "data:image/jpeg;base64," in page and "Training curves" in page and "no picture" not in page
    assert "../../runs/small/clip_it_all-seed1/report.html" in page
    pairs = (small.run.output / "pairings" / "small" / "pairs.html").read_text(encoding="utf-8")
    data = json.loads(pairs.split('id="data">')[1].split("</script>")[0])
    assert len(data["tiles"]["id"]) == 20 and min(data["tiles"]["predicted"]) >= 0, "a tile without a prediction"
    assert "classifier of small/clip_it_all-seed1" in pairs and "../../pairings/small/pairs.html" in page
    card = (small.run.output / "runs/small/clip_it_all-seed1/classifier/README.md").read_text(encoding="utf-8")
    assert "| this classifier |" in card and re.search(r"image\\_only +\| baseline", card)
    # in a different folder, without classifiers and checkpoints, and with a changed configuration
    moved = tmp_path / "moved"
    shutil.move(small.run.output, moved)
    for classifier in moved.rglob("classifier"):
        shutil.rmtree(classifier)
    config = moved / "config.yaml"
    values = small.run.model_dump(mode="json") | {"output": str(moved)}
    config.write_text(json.dumps(values | {"comparison": {"arms": ["image_only", "bags"]}}))
    for kind in first:
        (moved / "comparisons" / "small" / f"comparison.{kind}").unlink()
    monkeypatch.setattr(sys, "argv", ["pages.py", "--config", str(config), "--of", "comparison"])
    runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "pages.py"), run_name="__main__")
    assert capsys.readouterr().out.count("page: ") == 3
    rebuilt = {kind: (moved / "comparisons" / "small" / f"comparison.{kind}").read_text("utf-8") for kind in first}
    assert rebuilt["md"] == first["md"] and rebuilt["tex"] == first["tex"]
    assert rebuilt["html"].replace(str(moved), str(small.run.output)) == page

    json_file = moved / "comparisons" / "small" / "comparison.json"
    written = json.loads(json_file.read_text(encoding="utf-8"))
    json_file.write_text(json.dumps(written | {"notes": ["earlier"], "checksum": None}), encoding="utf-8")
    leftovers = [json_file.parent / f"{folder}.x.png.999999999.tmp" for folder in ("", "predictions/small/")]
    for leftover in leftovers:
        leftover.write_text("of a killed process", encoding="utf-8")
    with draw_each_plot_once():
        rebuild_comparison(validate(values, "test"))
    assert not any(leftover.exists() for leftover in leftovers)
    assert json.loads(json_file.read_text(encoding="utf-8"))["notes"] == written["notes"], "notes must be recomputed"

    for damage, error, match in damages():
        path = moved / "comparisons" / "small" / "comparison.json"
        original = path.read_text(encoding="utf-8")
        damage(path)
        with pytest.raises(error, match=match):
            rebuild_comparison(validate(values, "test"))
        path.write_text(original, encoding="utf-8")


def damages() -> list[tuple[Callable[[Path], object], type[Exception], str]]:
    """Ways to damage comparison.json, each with the expected error and message."""

    def editing(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:

        def damage(path: Path) -> None:
            values = json.loads(path.read_text(encoding="utf-8"))
            values.pop("checksum")  # absent in files of earlier versions
            change(values)
            path.write_text(json.dumps(values), encoding="utf-8")

        return damage

    return [
        (Path.unlink, DataError, "no finished comparison"),
        (lambda path: path.write_text("{"), ArtifactError, "unreadable"),
        (
            lambda path: path.write_text(path.read_text("utf-8").replace('"score": 0.', '"score": 1.', 1)),
            ArtifactError,
            "has changed since it was written",
        ),
        (editing(lambda values: values.update(rows=3)), ArtifactError, "missing or invalid: rows"),
        (editing(lambda values: values.pop("findings")), ArtifactError, "missing or invalid: findings"),
        (editing(lambda values: values["findings"][0].pop("rows")), ArtifactError, r"no 'rows' in findings\[0\]"),
        (
            editing(lambda values: values["rows"][0].update(tiles_fingerprint="0")),
            ArtifactError,
            "tiles of .* have changed",
        ),
        (
            editing(lambda values: values["rows"][0].update(predictions_sha256="0")),
            ArtifactError,
            "predictions have changed",
        ),
        (
            editing(lambda values: values["rows"][0].update(predictions="gone.parquet")),
            DataError,
            "file does not exist",
        ),
    ]
