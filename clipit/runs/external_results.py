"""Scores, calibration, summary and page of an external evaluation."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.evaluation.calibration import fit_temperature, measure_calibration, with_temperature
from clipit.evaluation.predictions import PREDICTIONS, Predictions, read_run_predictions, write_predictions
from clipit.evaluation.run_scores import evaluate_predictions
from clipit.models.classifier_spec import WEIGHTS
from clipit.output_files.artifacts import file_sha256
from clipit.output_files.run_files import write_run_json
from clipit.output_files.whole_files import write_text
from clipit.prompts.prompt_set import PromptSet
from clipit.reporting.external_page import external_sections, external_texts
from clipit.reporting.run_summary import run_summary
from clipit.runs.page import write_run_page
from clipit.tiles.tileset import TileSet
from clipit.versions import command_line, git_commit, versions

if TYPE_CHECKING:
    from clipit.models.inference import Classifier


def score_external(
    run: Path,
    config: RunConfig,
    run_results: Mapping[str, Any],
    predictions: Predictions,
    external: dict[str, Any],
    prompts: PromptSet | None,
    classifier: "Classifier",
) -> dict[str, Any]:
    """Compute the content of results.json, except for the SHA-256 of the predictions.

    Args:
        run: Folder of the run.
        run_results: Content of the run's own results.json.
        predictions: Predictions for the new tiles, with the name of the set as their split.
        external: Description of the new set: name, identity, tiles, excluded classes and notes.
        prompts: New prompt set; None for the run's own prompts.
    """
    name, resamples = external["name"], config.evaluation.bootstrap
    scores = evaluate_predictions(predictions, [name], resamples, config.seed, present_only=True)
    stored = next(iter(classifier.spec.prompts), None)
    provenance = {
        "run": str(run_results["provenance"].get("run", "")),
        "arm": config.arm or "custom",
        "seed": config.seed,
        "folder": str(run),
        "classifier": file_sha256(run / "classifier" / WEIGHTS),
        "tiles": external["tiles"],
        "prompts": f"{prompts.name} ({prompts.hash})" if prompts else stored,
        "preprocess": classifier.spec.preprocess.hash,
        "command": command_line(),
        "commit": git_commit(),
    }
    return scores | {
        "note": run_results.get("note", ""),
        "own": run_results["splits"].get("test"),
        "calibration": _calibrate(run, config, predictions),
        "external": external,
        "provenance": provenance | {"versions": versions()},
    }


def _calibrate(run: Path, config: RunConfig, predictions: Predictions) -> dict[str, Any]:
    """Measure calibration before and after temperature scaling; the run's validation labels determine the temperature.

    If no temperature can be fitted, the reason is recorded.
    """
    table = predictions.by_id()
    table = table.take(table.labels >= 0)
    resamples, seed = config.evaluation.bootstrap, config.seed
    before = measure_calibration(table.labels, table.probabilities, table.groups, resamples=resamples, seed=seed)
    states = {"before": before}
    temperature, labels, reason = None, 0, ""
    try:
        validation = read_run_predictions(run).select("validation")
        fitted = fit_temperature(validation.labels, validation.probabilities)
    except DataError as error:
        reason = str(error).splitlines()[0]
    else:
        temperature, labels = fitted.value, fitted.labels
        scaled = with_temperature(table.probabilities, fitted.value)
        states["after"] = measure_calibration(
            table.labels, scaled, table.groups, table.probabilities, resamples=resamples, seed=seed
        )
    measures = {
        measure: {
            state: {
                "value": scores[measure].value,
                "low": scores[measure].interval.low,
                "high": scores[measure].interval.high,
            }
            for state, scores in states.items()
        }
        for measure in before
    }
    return {"temperature": temperature, "labels": labels, "reason": reason, "measures": measures}


def write_external(folder: Path, run: Path, results: dict[str, Any], predictions: Predictions, tiles: TileSet) -> None:
    """Write predictions.parquet, summary.md, report.html and results.json.

    Args:
        results: Content of results.json from `score_external`, to which the SHA-256 of the predictions is added.
        tiles: New tiles, for the thumbnails.
    """
    write_predictions(folder / PREDICTIONS, predictions)
    results["predictions_sha256"] = file_sha256(folder / PREDICTIONS)
    title = f"{run.resolve().parent.name}: {run.resolve().name} on {results['external']['name']}"
    shown = {key: value for key, value in results["provenance"].items() if value not in (None, [], "")}
    texts = {"Tiles": tiles.describe()}
    summary = run_summary(title, results, shown, note=results["note"], sections=external_texts(results) | texts)
    write_text(folder / "summary.md", summary)
    write_run_page(title, folder, results, predictions, tiles, texts, external_sections(results))
    write_run_json(folder / "results.json", results, run)
