"""Classifiers of runs: opened in one place, which passes on whether their code is trusted."""

import re
from pathlib import Path
from typing import Any

import pytest

from clipit.config.load import validate
from clipit.runs.predict import open_classifier


@pytest.mark.parametrize("trusted", [False, True])
def test_trust_is_passed_on(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(folder: Path, device: object, *, trust_remote_code: bool, **_: object) -> None:
        asked.append((folder, trust_remote_code))

    monkeypatch.setattr("clipit.models.inference.load_classifier", load)
    keys = {"tiles": {"source": "folders", "path": "t"}, "backbone": {"trust_remote_code": trusted}}
    open_classifier(validate(keys, "here"), Path("run"))
    assert asked == [(Path("run/classifier"), trusted)]


def test_studies_comparisons_and_commands_open_classifiers_here() -> None:
    root = Path(__file__).parents[2]
    files = [path for folder in ("clipit", "scripts") for path in (root / folder).rglob("*.py")]
    callers = {
        path.relative_to(root).as_posix()
        for path in files
        if re.search(r"(?<!def )\bload_classifier\((?!\.\.\.)", path.read_text("utf-8"))
    }
    card = "clipit/reporting/model_card.py"  # its example of use
    commands = {"clipit/api/runs.py", "clipit/cli/export.py", "clipit/cli/push.py", card}
    assert callers <= {"clipit/runs/predict.py", "clipit/models/export.py", *commands}
