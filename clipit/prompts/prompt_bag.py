"""Prompt bags: texts that together stand for one thing, such as what a snippet filter keeps."""

from dataclasses import dataclass
from pathlib import Path

from clipit.artifacts import fingerprint
from clipit.prompts import yaml_file

_KEYS = ("name", "version", "source", "texts")


@dataclass(frozen=True)
class PromptBag:
    """Several texts that stand for one thing."""

    name: str
    version: str
    texts: tuple[str, ...]
    source: str = ""

    @property
    def hash(self) -> str:
        """Fingerprint of the texts."""
        return fingerprint(self.texts)


def load_bag(name_or_path: str | Path) -> PromptBag:
    """Read a prompt bag from a YAML file (keys name, version, texts), or a packaged one by its name.

    Raises:
        DataError: There is no such file, or its content is wrong; all problems are listed at once.
    """
    path = yaml_file.find(name_or_path, "bags")
    raw, repeated = yaml_file.read(path)
    problems = [f"{key}: is given twice; only the last one would count" for key in repeated]
    problems += [f"{key}: unknown key; known are {', '.join(_KEYS)}" for key in raw if key not in _KEYS]
    problems += [f"{key}: is missing" for key in ("name", "version", "texts") if raw.get(key) is None]
    problems += yaml_file.text_problems("texts", raw["texts"], "texts") if raw.get("texts") is not None else []
    yaml_file.raise_problems(problems, path)
    return PromptBag(str(raw["name"]), str(raw["version"]), tuple(raw["texts"]), str(raw.get("source", "")).strip())
