"""Compare segmentation methods (zero-shot, few masks, U-Net) on tiles with masks, alongside floors and ceilings."""

from pathlib import Path
from typing import TYPE_CHECKING

from clipit.errors import user_errors
from clipit.reporting.csv_export import run_study

if TYPE_CHECKING:
    from clipit.config.file import ConfigFile


def main() -> None:
    """Run the command."""
    with user_errors():
        run_study(__doc__, "segmentation", "finished run whose classifier is also compared", _folder)


def _folder(file: "ConfigFile", run: Path | None) -> Path:
    from clipit.api.segmentation import segment

    return segment(file, run).folder
