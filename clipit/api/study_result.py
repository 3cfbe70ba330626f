"""Base class of study results: a folder with a page, a summary and tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from clipit.output_files.whole_files import read_frame


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Attributes:
        folder: Folder of the study.
    """

    folder: Path
    _name: ClassVar[str]
    _fix: ClassVar[str] = "run the study again"

    @property
    def page(self) -> Path:
        """HTML page of the study."""
        return self.folder / f"{self._name}.html"

    @property
    def report(self) -> Path:
        """Tables as Markdown."""
        return self.folder / f"{self._name}.md"

    def _read(self, file: str) -> pd.DataFrame:
        return read_frame(self.folder / file, self._fix)
