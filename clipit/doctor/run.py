"""All of it: this machine, its packages, the hub, and one file or all configurations that are shipped."""

from collections.abc import Sequence
from pathlib import Path

from clipit.doctor.configs import SHIPPED, shipped_configs, survey
from clipit.doctor.files import file_section
from clipit.doctor.findings import Finding, Section
from clipit.doctor.hub import Hub, hub_findings
from clipit.doctor.machine import machine_findings
from clipit.doctor.packages import package_findings


def diagnose(file: Path | None = None, options: Sequence[str] = (), hub: Hub | None = None) -> list[Section]:
    """Look at everything.

    Args:
        file: Configuration of a run to come, a sweep, or Accelerate's file; None: every configuration shipped.
        options: Keys that go with it, as on a command line.
        hub: Whom to ask about access to models; None: the real one.

    Raises:
        ConfigError: The file cannot be read, or its keys are wrong.
    """
    hub, output = hub or Hub(), Path("outputs")
    if file is not None:
        section, output = file_section(file, options, hub)
        asked = [section]
    else:
        asked = [survey(_short(path), hub) for path in shipped_configs()]
    if not asked:
        nothing = Finding("WARN", "configs", f"no configuration in {SHIPPED}", "run from a clone, or give --config")
        asked = [Section("Configurations", [nothing])]
    return [
        Section("This machine", machine_findings(output)),
        Section("Packages", package_findings()),
        Section("Hugging Face hub", hub_findings(hub)),  # last, for it knows whether the hub answered
        *asked,
    ]


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
