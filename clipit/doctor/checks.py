"""Results of the doctor's checks, and how they are printed."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

Status = Literal["PASS", "WARN", "FAIL"]
_COLOURS: dict[Status, str] = {"FAIL": "\033[31m", "WARN": "\033[33m", "PASS": "\033[32m"}
"""Worst first, as checks are printed."""
_WIDTH = 120


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        status: Outcome; `WARN` for a problem that does not prevent a run.
        subject: What was checked, in a word or two.
        message: Result of the check.
        fix: How to fix the problem; "" if there is none.
    """

    status: Status
    subject: str
    message: str
    fix: str = ""


@dataclass(frozen=True)
class CheckGroup:
    """Checks under one heading."""

    title: str
    checks: Sequence[Check]


def failed_check(subject: str, error: Exception) -> Check:
    """Make a failed check from an error of the package, whose `to do` line becomes the fix."""
    text, _, fix = str(error).partition("\n  to do: ")
    what, _, where = text.partition("\n  where: ")
    message = f"{what} ({where})" if where else what
    return Check("FAIL", subject, " ".join(message.split()), " ".join(fix.split()))


def format_checks(groups: Sequence[CheckGroup], *, colour: bool = False) -> str:
    """Format groups of checks as aligned lines, worst first in each group, followed by a line of counts.

    Args:
        groups: Groups of checks, in printing order.
        colour: Whether to colour the status for a terminal.
    """
    lines: list[str] = []
    for group in groups:
        width = max((len(check.subject) for check in group.checks), default=0)
        indent = " " * (width + 10)
        wrap = partial(textwrap.wrap, width=_WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
        lines.append(group.title)
        for check in sorted(group.checks, key=lambda check: list(_COLOURS).index(check.status)):
            status = f"{_COLOURS[check.status]}{check.status}\033[0m" if colour else check.status
            first, *rest = wrap(check.message) or [""]
            lines.append(f"  {status}  {check.subject.ljust(width)}  {first}".rstrip())
            lines += [indent + line for line in rest]
            if check.fix:
                lines += [indent + line for line in wrap(f"to do: {check.fix}", subsequent_indent=" " * 7)]
        lines.append("")
    statuses = [check.status for group in groups for check in group.checks]
    return "\n".join([*lines, ", ".join(f"{statuses.count(status)} {status}" for status in _COLOURS)])
