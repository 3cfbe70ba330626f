"""Hyperparameter search as an Optuna study, which several agents share through a folder."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError, ClipitError, DivergenceError, counted, disk_errors, is_limit
from clipit.output_files.artifacts import lock_file, make_folder

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)
_JOURNAL = "trials.journal"
_REASON = "reason"  # attribute of a failed trial: why it has no score
_ROUNDING = 1e-9  # scores are considered equal if they differ by at most this value
TrialKey = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Trial:
    """One run of a search: the values of the tuned keys, and the configuration of the run."""

    values: Mapping[str, Any]
    config: RunConfig

    @property
    def key(self) -> TrialKey:
        """Values as text, which identify the trial."""
        return _key(self.values)


def _key(values: Mapping[str, Any]) -> TrialKey:
    return tuple((key, str(value)) for key, value in sorted(values.items()))


def _equal(old: float | None, new: float | None) -> bool:
    """Check whether two scores are equal up to rounding, since a run may be repeated on a different machine."""
    return old == new or (old is not None and new is not None and math.isclose(old, new, rel_tol=0, abs_tol=_ROUNDING))


class _JournalLock:
    """Lock for Optuna's journal that the operating system releases when the process exits.

    Optuna's own locks are files, which a killed process leaves behind: the next process then waits for half a minute,
    or forever.
    """

    def __init__(self, journal: Path) -> None:
        self._lock = FileLock(lock_file(journal))

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _drop_torn_line(journal: Path, lock: _JournalLock) -> None:
    """Remove an incomplete last line, which a killed process may leave; the next entry would be appended to it."""
    lock.acquire()
    try:
        if journal.is_file():
            content = journal.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(journal, whole)
    finally:
        lock.release()


class SharedSearch:
    """Resumable search in a folder that several agents share.

    Optuna's journal records the trials and their scores. An agent locks the trial that it runs. If it is killed, the
    operating system releases the lock, and another agent takes over the trial.

    Raises:
        ArtifactError: The journal is damaged, or the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        self._scored: set[TrialKey] = set()  # trials that this process has run with a score
        journal = folder / _JOURNAL
        try:
            with disk_errors(folder):
                make_folder(folder)
                lock: Any = _JournalLock(journal)
                _drop_torn_line(journal, lock)
                storage = JournalStorage(JournalFileBackend(str(journal), lock))
                self.study: optuna.Study = optuna.create_study(
                    storage=storage, study_name="search", direction="maximize", load_if_exists=True
                )
        except (ClipitError, OSError):
            raise
        except Exception as error:  # Optuna does not validate entries: damaged entries raise errors of any type
            if is_limit(error):
                raise
            raise ArtifactError(
                f"the search journal is damaged: {error}",
                where=journal,
                fix="delete it and start again: finished runs are kept",
            ) from error

    def run(
        self, trials: "Callable[[optuna.Study], Iterable[Trial]]", run_trial: Callable[[Trial], float | None]
    ) -> list[Trial]:
        """Run all trials, together with the other agents on this folder, and return them when all have finished.

        `run_trial` is also called for trials that had already finished, to verify their results. A trial whose training
        diverges is recorded as failed, with the reason, and the search continues.

        Args:
            trials: Function from the study to the trials, in starting order. The function may propose trials based on
                those in the study; no other agent changes the study during the iteration.
            run_trial: Function that runs a trial and returns its score; None if the score is undefined. If it raises a
                `DivergenceError`, it must do so in all processes.
        """
        from optuna.trial import TrialState

        processes = get_processes()
        unverified = {key for key, trial in self._recorded().items() if trial.state.is_finished()}
        while True:
            with ExitStack() as held:
                claim = self._claim(trials, unverified, held) if processes.main else None
                claim = processes.broadcast(claim)
                if claim is None:
                    break
                number, trial = claim
                unverified.discard(trial.key)
                score, reason = None, ""
                try:
                    score = run_trial(trial)
                    self._scored.add(trial.key)
                except DivergenceError as error:
                    reason = error.what
                if processes.main:
                    state = TrialState.FAIL if score is None else TrialState.COMPLETE
                    self._compare_score(number, score)
                    with disk_errors(self.folder):
                        self._record_reason(number, reason)
                        self.study.tell(number, score, state, skip_if_finished=True)
        return list({trial.key: trial for trial in trials(self.study)}.values()) if processes.main else []

    def reasons(self) -> dict[TrialKey, str]:
        """Return the reason for each diverged trial, keyed by the trial."""
        return {
            key: trial.user_attrs[_REASON]
            for key, trial in self._recorded().items()
            if _REASON in trial.user_attrs and key not in self._scored
        }

    def _record_reason(self, number: int, reason: str) -> None:
        trial = self.study.get_trials(deepcopy=False)[number]
        if reason and not trial.state.is_finished():  # Optuna does not change finished trials
            self.study._storage.set_trial_user_attr(trial._trial_id, _REASON, reason)

    def _compare_score(self, number: int, score: float | None) -> None:
        """Warn if a finished trial's score in the journal differs from the score of its run."""
        from optuna.trial import TrialState

        recorded = self.study.get_trials(deepcopy=False)[number]
        old = recorded.value if recorded.state == TrialState.COMPLETE else None
        if recorded.state in (TrialState.COMPLETE, TrialState.FAIL) and not _equal(old, score):
            logger.warning(
                f"{self.folder / _JOURNAL}: the score of trial {number} is {old}, but the score of its run is {score}; "
                "trials proposed since then may be based on the wrong score. To propose these trials again, delete the "
                "file and start again: finished runs are kept"
            )

    def _recorded(self) -> "dict[TrialKey, optuna.trial.FrozenTrial]":
        return {_key(trial.params): trial for trial in self.study.get_trials(deepcopy=False)}

    def _claim(
        self, trials: "Callable[[optuna.Study], Iterable[Trial]]", unverified: set[TrialKey], held: ExitStack
    ) -> tuple[int, Trial] | None:
        """Find the first trial to run or verify, and lock it until `held` is closed; None if all are finished."""
        while True:
            running: list[FileLock] = []
            with disk_errors(self.folder), FileLock(lock_file(self.folder / "claim")):
                for trial in trials(self.study):
                    recorded = self._recorded().get(trial.key)
                    if recorded is not None and recorded.state.is_finished():
                        if trial.key in unverified:
                            return recorded.number, trial
                        continue
                    number = self._start(trial) if recorded is None else recorded.number
                    lock = FileLock(lock_file(self.folder / f"trial-{number}"))
                    try:
                        held.enter_context(lock.acquire(blocking=False))
                    except Timeout:
                        running.append(lock)
                    else:
                        return number, trial
            if not running:
                return None
            logger.info(f"waiting: other agents are running the last {counted(len(running), 'trial')}")
            with running[0]:  # until the agent that runs this trial finishes it or is killed
                pass

    def _start(self, trial: Trial) -> int:
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        parameters = {k: v if isinstance(v, str | int | float) else str(v) for k, v in trial.values.items()}
        distributions = {key: CategoricalDistribution((value,)) for key, value in parameters.items()}
        self.study.add_trial(create_trial(state=TrialState.RUNNING, params=parameters, distributions=distributions))
        return len(self.study.get_trials(deepcopy=False)) - 1
