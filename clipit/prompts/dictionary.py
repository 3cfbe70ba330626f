"""Prompt dictionary: histology terms with rephrasings, findings and causes, for text bags."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipit.errors import DataError, counted
from clipit.output_files.artifacts import fingerprint
from clipit.prompts import files
from clipit.prompts.lint import normalise_text

KINDS = ("tissue", "cell", "pattern", "grade", "change", "tumour", "cause", "context", "artefact")
_FOLDER = Path(__file__).parent / "dictionaries"
_KEYS = ("name", "version", "chapter", "entries")
_TEXTS = ("id", "term", "kind", "organ", "source")
_LISTS = {"variants": (2, 5), "findings": (0, 3), "causes": (0, 3)}
"""Minimum and maximum number of texts in each list; the maxima are those of CPLIP's bags."""

MAX_TEXTS = 1 + sum(maximum for _, maximum in _LISTS.values())
"""Maximum number of texts in an entry."""


@dataclass(frozen=True)
class Entry:
    """One histology term.

    Attributes:
        id: Identifier, independent of the wording.
        term: Preferred wording of the term.
        variants: Rephrasings of the term.
        kind: One of `KINDS`.
        organ: Organ where the term occurs, or `any`.
        source: Vocabulary or field of practice that the term comes from.
        findings: Histological findings associated with the term.
        causes: Possible causes.
    """

    id: str
    term: str
    variants: tuple[str, ...]
    kind: str
    organ: str
    source: str
    findings: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dictionary:
    """Dictionary entries by id, in the order of the files; `load_dictionary` reads a dictionary."""

    name: str
    version: str
    entries: Mapping[str, Entry]

    def entry(self, entry_id: str) -> Entry:
        """Look up an entry by its id.

        Raises:
            DataError: The id is unknown.
        """
        if entry_id not in self.entries:
            near = difflib.get_close_matches(entry_id, self.entries, n=1, cutoff=0.5)
            fix = f"did you mean {near[0]}?" if near else "use an id from the dictionary's files"
            raise DataError(f"unknown entry {entry_id} in dictionary {self.name}", fix=fix)
        return self.entries[entry_id]

    def texts(self, entry_id: str) -> list[str]:
        """Return the term and its rephrasings.

        Raises:
            DataError: The id is unknown.
        """
        entry = self.entry(entry_id)
        return [entry.term, *entry.variants]

    def bag(self, entry_id: str) -> list[str]:
        """Return the distinct texts of an entry: its term, rephrasings, findings and causes.

        CPLIP (CVPR 2024) builds bags of up to 17 texts: the best-matching prompt, 5 rephrasings, 3 causes, 3 symptoms
        and 5 retrieved captions. An entry provides up to 12 of these; the caller adds the captions.

        Raises:
            DataError: The id is unknown.
        """
        entry = self.entry(entry_id)
        return list(dict.fromkeys([*self.texts(entry_id), *entry.findings, *entry.causes]))

    @cached_property
    def hash(self) -> str:
        """Fingerprint of all ids and texts."""
        return fingerprint([[e.id, e.term, e.variants, e.findings, e.causes] for e in self.entries.values()])


def load_dictionary(name_or_path: str | Path = "histology") -> Dictionary:
    """Read a packaged dictionary by its name, a YAML file, or a folder of YAML files (chapters).

    Raises:
        DataError: The dictionary does not exist or is invalid (repeated ids or terms, a variant that is the term of
            another entry, an unknown kind, too many or too few texts, ...); all problems are listed at once.
    """
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    terms: dict[str, str] = {}
    titles: set[tuple[str, str]] = set()
    for file in _files(name_or_path):
        raw, repeated = files.read(file)
        titles.add((str(raw.get("name")), str(raw.get("version"))))
        in_file = files.key_problems(raw, repeated, _KEYS, required=("name", "version", "entries"))
        items = raw.get("entries") or []
        in_file += [] if isinstance(items, list) else ["entries: must be a list of entries"]
        for index, item in enumerate(items if isinstance(items, list) else []):
            key, in_entry = f"entries[{index}]", _entry_problems(item)
            in_file += [f"{key}{problem}" for problem in in_entry]
            if not in_entry:
                entry = Entry(**(item | {name: tuple(item.get(name) or ()) for name in _LISTS}))
                term = normalise_text(entry.term)
                in_file += [f"{key}.id: {entry.id} is given twice"] if entry.id in entries else []
                in_file += [f"{key}.term: {entry.term!r} is also the term of {terms[term]}"] if term in terms else []
                entries.setdefault(entry.id, entry)
                terms.setdefault(term, entry.id)
        problems += [f"{file.name}: {problem}" for problem in in_file]
    problems += [
        f"{entry.id}.variants: {text!r} is the term of {terms[normalise_text(text)]}"
        for entry in entries.values()
        for text in entry.variants
        if terms.get(normalise_text(text), entry.id) != entry.id
    ]
    if len(titles) > 1:
        problems.append(f"name and version differ between chapters: {sorted(titles)}")
    files.raise_prompt_problems(problems, name_or_path)
    name, version = titles.pop()
    return Dictionary(name, version, entries)


def _files(name_or_path: str | Path) -> list[Path]:
    path = Path(name_or_path)
    for folder in (path, _FOLDER / str(name_or_path)):
        if folder.is_dir() and (chapters := sorted(folder.glob("*.yaml"))):
            return chapters
    if path.is_file():
        return [path]
    names = sorted(folder.name for folder in _FOLDER.iterdir() if folder.is_dir())
    fix = f"use a YAML file, a folder of YAML files, or one of: {', '.join(names)}"
    raise DataError(f"unknown dictionary: {name_or_path}", where=path.absolute(), fix=fix)


def _entry_problems(item: object) -> list[str]:
    """List the problems of one entry; each starts with the key within the entry."""
    if not isinstance(item, Mapping):
        return [": is not a mapping"]
    problems = [f".{key}: unknown key" for key in item if key not in (*_TEXTS, *_LISTS)]
    for name in _TEXTS:
        if not isinstance(item.get(name), str) or not item[name].strip():
            problems.append(f".{name}: is missing or not a string")
    if isinstance(item.get("kind"), str) and item["kind"] not in KINDS:
        problems.append(f".kind: {item['kind']!r} is not one of {', '.join(KINDS)}")
    for name, (minimum, maximum) in _LISTS.items():
        texts = item.get(name) or []
        if texts or minimum:
            problems += [f".{problem}" for problem in files.text_problems(name, texts, "texts")]
        if isinstance(texts, Sequence) and not isinstance(texts, str) and not minimum <= len(texts) <= maximum:
            problems.append(f".{name}: {counted(len(texts), 'text')}; {minimum} to {maximum} are allowed")
    variants = item.get("variants")
    if isinstance(item.get("term"), str) and isinstance(variants, list) and item["term"] in variants:
        problems.append(".variants: contains the term itself")
    return problems
