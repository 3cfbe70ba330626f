"""Training examples from bags, mined with the VLM before adaptation and again with updated weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tiny_models import MakeConfig

import clipit
from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import ArtifactError, ConfigError, DataError
from clipit.models.vlm import VLM, load_vlm
from clipit.output_files.artifacts import fingerprint
from clipit.prompts.dictionary import load_dictionary
from clipit.vlm_training import mining
from clipit.vlm_training.bag_batches import BagExamples
from clipit.vlm_training.examples import make_examples, validation_examples
from clipit.vlm_training.mining import least_interval, mine, warn_if_mining_is_slow
from clipit.workspace.workspace import Workspace

CHAPTER = Path(clipit.__file__).parent / "prompts/dictionaries/histology/artefacts.yaml"
BAGS = {"tiles": 2, "snippets": 2, "prompts": 1, "class_prompts": 1, "dictionary": str(CHAPTER)}
SECTION = AdaptConfig.model_validate({"data": "bags", "batch_size": 8, "bags": BAGS})


@pytest.fixture
def config(configure: MakeConfig) -> RunConfig:
    return configure({"pairing.k": 2})


def bags(examples: BagExamples, tile: int) -> tuple[list[str], list[str]]:
    """Return the ids of the tiles and the texts in the bags of an example."""
    tiles = [examples.tile_ids[row] for row in examples.tiles_of[tile]]
    return tiles, [examples.texts[row] for row in examples.texts_of[tile]]


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def nearest_by_hand(vlm: VLM, workspace: Workspace) -> tuple[list[set[str]], list[set[str]]]:
    """Two nearest tiles of other patients and two nearest snippets of each training tile, by brute force."""
    tiles = workspace.all_tiles.of_split("train")
    pixels = torch.from_numpy(np.stack([vlm.preprocess.pixels(tiles.read(row)) for row in range(len(tiles))]))
    texts = sorted(set(workspace.snippet_texts().values()))
    images, encoded = unit(vlm.encode_images(pixels).numpy()), unit(vlm.encode_texts(texts).numpy())
    images, encoded = unit(images - images.mean(axis=0)), unit(encoded - encoded.mean(axis=0))
    near = images @ images.T - 9.0 * (tiles.groups[:, None] == tiles.groups[None, :])
    best_tiles = [set(tiles.ids[row].tolist()) for row in np.argsort(-near, axis=1)[:, :2]]
    best_texts = [{texts[index] for index in row} for row in np.argsort(-(images @ encoded.T), axis=1)[:, :2]]
    return best_tiles, best_texts


def agreement(examples: BagExamples, best_tiles: list[set[str]], best_texts: list[set[str]]) -> tuple[float, float]:
    """Shares of tiles with the correct mined tiles and snippets; one snippet suffices, as embeddings may be tied."""
    mined = [bags(examples, tile) for tile in range(len(examples))]
    same_tiles = [set(tiles[1:]) == best for (tiles, _), best in zip(mined, best_tiles, strict=True)]
    same_texts = [bool(set(texts) & best) for (_, texts), best in zip(mined, best_texts, strict=True)]
    return float(np.mean(same_tiles)), float(np.mean(same_texts))


def test_bags_contain_the_nearest_tiles_snippets_and_prompts(config: RunConfig) -> None:
    workspace = Workspace(config)
    examples = make_examples(config, SECTION, "text", 0, "train", workspace)
    assert len(examples) == 72 and min(agreement(examples, *nearest_by_hand(workspace.vlm, workspace))) > 0.95
    dictionary = load_dictionary(SECTION.bags.dictionary)
    terms = {text for entry in dictionary.entries for text in dictionary.texts(entry)}
    assert workspace.prompts is not None
    prompts = {text for name in workspace.prompts.classes for text in workspace.prompts.texts(name)}
    snippets = set(workspace.snippet_texts().values())
    for tile in range(72):
        tiles, texts = bags(examples, tile)
        assert tiles[0] == examples.tile_ids[tile] and len(tiles) == 3
        assert [text in snippets for text in texts[:2]] == [True, True] and texts[2] in terms and texts[3] in prompts
    assert examples.summary["texts_like_prompts"] > 0, "bags contain class prompts by configuration"
    entry_of = {text: name for name in dictionary.entries for text in dictionary.texts(name)}
    members = SECTION.bags.model_copy(update={"whole_entries": True})
    whole = make_examples(config, SECTION.model_copy(update={"bags": members}), "text", 0, "train", workspace)
    for tile in range(72):
        term = bags(examples, tile)[1][2]
        assert set(bags(whole, tile)[1]) == {*bags(examples, tile)[1], *dictionary.bag(entry_of[term])}
    assert ((whole.batch(0).other_members >= 0).sum(axis=1) > 4).all(), "a step uses whole bags"


def test_bags_that_share_a_tile_or_text_are_not_negatives(config: RunConfig) -> None:
    section = SECTION.model_copy(update={"bags": SECTION.bags.model_copy(update={"class_prompts": 0, "prompts": 0})})
    workspace = Workspace(config)
    examples = make_examples(config, section, "text", 0, "train", workspace)
    batch = examples.batch(0)
    tiles = [set(batch.tiles[row[row >= 0]].tolist()) for row in batch.image_members]
    texts = [set(batch.texts[row[row >= 0]].tolist()) for row in batch.other_members]
    expected = [[bool(tiles[i] & tiles[j] or texts[i] & texts[j]) for j in range(8)] for i in range(8)]
    assert np.array_equal(batch.same, expected)
    shuffled = make_examples(config, section, "shuffled_text", 0, "train", workspace)
    groups = workspace.all_tiles.of_split("train").groups
    assert (groups != groups[shuffled.partners]).all()
    images = make_examples(config, section, "images", 0, "train", workspace).batch(0)
    left, right = (
        [set(rows[row[row >= 0]].tolist()) for row in members]
        for rows, members in ((images.tiles, images.image_members), (images.others, images.other_members))
    )
    assert [a | b for a, b in zip(left, right, strict=True)] == tiles
    assert not any(a & b for a, b in zip(left, right, strict=True))


def test_mining_uses_the_current_weights_and_is_loaded_on_resume(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = Workspace(config)
    section = SECTION.model_copy(update={"bags": SECTION.bags.model_copy(update={"mine_every": 1})})
    examples = make_examples(config, section, "text", 0, "train", workspace)
    least = least_interval(examples)
    with caplog.at_level("INFO", logger="clipit"):
        warn_if_mining_is_slow(examples, section)
        assert f"with adapt.bags.mine_every={least}, it would take a tenth" in caplog.text
        caplog.clear()
        often = section.bags.model_copy(update={"mine_every": least})
        warn_if_mining_is_slow(examples, section.model_copy(update={"bags": often}))
        assert not caplog.text
    vlm = load_vlm(config.vlm)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in vlm.towers.module.parameters():
            weight.add_(torch.randn_like(weight) * weight.std(correction=0))
    waited: list[bool] = []  # whether the embeddings existed at each barrier
    stores = tmp_path / "mined" / "step-00000001"
    monkeypatch.setattr("clipit.distributed.Processes.barrier", lambda self: waited.append(stores.is_dir()))
    mined = mine(section, "text", examples, vlm, workspace, tmp_path, 1, "run")
    assert waited[-2:] == [True, False]
    by_hand = nearest_by_hand(vlm, workspace)
    assert min(agreement(mined, *by_hand)) > 0.95 > 2 * max(agreement(examples, *by_hand))
    assert [path.name for path in (tmp_path / "mined").iterdir()] == ["step-00000001.safetensors"]
    assert mined.batch_size == examples.batch_size and mined.summary["mined_after_step"] == 1
    file, copy, identity = tmp_path / "mined" / "step-00000001.safetensors", tmp_path / "copy", fingerprint(["run", 1])
    for _ in range(3):
        mining._save(copy, mining._load(file, identity, ()), identity)
        assert copy.read_bytes() == file.read_bytes()

    monkeypatch.setattr(mining, "mine_bags", lambda *_: pytest.fail("bags were mined again"))
    faster = section.model_copy(update={"micro_batch": 3, "log_every": 1, "arms": ("text",)})
    loaded = mine(faster, "text", mined, vlm, workspace, tmp_path, 1, "run", due=False)
    assert [bags(loaded, tile) for tile in range(72)] == [bags(mined, tile) for tile in range(72)]
    with pytest.raises(ArtifactError, match="bags belong to a different adaptation"):
        mine(section, "text", examples, vlm, workspace, tmp_path, 1, "a different run")
    (tmp_path / "mined" / "step-00000001.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ArtifactError, match=r"(?s)unreadable.*delete the folder of this adaptation"):
        mine(section, "text", examples, vlm, workspace, tmp_path, 1, "run")
    (tmp_path / "mined" / "step-00000001.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"(?s)mined after step 1 are missing.*delete the folder"):
        mine(section, "text", examples, vlm, workspace, tmp_path, 1, "run", due=False)


def test_bags_of_prompts_need_no_reports(config: RunConfig, tmp_path: Path) -> None:
    workspace = Workspace(config.model_copy(update={"reports": None}))
    changes = {"snippets": 0, "prompts": 2, "class_prompts": 0, "mine_every": 50}
    section = SECTION.model_copy(update={"bags": SECTION.bags.model_copy(update=changes)})
    examples = make_examples(workspace.config, section, "text", 0, "train", workspace)
    dictionary = load_dictionary(section.bags.dictionary)
    terms = {text for entry in dictionary.entries for text in dictionary.texts(entry)}
    assert not section.needs_reports and SECTION.needs_reports and AdaptConfig().needs_reports
    assert examples.texts_of.lengths.tolist() == [2] * 72 and set(examples.texts) <= terms
    mined = mine(section, "text", examples, workspace.vlm, workspace, tmp_path, 50, "run")
    assert [bags(mined, tile) for tile in range(72)] == [bags(examples, tile) for tile in range(72)]


def test_tiles_without_a_pair_are_counted_and_empty_bags_are_errors(configure: MakeConfig, config: RunConfig) -> None:
    members = {"snippets": 1, "tiles": 1}
    section = AdaptConfig.model_validate({"data": "bags", "batch_size": 8, "bags": members})
    best = Workspace(config).pairs.table.to_pandas().query("rank == 0").set_index("tile_id")["score"]
    threshold = float(best.median())
    sparse = Workspace(configure({"pairing.k": 2, "pairing.threshold": threshold}))
    examples = make_examples(sparse.config, section, "text", 0, "train", sparse)
    paired = set(best.index[best >= threshold])
    assert {examples.tile_ids[rows[0]] for rows in map(examples.tiles_of.__getitem__, range(len(examples)))} == paired
    assert 0 < len(paired) < 72 and examples.summary["tiles_without_text"] == 72 - len(paired)
    assert examples.summary["empty_text_bags"] == 72 - len(paired)
    empty = Workspace(configure({"pairing.k": 2, "pairing.threshold": 0.999}))
    with pytest.raises(DataError, match=r"(?s)drop all 144 candidate pairs.*set pairing\.threshold to"):
        make_examples(empty.config, section, "text", 0, "train", empty)
    with pytest.raises(ValidationError, match=r"text bags would be empty: set bags\.snippets"):
        AdaptConfig.model_validate({"data": "bags", "bags": {"snippets": 0}})


def test_invalid_options_and_other_splits_are_errors(config: RunConfig) -> None:
    workspace = Workspace(config)
    with pytest.raises(DataError, match="only 72 training examples, fewer than a batch of 73"):
        make_examples(config, SECTION.model_copy(update={"batch_size": 73}), "text", 0, "train", workspace)
    section = SECTION.model_copy(update={"bags": SECTION.bags.model_copy(update={"snippets": 3})})
    with pytest.raises(ConfigError, match=r"need at least as many pairs per tile, but pairing\.k is 2"):
        make_examples(config, section, "text", 0, "train", workspace)
    assert validation_examples(config, SECTION, "text", 0, workspace) is None
    with pytest.raises(DataError, match="have no bags"):
        make_examples(config, SECTION, "text", 0, "test", workspace)
