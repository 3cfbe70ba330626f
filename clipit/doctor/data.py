"""Whether the tiles, reports and prompts of a configuration are in place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipit.config.run import RunConfig, TilesConfig
from clipit.doctor.findings import Finding, from_error
from clipit.errors import ClipitError

_TCGA_PAGE = "https://github.com/tatonetti-lab/tcga-path-reports"
_OURS = "outputs"
"""First folder of what clipit writes itself, where a configuration does not say otherwise."""


def yet_to_be_written(config: RunConfig) -> list[str]:
    """Paths of a configuration that lie below outputs/, where an earlier command writes them, and are not there."""
    reports = config.reports
    paths = [
        config.tiles.path, config.tiles.images, config.prompts, config.vlm.name, config.backbone.name,
        *(path for shifted in config.comparison.shifted.values() for path in (shifted.path, shifted.images)),
        *([reports.path, reports.morphology_prompts, reports.boilerplate_prompts] if reports else []),
    ]  # fmt: skip
    return [path for path in dict.fromkeys(paths) if path is not None and awaited(path)]


def awaited(path: str) -> bool:
    """Whether a path lies below outputs/ and is not there."""
    return Path(path).parts[:1] == (_OURS,) and not Path(path).exists()


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


def reports_finding(config: RunConfig) -> Finding:
    """Whether the reports are in place and can be read."""
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
        fix = "correct reports.path, or get the reports"
        if reports.format == "tcga":
            fix = f"get TCGA-Reports from {_TCGA_PAGE}, as data_cards/tcga_reports.md says; or give reports of yours"
        return Finding("FAIL", "reports", f"{reports.path} is not there", fix)
    try:
        found = read_reports(reports)
    except ClipitError as error:
        return from_error("reports", error)
    return Finding("PASS", "reports", f"{reports.path}: {len(found.reports)} with text")


def prompt_findings(config: RunConfig) -> list[Finding]:
    """Whether the prompt set and the bags of the snippet filter can be read."""
    from clipit.prompts.prompt_set import load_bag, load_prompts

    findings = []
    asked: Mapping[str, Any] = {
        "prompts": (load_prompts, config.prompts),
        "morphology prompts": (load_bag, config.reports.morphology_prompts if config.reports else None),
        "boilerplate prompts": (load_bag, config.reports.boilerplate_prompts if config.reports else None),
    }
    for what, (load, name) in asked.items():
        if name is None or awaited(name):
            continue
        try:
            load(name)
        except ClipitError as error:
            findings.append(from_error(what, error))
        else:
            findings.append(Finding("PASS", what, str(name)))
    return findings
