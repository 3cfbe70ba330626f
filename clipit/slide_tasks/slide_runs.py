"""Find the runs whose classifiers are compared on slides, and check them before anything is scored."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from clipit.config.data import LeaksConfig
from clipit.config.run import VLMConfig
from clipit.errors import DataError, as_note, counted, shortlist
from clipit.evaluation.slide_metrics import TRAIN, VALIDATION
from clipit.input_files.nearby_files import similar_names
from clipit.models.classifier_spec import CLASSIFIER, DESCRIPTION, read_spec
from clipit.pairing.leaks import SeenTiles
from clipit.runs.folder import is_trained, read_run_config
from clipit.runs.training_tiles import check_test_patients
from clipit.tiles.slide_source import SlideList
from clipit.tiles.splits import crossing_groups
from clipit.workspace.adapted_patients import adaptation_notes

logger = logging.getLogger(__name__)

LeaksPolicy = Literal["error", "note"]
ZERO_SHOT = "VLM zero-shot"
"""Name of the arm that uses only a VLM with prompts."""
_CONFIG = "config.yaml"
_DEPTHS = ("*", "*/*", "*/*/*")  # outputs/runs/NAME/ARM-seed0 is three levels under outputs


@dataclass(frozen=True)
class SlideRun:
    """A trained run.

    Attributes:
        arm: Arm in the run's configuration; `custom` if it names none.
        mpp: Micrometres per pixel of the training tiles; None if unknown.
    """

    folder: Path
    arm: str
    seed: int
    classes: tuple[str, ...]
    mpp: float | None

    @property
    def name(self) -> str:
        """Arm and seed, as in the name of the run's folder."""
        return f"{self.arm}-seed{self.seed}"


def find_runs(paths: Sequence[Path]) -> tuple[list[SlideRun], list[str]]:
    """Find the trained runs in folders.

    Args:
        paths: Folders of single runs, or folders with runs up to three levels below, such as `outputs/runs/NAME`.

    Returns:
        Runs, sorted by arm in order of discovery and then by seed, and notes on runs that were skipped.

    Raises:
        DataError: A folder does not exist or contains no trained run.
        ArtifactError: The classifier of a run is incomplete.
        ConfigError: The configuration of a run is damaged.
    """
    folders: dict[Path, Path] = {}
    notes = []
    for path in paths:
        candidates, incomplete = _run_folders(path), _without_config(path)
        listed = (
            f"{counted(len(incomplete), 'classifier')} without {_CONFIG}: {shortlist([f.name for f in incomplete])}"
        )
        untrained = [folder for folder in candidates if not is_trained(folder)]
        if len(untrained) == len(candidates):
            raise DataError(
                "this folder does not contain a trained run" + (f", only {listed}" if incomplete else ""),
                where=path,
                fix="pass folders of runs, such as outputs/runs/NAME/ARM-seed0, or a folder that contains them",
            )
        if untrained:
            names = shortlist([folder.name for folder in untrained])
            notes.append(f"skipped {counted(len(untrained), 'untrained run')} in {path}: {names}")
        if incomplete:
            notes.append(f"in {path}, skipped {listed}")
        folders |= {folder.resolve(): folder for folder in candidates if folder not in untrained}
    runs = [_read_run(folder) for folder in folders.values()]
    order = list(dict.fromkeys(run.arm for run in runs))
    return sorted(runs, key=lambda run: (order.index(run.arm), run.seed)), notes


def _run_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError("no such folder", where=path, fix=f"pass folders of runs (--runs); {similar_names(str(path))}")
    if (path / _CONFIG).is_file():
        return [path]
    return sorted({file.parent for depth in _DEPTHS for file in path.glob(f"{depth}/{_CONFIG}")})


def _without_config(path: Path) -> list[Path]:
    """List the folders that contain a classifier, but not the configuration of its run."""
    exported = {
        file.parents[1] for depth in (".", *_DEPTHS) for file in path.glob(f"{depth}/{CLASSIFIER}/{DESCRIPTION}")
    }
    return sorted(folder for folder in exported if not (folder / _CONFIG).is_file())


def _read_run(folder: Path) -> SlideRun:
    config, spec = read_run_config(folder), read_spec(folder / "classifier")
    return SlideRun(folder, config.arm or "custom", config.seed, tuple(spec.classes), spec.mpp)


def check_patients(
    listed: SlideList, runs: Iterable[Path] | None, policy: LeaksPolicy, vlm: VLMConfig | None = None
) -> list[str]:
    """Check that no patient is in two splits of the slides, and that no run was trained on test patients.

    Only labelled slides are checked, because only these are evaluated. Must be called by all processes.

    Args:
        runs: Folders of the runs that score the slides; None for a classifier that is not in the folder of its run.
        policy: Whether leaks raise an error, or are only noted.
        vlm: VLM that scores the slides zero-shot.

    Returns:
        Notes on leaks, and on comparisons that could not be made.

    Raises:
        DataError: There are leaks, and the policy is `error`.
    """
    labelled = np.array([bool(label) for label in listed.labels], dtype=bool)
    ids, splits, groups = (
        np.asarray(values, dtype=object)[labelled]
        for values in ([slide.name for slide in listed.slides], listed.source_splits, listed.groups)
    )
    notes = []
    if crossing := crossing_groups(groups, ids, splits):
        message = (
            f"{counted(len(crossing), 'patient is', 'patients are')} in more than one split: {shortlist(crossing)}"
        )
        if policy == "error":
            fix = "keep the slides of a patient in one split, or pass --leaks-policy=note to only count these patients"
            raise DataError(message, where=listed.where, fix=fix)
        notes.append(f"WARNING: {message}; kept on request (--leaks-policy=note)")
        logger.info(as_note(notes[0]))
    tested = ~np.isin(splits.astype(str), (TRAIN, VALIDATION))
    tests = SeenTiles(ids[tested], np.full(int(tested.sum()), "test", dtype=object), groups[tested])
    if runs is None and tested.any():
        problem = "the classifier is not in its run's folder"
        notes.append(f"WARNING: the test slides were not compared with the training tiles: {problem}")
        logger.info(as_note(notes[-1]))
    for note in adaptation_notes(tests, [vlm], "test slide"):
        notes.append(note)
        logger.info(as_note(note))
    for run in runs or []:
        notes += check_test_patients(run, tests, LeaksConfig(policy=policy), "slide")
    return notes


def run_of_classifier(path: Path) -> list[Path] | None:
    """Return the folder of the run that contains a classifier, as a list for `check_patients`; None without a run."""
    folders = [path, path.parent] if path.name == "classifier" else [path]
    return [folder for folder in folders if (folder / _CONFIG).is_file()][:1] or None


def check_comparison(
    runs: Sequence[SlideRun], reference: str, listed: SlideList, zero_shot: Iterable[str] | None = None
) -> None:
    """Check that runs can be compared on slide labels; all problems are listed at once.

    Args:
        reference: Arm that the others are compared with.
        zero_shot: Classes of the prompts, if the zero-shot VLM is an additional arm; None if it is not.

    Raises:
        DataError: The reference is missing, there is no other arm, an arm has the same seed twice or seeds that cannot
            be paired, classes differ, there are too few labels, or a label is not a class.
    """
    arms = {run.arm: sorted(other.seed for other in runs if other.arm == run.arm) for run in runs}
    classes = runs[0].classes
    problems = [*_arm_problems(runs, arms, reference, zero_shot is not None)]
    for run in runs[1:]:
        if set(run.classes) != set(classes):
            problems.append(
                f"the classes of {run.name} are {_listed(run.classes)}; those of {runs[0].name} are {_listed(classes)}"
            )
    if zero_shot is not None and set(zero_shot) != set(classes):
        problems.append(
            f"the classes of the prompts are {_listed(zero_shot)}; those of {runs[0].name} are {_listed(classes)}"
        )
    problems += _label_problems(listed, classes)
    if problems:
        raise DataError(
            "these arms cannot be compared on these slides:\n    " + "\n    ".join(problems),
            where=listed.where,
            fix="correct --runs, --reference, the prompts or the label column",
        )


def _arm_problems(
    runs: Sequence[SlideRun], arms: dict[str, list[int]], reference: str, zero_shot: bool
) -> Iterable[str]:
    known = [*arms, *([ZERO_SHOT] if zero_shot else [])]
    if reference not in known:
        yield f"there is no arm {reference} (--reference); the arms are {_listed(known)}"
    if len(known) == 1:
        yield f"{known[0]} is the only arm: name at least one other to compare it with"
    folders = Counter((run.arm, run.seed) for run in runs)
    for (arm, seed), count in folders.items():
        if count > 1:
            run_folders = shortlist([str(run.folder) for run in runs if (run.arm, run.seed) == (arm, seed)])
            yield f"{counted(count, 'run has', 'runs have')} the arm {arm} and the seed {seed}: {run_folders}"
    reference_seeds = arms.get(reference, [])
    for arm, seeds in arms.items():
        if len(reference_seeds) > 1 and len(seeds) > 1 and set(seeds) != set(reference_seeds):
            yield (
                f"the seeds of {arm} ({_listed(seeds)}) cannot be paired with those of {reference} "
                f"({_listed(reference_seeds)})"
            )


def _label_problems(listed: SlideList, classes: Sequence[str]) -> Iterable[str]:
    labels = sorted({label for label in listed.labels if label})
    if not labels:
        yield "no slide has a label: the slide table needs a label column"
        return
    unknown = [label for label in labels if label not in classes]
    if unknown:
        yield f"labels that are not classes: {shortlist(unknown)}; the classes are {_listed(classes)}"
    labelled = [split for split, label in zip(listed.source_splits, listed.labels, strict=True) if label]
    if set(labelled) <= {TRAIN, VALIDATION}:
        yield f"all labelled slides are in {_listed(sorted(set(labelled)))}, so none is left for the comparison"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
