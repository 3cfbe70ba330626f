"""What a configuration needs and lacks: its keys, data, models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from clipit.config import Config, TilesConfig
from clipit.doctor.findings import Finding, Section, from_error, softened
from clipit.doctor.hub import Hub
from clipit.doctor.models import model_findings
from clipit.errors import ClipitError
from clipit.settings import merge, nested, validate

SHIPPED = Path(__file__).parents[2] / "configs"
_DEMO = "scripts/demo.py"


def shipped_configs(folder: Path = SHIPPED) -> list[Path]:
    """The run configurations in a folder; sweeps and Accelerate's files, which have no `tiles`, are passed over."""
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            values = {"tiles": None}  # shown with its error
        if isinstance(values, dict) and "tiles" in values:
            found.append(path)
    return found


def survey(path: Path, hub: Hub) -> Section:
    """One shipped configuration: what stands between this machine and it; missing data or weights are no failure."""
    title, command = str(path), command_of(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        return Section(title, [Finding("FAIL", "file", f"not readable: {error}", "correct the file")])
    absent = missing_keys(values)
    filled = merge(values, nested(dict.fromkeys(absent, "(to be given)")))
    try:
        config = validate(filled, path)
    except ClipitError as error:
        return Section(title, [from_error("keys", error)])
    findings = [softened(finding) for finding in model_findings(config, hub)]
    if absent:
        options = " ".join(f"--{key}=..." for key in absent)
        findings.append(Finding("WARN", "keys", f"yours to give: {options}", f"the head of {path} says how"))
    else:
        findings += [softened(finding) for finding in data_findings(config, command)]
    open_points = [finding for finding in findings if finding.status != "PASS"]
    if not open_points:
        return Section(title, [Finding("PASS", "ready", command or "models and data are in place")])
    return Section(title, open_points)


def examine(config: Config, hub: Hub, where: Path) -> Section:
    """The configuration of a run to come: every finding; what is missing is a failure."""
    return Section(str(where), [*model_findings(config, hub), *data_findings(config, command_of(where))])


def missing_keys(values: Any) -> list[str]:
    """Required keys that a configuration leaves to the command line, dotted."""
    try:
        Config.model_validate(values)
    except ValidationError as error:
        return [".".join(map(str, item["loc"])) for item in error.errors() if item["type"] == "missing"]
    return []


def command_of(path: Path) -> str:
    """The command that the head of a configuration file states; "" without one."""
    lines: list[str] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        body = line.lstrip("#").strip()
        if lines and not lines[-1].endswith("\\"):
            break
        if lines:
            lines.append(body)
        elif body.split(" ", 1)[0] == "command":
            lines.append(body.removeprefix("command").strip())
    return " ".join(line.removesuffix("\\").strip() for line in lines)


def data_findings(config: Config, command: str) -> list[Finding]:
    """Tiles, reports and prompts of a configuration.

    Args:
        config: Complete.
        command: What the file's head says; the demo writes its data itself.
    """
    if _DEMO in command and not Path(config.tiles.path).expanduser().exists():
        return [Finding("PASS", "data", "synthetic, written by the command itself")]
    findings = [tiles_finding("tiles", config.tiles)]
    for name, shifted in config.comparison.shifted.items():
        findings.append(tiles_finding(f"shifted tiles {name}", shifted))
    if config.reports is not None:
        findings.append(_reports_finding(config))
    findings += _prompt_findings(config)
    return findings


def tiles_finding(what: str, config: TilesConfig) -> Finding:
    """Whether the data set is in place: its source reads everything but the images."""
    from clipit.tiles.load import read_tiles

    if config.source == "huggingface" and not Path(config.path).expanduser().exists():
        return Finding(
            "WARN", what, f"{config.path}: on the Hugging Face hub; whether it is here was not looked at",
            "it is fetched when first used; without a network, give a local folder",
        )  # fmt: skip
    try:
        tiles = read_tiles(config.model_copy(update={"unreadable": "error"}), check=False)
    except ClipitError as error:
        return from_error(what, error)
    counts = ", ".join(f"{int((tiles.splits == split).sum())} {split}" for split in ("train", "validation", "test"))
    return Finding("PASS", what, f"{config.path}: {counts}")


def _reports_finding(config: Config) -> Finding:
    from clipit.reports.readers import read_reports

    reports = config.reports
    if reports is None:
        return Finding("PASS", "reports", "none are configured")
    place = Path(reports.path).expanduser()
    if reports.format == "huggingface" and not place.exists():
        return Finding(
            "WARN", "reports", f"{reports.path}: on the Hugging Face hub; whether it is here was not looked at",
            "it is fetched when first used; without a network, give a local file",
        )  # fmt: skip
    if not place.exists():
        return Finding("FAIL", "reports", f"{reports.path} is not there", "correct reports.path, or get the reports")
    try:
        found = read_reports(reports)
    except ClipitError as error:
        return from_error("reports", error)
    return Finding("PASS", "reports", f"{reports.path}: {len(found.reports)} with text")


def _prompt_findings(config: Config) -> list[Finding]:
    from clipit.prompts.prompt_bag import load_bag
    from clipit.prompts.prompt_set import load_prompts

    findings = []
    asked: Mapping[str, Any] = {
        "prompts": (load_prompts, config.prompts),
        "morphology prompts": (load_bag, config.reports.morphology_prompts if config.reports else None),
        "boilerplate prompts": (load_bag, config.reports.boilerplate_prompts if config.reports else None),
    }
    for what, (load, name) in asked.items():
        if name is None:
            continue
        try:
            load(name)
        except ClipitError as error:
            findings.append(from_error(what, error))
        else:
            findings.append(Finding("PASS", what, str(name)))
    return findings
