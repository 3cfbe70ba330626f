"""What a run's folder holds already, and what it still lacks of what is asked of it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import read_json
from clipit.config import Config
from clipit.errors import ArtifactError, ModelError, explain
from clipit.models.bundle import read_spec


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


def evaluation_keys(config: Config) -> dict[str, Any]:
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


def lacking(folder: Path, config: Config) -> str:
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
