"""Links from a comparison's page to the pages of its runs, pairings and studies."""

import os
from collections.abc import Sequence
from pathlib import Path

from clipit.comparison.plan import Plan
from clipit.comparison.statistics import ArmResult
from clipit.config.run import RunConfig
from clipit.reporting.html import Links, PageSection, Part, Text

_STUDIES = ("probing", "robustness", "prompts")
_Row = tuple[str, list[tuple[str, str]]]


def link_sections(
    config: RunConfig, plans: Sequence[Plan], results: Sequence[ArmResult], folder: Path
) -> list[PageSection]:
    """Build a section with relative links to all existing pages; the list is empty if there are no pages.

    Args:
        config: Configuration of the comparison, whose output folder is searched.
        plans: Plans of the comparison, one per data set and backbone.
        folder: Folder of the comparison, to which the links are relative.
    """
    runs = _run_rows(results, folder)
    names = list(dict.fromkeys([config.name, *(plan.config.name for plan in plans)]))
    run_names = sorted({row.run.name for result in results for row in result.rows if row.run})
    others = _pairing_rows(config.output, names, folder) + _study_rows(config.output, names, run_names, folder)
    parts: list[Part] = []
    if runs:
        parts.append(Links(runs, "Pages of the runs, by seed"))
    if others:
        parts.append(Links(others, "Pages of the pairings, and of studies with the comparison's name"))
    if not parts:
        return []
    return [
        PageSection(
            "Other pages", [Text("These links work as long as the layout of the output folder is unchanged."), *parts]
        )
    ]


def _run_rows(results: Sequence[ArmResult], folder: Path) -> list[_Row]:
    """Build a row per data set, backbone and arm: report.html of each seed, and pairs.html if the run has one."""
    tested = [result for result in results if result.key.test_set == "test" and not result.reference]
    single_setting = len({result.key.setting for result in tested}) == 1
    rows: list[_Row] = []
    for result in tested:
        links = []
        for row in result.rows:
            for name, label in (("report.html", f"seed {row.seed}"), ("pairs.html", f"pairs, seed {row.seed}")):
                path = row.run_folder() / name
                if path.is_file():
                    links.append((label, _relative(path, folder)))
        if links:
            key = result.key[3:] if single_setting else (*result.key.setting, result.key.arm)
            rows.append((" / ".join(dict.fromkeys(key)), links))
    return rows


def _pairing_rows(output: Path, names: Sequence[str], folder: Path) -> list[_Row]:
    pages = [(name, output / "pairings" / name / "pairs.html") for name in names]
    return [(f"pairs: {name}", [("pairs.html", _relative(path, folder))]) for name, path in pages if path.is_file()]


def _study_rows(output: Path, names: Sequence[str], run_names: Sequence[str], folder: Path) -> list[_Row]:
    """Build a row per study in `<output>/<kind>/<name>`, or in `<name>-<run>` for a prompt study of one run."""
    rows: list[_Row] = []
    for kind in _STUDIES:
        for name in (*names, *(f"{name}-{run}" for name in names for run in run_names)):
            pages = sorted((output / kind / name).glob("*.html"))
            if pages:
                rows.append((f"{kind}: {name}", [(path.name, _relative(path, folder)) for path in pages]))
    return rows


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
