"""Run all checks: of the machine and its packages first, then of configurations."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipit.config.shipped import run_configs
from clipit.doctor.check_results import Check, failed_check, merge_checks
from clipit.doctor.machine import check_machine, check_requirements, check_torch
from clipit.errors import ConfigError


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
    from clipit.doctor.configs import check_config, read_incomplete  # imports torch

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
    return {**_configurations(path, checks), "This machine": [*packages, *check_machine(output)]}


def _configurations(path: Path | None, checks: Mapping[str, list[Check]]) -> dict[str, list[Check]]:
    if path is not None:
        return {str(path): checks[path.name]}
    names = ", ".join(checks) or "none found; clipit init own_table > config.yaml writes one"
    return {"Configurations in this folder": [Check("PASS", "configurations", names), *merge_checks(checks)]}
