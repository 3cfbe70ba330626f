"""Check the tiles, reports and prompts of a configuration."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from clipit.config.run import ReportsConfig, RunConfig, TilesConfig
from clipit.doctor.check_results import Check, as_sentence, record_error
from clipit.errors import ClipitError, counted
from clipit.input_files.data_files import hub_id
from clipit.pairing.cases import join_cases
from clipit.patients import patients
from clipit.prompts.prompt_set import load_prompt_bag, load_prompts
from clipit.reports.readers import read_reports
from clipit.reports.rule_set import load_rules
from clipit.tiles.load_tiles import read_tiles
from clipit.tiles.overview import tile_problems
from clipit.tiles.streaming import describe_set
from clipit.tiles.tar_index import has_index
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.workspace.tile_reading import artefacts_of, with_kept_size

OWN_REPORTS = "patients' own reports"  # subject of a check


def is_missing(path: str) -> bool:
    """Return whether a path does not exist, unless it is a glob pattern."""
    return not any(sign in path for sign in "*?{[") and not Path(path).expanduser().exists()


def is_unwritten(path: str) -> bool:
    """Return whether a path is in outputs/, the folder that clipit writes to, and does not exist."""
    return Path(path).parts[:1] == ("outputs",) and is_missing(path)


def check_tiles(subject: str, section: TilesConfig, config: RunConfig) -> list[Check]:
    """Check the tiles of a data set by reading everything except the images; nothing is written.

    Args:
        subject: `tiles`, or the name of a shifted test set.
        section: Section `tiles` of the data set.
        config: Configuration of the run.
    """
    if section.source == "huggingface" and hub_id(section.path) is not None:
        return [Check("PASS", subject, f"{section.path} is downloaded on first use")]
    with_kept_size(section, config)
    if section.streaming and section.source == "huggingface":
        splits = ", ".join(describe_set(section, None).splits)
        return [Check("PASS", subject, f"{section.path}: splits {splits}; streamed, and cached on first use")]
    tiles = _read_tiles(section, config)
    groups, tests_only = patients(tiles.groups, tiles.ids), subject != "tiles"
    problems = [
        Check("WARN", subject, as_sentence(f"{section.path}: {problem}"), fix)
        for problem, fix in tile_problems(tiles, section, groups, tests_only=tests_only)
        if fix
    ]
    if not tests_only and not (tiles.splits == "train").any():
        return [replace(problems[0], status="FAIL")]
    counts = ", ".join(f"{int((tiles.splits == split).sum())} {split}" for split in SPLITS)
    return [Check("PASS", subject, f"{section.path}: {counts}"), *problems]


def _read_tiles(section: TilesConfig, config: RunConfig) -> TileSet:
    """Read tiles without streaming; an existing index of shards is used, but none is written."""
    streaming = ("streaming", "keep_pixels", "keep_quality")
    section = section.model_copy(update={key: TilesConfig.model_fields[key].default for key in streaming})
    root = artefacts_of(config)
    indexed = section.source == "webdataset" and has_index(section, root)
    return read_tiles(section, check=False, decode=False, root=root if indexed else None)


def check_reports(config: ReportsConfig) -> list[Check]:
    """Check that the reports exist and are readable."""
    if config.format in ("auto", "huggingface") and hub_id(config.path) is not None:
        return [Check("PASS", "reports", f"{config.path} is downloaded on first use")]
    corpus = read_reports(config)
    text, problems = f"{config.path}: {counted(len(corpus.reports), 'report')} with text", corpus.problems
    text += f"; {counted(len(problems), 'problem')}, first: {problems[0]}" if problems else ""
    return [Check("PASS", "reports", text)]


def check_own_reports(config: RunConfig) -> list[Check]:
    """Check that training patients have reports, if they can be read; read errors are reported by other checks."""
    reports = config.reports
    if reports is None or config.tiles.streaming or any(map(hub_id, (config.tiles.path, reports.path))):
        return []
    try:
        tiles, corpus = _read_tiles(config.tiles, config), read_reports(reports).reports
    except ClipitError:
        return []
    return [Check("PASS", OWN_REPORTS, join_cases(corpus, tiles).counts.text().splitlines()[0])]


def check_prompts(config: RunConfig) -> list[Check]:
    """Check that the prompt sets, the prompt bags of the snippet filter and the rules for reports can be read."""
    reports, own_report = config.reports, config.own_report
    files: list[tuple[Callable[[str], object], str | None]] = [
        (load_prompts, config.prompts), (load_prompts, own_report.tissue_prompts), (load_rules, own_report.rules)
    ]  # fmt: skip
    if reports is not None and reports.morphology_prompts is not None:
        files += [(load_prompt_bag, reports.morphology_prompts), (load_prompt_bag, reports.boilerplate_prompts)]
    checks: list[Check] = []
    for load, name in files:
        if name is not None and not is_unwritten(name):
            with record_error("prompts", checks):
                load(name)
                checks.append(Check("PASS", "prompts", name))
    return checks
