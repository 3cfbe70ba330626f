"""Results of the doctor's checks, and the output format."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

Status = Literal["PASS", "WARN", "FAIL"]
_COLOURS: dict[Status, str] = {"FAIL": "\033[31m", "WARN": "\033[33m", "PASS": "\033[32m"}
"""Terminal colour by status, in the order in which problems are printed."""
_WIDTH = 120  # characters per line


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        status: Outcome; `WARN` for a problem that does not prevent a run.
        subject: Checked item, in a word or two.
        message: Result of the check; a full sentence for a problem.
        fix: How to fix the problem; "" if there is no problem.
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
    """Convert an error of the package to a failed check; its `fix:` line becomes the fix."""
    text, _, fix = str(error).partition("\n  fix: ")
    problem, _, where = text.partition("\n  where: ")
    message = f"{problem} ({where})" if where else problem
    return Check("FAIL", subject, _sentence(" ".join(message.split())), " ".join(fix.split()))


def _sentence(text: str) -> str:
    """Start a message with a capital letter, unless it starts with a name or path, and end it with a full stop."""
    first = text.partition(" ")[0]
    start = text[:1].upper() if first.isalpha() and first.islower() else text[:1]
    return f"{start}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def merge_checks(checks: Mapping[str, Sequence[Check]]) -> list[Check]:
    """List each result once, followed by the files to which it applies, unless it applies to all.

    Args:
        checks: File name -> checks.
    """
    files: dict[Check, list[str]] = {}
    for name, findings in checks.items():
        for check in dict.fromkeys(findings):
            files.setdefault(check, []).append(name)
    return [
        check if len(names) == len(checks) else replace(check, message=f"{check.message} [{', '.join(names)}]")
        for check, names in files.items()
    ]


def format_checks(groups: Sequence[CheckGroup], *, colour: bool = False) -> str:
    """Format all problems, worst first, then the passed checks by group, and a line of counts.

    Args:
        groups: Groups of checks, in printing order.
        colour: Whether to colour the status for a terminal.
    """
    lines: list[str] = []
    checks = [check for group in groups for check in group.checks]
    problems = sorted((c for c in checks if c.status != "PASS"), key=lambda c: list(_COLOURS).index(c.status))
    passed = [CheckGroup(group.title, [c for c in group.checks if c.status == "PASS"]) for group in groups]
    for group in (CheckGroup("Problems", problems), *passed):
        if group.checks:
            lines += [group.title, *_format_group(group.checks, colour), ""]
    statuses = [check.status for check in checks]
    return "\n".join([*lines, ", ".join(f"{statuses.count(status)} {status}" for status in _COLOURS)])


def _format_group(checks: Sequence[Check], colour: bool) -> Iterator[str]:
    width = max(len(check.subject) for check in checks)
    indent = " " * (width + 10)
    wrap = partial(textwrap.wrap, width=_WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
    for check in checks:
        status = f"{_COLOURS[check.status]}{check.status}\033[0m" if colour else check.status
        first, *rest = wrap(check.message) or [""]
        yield f"  {status}  {check.subject.ljust(width)}  {first}".rstrip()
        yield from (indent + line for line in rest)
        if check.fix:
            yield from (indent + line for line in wrap(f"fix: {check.fix}", subsequent_indent=" " * 5))
