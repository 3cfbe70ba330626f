"""Study how zero-shot scores depend on the wording of prompts. Scores are only reported; nothing is selected."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from clipit.config.run import RunConfig
from clipit.config.studies import PromptStudyConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, counted
from clipit.evaluation import prompt_modes
from clipit.evaluation.intervals import paired_bootstrap
from clipit.evaluation.metrics import METRICS, compute_metrics, describe_coverage, explain_undefined
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.zero_shot import TextVectors, class_means, embed_prompt_set, zero_shot_probabilities
from clipit.output_files.artifacts import locked, write_json
from clipit.prompts.prompt_grid import prompt_grid
from clipit.prompts.prompt_set import PromptSet, load_prompts
from clipit.reporting.study_page import (
    StudyRow,
    add_provenance,
    collect_provenance,
    describe_model,
    prompt_columns,
    study_note,
    write_study,
)
from clipit.runs.folder import explaining_differences
from clipit.studies.prompt_wording.prompt_plots import plot_grid, plot_spread
from clipit.studies.prompt_wording.prompt_sections import PromptDifference, prompt_sections
from clipit.studies.prompt_wording.zero_shot_models import (
    SCREENED,
    ZeroShotModel,
    count_truncated_tokens,
    load_student,
    load_vlm_models,
    select_tiles,
)
from clipit.tiles.tileset import TileSet
from clipit.workspace.leak_policy import leak_notes
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_TEXTS = ("subject", "prompts", "prompts_hash", "kind", "mode", "template", "organ", "magnification", "stain", "split")
_COUNTS = ("draw", "texts", "cut_texts", "cut_tokens", "tiles", "classes", "pixels", "seed", "run_seed")
_PROVENANCE = (
    "metric", "preprocess", "model", "fingerprint", "vlm", "vlm_fingerprint", "index", "pairs", "run", "arm",
    "backbone", "backbone_fingerprint", "tiles_fingerprint", "commit", "versions", "command",
)  # fmt: skip
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXTS]
    + [(name, pa.int64()) for name in _COUNTS]
    + [(name, pa.float64()) for name in METRICS]
    + [(name, pa.string()) for name in _PROVENANCE]
)
"""Columns of prompts.parquet. Every score has its own column; `metric` names the one shown in the tables."""


@dataclass(frozen=True, kw_only=True)
class PromptRow(StudyRow):
    """Scores of one zero-shot classifier.

    Attributes:
        kind: `mode` (one classifier), `draw` (one of the random draws) or `cell` (one cell of the grid).
        mode: How the classifier was built: single, ensemble, sampled or screened.
        scores: All `METRICS`, on the test tiles.
        cut_texts: Number of prompts longer than the context length.
        cut_tokens: Number of tokens beyond the context length.
    """

    kind: str
    mode: str
    scores: Mapping[str, float | None]
    texts: int
    cut_texts: int
    cut_tokens: int
    draw: int | None = None
    template: str | None = None
    organ: str | None = None
    magnification: str | None = None
    stain: str | None = None


@dataclass(frozen=True)
class _Task:
    """Model and prompt set that together classify the test tiles."""

    model: ZeroShotModel
    prompts: PromptSet
    test: TileSet
    workspace: Workspace
    seed: int

    def embed(self, prompts: PromptSet) -> TextVectors:
        """Embed the texts of a prompt set with the model."""
        return embed_prompt_set(prompts, self.model.encode, None, self.test.classes)

    def predict(self, class_embeddings: Float32[np.ndarray, "C D"]) -> Float32[np.ndarray, "n C"]:
        """Compute the class probabilities of the test tiles."""
        return zero_shot_probabilities(self.model.test, class_embeddings, self.model.logit_scale)

    def score(self, class_embeddings: Float32[np.ndarray, "C D"]) -> dict[str, float | None]:
        """Compute the metrics on the test tiles."""
        return compute_metrics(self.test.labels, self.predict(class_embeddings))

    def row(self, kind: str, mode: str, texts: Sequence[str], scores: Mapping[str, float | None]) -> PromptRow:
        """Build the result row of these scores."""
        vlm = self.workspace.vlm
        cut = count_truncated_tokens(vlm.count_tokens, vlm.context_length, texts)
        return PromptRow(
            subject=self.model.name, kind=kind, mode=mode, scores=scores, seed=self.seed, texts=len(texts),
            cut_texts=sum(count > 0 for count in cut), cut_tokens=sum(cut), **prompt_columns(self.prompts),
        )  # fmt: skip


def prompt_study(config: RunConfig, options: PromptStudyConfig, workspace: Workspace, run: Path | None = None) -> Path:
    """Score the VLM, and optionally a student, on the test tiles with many wordings of the prompts.

    Covers the modes of `prompt_study.modes` for `prompts` and, if set, `prompt_study.simple`; the sensitivity grid of
    both sets; and the difference between the two sets with its interval. Prompts are screened on training tiles;
    nothing is selected on test tiles.

    Args:
        options: Modes, random draws and sensitivity grid to evaluate.
        run: Folder of a run whose student is also scored.

    Returns:
        <output>/prompts/<name>[-<run>]: prompts.parquet, prompts.json (the differences), .md, .html and plots.

    Raises:
        ConfigError: No prompt set is configured, or a grid template lacks its slots.
        DataError: The prompts' classes differ from the tiles', or no test tile has a label.
        ModelError: The run's classifier does not support zero-shot classification.
    """
    prompt_sets = _load_prompt_sets(options, workspace)
    check_inputs(workspace, ["vlm"], prompt_sets, reports=options.centred)
    test, screening = select_tiles(config, options, workspace)
    models = load_vlm_models(workspace, test, screening, centre=options.centred)
    if run is not None:
        with explaining_differences(run, workspace.config):
            models.append(load_student(run, workspace, test, screening))
    folder = config.output / "prompts" / (config.name if run is None else f"{config.name}-{run.name}")
    if get_processes().main:
        tasks = [_Task(model, prompts, test, workspace, options.seed) for model in models for prompts in prompt_sets]
        rows = [row for task in tasks for row in (*_mode_rows(task, options), *_grid_rows(task, options))]
        logger.info(f"scored {counted(len(rows), 'zero-shot classifier')} on {counted(len(test), 'test tile')}")
        with locked(folder):  # another command may be writing the same study
            _write(folder, config, options, rows, tasks)
    get_processes().barrier()
    return folder


def _load_prompt_sets(options: PromptStudyConfig, workspace: Workspace) -> list[PromptSet]:
    if workspace.prompts is None:
        raise ConfigError("no prompt set is configured", where="prompts", fix="set prompts to a file or a name")
    if not options.simple:
        return [workspace.prompts]
    simple = load_prompts(options.simple)
    if simple.name == workspace.prompts.name:
        raise ConfigError(
            f"prompts and prompt_study.simple have the same name, {simple.name}",
            where="prompt_study.simple",
            fix="use a different set, or change the name in its file",
        )
    return [simple, workspace.prompts]


def _mode_rows(task: _Task, options: PromptStudyConfig) -> Iterator[PromptRow]:
    model, texts = task.model, task.embed(task.prompts)
    for mode in options.modes:
        if mode == "single":
            first = (texts.name_of == 0) & (texts.template_of == 0)
            shown = [texts.texts[i] for i in np.flatnonzero(first)]
            yield task.row("mode", mode, shown, task.score(prompt_modes.single_prompt(texts)))
        elif mode == "ensemble":
            yield task.row("mode", mode, texts.texts, task.score(class_means(texts)))
        elif mode == SCREENED:
            classifier = prompt_modes.screened_prompts(
                texts, model.screening, model.screening_splits,
                share=options.keep, limit=options.candidates, seed=options.seed, logit_scale=model.logit_scale,
            )  # fmt: skip
            yield task.row("mode", mode, texts.texts, task.score(classifier))
        else:
            draws = prompt_modes.sample_classifiers(texts, options.draws, options.seed)
            scores = prompt_modes.score_classifiers(texts, draws, model.test, task.test.labels, model.logit_scale)
            for number, (drawn, draw_scores) in enumerate(zip(draws, scores, strict=True)):
                yield replace(task.row("draw", mode, [texts.texts[i] for i in drawn], draw_scores), draw=number)


def _grid_rows(task: _Task, options: PromptStudyConfig) -> Iterator[PromptRow]:
    grid = prompt_grid(task.prompts, options.templates, options.organs, options.magnifications, options.stains)
    for cell in grid:
        texts = task.embed(cell.prompts)
        yield replace(
            task.row("cell", "ensemble", texts.texts, task.score(class_means(texts))),
            template=cell.template, organ=cell.organ, magnification=cell.magnification, stain=cell.stain,
        )  # fmt: skip


def _compute_differences(tasks: Sequence[_Task], config: RunConfig) -> list[PromptDifference]:
    """Compute differences in score, rich minus simple prompts (as ensembles), with a paired bootstrap over tiles."""
    resamples, seed = config.evaluation.bootstrap, config.seed
    differences = []
    for simple, rich in pairwise(tasks):
        if simple.model is not rich.model:
            continue
        scores = paired_bootstrap([(_predict(simple), _predict(rich))], METRICS, resamples, seed)
        differences += [
            PromptDifference(
                subject=rich.model.name, simple=simple.prompts.name, simple_hash=simple.prompts.hash,
                rich=rich.prompts.name, rich_hash=rich.prompts.hash, metric=name,
                value=score.value, low=score.interval.low, high=score.interval.high, reason=score.interval.reason,
                tiles=len(rich.test), resamples=resamples, seed=seed,
            )
            for name, score in scores.items()
        ]  # fmt: skip
    return differences


def _predict(task: _Task) -> Predictions:
    test, probabilities = task.test, task.predict(class_means(task.embed(task.prompts)))
    return Predictions(test.ids, test.splits, test.labels, test.groups, test.classes, probabilities)


def _write(
    folder: Path, config: RunConfig, options: PromptStudyConfig, rows: Sequence[PromptRow], tasks: Sequence[_Task]
) -> None:
    test, metric, process = tasks[0].test, options.metric, collect_provenance()
    facts = {task.model.name: task.model.facts for task in tasks}
    study: dict[str, object] = dict.fromkeys(SCHEMA.names)
    study |= {"split": "test", "tiles": len(test), "classes": len(test.classes), "metric": metric}
    frame = add_provenance(rows, {**study, "tiles_fingerprint": test.fingerprint, **process}, facts)
    frame = frame[SCHEMA.names]
    plot_spread(frame, metric, folder / "prompts_spread.png")
    plot_grid(frame[frame.kind == "cell"], metric, folder / "prompts_grid.png")
    differences = _compute_differences(tasks, config)
    record = {
        "config": config.model_dump(mode="json") | {"prompt_study": options.model_dump(mode="json")},
        **process,
        "versions": json.loads(process["versions"]),
        "split": "test",
        "tiles": test.fingerprint,
        "classes": list(test.classes),
        "subjects": facts,
        "differences": [vars(difference) for difference in differences],
    }
    write_json(folder / "prompts.json", record)
    provenance = {
        "split": f"test, {counted(len(test), 'labelled tile')}, {len(test.classes)} classes",
        "tiles": test.fingerprint,
        **{name: describe_model(model) for name, model in facts.items()},
        "prompt sets": ", ".join(sorted({f"{row.prompts} ({row.prompts_hash})" for row in rows})),
        "screening": f"at most {counted(options.screening_tiles, 'training tile')}, without their labels"
        if SCREENED in options.modes
        else "none",
        "seed": options.seed,
        **process,
    }
    undefined = explain_undefined(metric, test.labels, test.classes) if frame[metric].isna().any() else ""
    shown = [difference for difference in differences if difference.metric == metric]
    sections = prompt_sections(frame, metric, undefined, shown, provenance)
    coverage = describe_coverage(test.labels, test.classes, "the test split")
    note = study_note(config, coverage, *leak_notes(test.notes))
    write_study(folder, "prompts", f"Prompt study: {config.name}", note, sections, frame, SCHEMA)
