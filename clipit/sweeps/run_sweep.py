"""Run a sweep without wandb's server; several agents may share its trials."""

import logging
import shlex
import subprocess
from pathlib import Path

from clipit.config.effects import select_keys
from clipit.config.load import read_recorded
from clipit.config.run import RunConfig
from clipit.config.shipped import config_file
from clipit.distributed import get_processes
from clipit.errors import ConfigError, DivergenceError, LaunchError, disk_errors
from clipit.output_files.artifacts import locked, read_json, write_json
from clipit.output_files.differences import difference_lines, list_differences
from clipit.progress import RunCounter
from clipit.reporting.tables import percent
from clipit.runs.folder import is_trained, read_training, resolve_run_precision, run_folder
from clipit.runs.search import SharedSearch, Trial
from clipit.runs.train import train_run
from clipit.sweeps.live_keys import equal_trials
from clipit.sweeps.sweep_file import Sweep
from clipit.sweeps.sweep_page import format_values, write_sweep_page
from clipit.sweeps.trials import Proposals, SweepPlan
from clipit.training.arms import resolve_arm
from clipit.training.terms.term_table import models_of, uses_reports
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_DIVERGED = "diverged.json"  # file in the folder of a launched trial whose training diverged
_CONFIG = "config"  # attribute of the search: resolved path of the configuration


def run_sweep(plan: SweepPlan, launch: str | None = None) -> Path:
    """Run all unfinished trials, together with other agents on the same output folder, and write the tables.

    Args:
        launch: Command that starts each trial in separate processes, such as `accelerate launch --num_processes 2`;
            None runs all trials in this process, where they share tiles, VLM and stores.

    Returns:
        The folder with sweep.md, sweep.html, trials.csv, trials.parquet, sweep.png and sweep.json.

    Raises:
        ConfigError: The trials cannot share one process or cannot be launched from this one, or the folder belongs to
            a different sweep.
        LaunchError: A launched trial failed.
        DivergenceError: The training of every trial diverged.
        ArtifactError: The record of the trials is damaged.
    """
    processes, sweep = get_processes(), plan.sweep
    _check_launch(plan, launch)
    folder = plan.trials[0].config.output / "sweeps" / sweep.name
    if (folder / "search").is_dir():  # reject the folder of another sweep before inputs are read
        _check_folder(SharedSearch(folder / "search"), plan, folder)
    configs = [resolve_arm(trial.config) for trial in plan.trials]
    for same in equal_trials(configs):
        if processes.main:
            described = "; ".join(format_values(plan.trials[position].values) for position in same)
            logger.info(f"note: these trials are the same run: {described}")
    workspace = None if launch else Workspace(plan.trials[0].config)
    if workspace is not None:
        for config in configs:
            check_inputs(workspace.for_config(config), models_of(config), reports=uses_reports(config))
    search = SharedSearch(folder / "search")
    _check_folder(search, plan, folder)
    runs = RunCounter(plan.count)

    def run_trial(trial: Trial) -> float | None:
        kept, values = _is_finished(trial.config), format_values(trial.values)
        try:
            if launch is None:
                train_run(trial.config, workspace)
            elif not kept:
                _launch(sweep, trial, launch)
        except DivergenceError as error:  # raised in all processes
            if processes.main:
                logger.warning(f"{values}: {error.what}; this trial has no score ({runs.finish(kept=kept)})")
            raise
        score: float | None = read_training(run_folder(trial.config), "score")["score"]
        if processes.main:
            logger.info(f"{values}: validation {percent(score)} ({runs.finish(kept=kept)})")
        return score

    trials = search.run(Proposals(plan) if sweep.method == "bayes" else lambda _: plan.trials, run_trial)
    reasons = search.reasons()
    if processes.main:
        with locked(folder):  # another agent may be writing the same page
            write_sweep_page(plan, trials, reasons, folder)
    processes.barrier()
    if processes.broadcast(all(trial.key in reasons for trial in trials)):
        raise DivergenceError(
            f"every trial failed; reason for the first one: {next(iter(reasons.values()))}",
            where=folder / "sweep.md",
            fix="lower training.learning_rate, or the values that are swept for it",
        )
    return folder


def run_launched_trial(trial: Trial) -> None:
    """Run one trial of a sweep; if its training diverges, write the reason to the run's folder.

    Raises:
        DivergenceError: The training diverged.
    """
    processes, record = get_processes(), run_folder(trial.config) / _DIVERGED
    if processes.main:
        record.unlink(missing_ok=True)
    try:
        train_run(trial.config)
    except DivergenceError as error:  # raised in all processes
        if processes.main:
            write_json(record, {"reason": error.what})
        processes.barrier()  # a launcher may kill this process as soon as another one exits
        raise


def _check_launch(plan: SweepPlan, launch: str | None) -> None:
    unfinished = [trial.config for trial in plan.trials if not is_trained(run_folder(trial.config))]
    precisions = {resolve_run_precision(resolve_arm(config)).training.precision for config in unfinished}
    if launch is None and len(precisions) > 1:
        raise ConfigError(
            f"trials in one process need the same training.precision; the sweep has {', '.join(sorted(precisions))}",
            where="training.precision",
            fix='start each trial in separate processes: --launch "accelerate launch"',
        )
    if launch is not None and get_processes().count > 1:
        raise ConfigError(
            "--launch starts processes for each trial, but this is already one of several processes",
            where="--launch",
            fix="start clipit sweep without a launcher, or remove --launch",
        )


def _check_folder(search: SharedSearch, plan: SweepPlan, folder: Path) -> None:
    """Reject the folder of a different sweep with the same name; a sweep that only adds values may reuse the folder.

    The configuration file may have moved since, or may be a copy of the recorded one.
    """
    sweep = plan.sweep
    swept = {p.key: [*map(str, p.values)] or [str(p.low), str(p.high), p.distribution] for p in sweep.parameters}
    shared = {k: value for k, value in sweep.options.items() if k != "output" and not k.startswith("tracking.")}
    definition = {"method": sweep.method, **swept, **shared}
    recorded = search.study.user_attrs.get("sweep", definition)
    config = config_file(str(sweep.options["config"])).resolve()
    recorded_config = Path(
        search.study.user_attrs.get(_CONFIG) or config_file(str(recorded.get("config", ""))).resolve()
    )
    if config == recorded_config or _same_content(config, recorded_config):
        recorded = {**recorded, "config": definition["config"]}
    extended = set()
    if sweep.method != "bayes":
        values = {p.key: recorded.get(p.key) for p in sweep.parameters if p.values}
        extended = {key for key, before in values.items() if isinstance(before, list) and {*before} <= {*swept[key]}}
    before, now = (
        {key: value for key, value in each.items() if key not in extended} for each in (recorded, definition)
    )
    differences = list_differences(before, now)
    if differences:
        raise ConfigError(
            f"this folder contains a different sweep named {sweep.name!r}; differences:\n    "
            f"{difference_lines(differences)}",
            where=folder,
            fix=f"change the name of the sweep in {sweep.path}, choose a different --output, or delete the folder "
            "(runs are kept)",
        )
    if get_processes().main:
        with disk_errors(folder):
            search.study.set_user_attr("sweep", definition)
            search.study.set_user_attr(_CONFIG, str(config))


def _same_content(config: Path, other: Path) -> bool:
    """Check whether both files exist and have the same bytes."""
    return config.is_file() and other.is_file() and config.read_bytes() == other.read_bytes()


def _is_finished(config: RunConfig) -> bool:
    """Check whether the run's folder contains the results of this configuration.

    Tiles, labels, models and reports are compared only when the trial is started; without --launch, every trial is
    started.
    """
    folder = run_folder(config)
    if not (folder / "results.json").is_file():
        return False
    try:
        recorded = read_recorded(folder / "config.yaml")
    except ConfigError:  # written by an earlier version
        return False
    current = resolve_run_precision(resolve_arm(config))
    compared = [select_keys(each, "results", "data", "evaluation") for each in (recorded, current)]
    return compared[0] == compared[1]


def _launch(sweep: Sweep, trial: Trial, launch: str) -> None:
    """Run one trial in separate processes, which print to this process's console.

    Raises:
        DivergenceError: The training diverged.
        LaunchError: The trial cannot be started, or failed for another reason.
    """
    words = shlex.split(launch)
    prefix = ["env"] if words and "=" in words[0] else []  # NAME=value before the command
    options = [f"--{key}={value}" for key, value in {**sweep.options, **trial.values}.items()]
    command = [*prefix, *words, "-m", "clipit", "sweep", str(sweep.path), "--trial", *options]
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise LaunchError(
            f"a trial cannot be started: {error}", where=shlex.join(command), fix="correct --launch"
        ) from error
    diverged = run_folder(trial.config) / _DIVERGED
    if status and diverged.is_file():
        reason = read_json(diverged, "delete this file and start the sweep again")["reason"]
        raise DivergenceError(reason, where=diverged, fix="lower training.learning_rate")
    if status:
        raise LaunchError(
            f"a trial failed (exit status {status})",
            where=shlex.join(command),
            fix="see the trial's message above; start the sweep again to resume",
        )
    if not is_trained(run_folder(trial.config)):
        raise LaunchError(
            "a launched trial exited without an error, but did not train its run",
            where=shlex.join(command),
            fix='correct --launch: it must run Python with the arguments that follow it, as "accelerate launch" does',
        )
