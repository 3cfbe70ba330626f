"""Prompt sets (names per class, and templates) and prompt bags (texts that represent one concept)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipit.errors import DataError, has_controls, printable
from clipit.output_files.artifacts import fingerprint
from clipit.prompts import files
from clipit.prompts.published_prompts import read_draws, read_set

_BAG_KEYS = ("name", "version", "source", "texts")


@dataclass(frozen=True)
class PromptBag:
    """Texts that represent one concept, such as the snippets that a filter should keep."""

    name: str
    version: str
    texts: tuple[str, ...]
    source: str = ""

    @property
    def hash(self) -> str:
        """Fingerprint of the texts."""
        return fingerprint(self.texts)


def load_prompt_bag(name_or_path: str | Path) -> PromptBag:
    """Read a prompt bag (name, version, texts and, optionally, source) from a YAML or JSON file, or a packaged one.

    Raises:
        DataError: The file does not exist, or its content is invalid; all problems are listed at once.
    """
    path = files.find(name_or_path, "bags")
    raw, repeated = files.read(path)
    problems = files.key_problems(raw, repeated, _BAG_KEYS, required=("name", "version", "texts"))
    problems += files.text_problems("texts", raw["texts"], "texts") if raw.get("texts") is not None else []
    files.raise_prompt_problems(problems, path, "a bag has a name, a version and texts (a list of sentences)")
    return PromptBag(str(raw["name"]), str(raw["version"]), tuple(raw["texts"]), str(raw.get("source", "")).strip())


_SET_KEYS = ("name", "version", "source", "licence", "templates", "classes")
PLACEHOLDER = "{}"
_KEYS = (
    "a set has a name, a version, templates (a list of sentences such as 'an image of {}.') and classes (a list of "
    "names for each class)"
)


@dataclass(frozen=True)
class PromptSet:
    """Class names and templates for zero-shot prompts; `load_prompts` reads a set from a file.

    Attributes:
        templates: Sentences with one `{}` each.
        classes: Names of each class, in the order of the file.
        licence: Licence of names and templates; "" if it is not stated.
    """

    name: str
    version: str
    templates: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    source: str = ""
    licence: str = ""

    def texts(self, class_name: str) -> list[str]:
        """Return every name of a class in every template: `len(names) * len(templates)` texts.

        Raises:
            DataError: The class is unknown.
        """
        if class_name not in self.classes:
            raise DataError(
                f"prompt set {self.name} has no class {class_name}", fix=f"use one of: {', '.join(self.classes)}"
            )
        names = self.classes[class_name]
        return [template.replace(PLACEHOLDER, name) for name in names for template in self.templates]

    @property
    def hash(self) -> str:
        """Fingerprint of classes, names and templates, independent of the name of the set."""
        return fingerprint({"templates": self.templates, "classes": dict(self.classes)})


def load_prompts(name_or_path: str | Path) -> PromptSet:
    """Read a prompt set from a file, or a packaged one by its name.

    The file is a prompt set in YAML or JSON, or a file published with CONCH, MI-Zero, KEP or KEEP; see
    `clipit.prompts.published_prompts.read_set`.

    Raises:
        DataError: The file does not exist, or its content is invalid; all problems are listed at once.
    """
    path = files.find(name_or_path, "sets")
    raw, repeated = read_set(path)
    return parse_prompts(raw, path, repeated)


def load_prompt_draws(name_or_path: str | Path) -> list[PromptSet]:
    """Read the sampled prompt sets of a published file one by one; see `clipit.prompts.published_prompts.read_draws`.

    Raises:
        DataError: The file does not exist, or its content is invalid; all problems are listed at once.
    """
    path = files.find(name_or_path, "sets")
    return [parse_prompts(raw, path) for raw in read_draws(path)]


def parse_prompts(raw: Mapping[str, Any], where: object, repeated: Sequence[str] = ()) -> PromptSet:
    """Validate the content of a prompt set's file and convert it to a `PromptSet`.

    Args:
        raw: Mapping with the keys name, version, templates, classes and, optionally, source and licence.
        repeated: Keys that occur twice in the file.

    Raises:
        DataError: Unknown or missing keys, a template without `{}`, a class without names, a name that is
            listed twice or under two classes, or another problem; all problems are listed at once.
    """
    files.raise_prompt_problems(set_problems(raw, repeated), where, _KEYS)
    return PromptSet(
        name=str(raw["name"]),
        version=str(raw["version"]),
        templates=tuple(raw["templates"]),
        classes={name: tuple(names) for name, names in raw["classes"].items()},
        source=str(raw.get("source", "")).strip(),
        licence=str(raw.get("licence", "")).strip(),
    )


def set_problems(raw: Mapping[str, Any], repeated: Sequence[str] = ()) -> list[str]:
    """List the problems that make a mapping invalid as a prompt set, each as `key: problem`."""
    problems = files.key_problems(raw, repeated, _SET_KEYS, required=("name", "version", "templates", "classes"))
    problems += _template_problems(raw["templates"]) if raw.get("templates") is not None else []
    problems += _class_problems(raw["classes"]) if raw.get("classes") is not None else []
    return problems


def unused_classes(prompts: PromptSet, classes: Sequence[str]) -> list[str]:
    """List the classes of a prompt set that the tiles do not have; zero-shot prediction ignores them."""
    return sorted(set(prompts.classes) - set(classes))


def check_classes(prompts: PromptSet, classes: Sequence[str]) -> None:
    """Check that a prompt set has all tile classes, in any order; additional classes are ignored.

    Raises:
        DataError: A tile class has no prompts; the message lists the prompt classes and the tile classes.
    """
    without_prompts = sorted(set(classes) - set(prompts.classes))
    if not without_prompts:
        return
    without_tiles = unused_classes(prompts, classes)
    raise DataError(
        f"prompt set {prompts.name} has no prompts for some tile classes\n"
        f"  prompts: {', '.join(prompts.classes)}\n"
        f"  tiles: {', '.join(classes)}\n"
        f"  without prompts: {', '.join(without_prompts)}; "
        f"without tiles: {', '.join(without_tiles) or 'none'}",
        where="the configuration key prompts",
        fix="use a prompt set with all tile classes, or rename the classes in its file or in tiles.class_map",
    )


def _template_problems(templates: object) -> list[str]:
    problems = files.text_problems("templates", templates, "sentences with {} in place of the class name")
    if isinstance(templates, Sequence) and not isinstance(templates, str):
        problems += [
            f"templates[{i}]: {template!r} must contain {PLACEHOLDER} exactly once, in place of the class name"
            for i, template in enumerate(templates)
            if isinstance(template, str) and template.count(PLACEHOLDER) != 1
        ]
    return problems


def _class_problems(classes: object) -> list[str]:
    if not isinstance(classes, Mapping):
        return ["classes: must be a mapping, class -> list of names"]
    problems = [] if len(classes) > 1 else ["classes: at least two are needed"]
    owner: dict[str, str] = {}
    for key, names in classes.items():
        if not isinstance(key, str):
            problems.append(f"classes.{key}: the class name is not a string; write it in quotes")
        elif has_controls(key) or not key.strip():
            problems.append(f"classes: {key!r} is empty or contains a control character; write the class on one line")
        problems += files.text_problems(f"classes.{printable(str(key))}", names, "names")
        if not isinstance(names, Sequence) or isinstance(names, str):
            continue
        problems += [
            f"classes.{key}[{i}]: {name!r} is a template; write the name alone, and move the sentence to templates"
            for i, name in enumerate(names)
            if isinstance(name, str) and PLACEHOLDER in name
        ]
        for name in sorted({entry.strip().casefold() for entry in names if isinstance(entry, str)}):
            if name in owner:
                problems.append(f"classes.{key}: {name!r} is also a name of {owner[name]}; keep only one")
            owner.setdefault(name, str(key))
    return problems
