"""Whole runs with bags, targets from reports and label-free checkpoint selection, and their errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from run_files import losses
from safetensors.numpy import load_file
from tiny_models import MakeConfig

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, DataError
from clipit.runs.train import train_run
from clipit.stores.embed import Store
from clipit.training.arms import resolve_arm
from clipit.training.terms.bag_members import make_contrast_bags
from clipit.training.terms.bags import BagsTerm
from clipit.training.terms.distillation_targets import make_targets
from clipit.training.terms.target_vectors import Targets, sum_targets
from clipit.training.terms.term import MicroBatch
from clipit.training.terms.term_table import prepare_terms
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
FEW = {"training.steps": 3, "training.evaluate_every": 3, "training.checkpoint_every": 3}


def training_facts(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return values


def prompts_of_two_classes(config: RunConfig, path: Path) -> str:
    values = yaml.safe_load(Path(config.prompts or "").read_text(encoding="utf-8"))
    values["classes"].pop("stroma")
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def first_scores(configure: MakeConfig) -> np.ndarray:
    table = Workspace(configure({"pairing.k": 5})).pairs.table
    return np.asarray(table.column("score"))[np.asarray(table.column("rank")) == 0]


def unexpected_image_only_run(split: str) -> np.ndarray:
    raise AssertionError(f"the image-only run is not needed, but its {split} predictions were requested")


def test_tiles_without_a_pair_train_without_bags_and_are_counted(configure: MakeConfig, tmp_path: Path) -> None:
    median = float(np.median(first_scores(configure)))
    keys = {"pairing.threshold": median, "pairing.score_temperature": 0.1, "bags.weighted": True, "bags.margin": 0.01}
    config = configure({**FEW, **keys, "bags.shared_negatives": False}, name="half", arm="bags", output=tmp_path)
    folder = train_run(config)
    recorded = training_facts(folder)["bags"]
    assert 0 < recorded["empty_text_bags"] < 72 and recorded["pruned_snippets"] > 0
    assert recorded["without_snippets"] == recorded["empty_text_bags"]
    assert len(losses(folder)) == 3 and np.isfinite(losses(folder)).all()
    assert f"'empty_text_bags': {recorded['empty_text_bags']}" in (folder / "summary.md").read_text(encoding="utf-8")


def test_bags_filled_by_prompts_are_not_empty(configure: MakeConfig) -> None:
    keys = {"pairing.threshold": float(np.median(first_scores(configure))), "bags.class_prompts": 1}
    config = resolve_arm(configure(keys, arm="bags"))
    workspace = Workspace(config)
    train = workspace.all_tiles.of_split("train")
    bags = make_contrast_bags(config, workspace, train)
    without = ~(bags.texts.members >= 0).any(axis=1)
    assert bags.counts["without_snippets"] == without.sum() > 0
    assert bags.counts["empty_text_bags"] == 0 and bags.text_members(np.arange(len(train)))[1].any(axis=1).all()


def test_a_learnt_temperature_is_clamped_after_every_update(
    configure: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipit.training.terms.bags.MIN_TEMPERATURE", 0.5)
    monkeypatch.setattr(BagsTerm, "problems", lambda self: [])  # would reject a start below the bound
    keys = {**FEW, "bags.learn_temperature": True, "bags.temperature": 0.4, "training.learning_rate": 1e-5}
    folder = train_run(configure(keys, name="clamped", arm="bags", output=tmp_path))
    (weights,) = (folder / "checkpoints").glob("best-*.safetensors")
    assert np.exp(load_file(weights)["loss_parameters.bags_log_temperature"]) == pytest.approx(0.5, rel=1e-3)


def test_weights_and_shared_negatives_change_the_loss(configure: MakeConfig) -> None:
    loss_of = {}
    for name, keys in (
        ("plain", {}),
        ("weighted", {"bags.weighted": True}),
        ("apart", {"bags.shared_negatives": False, "bags.class_prompts": 1}),
        ("together", {"bags.class_prompts": 1}),
    ):
        config = resolve_arm(configure({"pairing.score_temperature": 0.02, **keys}, arm="bags"))
        workspace = Workspace(config)
        bags = make_contrast_bags(config, workspace, workspace.all_tiles.of_split("train"))
        assert (bags.weights is not None) == config.bags.weighted
        projected = torch.randn(16, workspace.index.store.dim, generator=torch.Generator().manual_seed(0))
        term, rows = BagsTerm(config), np.arange(16)
        term.bags = bags
        logits = (torch.zeros(16, 3),)
        loss_of[name] = float(
            term.sum(
                MicroBatch(
                    rows, rows, torch.full((16,), -1), logits, (projected,), None, torch.nn.Identity(), get_processes()
                )
            )
        )
    assert loss_of["weighted"] != pytest.approx(loss_of["plain"], rel=1e-4)
    assert loss_of["apart"] < 0.9 * loss_of["together"], "tiles with the same zero-shot class are not negatives"


def test_checkpoint_selection_by_information_without_labels(configure: MakeConfig, tmp_path: Path) -> None:
    keys = {"training.monitor": "information", "training.steps": 6, "training.evaluate_every": 2}
    folder = train_run(configure(keys, name="informed", arm="zero_label", overrides=list(keys)))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = {row["step"]: row["validation_information"] for row in rows if "validation_information" in row}
    assert list(scores) == [2, 4, 6] and all(0 <= value <= np.log(3) for value in scores.values())
    recorded = training_facts(folder)
    assert recorded["chosen_step"] == max(scores, key=lambda step: (scores[step], -step))
    assert recorded["score"] == scores[recorded["chosen_step"]] and recorded["training_labels"] == 0
    assert "Step selected by information on the validation split" in recorded["terms"]


def test_fallbacks_of_targets_from_reports_are_recorded(configure: MakeConfig) -> None:
    folder = train_run(configure(FEW, name="context", arm="report_context"))
    assert "of 72 tiles fell back to their snippets' own embeddings" in training_facts(folder)["fallbacks"]
    assert "fell back" in (folder / "summary.md").read_text(encoding="utf-8")


def test_report_labels_are_added_to_the_image_embedding(configure: MakeConfig) -> None:
    def targets(arm: str) -> Targets:
        config = resolve_arm(configure({}, arm=arm))
        workspace = Workspace(config)
        return make_targets(config, workspace, workspace.tiles(config.seed))[0]

    both, labels, image = (targets(arm) for arm in ("report_labels_and_image", "report_labels", "image_embedding"))
    assert np.allclose(both.vectors, sum_targets(labels, image).vectors, atol=2e-3)
    assert not np.allclose(both.vectors, image.vectors, atol=1e-2)


def test_weighted_bags_require_pairing_weights(configure: MakeConfig) -> None:
    config = resolve_arm(configure({"bags.weighted": True}, arm="bags"))
    workspace = Workspace(config)
    with pytest.raises(ConfigError, match=r"bags\.weighted(?s:.*)pairing\.score_temperature"):
        make_contrast_bags(config, workspace, workspace.all_tiles.of_split("train"))


def test_bags_over_the_memory_limit_are_an_error_before_anything_is_built(
    configure: MakeConfig, tmp_path: Path
) -> None:
    keys = {"training.tiles_per_step": 4096, "bags.tiles": 64, "bags.snippets": 64, "pairing.k": 64}
    config = configure({**keys, "overrides": list(keys)}, name="large", arm="bags", output=tmp_path / "nothing")
    with pytest.raises(
        ConfigError, match=r"bags of 65 tiles and 64 texts need about 1560\.0 GiB in a step of 4,096 tiles(?s:.*)lower"
    ):
        train_run(config)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("keys", [{"arm": "clip_it_all"}, {"arm": "bags", "bags.class_prompts": 2}])
def test_prompts_without_all_classes_are_an_error_before_training(
    configure: MakeConfig, tmp_path: Path, keys: dict[str, object]
) -> None:
    prompts = prompts_of_two_classes(configure(), tmp_path / "prompts.yaml")
    config = resolve_arm(configure({**keys, "prompts": prompts}))
    workspace = Workspace(config)
    with pytest.raises(DataError, match=r"small has no prompts for some tile classes(?s:.*)without prompts: stroma"):
        prepare_terms(config, workspace, workspace.tiles(0), unexpected_image_only_run)
    if "bags.class_prompts" in keys:
        with pytest.raises(DataError, match=r"without prompts: stroma"):
            make_contrast_bags(config, workspace, workspace.all_tiles.of_split("train"))


def test_the_error_for_a_threshold_without_pairs_suggests_another(configure: MakeConfig) -> None:
    config = configure({"pairing.threshold": 0.9999}, name="none-left", arm="bags")
    with pytest.raises(DataError, match=r"drop all 360 candidate pairs(?s:.*)set pairing\.threshold to "):
        train_run(config)


@pytest.mark.parametrize("side", ["tile_store", "text_store"])
def test_embeddings_that_are_not_finite_are_an_error(
    configure: MakeConfig, side: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shard = Store.shard

    def corrupted(self: Store, number: int) -> Any:
        """Replace one row of one store by NaN."""
        vectors = np.array(shard(self, number))
        if self.artifact.manifest.kind == side:
            vectors[1] = np.nan
        return vectors

    config = resolve_arm(configure({"pairing.block": 50}, arm="bags"))  # builds its own pairs from the shared stores
    workspace = Workspace(config.model_copy(update={"pairing": config.pairing.model_copy(update={"k": 6})}))
    assert len(workspace.index.ids)  # valid so far
    monkeypatch.setattr(Store, "shard", corrupted)
    with pytest.raises(DataError, match=r"(tiles|snippets): 1 embedding is not finite(?s:.*)vlm\.precision=fp32"):
        make_contrast_bags(config, workspace, workspace.all_tiles.of_split("train"))
