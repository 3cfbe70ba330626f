"""Evaluate frozen features with probes, few-shot episodes, label-efficiency curves and retrieval."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipit.errors import user_errors
from clipit.reporting.csv_export import run_study

if TYPE_CHECKING:
    from clipit.config.file import ConfigFile


def main() -> None:
    """Run the command."""
    with user_errors():
        run_study(__doc__, "probing", "finished run whose classifier is also evaluated", _folder)


def _folder(file: "ConfigFile", run: Path | None) -> Path:
    from clipit.api.experiments import probe

    return probe(file, run).folder
