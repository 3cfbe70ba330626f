"""What a configuration needs and lacks: its keys, data, models, a GPU; all data sets and backbones of a comparison."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from clipit.artifacts import fingerprint
from clipit.config.load import merge, nested, read_command, read_yaml, validate
from clipit.config.run import RunConfig, TilesConfig
from clipit.doctor.data import awaited, prompt_findings, reports_finding, tiles_finding, yet_to_be_written
from clipit.doctor.findings import Finding, Section, from_error, softened
from clipit.doctor.heads import command_of, head_entry, writes_its_data
from clipit.doctor.hub import Hub
from clipit.doctor.models import backbone_findings, vlm_findings
from clipit.errors import ClipitError, shortlist

SHIPPED = Path(__file__).parents[2] / "configs"
_TO_GIVE = "(to be given)"


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
    title = str(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        return Section(title, [Finding("FAIL", "file", f"not readable: {error}", "correct the file")])
    absent = missing_keys(values)
    try:
        config = validate(merge(values, nested(dict.fromkeys(absent, _TO_GIVE))), path)
        found = run_findings(config, hub, path, absent)
    except ClipitError as error:
        return Section(title, [from_error("keys", error)])
    open_points = [softened(finding) for finding in found if finding.status != "PASS"]
    if not open_points:
        return Section(title, [Finding("PASS", "ready", command_of(path) or "models and data are in place")])
    return Section(title, open_points)


def examine(config: RunConfig, hub: Hub, where: Path, absent: Sequence[str] = ()) -> Section:
    """The configuration of a run to come: every finding; what is missing is a failure."""
    return Section(str(where), run_findings(config, hub, where, absent))


def read_with_gaps(path: Path, options: Sequence[str]) -> tuple[RunConfig, list[str]]:
    """A configuration with its command line, and the required keys that neither gives (filled in for the look).

    Raises:
        ConfigError: Something else is wrong with it.
    """
    given = {option.removeprefix("--").partition("=")[0] for option in options}
    absent = [key for key in missing_keys(read_yaml(path)) if key not in given]
    filled = [f"--{key}={_TO_GIVE}" for key in absent]
    return read_command("", ["--config", str(path), *options, *filled])[0], absent


def missing_keys(values: Any) -> list[str]:
    """Required keys that a configuration leaves to the command line, dotted."""
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return [".".join(map(str, item["loc"])) for item in error.errors() if item["type"] == "missing"]
    return []


def run_findings(config: RunConfig, hub: Hub, where: Path, absent: Sequence[str] = ()) -> list[Finding]:
    """Every finding about a configuration, and about each data set and backbone that its comparison lists.

    Args:
        config: Complete; `absent` keys hold anything.
        hub: Whom to ask about models.
        where: Its file, whose head says the command and what it needs.
        absent: Required keys that are still to be given; then the data are not looked at.

    Raises:
        ConfigError: The comparison's data sets and backbones do not fit their arms.
    """
    cells = [config] if absent else _cells(config)
    checks: dict[str, Callable[[], list[Finding]]] = {}
    for cell in cells:
        for what, make in _model_checks(cell, hub):
            checks.setdefault(what, make)
    for cell in [] if absent else cells:
        for what, make in _data_checks(cell):
            checks.setdefault(what, make)
    findings = [finding for make in checks.values() for finding in make()]
    if absent:
        options = " ".join(f"--{key}=..." for key in absent)
        findings.append(Finding("FAIL", "keys", f"yours to give: {options}", f"the head of {where} says how"))
    else:
        findings += awaited_findings(cells, command_of(where))
    findings += gpu_findings(config, head_entry(where, "needs"))
    return list(dict.fromkeys(findings))  # two data sets may lack the same file


def _cells(config: RunConfig) -> list[RunConfig]:
    """The configuration of each data set and backbone of a comparison; of a run alone, itself."""
    if not config.comparison.data_sets and not config.comparison.backbones:
        return [config]
    from clipit.comparison.plan import plan_comparison

    return [setting.config for setting in plan_comparison(config)]


def _model_checks(config: RunConfig, hub: Hub) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    """What there is to look at, by a name that is the same for the same model."""
    if not awaited(config.vlm.name):
        yield f"vlm {config.vlm!r}", lambda: vlm_findings("VLM", config.vlm, hub)
    second = config.second_vlm
    if second is not None:
        yield f"second {second!r}", lambda: vlm_findings("second VLM", second, hub)
    if not awaited(config.backbone.name):
        yield f"backbone {config.backbone!r}", lambda: backbone_findings(config.backbone, hub)


def _data_checks(config: RunConfig) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    """The same for tiles, reports and prompts, less what is yet to be written."""
    sets = {"tiles": config.tiles, **{f"shifted tiles {name}": t for name, t in config.comparison.shifted.items()}}
    for what, tiles in sets.items():
        if not awaited(tiles.path):
            key = fingerprint(tiles.model_dump(mode="json", exclude={"labels"}))
            yield f"{what} {key}", partial(_one, what, tiles)
    if config.reports is not None and not awaited(config.reports.path):
        yield f"reports {config.reports!r}", lambda: [reports_finding(config)]
    bags = [config.reports.morphology_prompts, config.reports.boilerplate_prompts] if config.reports else []
    yield f"prompts {[config.prompts, *bags]}", lambda: prompt_findings(config)


def _one(what: str, tiles: TilesConfig) -> list[Finding]:
    return [tiles_finding(what, tiles)]


def data_findings(config: RunConfig, command: str) -> list[Finding]:
    """Tiles, reports and prompts of a configuration alone.

    Args:
        config: Complete.
        command: What the file's head says; some write their data themselves.
    """
    found = [finding for _, make in _data_checks(config) for finding in make()]
    return [*found, *awaited_findings([config], command)]


def awaited_findings(configs: Sequence[RunConfig], command: str, *, itself: bool | None = None) -> list[Finding]:
    """One finding about all that lies below outputs/ and is not there yet; none when nothing does.

    Args:
        configs: All data sets and backbones.
        command: What the file's head says.
        itself: Whether that command is what will be run; None: when it writes data at all.
    """
    paths = list(dict.fromkeys(path for config in configs for path in yet_to_be_written(config)))
    if not paths:
        return []
    files = f"not written yet: {shortlist(paths, 3)}"
    if writes_its_data(command) if itself is None else itself:
        return [Finding("PASS", "data", f"synthetic, written by the command itself: {command}")]
    named = f"make demo, which is {command}" if "scripts/demo.py" in command else command
    first = f"first: {named}" if command else "first run what writes them, or correct these paths"
    return [Finding("FAIL", "data", files, first)]


def gpu_findings(config: RunConfig, needs: str) -> list[Finding]:
    """A warning when the precision, or what the file's head says, asks for a GPU that is not there."""
    import torch

    precision = config.training.precision
    if torch.cuda.is_available():
        if precision == "bf16" and torch.cuda.get_device_properties(0).major < 8:
            return [
                Finding("WARN", "precision", "training.precision is bf16, which this GPU has not: it is emulated",
                        "--training.precision=fp16 or no")
            ]  # fmt: skip
        return []
    if precision != "no":
        return [
            Finding("WARN", "precision", f"training.precision is {precision}, made for GPUs, and torch sees none",
                    "run it where there is a GPU; on a CPU: --training.precision=no, and expect hours or days")
        ]  # fmt: skip
    if "a GPU" in needs:
        return [Finding("WARN", "GPU", f"torch sees none, and the file says that it needs {needs}", "expect hours")]
    return []
