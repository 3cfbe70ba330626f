"""Read prompt files published with CONCH, MI-Zero, KEP and KEEP, and convert them to prompt sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipit.errors import DataError
from clipit.prompts import files

_NAME = "CLASSNAME"
_KEYS = {"classnames", "templates"}
_CLIPIT_KEYS = {"name", "version", "source", "licence", "templates", "classes"}
_CONFIGURATION = {"tiles", "reports", "backbone", "training", "comparison"}
_CLIPIT = ("classes", "name, version, templates and classes (a clipit prompt set)")
_ONE = ("classnames", "classnames and templates (one published set)")
_MANY = "numbered entries, each with classnames and templates (CONCH, MI-Zero, KEP, KEEP)"
_EXPECTED = f"use a file with one of these structures: {_CLIPIT[1]}; {_ONE[1]}; {_MANY}"


def read_set(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a prompt set from YAML or JSON; return a mapping with the keys of a prompt set, and the repeated keys.

    A published file has one or several entries, each with names per class and templates with the word CLASSNAME.
    Several entries (50 in MI-Zero's files, 100 in KEP's) are samples from one pool of names and templates. This pool is
    returned: all distinct names of each class, and all distinct templates, in the order of the file. The prompt study's
    mode `sampled` draws from it; `read_draws` reads the samples themselves.

    Args:
        path: The file; its format is detected from its structure.

    Raises:
        DataError: The file cannot be read, has no known structure or more than one, or its entries differ in their
            classes; all problems are listed at once.
    """
    raw, repeated = files.read(path)
    entries = _entries(raw, path)
    return (raw, repeated) if entries is None else (_pool(entries, path), repeated)


def read_draws(path: Path) -> list[dict[str, Any]]:
    """Read every entry of a published file as a separate mapping with the keys of a prompt set.

    MI-Zero samples 50 entries, each with one name per class and some of the templates, and reports the median of their
    scores. The sets are named after the file and the key of the entry, such as `mizero_rcc_prompts-0`. A file with one
    set yields one entry.

    Raises:
        DataError: As in `read_set`.
    """
    raw, repeated = read_set(path)
    files.raise_prompt_problems([f"{key}: is given twice" for key in repeated], path)
    entries = _entries(files.read(path)[0], path)
    if entries is None or len(entries) == 1:
        return [raw]
    return [_pool({key: entry}, path) | {"name": f"{path.stem}-{key}"} for key, entry in entries.items()]


def _entries(raw: Mapping[str, Any], path: Path) -> Mapping[str, Any] | None:
    """Return the entries of a published file, by key; None for a clipit prompt set."""
    structures = _structures(raw)
    if len(structures) != 1:
        problem = f"mixes {len(structures)} structures" if structures else "has an unknown structure"
        keys = f"its keys are {', '.join(list(raw)[:5])}" if raw else "it has no keys"
        configuration = _CONFIGURATION & {*raw}
        raise DataError(
            "a configuration, not a prompt file" if configuration else f"the prompt file {problem}; {keys}",
            where=path,
            fix="use the file that its key `prompts` names" if "prompts" in raw and configuration else _EXPECTED,
        )
    if structures[0] == _CLIPIT[0]:
        return None
    return {"": raw} if structures[0] == _ONE[0] else raw


def _structures(raw: Mapping[str, Any]) -> list[str]:
    """List the known structures that the keys of a file match."""
    # `classes` and `templates` may also be keys of a configuration or of a summary.
    complete, mostly_clipit = {"templates", "classes"} <= {*raw}, len(_CLIPIT_KEYS & {*raw}) * 2 >= len(raw)
    structures = [name for name, _ in (_CLIPIT, _ONE) if name in raw and (name == _ONE[0] or complete or mostly_clipit)]
    if any(isinstance(value, Mapping) and _KEYS & {*value} for key, value in raw.items() if key != _CLIPIT[0]):
        structures.append(_MANY)
    # An incomplete clipit prompt set is recognised as one, so that its missing keys are listed.
    return structures or ([_CLIPIT[0]] if {"name", "version"} & {*raw} and mostly_clipit else [])


def _pool(entries: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Merge the entries of a published file: distinct names by class and distinct templates, in order."""
    problems: list[str] = []
    classes: dict[str, list[str]] = {}
    templates: list[str] = []
    first: set[str] | None = None
    for key, entry in entries.items():
        prefix = f"{key}." if key else ""
        if not isinstance(entry, Mapping) or {*entry} != _KEYS:
            keys = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else repr(entry)[:60]
            problems.append(f"{key or 'file'}: must contain exactly classnames and templates, not {keys}")
            continue
        names = entry["classnames"]
        if not isinstance(names, Mapping):
            problems.append(f"{prefix}classnames: must be a mapping from class to names")
            continue
        first = {*names} if first is None else first
        if {*names} != first:
            differing = ", ".join(sorted(map(str, {*names} ^ first)))
            problems.append(f"{prefix}classnames: classes differ from those of the first entry: {differing}")
        for name, texts in names.items():
            _add(classes.setdefault(str(name), []), texts, f"{prefix}classnames.{name}", problems)
        for template in _add([], entry["templates"], f"{prefix}templates", problems):
            if template.count(_NAME) != 1:
                problems.append(f"{prefix}templates: {template!r} must contain {_NAME} exactly once")
            _add(templates, template.replace(_NAME, "{}"), f"{prefix}templates", problems)
    files.raise_prompt_problems(problems, path)
    source = f"published prompts, read from {path.name}"
    return {"name": path.stem, "version": "published", "source": source, "templates": templates, "classes": classes}


def _add(known: list[str], texts: object, key: str, problems: list[str]) -> list[str]:
    """Add one text or a list of texts to a list, without duplicates, and return the list."""
    texts = [texts] if isinstance(texts, str) else texts
    new_problems = files.text_problems(key, texts, "texts")
    problems += new_problems
    if not new_problems and isinstance(texts, Sequence):
        known += [text for text in texts if text not in known]
    return known
