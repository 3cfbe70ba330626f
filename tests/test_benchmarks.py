"""Tests of the benchmarks' execution and reports; speed depends on the machine and is not tested."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from launching import run_program

from benchmarks.__main__ import BENCHMARKS, GPU, main
from benchmarks.harness import Measurement, Options, alternate, ratios, table


def test_alternate_interleaves_both_sides_and_drops_the_first_round(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    samples = alternate({"a": lambda: work("a"), "b": lambda: work("b")}, Options(tmp_path, quick=False, repeats=2))

    assert calls == ["a", "b"] * 3
    assert samples == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert ratios(samples, "a", "b") == [3 / 4, 5 / 6]


def test_goals_are_compared_with_the_median() -> None:
    values = [0.5, 1.0, 9.0]
    assert Measurement("x", "y", values, goal=1.0).met is True
    assert Measurement("x", "y", values, goal=0.9).met is False
    assert Measurement("x", "y", values, goal=1.0, at_least=True).met is True
    assert Measurement("x", "y", values, goal=1.1, at_least=True).met is False
    assert Measurement("x", "y", values).met is None
    assert Measurement("x", "y", values).as_dict()["max"] == 9.0


def test_table_marks_missed_goals_except_with_quick_sizes() -> None:
    figures = [Measurement("x", "slow", [2.0], goal=1.0), Measurement("x", "fast", [0.5], goal=1.0)]
    assert [line.split()[-1] for line in table(figures, quick=False).splitlines()[1:]] == ["MISSED", "met"]
    assert "MISSED" not in table(figures, quick=True)


def test_unknown_benchmark_raises_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["embeding"])
    assert raised.value.code == 2
    assert "unknown benchmark embeding: choose from embedding" in capsys.readouterr().err


def test_gpu_benchmarks_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--gpu"])
    assert "there is no GPU that torch can use" in capsys.readouterr().err


def test_failing_script_raises_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import start_up
    from clipit.errors import LaunchError

    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "broken.py").write_text("raise SystemExit('out of order')")
    monkeypatch.setattr(start_up, "__file__", str(tmp_path / "benchmarks" / "start_up.py"))
    with pytest.raises(LaunchError, match=r"broken\.py --help(.|\n)*out of order"):
        start_up.measure(Options(tmp_path, quick=True, repeats=1))


def run_forked(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
    """Run the command in a forked process, which starts quickly but already uses much memory."""
    return run_program(*command[1:])


@pytest.mark.slow
def test_quick_benchmarks_run_and_both_sides_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("benchmarks.harness.subprocess", SimpleNamespace(run=run_forked))
    file = tmp_path / "benchmarks.json"
    main(["--quick", "--json", str(file)])

    results = json.loads(file.read_text(encoding="utf-8"))
    figures = {figure["benchmark"]: figure for figure in results["figures"]}
    assert set(figures) == set(BENCHMARKS)
    assert all(value > 0 for figure in results["figures"] for value in figure["values"])
    assert {"cores", "torch_threads", "faiss_threads", "device", "versions"} <= set(results["machine"])
    assert "OPENBLAS_CORETYPE" in results["machine"]["settings"]
    assert figures["embedding"]["facts"]["lowest_cosine_between_both"] > 0.999
    timed = next(figure for figure in results["figures"] if "same_rows_as_torch" in figure["facts"])
    assert timed["facts"]["same_rows_as_torch"] > 0.99
    assert figures["classifier"]["facts"]["largest_difference_of_logits"] < 1e-4
    assert figures["prediction"]["facts"]["largest_probability_difference"] < 1e-5
    assert figures["slide_geojson"]["facts"]["same_features"] is True
    assert figures["slide_tiles"]["facts"]["largest_difference_to_openslide"] <= 1
    assert figures["slide_tissue"]["facts"]["tiles"] > 0
    assert list(figures["slide_memory"]["samples"]) == ["16 tiles", "64 tiles"]
    assert "say nothing about speed" in capsys.readouterr().out


@pytest.mark.slow
def test_gpu_benchmarks_stop_at_the_time_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.__main__._GPU_SECONDS", -1)
    main(["--gpu", "--quick", "--json", str(tmp_path / "gpu.json")])
    assert f"out of time: {', '.join(GPU)} not measured" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", [*GPU, "classifier"])
def test_gpu_variant_runs_on_a_cpu_with_quick_sizes(tmp_path: Path, name: str) -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # other tests of this process may have trained with a different precision
    figures = BENCHMARKS[name](Options(tmp_path, quick=True, repeats=1, gpu=True))
    AcceleratorState._reset_state()
    assert figures and all(value > 0 for figure in figures for value in figure.values)
