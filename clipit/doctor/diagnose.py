"""Run all checks: the machine, its packages, the hub, and one configuration or every shipped one."""

from collections.abc import Sequence
from pathlib import Path

from clipit.config.load import read_yaml
from clipit.config.shipped import shipped_configs
from clipit.doctor.checks import CheckGroup
from clipit.doctor.configs import check_config, check_shipped_configs, read_incomplete
from clipit.doctor.machine import check_machine
from clipit.doctor.models import ask_hub, check_hub
from clipit.doctor.packages import check_packages
from clipit.errors import ConfigError


def diagnose(path: Path | None = None, options: Sequence[str] = ()) -> list[CheckGroup]:
    """Run all checks.

    Args:
        path: Configuration file of a run or comparison; None: every shipped configuration.
        options: Overrides, as on a command line (`--lora.rank=8`).

    Raises:
        ConfigError: The file cannot be read, is not a run configuration, or has invalid keys.
    """
    if path is None:
        output, group = Path("outputs"), check_shipped_configs(shipped_configs(), ask_hub)
    else:
        if {"method", "distributed_type"} & set(read_yaml(path)):
            fix = "use the configuration that the command at its head names"
            raise ConfigError("a file of a sweep or of Accelerate, not of a run", where=path, fix=fix)
        file, missing = read_incomplete(path, options)
        output, group = file.run.output, CheckGroup(str(path), check_config(file, missing, path, ask_hub))
    return [
        CheckGroup("This machine", check_machine(output)),
        CheckGroup("Packages", check_packages()),
        CheckGroup("Hugging Face hub", check_hub()),
        group,
    ]
