"""Write the tables and pages of a study of adapted VLMs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipit.config.load import names_tiles
from clipit.config.run import RunConfig
from clipit.config.studies import ProbingConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import ArtifactError, DataError, counted, counted_of, shortlist
from clipit.evaluation.model_comparison import ModelDifference, SubjectScore
from clipit.output_files.artifacts import make_folder, read_json, write_json
from clipit.output_files.run_files import RUN_FINGERPRINT, check_same_run
from clipit.reporting.adapt_facts import training_counts
from clipit.reporting.adapt_page import (
    BEFORE,
    CURVES,
    PROBE,
    SEED_SCORES,
    TEXT,
    ZERO_SHOT,
    AdaptContent,
    adapt_sections,
    adapt_verdict,
    seed_scores,
)
from clipit.reporting.page_note import compose_note
from clipit.reporting.plots import plot_lines, save_plot
from clipit.reporting.score_plots import plot_seed_scores
from clipit.reporting.study_page import (
    StudyRow,
    add_provenance,
    collect_provenance,
    prompt_columns,
    write_study,
)
from clipit.reporting.tables import LABELS
from clipit.reporting.training_curves import read_curves
from clipit.reporting.vlm_card import write_card_scores
from clipit.studies.adapted_vlms.measure import TileResults
from clipit.vlm_training.bag_batches import BagExamples
from clipit.workspace.workspace import Workspace

_RERUN = "delete this file and run clipit adapt again, which resumes from the last checkpoint"


@dataclass(frozen=True)
class FailedAdaptation:
    """An adaptation without scores, because its training diverged."""

    arm: str
    seed: int
    reason: str


@dataclass(frozen=True)
class StudyResults:
    """All results of a study.

    Attributes:
        tiles: Results on the test tiles by model and seed.
        folders: Folder of each adaptation that is compared, by arm and seed.
        failed: Adaptations without scores.
        forgetting: Additional sets by name, with notes on the tiles that `leaks.policy` dropped or kept.
        held_out: Examples for retrieval between images and texts; None without retrieval.
        split: Split of `held_out`.
    """

    scores: Sequence[SubjectScore]
    contrasts: Sequence[ModelDifference]
    facts: Mapping[str, Mapping[int, dict[str, Any]]]
    tiles: Mapping[str, Mapping[int, TileResults]]
    folders: Mapping[str, Mapping[int, Path]]
    failed: Sequence[FailedAdaptation]
    forgetting: Mapping[str, Sequence[str]]
    held_out: BagExamples | None
    split: str


@dataclass(frozen=True, kw_only=True)
class AdaptRow(StudyRow):
    """One score of one model with one seed.

    Attributes:
        task: Evaluation task: zero-shot classification, a linear probe or retrieval.
        arm: `before`, or the arm of the adaptation.
        value: Score; None if undefined.
        n: Number of test tiles or queries.
        random: Score expected by chance.
        fold: Score divided by `random`.
        labels: Number of labels that the score depends on, in addition to those of the test tiles.
    """

    task: str
    arm: str
    value: float | None
    reason: str = ""
    n: int | None = None
    random: float | None = None
    fold: float | None = None
    labels: int = 0


def write_results(
    config: RunConfig,
    section: AdaptConfig,
    probing: ProbingConfig,
    workspace: Workspace,
    folder: Path,
    results: StudyResults,
) -> None:
    """Write `adapt.parquet`, `adapt.json`, `adapt.md`, `adapt.html` and the loss plot.

    Args:
        section: Section `adapt`.
        probing: Section `probing`.
        workspace: Workspace of the VLM before its adaptation.
    """
    make_folder(folder)
    process = collect_provenance()
    training = {arm: {seed: _training(path) for seed, path in seeds.items()} for arm, seeds in results.folders.items()}
    content = _content(config, section, workspace, results, training, process)
    verdict = adapt_verdict(content)
    if content.curves:
        save_plot(plot_lines(content.curves, y_label="contrastive loss"), folder / CURVES)
    if by_seed := seed_scores(content):
        figure = plot_seed_scores(by_seed, x_label=f"zero-shot {LABELS['balanced_accuracy']}", baseline=BEFORE)
        save_plot(figure, folder / SEED_SCORES)
    subjects = {_subject(model, seed): facts for model, seeds in results.facts.items() for seed, facts in seeds.items()}
    study: dict[str, object] = {"split": "test", "seed": config.seed}
    if names_tiles(config):
        tiles = workspace.all_tiles
        study |= {"classes": len(tiles.classes), "tiles_fingerprint": tiles.fingerprint}
    frame = add_provenance([*_rows(workspace, results)], {**study, **process}, subjects)
    write_json(
        folder / "adapt.json",
        {
            "verdict": verdict,
            "scores": [_flat_score(score) for score in results.scores],
            "contrasts": [_flat_contrast(contrast) for contrast in results.contrasts],
            "notes": [*content.notes],
            "adaptations": {
                arm: {str(seed): {"folder": str(path), **training[arm][seed]} for seed, path in seeds.items()}
                for arm, seeds in results.folders.items()
            },
            **({"failed_adaptations": [asdict(each) for each in results.failed]} if results.failed else {}),
            "config": config.model_dump(mode="json")
            | {"adapt": section.model_dump(mode="json"), "probing": probing.model_dump(mode="json")},
            **process,
            "versions": json.loads(process["versions"]),
            "subjects": subjects,
        },
    )
    title = f"{config.name}: a VLM before and after its adaptation"
    note = compose_note(config.note, vlms=[config.vlm.name])
    _write_scores(content, results)
    write_study(folder, "adapt", title, note, adapt_sections(content), frame, verdict=verdict)


def _content(
    config: RunConfig,
    section: AdaptConfig,
    workspace: Workspace,
    results: StudyResults,
    training: Mapping[str, Mapping[int, dict[str, Any]]],
    process: Mapping[str, str],
) -> AdaptContent:
    before = next(iter(results.tiles[BEFORE].values()))
    labels = [*before.labels.values()]
    problems = dict.fromkeys(
        problem for seeds in results.tiles.values() for each in seeds.values() for problem in each.problems
    )
    examples = {arm: next(iter(seeds.values())).get("examples") for arm, seeds in training.items()}
    adaptations = {
        f"{arm}, seed {seed}": {
            name: value for name, value in facts.items() if not isinstance(value, Mapping) and value not in ("", None)
        }
        for arm, seeds in training.items()
        for seed, facts in seeds.items()
    }
    held_out = results.held_out
    directions = [s.subject.task for s in results.scores if s.metric.startswith("recall@")]
    held_out_text = ""
    if held_out is not None:
        texts = len(set(held_out.texts_of.values.tolist()))
        images = len(set(held_out.tiles_of.values.tolist()))
        held_out_text = (
            f"{results.split} split, {counted(images, 'image')} and {counted(texts, 'text')} of "
            f"{counted(len(held_out), 'example')}"
        )
    return AdaptContent(
        scores=results.scores,
        contrasts=results.contrasts,
        forgetting=tuple(results.forgetting),
        directions=list(dict.fromkeys(directions)),
        class_match=_class_match(results),
        held_out=held_out_text,
        probe_labels=labels[0] if labels else None,
        training=adaptations,
        examples={arm: training_counts(facts, arm) for arm, facts in examples.items() if isinstance(facts, Mapping)},
        notes=[*_notes(section, results, examples), *problems],
        curves=_curves(results.folders),
        facts={
            "VLM": workspace.vlm.name,
            "fingerprint": workspace.vlm.fingerprint,
            "seeds": ", ".join(map(str, results.tiles[BEFORE])),
            "bootstrap": f"{config.evaluation.bootstrap} resamples of groups",
            "commit": process["commit"],
            "command": process["command"],
        },
    )


def _notes(section: AdaptConfig, results: StudyResults, examples: Mapping[str, Any]) -> Iterator[str]:
    n_like_prompts = (examples.get(TEXT) or {}).get("examples_like_prompts", 0)
    if n_like_prompts:
        yield (
            f"{counted(n_like_prompts, 'training example has', 'training examples have')} a text equal to a class name "
            "or a prompt: the adaptation has learnt labels, and its zero-shot scores measure supervised learning. "
            "Compare them with the linear probe."
        )
    if section.keep == "best" and results.split == "validation":
        yield (
            "Retrieval is measured on the validation split, on which the step was also chosen (adapt.keep: best): "
            "these scores are optimistic."
        )
    for notes in results.forgetting.values():
        yield from notes
    for model, seeds in results.tiles.items():
        for seed, tiles in list(seeds.items())[: 1 if model == BEFORE else None]:
            if tiles.below_chance is not None:
                accuracy, count = tiles.below_chance
                yield (
                    f"{_subject(model, seed)}: prompts classify {counted(count, 'labelled validation tile')} worse "
                    f"than chance (balanced accuracy {accuracy:.1%}). Class names may have been swapped: do not use "
                    "this VLM's zero-shot predictions."
                )
    if results.failed:
        yield _describe_failed(section, results)
    if len(results.tiles[BEFORE]) < 2:
        yield "With one seed, there is no interval over seeds, so no difference is significant."
    missing = [arm for arm in ("shuffled_text", "images") if arm not in section.arms]
    if missing:
        yield f"Controls that were not trained: {', '.join(missing)} (adapt.arms)."


def _describe_failed(section: AdaptConfig, results: StudyResults) -> str:
    total, seeds = len(section.arms) * len(section.seeds), [*results.tiles[BEFORE]]
    listed = shortlist([f"{each.arm}, seed {each.seed}: {each.reason}" for each in results.failed])
    text = (
        f"{counted_of(len(results.failed), total, 'adaptation failed and has', 'adaptations failed and have')} no "
        f"score ({listed}). Scores and differences use only {'the seed' if len(seeds) == 1 else 'the seeds'} "
        f"{', '.join(map(str, seeds))}, which every arm has"
    )
    dropped = sorted({each.arm for each in results.failed} - {*results.folders})
    return text + (f", except {', '.join(dropped)}, which failed with every seed." if dropped else ".")


def _rows(workspace: Workspace, results: StudyResults) -> Iterator[AdaptRow]:
    prompts = prompt_columns(workspace.prompts)
    for score in results.scores:
        task, model = score.subject
        once = model == BEFORE and task != PROBE  # the same for every seed
        for seed, value in list(score.seeds.items())[: 1 if once else None]:
            yield AdaptRow(
                subject=_subject(model, seed), task=task, arm=model, metric=score.metric, seed=None if once else seed,
                value=value, reason=score.reason, n=score.n, random=score.random,
                fold=None if value is None or not score.random else value / score.random,
                labels=results.tiles[model][seed].labels.get(seed, 0) if task == PROBE else 0,
                **(prompts if task == ZERO_SHOT else prompt_columns(None)),
            )  # fmt: skip
    for model, seeds in results.tiles.items():
        for seed, tiles in list(seeds.items())[: 1 if model == BEFORE else None]:
            for task, scores in tiles.retrieval:
                yield AdaptRow(
                    subject=_subject(model, seed), task=task, arm=model, metric=f"{scores.name}@{scores.k}",
                    seed=None if model == BEFORE else seed, value=scores.value, reason=scores.reason, n=scores.queries,
                    random=scores.random, fold=scores.enrichment,
                    **(prompt_columns(None) if "caption" in task else prompts),
                )  # fmt: skip


def _class_match(
    results: StudyResults,
) -> dict[tuple[str, str, int], dict[str, tuple[float | None, float | None]]]:
    """Average the class-match retrieval scores over seeds."""
    table: dict[tuple[str, str, int], dict[str, tuple[float | None, float | None]]] = {}
    for model, seeds in results.tiles.items():
        by_measure: dict[tuple[str, str, int], list[tuple[float | None, float | None]]] = {}
        for tiles in seeds.values():
            for task, score in tiles.retrieval:
                by_measure.setdefault((task, score.name, score.k), []).append((score.value, score.random))
        for key, values in by_measure.items():
            defined = [value for value, _ in values if value is not None]
            mean = sum(defined) / len(defined) if len(defined) == len(values) else None
            table.setdefault(key, {})[model] = (mean, values[0][1])
    return table


def _write_scores(content: AdaptContent, results: StudyResults) -> None:
    """Add the scores before and after adaptation to the card of each adapted VLM."""
    measured = [score for score in content.scores if score.subject.model == BEFORE and score.subject.task != PROBE]
    for arm, seeds in results.folders.items():
        for seed, folder in seeds.items():
            rows: list[tuple[str, float | None, float | None]] = []
            for before in measured:
                after = content.score(before.subject.task, arm, before.metric)
                if after is not None:
                    name = f"{before.subject.task}, {LABELS.get(before.metric, before.metric)}"
                    rows.append((name, before.mean, after.seeds.get(seed)))
            write_card_scores(folder, rows)


def check_adapted(folder: Path, fingerprint: str) -> None:
    """Check that the merged VLM in a folder is the one written when its training finished.

    Args:
        folder: Folder of the adaptation.
        fingerprint: Fingerprint of the adapted VLM.

    Raises:
        ArtifactError: It is a different VLM.
    """
    recorded = _training(folder).get("adapted_fingerprint")
    if recorded not in (None, fingerprint):
        raise ArtifactError(
            f"the adapted VLM belongs to a different adaptation: its fingerprint is {fingerprint}, but the fingerprint "
            f"in training.json is {recorded}",
            where=folder,
            fix="restore the folder vlm from a copy, or delete this folder and run clipit adapt again",
        )


def _training(folder: Path) -> dict[str, Any]:
    path = folder / "training.json"
    if not path.is_file():
        return {}
    facts = read_json(path, _RERUN)
    check_same_run(path, facts.get(RUN_FINGERPRINT), folder, _RERUN)
    return facts


def _curves(folders: Mapping[str, Mapping[int, Path]]) -> dict[str, tuple[list[int], list[float]]]:
    """Read the training and validation losses of each arm's first seed."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for arm, seeds in folders.items():
        try:
            logged = read_curves(next(iter(seeds.values())) / "metrics.jsonl")
        except DataError:
            continue  # the log is needed only for the plot
        curves |= {f"{arm}, {name}": logged[name] for name in ("loss", "validation_loss") if name in logged}
    return curves


def _subject(model: str, seed: int) -> str:
    return model if model == BEFORE else f"{model}, seed {seed}"


def _flat_score(score: SubjectScore) -> dict[str, Any]:
    return {
        "task": score.subject.task,
        "model": score.subject.model,
        "metric": score.metric,
        "mean": score.mean,
        **{key: value for key, value in asdict(score.interval).items() if key != "reason"},
        "seeds": {str(seed): value for seed, value in score.seeds.items()},
        "random": score.random,
        "n": score.n,
        "reason": score.reason or score.interval.reason,
    }


def _flat_contrast(contrast: ModelDifference) -> dict[str, Any]:
    groups, seeds = contrast.over_groups, contrast.over_seeds
    return {
        "task": contrast.subject.task,
        "model": contrast.subject.model,
        "reference_task": contrast.reference.task,
        "reference": contrast.reference.model,
        "metric": contrast.metric,
        "difference": contrast.mean,
        "low": groups.low,
        "high": groups.high,
        "seeds_low": seeds.low,
        "seeds_high": seeds.high,
        "p": contrast.p.p,
        "p_holm": contrast.p_holm.p,
        "outcome": contrast.outcome,
        "reason": contrast.reason or seeds.reason or contrast.p_holm.reason,
        "seeds": {str(seed): value for seed, value in contrast.differences.items()},
    }
