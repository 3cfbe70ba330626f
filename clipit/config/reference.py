"""docs/configuration.md: every key of the configuration with its type, default and meaning.

`python -m clipit.config.reference > docs/configuration.md` writes it anew; a test compares.
"""

import re
from typing import Any, get_origin

from pydantic_core import PydanticUndefined

from clipit.config.file import SECTIONS, ConfigFile
from clipit.config.run import RunConfig, Section

_HEAD = """# Configuration

One YAML file per run; every key can be overridden on the command line: `--lora.rank=16`,
`--tiles.labels.kind=per_class`, `--tiles.splits='{"validation": "valid"}'`. Unknown keys are errors, and all errors are
reported together. Command line > arm > file: a key given on the command line wins over the same key of an `arm`, which
wins over the rest of the file; so in a comparison it holds for every arm. Paths are relative to where the command is
started. This page is made by `python -m clipit.config.reference`.
"""


def reference() -> str:
    """The page as Markdown."""
    sections = [line for name in SECTIONS for line in ["", *_section(_section_of(name), f"{name}.", name)]]
    return "\n".join([_HEAD, *_section(RunConfig, "", "The run"), *sections])


def _section_of(name: str) -> type[Section]:
    found = _inner(ConfigFile.model_fields[name].annotation)
    if found is None:
        raise TypeError(name)
    return found


def _section(model: type[Section], prefix: str, title: str) -> list[str]:
    lines = [f"## {title}", ""]
    text = " ".join((model.__doc__ or "").split())
    lines += [text, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    inner: list[str] = []
    for name, field in model.model_fields.items():
        section = _inner(field.annotation)
        named = get_origin(field.annotation) is dict
        key = f"{prefix}{name}" + (".<name>" if named and section is not None else "")
        if section is not None and not named and field.default is not None and not isinstance(field.default, tuple):
            inner += ["", *_section(section, f"{key}.", key)]
            continue
        meaning = " ".join((field.description or "").split()).replace("<", "&lt;")
        if section is not None:
            meaning = f"{meaning} Keys as in `{section.__name__.removesuffix('Config').lower()}`.".strip()
            if key == "reports":
                inner += ["", *_section(section, "reports.", "reports")]
                meaning = "See below; without it nothing is paired."
        kind = section if named and section is not None else field.annotation
        cells = (f"`{key}`", f"`{_type(kind)}`", _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines + inner


def _inner(annotation: Any) -> type[Section] | None:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()):
        return annotation.__name__
    return re.sub(r"typing\.|pathlib\.|clipit\.config\.(\w+\.)?", "", str(annotation))


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    return f"`{value!r}`" if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    print(reference(), end="")
