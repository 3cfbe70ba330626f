"""Linter for prompt sets: errors, and warnings about texts that are probably mistakes."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipit.errors import counted, counted_of
from clipit.prompts import files
from clipit.prompts.prompt_set import PLACEHOLDER, PromptSet, parse_prompts, set_problems
from clipit.prompts.published_prompts import read_set
from clipit.types import TokenCounter

_SMALL_WORDS = frozenset(("a", "an", "of", "the"))


@dataclass(frozen=True)
class LintMessage:
    """One error or warning about a prompt set."""

    level: Literal["error", "warning"]
    key: str
    """Key in the file, such as `classes.STR[2]`."""
    problem: str
    fix: str

    def text(self) -> str:
        """Format the message as one line."""
        return f"{self.level}: {self.key}: {self.problem}; fix: {self.fix}"


@dataclass(frozen=True)
class _Name:
    owner: str
    key: str
    text: str
    normalised: str


def normalise_text(text: str) -> str:
    """Normalise case, punctuation and spaces, so that `In-situ  carcinoma.` equals `in situ carcinoma`.

    Signs after a word, as in `CD3+` and `CD3-`, and comparisons are kept.
    """
    return " ".join(re.findall(r"\w+|(?<=\w)[+-]+(?!\w)|[<>%]", text.casefold().replace("_", " ")))


def lint_prompts(
    prompts: PromptSet,
    classes: Sequence[str] | None = None,
    count_tokens: TokenCounter | None = None,
    budget: int | None = None,
) -> list[LintMessage]:
    """Lint a prompt set, and return errors first, then warnings, each in the order of the file.

    Errors: a name under two classes (ignoring case, spaces and punctuation), empty names, repeated names or templates,
    a template without exactly one `{}`, fewer than two classes, a class without names, and a tile class without
    prompts. Warnings: two names of a class that differ only in punctuation; names of two classes with the same words in
    a different order (ignoring `a`, `an`, `of`, `the`); a name that contains a name of a different class; a class that
    no tile has; and texts over the token budget.

    Args:
        prompts: Prompt set, which may be invalid.
        classes: Class names of the tiles; None if unknown.
        count_tokens: Token counter of the text tower; lengths are checked only if `budget` is also given.
        budget: Maximum number of tokens per text.
    """
    names = [
        _Name(owner, f"classes.{owner}[{i}]", text, normalise_text(text))
        for owner, texts in prompts.classes.items()
        for i, text in enumerate(texts)
    ]
    findings = [
        *_check_templates(prompts.templates),
        *_check_classes(prompts, classes),
        *_check_empty(names),
        *_check_equal(names),
        *_check_similar(names),
        *_check_lengths(prompts, count_tokens, budget),
    ]
    return sorted(findings, key=lambda finding: finding.level != "error")


def lint_file(
    name_or_path: str | Path,
    classes: Sequence[str] | None = None,
    count_tokens: TokenCounter | None = None,
    budget: int | None = None,
) -> list[LintMessage]:
    """Lint a file or a packaged set; the problems of an invalid file are returned as errors.

    Raises:
        DataError: The file does not exist, or is neither YAML nor JSON.
    """
    path = files.find(name_or_path, "sets")
    raw, repeated = read_set(path)
    problems = set_problems(raw, repeated)
    if problems:
        parts = [problem.partition(": ") for problem in problems]
        return [LintMessage("error", key, message, "correct it and lint the file again") for key, _, message in parts]
    return lint_prompts(parse_prompts(raw, path), classes, count_tokens, budget)


def _check_templates(templates: Sequence[str]) -> Iterator[LintMessage]:
    if not templates:
        yield LintMessage("error", "templates", "no templates", f"add at least one, such as {PLACEHOLDER}")
    key_of: dict[str, str] = {}
    for i, template in enumerate(templates):
        key = f"templates[{i}]"
        if template.count(PLACEHOLDER) != 1:
            problem = f"{template!r} contains {PLACEHOLDER} {template.count(PLACEHOLDER)} times"
            yield LintMessage("error", key, problem, f"write {PLACEHOLDER} once, in place of the class name")
        normalised = " ".join(template.casefold().split())
        if normalised in key_of:
            yield LintMessage(
                "error", key, f"{template!r} is given twice, see {key_of[normalised]}", "remove one of them"
            )
        key_of.setdefault(normalised, key)


def _check_classes(prompts: PromptSet, classes: Sequence[str] | None) -> Iterator[LintMessage]:
    if len(prompts.classes) < 2:
        yield LintMessage(
            "error",
            "classes",
            f"only {counted(len(prompts.classes), 'class', 'classes')}",
            "add classes; at least two are needed",
        )
    for name, texts in prompts.classes.items():
        if not texts:
            yield LintMessage("error", f"classes.{name}", "no names", "add at least one")
    if classes is None:
        return
    for name in (name for name in classes if name not in prompts.classes):
        yield LintMessage("error", "classes", f"the tiles' class {name} is missing", f"add classes.{name}")
    for name in (name for name in prompts.classes if name not in classes):
        problem = f"no tile has this class, so it is ignored; the tiles' classes are {', '.join(classes)}"
        yield LintMessage("warning", f"classes.{name}", problem, "if it is one of these classes, use the same name")


def _check_empty(names: Sequence[_Name]) -> Iterator[LintMessage]:
    for name in names:
        if not name.normalised:
            yield LintMessage("error", name.key, f"{name.text!r} contains no words", "write a name, or remove it")


def _check_equal(names: Sequence[_Name]) -> Iterator[LintMessage]:
    """Report names that are equal after `normalise_text`, within a class or across classes."""
    first: dict[tuple[str, str], _Name] = {}
    for name in (name for name in names if name.normalised):
        for other in [earlier for (normalised, _), earlier in first.items() if normalised == name.normalised]:
            problem = f"{name.text!r} is also {other.key}"
            if other.owner != name.owner:
                yield LintMessage(
                    "error", name.key, problem, "a name under two classes cannot distinguish them: keep one"
                )
            elif " ".join(other.text.casefold().split()) == " ".join(name.text.casefold().split()):
                yield LintMessage("error", name.key, problem, "remove one of them: it would count twice")
            else:
                problem = f"{name.text!r} and {other.key} differ only in punctuation"
                yield LintMessage("warning", name.key, problem, "keep one, unless both spellings are intended")
        first.setdefault((name.normalised, name.owner), name)


def _check_similar(names: Sequence[_Name]) -> Iterator[LintMessage]:
    """Report pairs of names of different classes that have the same words, or in which one name contains the other."""
    for i, name in enumerate(names):
        for other in names[:i]:
            if (
                other.owner == name.owner
                or not name.normalised
                or not other.normalised
                or name.normalised == other.normalised
            ):
                continue
            if _words(name.normalised) == _words(other.normalised):
                problem = f"{name.text!r} has the same words as {other.text!r} ({other.key})"
                yield LintMessage("warning", name.key, problem, "reword one: their embeddings will hardly differ")
                continue
            long, short = (name, other) if len(name.normalised) > len(other.normalised) else (other, name)
            if f" {short.normalised} " in f" {long.normalised} ":
                problem = f"{long.text!r} contains {short.text!r} ({short.key})"
                yield LintMessage(
                    "warning", long.key, problem, "make sure that the VLM can still distinguish the classes"
                )


def _words(normalised: str) -> frozenset[str]:
    return frozenset(normalised.split()) - _SMALL_WORDS


def _check_lengths(prompts: PromptSet, count_tokens: TokenCounter | None, budget: int | None) -> Iterator[LintMessage]:
    if count_tokens is None or budget is None:
        return
    for name in (name for name, texts in prompts.classes.items() if texts):
        counts = count_tokens(prompts.texts(name))
        over = [count - budget for count in counts if count > budget]
        if over:
            problem = (
                f"{counted_of(len(over), len(counts), 'text has', 'texts have')} more than {budget} tokens; "
                f"{counted(sum(over), 'token is', 'tokens are')} dropped in total"
            )
            yield LintMessage("warning", f"classes.{name}", problem, "shorten its names or the templates")
