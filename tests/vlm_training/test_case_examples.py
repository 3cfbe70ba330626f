"""Training examples from cases: tiles of a patient with snippets of the patient's own reports."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import WORDS, MakeConfig

from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import DataError
from clipit.vlm_training.bag_batches import BagExamples, ContrastBatch
from clipit.vlm_training.examples import make_examples, validation_examples
from clipit.workspace.workspace import Workspace

SECTION = AdaptConfig.model_validate({"batch_size": 12, "cases": {"tiles": 2, "snippets": 3}})
COMMON = "Margins are free."
"""A sentence that occurs in several reports."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a report for all but one training patient; each sentence contains the number of its patient."""
    path = tmp_path_factory.mktemp("own") / "reports.jsonl"
    rows = []
    for split, count in (("train", 18), ("validation", 6), ("test", 12)):
        for number in range(count - (split == "train")):
            words = [WORDS[(number + 5 * k) % 34] for k in range(3)]
            sentences = [f"Case {split}{number} part {k} shows {word}" for k, word in enumerate(words)]
            sentences += [COMMON.rstrip(".")] if number < 3 else []
            rows.append({"id": f"{split}{number}", "text": ". ".join(sentences) + ".", "group": f"{split}-{number}"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(configure: MakeConfig, reports: Path) -> RunConfig:
    keys = {"reports.path": str(reports), "reports.group_column": "group", "reports.label_column": None}
    return configure({**keys, "pairing.reports": "own"})


def patients_of(examples: BagExamples, batch: ContrastBatch) -> list[set[str]]:
    """Return the patients of the tiles of each bag."""
    numbers = [
        [int(examples.tile_ids[batch.tiles[m]].split("-")[1][:3]) // 4 for m in row if m >= 0]
        for row in batch.image_members
    ]
    return [set(map(str, row)) for row in numbers]


def texts_of(examples: BagExamples, batch: ContrastBatch) -> list[list[str]]:
    return [[examples.texts[batch.texts[m]] for m in row if m >= 0] for row in batch.other_members]


def owner(text: str) -> str:
    return text.split()[1].removeprefix("train")


def test_bags_contain_tiles_and_sentences_of_one_patient(config: RunConfig) -> None:
    examples = make_examples(config, SECTION, "text", 0, "train", Workspace(config))
    seen: set[str] = set()
    for step in range(3):
        batch = examples.batch(step)
        for patients, texts in zip(patients_of(examples, batch), texts_of(examples, batch), strict=True):
            assert len(texts) == 3 == len(set(texts)), "bags have three different sentences"
            assert {owner(text) for text in texts if COMMON not in text} == patients
            seen |= patients
        assert (batch.image_members >= 0).sum() == 24
        assert len(set(batch.tiles.tolist())) == len(batch.tiles)
    assert seen == {str(number) for number in range(17)}, "three steps cover all patients with a report"
    assert examples.summary["tiles_without_text"] == 4 and examples.summary["examples"] == 17


def test_bags_with_a_common_patient_or_sentence_are_not_negatives(config: RunConfig) -> None:
    examples = make_examples(config, SECTION, "text", 0, "train", Workspace(config))
    batch = replace(examples, batch_size=40).batch(0)
    patients, texts = patients_of(examples, batch), texts_of(examples, batch)
    expected = [
        [bool(patients[i] & patients[j]) or bool(set(texts[i]) & set(texts[j])) for j in range(40)] for i in range(40)
    ]
    assert np.array_equal(batch.same, expected)
    assert any(COMMON in texts[i] and COMMON in texts[j] for i in range(40) for j in range(i))


def test_shuffled_texts_come_from_other_patients_and_own_texts_are_not_negatives(config: RunConfig) -> None:
    examples = make_examples(config, SECTION, "shuffled_text", 0, "train", Workspace(config))
    batch = replace(examples, batch_size=34).batch(0)
    patients = [items.pop() for items in patients_of(examples, batch)]
    owners = [{owner(text) for text in items if COMMON not in text}.pop() for items in texts_of(examples, batch)]
    assert all(a != b for a, b in zip(patients, owners, strict=True))
    assert sorted(set(owners), key=int) == sorted(set(patients), key=int)
    assert all(batch.same[i, j] and batch.same[j, i] for i in range(34) for j in range(34) if patients[i] == owners[j])


def test_images_are_contrasted_with_other_tiles_of_the_patient(config: RunConfig) -> None:
    examples = make_examples(config, SECTION, "images", 0, "train", Workspace(config))
    batch = examples.batch(1)
    assert not len(batch.texts)
    others = replace(batch, tiles=batch.others, image_members=batch.other_members)
    assert patients_of(examples, batch) == patients_of(examples, others)
    for left, right in zip(batch.image_members, batch.other_members, strict=True):
        assert not set(batch.tiles[left[left >= 0]]) & set(batch.others[right[right >= 0]])


def test_a_batch_depends_only_on_seed_and_step(config: RunConfig) -> None:
    first, repeated = (make_examples(config, SECTION, "text", 3, "train", Workspace(config)) for _ in range(2))
    repeated.batch(0)
    a, b = first.batch(5), repeated.batch(5)
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ContrastBatch.__dataclass_fields__)
    other = make_examples(config, SECTION, "text", 4, "train", Workspace(config)).batch(5)
    assert not np.array_equal(a.tiles, other.tiles)


def test_validation_uses_reports_of_validation_patients(config: RunConfig) -> None:
    workspace = Workspace(config)
    examples = validation_examples(config, SECTION, "text", 0, workspace)
    assert examples is not None and examples.summary["examples"] == 6 and examples.batch_size == 12
    assert all("validation" in text or COMMON in text for text in examples.texts)
    train = make_examples(config, SECTION, "text", 0, "train", workspace)
    assert not any("validation" in text or "test" in text.split()[1] for text in train.texts)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"batch_size": 69}, r"(?s)17 training patients give 68 different bags, fewer than .* 69.*most 17"),
        ({"batch_size": 68}, None),
    ],
)
def test_a_batch_larger_than_the_data_is_an_error(config: RunConfig, keys: dict[str, Any], message: str | None) -> None:
    section = AdaptConfig.model_validate(keys)
    if message is None:
        assert make_examples(config, section, "text", 0, "train", Workspace(config)).batch(0).same.shape == (68, 68)
        return
    with pytest.raises(DataError, match=message):
        make_examples(config, section, "text", 0, "train", Workspace(config))


def test_a_single_patient_is_an_error_for_lack_of_negatives(config: RunConfig, tmp_path: Path) -> None:
    assert config.reports is not None
    first = Path(config.reports.path).read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "one.jsonl").write_text(first + "\n", encoding="utf-8")
    single = config.model_copy(
        update={"reports": config.reports.model_copy(update={"path": str(tmp_path / "one.jsonl")})}
    )
    section = AdaptConfig.model_validate({"batch_size": 4})
    with pytest.raises(DataError, match="no bag in a batch has a negative"):
        make_examples(single, section, "text", 0, "train", Workspace(single))
    with pytest.raises(DataError, match="only one patient"):
        make_examples(single, section, "shuffled_text", 0, "train", Workspace(single))
