"""Study of slide or patient labels: train arms over seeds, compare them on test bags, and write tables and a page."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from clipit.config.mil import MilConfig
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import DataError, as_note, counted
from clipit.evaluation.slide_arms import SlideComparison, compare_slide_sets
from clipit.evaluation.slide_metrics import PoolingChoice, choose_pooling
from clipit.evaluation.slide_scores import pool_slide, slide_table
from clipit.evaluation.slide_sets import Level, PoolingKey, SlideSet, collect_slides, unknown_patients_note
from clipit.mil.inputs import ZERO_SHOT, MilInputs, ZeroShot, check_hidden_labels, read_inputs
from clipit.mil.maps import MilMaps, check_mask_settings, make_maps, read_masks
from clipit.mil.mil_arms import ARMS, FLOOR, arm_targets, arm_titles, check_arms, class_frequencies
from clipit.mil.mil_bags import MilBags, keep_labels, label_budget_note
from clipit.mil.train_network import MilModel, check_trainable, train_bag_network
from clipit.output_files.artifacts import locked, write_record
from clipit.output_files.whole_files import write_frame, write_text
from clipit.progress import progress
from clipit.reporting.mil_page import MilContent, mil_page, mil_summary
from clipit.reporting.page_note import compose_note
from clipit.reporting.slide_arms_page import slide_verdict
from clipit.versions import git_commit, package_version, versions
from clipit.workspace.tile_reading import artefacts_of

logger = logging.getLogger(__name__)

NAME = "mil"
"""Base name of the study's files."""
SCORES, SUMMARY = "bag_scores.csv", f"{NAME}.md"


@dataclass(frozen=True)
class _Scored:
    """Scores of all arms.

    Attributes:
        sets: Scores of all bags, by arm and seed.
        models: Trained models, by arm and seed.
    """

    sets: dict[str, dict[int, SlideSet]]
    choices: dict[str, PoolingChoice]
    models: dict[str, dict[int, MilModel]]
    notes: list[str]


def mil_study(config: RunConfig, mil: MilConfig) -> Path:
    """Train and compare the arms; models that have already been trained are reused.

    Writes `mil.parquet` (the comparison: one row per split, level, metric and arm), `bag_scores.csv` (probabilities of
    every bag by arm and seed), `map_scores.csv` and `map_scores_slides.csv` (if there are masks), `mil.json`
    (provenance), `mil.md`, `mil.html` and `maps/`.

    Args:
        config: Run configuration with tiles or slides, a VLM or backbone, and prompts.
        mil: Section `mil`: bags, arms, seeds and training.

    Returns:
        The output folder.

    Raises:
        ConfigError: An arm is unknown, `tiles.labels` hides labels, or the features cannot be used.
        DataError: There are too few bags, or no test bag has a label.
    """
    check_arms(config, mil)
    check_hidden_labels(config, mil)
    check_mask_settings(mil, config.tiles)
    inputs = read_inputs(config, mil)
    unknown = int(((inputs.bags.known_patients == "") & (inputs.bags.labels >= 0)).sum())
    budget = label_budget_note(inputs.bags, mil.labels_per_class)
    inputs = replace(inputs, notes=(*unknown_patients_note(unknown), *budget, *inputs.notes))
    if get_processes().main:
        logged = () if inputs.tiles is None else inputs.tiles.notes  # logged when the tiles were read
        for note in inputs.notes:
            if note not in logged:
                logger.info(as_note(note))
    for seed in mil.seeds:
        check_trainable(keep_labels(inputs.bags, mil.labels_per_class, seed))
    inputs = replace(inputs, notes=(*_check_test(inputs.bags, mil), *inputs.notes))
    masked = read_masks(inputs.bags, config.tiles, mil)
    folder = config.output / NAME / config.name
    scored = _score_arms(config, mil, inputs)
    level = _level(mil)
    reference = mil.reference if mil.reference in scored.sets else next(iter(scored.sets))
    if get_processes().main:
        comparison = _compare(scored, list(scored.sets), reference, mil, level)
        against_control = [_compare(scored, arms, arms[0], mil, level) for arms in _control_groups(scored)]
        with locked(folder):  # another command may be writing the same study
            maps = make_maps(inputs, scored.models, config.tiles, mil, masked, folder)
            _write(config, mil, inputs, scored, comparison, against_control, maps, level, folder)
    get_processes().barrier()
    return folder


def _level(mil: MilConfig) -> Level:
    return "patient" if mil.bags == "patient" else "slide"


def _compare(scored: _Scored, arms: Sequence[str], reference: str, mil: MilConfig, level: Level) -> SlideComparison:
    """Compare arms with a reference; the floor and shuffled labels are not tested."""
    controls = [arm for arm in arms if arm == FLOOR or (arm in ARMS and ARMS[arm].shuffled)]
    sets = {arm: scored.sets[arm] for arm in arms}
    choices = {arm: scored.choices[arm] for arm in arms}
    compared = compare_slide_sets(sets, choices, reference, resamples=mil.resamples, controls=controls)
    if level == "slide":
        return compared
    table = compared.table[compared.table["level"] == level].reset_index(drop=True)
    return replace(compared, table=table)


def _control_groups(scored: _Scored) -> list[list[str]]:
    """Return each control with shuffled labels, followed by the trained arms that are compared with it."""
    trained = [arm for arm in scored.models if not ARMS[arm].shuffled]
    return [[control, *trained] for control in scored.models if ARMS[control].shuffled and trained]


def _check_test(bags: MilBags, mil: MilConfig) -> tuple[str, ...]:
    """Check that test bags have labels; return a note on classes without a test bag."""
    labels = bags.labels[(bags.splits == "test") & (bags.labels >= 0)]
    if not len(labels):
        unit = _level(mil)
        fix = (
            f"label test {unit}s, or map a split that has labels to test in tiles.splits"
            if (bags.splits == "test").any()
            else f"map a split to test in tiles.splits, or hold out test {unit}s with tiles.test_fraction"
        )
        raise DataError("no test bag has a label", where=bags.where, fix=fix)
    absent = [name for code, name in enumerate(bags.classes) if code not in labels]
    return (f"No test bag is labelled {', '.join(absent)}; the scores cover only the other classes.",) if absent else ()


def _score_arms(config: RunConfig, mil: MilConfig, inputs: MilInputs) -> _Scored:
    """Train and score the arms; called by all processes."""
    bags, root = inputs.bags, artefacts_of(config)
    trained = [name for name in mil.arms if name in ARMS]
    scored = _Scored({}, {}, {}, [])
    total = len(trained) * len(mil.seeds)
    with progress("training bag models", total, shown=get_processes().main) as advance:
        for name in mil.arms:
            if name == ZERO_SHOT:
                if inputs.zero_shot is not None:
                    labels = keep_labels(bags, mil.labels_per_class, mil.seeds[0])
                    scored.sets[name] = {mil.seeds[0]: _zero_shot_set(labels, inputs.zero_shot)}
                    scored.choices[name] = choose_pooling(scored.sets[name][mil.seeds[0]], unit=_level(mil))
                continue
            arm = ARMS[name]
            options = mil.training.model_copy(update={"pooling": arm.pooling})
            scored.models[name], scored.sets[name] = {}, {}
            all_notes = [note for seed in mil.seeds for note in arm.notes(bags, mil.labels_per_class, seed)]
            for note in dict.fromkeys(f"{name}: {note}" for note in all_notes):  # mostly the same for all seeds
                logger.info(as_note(note))
                scored.notes.append(note)
            for seed in mil.seeds:
                labelled = arm.bags(bags, mil.labels_per_class, seed)
                targets = arm_targets(arm, config, mil, inputs.workspace, labelled, seed, root)
                model = train_bag_network(labelled, options, seed, targets, root=root)
                if targets is not None and seed == mil.seeds[0]:
                    scored.notes.extend(f"{name}, seed {seed}: {note}" for note in targets.notes)
                scored.models[name][seed] = model
                scored.sets[name][seed] = _slide_set(bags, model.predict(bags), arm.pooling)
                advance()
            epochs = ", ".join(str(model.epoch) for model in scored.models[name].values())
            scored.choices[name] = _choice(arm.pooling, f"Epochs chosen on the validation bags, by seed: {epochs}.")
    frequencies = class_frequencies(bags, mil.labels_per_class, mil.seeds[0])
    scored.sets[FLOOR] = {mil.seeds[0]: _slide_set(bags, frequencies, "constant")}
    scored.choices[FLOOR] = _choice("constant", "Nothing is chosen.")
    return scored


def _choice(pooling: str, sentence: str) -> PoolingChoice:
    return PoolingChoice(PoolingKey(pooling, False), sentence, {})


def _slide_set(bags: MilBags, probabilities: Float32[np.ndarray, "b c"], pooling: str) -> SlideSet:
    """Convert bag scores to a `SlideSet`, sorted by name."""
    order = np.argsort(bags.names.astype(str), kind="stable")
    return SlideSet(
        slides=bags.names.astype(str)[order],
        labels=bags.labels[order],
        patients=bags.known_patients.astype(str)[order],
        splits=bags.splits.astype(str)[order],
        classes=bags.classes,
        scores={PoolingKey(pooling, False): probabilities[order]},
    )


def _zero_shot_set(bags: MilBags, zero_shot: ZeroShot) -> SlideSet:
    """Pool the zero-shot scores of each bag's instances with every pooling method."""
    pooled = {}
    for bag, name in enumerate(bags.names.tolist()):
        scores = zero_shot.scores(bag)
        pooled[str(name)] = pool_slide(scores, np.zeros((len(scores), 2), dtype=np.int64), smoothing=(False,))
    names = np.array([*bags.classes, ""], dtype=object)  # index -1, the unknown label, is the last name
    slides = pd.DataFrame(
        {"slide": bags.names, "label": names[bags.labels], "group": bags.known_patients, "split": bags.splits}
    )
    return collect_slides(slide_table(pooled, bags.classes), slides, bags.classes)


def _write(
    config: RunConfig,
    mil: MilConfig,
    inputs: MilInputs,
    scored: _Scored,
    comparison: SlideComparison,
    against_control: Sequence[SlideComparison],
    maps: MilMaps,
    level: Level,
    folder: Path,
) -> None:
    bags = inputs.bags
    write_frame(folder / SCORES, _score_table(scored))
    if len(maps.scores):
        write_frame(folder / "map_scores.csv", maps.scores)
        write_frame(folder / "map_scores_slides.csv", maps.slides)
    facts: dict[str, Any] = {
        "bags": f"{len(bags)} ({mil.bags}s), {counted(int(bags.sizes.sum()), 'tile')} with {bags.dim} features",
        "seeds": ", ".join(map(str, mil.seeds)),
        **inputs.facts,
        **({} if inputs.zero_shot is None else inputs.zero_shot.facts),
        "bags fingerprint": bags.fingerprint,
        "bootstrap": f"{mil.resamples} resamples of {'patients' if (bags.known_patients != '').any() else 'slides'}",
        "commit": git_commit(),
        "clipit": package_version(),
    }
    models = _models_used(config, mil, inputs)
    content = MilContent(
        title=f"{config.name}: {mil.bags} labels",
        note=compose_note(config.note, **models),
        comparison=comparison,
        against_control=against_control,
        level=level,
        counts=bags.counts(),
        arms=arm_titles(scored.sets),
        notes=(*inputs.notes, *scored.notes, *maps.notes),
        maps=maps.shown,
        map_scores=maps.scores,
        facts=facts,
        training=mil.training.model_dump(mode="json", exclude={"pooling"}),
    )
    table = comparison.table.assign(features=inputs.facts["features"], bags=bags.fingerprint, commit=git_commit())
    write_frame(folder / f"{NAME}.parquet", table)
    write_text(folder / SUMMARY, mil_summary(content))
    write_text(folder / f"{NAME}.html", mil_page(content))
    record = {
        "verdict": slide_verdict(comparison, level),
        "reference": comparison.reference,
        "against_control": {each.reference: slide_verdict(each, level) for each in against_control},
        "choices": {arm: choice.sentence for arm, choice in comparison.choices.items()},
        "facts": facts,
        "notes": [*inputs.notes, *scored.notes, *maps.notes],
        "config": config.model_dump(mode="json") | {"mil": mil.model_dump(mode="json")},
        "versions": versions(),
    }
    write_record(folder / f"{NAME}.json", record)


def _models_used(config: RunConfig, mil: MilConfig, inputs: MilInputs) -> Mapping[str, list[str]]:
    """Return the names of the models that the scores depend on, for the note."""
    reads_reports = any(name in ARMS and ARMS[name].vectors == "reports" for name in mil.arms)
    vlms = [config.vlm.name] if mil.features == "vlm" or inputs.zero_shot is not None or reads_reports else []
    backbones = {"backbone": [config.backbone.name], "run": [str(inputs.facts.get("backbone", ""))]}
    return {"vlms": vlms, "backbones": backbones.get(mil.features, [])}


def _score_table(scored: _Scored) -> pd.DataFrame:
    """Tabulate the scores of every bag by arm and seed; the zero-shot arm uses its chosen pooling."""
    tables = []
    for arm, by_seed in scored.sets.items():
        key = scored.choices[arm].key
        for seed, each in by_seed.items():
            names = np.array([*each.classes, ""], dtype=object)
            chosen = key or next(iter(each.scores))
            table = pd.DataFrame(
                {
                    "arm": arm,
                    "seed": seed,
                    "bag": each.slides,
                    "patient": each.patients,
                    "split": each.splits,
                    "label": names[each.labels],
                    "predicted": names[each.scores[chosen].argmax(axis=1)],
                }
            )
            for code, name in enumerate(each.classes):
                table[f"score_{name}"] = each.scores[chosen][:, code]
            tables.append(table)
    return pd.concat(tables, ignore_index=True)
