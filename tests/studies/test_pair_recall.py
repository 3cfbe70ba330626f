"""Recall@k between images and texts and its chance level, against values computed by hand for 4 x 4 cosines."""

from typing import Any

import numpy as np
import pytest

from clipit.studies.adapted_vlms import pair_retrieval
from clipit.studies.adapted_vlms.pair_retrieval import IMAGE_TO_TEXT, TEXT_TO_IMAGE, measure_pairs
from clipit.tiles.pixel_source import PixelSource
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.workspace.workspace import Workspace

# Cosine of each image (row) with each text (column). Image 0 is paired with texts 0 and 3, image 1 with text 1, and
# images 2 and 3 with text 2. Ties go to the lower row.
COSINES = np.array([
    [0.10, 0.70, 0.10, 0.50],  # texts 1, 3, 0, 2: hit from k = 2
    [0.15, 0.90, 0.30, 0.10],  # texts 1, ...: hit from k = 1
    [0.10, 0.70, 0.20, 0.40],  # texts 1, 3, 2, 0: hit from k = 3
    [0.20, 0.30, 0.90, 0.20],  # texts 2, ...: hit from k = 1
])  # fmt: skip
# Text 0: images 3, 1, 0, 2: hit from k = 3. Texts 1, 2 and 3: images 1, 3 and 0 first, hit from k = 1.


class Grouped(PixelSource):
    """Tiles with patients but without pixels."""

    def __init__(self) -> None:
        class Tiles:
            patients = np.array(["p", "p", "q", "r"])

        tiles: Any = Tiles()
        self.tiles = tiles


def test_recall_and_chance_of_four_images_and_four_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = BagExamples(
        source=Grouped(),
        tile_ids=[f"tile {row}" for row in range(4)],
        texts=["mucin", "stroma", "gland", "necrosis"],
        tiles_of=Members.of([[0], [1], [2], [3]]),
        texts_of=Members.of([[0, 3], [1], [2], [2]]),
        tiles_per_bag=1,
        texts_per_bag=1,
        batch_size=2,
        seed=0,
        groups=np.arange(4),
        partners=np.arange(4),
        pixel_codes=np.arange(4),
    )
    # Texts are unit vectors along four axes; a fifth axis gives the images unit length.
    rest = np.sqrt(1 - (COSINES**2).sum(axis=1, keepdims=True))
    vectors = np.concatenate([COSINES, rest], axis=1).astype(np.float32), np.eye(4, 5, dtype=np.float32)
    monkeypatch.setattr(pair_retrieval, "_embed", lambda *_: vectors)
    retrieval = measure_pairs(object.__new__(Workspace), examples, (1, 2, 3, 4, 10))
    scores = {
        task: {name: float(value[0]) for name, value in measured.scores(np.ones((4, 1))).items()}
        for task, measured in retrieval.items()
    }
    # k = 4 and k = 10 cover the gallery and are omitted.
    assert scores[IMAGE_TO_TEXT] == pytest.approx({"recall@1": 2 / 4, "recall@2": 3 / 4, "recall@3": 1})
    assert scores[TEXT_TO_IMAGE] == pytest.approx({"recall@1": 3 / 4, "recall@2": 3 / 4, "recall@3": 1})
    # In each direction one query has two partners (1/2, 1 - 2/4 x 1/3 and 1); the others have one (1/4, 2/4 and 3/4).
    chance = {"recall@1": 5 / 16, "recall@2": (5 / 6 + 3 / 2) / 4, "recall@3": 13 / 16}
    assert retrieval[IMAGE_TO_TEXT].random == pytest.approx(chance)
    assert retrieval[TEXT_TO_IMAGE].random == pytest.approx(chance)
    assert retrieval[TEXT_TO_IMAGE].groups.tolist() == ["p", "p", "q", "p"], (
        "the patient of a text is that of its first image"
    )
    # Patient p alone has images 0 and 1 and texts 0, 1 and 3.
    of_p = np.array([[1.0], [1.0], [0.0], [0.0]]), np.array([[1.0], [1.0], [0.0], [1.0]])
    assert retrieval[IMAGE_TO_TEXT].scores(of_p[0])["recall@1"] == pytest.approx([1 / 2])
    assert retrieval[TEXT_TO_IMAGE].scores(of_p[1])["recall@1"] == pytest.approx([2 / 3])
