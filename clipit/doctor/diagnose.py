"""Run all checks: first of the installed packages, then of configurations and the machine."""

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from clipit.config.shipped import run_configs
from clipit.doctor.check_results import Check, failed_check, merge_checks
from clipit.errors import TORCH_FIX, ConfigError
from clipit.versions import DISTRIBUTION, installed


def diagnose(
    path: Path | None = None,
    options: Sequence[str] = (),
    *,
    announce: Callable[[str], None] = lambda subject: None,
) -> dict[str, list[Check]]:
    """Run all checks; without torch or a required package, nothing else is checked.

    Args:
        path: Configuration file of a run or comparison; None for all in the current folder.
        options: Overrides, as on a command line (`--lora.rank=8`).
        announce: Function that is called with the name of each check before it starts.

    Returns:
        Heading -> checks.

    Raises:
        ConfigError: The file cannot be read, is not a run configuration, or has invalid keys.
    """
    announce("torch and other packages")
    packages = [check_torch(), check_requirements()]
    if any(check.status == "FAIL" for check in packages):
        return {"This machine": packages}
    from clipit.doctor.configs import check_config, read_incomplete  # these import torch
    from clipit.doctor.machine import check_machine

    output, checks = Path("outputs"), {}
    for file in run_configs(Path()) if path is None else [path]:
        announce(f"{file}: its models, tiles, reports, prompts and memory")
        try:
            config, missing = read_incomplete(file, options)
            checks[file.name] = check_config(config, missing, file)
            output = config.run.output
        except ConfigError as error:
            if path is not None:
                raise
            checks[file.name] = [failed_check("keys", error)]
    announce("this machine")
    machine = {"This machine": [*packages, *check_machine(output)]}
    if path is not None:
        return {str(path): checks[path.name], **machine}
    names = ", ".join(checks) or "none found; clipit init own_table > config.yaml writes one"
    listed = Check("PASS", "configurations", names)
    return {"Configurations in this folder": [listed, *merge_checks(checks)], **machine}


def check_torch() -> Check:
    """Check that torch and torchvision can be imported."""
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:  # a RuntimeError if their builds do not match
        return Check("FAIL", "torch", f"torch and torchvision cannot be imported: {error}.", TORCH_FIX)
    return Check("PASS", "torch", f"{torch.__version__}, torchvision {torchvision.__version__}")


def check_requirements() -> Check:
    """Check that the packages required in pyproject.toml are installed and recent enough."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        message = f"{DISTRIBUTION} is not installed in {sys.prefix}, so its packages are not checked."
        return Check("WARN", "packages", message, "pip install the wheel of clipit (in a checkout: make -B env)")
    required = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"extra": ""})]
    versions = installed({requirement.name for requirement in required})
    unmet = [
        r for r in required if r.name not in versions or not r.specifier.contains(versions[r.name], prereleases=True)
    ]
    if unmet:
        listed = ", ".join(f"{r.name}{r.specifier} ({versions.get(r.name, 'absent')})" for r in unmet)
        requirements = " ".join(f"'{r.name}{r.specifier}'" for r in unmet)
        fix = f"pip install {requirements} (in a checkout: make -B env)"
        return Check("FAIL", "packages", f"Packages are missing or too old: {listed}.", fix)
    return Check("PASS", "packages", "all required packages are installed")
