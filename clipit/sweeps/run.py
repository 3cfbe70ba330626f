"""A sweep without a server: trials are claimed one by one, so several agents share the work; then table and plot."""

import logging
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from clipit.artifacts import make_folder
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, LaunchError, disk_errors, explain
from clipit.runs.folder import run_folder
from clipit.runs.train import train_run
from clipit.sweeps.file import Sweep
from clipit.sweeps.live_keys import claim_folder, equal_trials
from clipit.sweeps.report import label, shown, trial_row, write_tables
from clipit.sweeps.trials import Trial
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

# Of a resolved configuration: what differs between starts of the same run.
_BESIDE_THE_POINT = ("overrides", "tracking", "note", "arms", "comparison", "probing", "zero_shot", "robustness")


def run_sweep(sweep: Sweep, trials: Sequence[Trial], launch: str | None = None) -> Path:
    """Carry out all trials that are not finished yet, together with whoever else does so, and write the tables.

    Args:
        sweep: The file.
        trials: All of them, as `sweep_trials.trials` gives them.
        launch: Command that starts each trial in processes of its own, such as `accelerate launch --num_processes 2`;
            None: all of them here, where they share tiles, VLM and stores.

    Returns:
        The folder with sweep.md, trials.csv, trials.parquet, sweep.png and sweep.json.

    Raises:
        ConfigError: The trials cannot run in one process, or not from this one; the folder is another sweep's.
        LaunchError: A trial that was started failed.
    """
    processes = get_processes()
    _check_way(trials, launch)
    folder = trials[0].config.output / "sweeps" / sweep.name
    claim_folder(folder, sweep, dict(trials[0].options))
    for same in equal_trials([resolve_arm(trial.config) for trial in trials]):
        if processes.main:
            logger.info(f"note: one and the same run: {'; '.join(label(trials[position].values) for position in same)}")
    workspace = None if launch else Workspace(trials[0].config)
    pending = list(trials)
    while pending:
        with _claimed(folder / "claims", pending) as trial:
            pending.remove(trial)
            number = f"{len(trials) - len(pending)} of {len(trials)}"
            if launch is None:
                train_run(trial.config, workspace)
            elif not _finished(trial.config):
                _start(sweep, trial, launch)
            if processes.main:
                logger.info(f"{number}: {label(trial.values)}: validation {shown(trial_row(trial)['validation'])}")
    if processes.main:
        write_tables(sweep, trials, folder)
    processes.barrier()
    return folder


def _check_way(trials: Sequence[Trial], launch: str | None) -> None:
    precisions = {resolve_arm(trial.config).training.precision for trial in trials}
    if launch is None and len(precisions) > 1:
        raise ConfigError(
            explain(
                f"one program computes with one training.precision, and {', '.join(sorted(precisions))} are swept",
                where="training.precision",
                fix='start each trial on its own: --launch "accelerate launch"',
            )
        )
    if launch is not None and get_processes().count > 1:
        raise ConfigError(
            explain(
                "--launch starts processes for each trial, and this is already one of several",
                where="--launch",
                fix="start scripts/sweep.py with python alone, or leave --launch out",
            )
        )


@contextmanager
def _claimed(folder: Path, pending: Sequence[Trial]) -> Iterator[Trial]:
    """Hold a trial that no other agent works on; the lock falls with its holder, so a killed agent's is taken over.

    When others work on all that is left, wait for the first of these: its holder finishes it, or dies.
    """
    processes = get_processes()
    lock, position = _free(folder, pending) if processes.main else (None, 0)
    try:
        yield pending[processes.broadcast(position)]
    finally:
        if lock is not None:
            lock.release()


def _free(folder: Path, pending: Sequence[Trial]) -> tuple[FileLock, int]:
    with disk_errors(folder):
        make_folder(folder)
        locks = [FileLock(folder / f"{'-'.join(run_folder(trial.config).parts[-2:])}.lock") for trial in pending]
        for position, lock in enumerate(locks):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return lock, position
        logger.info(f"waiting: other agents work on the last {len(pending)} trials")
        locks[0].acquire()
    return locks[0], 0


def _finished(config: RunConfig) -> bool:
    """Whether the run's folder holds the results of this very configuration.

    A trial that is started anyway (in this process: always) also compares tiles, labels, models and reports.
    """
    folder = run_folder(config)
    if not (folder / "results.json").is_file():
        return False
    found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    wanted = resolve_arm(config).model_dump(mode="json")
    return all(found.get(key) == value for key, value in wanted.items() if key not in _BESIDE_THE_POINT)


def _start(sweep: Sweep, trial: Trial, launch: str) -> None:
    """Run one trial by a command of its own; its output goes where this one's goes."""
    words = shlex.split(launch)
    before = ["env"] if words and "=" in words[0] else []  # NAME=value in front
    options = [f"--{key}={value}" for key, value in trial.options.items()]
    command = [*before, *words, sweep.program, str(sweep.path), "--trial", *options]
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise LaunchError(
            explain(f"a trial cannot be started: {error}", where=shlex.join(command), fix="correct --launch")
        ) from error
    if status:
        raise LaunchError(
            explain(
                f"a trial failed (exit status {status})",
                where=shlex.join(command),
                fix="see its message above; start the sweep again to go on",
            )
        )
