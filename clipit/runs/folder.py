"""The folder of a run: where it is, which run it belongs to, and what it holds."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipit.artifacts import git_commit, make_folder, read_json, versions, whole_file, write_json
from clipit.config.effects import select_keys
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ModelError, shortlist
from clipit.models.classifier_spec import read_spec
from clipit.runs.fingerprint import RunFingerprint
from clipit.training.checkpoints import latest_checkpoint

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # see clipit.artifacts.whole_file


def run_folder(config: RunConfig) -> Path:
    """Path of a run's folder."""
    return config.output / "runs" / config.name / f"{config.arm or 'custom'}-seed{config.seed}"


def read_results(folder: Path) -> dict[str, Any]:
    """Read `results.json` of a run: scores and provenance.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    fix = "delete this file and start scripts/train.py again: the run is evaluated again, not trained"
    results = read_json(folder / "results.json", fix)
    if not {"splits", "provenance"} <= results.keys():
        raise ArtifactError("not the results of a run", where=folder / "results.json", fix=fix)
    return results


def read_training(folder: Path) -> dict[str, Any]:
    """Read `training.json` of a run: its chosen step, score, steps and duration.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    fix = (
        f"delete it and the folder {folder / 'classifier'}, and start scripts/train.py again: both are written again "
        "from the run's last checkpoint"
    )
    return read_json(folder / "training.json", fix)


def evaluation_keys(config: RunConfig) -> dict[str, Any]:
    """Keys of `evaluation` that change scores; they are recorded beside the scores."""
    return select_keys(config.evaluation, "evaluation")


def is_trained(folder: Path) -> bool:
    """Whether the folder holds the classifier of a run.

    Raises:
        ArtifactError: The classifier is incomplete.
    """
    classifier = folder / "classifier"
    if not classifier.is_dir():
        return False
    try:
        read_spec(classifier)
    except ModelError as error:
        raise ArtifactError(
            f"the run's classifier is incomplete: {str(error).splitlines()[0]}",
            where=classifier,
            fix="delete this folder and start scripts/train.py again: it is exported again from the run's last "
            "checkpoint",
        ) from error
    return True


def lacking(folder: Path, config: RunConfig) -> str:
    """What a trained run lacks of what its configuration asks for; "" when it is finished.

    Raises:
        ArtifactError: Its results are damaged.
    """
    if not (folder / "results.json").is_file():
        return "results.json"
    try:
        pq.read_metadata(folder / "predictions.parquet")
    except (OSError, pa.ArrowException):
        return "predictions.parquet"
    recorded = read_results(folder).get("evaluation")
    if recorded is not None and recorded != evaluation_keys(config):
        return "results for these keys of `evaluation`"
    return ""


def claim_folder(folder: Path, config: RunConfig, own: RunFingerprint) -> None:
    """Claim the folder for this run; a folder in which no run has got anywhere is taken over.

    Args:
        folder: Folder of the run; its lock is held.
        config: Configuration of the run, its arm resolved.
        own: Fingerprint of the run.

    Raises:
        ArtifactError: The folder belongs to another run, or run.json is missing.
    """
    _delete_temporary_files(folder)
    started = (folder / "classifier").is_dir() or (folder / "results.json").is_file()
    if started or latest_checkpoint(folder / "checkpoints") is not None:
        if not (folder / "run.json").is_file():
            raise ArtifactError(
                "a run without run.json, which records what it was made from",
                where=folder,
                fix="choose another --name, put run.json back, or delete the folder",
            )
        check_fingerprint(folder, own)
        return
    make_folder(folder)
    with whole_file(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    record = {"fingerprint": own.value, "commit": git_commit(), "versions": versions(), "command": shlex.join(sys.argv)}
    write_json(folder / "run.json", record | {"keys": own.keys, "inputs": own.inputs})


def check_fingerprint(folder: Path, own: RunFingerprint) -> None:
    """Refuse a folder that belongs to another run.

    Raises:
        ArtifactError: It does, or it holds no run.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ArtifactError("no run here", where=folder, fix="train it first: scripts/train.py --config ...")
    fix = "choose another --name, or delete the run's folder"
    record = read_json(file, fix)
    if record.get("fingerprint") != own.value:
        differences = shortlist(own.differences(record), 8)
        if not {"keys", "inputs"} <= record.keys():
            differences = "unknown, since an earlier version of clipit wrote it"
        message = f"this run's folder belongs to another configuration; differences: {differences}"
        raise ArtifactError(message, where=folder, fix=fix)


def _delete_temporary_files(folder: Path) -> None:
    """Delete what a killed process was writing. The run's lock is held, so its writer is gone.

    Predictions on shifted sets are written outside of the lock; theirs stay while the process lives.
    """
    for path in folder.rglob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not (path.name.startswith(".predictions_shifted") and _is_alive(int(match[1]))):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 tests for existence
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
