"""Test errors for keys that are missing from JSON files of earlier versions."""

import copy
import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from clipit.errors import ArtifactError
from clipit.output_files.artifacts import read_json, write_json
from clipit.output_files.json_record import JsonRecord
from clipit.runs.folder import read_results, read_training

FIX = "evaluate again"
RESULTS = {
    "splits": {"test": {"labelled": 5, "resampled": "5 tiles", "metrics": {"accuracy": {"value": 0.5}}}},
    "provenance": {"steps": 10},
    "rows": [{"arm": "a"}],
}


@pytest.fixture
def record(tmp_path: Path) -> JsonRecord:
    write_json(tmp_path / "results.json", RESULTS)
    return read_json(tmp_path / "results.json", FIX)


def test_the_error_for_a_missing_key_names_file_key_and_fix(record: JsonRecord, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        record["splits"]["test"]["metrics"]["macro_f1"]
    text = str(caught.value)
    assert (
        "no 'macro_f1' in splits.test.metrics, which an earlier version may have written; its keys are accuracy" in text
    )
    assert f"where: {tmp_path / 'results.json'}" in text and f"fix: {FIX}" in text
    with pytest.raises(ArtifactError, match=r"no 'seed' in rows\[0\]"):
        record["rows"][0]["seed"]
    with pytest.raises(ArtifactError, match="no 'arms' in this file"):
        record["arms"]
    with pytest.raises(ArtifactError, match="it is empty"):
        JsonRecord({}, tmp_path, FIX)["x"]


def test_a_record_in_a_dataclass_is_converted_to_a_dict(record: JsonRecord) -> None:
    @dataclass
    class Holder:
        facts: dict[str, Any]

    assert asdict(Holder(record)) == {"facts": record}
    assert copy.deepcopy(record) == record == pickle.loads(pickle.dumps(record))


def test_a_record_otherwise_behaves_like_a_dict(record: JsonRecord) -> None:
    assert record == RESULTS and json.loads(json.dumps(record)) == RESULTS
    assert record.get("arms") is None and "arms" not in record and record.get("arms", 3) == 3
    assert type(record | {"arms": 1}) is dict and {**record} == RESULTS
    copy = pickle.loads(pickle.dumps(record))
    assert copy == RESULTS
    with pytest.raises(ArtifactError, match="no 'x' in provenance"):
        copy["provenance"]["x"]


def test_a_metric_missing_from_results_is_an_error(record: JsonRecord, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"(?s)no 'auroc'.*results\.json.*run clipit train again"):
        read_results(tmp_path)["splits"]["test"]["metrics"]["auroc"]


def test_training_facts_may_contain_nested_values(tmp_path: Path) -> None:
    write_json(tmp_path / "training.json", {"steps": 3, "sections": {"Snippets": "12 kept"}, "notes": []})
    assert read_training(tmp_path, "steps")["sections"] == {"Snippets": "12 kept"}
    write_json(tmp_path / "training.json", {"steps": 3, "sections": "12 kept"})
    with pytest.raises(ArtifactError, match="missing or invalid: sections"):
        read_training(tmp_path, "steps")
