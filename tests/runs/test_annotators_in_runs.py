"""Runs and comparisons on tiles labelled by several annotators."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CLASSES, MakeConfig

from clipit.comparison.report.write import annotator_notes, annotator_sections
from clipit.config.effects import select_keys
from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError
from clipit.reporting.html import page
from clipit.runs.fingerprint import run_fingerprint
from clipit.runs.train import train_run
from clipit.training.arms import resolve_arm
from clipit.training.config_checks import check_keys
from clipit.training.terms.cross_entropy import CrossEntropyTerm
from clipit.training.terms.prompt_bags import PromptBagsTerm
from clipit.training.terms.soft_labels import SoftLabels, SoftLabelsTerm, make_soft_labels
from clipit.training.terms.term import MicroBatch, TermInputs
from clipit.training.terms.term_table import active_terms, describe_terms
from clipit.workspace.workspace import Workspace

POSTERIOR = {"base": "image_only", "tiles.annotations.labels": "posterior", "soft_labels.source": "annotators"}
ARMS = {"majority": {"base": "image_only", "tiles.annotations.labels": "majority"}, "posterior": POSTERIOR}
SKILLS = {"ann": 0.9, "ben": 0.8, "cleo": 0.7, "dora": 0.95, "eve": 0.9}


@pytest.fixture(scope="module")
def annotations(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Configuration keys for five annotators of the small world, two of whom label the test tiles."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("annotators") / "annotations.csv"
    with Path(world["tiles"]["path"]).open(encoding="utf-8") as source, path.open("w", encoding="utf-8") as stream:
        stream.write("tile,annotator,label\n")
        for row in csv.DictReader(source):
            for name, skill in SKILLS.items():
                true_class = CLASSES.index(row["label"])
                annotated_class = true_class if rng.random() < skill else (true_class + rng.integers(1, 3)) % 3
                stream.write(f"{row['path']},{name},{CLASSES[annotated_class]}\n")
    return {
        "tiles.annotations": {"path": str(path), "test_annotators": ["dora", "eve"]},
        "tiles.labels": {"kind": "all"},
    }


def test_runs_without_annotators_have_no_annotator_keys(configure: MakeConfig, annotations: dict[str, Any]) -> None:
    assert not any("annotations" in key for key in select_keys(configure(), "results"))
    keys = select_keys(configure(annotations), "results")
    assert keys["tiles.annotations.labels"] == "consensus" and "tiles.annotations.path" not in keys


def test_fingerprints_depend_on_the_kind_of_labels(configure: MakeConfig, annotations: dict[str, Any]) -> None:
    def fingerprint(arm: str) -> Any:
        config = resolve_arm(configure(annotations, arms=ARMS, arm=arm))
        return run_fingerprint(config, Workspace(config), "backbone")

    majority, posterior = fingerprint("majority"), fingerprint("posterior")
    assert majority.value != posterior.value and majority.value == fingerprint("majority").value
    assert "posteriors of annotators" in posterior.inputs and "posteriors of annotators" not in majority.inputs
    assert majority.inputs["tiles"] == posterior.inputs["tiles"], "the same stores serve both"


def test_posteriors_replace_the_labels_of_labelled_tiles(configure: MakeConfig, annotations: dict[str, Any]) -> None:
    config = resolve_arm(configure(annotations, arms=ARMS, arm="posterior"))
    assert [term.name for term in active_terms(config)] == ["soft_labels"]
    assert "posteriors from the annotators" in describe_terms(config)
    few = resolve_arm(
        configure({**annotations, "tiles.labels": {"kind": "per_class", "value": 4}}, arms=ARMS, arm="posterior")
    )
    workspace = Workspace(few)
    tiles = workspace.tiles(few.seed)
    term = SoftLabelsTerm(few)
    term.labels = tiles.of_split("train").labels
    term.prepare(TermInputs(workspace, tiles, lambda split: np.zeros((0, 3), dtype=np.float32), [term]))
    rows = np.arange(len(term.labels))
    assert term.count(rows) == 12, "3 classes with 4 labels each"
    assert tiles.annotations is not None
    expected = tiles.annotations.posteriors(tiles.of_split("train").ids.tolist())
    kept = term.labels >= 0
    assert np.allclose(term._soft.probabilities[kept], expected[kept], atol=1e-5)
    assert (expected[kept].max(axis=1) < 0.99).sum() > 0, "some tiles are uncertain"
    prompts = PromptBagsTerm(few)
    prompts.labels, prompts._soft = term.labels, term
    assert prompts.count(rows) == 12, "each labelled tile counts once"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_certain_posteriors_give_the_loss_of_hard_labels(
    configure: MakeConfig, annotations: dict[str, Any], smoothing: float
) -> None:
    keys = {**annotations, "training.label_smoothing": smoothing}
    soft = SoftLabelsTerm(resolve_arm(configure(keys, arms=ARMS, arm="posterior")))
    hard = CrossEntropyTerm(resolve_arm(configure(keys, arms=ARMS, arm="majority")))
    labels = np.array([0, 2, -1, 1, 2])
    soft.labels = hard.labels = labels
    certain = np.where(labels[:, None] >= 0, np.eye(3)[labels], 1 / 3).astype(np.float32)
    soft_labels = make_soft_labels(certain, soft.options)
    soft._soft = SoftLabels(soft_labels.probabilities, soft_labels.weights * (labels >= 0))
    rows, logits = np.arange(5), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    batch = MicroBatch(
        rows, rows, torch.from_numpy(labels), (logits,), (), None, torch.nn.Linear(1, 1), get_processes()
    )
    assert soft.count(rows) == hard.count(rows) == 4
    torch.testing.assert_close(soft.weight * soft.sum(batch), hard.sum(batch), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tiles.annotations.labels": "posterior"}, "belong together"),
        ({"soft_labels.source": "annotators"}, "belong together"),
        ({**POSTERIOR, "training.monitor": "agreement"}, "annotators also label the validation tiles"),
    ],
)
def test_contradicting_annotator_keys_are_errors(
    configure: Callable[..., RunConfig], annotations: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    config = resolve_arm(configure(annotations, arms={"invalid": {"base": "image_only", **keys}}, arm="invalid"))
    with pytest.raises(ConfigError, match=message):
        check_keys(config)


@pytest.mark.slow
def test_a_run_on_posteriors_shows_the_human_ceiling(
    configure: MakeConfig, annotations: dict[str, Any], tmp_path: Path
) -> None:
    keys = {"reports": None, "prompts": None, "output": str(tmp_path), "training.steps": 3}
    folder = train_run(configure(annotations, arms=ARMS, arm="posterior", **keys))
    people = json.loads((folder / "results.json").read_text(encoding="utf-8"))["splits"]["test"]["annotators"]
    by_name = {record["annotator"]: record for record in people["annotators"]}
    assert (
        set(by_name) == set(SKILLS) and by_name["dora"]["reference"] == "eve alone" and people["independent"] == "yes"
    )
    assert 0.5 < by_name["cleo"]["metrics"]["accuracy"] < by_name["ann"]["metrics"]["accuracy"]
    assert "test, mean annotator" in (folder / "report.html").read_text(encoding="utf-8")
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    assert "test, annotators" in summary and "none of them labels a training tile" in summary
    log = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(row["loss"] == pytest.approx(row["soft_labels"]) for row in map(json.loads, log))


def test_a_comparison_names_the_human_ceiling_of_each_data_set(
    configure: MakeConfig, annotations: dict[str, Any]
) -> None:
    tiles = Workspace(configure(annotations)).all_tiles
    same = Workspace(configure({"tiles.annotations": {"path": annotations["tiles.annotations"]["path"]}})).all_tiles
    notes = annotator_notes({("small", "tiny"): tiles}, "auroc")
    assert len(notes) == 1 and notes[0].startswith("Human ceiling (accuracy of annotators against")
    both = annotator_notes({("one", "tiny"): tiles, ("two", "tiny"): same}, "accuracy")
    assert both[0].startswith("one: human ceiling") and "also label training tiles" in both[1]
    text = page("title", "", annotator_sections({("one", "tiny"): tiles, ("one", "other"): tiles}))
    assert text.count("Annotators on the test tiles of one") == 1
    without = {("x", "tiny"): Workspace(configure()).all_tiles}
    assert annotator_notes(without, "accuracy") == [] and annotator_sections(without) == []
