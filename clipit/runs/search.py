"""Hyperparameter search: trials in an Optuna study that several agents share through a folder."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from clipit.artifacts import make_folder
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError, disk_errors

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        values: Searched keys with their values.
        config: Configuration of the run.
        comparison_metric: Metric of a comparison of these runs (`comparison.metric`).
    """

    values: Mapping[str, Any]
    config: RunConfig
    comparison_metric: str = "accuracy"


@dataclass(frozen=True)
class Proposals:
    """Trials that Optuna's tree-structured Parzen estimator (TPE) proposes from the scores of the earlier ones.

    Attributes:
        distributions: Search space by key.
        count: Number of trials, over all agents.
        seed: Seed of the proposals.
        build: Makes a trial from values; None where the values contradict each other.
    """

    distributions: "Mapping[str, BaseDistribution]"
    count: int
    seed: int
    build: Callable[[Mapping[str, Any]], Trial | None]


def quiet_optuna() -> None:
    """Let Optuna log warnings only."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


class SharedSearch:
    """The trials of a search in a folder that several agents share; it resumes where it stopped.

    Optuna's journal records trials and scores. An agent locks the trial that it runs; the operating system releases
    the lock when the process ends, so another agent takes over the trial of a killed one.

    Args:
        folder: Folder of the journal and the locks.

    Raises:
        ArtifactError: The journal is damaged, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        quiet_optuna()
        self.folder = folder
        self._lock = FileLock(folder / "claim.lock")
        journal = folder / "trials.journal"
        try:
            with disk_errors(folder):
                make_folder(folder)
                storage = JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
                self.study: optuna.Study = optuna.create_study(
                    storage=storage, study_name="search", direction="maximize", load_if_exists=True
                )
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            raise ArtifactError(
                f"the journal of the search is damaged: {error}",
                where=journal,
                fix="delete it and start again: finished runs are kept",
            ) from error

    def run(self, trials: Sequence[Trial], run_trial: Callable[[Trial], float | None]) -> None:
        """Run every trial once, together with the other agents on this folder; return when all are finished.

        `run_trial` is also called for trials that were finished before, so that it verifies their results.

        Args:
            trials: Trials in the order in which they are started.
            run_trial: Carries out a trial and returns its score; None where it is not defined.
        """
        finished = {_key(values) for values in self._finished()}
        for trial in trials:
            if _key(trial.values) in finished:
                run_trial(trial)
        self._run(lambda: self._open_trials(trials), run_trial)

    def run_proposals(self, proposals: Proposals, run_trial: Callable[[Trial], float | None]) -> list[Trial]:
        """Run the trials that TPE proposes; returns all that were run, without repetitions.

        Args:
            proposals: Search space and number of trials.
            run_trial: Carries out a trial and returns its score; None where it is not defined.
        """

        def finished() -> list[Trial]:
            trials = [trial for values in self._finished() if (trial := proposals.build(values))]
            return list({_key(trial.values): trial for trial in trials}.values())

        for trial in finished():
            run_trial(trial)
        self._run(lambda: self._open_proposals(proposals), run_trial)
        return finished()

    def _finished(self) -> list[dict[str, Any]]:
        """Values of the trials that were carried out."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        return get_processes().broadcast([trial.params for trial in trials])

    def _run(
        self, open_trials: Callable[[], Iterator[tuple[int, Trial | None]]], run_trial: Callable[[Trial], float | None]
    ) -> None:
        from optuna.trial import TrialState

        processes = get_processes()
        while True:
            with ExitStack() as held:
                claim = self._claim(open_trials, held) if processes.main else None
                claim = processes.broadcast(claim)
                if claim is None:
                    return
                number, trial = claim
                if trial is None:
                    score, state = None, TrialState.PRUNED  # TPE avoids its values
                else:
                    score = run_trial(trial)
                    state = TrialState.FAIL if score is None else TrialState.COMPLETE
                if processes.main:
                    with disk_errors(self.folder):
                        self.study.tell(number, score, state)

    def _claim(
        self, open_trials: Callable[[], Iterator[tuple[int, Trial | None]]], held: ExitStack
    ) -> tuple[int, Trial | None] | None:
        """The first unfinished trial that no living agent runs, locked; None when all are finished."""
        while True:
            running: list[FileLock] = []
            with disk_errors(self.folder), self._lock:
                for number, trial in open_trials():
                    lock = FileLock(self.folder / f"trial-{number}.lock")
                    try:
                        held.enter_context(lock.acquire(blocking=False))
                    except Timeout:
                        running.append(lock)
                    else:
                        return number, trial
            if not running:
                return None
            logger.info(f"waiting: other agents work on the last {len(running)} trials")
            with running[0]:  # its holder finishes the trial, or dies
                pass

    def _open_trials(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Trial]]:
        """Unfinished trials by number; a trial that no agent has started is added when it is reached."""
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        known = {_key(trial.params): trial for trial in self.study.get_trials(deepcopy=False)}
        for trial in trials:
            recorded = known.get(_key(trial.values))
            if recorded is None:
                params = {key: _recordable(value) for key, value in trial.values.items()}
                single = {key: CategoricalDistribution((value,)) for key, value in params.items()}
                self.study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=single))
                yield len(self.study.get_trials(deepcopy=False)) - 1, trial
            elif not recorded.state.is_finished():
                yield recorded.number, trial

    def _open_proposals(self, proposals: Proposals) -> Iterator[tuple[int, Trial | None]]:
        """Unfinished trials by number, then a newly proposed one."""
        from optuna.samplers import TPESampler

        known = self.study.get_trials(deepcopy=False)
        for recorded in known:
            if not recorded.state.is_finished():
                whole = recorded.params.keys() == proposals.distributions.keys()  # not where its agent died proposing
                yield recorded.number, proposals.build(recorded.params) if whole else None
        if len(known) < proposals.count:
            # Seeded by the trial, so that agents that start together do not propose the same values.
            self.study.sampler = TPESampler(seed=proposals.seed + len(known), constant_liar=True)
            proposed = self.study.ask(dict(proposals.distributions))
            yield proposed.number, proposals.build(proposed.params)


def _recordable(value: Any) -> str | int | float | bool | None:
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _key(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in sorted(values.items()))
