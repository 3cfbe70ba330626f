"""All of it: this machine, its packages, the hub, and one configuration or all that are shipped."""

from pathlib import Path

from clipit.config import Config
from clipit.doctor.configs import SHIPPED, examine, shipped_configs, survey
from clipit.doctor.findings import Finding, Section
from clipit.doctor.hub import Hub, hub_findings
from clipit.doctor.machine import machine_findings
from clipit.doctor.packages import package_findings


def diagnose(config: Config | None = None, where: Path | None = None, hub: Hub | None = None) -> list[Section]:
    """Look at everything.

    Args:
        config: A run to come; None: every configuration shipped.
        where: Its file.
        hub: Whom to ask about access to models; None: the real one.
    """
    hub = hub or Hub()
    sections = [
        Section("This machine", machine_findings(config.output if config else Path("outputs"))),
        Section("Packages", package_findings()),
        Section("Hugging Face hub", hub_findings()),
    ]
    if config is not None:
        return [*sections, examine(config, hub, where or Path("(configuration)"))]
    files = shipped_configs()
    if not files:
        nothing = Finding("WARN", "configs", f"no configuration in {SHIPPED}", "run from a clone, or give --config")
        return [*sections, Section("Configurations", [nothing])]
    return [*sections, *(survey(_short(path), hub) for path in files)]


def _short(path: Path) -> Path:
    """Relative to the current folder where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
