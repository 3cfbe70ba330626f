"""Tests that the files in configs/ are valid and state their command, requirements and expected results."""

import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from clipit.comparison.plan import Plan, plan_comparison
from clipit.comparison.published_scores import published_score
from clipit.config.command_line import read_file_command
from clipit.config.file import SECTIONS, ConfigFile
from clipit.models.backbone_specs import BACKBONES
from clipit.models.vlm_specs import VLMS
from clipit.prompts.prompt_set import load_prompt_bag, load_prompts
from clipit.sweeps.sweep_file import read_sweep
from clipit.sweeps.trials import plan_sweep
from clipit.tiles.datasets import DATASETS
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted(CONFIGS.glob("*.yaml"))
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
ACCELERATE = sorted((CONFIGS / "accelerate").glob("*.yaml"))
PAPER = ("pcam", "crc", "bach")
WITH_MODELS = [CONFIGS / f"{name}{kind}.yaml" for name in PAPER for kind in ("", "_open")]
OWN_DATA = ("--tiles.path=tiles.csv", "--reports.path=reports.txt")
ANNOTATED = ("--tiles.path=tiles.csv", "--tiles.annotations.path=annotations.csv")
MASKS = ("--tiles.path=glas.csv",)
REQUIRED_OPTIONS = {
    "own_table": OWN_DATA, "own_comparison": OWN_DATA, "own_reports": OWN_DATA, "own_annotators": ANNOTATED,
    "own_adaptation": OWN_DATA, "glas_masks": MASKS, "glas_captions": MASKS,
}  # fmt: skip


def read_config(path: Path) -> ConfigFile:
    return read_file_command("", SECTIONS, [f"--config={path}", *REQUIRED_OPTIONS.get(path.stem, ())])[0]


@cache
def plan_file(path: Path) -> tuple[ConfigFile, list[Plan]]:
    """Read a configuration and plan its comparison, cached over tests."""
    file = read_config(path)
    return file, plan_comparison(file.run, file.comparison)


def header_lines(path: Path) -> list[str]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return lines


def names(path: Path) -> str:
    return path.stem


def test_all_configurations_are_shipped() -> None:
    assert {path.stem for path in RUNS} >= {
        "demo", "own_table", "published_table", *PAPER, *(f"{name}_open" for name in PAPER),
    }  # fmt: skip
    assert {path.stem for path in SWEEPS} == {"lora_rank"}
    assert {path.stem for path in ACCELERATE} == {"one_gpu", "several_gpus", "several_nodes", "two_cpu_processes"}


@pytest.mark.parametrize("path", [*RUNS, *SWEEPS], ids=names)
def test_header_states_command_requirements_and_expected_results(path: Path) -> None:
    words = [line.split(" ", 1)[0] for line in header_lines(path)]
    assert {"command", "needs", "expected"} <= set(words)
    head = "\n".join(header_lines(path))
    assert path.relative_to(CONFIGS).with_suffix("").as_posix() in head or "make " in head
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 121


@pytest.mark.parametrize("path", RUNS, ids=names)
def test_all_runs_and_arms_are_valid(path: Path) -> None:
    file, plans = plan_file(path)  # validates each arm
    check_keys(resolve_arm(file.run))
    for setting in plans:
        for arm in setting.arms:
            resolved = resolve_arm(setting.run_config(arm, 0))
            assert resolved.arm == arm
            assert resolved.training.evaluate_every <= resolved.training.steps
            if resolved.prompts in DATASETS:
                assert load_prompts(resolved.prompts).classes


@pytest.mark.parametrize("path", WITH_MODELS, ids=names)
def test_configurations_of_published_data_sets(path: Path) -> None:
    file = read_config(path)
    config = file.run
    vlm, backbone = VLMS[config.vlm.name], BACKBONES[config.backbone.name]
    if path.stem.endswith("_open"):
        assert not vlm.gated and not backbone.gated
    else:
        assert (vlm.name, backbone.name) == ("conch", "uni")
    assert config.prompts is not None and config.reports is not None
    assert set(load_prompts(config.prompts).classes) == set(DATASETS[config.tiles.source].classes)
    for bag in (config.reports.morphology_prompts, config.reports.boilerplate_prompts):
        assert bag is not None and load_prompt_bag(bag).texts
    assert config.reports.format == "tcga" and config.reports.cancer_types is not None
    c = file.comparison
    assert set(c.arms) == {
        "image_only", "clip_it_paper", "clip_it_all", "word_drop", "clip_it_paper_frozen", "late_fusion_without_text",
        "shuffled_pairs", "random_text", "image_embedding",
    }  # fmt: skip
    assert len(c.seeds) == 5 and config.training.learning_rate in c.learning_rates and config.training.steps in c.steps
    head = "\n".join(header_lines(path))
    assert f"clipit download {config.tiles.source} --to {config.tiles.path}" in head
    for page in {vlm.source, backbone.source}:
        assert page in head
    runs = len(c.arms) * len(c.seeds)
    search = len(c.arms) * len(c.learning_rates) * len(c.steps) * len(c.tuning_seeds)
    assert f"{runs} runs" in head and f"{search} runs" in head and f"{config.training.steps:,} steps" in head


def test_report_organs_are_those_of_tcga() -> None:
    from clipit.reports.barcodes import ORGANS

    for path in RUNS:
        for setting in plan_file(path)[1]:
            reports = setting.config.reports
            if reports is not None and reports.format == "tcga":
                assert reports.organs and set(reports.organs) <= set(ORGANS.values())


def test_word_drop_arm_follows_the_recipe_of_the_paper() -> None:
    config = read_config(CONFIGS / "pcam.yaml").run
    resolved = resolve_arm(config.model_copy(update={"arm": "word_drop"}))
    assert resolved.student.warm_start and resolved.distillation.word_drop == 0.3


def test_published_table_has_a_published_score_for_each_cell() -> None:
    _, settings = plan_file(CONFIGS / "published_table.yaml")
    assert len(settings) == 18
    head = "\n".join(header_lines(CONFIGS / "published_table.yaml"))
    for setting in settings:
        for arm in setting.arms:
            figure = published_score(setting.config.tiles.source, setting.backbone, arm)
            assert figure and figure in head, (setting.data_set, setting.backbone, arm)
        assert setting.config.prompts is not None
        assert set(load_prompts(setting.config.prompts).classes) == set(DATASETS[setting.config.tiles.source].classes)


@pytest.mark.parametrize("path", ACCELERATE, ids=names)
def test_accelerate_can_read_its_configurations(path: Path) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision == "no", "the precision must be set by the run"
    assert (str(config.distributed_type).endswith("NO")) == (config.num_processes == 1)
    assert config.num_processes % config.num_machines == 0
    head = "\n".join(header_lines(path))
    assert f"configs/accelerate/{path.name}" in head and "command" in head and "needs" in head


# Sweeps -----------------------------------------------------------------------------------------------------------

WANDB_KEYS = {
    "apiVersion", "kind", "controller", "description", "program", "job", "image_uri", "entity", "project", "method",
    "command", "name", "run_cap", "metric", "metrics", "scheduler", "early_terminate", "parameters",
}  # fmt: skip
"""Top-level keys that wandb's schema of sweep files allows (package sweeps 0.3.0)."""


def read_values(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize("path", SWEEPS, ids=names)
def test_sweep_files_follow_the_format_of_wandb(path: Path) -> None:
    values = read_values(path)
    assert set(values) <= WANDB_KEYS and values["method"] in ("grid", "random", "bayes")
    assert all(isinstance(part, str) for part in values["command"])
    assert all(set(entry) <= {"values", "value"} for entry in values["parameters"].values())
    launched = ["accelerate", "launch", "-m", "${program}", "sweep", f"sweeps/{path.stem}"]
    assert values["program"] == "clipit" and values["command"][1:7] == launched


@pytest.mark.parametrize("path", SWEEPS, ids=names)
def test_sweep_files_satisfy_the_schema_of_wandb(path: Path) -> None:
    sweeps = pytest.importorskip("sweeps.config", reason="wandb's package sweeps, its validator, is not installed")
    assert sweeps.schema_violations_from_proposed_config(read_values(path)) == []


@pytest.mark.parametrize("path", SWEEPS, ids=names)
def test_wandb_command_gives_the_same_trial(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    from clipit.sweeps.sweep_file import parse_options
    from clipit.sweeps.trials import make_trial

    monkeypatch.chdir(CONFIGS.parent)
    sweep, values = read_sweep(path), read_values(path)
    for trial in plan_sweep(sweep, {}).trials[:4]:
        arguments = {"args": {key: {"value": value} for key, value in trial.values.items()}}
        flags = utils.create_sweep_command_args(arguments)["args"]
        command = [part for part in values["command"] if part.startswith("--") and part != "--trial"]
        config = make_trial(sweep, parse_options([*command, *flags])).config
        assert config.tracking.tracker == "wandb"
        assert config.name == trial.config.name and config.lora == trial.config.lora
        assert config.seed == trial.config.seed and config.arm == trial.config.arm


def test_accelerate_launcher_is_installed() -> None:
    assert shutil.which("accelerate", path=str(Path(sys.executable).parent)), (
        "sweep commands need the accelerate launcher"
    )


TEMPLATES = ("own_table", "own_comparison", "own_reports", "own_adaptation")
"""Configurations for users' own reports, which keep the default text checks and filters."""


@pytest.mark.parametrize("path", [path for path in RUNS if path.stem not in TEMPLATES], ids=names)
def test_configurations_with_published_results_disable_text_checks(path: Path) -> None:
    reports = read_values(path).get("reports")
    if reports is not None:
        assert reports["text_checks"] is None and "morphology_prompts" in reports


def test_recorded_results_name_the_data_sets_of_their_configuration() -> None:
    compared = 0
    for path in RUNS:
        record = CONFIGS.parent / "results" / f"{path.stem}.csv"
        names = set(read_config(path).comparison.data_sets)
        if names and record.is_file():
            compared += 1
            assert set(pd.read_csv(record, usecols=["data_set"]).data_set) == names, path.stem
    assert compared > 5
