"""What the comment at the head of a configuration file says: its command, and what it needs."""

import re
from pathlib import Path

_ENTRY = re.compile(r"#\s?(?P<word>[a-z]+)\s{2,}(?P<text>\S.*)")
_FURTHER = re.compile(r"#\s{3,}(?P<text>\S.*)")


def head_entry(path: Path, word: str) -> str:
    """The text of an entry (`# needs     2 cores ...`) with the lines that go on with it; "" without one."""
    found: list[str] = []
    for line in _head(path):
        entry, further = _ENTRY.fullmatch(line), _FURTHER.fullmatch(line)
        if found and (entry or not further):
            break
        if entry and entry["word"] == word:
            found.append(entry["text"])
        elif found and further:
            found.append(further["text"])
    return " ".join(found)


def command_of(path: Path) -> str:
    """The command that the head of a configuration file states, on one line; "" without one."""
    lines: list[str] = []
    for line in _head(path):
        body = line.lstrip("#").strip()
        if lines and not lines[-1].endswith("\\"):
            break
        if lines:
            lines.append(body)
        elif body.split(" ", 1)[0] == "command":
            lines.append(body.removeprefix("command").strip())
    return " ".join(line.removesuffix("\\").strip() for line in lines)


def writes_its_data(command: str) -> bool:
    """Whether a command writes the data of its configuration itself, as the demo and the comparison of worlds do."""
    return command.startswith("make ") or "scripts/demo.py" in command


def _head(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]
