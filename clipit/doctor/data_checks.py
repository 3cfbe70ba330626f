"""Check the tiles, reports and prompts of a configuration."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipit.config.run import RunConfig, TilesConfig
from clipit.config.shipped import data_card
from clipit.doctor.check_results import Check, failed_check
from clipit.errors import ClipitError, counted, shortlist
from clipit.input_files.data_files import hub_id
from clipit.input_files.nearby_files import similar_names

if TYPE_CHECKING:
    from clipit.tiles.tileset import TileSet

_TCGA_PAGE = "https://github.com/tatonetti-lab/tcga-path-reports"


def is_unwritten(path: str) -> bool:
    """Return whether a path is below outputs/, the folder that clipit writes to, and does not exist."""
    return Path(path).parts[:1] == ("outputs",) and not Path(path).exists()


def unwritten_paths(config: RunConfig, shifted: Mapping[str, TilesConfig]) -> list[str]:
    """Return the paths of a configuration that other commands must write first."""
    reports = config.reports
    paths = [
        config.tiles.path, config.tiles.images, config.prompts, config.vlm.name, config.backbone.name,
        *(path for tiles in shifted.values() for path in (tiles.path, tiles.images)),
        *([reports.path, reports.metadata, reports.morphology_prompts, reports.boilerplate_prompts] if reports else []),
        config.own_report.rules, config.own_report.tissue_prompts,
    ]  # fmt: skip
    return [path for path in dict.fromkeys(paths) if path is not None and is_unwritten(path)]


def check_tiles(subject: str, config: TilesConfig, root: Path | None = None) -> list[Check]:
    """Check the tiles of a data set by reading everything except the images.

    Args:
        config: Section `tiles`.
        root: Folder of artefacts; an existing index of shards is used, but none is written.
    """
    from clipit.tiles.load_tiles import read_tiles
    from clipit.tiles.tar_index import has_index

    if config.source == "huggingface" and hub_id(config.path) is not None:
        return [_on_hub(subject, config.path)]
    try:
        if config.streaming and config.source == "huggingface":
            from clipit.tiles.streaming import describe_set

            splits = ", ".join(describe_set(config, None).splits)
            return [Check("PASS", subject, f"{config.path}: splits {splits}; streamed and kept on first use")]
        listed = config.model_copy(update={"streaming": False, "keep_pixels": None})
        kept = root if root is not None and config.source == "webdataset" and has_index(listed, root) else None
        tiles = read_tiles(listed, check=False, decode=False, root=kept)
    except ClipitError as error:
        return [failed_check(subject, error)]
    counts = ", ".join(f"{int((tiles.splits == split).sum())} {split}" for split in ("train", "validation", "test"))
    if subject == "tiles" and not (tiles.splits == "train").any():
        fix = "name the source's training split in tiles.splits.train, or correct the split column"
        return [Check("FAIL", subject, f"There are no training tiles in {config.path} ({counts}).", fix)]
    warnings = (*_check_classes(subject, config, tiles), *_check_patients(subject, config, tiles))
    return [Check("PASS", subject, f"{config.path}: {counts}"), *warnings]


def _check_classes(subject: str, config: TilesConfig, tiles: "TileSet") -> list[Check]:
    """Warn about classes without a labelled training tile, unless there are no labels or they are not used."""
    labelled = set(tiles.truth[tiles.splits == "train"].tolist()) - {-1}
    missing = [name for index, name in enumerate(tiles.classes) if index not in labelled]
    if subject != "tiles" or config.labels.kind == "none" or not labelled or not missing:
        return []
    problem = f"No training tile is labelled {shortlist(missing)}; such classes cannot be learnt from labels."
    fix = "label training tiles of these classes, or drop or merge the classes in tiles.class_map"
    return [Check("WARN", subject, problem, fix)]


def _check_patients(subject: str, config: TilesConfig, tiles: "TileSet") -> list[Check]:
    """Warn if no tile has a patient or slide, except in published data sets, whose groups are documented."""
    from clipit.patients import patients
    from clipit.tiles.datasets import DATASETS

    if config.source in DATASETS or (patients(tiles.groups, tiles.ids) != "").any():
        return []
    problem = f"No tile of {config.path} has a group, so a patient may be in two splits and scores may be too high."
    fix = tiles.advice or (
        "add a group column with the patient or slide, or set tiles.columns.group or tiles.group_pattern"
    )
    return [Check("WARN", subject, problem, fix)]


def check_kept_size(subject: str, tiles: TilesConfig, config: RunConfig) -> list[Check]:
    """Check that the size to which streamed tiles are resized is known."""
    from clipit.workspace.tile_reading import with_kept_size

    try:
        pixels = with_kept_size(tiles, config).keep_pixels
    except ClipitError as error:
        return [failed_check(subject, error)]
    return [Check("PASS", subject, f"streamed tiles with a shorter edge above {pixels} px are resized to {pixels} px")]


def check_reports(config: RunConfig) -> list[Check]:
    """Check that the reports exist and are readable."""
    from clipit.reports.readers import read_reports

    reports = config.reports
    if reports is None:
        return [Check("PASS", "reports", "none configured")]
    path = Path(reports.path).expanduser()
    if reports.format in ("auto", "huggingface") and hub_id(reports.path) is not None:
        return [_on_hub("reports", reports.path)]
    if not path.exists():
        fix = "correct reports.path, or download the reports; for a data set on the Hugging Face Hub, use hf:owner/name"
        if reports.format == "tcga":
            fix = f"download TCGA-Reports from {_TCGA_PAGE} (see {data_card('tcga_reports')}), or use your own reports"
        problem = f"{reports.path} does not exist; {similar_names(reports.path)}"
        return [Check("FAIL", "reports", f"{problem}.", fix)]
    try:
        corpus = read_reports(reports)
    except ClipitError as error:
        return [failed_check("reports", error)]
    problems = f"; {counted(len(corpus.problems), 'problem')}, first: {corpus.problems[0]}" if corpus.problems else ""
    return [Check("PASS", "reports", f"{reports.path}: {counted(len(corpus.reports), 'report')} with text{problems}")]


def check_own_reports(config: RunConfig, arms: Sequence[str | None]) -> list[Check]:
    """Check that training patients have reports, if any arm uses the reports of the tiles' own patients.

    Tiles and reports that cannot be read are reported by other checks.

    Args:
        config: Run configuration of one data set.
        arms: Names of the arms; None for the configuration itself.
    """
    from clipit.pairing.cases import join_cases
    from clipit.reports.readers import read_reports
    from clipit.tiles.load_tiles import read_tiles
    from clipit.training.arms import resolve_arm
    from clipit.training.terms.term_table import uses_own_report_labels

    tiles, reports = config.tiles, config.reports
    if reports is None or tiles.streaming or any(hub_id(path) is not None for path in (tiles.path, reports.path)):
        return []
    try:
        configs = [resolve_arm(config.model_copy(update={"arm": arm})) for arm in arms]
        if not any(uses_own_report_labels(arm) or arm.pairing.reports != "any" for arm in configs):
            return []
        found, corpus = read_tiles(tiles, check=False, decode=False), read_reports(reports).reports
    except ClipitError:
        return []
    try:
        counts = join_cases(corpus, found).counts
    except ClipitError as error:
        return [failed_check("patients' own reports", error)]
    return [Check("PASS", "patients' own reports", counts.text().splitlines()[0])]


def _on_hub(subject: str, name: str) -> Check:
    fix = "it is downloaded on first use; without network access, use a local folder"
    return Check("WARN", subject, f"{name} is on the Hugging Face Hub; the local cache was not checked.", fix)


def check_prompts(config: RunConfig) -> list[Check]:
    """Check that the prompt sets, the prompt bags of the snippet filter and the rules for reports can be read."""
    from clipit.prompts.prompt_set import load_prompt_bag, load_prompts
    from clipit.reports.rule_set import load_rules

    reports, own_report = config.reports, config.own_report
    inputs: dict[str, tuple[Callable[[str], object], str | None]] = {
        "prompts": (load_prompts, config.prompts),
        "morphology prompts": (load_prompt_bag, reports.morphology_prompts if reports else None),
        "boilerplate prompts": (
            load_prompt_bag,
            reports.boilerplate_prompts if reports and reports.morphology_prompts else None,
        ),
        "tissue prompts": (load_prompts, own_report.tissue_prompts),
        "rules for reports": (load_rules, own_report.rules),
    }
    checks = []
    for subject, (load, name) in inputs.items():
        if name is None or is_unwritten(name):
            continue
        try:
            load(name)
        except ClipitError as error:
            checks.append(failed_check(subject, error))
        else:
            checks.append(Check("PASS", subject, name))
    return checks
