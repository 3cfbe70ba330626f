"""A prompt study: how a zero-shot score depends on the way of asking. Reported on test, chosen on nothing."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from clipit.artifacts import write_json
from clipit.config.run import RunConfig
from clipit.config.studies import PromptStudyConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, explain
from clipit.evaluation import prompt_modes
from clipit.evaluation.evaluate import compare_predictions
from clipit.evaluation.metrics import METRICS, compute_metrics, why_undefined
from clipit.evaluation.predictions import Predictions
from clipit.evaluation.zero_shot import TextVectors, embed_prompts, zero_shot_probabilities
from clipit.prompts.grid import prompt_grid
from clipit.prompts.prompt_set import PromptSet, check_classes, load_prompts
from clipit.studies.prompts.plots import heat_plot, spread_plot
from clipit.studies.prompts.subjects import Subject, cut_tokens, student_subject, study_tiles, vlm_subjects
from clipit.studies.prompts.tables import prompt_chapters
from clipit.studies.report import asked_with, made_by, recorded, study_note, write_study
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_TEXTS = ("subject", "prompts", "prompts_hash", "kind", "mode", "template", "organ", "magnification", "stain", "split")
_COUNTS = ("draw", "texts", "cut_texts", "cut_tokens", "tiles", "classes", "pixels", "seed", "run_seed")
_BESIDE = (
    "metric", "preprocess", "model", "fingerprint", "vlm", "vlm_fingerprint", "index", "pairs", "run", "arm",
    "backbone", "backbone_fingerprint", "tiles_fingerprint", "commit", "versions", "command",
)  # fmt: skip
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXTS]
    + [(name, pa.int64()) for name in _COUNTS]
    + [(name, pa.float64()) for name in METRICS]
    + [(name, pa.string()) for name in _BESIDE]
)
"""Columns of prompts.parquet. kind: mode (one classifier), draw (one of the sampled), cell (one of the grid); every
score has a column of its own, and metric names the one that the tables show."""

Row = dict[str, Any]


@dataclass(frozen=True)
class _Asked:
    """A subject and a prompt set, and all that is needed to score a classifier of them."""

    subject: Subject
    prompts: PromptSet
    test: TileSet
    count_cut: Callable[[Sequence[str]], list[int]]
    seed: int

    def row(self, kind: str, texts: Sequence[str], scores: Mapping[str, float | None], **columns: object) -> Row:
        """A row of the table; columns not given stay empty."""
        cut = self.count_cut(texts)
        row: Row = {"subject": self.subject.name, "kind": kind, "seed": self.seed, "texts": len(texts)}
        row |= {"cut_texts": sum(count > 0 for count in cut), "cut_tokens": sum(cut)}
        return row | asked_with(self.prompts) | columns | dict(scores)

    def embedded(self, prompts: PromptSet) -> TextVectors:
        """The texts of a prompt set in the subject's space, classes as the tiles have them."""
        return embed_prompts(prompts, self.subject.place, None, self.test.classes)

    def probabilities(self, classifier: Float32[np.ndarray, "C D"]) -> Float32[np.ndarray, "n C"]:
        """Of the test tiles."""
        return zero_shot_probabilities(self.subject.test, classifier, self.subject.logit_scale)

    def scores(self, classifier: Float32[np.ndarray, "C D"]) -> dict[str, float | None]:
        """All scores on the test tiles."""
        return compute_metrics(self.test.labels, self.probabilities(classifier))


def prompt_study(config: RunConfig, settings: PromptStudyConfig, workspace: Workspace, run: Path | None = None) -> Path:
    """Ask the VLM (and a student) in many ways and write down what each way scores on the test tiles.

    Modes of `prompt_study.modes` for `prompts` and, where given, `prompt_study.simple`; the sensitivity grid of both;
    the difference between both with its interval. Prompts are screened with training tiles; nothing is chosen on test.

    Args:
        config: Tiles, prompts and VLM.
        settings: Modes, draws and sensitivity grid of the study.
        workspace: Of this configuration.
        run: Folder of a run whose classifier is asked, too.

    Returns:
        <output>/prompts/<name>[-<run>]: prompts.parquet, prompts.json (the differences), .md, .html and plots.

    Raises:
        ConfigError: No prompt set, or a grid template without its slots.
        DataError: The prompts' classes are not the tiles', or there is no labelled test tile.
        ModelError: The run's classifier cannot be asked.
    """
    sets = _prompt_sets(settings, workspace)
    test, screening = study_tiles(config, settings, workspace)
    for prompts in sets:
        check_classes(prompts, test.classes)
    subjects = vlm_subjects(workspace, test, screening)
    if run is not None:
        subjects.append(student_subject(run, workspace, test, screening))
    processes = get_processes()
    folder = config.output / "prompts" / (config.name if run is None else f"{config.name}-{run.name}")
    if processes.main:
        vlm = workspace.vlm

        def count_cut(texts: Sequence[str]) -> list[int]:
            """Per text, the tokens that the text tower does not read."""
            return cut_tokens(vlm.count_tokens, vlm.context_length, texts)

        asked = [_Asked(subject, prompts, test, count_cut, settings.seed) for subject in subjects for prompts in sets]
        rows = [row for one in asked for row in (*_mode_rows(one, settings), *_grid_rows(one, settings))]
        logger.info(f"asked in {len(rows):,} ways; scores on {len(test):,} test tiles")
        _write(folder, config, settings, rows, asked)
    processes.barrier()
    return folder


def _prompt_sets(settings: PromptStudyConfig, workspace: Workspace) -> list[PromptSet]:
    """The simple set, where there is one, and the set of the configuration."""
    if workspace.prompts is None:
        raise ConfigError(explain("no prompt set to study", where="prompts", fix="set prompts to a file or a name"))
    rich = workspace.prompts
    simple = load_prompts(settings.simple) if settings.simple else None
    if simple is None:
        return [rich]
    if simple.name == rich.name:
        raise ConfigError(
            explain(
                f"prompts and prompt_study.simple are both called {rich.name}",
                where="prompt_study.simple",
                fix="give another set, or change the name in its file",
            )
        )
    return [simple, rich]


def _mode_rows(one: _Asked, z: PromptStudyConfig) -> list[Row]:
    texts, rows = one.embedded(one.prompts), []
    for mode in z.modes:
        if mode == "single":
            first = [
                text for text, n, t in zip(texts.texts, texts.name_of, texts.template_of, strict=True) if n == t == 0
            ]
            rows.append(one.row("mode", first, one.scores(prompt_modes.single(texts)), mode=mode))
        elif mode == "ensemble":
            rows.append(one.row("mode", texts.texts, one.scores(prompt_modes.ensemble(texts)), mode=mode))
        elif mode == "screened":
            kept = prompt_modes.screened(
                texts,
                one.subject.screening,
                one.subject.screening_splits,
                share=z.keep,
                limit=z.candidates,
                seed=z.seed,
                logit_scale=one.subject.logit_scale,
            )
            rows.append(one.row("mode", texts.texts, one.scores(kept), mode=mode))
        else:
            drawn = prompt_modes.sampled(texts, z.draws, z.seed)
            scores = prompt_modes.sampled_scores(
                texts, drawn, one.subject.test, one.test.labels, one.subject.logit_scale
            )
            for number, (places, found) in enumerate(zip(drawn, scores, strict=True)):
                rows.append(one.row("draw", [texts.texts[i] for i in places], found, mode=mode, draw=number))
    return rows


def _grid_rows(one: _Asked, z: PromptStudyConfig) -> list[Row]:
    rows = []
    for cell in prompt_grid(one.prompts, z.templates, z.organs, z.magnifications, z.stains):
        texts = one.embedded(cell.prompts)
        words = {"organ": cell.organ, "magnification": cell.magnification, "stain": cell.stain}
        found = one.scores(prompt_modes.ensemble(texts))
        rows.append(one.row("cell", texts.texts, found, mode="ensemble", template=cell.template, **words))
    return rows


def _differences(asked: Sequence[_Asked], config: RunConfig) -> list[dict[str, Any]]:
    """Rich minus simple, both as ensembles, per subject and score: value and 95 % interval (paired bootstrap).

    Returns:
        subject, simple, simple_hash, rich, rich_hash, metric, value, low, high, reason, tiles, resamples, seed.
    """
    resamples, seed = config.evaluation.bootstrap, config.seed
    found = []
    for simple, rich in pairwise(asked):
        if simple.subject is not rich.subject:
            continue
        tables = [_predictions(one) for one in (simple, rich)]
        differences = compare_predictions(tables[0], tables[1], "test", resamples, seed)
        asked_of = {"subject": rich.subject.name}
        asked_of |= {"simple": simple.prompts.name, "simple_hash": simple.prompts.hash}
        asked_of |= {"rich": rich.prompts.name, "rich_hash": rich.prompts.hash}
        drawn = {"tiles": len(rich.test), "resamples": resamples, "seed": seed}
        found += [asked_of | {"metric": name} | of_score | drawn for name, of_score in differences.items()]
    return found


def _predictions(one: _Asked) -> Predictions:
    test, probabilities = one.test, one.probabilities(prompt_modes.ensemble(one.embedded(one.prompts)))
    return Predictions(test.ids, test.splits, test.labels, test.groups, test.classes, probabilities)


def _write(
    folder: Path, config: RunConfig, settings: PromptStudyConfig, rows: Sequence[Row], asked: Sequence[_Asked]
) -> None:
    test, metric, made = asked[0].test, settings.metric, made_by()
    common: Row = dict.fromkeys(SCHEMA.names)
    common |= {"split": "test", "tiles": len(test), "classes": len(test.classes), "metric": metric}
    common |= {"tiles_fingerprint": test.fingerprint, **made}
    facts = {one.subject.name: one.subject.facts for one in asked}
    whole = recorded(rows, common, facts)
    spread_plot(whole, metric, folder / "prompts_spread.png")
    heat_plot([row for row in whole if row["kind"] == "cell"], metric, folder / "prompts_grid.png")
    told = {
        name: f"{of['model']}, fingerprint {of['fingerprint']}, {of['pixels']} pixels, preprocessing {of['preprocess']}"
        for name, of in facts.items()
    }
    provenance = {
        "split": f"test, {len(test)} labelled tiles, {len(test.classes)} classes",
        "tiles": test.fingerprint,
        **told,
        "prompt sets": ", ".join(sorted({f"{row['prompts']} ({row['prompts_hash']})" for row in whole})),
        "screening": f"at most {settings.screening_tiles} training tiles, no label read",
        "seed": settings.seed,
        **made,
    }
    undefined = why_undefined(metric, test.labels, test.classes) if any(row[metric] is None for row in whole) else ""
    differences = _differences(asked, config)
    record = {
        "config": config.model_dump(mode="json") | {"prompt_study": settings.model_dump(mode="json")},
        **made,
        "versions": json.loads(made["versions"]),
        "split": "test",
        "tiles": test.fingerprint,
        "classes": list(test.classes),
        "subjects": facts,
        "differences": differences,
    }
    write_json(folder / "prompts.json", record)
    shown = [row for row in differences if row["metric"] == metric]
    chapters = prompt_chapters(whole, metric, undefined, shown, provenance)
    write_study(folder, "prompts", f"Prompt study: {config.name}", study_note(config), chapters, whole, SCHEMA)
