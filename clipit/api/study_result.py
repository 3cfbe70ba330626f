"""Base classes of results: files that are opened by their path, and studies with a page, a summary and tables."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from clipit.config.argument_types import as_plain, type_name
from clipit.config.paths import argument_path
from clipit.errors import ConfigError
from clipit.output_files.whole_files import read_frame


class ResultFiles:
    """A result stored in files, opened by the path of its folder or file; it can be passed wherever a path can."""

    def __post_init__(self) -> None:
        """Convert paths given as strings.

        Raises:
            ConfigError: A path has a different type.
        """
        for field in fields(self):  # type: ignore[arg-type]
            value: Any = as_plain(getattr(self, field.name))
            if field.type is not Path:
                continue
            if not isinstance(value, str | Path):
                name = type(self).__name__
                raise ConfigError(
                    f"{field.name} must be a string or a path, not {type_name(value)}",
                    where=f"clipit {name}",
                    fix=f'pass the path of a finished result, such as {name}("outputs/...")',
                )
            object.__setattr__(self, field.name, argument_path(Path(value)))

    def __fspath__(self) -> str:
        """Return the path of the folder or, for results without one, of their first file."""
        return str(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StudyResult(ResultFiles):
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
