"""Configurations that come with the package, by name."""

import re
from pathlib import Path

from clipit.config.paths import option_path

_PACKAGE = Path(__file__).parents[1]


def shipped_folder() -> Path:
    """Return the folder of the shipped configurations: `configs/` of a checkout, or its installed copy."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def data_card(name: str) -> Path:
    """Return the path of a data card: in `data_cards/` of a checkout, or in its installed copy."""
    installed = _PACKAGE / "data_cards"
    return (installed if installed.is_dir() else _PACKAGE.parent / "data_cards") / f"{name}.md"


def shipped_names() -> dict[str, str]:
    """List the shipped YAML files: name without suffix -> first sentence of its leading comment, without full stop."""
    folder = shipped_folder()
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.yaml")))
    return {name: _summary((folder / f"{name}.yaml").read_text(encoding="utf-8")) for name in names}


def run_configs(folder: Path) -> list[Path]:
    """List the run configurations in a folder: files with a `tiles` section, unlike those of sweeps and Accelerate."""
    files = (path for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if path.is_file())
    return [path for path in files if re.search(r"^tiles:", path.read_text("utf-8", "replace"), re.M)]


def config_file(text: str) -> Path:
    """Convert the value of `--config`: a path, or the name of a shipped configuration such as `own_table`.

    A pipe is accepted (`--config <(command)`), because most commands read the file once.

    Raises:
        argparse.ArgumentTypeError: The path is rejected.
    """
    path = option_path(text, read_once=True)
    shipped = shipped_folder() / f"{text}.yaml"
    is_name = re.fullmatch(r"\w+(/\w+)?", text) is not None
    taken = path.exists() and not path.is_dir()  # a folder may have the name of a shipped file, such as `demo`
    return shipped if is_name and not taken and shipped.is_file() else path


def _summary(text: str) -> str:
    head = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        head.append(line[2:])
    return re.split(r"(?<=[.?])\s", " ".join(head), maxsplit=1)[0].rstrip(".")
