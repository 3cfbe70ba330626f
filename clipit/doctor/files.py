"""One file that somebody is about to use: a run's configuration, a sweep, or Accelerate's own."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipit.config.load import read_yaml
from clipit.doctor.configs import awaited_findings, examine, read_with_gaps, run_findings
from clipit.doctor.findings import Finding, Section, from_error
from clipit.doctor.heads import command_of, head_entry
from clipit.doctor.hub import Hub
from clipit.doctor.machine import gpu_count, launch_finding
from clipit.errors import ClipitError

_NAMED = re.compile(r"(?<![^\s=])(?:[\w.-]+/)*[\w.-]+\.(?:py|yaml)(?!\S)")


def file_section(path: Path, options: Sequence[str], hub: Hub) -> tuple[Section, Path]:
    """Everything about one file, and where its runs would be written.

    Args:
        path: YAML file.
        options: Keys of the configuration as on a command line (`--lora.rank=8`).
        hub: Whom to ask about models.

    Raises:
        ConfigError: The file cannot be read, or keys of a run's configuration are wrong.
    """
    values = read_yaml(path)
    if "parameters" in values and "method" in values:
        return _sweep(path, options, hub)
    if "distributed_type" in values or "compute_environment" in values:
        return Section(str(path), [*_accelerate(path, values), *_named_files(path)]), Path("outputs")
    config, absent = read_with_gaps(path, options)
    return examine(config, hub, path, absent), config.output


def _sweep(path: Path, options: Sequence[str], hub: Hub) -> tuple[Section, Path]:
    from clipit.sweeps.file import options_of, read_sweep
    from clipit.sweeps.trials import trials

    try:
        sweep = read_sweep(path)
        given = options_of(options)
        base = Path(given.get("config", sweep.options["config"]))
        findings = [_there("program", Path(sweep.program)), _there("config", base)]
        if not base.is_file():
            return Section(str(path), findings), Path("outputs")
        found = trials(sweep, given)
    except ClipitError as error:
        return Section(str(path), [from_error("sweep", error)]), Path("outputs")
    config = found[0].config
    findings.append(Finding("PASS", "sweep", f"{len(found)} trials of {', '.join(p.key for p in sweep.parameters)}"))
    # The sweep writes no data, whatever the command of its configuration does.
    ready = [finding for finding in run_findings(config, hub, base) if finding.what != "data"]
    missing = awaited_findings([config], command_of(base), itself=False)
    return Section(str(path), [*findings, *ready, *missing]), config.output


def _accelerate(path: Path, values: dict[str, Any]) -> list[Finding]:
    kind, count = str(values.get("distributed_type", "NO")), values.get("num_processes") or 1
    if not isinstance(count, int):
        return [Finding("FAIL", "accelerate", f"{path}: num_processes is {count!r}", "give a whole number")]
    if (values.get("num_machines") or 1) > 1:
        what = f"{path}: {count} processes on {values['num_machines']} machines; only this one is looked at"
        return [Finding("PASS", "accelerate", what)]
    by_variable = "ACCELERATE_USE_CPU=1" in command_of(path)
    if by_variable:
        return [Finding("PASS", "accelerate", f"{path}: {count} processes on CPUs, by {command_of(path)}")]
    said = {"kind": kind, "count": count, "cpu": bool(values.get("use_cpu")), "path": path}
    return [launch_finding(said, gpu_count())]


def _named_files(path: Path) -> list[Finding]:
    """Programs and configurations that the command at the head of the file names."""
    return [_there("command", Path(name)) for name in dict.fromkeys(_NAMED.findall(head_entry(path, "command")))]


def _there(what: str, path: Path) -> Finding:
    if path.is_file():
        return Finding("PASS", what, str(path))
    return Finding(
        "FAIL", what, f"{path} is not there", f"correct its name, or start in the folder above it ({Path.cwd()})"
    )
