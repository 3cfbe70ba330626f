"""Adapt a VLM with controls, and evaluate it before and after."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipit.config.load import names_tiles, require_tiles
from clipit.config.run import RunConfig
from clipit.config.studies import ProbingConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, DataError, DivergenceError
from clipit.evaluation.model_comparison import ItemResults, ModelDifference, Subject, SubjectScore, compare_models
from clipit.models.adapted_towers import adapt_towers
from clipit.models.loading import public_name
from clipit.models.vlm import load_vlm
from clipit.models.vlm_export import adapted_vlm, check_adaptable
from clipit.output_files.artifacts import locked
from clipit.reporting.adapt_page import BEFORE, PROBE, TEXT, ZERO_SHOT, forgetting_task
from clipit.runs.feature_stores import vlm_facts
from clipit.studies.adapted_vlms.additional_sets import AdditionalSet, check_additional_sets, read_additional_sets
from clipit.studies.adapted_vlms.measure import TileResults, measure_tiles, measure_zero_shot
from clipit.studies.adapted_vlms.pair_retrieval import measure_pairs
from clipit.studies.adapted_vlms.results import FailedAdaptation, StudyResults, check_adapted, write_results
from clipit.studies.model_features import joint_features
from clipit.vlm_training.adapt import adapt, used_towers
from clipit.vlm_training.bag_batches import BagExamples
from clipit.vlm_training.examples import make_examples, validation_examples
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

NAME = "adapt"
"""Base name of the study's files."""


@dataclass(frozen=True)
class _Model:
    """Results of one VLM.

    Attributes:
        tiles: Results on the test tiles.
        pairs: Retrieval results, by direction.
        additional: Zero-shot results on additional sets, by name.
    """

    facts: dict[str, Any]
    tiles: TileResults
    pairs: Mapping[str, ItemResults]
    additional: Mapping[str, ItemResults] = field(default_factory=dict)


def adapt_study(config: RunConfig, section: AdaptConfig, probing: ProbingConfig) -> Path:
    """Adapt the VLM once per arm and seed, and evaluate it before and after; finished adaptations are reused.

    An adaptation that diverges does not stop the others; the next call resumes it from its last checkpoint.

    Writes `adapt.parquet` (one row per score, model and seed), `adapt.json` (means, differences, provenance),
    `adapt.md` and `adapt.html`, and a folder `<arm>-seed<seed>/` per adaptation.

    Args:
        config: Run configuration, which names tiles, reports, VLM and prompts.
        section: Section `adapt`.
        probing: Section `probing`, for the numbers of retrieved items and the captions of test tiles.

    Returns:
        The output folder.

    Raises:
        ConfigError: A configuration of `adapt.forgetting` cannot be read, or keys contradict each other.
        DataError: There are too few examples, or test tiles, including those of additional sets, leak into them.
        DivergenceError: Training diverged in so many adaptations that nothing can be compared.
        ModelError: A tower cannot be adapted with `adapt.tuning`.
    """
    if section.data != "pairs":
        require_tiles(config)
    workspace = Workspace(config)
    sets = read_additional_sets(config, section)
    check_inputs(workspace, ["vlm"], reports=section.needs_reports)
    for name, each in sets.items():
        check_inputs(workspace.for_config(each), ["vlm"])
        logger.info(f"forgetting is measured on {name}")
    example_sets = _check_arms(config, section, workspace, with_validation=bool(sets))
    additional = check_additional_sets(config, section, workspace, sets, example_sets)
    held_out, split = _held_out(config, section, workspace)
    logger.info("evaluating the VLM before its adaptation")
    models: dict[str, dict[int, _Model]] = {}
    measured = _measure(config, section, probing, workspace, held_out, additional)
    models[BEFORE] = dict.fromkeys(section.seeds, measured)
    folders: dict[str, dict[int, Path]] = {}
    failed: list[FailedAdaptation] = []
    for arm in section.arms:
        for seed in section.seeds:

            def measure(folder: Path, arm: str = arm, seed: int = seed) -> dict[str, float]:
                adapted = config.model_copy(update={"vlm": adapted_vlm(config.vlm, folder)})
                logger.info(f"evaluating {arm}, seed {seed}")
                separate = workspace.apart(adapted)  # its VLM is released afterwards
                if adapted.vlm.adapter is None:  # merging an adapter may round differently on another machine
                    check_adapted(folder, separate.vlm.fingerprint)
                model = _measure(adapted, section, probing, separate, held_out, additional)
                models.setdefault(arm, {})[seed] = model
                return _test_scores(model, seed)

            try:
                path = adapt(config, section, arm, seed, workspace, measure)
            except DivergenceError as error:  # raised in all processes
                failed.append(FailedAdaptation(arm, seed, error.what))
                logger.info(f"failed: {arm}, seed {seed}: {error.what}")
                continue
            folders.setdefault(arm, {})[seed] = path
    seeds = _common_seeds(section, folders, failed)
    models = {model: {seed: by_seed[seed] for seed in seeds} for model, by_seed in models.items()}
    folder = config.output / NAME / config.name
    if get_processes().main:
        scores, contrasts = _compare(config, [*folders], models)
        results = StudyResults(
            scores=scores,
            contrasts=contrasts,
            facts={model: {seed: each.facts for seed, each in seeds.items()} for model, seeds in models.items()},
            tiles={model: {seed: each.tiles for seed, each in seeds.items()} for model, seeds in models.items()},
            folders={arm: {seed: by_seed[seed] for seed in seeds} for arm, by_seed in folders.items()},
            failed=failed,
            forgetting={name: each.notes for name, each in additional.items()},
            held_out=held_out,
            split=split,
        )
        with locked(folder):  # another command may be writing the same study
            write_results(config, section, probing, workspace, folder, results)
    get_processes().barrier()
    return folder


def _common_seeds(
    section: AdaptConfig, folders: Mapping[str, Mapping[int, Path]], failed: Sequence[FailedAdaptation]
) -> list[int]:
    """Return the seeds with which all arms were adapted, ignoring arms that failed with every seed.

    Raises:
        DivergenceError: No seed remains.
    """
    seeds = [seed for seed in section.seeds if folders and all(seed in by_seed for by_seed in folders.values())]
    if not seeds:
        raise DivergenceError(
            f"nothing can be compared, because for every seed, training diverged in at least one arm; first reason: "
            f"{failed[0].reason}",
            where=f"{failed[0].arm}, seed {failed[0].seed}",
            fix="lower adapt.learning_rate, or check the VLM and the texts",
        )
    return seeds


def _check_arms(
    config: RunConfig, section: AdaptConfig, workspace: Workspace, *, with_validation: bool
) -> list[BagExamples]:
    """Create the examples of all arms and the trainable weights, so that invalid input is found early.

    Returns:
        Training examples, and validation examples if they are requested or used to select the step.
    """
    check_adaptable(config.vlm, section.tuning)
    towers = [used_towers(section, arm).towers for arm in section.arms]
    seed, validation = section.seeds[0], None
    train = [make_examples(config, section, arm, seed, "train", workspace) for arm in section.arms]
    if section.keep == "best" or with_validation:
        validation = validation_examples(config, section, "text", seed, workspace, batches=section.keep == "best")
    if section.keep == "best" and validation is None:
        raise ConfigError(
            "there is no validation split to select the best step on",
            where="adapt.keep: best",
            fix="set adapt.keep: last, or add validation data",
        )
    vlm = load_vlm(config.vlm, get_processes().device)  # a separate copy, which is modified and released
    options = (section.tuning, max(towers, key=len), section.lora, section.learn_temperature)
    adapt_towers(vlm.towers, *options, base_name=public_name(vlm.name))
    return [each for each in (train[0], validation) if each is not None]


def _held_out(config: RunConfig, section: AdaptConfig, workspace: Workspace) -> tuple[BagExamples | None, str]:
    """Return the examples for retrieval, from the test split or else from validation, and the name of the split."""
    for split in ("test", "validation"):
        try:
            return make_examples(config, section, "text", section.seeds[0], split, workspace), split
        except DataError as error:
            logger.info(f"note: no retrieval on {split} examples: {str(error).splitlines()[0]}")
    return None, ""


def _measure(
    config: RunConfig,
    section: AdaptConfig,
    probing: ProbingConfig,
    workspace: Workspace,
    held_out: BagExamples | None,
    additional: Mapping[str, AdditionalSet],
) -> _Model:
    """Evaluate the VLM of a workspace; called by all processes."""
    tiles = TileResults(None, {}, [])
    if names_tiles(config):
        tiles = measure_tiles(config, probing, workspace, joint_features(workspace), section.seeds)
    pairs = {} if held_out is None else measure_pairs(workspace, held_out, probing.at)
    zero_shot = {}
    for name, other in additional.items():
        vlm_workspace = workspace.for_config(other.config.model_copy(update={"vlm": config.vlm}))
        result = measure_zero_shot(vlm_workspace, joint_features(vlm_workspace), other.tests)
        if result is not None:
            zero_shot[name] = result
    return _Model(vlm_facts(workspace), tiles, pairs, zero_shot)


def _test_scores(model: _Model, seed: int) -> dict[str, float]:
    """Return the defined scores of a VLM as `test_<task>_<metric>`, for experiment trackers."""
    metrics: dict[str, float] = {}
    for task, measured in _results_by_task(model, seed).items():
        scores = measured.scores(np.ones((len(measured.ids), 1)))
        name = re.sub(r"\W+", "_", task)
        metrics |= {
            f"test_{name}_{metric}": float(value[0]) for metric, value in scores.items() if np.isfinite(value[0])
        }
    return metrics


def _results_by_task(model: _Model, seed: int) -> dict[str, ItemResults]:
    additional = {forgetting_task(name): result for name, result in model.additional.items()}
    tasks = {ZERO_SHOT: model.tiles.zero_shot, PROBE: model.tiles.probes.get(seed), **model.pairs, **additional}
    return {task: measured for task, measured in tasks.items() if measured is not None}


def _compare(
    config: RunConfig, arms: Sequence[str], models: Mapping[str, Mapping[int, _Model]]
) -> tuple[list[SubjectScore], list[ModelDifference]]:
    scores: list[SubjectScore] = []
    contrasts: list[ModelDifference] = []
    for measured in _group_by_items(models):
        tasks = list(dict.fromkeys(subject.task for subject in measured))
        pairs = [pair for task in tasks for pair in _pairs(task, arms)]
        pairs.append((Subject(ZERO_SHOT, TEXT), Subject(PROBE, BEFORE)))
        pairs = [pair for pair in pairs if pair[0] in measured and pair[1] in measured]
        tables, compared = compare_models(measured, pairs, config.evaluation.bootstrap, config.seed)
        scores += tables
        contrasts += compared
    return scores, contrasts


def _pairs(task: str, arms: Sequence[str]) -> Iterator[tuple[Subject, Subject]]:
    """Pair each arm with the VLM before adaptation, and the arm `text` with its controls."""
    for arm in arms:
        yield Subject(task, arm), Subject(task, BEFORE)
    for arm in arms:
        if arm != TEXT:
            yield Subject(task, TEXT), Subject(task, arm)


def _group_by_items(models: Mapping[str, Mapping[int, _Model]]) -> Iterator[dict[Subject, dict[int, ItemResults]]]:
    """Group the results of models that are evaluated on the same items."""
    tiles: dict[Subject, dict[int, ItemResults]] = {}
    others: dict[str, dict[Subject, dict[int, ItemResults]]] = {}
    for model, by_seed in models.items():
        for seed, each in by_seed.items():
            for task, result in _results_by_task(each, seed).items():
                family = tiles if task in (ZERO_SHOT, PROBE) else others.setdefault(task, {})
                family.setdefault(Subject(task, model), {})[seed] = result
    yield from (family for family in (tiles, *others.values()) if family)
