"""Runs in Python: train a classifier, and evaluate it on the run's own tiles and on new tiles."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from clipit.api.configuration import Config, as_config, as_values
from clipit.api.entry import public
from clipit.api.study_result import ResultFiles

if TYPE_CHECKING:
    import torch

    from clipit.config.run import VLMConfig
    from clipit.models.inference import Classifier


@dataclass(frozen=True)
class EvaluationResult(ResultFiles):
    """Scores and predictions of a classifier.

    Attributes:
        folder: Folder of the evaluation.
    """

    folder: Path

    @property
    def page(self) -> Path:
        """HTML page."""
        return self.folder / "report.html"

    @property
    def summary(self) -> Path:
        """Scores and provenance as Markdown."""
        return self.folder / "summary.md"

    @cached_property
    def results(self) -> dict[str, Any]:
        """Content of results.json: scores, intervals, confusion matrices, reliability and provenance."""
        from clipit.runs.folder import read_results

        return read_results(self.folder)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores, one row per split, output and metric: value from 0 to 1 with its 95% interval.

        The output is `classifier`, or `zero_shot` for predictions from class prompts. `reason` states why a value or an
        interval is undefined.
        """
        rows = []
        for split, scores in self.results["splits"].items():
            for output, part in (("classifier", scores), ("zero_shot", scores.get("zero_shot") or {})):
                for metric, entry in part.get("metrics", {}).items():
                    row = {"split": split, "output": output, "metric": metric}
                    row |= {name: entry.get(name) for name in ("value", "low", "high")}
                    rows.append(row | {"tiles": scores["labelled"], "reason": entry.get("reason", "")})
        numbers = dict.fromkeys(("value", "low", "high"), "float64")
        return pd.DataFrame(rows).astype(numbers)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Predictions, one row per evaluated tile.

        Columns: id, split, group, label (class name; missing if unknown), predicted, one probability p_<class> per
        class and, if there are class prompts, zero_shot (predicted class) and its probabilities zs_<class>.
        """
        from clipit.evaluation.predictions import read_run_predictions

        p = read_run_predictions(self.folder)
        names = pd.Series(p.classes)
        label = names.reindex(p.labels).to_numpy()  # missing for -1
        predicted = names.to_numpy()[p.probabilities.argmax(axis=1)]
        columns: dict[str, Any] = {"id": p.ids, "split": p.splits, "group": p.groups, "label": label}
        columns["predicted"] = predicted
        columns |= {f"p_{name}": p.probabilities[:, c] for c, name in enumerate(p.classes)}
        if p.zero_shot is not None:
            columns["zero_shot"] = names.to_numpy()[p.zero_shot.argmax(axis=1)]
            columns |= {f"zs_{name}": p.zero_shot[:, c] for c, name in enumerate(p.classes)}
        return pd.DataFrame(columns)


@dataclass(frozen=True)
class RunResult(EvaluationResult):
    """A finished run, with the scores and predictions for its own tiles.

    Attributes:
        folder: Folder of the run.
    """

    @property
    def classifier(self) -> Path:
        """Folder of the exported classifier, which needs neither the run nor its data."""
        return self.folder / "classifier"

    @cached_property
    def history(self) -> pd.DataFrame:
        """Training log, one row per record of metrics.jsonl: step, losses and validation scores."""
        from clipit.reporting.training_curves import read_finished_log

        return pd.DataFrame(read_finished_log(self.folder / "metrics.jsonl"))

    def load_classifier(
        self,
        device: "torch.device | str | None" = None,
        *,
        vlm: "str | VLMConfig | None" = None,
        trust_remote_code: bool = False,
    ) -> "Classifier":
        """Load the classifier; for the arguments, see `clipit.load_classifier`."""
        from clipit.models.inference import load_classifier

        return load_classifier(self.classifier, device, vlm=vlm, trust_remote_code=trust_remote_code)


@public
def train(config: Config) -> RunResult:
    """Train, export and evaluate a model, or resume its run; a finished run is returned unchanged.

    Missing inputs (snippets, embeddings, index, pairs) are built first.

    Example:
        >>> run = clipit.train(clipit.load_config(config, arm="clip_it_all", seed=0))
        >>> run.scores.query("split == 'test' and metric == 'accuracy'")
        >>> run.load_classifier().predict(["tile.png"])

    Args:
        config: Configuration; its name, arm and seed determine the folder of the run.

    Raises:
        ConfigError: The arm's keys contradict each other.
        ArtifactError: The folder contains a run of a different configuration.
        ClipitError: The tiles, reports or models cannot be used; the message states what to do.
    """
    from clipit.runs.train import train_run

    return RunResult(train_run(as_config(config).run))


@public
def evaluate(config: Config) -> RunResult:
    """Evaluate a finished run again: write its predictions, scores, summary and page.

    Example:
        >>> run = clipit.evaluate(clipit.load_config(config, {"evaluation.splits": ["train", "test"]}))
        >>> run.predictions.head()

    Args:
        config: Configuration of the run; keys of `evaluation` may differ.

    Raises:
        ArtifactError: The run does not exist, or its folder belongs to a different configuration.
    """
    from clipit.runs.evaluate import evaluate_again
    from clipit.training.arms import resolve_arm
    from clipit.workspace.workspace import Workspace

    run = resolve_arm(as_config(config).run)
    return RunResult(evaluate_again(run, Workspace(run))[0])


@public
def evaluate_external(
    run: str | Path | RunResult,
    tiles: str | Path | Mapping[str, Any] | None = None,
    *,
    prompts: str | Path | None = None,
    name: str = "",
    keys: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Score a finished run on new tiles, or with new prompts, in addition to its own test results.

    By default, tiles of patients or images that were used for training raise an error (`leaks.policy`). The results
    are written to `external/<name>` in the run's folder; of its other files, only the classifier's card changes.

    Example:
        >>> other = clipit.evaluate_external("outputs/runs/run", "other_hospital.csv")
        >>> other.scores.query("metric == 'balanced_accuracy'")

    Args:
        run: Run, or its folder.
        tiles: Table, folder or zip of class folders, or the keys of a `tiles` section; None for the run's test tiles.
        prompts: Prompt file or packaged prompt set, for a classifier trained with text; None for the run's own prompts.
        name: Name of the results' folder; "" to derive it from the tiles and prompts.
        keys: Dotted key -> changed value, for keys of `evaluation`, `leaks` and the models' paths, such as
            `{"leaks.policy": "exclude"}`.

    Raises:
        ConfigError: A key is invalid, or would change the finished run.
        DataError: Neither tiles nor prompts are given, the tiles share no class with the run, or tiles leak
            from training.
        ModelError: Prompts are given for a classifier trained without text.
        ArtifactError: The folder contains results for other tiles or prompts.
    """
    from clipit.config.load import validate
    from clipit.config.new_inputs import NewInputs, as_changes, default_source
    from clipit.runs.external import evaluate_external as evaluate_on
    from clipit.runs.folder import read_run_config

    folder = Path(run)
    config = read_run_config(folder)
    section = None
    if name:  # it becomes the name of a folder, like that of a run
        validate(config.model_dump() | {"name": name}, "clipit.evaluate_external")
    if tiles is not None:
        tile_keys = as_values(tiles) if isinstance(tiles, Mapping) else {"path": str(tiles)}
        tile_keys = {"source": default_source(str(tile_keys.get("path", ""))), **tile_keys}
        section = validate(config.model_dump() | {"tiles": tile_keys}, "tiles").tiles
    text = None if prompts is None else str(prompts)
    changed = NewInputs(folder, section, text, name, as_changes(as_values(keys or {}), "keys")).apply(config)
    return EvaluationResult(evaluate_on(folder, section, text, name, changed)[0])
