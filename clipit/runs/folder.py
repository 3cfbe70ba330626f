"""Folder of a run: path, fingerprint and files."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from clipit.config.effects import Effect, select_keys
from clipit.config.load import read_recorded
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ConfigError, DataError, ModelError
from clipit.evaluation.predictions import PREDICTIONS, read_predictions
from clipit.input_files.nearby_files import similar_names
from clipit.models.classifier_spec import read_spec
from clipit.output_files.artifacts import lock_file, locked, make_folder, read_json, whole_folder, write_json
from clipit.output_files.differences import difference_lines, list_differences
from clipit.output_files.json_record import JsonRecord
from clipit.output_files.leftovers import TEMPORARY, is_alive, is_temporary
from clipit.output_files.run_files import read_run_json, write_run_json
from clipit.output_files.whole_files import write_text
from clipit.runs.fingerprint import RunFingerprint
from clipit.training.arms import resolve_arm
from clipit.training.auto_precision import resolve_precision
from clipit.training.checkpoints import delete_old_checkpoints, latest_checkpoint
from clipit.versions import command_line, git_commit, versions

logger = logging.getLogger(__name__)

EXTERNAL = "external"
"""Subfolder of a run's folder with the evaluations on new test sets, by name."""
_TRAINED = ("run.json", "training_tiles.parquet", "training.json", "metrics.jsonl", "checkpoints", "classifier")
"""Files that training writes into a run's folder."""
_OTHER_FOLDER = "choose a different --name (for a sweep, in the sweep file) or --output, or delete the run's folder"
_TIMES = "if the images were only copied, copy them again with their modification times (cp -p, rsync -t)"
_TRAINING_FACTS: dict[str, tuple[type, ...]] = {
    "score": (float, int, type(None)),
    "seconds": (float, int),
    **dict.fromkeys(("steps", "chosen_step", "training_labels", "validation_labels", "training_tiles"), (int,)),
    "sections": (JsonRecord,),
    "notes": (list,),
}
"""Expected types of values in training.json, as returned by `read_json`."""


def run_folder(config: RunConfig) -> Path:
    """Return the path of a run's folder."""
    return config.output / "runs" / config.name / f"{config.arm or 'custom'}-seed{config.seed}"


def resolve_run_precision(config: RunConfig, folder: Path | None = None) -> RunConfig:
    """Replace `training.precision: auto` with the precision recorded in the run's folder.

    If no precision is recorded, the precision suited to the devices is used.

    A run that was trained on a GPU can thus be evaluated, compared or resumed on a different kind of machine.

    Args:
        config: Run configuration with its arm resolved.
        folder: Folder of the run; by default, `run_folder(config)`.
    """
    folder = folder or run_folder(config)
    recorded = None
    if config.training.precision == "auto" and is_started(folder):
        recorded = recorded_precision(folder, "training.precision")
    return resolve_precision(config, recorded)


def recorded_precision(folder: Path, key: str) -> str | None:
    """Return the training precision recorded in a folder's `run.json`, such as bf16; None if none is recorded.

    Args:
        folder: Folder of a run or adaptation whose training has started.
        key: Key of the precision in the record.
    """
    if not (folder / "run.json").is_file():
        return None
    keys = read_json(folder / "run.json", _OTHER_FOLDER).get("keys")
    precision = keys.get(key) if isinstance(keys, dict) else None
    return precision if precision in ("no", "bf16", "fp16") else None


def is_started(folder: Path) -> bool:
    """Check whether a folder has a checkpoint, a classifier or results of a run."""
    started = (folder / "classifier").is_dir() or (folder / "results.json").is_file()
    return started or latest_checkpoint(folder / "checkpoints") is not None


def read_run_config(folder: Path) -> RunConfig:
    """Read the configuration in a run's folder; the arm is resolved, and `output` is updated if the folder has moved.

    Raises:
        DataError: The folder does not contain a run.
        ConfigError: The configuration is damaged or was written by an incompatible version.
    """
    file = folder / "config.yaml"
    if not file.is_file() or not (folder / "classifier").is_dir():
        raise DataError(
            f"no such folder; {similar_names(str(folder))}"
            if not folder.exists()
            else "this folder does not contain a trained run: config.yaml or classifier/ is missing",
            where=folder,
            fix="pass the folder of a run, such as outputs/runs/NAME/ARM-seed0",
        )
    config = resolve_arm(read_recorded(file))
    path = folder.resolve()
    if len(path.parents) > 2:
        moved = config.model_copy(update={"output": path.parents[2]})
        if path == run_folder(moved):
            return moved
    return config


def read_results(folder: Path) -> dict[str, Any]:
    """Read the scores and provenance of a run from `results.json`.

    Raises:
        ArtifactError: The file is missing or damaged, or belongs to a different run.
    """
    fix = "delete this file and run clipit train again; the run is re-evaluated without training"
    results = read_run_json(folder / "results.json", folder, fix)
    splits = results.get("splits")
    scored = isinstance(splits, dict) and all(
        isinstance(scores, dict) and isinstance(scores.get("metrics"), dict) for scores in splits.values()
    )
    if not scored or not isinstance(results.get("provenance"), dict):
        raise ArtifactError("this file does not contain the results of a run", where=folder / "results.json", fix=fix)
    return results


def read_training(folder: Path, *needed: str) -> dict[str, Any]:
    """Read `training.json`: the chosen step, its score, the duration and other facts about a run's training.

    Args:
        needed: Keys that must be present.

    Raises:
        ArtifactError: The file is missing or damaged, lacks a needed key, or belongs to a different run.
    """
    fix = (
        f"delete this file and the folder {folder / 'classifier'}, and run clipit train again; both are restored from "
        "the last checkpoint"
    )
    facts = read_run_json(folder / "training.json", folder, fix)
    invalid = [name for name in needed if name not in facts]
    invalid += [name for name, kinds in _TRAINING_FACTS.items() if name in facts and type(facts[name]) not in kinds]
    if invalid:
        raise ArtifactError(f"keys missing or invalid: {', '.join(invalid)}", where=folder / "training.json", fix=fix)
    return facts


def evaluation_keys(config: RunConfig) -> dict[str, Any]:
    """Return the keys of `evaluation` that change scores, to be recorded with the scores."""
    return select_keys(config.evaluation, "evaluation")


def is_trained(folder: Path) -> bool:
    """Check whether the folder contains the exported classifier of a run.

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
            fix="delete this folder and run clipit train again; the classifier is exported again from the last "
            "checkpoint",
        ) from error
    return True


def find_missing_output(folder: Path, config: RunConfig) -> str:
    """Return the first output that is missing from a trained run, or "" if the run is finished.

    Raises:
        ArtifactError: The results are damaged.
    """
    if not (folder / "results.json").is_file():
        return "results.json"
    results = read_results(folder)
    try:
        read_predictions(folder / PREDICTIONS, results.get("predictions_sha256"))
    except DataError:
        return f"the {PREDICTIONS} that its scores were computed from"
    recorded = results.get("evaluation")
    if recorded is not None and recorded != evaluation_keys(config):
        changes = list_differences(recorded if isinstance(recorded, dict) else {}, evaluation_keys(config))
        return f"results for these keys of `evaluation` ({'; '.join(changes)})"
    return ""


@contextmanager
def run_lock(folder: Path) -> Iterator[bool]:
    """Lock the folder of a run, unless the run is finished and its folder is read-only.

    Yields:
        Whether the folder can be written to.
    """
    finished = (folder / "results.json").is_file() and (folder / "classifier").is_dir()
    if finished and not _is_writable(folder):
        logger.info(f"note: {folder} is read-only; its existing results are used")
        yield False
        return
    with locked(folder):
        yield True


def _is_writable(folder: Path) -> bool:
    """Check that the folder and its lock file can be written to."""
    lock = lock_file(folder)
    return os.access(folder, os.W_OK) and os.access(lock if lock.exists() else folder.parent, os.W_OK)


def claim_folder(
    folder: Path, config: RunConfig, fingerprint: RunFingerprint, sections: Mapping[str, Any] | None = None
) -> None:
    """Claim the folder for this run; a folder without a checkpoint, classifier or results is overwritten.

    Args:
        folder: Folder of the run; the caller must have locked it.
        config: Configuration of the run, with its arm resolved.
        sections: Further sections to write to config.yaml.

    Raises:
        ArtifactError: The folder belongs to a different run, or run.json is missing.
    """
    if is_started(folder):
        if not (folder / "run.json").is_file():
            raise ArtifactError(
                "run.json is missing, so the configuration and inputs of this run are unknown",
                where=folder,
                fix="choose a different --name, restore run.json, or delete the folder",
            )
        check_fingerprint(folder, fingerprint, config)
        if not (folder / "config.yaml").is_file() and _is_writable(folder):
            _write_config(folder, config, sections or {})
            logger.warning(f"{folder}: config.yaml was missing, and is written again from the current configuration")
        return
    make_folder(folder)
    for name in ("metrics.jsonl", "compared.json"):
        (folder / name).unlink(missing_ok=True)  # may belong to an earlier run
    _write_config(folder, config, sections or {})
    record = {
        "fingerprint": fingerprint.value,
        "commit": git_commit(),
        "versions": versions(),
        "command": command_line(),
    }
    write_json(folder / "run.json", record | {"keys": fingerprint.keys, "inputs": fingerprint.inputs})


def _write_config(folder: Path, config: RunConfig, sections: Mapping[str, Any]) -> None:
    values = config.model_dump(mode="json") | dict(sections)
    write_text(folder / "config.yaml", yaml.safe_dump(values, sort_keys=False))


def find_equal_run(folder: Path, fingerprint: RunFingerprint, others: Sequence[Path]) -> Path | None:
    """Find a finished run with the same fingerprint; None if there is none, or if this run has started.

    Args:
        folder: Folder of this run; the caller must have locked it.
        others: Folders of runs that may have the same fingerprint; they need not exist.
    """
    if is_started(folder):
        return None
    return next((other for other in others if other != folder and _is_equal_run(other, fingerprint)), None)


def copy_run(other: Path, folder: Path, config: RunConfig, facts: Mapping[str, Any]) -> None:
    """Copy the training output of a finished run with the same fingerprint into the folder of this run.

    Args:
        other: Folder of the finished run.
        folder: Folder of this run; the caller must have locked it.
        config: Configuration of this run, with its arm resolved.
        facts: Entries of training.json that describe this run's own inputs, such as the path of the reports.
    """
    training = read_training(other)
    sections = {**training.get("sections", {}), **facts.get("sections", {})}
    with whole_folder(folder) as partial:
        for name in _TRAINED:
            copy = shutil.copytree if (other / name).is_dir() else shutil.copy2
            copy(other / name, partial / name)
        _write_config(partial, config, {})
        run_facts = {**facts, "sections": sections} if sections else facts
        write_run_json(partial / "training.json", {**training, **run_facts}, partial)
    logger.info(f"copied from {other.parent.name}/{other.name}, which has the same configuration and inputs")


def _is_equal_run(folder: Path, fingerprint: RunFingerprint) -> bool:
    if not all((folder / name).exists() for name in (*_TRAINED, "results.json")):
        return False
    try:
        read_training(folder)
        return fingerprint.matches(read_json(folder / "run.json", _OTHER_FOLDER))
    except ArtifactError:  # a damaged file of another run must not stop this run
        return False


def check_fingerprint(folder: Path, fingerprint: RunFingerprint, config: RunConfig | None = None) -> None:
    """Check that a folder belongs to the run with this fingerprint.

    Args:
        config: Configuration of the run, with its arm resolved; if given, the error also lists differing keys that
            select inputs.

    Raises:
        ArtifactError: The folder belongs to a different run or does not contain a run.
    """
    file = folder / "run.json"
    if not file.is_file():
        raise ArtifactError(
            "this folder does not contain a run", where=folder, fix="train it first: clipit train --config ..."
        )
    record = read_json(file, _OTHER_FOLDER)
    if not fingerprint.matches(record):
        differences = fingerprint.differences(record)
        if config is not None and record.get("inputs") != fingerprint.inputs:
            differences += config_differences(folder, config, "data")
        lines = difference_lines(differences)
        if not (isinstance(record.get("keys"), dict) and isinstance(record.get("inputs"), dict)):
            lines = "unknown, because run.json was written by an earlier version of clipit"
        problem = "this folder belongs to a run with a different configuration or different inputs"
        message = f"{problem}; differences:\n    {lines}"
        copied = any(line.startswith("tiles: ") for line in differences)
        raise ArtifactError(message, where=folder, fix=f"{_OTHER_FOLDER}; {_TIMES}" if copied else _OTHER_FOLDER)


def config_differences(folder: Path, config: RunConfig, *effects: Effect, sections: Sequence[str] = ()) -> list[str]:
    """List the keys in which the configuration in a run's folder differs from another configuration, with both values.

    Args:
        effects: Effects of the keys to compare; by default, those that change results or select data.
        sections: Top-level keys to compare; empty for all.

    Returns:
        One line per key; empty if the folder's config.yaml is missing or no longer valid.
    """
    try:
        recorded = read_recorded(folder / "config.yaml")
    except ConfigError:
        return []
    recorded_keys, keys = (
        {
            key: value
            for key, value in select_keys(each, *(effects or ("results", "data"))).items()
            if not sections or key.partition(".")[0] in sections
        }
        for each in (recorded, config)
    )
    return list_differences(recorded_keys, keys)


@contextmanager
def explaining_differences(folder: Path, config: RunConfig) -> Iterator[None]:
    """Extend errors about a run: list the keys that differ between its configuration and the current one.

    Args:
        config: Current configuration, such as that of a study.
    """
    try:
        yield
    except (ArtifactError, DataError, ModelError) as error:
        differences = config_differences(folder, config, sections=("tiles", "leaks", "prompts", "vlm"))
        if not differences:
            raise
        lines = difference_lines(differences)
        raise type(error)(f"{error}\n  the run was trained with a different configuration:\n    {lines}") from error


def delete_temporary_files(folder: Path) -> None:
    """Delete temporary files and old checkpoints of killed processes; the caller must have locked the run's folder.

    The lock excludes other writers. Only predictions on shifted and new sets are written without it, so their temporary
    files are kept while the writing process is alive.
    """
    for path in folder.rglob(".*"):
        process = TEMPORARY.fullmatch(path.name)
        unlocked = path.name.startswith(".predictions_shifted") or EXTERNAL in path.relative_to(folder).parts
        if is_temporary(path) and not (unlocked and process and is_alive(int(process[1]))):
            path.unlink(missing_ok=True)
    delete_old_checkpoints(folder / "checkpoints")
