"""Write the model card of a run's classifier from its configuration, results and comparison."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipit.config.run import RunConfig
from clipit.models.classifier_spec import CARD, opens_in_transformers, read_spec
from clipit.output_files.artifacts import reading
from clipit.output_files.run_files import read_run_json, write_run_json
from clipit.output_files.whole_files import write_text
from clipit.reporting.model_card import CardArm, CardComparison, CardFacts, model_card
from clipit.runs.folder import EXTERNAL
from clipit.tiles.datasets import DATASETS
from clipit.training.arms import ARMS
from clipit.training.terms.term_table import active_terms

_COMPARED = "compared.json"
_SOURCES = {
    "folders": "one folder per class",
    "table": "a table of images",
    "huggingface": "a Hugging Face data set",
    "webdataset": "shards in webdataset format",
    "slides": "whole-slide images",
}


def write_card(folder: Path, config: RunConfig, results: Mapping[str, Any]) -> Path:
    """Write or replace README.md in the classifier folder of a run.

    Args:
        folder: Folder of the run.
        config: Run configuration with its arm resolved.
        results: Content of results.json.
    """
    classifier, recorded = folder / "classifier", results["provenance"]
    spec = read_spec(classifier)
    facts = CardFacts(
        arm=config.arm if config.arm and config.arm in ARMS and config.arm not in config.arms else "",
        seed=config.seed,
        data=_describe_source(config),
        training_tiles=recorded.get("training_tiles"),
        training_labels=recorded.get("training_labels"),
        validation_labels=recorded.get("validation_labels"),
        reports=recorded.get("reports"),
        snippets=recorded.get("snippets"),
        loss_terms=[text for term in active_terms(config) if (text := term.describe_publicly())],
        results=results,
        external=_read_external(folder),
        compared=_read_compared(folder),
    )
    text = model_card(spec, facts, transformers_opens=opens_in_transformers(classifier, spec))
    write_text(classifier / CARD, text)
    return classifier / CARD


def record_comparison(folder: Path, compared: CardComparison) -> None:
    """Record a comparison in a run's folder, so that cards written later include it."""
    write_run_json(folder / _COMPARED, asdict(compared), folder)


def _read_compared(folder: Path) -> CardComparison | None:
    path = folder / _COMPARED
    if not path.is_file():
        return None
    fix = "delete this file; the next comparison writes it again"
    values = read_run_json(path, folder, fix)
    with reading(path, fix):
        arms = [
            CardArm(**{**arm, "interval": tuple(arm["interval"]) if arm["interval"] else None})
            for arm in values["arms"]
        ]
        return CardComparison(**{**values, "arms": arms})


def _read_external(folder: Path) -> list[dict[str, Any]]:
    """Read the results of external evaluations, except those with new prompts on the run's own tiles."""
    paths = sorted(folder.glob(f"{EXTERNAL}/*/results.json"))
    fix = "delete the folder that contains this file, and repeat the evaluation"
    evaluations: list[dict[str, Any]] = [read_run_json(path, folder, fix) for path in paths]
    return [each for each in evaluations if any(key.startswith("tiles.") for key in each["external"]["identity"])]


def _describe_source(config: RunConfig) -> str:
    data_set = DATASETS.get(config.tiles.source)
    if data_set is None:
        return _SOURCES.get(config.tiles.source, config.tiles.source)
    return f"{data_set.title} (licence: {data_set.licence}; {data_set.page})"
