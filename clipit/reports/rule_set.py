"""Rule sets that label reports by phrases, and their YAML files."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from clipit.errors import DataError, counted, has_controls
from clipit.input_files.yaml_file import load_mapping
from clipit.output_files.artifacts import fingerprint
from clipit.reports.assertion import Assertions, Triggers
from clipit.reports.headings import SECTIONS
from clipit.reports.phrases import (
    PhraseFinder,
    has_blanks,
    is_expression,
    is_plain,
    plain_phrase,
    regular_expression,
    tokenize,
)

_FOLDER = Path(__file__).parent / "rule_sets"
_KEYS = ("name", "source", "sections", "classes", "negated", "ignored", "negation", "uncertainty")
_SIDES = ("before", "after")

BOTH, NONE = "both", "none"
"""Classes of reports with mentions of several classes, and of no class."""
IGNORED = ""
"""Name of ignored phrases in `RuleSet.finder`."""


@dataclass(frozen=True)
class RuleSet:
    """Rules that label a report by the mentions of phrases; `load_rules` reads a rule set from a file.

    Attributes:
        classes: Phrases of each class, matched as whole words in any case; white space and hyphens are equivalent, and
            optional next to punctuation. A phrase written `/.../` is a regular expression.
        sections: Sections whose mentions count, in lower case; empty for all.
        negated: Mapping from a class to the class for which its negated mentions count. Negated mentions of classes
            that are not listed do not count.
        ignored: Phrases that count for no class and hide shorter phrases within them.
    """

    name: str
    classes: Mapping[str, tuple[str, ...]]
    sections: tuple[str, ...] = ()
    negated: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    negation: Triggers = field(default_factory=Triggers)
    uncertainty: Triggers = field(default_factory=Triggers)
    source: str = ""

    @property
    def hash(self) -> str:
        """Fingerprint of everything but the name and the source."""
        content = {key: value for key, value in asdict(self).items() if key not in ("name", "source")}
        lists = [
            *self.classes.values(),
            self.ignored,
            *asdict(self.negation).values(),
            *asdict(self.uncertainty).values(),
        ]
        if not all(is_plain(phrase) for phrases in lists for phrase in phrases):
            content["characters"] = "plain"  # earlier versions matched such phrases differently
        if any(has_blanks(phrase) for phrases in lists for phrase in phrases):
            content["blanks"] = "line breaks"  # earlier versions matched no line break
        return fingerprint(content)

    @cached_property
    def finder(self) -> PhraseFinder:
        """Finder for the phrases of all classes and the ignored phrases."""
        return PhraseFinder({**self.classes, IGNORED: self.ignored})

    @cached_property
    def assertions(self) -> Assertions:
        """Classifier of assertion status, with the package's triggers and those of this set."""
        return _assertions(self.negation, self.uncertainty)


_assertions = lru_cache(maxsize=4)(Assertions)  # most rule sets use only the package's triggers


def packaged_rules() -> list[str]:
    """Return the names of the packaged rule sets."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_rules(name_or_path: str | Path) -> RuleSet:
    """Read a rule set from a YAML file, or a packaged one by its name.

    Keys: `name` and `classes` (class -> list of phrases) are required; `source`, `sections`, `negated` (class ->
    class), `ignored` (list of phrases), `negation` and `uncertainty` (`before` and `after`, lists of triggers) are
    optional.

    Raises:
        DataError: The file does not exist, or its content is invalid; all problems are listed at once.
    """
    path = _find(name_or_path)
    raw, repeated = load_mapping(path, "`name:` and `classes:`")
    problems = [f"{key} (line {line}): is given twice; only the last value would be used" for key, line in repeated]
    problems += _problems(raw)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise DataError(
            f"{counted(len(problems), 'problem')} in a rule set:\n{listed}",
            where=path,
            fix="correct the keys named above",
        )
    return RuleSet(
        name=raw["name"],
        classes={name: tuple(phrases) for name, phrases in raw["classes"].items()},
        sections=tuple(raw.get("sections") or ()),
        negated=dict(raw.get("negated") or {}),
        ignored=tuple(raw.get("ignored") or ()),
        negation=_triggers(raw.get("negation")),
        uncertainty=_triggers(raw.get("uncertainty")),
        source=str(raw.get("source") or "").strip(),
    )


def _find(name_or_path: str | Path) -> Path:
    """Return the path of a rule set, given as a path or as the name of a packaged set."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if str(name_or_path) in packaged_rules():
        return _FOLDER / f"{name_or_path}.yaml"
    raise DataError(
        f"unknown rule set: {name_or_path}",
        where=path.absolute(),
        fix=f"use the path of a YAML file, or one of: {', '.join(packaged_rules())}",
    )


def _triggers(raw: Mapping[str, Any] | None) -> Triggers:
    return Triggers(**{side: tuple(phrases) for side, phrases in (raw or {}).items()})


def _problems(raw: Mapping[Any, Any]) -> list[str]:
    problems = [f"{key}: unknown key; known keys are {', '.join(_KEYS)}" for key in raw if key not in _KEYS]
    if not isinstance(raw.get("name"), str) or not raw["name"].strip():
        problems.append("name: is missing or not a string")
    classes = raw.get("classes")
    if not isinstance(classes, Mapping) or not classes:
        problems.append("classes: is missing or empty; list phrases for at least one class")
        classes = {}
    problems += [
        f"classes: {name!r} is not a class name; use one line of text in quotes, other than {BOTH!r} and {NONE!r}"
        for name in classes
        if not isinstance(name, str) or not name.strip() or has_controls(name) or name in (BOTH, NONE)
    ]
    lists = {f"classes.{name}": phrases for name, phrases in classes.items()}
    if raw.get("ignored") is not None:
        lists["ignored"] = raw["ignored"]
    for key in ("negation", "uncertainty"):
        triggers = raw.get(key) or {}
        if not isinstance(triggers, Mapping) or not set(triggers) <= {*_SIDES}:
            problems.append(f"{key}: must be a mapping with the keys {' and '.join(_SIDES)}")
            continue
        for side, phrases in triggers.items():
            problems += _phrase_problems(f"{key}.{side}", phrases, expressions=False)
    for key, phrases in lists.items():
        problems += _phrase_problems(key, phrases, expressions=True)
    return problems + _repeated_phrases(lists) + _section_problems(raw) + _negated_problems(raw, classes)


def _phrase_problems(key: str, phrases: Any, *, expressions: bool) -> list[str]:
    if not isinstance(phrases, list) or not phrases:
        return [f"{key}: must be a list with at least one phrase"]
    problems = []
    for index, phrase in enumerate(phrases):
        if not isinstance(phrase, str):
            problems.append(f"{key}[{index}]: {phrase!r} is not a string; write it in quotes")
        elif problem := _phrase_problem(phrase, expressions):
            problems.append(f"{key}[{index}]: {problem}")
    return problems


def _phrase_problem(phrase: str, expressions: bool) -> str:
    """Describe the problem with a phrase; "" if it is valid."""
    try:
        pattern = regular_expression(phrase)
    except re.error as error:
        return f"{phrase!r} is not a valid regular expression: {error}"
    if pattern is not None:
        if not expressions:
            return f"{phrase!r}: triggers cannot be regular expressions"
        return f"{phrase!r} matches the empty string" if pattern.search("") else ""
    phrase = plain_phrase(phrase)
    if not tokenize(phrase):
        return "is empty; write a phrase, or remove it"
    if phrase.strip().startswith("-") or phrase.strip().endswith("-"):
        return f"{phrase!r}: a hyphen at its start or end has no effect; write a regular expression: /.../"
    return ""


def _repeated_phrases(lists: Mapping[str, Any]) -> list[str]:
    """Describe phrases that occur twice, in the same or in different lists."""
    keys_of: dict[object, list[str]] = {}
    for key, phrases in lists.items():
        for phrase in phrases if isinstance(phrases, list) else []:
            if isinstance(phrase, str):
                same = phrase if is_expression(phrase) else tuple(token.text for token in tokenize(phrase))
                if same:
                    keys_of.setdefault(same, []).append(f"{key} ({phrase!r})")
    return [f"the same phrase is given twice: {' and '.join(keys)}" for keys in keys_of.values() if len(keys) > 1]


def _section_problems(raw: Mapping[Any, Any]) -> list[str]:
    sections = raw.get("sections") or []
    if not isinstance(sections, list):
        return ["sections: must be a list"]
    return [
        f"sections: unknown section {section!r}; known sections are {', '.join(SECTIONS)}"
        for section in sections
        if section not in SECTIONS
    ]


def _negated_problems(raw: Mapping[Any, Any], classes: Mapping[Any, Any]) -> list[str]:
    negated = raw.get("negated") or {}
    if not isinstance(negated, Mapping):
        return ["negated: must be a mapping from classes to classes"]
    problems = [
        f"negated: {name!r} is not a class of this set"
        for name in dict.fromkeys([*negated, *negated.values()])
        if name not in classes
    ]
    return problems + [f"negated.{name}: must be a different class" for name, other in negated.items() if name == other]
