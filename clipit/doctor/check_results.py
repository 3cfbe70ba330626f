"""Results of the doctor's checks, and the output format."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from clipit.errors import ClipitError, shortlist

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


@contextmanager
def record_error(subject: str, checks: list[Check]) -> Iterator[None]:
    """Add a failed check to `checks` if the block raises an error, and continue after the block."""
    try:
        yield
    except (ClipitError, ImportError, OSError, RuntimeError) as error:
        checks.append(failed_check(subject, error))


def failed_check(subject: str, error: Exception) -> Check:
    """Convert an error to a failed check; the `fix:` line of the package's errors becomes the fix."""
    text, _, fix = str(error).partition("\n  fix: ")
    problem, _, where = text.partition("\n  where: ")
    message = as_sentence(f"{problem} ({where})" if where else problem)
    if isinstance(error, ClipitError):
        return Check("FAIL", subject, message, " ".join(fix.split()))
    return Check("FAIL", subject, message, "reinstall or correct what this message names")


def as_sentence(text: str) -> str:
    """Start a message with a capital letter, unless it starts with a name or path, and end it with a full stop."""
    text = " ".join(text.split())
    first = text.partition(" ")[0]
    start = text[:1].upper() if first.isalpha() and first.islower() else text[:1]
    return f"{start}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def merge_checks(checks: Mapping[str, Sequence[Check]]) -> list[Check]:
    """List each result once, followed by the names to which it applies, unless it applies to all.

    Args:
        checks: Name of a file or arm -> checks.
    """
    names_of: dict[Check, list[str]] = {}
    for name, findings in checks.items():
        for check in dict.fromkeys(findings):
            names_of.setdefault(check, []).append(name)
    return [
        check if len(names) == len(checks) else replace(check, message=f"{check.message} [{shortlist(names)}]")
        for check, names in names_of.items()
    ]


def format_checks(groups: Mapping[str, Sequence[Check]], *, colour: bool = False) -> str:
    """Format all problems, worst first, then the passed checks by group, and a line of counts.

    Args:
        groups: Heading -> checks, in printing order.
        colour: Whether to colour the status for a terminal.
    """
    lines: list[str] = []
    checks = [check for group in groups.values() for check in group]
    problems = sorted((c for c in checks if c.status != "PASS"), key=lambda c: list(_COLOURS).index(c.status))
    passed = {title: [c for c in group if c.status == "PASS"] for title, group in groups.items()}
    for title, group in {"Problems": problems, **passed}.items():
        if group:
            lines += [title, *_format_group(group, colour), ""]
    statuses = [check.status for check in checks]
    return "\n".join([*lines, ", ".join(f"{statuses.count(status)} {status}" for status in _COLOURS)])


def _format_group(checks: Sequence[Check], colour: bool) -> Iterator[str]:
    width = max(len(check.subject) for check in checks)
    indent = " " * (width + 10)
    fill = partial(textwrap.fill, width=_WIDTH, break_long_words=False, break_on_hyphens=False)
    for check in checks:
        start = f"  {check.status}  {check.subject.ljust(width)}  "
        text = fill(check.message, initial_indent=start, subsequent_indent=indent)
        yield text.replace(check.status, f"{_COLOURS[check.status]}{check.status}\033[0m", 1) if colour else text
        if check.fix:
            yield fill(f"fix: {check.fix}", initial_indent=indent, subsequent_indent=f"{indent}     ")
