"""List the packaged prompt sets, for `clipit prompts list` and for docs/prompts.md."""

from collections.abc import Sequence

from clipit.prompts.files import packaged
from clipit.prompts.prompt_set import PromptSet, load_prompts

_HEAD = """# Prompt sets

Sets of class prompts that come with the package. To use one, set `prompts` in the configuration to
its name, or pass the name to `clipit prompts`. A class is embedded as the mean over its prompts:
every name in every template. `clipit prompts lint NAME` checks a set; `clipit prompts study`
measures how much its wording matters.

You can also give the path of your own file, such as:

```yaml
name: mine
version: 1
templates: ["{}.", "an image of {}."]    # {} stands for a name of the class
classes:
  tumour: [adenocarcinoma, malignant glands]
  benign: [normal mucosa]
```

The prompt files of CONCH, MI-Zero, KEP and KEEP (JSON) need no conversion. Some of these files
contain 50 or 100 random draws from one pool of names and templates; clipit merges the draws and
combines every name of a class with every template.

This page is generated: `python -m clipit.prompts.catalogue > docs/prompts.md`."""


def packaged_sets() -> dict[str, PromptSet]:
    """Read all packaged prompt sets, by file name, sorted."""
    return {name: load_prompts(name) for name in packaged("sets")}


def count_prompts(prompts: PromptSet) -> int:
    """Count the prompts of a set, over all classes."""
    return sum(len(prompts.texts(name)) for name in prompts.classes)


def list_text(sets: dict[str, PromptSet]) -> str:
    """Format the list for a terminal: name, number of classes and prompts, classes, source and licence."""
    width = max(map(len, sets))
    lines = [f"{'name':<{width}}  classes  prompts"]
    for name, prompts in sets.items():
        lines += [
            f"{name:<{width}}  {len(prompts.classes):>7}  {count_prompts(prompts):>7}",
            f"    classes: {', '.join(prompts.classes)}",
            f"    source: {prompts.source}",
            f"    licence: {prompts.licence}",
        ]
    return "\n".join(lines)


def catalogue_page(sets: dict[str, PromptSet]) -> str:
    """Compose docs/prompts.md."""
    rows = [
        [f"[{name}](#{name})", str(len(prompts.classes)), str(len(prompts.templates)), str(count_prompts(prompts))]
        for name, prompts in sets.items()
    ]
    parts = [_HEAD, _table(["name", "classes", "templates", "prompts"], rows)]
    for name, prompts in sets.items():
        classes = [f"- `{label}`: {'; '.join(names)}" for label, names in prompts.classes.items()]
        origin = [f"Source: {prompts.source}.", f"Licence: {prompts.licence}."]
        parts += [f"## {name}", "\n".join(origin), "\n".join(classes)]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(catalogue_page(packaged_sets()), end="")
