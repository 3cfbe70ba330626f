"""Findings and how they are shown."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Status = Literal["PASS", "WARN", "FAIL"]
_COLOURS = {"PASS": "\033[32m", "WARN": "\033[33m", "FAIL": "\033[31m"}
_WIDTH = 120


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: Status
    what: str
    found: str
    fix: str = ""
    """What to do next; "" when nothing is to be done."""


@dataclass(frozen=True)
class Section:
    """Findings under one heading."""

    title: str
    findings: Sequence[Finding]


def from_error(what: str, error: Exception) -> Finding:
    """A failure from an error message of the package: its first part, and its `to do` as the fix."""
    text, _, fix = str(error).partition("\n  to do: ")
    place = text.replace("\n  where: ", " (") + (")" if "\n  where: " in text else "")
    return Finding("FAIL", what, " ".join(place.split()), " ".join(fix.split()))


def softened(finding: Finding) -> Finding:
    """A failure of something that is not needed just now, as a warning."""
    return replace(finding, status="WARN") if finding.status == "FAIL" else finding


def rendered(sections: Sequence[Section], *, colour: bool = False) -> str:
    """All sections as aligned lines, and a last line that counts.

    Args:
        sections: In the order to be shown.
        colour: Paint the status, for a terminal.
    """
    lines: list[str] = []
    for section in sections:
        lines += [section.title, *_lines(section.findings, colour), ""]
    every: list[str] = [finding.status for section in sections for finding in section.findings]
    return "\n".join([*lines, ", ".join(f"{every.count(status)} {status}" for status in _COLOURS)])


def _lines(findings: Sequence[Finding], colour: bool) -> list[str]:
    width = max((len(finding.what) for finding in findings), default=0)
    lines = []
    for finding in findings:
        status = f"{_COLOURS[finding.status]}{finding.status}\033[0m" if colour else finding.status
        indent = " " * (2 + 4 + 2 + width + 2)
        text = textwrap.wrap(finding.found, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
        lines.append(f"  {status}  {finding.what.ljust(width)}  {text[0] if text else ''}".rstrip())
        lines += [indent + line for line in text[1:]]
        if finding.fix:
            fix = textwrap.wrap(f"to do: {finding.fix}", _WIDTH - len(indent), break_long_words=False,
                                break_on_hyphens=False, subsequent_indent="       ")  # fmt: skip
            lines += [indent + line for line in fix]
    return lines
