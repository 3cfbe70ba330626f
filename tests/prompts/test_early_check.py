"""Prompt files with invalid keys are rejected before any slow import."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from clipit.config.file import ConfigFile
from clipit.errors import DataError
from clipit.prompts.early_check import check_prompt_files

RUN = {"tiles": {"source": "table", "path": "tiles.csv"}, "reports": {"path": "reports.txt"}}
SWEEP = """
program: scripts/sweep.py
method: grid
parameters:
  lora.rank: {values: [4, 8]}
command: [python, "${program}", --trial, --config=own_table, "${args}"]
"""


@pytest.fixture
def invalid_prompts(tmp_path: Path) -> Path:
    """Prompt file with a misspelt key."""
    path = tmp_path / "wrong.yaml"
    path.write_text("name: a\nversion: 1\ntemplets: ['{}.']\nclasses: {x: [x], y: [y]}\n", encoding="utf-8")
    return path


CONFIG = ["--config=own_table", "--tiles.path=tiles.csv", "--reports.path=reports.txt"]
COMMANDS: "dict[str, tuple[list[str], str]]" = {  # arguments, first slow module that the command imports
    "train": (CONFIG, "clipit.api.runs"),
    "evaluate": (CONFIG, "clipit.api.runs"),
    "evaluate --run": (["--run=outputs/runs/a"], "clipit.runs.evaluate"),
    "compare": (CONFIG, "clipit.comparison.export_tables"),
    "tune": (CONFIG, "clipit.comparison.tune"),
    "adapt": (CONFIG, "clipit.api.vlm_adaptation"),
    "mil": (CONFIG, "clipit.api.mil"),
    "robustness": ([*CONFIG, "--run=outputs/runs/a"], "clipit.studies.robustness.robustness_study"),
    "label-issues": (CONFIG, "clipit.api.labels"),
    "pair": (CONFIG, "clipit.api.texts"),
    "index": (CONFIG, "clipit.api.texts"),
    "probe": (CONFIG, "clipit.api.experiments"),
    "segment": (CONFIG, "clipit.api.segmentation"),
    "prompts study": (CONFIG, "clipit.studies.prompt_wording.prompt_study"),
    "predict": (["classifier", "tile.png", "--out=p.csv"], "clipit.api.prediction"),
    "slides score": (["a.svs", "--out=o", "--vlm=plip"], "clipit.api.slides"),
    "slides map": (["a.svs", "--out=o", "--vlm=plip"], "clipit.api.slides"),
    "slides compare": (["a.svs", "--out=o", "--runs=r", "--reference=a", "--vlm=plip"], "clipit.api.slides"),
    "sweep": (["sweep.yaml", *CONFIG[1:]], "clipit.sweeps.run_sweep"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_validates_prompt_files_before_slow_imports(
    name: str,
    invalid_prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, slow = COMMANDS[name]
    command, *sub = name.split()
    (tmp_path / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, slow, None)  # importing it would fail
    options = [word for word in sub if not word.startswith("--")]
    monkeypatch.setattr(sys, "argv", ["clipit", *options, *arguments, f"--prompts={invalid_prompts}"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"clipit.cli.{command.replace('-', '_')}").main()
    assert stop.value.code == 2
    assert "templets: unknown key" in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists() and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"reports": {"path": "r.txt", "boilerplate_prompts": "WRONG"}},
        {"own_report": {"tissue_prompts": "WRONG"}},
        {"prompt_study": {"simple": "WRONG"}},
        {"segmentation": {"prompts": "WRONG"}},
        {"comparison": {"data_sets": {"a": {"prompts": "WRONG"}, "b": {}}}},
    ],
)
def test_the_file_of_every_prompt_key_is_validated(keys: "dict[str, Any]", invalid_prompts: Path) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return str(invalid_prompts) if value == "WRONG" else value

    with pytest.raises(DataError, match="templets: unknown key"):
        check_prompt_files(ConfigFile.model_validate(filled({**RUN, **keys})))
    check_prompt_files(ConfigFile.model_validate({**RUN, "prompts": "not/there.yaml"}))  # reported where it is used
