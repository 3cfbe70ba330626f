"""Where else to look: links from a comparison's page to the pages of its runs, pairings and studies."""

import os
from collections.abc import Sequence
from pathlib import Path

from clipit.comparison.plan import Plan
from clipit.comparison.statistics import ArmResult
from clipit.config.run import RunConfig
from clipit.reporting.html import Links, Part, Section, Text

_STUDIES = ("probing", "robustness", "prompts")
_Row = tuple[str, list[tuple[str, str]]]


def link_sections(config: RunConfig, plans: Sequence[Plan], made: Sequence[ArmResult], folder: Path) -> list[Section]:
    """One section with links to every page that exists, relative to the comparison's folder; none if there is none.

    Args:
        config: Of the comparison; its output root is searched.
        plans: Its data sets and backbones.
        made: Its lines.
        folder: Where its page goes.
    """
    runs = _run_rows(made, folder)
    names = list(dict.fromkeys([config.name, *(plan.config.name for plan in plans)]))
    ran = sorted({row.run.name for line in made for row in line.rows if row.run})
    others = _pairing_rows(config.output, names, folder) + _study_rows(config.output, names, ran, folder)
    parts: list[Part] = []
    if runs:
        parts.append(Links(runs, "Pages of the runs, by seed"))
    if others:
        parts.append(Links(others, "Pages of the pairings, and of the studies of the same name"))
    if not parts:
        return []
    return [Section("Other pages", [Text("These links work as long as the output folder stays as it is."), *parts])]


def _run_rows(made: Sequence[ArmResult], folder: Path) -> list[_Row]:
    """A row per data set, backbone and arm: its seeds' report.html, and pairs.html where a run has one."""
    tested = [line for line in made if line.key.part == "test" and not line.reference]
    alone = len({line.key.place for line in tested}) == 1
    found: list[_Row] = []
    for line in tested:
        links = []
        for row in line.rows:
            for name, told in (("report.html", f"seed {row.seed}"), ("pairs.html", f"pairs of seed {row.seed}")):
                path = row.run_folder() / name
                if path.is_file():
                    links.append((told, _relative(path, folder)))
        if links:
            key = line.key[3:] if alone else (*line.key.place, line.key.arm)
            found.append((" / ".join(dict.fromkeys(key)), links))
    return found


def _pairing_rows(output: Path, names: Sequence[str], folder: Path) -> list[_Row]:
    pages = [(name, output / "pairings" / name / "pairs.html") for name in names]
    return [(f"pairs: {name}", [("pairs.html", _relative(path, folder))]) for name, path in pages if path.is_file()]


def _study_rows(output: Path, names: Sequence[str], ran: Sequence[str], folder: Path) -> list[_Row]:
    """Studies lie in `<output>/<kind>/<name>`, those of the prompts of one run in `<name>-<run>`."""
    found: list[_Row] = []
    for kind in _STUDIES:
        for name in (*names, *(f"{name}-{run}" for name in names for run in ran)):
            pages = sorted((output / kind / name).glob("*.html"))
            if pages:
                found.append((f"{kind}: {name}", [(path.name, _relative(path, folder)) for path in pages]))
    return found


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
