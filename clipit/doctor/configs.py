"""Check a configuration: its keys, data, models and memory, for all arms, data sets and backbones of a comparison."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from clipit.comparison.judged_arms import check_controls
from clipit.comparison.own_report_arms import resolve_plan_arm
from clipit.comparison.plan import plan_comparison
from clipit.config.command_line import read_file_command
from clipit.config.effects import select_keys
from clipit.config.file import SECTIONS, ConfigFile
from clipit.config.load import key_of, read_yaml
from clipit.config.run import RunConfig, TilesConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.doctor.check_results import Check, record_error
from clipit.doctor.data_checks import (
    OWN_REPORTS,
    check_own_reports,
    check_prompts,
    check_reports,
    check_tiles,
    is_missing,
    is_unwritten,
)
from clipit.doctor.model_checks import check_backbone, check_memory, check_vlm
from clipit.errors import ConfigError, shortlist
from clipit.models.precision import mixed_precision
from clipit.models.vlm_export import check_adaptable
from clipit.stores.index import choose_backend
from clipit.studies.adapted_vlms.additional_sets import read_additional_sets
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys
from clipit.training.terms.term_table import uses_own_report_labels
from clipit.workspace.workspace import Workspace

_PLACEHOLDER = "outputs/(not set)"  # not read, like an input that another command has yet to write


def read_incomplete(path: Path, options: Sequence[str]) -> tuple[ConfigFile, list[str]]:
    """Read a configuration with its command line; missing required keys get a placeholder.

    Returns:
        The configuration and its missing keys.

    Raises:
        ConfigError: The configuration has any other error, or is not that of a run.
    """
    values = read_yaml(path)
    if {"method", "distributed_type"} & set(values):
        fix = "use the configuration named in the command at the top of the file"
        raise ConfigError("this file configures a sweep or Accelerate, not a run", where=path, fix=fix)
    stated = {option.removeprefix("--").partition("=")[0] for option in options}
    missing = [key for key in missing_keys(values) if key not in stated]
    placeholders = [f"--{key}={_PLACEHOLDER}" for key in missing]
    return read_file_command("", SECTIONS, ["--config", str(path), *options, *placeholders])[0], missing


def missing_keys(values: Any) -> list[str]:
    """List the required keys that a file leaves to the command line."""
    try:
        ConfigFile.model_validate(values)
    except ValidationError as error:
        return [key_of(item["loc"]) for item in error.errors() if item["type"] == "missing"]
    return []


def check_config(file: ConfigFile, missing: Sequence[str], path: Path) -> list[Check]:
    """Check a configuration, and each arm, data set and backbone of its comparison; equal results are listed once.

    Args:
        missing: Required keys that are not set.
        path: Configuration file.
    """
    checks: list[Check] = []
    configs: dict[str, RunConfig] = {}
    with record_error("keys", checks):
        configs = _resolved_configs(file, missing)
    runs = [*configs.values()] or [file.run]
    pending = {check[:2]: check for config in runs for check in _pending_checks(config, file.comparison.shifted)}
    for subject, _, check in pending.values():
        with record_error(subject, checks):
            checks += check()
    if missing:
        options = " ".join(f"--{key}=..." for key in missing)
        message = f"Required keys are not set: {', '.join(missing)}."
        checks.append(Check("WARN", "keys", message, f"set them in {path.name}, or pass {options}"))
    else:
        checks += check_unwritten(runs, file.comparison.shifted)
        checks += check_adaptation(file.run, file.adapt)
    checks += check_memory({name: c for name, c in configs.items() if not is_unwritten(c.backbone.name)})
    return list(dict.fromkeys(checks))  # two data sets may lack the same file


def _resolved_configs(file: ConfigFile, missing: Sequence[str]) -> dict[str, RunConfig]:
    """Map names to configurations: one per arm, data set and backbone of a comparison, or only that of a run.

    For `clipit adapt`, which trains no classifier, there are none.

    Raises:
        ConfigError: The keys of an arm contradict each other or do not apply to a data set, or a control reads reports.
    """
    if "adapt" in file.model_fields_set:
        return {}
    if missing or "comparison" not in file.model_fields_set:
        config = resolve_arm(file.run)
        check_keys(config)
        return {config.name: config}
    plans = plan_comparison(file.run, file.comparison)
    for plan in plans:
        check_controls({arm: resolve_plan_arm(plan, arm) for arm in plan.arms}, file.comparison, plan.config.arms)
    return {
        f"{arm} ({plan.data_set}, {plan.backbone})" if len(plans) > 1 else arm: resolve_plan_arm(plan, arm)
        for plan in plans
        for arm in plan.arms
    }


def _pending_checks(
    config: RunConfig, shifted: Mapping[str, TilesConfig]
) -> Iterator[tuple[str, str, Callable[[], list[Check]]]]:
    """Yield the checks of models and existing data, each with its subject and the values that it depends on."""
    for section, vlm in (("vlm", config.vlm), ("second_vlm", config.second_vlm)):
        if vlm is not None and not is_unwritten(vlm.name):
            yield section, repr(vlm), partial(check_vlm, section, vlm)
    if not is_unwritten(config.backbone.name):
        yield "backbone", repr(config.backbone), partial(check_backbone, config.backbone)
    for name, tiles in {"tiles": config.tiles, **{f"shifted tiles {name}": t for name, t in shifted.items()}}.items():
        if not is_unwritten(tiles.path):
            models = (config.vlm, config.second_vlm, config.backbone) if tiles.streaming else ()  # they set the size
            yield name, f"{tiles!r} {models!r}", partial(check_tiles, name, tiles, config)
    reports = config.reports
    if reports is not None and not is_unwritten(reports.path):
        yield "reports", repr(reports), partial(check_reports, reports)
    if uses_own_report_labels(config) or config.pairing.reports != "any":
        yield OWN_REPORTS, f"{config.tiles!r} {reports!r}", partial(check_own_reports, config)
    yield "prompts", f"{config.prompts} {config.own_report!r} {reports!r}", partial(check_prompts, config)
    yield "precision", config.training.precision, partial(check_precision, config)
    if reports is not None:
        yield "index", f"{config.pairing.index} {config.pairing.backend}", partial(check_index, config)


def check_index(config: RunConfig) -> list[Check]:
    """Check that a search library for the index is installed; raise an error otherwise."""
    choose_backend(config.pairing.index, config.pairing.backend)
    return []


def check_unwritten(configs: Sequence[RunConfig], shifted: Mapping[str, TilesConfig]) -> list[Check]:
    """Report missing inputs in outputs/, the folder to which other commands write them."""
    inputs = [select_keys(section, "results", "data") for section in (*configs, *shifted.values())]
    values = [value for keys in inputs for key, value in keys.items() if not key.endswith("slides.grids")]
    named = dict.fromkeys(re.findall(r'"(outputs/[^"]+)"', json.dumps(values, ensure_ascii=False)))
    paths = [path for path in named if is_unwritten(path)]
    if not paths:
        return []
    fix = "run the command that writes them first (see the top of the file), or correct these paths"
    return [Check("FAIL", "data", f"These inputs have not been written yet: {shortlist(paths, 3)}.", fix)]


def check_precision(config: RunConfig) -> list[Check]:
    """Warn if this machine has no GPU that supports `training.precision`."""
    precision = config.training.precision
    if precision in ("no", "auto"):
        return []
    if not torch.cuda.is_available():
        fix = "use a machine with a GPU, or set --training.precision=no and expect training to take hours or days"
        return [Check("WARN", "precision", f"No GPU is available for training.precision={precision}.", fix)]
    if precision == "bf16" and mixed_precision(torch.device("cuda")) == "no":
        message = "This GPU only emulates bf16 (training.precision), which is slow."
        return [Check("WARN", "precision", message, "set --training.precision=fp16 or no")]
    return []


def check_adaptation(config: RunConfig, section: AdaptConfig) -> list[Check]:
    """Check the data and the VLM of `clipit adapt`, unless all keys of the section `adapt` have their defaults."""
    if section == AdaptConfig():
        return []
    checks: list[Check] = []
    with record_error("adaptation", checks):
        check_adaptable(config.vlm, section.tuning)
    with record_error("adaptation", checks):
        read_additional_sets(config, section)
    with record_error("adaptation", checks):
        _ = section.needs_reports and Workspace(config).reports_config
    path = section.pairs.path
    if section.data == "pairs" and path is not None and is_missing(path) and not is_unwritten(path):
        message = f"adapt.pairs.path: {path} does not exist."
        checks.append(Check("FAIL", "adaptation", message, "correct adapt.pairs.path"))
    if section.data == "cases":
        with record_error(OWN_REPORTS, checks):
            checks += check_own_reports(config)
    return checks
