"""The linter of prompt sets: what cannot work (errors), and what probably was not meant (warnings)."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipit.prompts import files
from clipit.prompts.prompt_set import PLACEHOLDER, PromptSet, parse_prompts, set_problems
from clipit.types import TokenCounter

_SMALL_WORDS = frozenset(("a", "an", "of", "the"))


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a prompt set, or looks so."""

    level: Literal["error", "warning"]
    key: str
    """Path in the file, such as `classes.STR[2]`."""
    what: str
    fix: str

    def text(self) -> str:
        """One line for people."""
        return f"{self.level}: {self.key}: {self.what}; to do: {self.fix}"


@dataclass(frozen=True)
class _Name:
    owner: str
    key: str
    text: str
    folded: str


def fold(text: str) -> str:
    """A name without case, punctuation and surplus spaces: `In-situ  carcinoma.` and `in situ carcinoma` are equal."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("_", " ")))


def lint_prompts(
    prompts: PromptSet,
    classes: Sequence[str] | None = None,
    count_tokens: TokenCounter | None = None,
    budget: int | None = None,
) -> list[Finding]:
    """Look a prompt set over; errors first, each group in the file's order.

    Errors: a name under two classes (also when only case, spaces or punctuation differ), empty names, names or
    templates given twice, a template without exactly one `{}`, fewer than two classes, a class without names, classes
    that are not the tiles'. Warnings: two names of a class that differ in punctuation only; names of two classes with
    the same words in another order (`a`, `an`, `of`, `the` do not count); a name that contains a name of another class;
    texts over the token budget.

    Args:
        prompts: The set; it need not have passed `load_prompts`.
        classes: Class names of the tiles, where they are known.
        count_tokens: The text tower's counter; with `budget`, lengths are looked at.
        budget: Most tokens of a text.
    """
    names = [
        _Name(owner, f"classes.{owner}[{i}]", text, fold(text))
        for owner, texts in prompts.classes.items()
        for i, text in enumerate(texts)
    ]
    findings = [
        *_templates(prompts.templates),
        *_class_list(prompts, classes),
        *_empty(names),
        *_same(names),
        *_alike(names),
        *_tokens(prompts, count_tokens, budget),
    ]
    return sorted(findings, key=lambda finding: finding.level != "error")


def lint_file(
    name_or_path: str | Path,
    classes: Sequence[str] | None = None,
    count_tokens: TokenCounter | None = None,
    budget: int | None = None,
) -> list[Finding]:
    """`lint_prompts` of a YAML file or a packaged set; a file that cannot be loaded gets its problems as errors.

    Raises:
        DataError: There is no such file, or it is not YAML.
    """
    path = files.find(name_or_path, "sets")
    raw, repeated = files.read(path)
    problems = set_problems(raw, repeated)
    if problems:
        parts = [problem.partition(": ") for problem in problems]
        return [Finding("error", key, what, "correct it, then lint the file again") for key, _, what in parts]
    return lint_prompts(parse_prompts(raw, path), classes, count_tokens, budget)


def _templates(templates: Sequence[str]) -> Iterator[Finding]:
    if not templates:
        yield Finding("error", "templates", "there is none", f"give at least one, such as {PLACEHOLDER}")
    seen: dict[str, str] = {}
    for i, template in enumerate(templates):
        key = f"templates[{i}]"
        if template.count(PLACEHOLDER) != 1:
            what = f"{template!r} holds {PLACEHOLDER} {template.count(PLACEHOLDER)} times"
            yield Finding("error", key, what, f"write {PLACEHOLDER} once, in place of the class's name")
        folded = " ".join(template.casefold().split())
        if folded in seen:
            yield Finding("error", key, f"{template!r} is given twice, see {seen[folded]}", "remove one of them")
        seen.setdefault(folded, key)


def _class_list(prompts: PromptSet, classes: Sequence[str] | None) -> Iterator[Finding]:
    if len(prompts.classes) < 2:
        yield Finding("error", "classes", f"{len(prompts.classes)} given", "give at least two")
    for name, texts in prompts.classes.items():
        if not texts:
            yield Finding("error", f"classes.{name}", "no names", "give at least one")
    if classes is None:
        return
    for name in (name for name in classes if name not in prompts.classes):
        yield Finding("error", "classes", f"the tiles' class {name} is missing", f"add classes.{name}")
    for name in (name for name in prompts.classes if name not in classes):
        what = f"no tiles have this class; theirs are {', '.join(classes)}"
        yield Finding("error", f"classes.{name}", what, "remove it, or name it as the tiles do")


def _empty(names: Sequence[_Name]) -> Iterator[Finding]:
    for name in names:
        if not name.folded:
            yield Finding("error", name.key, f"{name.text!r} has no word in it", "write a name, or remove it")


def _same(names: Sequence[_Name]) -> Iterator[Finding]:
    """Names that are equal after folding, within a class and across classes."""
    first: dict[tuple[str, str], _Name] = {}
    for name in (name for name in names if name.folded):
        for other in [known for (folded, _), known in first.items() if folded == name.folded]:
            what = f"{name.text!r} is also {other.key}"
            if other.owner != name.owner:
                yield Finding("error", name.key, what, "a name under two classes cannot tell them apart: keep one")
            elif " ".join(other.text.casefold().split()) == " ".join(name.text.casefold().split()):
                yield Finding("error", name.key, what, "remove one of them: it would weigh twice")
            else:
                what = f"{name.text!r} and {other.key} differ in punctuation only"
                yield Finding("warning", name.key, what, "keep one, unless both spellings are meant")
        first.setdefault((name.folded, name.owner), name)


def _alike(names: Sequence[_Name]) -> Iterator[Finding]:
    """Names of different classes with the same words, or of which one contains the other."""
    for i, name in enumerate(names):
        for other in names[:i]:
            if other.owner == name.owner or not name.folded or not other.folded or name.folded == other.folded:
                continue
            if _words(name.folded) == _words(other.folded):
                what = f"{name.text!r} has the same words as {other.text!r} ({other.key})"
                yield Finding("warning", name.key, what, "reword one: their embeddings will hardly differ")
                continue
            long, short = (name, other) if len(name.folded) > len(other.folded) else (other, name)
            if f" {short.folded} " in f" {long.folded} ":
                what = f"{long.text!r} contains {short.text!r} ({short.key})"
                yield Finding("warning", long.key, what, "make sure that the two classes are still told apart")


def _words(folded: str) -> frozenset[str]:
    return frozenset(folded.split()) - _SMALL_WORDS


def _tokens(prompts: PromptSet, count_tokens: TokenCounter | None, budget: int | None) -> Iterator[Finding]:
    if count_tokens is None or budget is None:
        return
    for name in (name for name, texts in prompts.classes.items() if texts):
        counts = count_tokens(prompts.texts(name))
        over = [count - budget for count in counts if count > budget]
        if over:
            what = f"{len(over)} of {len(counts)} texts have more than {budget} tokens; {sum(over)} tokens are cut"
            yield Finding("warning", f"classes.{name}", what, "shorten its names or the templates")
