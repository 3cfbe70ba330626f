"""Tests of the Python API: public names, configurations, argument checks and results."""

import logging
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from launching import run_program
from tiny_classifier import save_classifier
from tiny_models import MakeFile

import clipit
from clipit.api.configuration import as_config
from clipit.api.entry import public
from clipit.api.runs import RunResult
from clipit.cli.train import main as train_command
from clipit.config.command_line import read_file_command
from clipit.errors import ConfigError, DataError
from clipit.progress import show_messages
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

FUNCTIONS = (
    "load_config", "build_text_index", "pair", "train", "evaluate", "evaluate_external", "compare", "tune", "probe",
    "predict", "tile_slides", "score_slides", "segment", "compare_slides", "load_classifier", "describe_annotators",
    "find_label_issues", "merge_masks", "train_mil", "adapt_vlm", "write_pairs",
    "export_program", "push_classifier",
)  # fmt: skip


def test_public_names_are_listed_documented_and_lazily_imported() -> None:
    assert {*FUNCTIONS, "ClipitError", "__version__"} == {*clipit.__all__}
    assert {name for name in dir(clipit) if not name.startswith("__")} == {*clipit.__all__} - {"__version__"}
    for name in FUNCTIONS:
        function = getattr(clipit, name)
        assert callable(function) and "Args:" in function.__doc__
        assert ">>> " in function.__doc__ or name == "load_classifier"
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        clipit.trian  # noqa: B018


def test_import_and_configuration_do_not_need_torch() -> None:
    code = (
        "import sys, clipit; dir(clipit); heavy = {'torch', 'pandas', 'pydantic'} & {*sys.modules}; assert not heavy\n"
        "clipit.load_config('demo'), clipit.train, clipit.compare; assert 'torch' not in sys.modules\n"
        "print(clipit.__version__)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == clipit.__version__


def test_python_configuration_equals_command_line_configuration(tmp_path: Path) -> None:
    options = ["--config", "demo", "--tiles.path=t.csv", "--seed=3", "--lora.rank=2", "--comparison.seeds=[5]"]
    expected = read_file_command("", ["comparison"], options)[0]
    path = Path("t.csv")
    config = clipit.load_config("demo", {"tiles.path": path, "lora.rank": 2, "comparison.seeds": [5]}, seed=3)
    assert config.run.model_dump(exclude={"overrides"}) == expected.run.model_dump(exclude={"overrides"})
    assert {*config.run.overrides} == {*expected.run.overrides} and config.comparison == expected.comparison
    assert clipit.load_config("demo", lora={"rank": 2}).run.lora.alpha == config.run.lora.alpha
    assert clipit.load_config(config) == config
    assert clipit.load_config("demo", {"tiles.classes": np.array(["b", "a"])}).run.tiles.classes == ("b", "a")
    assert clipit.load_config(config, arm="image_only").run.arm == "image_only"


def test_keys_of_arms_replace_those_changed_by_earlier_calls_only() -> None:
    first = clipit.load_config("demo", {"training.learning_rate": 0.01, "training.steps": 7, "lora": {"rank": 3}})
    chosen = {"image_only": {"base": "image_only", "training.learning_rate": 0.002, "lora": {"rank": 5}}}
    resolved = resolve_arm(clipit.load_config(first, arms=chosen, arm="image_only").run)
    assert (resolved.training.learning_rate, resolved.training.steps, resolved.lora.rank) == (0.002, 7, 5)
    stated = clipit.load_config(first, {"training.learning_rate": 0.03}, arms=chosen, arm="image_only").run
    assert (resolve_arm(stated).training.learning_rate, resolve_arm(stated).lora.rank) == (0.03, 5)
    for wrong in ({"image_only": None}, ["image_only"]):
        with pytest.raises(ConfigError):
            resolve_arm(clipit.load_config(first, arms=wrong, arm="image_only").run)


def test_invalid_configuration_raises_an_error_with_all_problems() -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 configuration errors.*lora\.rnk.*did you mean.*training\.steps"):
        clipit.load_config("demo", {"lora.rnk": 2, "training.steps": -1})
    with pytest.raises(ConfigError, match="no such configuration file"):
        clipit.train("nothing")
    with pytest.raises(ConfigError, match="given twice: seed"):
        clipit.load_config("demo", {"seed": 1}, seed=2)
    with pytest.raises(ConfigError, match=r"given twice: training\.steps"):
        clipit.load_config("demo", {"training.steps": 1}, training={"steps": 2})
    with pytest.raises(ConfigError, match=r"given twice: training\.steps"):
        clipit.load_config("demo", {"training.steps": 1, "training": {"steps": 2}})
    with pytest.raises(ConfigError, match=r"given twice: reports\.text_checks\.headings"):
        clipit.load_config("demo", {"reports.text_checks": None, "reports.text_checks.headings": False})
    with pytest.raises(ConfigError, match="not sets, which have no order: classes"):
        clipit.load_config("demo", {"tiles.classes": {"a", "b"}})
    with pytest.raises(ConfigError, match="home folder"):
        clipit.load_config("~nobody-has-this-name/config.yaml")


_OTHER_KINDS = """
import clipit
for function, *arguments in (
    (clipit.load_config, {"tiles.path": "t.csv"}), (clipit.train, None), (clipit.train, 7),
    (clipit.compare, clipit.load_config("demo").run), (clipit.load_config, "demo", "training.steps=3"),
    (clipit.load_config, "demo", {1: 2}),
    (clipit.load_config, "demo", {"tiles.class_map": {0: "a"}}),
):
    try:
        function(*arguments)
    except clipit.ClipitError as error:
        print(" ".join(str(error).split()))
"""


def test_wrong_types_of_configurations_raise_errors() -> None:  # in a process without the tests' type checks
    completed = run_program("-c", _OTHER_KINDS)
    first, absent, number, run, overrides, key, name = completed.stdout.splitlines()
    assert "path of a YAML file" in first and "not a dictionary" in first
    assert 'clipit.load_config("own_table", {"tiles.path": "tiles.csv"})' in first
    assert "not None" in absent and "not an int" in number
    assert "not a RunConfig" in run and "not its `run` attribute" in run
    assert "a dictionary of dotted keys and their values, not a str" in overrides
    assert "keys in overrides must be strings, not 1" in key and "names must be text, not 0" in name


_WRONG_ARGUMENTS = """
import sys
from pathlib import Path
import clipit
for name, arguments, options in (
    ("train", [None], {}), ("predict", [3, "tiles", "out.csv"], {}), ("predict", ["run", None, "out.csv"], {}),
    ("predict", ["run", ["a.png", None], "out.csv"], {}), ("predict", ["run", "tiles", "o.csv"], {"batch_size": "8"}),
    ("predict", ["run", "tiles", "out.csv"], {"bf16": "no"}), ("tile_slides", ["slides", []], {}),
    ("tile_slides", ["slides", "out"], {"extras": "png"}), ("tile_slides", ["slides", "out"], {"mpp": "0.5"}),
    ("evaluate_external", [Path("run")], {"tiles": ["a.csv"]}), ("probe", ["demo", 7], {}),
    ("compare", ["demo"], {"agents": 2.5}), ("push_classifier", ["run", None], {}),
    ("write_pairs", ["demo", "folder", "tar"], {}), ("export_program", [None, "model.onnx"], {}),
    ("load_classifier", [None], {}), ("load_classifier", ["run"], {"vlm": 3}),
):
    loaded = "torch" in sys.modules
    try:
        getattr(clipit, name)(*arguments, **options)
    except clipit.ClipitError as error:
        print(" ".join(str(error).split()))
    assert loaded or name == "load_classifier" or "torch" not in sys.modules, name
"""


def test_arguments_of_a_wrong_type_raise_errors_with_their_names() -> (
    None
):  # in a process without the tests' type checks
    lines = run_program("-c", _WRONG_ARGUMENTS).stdout.splitlines()
    expected = (
        "not None", "classifier must be a string, a path or a Classifier, not an int",
        "inputs must be a string, a path or a list of strings or paths, not None",
        "inputs must be a string, a path or a list of strings or paths, not a list with None",
        "batch_size must be a whole number, not a str", "bf16 must be True or False, not a str",
        "out must be a string or a path, not a list", "extras must be a list of 'png' or 'h5', not a str",
        "mpp must be a number or None, not a str", "tiles must be a string, a path, a dictionary or None, not a list",
        "run must be a string, a path or None, not an int", "agents must be a whole number, not a float",
        "repository must be a string, not None where: clipit.push_classifier",
        "format must be 'csv' or 'webdataset', not 'tar'",
        "classifier must be a Classifier, a string or a path, not None", "path must be a string or a path, not None",
        "vlm must be a string, a VLMConfig or None, not an int",
    )  # fmt: skip
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line, line


def test_gradients_are_computed_even_if_the_caller_disabled_them() -> None:
    import torch

    @public
    def compute_gradient() -> float:
        weight = torch.nn.Parameter(torch.ones(1))
        (3 * weight).sum().backward()
        return float(weight.grad)

    with torch.no_grad():
        assert compute_gradient() == 3 and not torch.is_grad_enabled()
    with torch.inference_mode():
        assert compute_gradient() == 3 and torch.is_inference_mode_enabled()


def test_predictions_do_not_depend_on_torch_defaults(tmp_path: Path) -> None:
    import torch

    folder = save_classifier(tmp_path) / "run"
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    expected = clipit.load_classifier(folder).predict_proba([image])
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert np.array_equal(clipit.load_classifier(folder, "cpu").predict_proba([image]), expected)
        assert torch.get_default_dtype() == torch.float64 and torch.get_default_device().type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_empty_path_raises_an_error(tmp_path: Path) -> None:
    classifier = clipit.load_classifier(save_classifier(tmp_path) / "run", "cpu")
    calls = [
        ("inputs", lambda: clipit.predict(classifier, "", tmp_path / "out.csv")),
        ("inputs", lambda: clipit.predict(classifier, ["a.png", " "], tmp_path / "out.csv")),
        ("out", lambda: clipit.predict(classifier, "a.png", "")),
        ("slides", lambda: clipit.tile_slides([""], tmp_path)),
        ("run", lambda: clipit.evaluate_external("", "tiles.csv")),
        ("path", lambda: clipit.load_classifier("")),
    ]
    for name, call in calls:
        with pytest.raises(ConfigError, match=f"^{name} is an empty path"):
            call()
    with pytest.raises(DataError, match=r"(?s)the path is empty.*images"):
        classifier.predict("")
    with pytest.raises(ConfigError, match="no name or path follows 'clip:'"):
        clipit.load_config("own_table", {"vlm.name": "clip:"})


def test_path_like_objects_and_numpy_numbers_are_converted(tmp_path: Path) -> None:
    from clipit.config.argument_types import checked_arguments

    @checked_arguments
    def argument_types(
        path: str | Path, listed: str | Path | Sequence[str | Path], size: int, share: float
    ) -> list[type]:
        return [type(path), *({type(item) for item in listed} if isinstance(listed, list) else ()), type(size)]

    (tmp_path / "a.png").write_bytes(b"")
    entries = list(os.scandir(tmp_path))
    assert argument_types(entries[0], entries, np.int64(3), np.float32(0.5)) == [type(tmp_path), type(tmp_path), int]
    config = tmp_path / "own.yaml"
    config.write_text("tiles: {source: table, path: tiles.csv}\n", encoding="utf-8")
    (entry,) = (item for item in os.scandir(tmp_path) if item.name == "own.yaml")
    (other,) = (item for item in os.scandir(tmp_path) if item.name == "a.png")
    run = clipit.load_config(entry, {"prompts": other, "comparison.seeds": np.arange(2)}).run
    assert run.prompts == str(tmp_path / "a.png")


_RESULTS = """
import os
from pathlib import Path
import clipit
from clipit.api.experiments import CompareResult, ProbeResult, TuneResult
from clipit.api.labels import AnnotatorsResult
from clipit.api.mil import MilResult
from clipit.api.runs import RunResult
from clipit.api.slides import SlidesResult
assert RunResult("run") == RunResult(Path("run")) and RunResult("run").page == Path("run/report.html")
assert os.fspath(TuneResult("trials.json")) == "trials.json" == str(Path(TuneResult("trials.json")))
for result in (MilResult, CompareResult, ProbeResult, AnnotatorsResult):
    assert result("study").page.parent == Path("study")
for wrong in (lambda: RunResult(None), lambda: SlidesResult("missing", "").slides, lambda: clipit.predict(
    RunResult("missing"), "tiles", "out.csv"
)):
    try:
        wrong()
    except clipit.ClipitError as error:
        print(" ".join(str(error).split()))
"""


def test_results_accept_a_folder_and_are_path_like() -> None:
    lines = run_program("-c", _RESULTS).stdout.splitlines()
    expected = ("folder must be a string or a path, not None where: clipit RunResult", "missing/slides.csv", "tiles")
    assert len(lines) == len(expected)
    for line, words in zip(lines, expected, strict=True):
        assert words in line, line


def test_workspace_accepts_a_configuration(configure_file: MakeFile) -> None:
    config = configure_file()
    workspace = Workspace(config)
    assert workspace.config == config.run
    with pytest.raises(DataError, match="no texts to embed"):
        workspace.encode([])
    with pytest.raises(DataError, match=r"a text is not valid UTF-8: t\\udcfcm"):
        workspace.encode(["t\udcfcm"])


def test_tasks_other_than_indexing_need_tiles(world: dict) -> None:
    config = clipit.load_config("own_table", {"reports.path": world["reports"]["path"]})
    assert as_config(clipit.load_config(config, seed=1), needs_tiles=False).run.reports is not None
    for task in (clipit.train, clipit.pair, clipit.compare, clipit.probe):
        with pytest.raises(ConfigError, match=r"has no tiles\n +where: tiles.path"):
            task(config)


def test_index_and_pairs_are_data_frames_with_texts(configure_file: MakeFile, tmp_path: Path) -> None:
    config = configure_file()
    index = clipit.build_text_index(config)
    assert index.folder.is_dir() and 0 < index.rows <= len(index.snippets) and index.kind.startswith("Flat")
    assert re.match(r"reports +60 ", index.summary)
    fresh = configure_file(output=str(tmp_path))
    reused = [clipit.build_text_index(fresh).reused for _ in range(2)]
    assert reused == [False, True], "the second call reuses the index of the first"
    result = clipit.pair(config, page=False)
    pairs = result.pairs
    assert result.page is None and result.file.is_file() and "72" in result.summary
    assert pairs.columns.tolist() == ["tile_id", "rank", "snippet_id", "similarity", "text"]
    assert len(pairs) == 72 and pairs["text"].isin(index.snippets["text"]).all()
    assert pairs["similarity"].between(-1, 1).all()
    assert result.image(pairs["tile_id"][0]).size == (32, 32)
    with pytest.raises(DataError, match="unknown tile 'x'"):
        result.image("x")


@pytest.fixture(scope="module")
def run(
    world: dict, shared_output: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple["clipit.api.configuration.Config", RunResult]:
    from clipit.config.load import merge, nested, validate_file

    keys = {"output": shared_output, "name": "python_api", "arm": "clip_it_all"}
    config = validate_file(merge(world, nested(keys)), "test")
    return config, clipit.train(config)


@pytest.mark.slow
def test_run_result_has_scores_predictions_and_classifier(run: tuple) -> None:
    _, result = run
    assert result.page.is_file() and result.summary.is_file()
    scores = result.scores.set_index(["split", "output", "metric"])
    saved = result.results["splits"]["test"]["metrics"]["accuracy"]
    assert scores.loc[("test", "classifier", "accuracy"), "value"] == saved["value"]
    assert {output for _, output, _ in scores.index} == {"classifier", "zero_shot"}
    test = result.predictions.query("split == 'test'")
    assert len(test) == 24 and (test["predicted"] == test["label"]).mean() == saved["value"]
    assert np.allclose(test.filter(regex="^p_").sum(axis=1), 1, atol=1e-3)
    assert result.history["step"].max() == 8
    classifier = result.load_classifier("cpu")
    assert {f"p_{name}" for name in classifier.classes} == {*test.filter(regex="^p_").columns}


@pytest.mark.slow
def test_command_prints_the_paths_of_the_result(
    run: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    _, result = run
    monkeypatch.setattr(sys, "argv", ["clipit train", "--config", str(result.folder / "config.yaml")])
    train_command()
    printed = capsys.readouterr().out
    assert f"classifier: {result.classifier}" in printed and f"page: {result.page}" in printed
    result.page.rename(result.folder / "kept.html")
    train_command()
    assert "page: not written; clipit pages writes it" in capsys.readouterr().out
    (result.folder / "kept.html").rename(result.page)


@pytest.mark.slow
def test_run_is_re_evaluated_on_other_splits(run: tuple) -> None:
    config, result = run
    re_evaluated = clipit.evaluate(clipit.load_config(config, {"evaluation.splits": ["train", "test"]}))
    assert re_evaluated == result and set(re_evaluated.predictions["split"]) == {"train", "test"}
    assert set(re_evaluated.scores["split"]) == {"train", "test"}


def test_messages_are_printed_unless_the_caller_configures_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    package = logging.getLogger("clipit")
    monkeypatch.setattr(package, "handlers", [])
    monkeypatch.setattr(package, "level", logging.NOTSET)
    show_messages()
    assert not package.handlers, "pytest has configured logging"
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    show_messages()
    show_messages()
    assert len(package.handlers) == 1 and package.level == logging.INFO
    monkeypatch.setattr(package, "handlers", [])
    package.setLevel(logging.WARNING)
    show_messages()
    assert not package.handlers, "the caller has set a level"


def test_user_error_has_at_most_one_chained_cause() -> None:
    def fail(last: type[Exception]) -> None:
        try:
            try:
                {}["key"]
            except KeyError as inner:
                raise ValueError("second") from inner
        except ValueError:
            try:
                raise last("third")
            except last as third:
                raise DataError("the file is damaged", fix="copy it again") from third

    for last, causes in ((OSError, 1), (ConfigError, 0)):
        with pytest.raises(DataError) as raised:
            public(fail)(last)
        text = "".join(traceback.format_exception(raised.value))
        assert text.count("Traceback (most recent call last)") == 1 + causes
        assert "second" not in text and ("Error: third" in text) == bool(causes)
