"""Check a configuration: its keys, data, models and GPU, for all data sets and backbones of a comparison."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipit.config.command_line import read_file_command
from clipit.config.file import SECTIONS, ConfigFile
from clipit.config.load import key_of, read_yaml
from clipit.config.run import RunConfig, TilesConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.doctor.check_results import Check, failed_check
from clipit.doctor.data_checks import (
    check_kept_size,
    check_own_reports,
    check_prompts,
    check_reports,
    check_tiles,
    is_unwritten,
    unwritten_paths,
)
from clipit.doctor.model_checks import AskHub, check_backbone, check_vlm
from clipit.errors import ClipitError, shortlist
from clipit.models.licences import vlm_licence
from clipit.output_files.artifacts import fingerprint
from clipit.studies.adapted_vlms.additional_sets import read_additional_sets
from clipit.workspace.tile_reading import artefacts_of

_PLACEHOLDER = "(not set)"
_ENTRY = re.compile(r"#\s?(?P<word>[a-z]+)\s{2,}(?P<text>\S.*)")
_CONTINUATION = re.compile(r"#\s{3,}(?P<text>\S.*)")


def check_shipped_config(path: Path, ask: AskHub) -> list[Check]:
    """Check a shipped configuration; missing data and models are only warnings, since few users need all of them."""
    try:
        checks = check_config(*read_incomplete(path, []), path, ask)
    except ClipitError as error:
        return [failed_check("keys", error)]
    problems = [replace(check, status="WARN") for check in checks if check.status != "PASS"]
    return problems or [Check("PASS", "ready", "models and data are available")]


def read_incomplete(path: Path, options: Sequence[str]) -> tuple[ConfigFile, list[str]]:
    """Read a configuration with its command line; missing required keys get a placeholder.

    Returns:
        The configuration and its missing keys.

    Raises:
        ConfigError: The configuration has any other error.
    """
    stated = {option.removeprefix("--").partition("=")[0] for option in options}
    missing = [key for key in missing_keys(read_yaml(path)) if key not in stated]
    placeholders = [f"--{key}={_PLACEHOLDER}" for key in missing]
    return read_file_command("", SECTIONS, ["--config", str(path), *options, *placeholders])[0], missing


def missing_keys(values: Any) -> list[str]:
    """List the required keys that a file leaves to the command line."""
    try:
        ConfigFile.model_validate(values)
    except ValidationError as error:
        return [key_of(item["loc"]) for item in error.errors() if item["type"] == "missing"]
    return []


def check_config(file: ConfigFile, missing: Sequence[str], path: Path, ask: AskHub) -> list[Check]:
    """Check a configuration, and each data set and backbone of its comparison; duplicate results are dropped.

    Args:
        missing: Required keys with placeholders, whose data are not checked.
        path: Configuration file, whose header comment states the command and its requirements.
        ask: Function that returns whether a Hub repository can be downloaded.

    Raises:
        ConfigError: The comparison's data sets and backbones are incompatible with its arms.
    """
    config, comparison = file.run, file.comparison
    plans = [config]
    if not missing and (comparison.data_sets or comparison.backbones):
        from clipit.comparison.plan import plan_comparison

        plans = [plan.config for plan in plan_comparison(config, comparison)]
    pending: dict[str, Callable[[], list[Check]]] = {}
    for plan in plans:
        for key, run in _pending_checks(plan, ask, comparison.shifted, missing):
            pending.setdefault(key, run)
        if not missing and not unwritten_paths(plan, {}):
            arms = comparison.arms if "comparison" in file.model_fields_set else [plan.arm]
            key = f"own reports {plan.tiles!r} {plan.reports!r}"
            pending.setdefault(key, partial(check_own_reports, plan, arms))
    checks = [check for run in pending.values() for check in run()]
    if missing:
        options = " ".join(f"--{key}=..." for key in missing)
        message = f"Required keys are not set: {', '.join(missing)}."
        checks.append(Check("WARN", "keys", message, f"set them in {path.name}, or pass {options}"))
    else:
        checks += check_unwritten(plans, comparison.shifted, command_of(path))
        checks += check_adaptation(config, file.adapt)
    checks += check_index(config)
    checks += check_gpu(config, head_entry(path, "needs"))
    return list(dict.fromkeys(checks))  # two data sets may lack the same file


def _pending_checks(
    config: RunConfig, ask: AskHub, shifted: Mapping[str, TilesConfig], missing: Sequence[str]
) -> Iterator[tuple[str, Callable[[], list[Check]]]]:
    """Yield the checks of models and existing data, each with a key that identifies the model or data."""
    for subject, vlm in (("VLM", config.vlm), ("second VLM", config.second_vlm)):
        if vlm is not None and not is_unwritten(vlm.name):
            yield f"{subject} {vlm!r}", partial(check_vlm, subject, vlm, ask)
    if not is_unwritten(config.backbone.name):
        yield f"backbone {config.backbone!r}", partial(check_backbone, config.backbone, ask)
    sets = {f"shifted tiles {name}": tiles for name, tiles in shifted.items()}
    for subject, tiles in {"tiles": config.tiles, **sets}.items():
        if not is_unwritten(tiles.path) and tiles.path != _PLACEHOLDER:
            key = fingerprint(tiles.model_dump(mode="json", exclude={"labels"}))
            yield f"{subject} {key}", partial(check_tiles, subject, tiles, artefacts_of(config))
            if tiles.streaming:
                yield f"kept size {key}", partial(check_kept_size, subject, tiles, config)
    if config.reports is not None and not is_unwritten(config.reports.path) and "reports.path" not in missing:
        yield f"reports {config.reports!r}", partial(check_reports, config)
    yield f"prompts {config.prompts} {config.reports!r}", partial(check_prompts, config)


def check_unwritten(configs: Sequence[RunConfig], shifted: Mapping[str, TilesConfig], command: str) -> list[Check]:
    """Report missing inputs below outputs/, which other commands write.

    Args:
        command: Command in the header comment, which may write the inputs itself; "" if there is none.
    """
    paths = list(dict.fromkeys(path for config in configs for path in unwritten_paths(config, shifted)))
    if not paths:
        return []
    if command.startswith("make ") or "clipit demo" in command:  # these write their synthetic worlds themselves
        return [Check("PASS", "data", f"synthetic, written by the command itself: {command}")]
    fix = f"run first: {command}" if command else "run the command that writes them first, or correct these paths"
    return [Check("FAIL", "data", f"These inputs have not been written yet: {shortlist(paths, 3)}.", fix)]


def check_index(config: RunConfig) -> list[Check]:
    """Check that faiss is installed for an approximate index."""
    from clipit.stores.index import has_faiss

    key = config.pairing.index
    if config.reports is None or key == "Flat":
        return []
    if not has_faiss():
        fix = "install faiss-cpu, or set --pairing.index=Flat"
        return [Check("FAIL", "index", f"pairing.index {key} needs faiss, which is not installed.", fix)]
    message = f"pairing.index {key} is approximate; its recall is measured for every pairing. "
    return [Check("PASS", "index", f"{message}Flat is exact, and recommended for up to ten million snippets.")]


def check_gpu(config: RunConfig, needs: str) -> list[Check]:
    """Warn if no GPU is available, but the precision or the entry `needs` in the header comment requires one."""
    import torch

    precision = config.training.precision
    if torch.cuda.is_available():
        if precision == "bf16" and torch.cuda.get_device_properties(0).major < 8:
            message = "This GPU only emulates bf16 (training.precision), which is slow."
            return [Check("WARN", "precision", message, "set --training.precision=fp16 or no")]
        return []
    if precision not in ("no", "auto"):
        message = f"No GPU is available for training.precision {precision}."
        fix = "use a machine with a GPU, or set --training.precision=no and expect training to take hours or days"
        return [Check("WARN", "precision", message, fix)]
    if "a GPU" in needs:
        return [
            Check(
                "WARN",
                "GPU",
                f"No GPU is available, but the configuration needs {needs}.",
                "use a machine with a GPU, or expect training to take hours",
            )
        ]
    return []


def head_entry(path: Path, word: str) -> str:
    """Return the text of an entry in a file's header comment (`# needs     2 cores ...`); "" if there is none."""
    return " ".join(_head_lines(path, word))


def command_of(path: Path) -> str:
    """Return the command in a file's header comment, on one line; "" if there is none."""
    parts: list[str] = []
    for line in _head_lines(path, "command"):
        parts.append(line.removesuffix("\\").strip())
        if not line.endswith("\\"):
            break
    return " ".join(parts)


def _head_lines(path: Path, word: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    lines: list[str] = []
    for line in text.splitlines():
        entry, continuation = _ENTRY.fullmatch(line), _CONTINUATION.fullmatch(line)
        if not line.startswith("#") or (lines and (entry or not continuation)):
            break
        if entry and entry["word"] == word:
            lines.append(entry["text"])
        elif lines and continuation:
            lines.append(continuation["text"])
    return lines


_SUBJECT = "adaptation"


def check_adaptation(config: RunConfig, section: AdaptConfig) -> list[Check]:
    """Check that the training texts and the sets of `adapt.forgetting` exist, unless all keys have their defaults.

    Args:
        section: Section `adapt`.
    """
    if section == AdaptConfig():
        return []
    checks = _check_texts(config, section)
    try:
        read_additional_sets(config, section)
    except ClipitError as error:
        checks.append(failed_check(_SUBJECT, error))
    licence = vlm_licence(config.vlm.name)
    if licence.forbids_derivatives:
        message = (
            f"The licence of {licence.model} ({licence.licence}) forbids derivatives, so only an adapter is written."
        )
        checks.append(
            Check("WARN", _SUBJECT, message, "use it with vlm.adapter, and do not share it without permission")
        )
    return checks or [Check("PASS", _SUBJECT, f"{section.data}, arms {', '.join(section.arms)}")]


def _check_texts(config: RunConfig, section: AdaptConfig) -> list[Check]:
    path = section.pairs.path
    if section.data == "pairs":
        plain = path is not None and not any(sign in path for sign in "*?{[") and not is_unwritten(path)
        if plain and path is not None and not Path(path).expanduser().exists():
            return [Check("FAIL", _SUBJECT, f"adapt.pairs.path {path} does not exist.", "correct adapt.pairs.path")]
        return []
    if config.reports is None and section.needs_reports:
        message = f"adapt.data: {section.data} needs reports, but none are configured."
        return [Check("FAIL", _SUBJECT, message, "set reports.path, or use adapt.data: pairs")]
    if section.data == "cases" and config.reports is not None and config.reports.group_column is None:
        message = "adapt.data: cases needs the patient of each report."
        return [Check("WARN", _SUBJECT, message, "set reports.group_column, unless the reports have TCGA barcodes")]
    return []
