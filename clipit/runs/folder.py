"""What a run's folder holds already, and what it still lacks of what is asked of it."""

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
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ModelError, explain
from clipit.models.classifier_spec import read_spec
from clipit.training.checkpoints import latest_checkpoint

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # see clipit.artifacts.whole_file


def read_results(folder: Path) -> dict[str, Any]:
    """What `results.json` of a run holds.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    fix = "delete this file and start scripts/train.py again: the run is evaluated anew, not trained"
    found = read_json(folder / "results.json", fix)
    if not {"splits", "provenance"} <= found.keys():
        raise ArtifactError(explain("not the results of a run", where=folder / "results.json", fix=fix))
    return found


def read_training(folder: Path) -> dict[str, Any]:
    """What `training.json` of a run holds: how the training ended.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    fix = (
        f"delete it and the folder {folder / 'classifier'}, and start scripts/train.py again: both are made anew "
        "from the run's last checkpoint"
    )
    return read_json(folder / "training.json", fix)


def evaluation_keys(config: RunConfig) -> dict[str, Any]:
    """The keys of `evaluation` that results depend on; they are recorded beside them."""
    return config.evaluation.model_dump(mode="json", exclude={"batch_size"})


def is_trained(folder: Path) -> bool:
    """Whether a run's classifier is there.

    Raises:
        ArtifactError: It is there in part.
    """
    classifier = folder / "classifier"
    if not classifier.is_dir():
        return False
    try:
        read_spec(classifier)
    except ModelError as error:
        raise ArtifactError(
            explain(
                f"the run's classifier is not whole: {str(error).splitlines()[0]}",
                where=classifier,
                fix="delete this folder and start scripts/train.py again: it is exported anew from the run's last "
                "checkpoint",
            )
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


def run_folder(config: RunConfig) -> Path:
    """Where a run lies."""
    return config.output / "runs" / config.name / f"{config.arm or 'custom'}-seed{config.seed}"


def check_fingerprint(folder: Path, mark: str) -> None:
    """Refuse a folder that belongs to another run.

    Raises:
        ArtifactError: It does, or there is no run.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ArtifactError(explain("no run here", where=folder, fix="train it first: scripts/train.py --config ..."))
    if read_json(file, "choose another --name, or delete the run's folder").get("fingerprint") != mark:
        raise ArtifactError(
            explain(
                "this run's folder belongs to another configuration, "
                "or to other tiles, labels, models, reports or prompts",
                where=folder / "config.yaml",
                fix="choose another --name, or delete the folder",
            )
        )


def _sweep(folder: Path) -> None:
    """Delete what a killed process was writing. The run's lock is held, so that the writer is gone.

    Predictions on shifted sets are written outside of the lock: theirs stay while their process lives.
    """
    for left in folder.rglob(".*.tmp"):
        found = _TEMPORARY.fullmatch(left.name)
        if found and not (left.name.startswith(".predictions_shifted") and _lives(int(found[1]))):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 asks and does nothing
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def claim_folder(folder: Path, config: RunConfig, mark: str) -> None:
    """Take the folder for this run, or recognise it as this run's; one in which nothing was made yet is taken over.

    Raises:
        ArtifactError: It belongs to another run, or nothing says whose it is.
    """
    _sweep(folder)
    made = (folder / "classifier").is_dir() or (folder / "results.json").is_file()
    if made or latest_checkpoint(folder / "checkpoints") is not None:
        if not (folder / "run.json").is_file():
            raise ArtifactError(
                explain(
                    "a run stands here without run.json, which says what it was made from",
                    where=folder,
                    fix="choose another --name, put run.json back, or delete the folder",
                )
            )
        check_fingerprint(folder, mark)
        return
    make_folder(folder)
    with whole_file(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    facts = {"fingerprint": mark, "commit": git_commit(), "versions": versions(), "command": shlex.join(sys.argv)}
    write_json(folder / "run.json", facts)
