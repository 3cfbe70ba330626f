"""Classifiers of runs: opened in one place, which passes on whether their code is trusted."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipit.config.load import validate
from clipit.errors import ConfigError, DataError
from clipit.images.read_ahead import check_batches
from clipit.runs.predict_tiles import open_classifier
from clipit.runs.prediction_chunks import PredictionOptions
from clipit.runs.prediction_inputs import open_inputs


@pytest.mark.parametrize("trusted", [False, True])
def test_trust_is_passed_on(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(folder: Path, device: object, *, trust_remote_code: bool, **_: object) -> Any:
        asked.append((folder, trust_remote_code))
        return SimpleNamespace(spec=SimpleNamespace(provenance={}))

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
    commands = {"clipit/api/runs.py", "clipit/api/sharing.py", "clipit/cli/push.py", card}
    assert callers <= {"clipit/runs/predict_tiles.py", "clipit/models/export_classifier.py", *commands}


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0(.|\n)*at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batch_size": "64"}, "batch_size is '64'"),
        ({"batch_size": None}, "batch_size is None"),
        ({"batch_size": True}, "batch_size is True"),
        ({"workers": -1}, "workers is -1(.|\n)*at least 0"),
        ({"workers": 1.5}, "workers is 1.5"),
    ],
)
def test_numbers_of_images_and_threads_are_checked_before_anything_is_read(
    numbers: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_batches(**{"batch_size": 64, "workers": 0} | numbers)


def test_options_of_predictions_are_checked() -> None:
    assert PredictionOptions(1, 0).batch_size == 1
    with pytest.raises(ConfigError, match="batch_size is 0"):
        PredictionOptions(0)


def test_no_input_is_refused() -> None:
    with pytest.raises(DataError, match="no inputs"):
        open_inputs([])
