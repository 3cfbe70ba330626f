"""Opening the classifiers of runs, and checks of the prediction options."""

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
def test_trust_remote_code_is_passed_on(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load(folder: Path, device: object, *, trust_remote_code: bool, **_: object) -> Any:
        calls.append((folder, trust_remote_code))
        return SimpleNamespace(spec=SimpleNamespace(provenance={}))

    monkeypatch.setattr("clipit.models.inference.load_classifier", load)
    keys = {"tiles": {"source": "folders", "path": "t"}, "backbone": {"trust_remote_code": trusted}}
    open_classifier(validate(keys, "test"), Path("run"))
    assert calls == [(Path("run/classifier"), trusted)]


def test_classifiers_of_runs_are_opened_only_by_open_classifier() -> None:
    root = Path(__file__).parents[2]
    files = [path for folder in ("clipit", "scripts") for path in (root / folder).rglob("*.py")]
    callers = {
        path.relative_to(root).as_posix()
        for path in files
        if re.search(r"(?<!def )\bload_classifier\((?!\.\.\.)", path.read_text("utf-8"))
    }
    card = "clipit/reporting/model_card.py"  # contains a usage example
    commands = {"clipit/api/runs.py", "clipit/api/sharing.py", "clipit/cli/push.py", card}
    assert callers <= {"clipit/runs/predict_tiles.py", "clipit/models/export_classifier.py", *commands}


@pytest.mark.parametrize(
    ("options", "message"),
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
def test_batch_size_and_workers_are_validated(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_batches(**{"batch_size": 64, "workers": 0} | options)


def test_prediction_options_are_validated() -> None:
    assert PredictionOptions(1, 0).batch_size == 1
    with pytest.raises(ConfigError, match="batch_size is 0"):
        PredictionOptions(0)


def test_empty_inputs_are_an_error() -> None:
    with pytest.raises(DataError, match="no inputs"):
        open_inputs([])
