"""The text-only head reads what the rules of the pairing give: the pairs of training tiles, the same for all others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import MakeConfig

from clipit.embedding import centred, unit
from clipit.experiments.complementarity import _texts, text_only_predictions
from clipit.experiments.materials import Materials


def quiet(line: str) -> None:
    """Nobody listens."""


def found_by(materials: Materials) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Tiles per split, and what the head reads of them."""
    parts = {split: materials.some_tiles.of_split(split) for split in ("train", "validation", "test")}
    vectors = {}
    for split, part in parts.items():
        store = materials.tile_store(split)
        vectors[split] = store.rows(store.positions(part.ids))
    return parts, _texts(materials.config.pairing, materials, parts, vectors)


@pytest.mark.parametrize(
    "rules",
    [
        {"pairing.k": 2},
        {"pairing.k": 3, "pairing.correction": "csls", "pairing.score_temperature": 0.1},
        {"pairing.k": 2, "pairing.mutual": True, "pairing.mutual_neighbours": 3},
    ],
)
def test_training_tiles_read_their_pairs(configure: MakeConfig, rules: dict[str, Any]) -> None:
    materials = Materials(configure(rules), quiet)
    parts, found = found_by(materials)
    index, expected = materials.index, np.zeros_like(found["train"])
    rows = {tile: row for row, tile in enumerate(parts["train"].ids.tolist())}
    for pair in materials.pairs.table.to_pylist():
        vector = index.vectors(np.searchsorted(index.ids, [pair["snippet_id"]]))[0]
        expected[rows[pair["tile_id"]]] += vector * pair.get("weight", 1.0)
    np.testing.assert_allclose(found["train"], unit(expected), atol=1e-3)
    assert (np.linalg.norm(expected, axis=1) == 0).any() == bool(rules.get("pairing.mutual")), "tiles without a pair"


def test_test_tiles_find_snippets_of_the_asked_organ_alone(
    configure: MakeConfig, world: dict[str, Any], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in Path(world["reports"]["path"]).read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["organ"] = ("Colon", "brain")[number % 2]
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    keys = {"reports.path": str(tmp_path / "reports.jsonl"), "reports.organ_column": "organ", "output": str(tmp_path)}
    read = {}
    for organ in ("colon", "brain", None):
        config = configure({**keys, "pairing.organs": [organ] if organ else []})
        materials = Materials(config, quiet)
        _, found = found_by(materials)
        store = materials.tile_store("test")
        sources = pq.read_table(materials.snippets.file("snippet_sources.parquet")).to_pylist()
        embedded = materials.text_store()
        allowed = [row["snippet_id"] for row in sources if organ in (None, row["organ"].lower())]
        vectors = centred(embedded.rows(embedded.positions(np.array(sorted(set(allowed))))), materials.text_mean)
        tiles = centred(store.rows(store.positions(materials.some_tiles.of_split("test").ids)), materials.tile_mean)
        best = (tiles @ vectors.T).max(axis=1)
        np.testing.assert_allclose((tiles * found["test"]).sum(axis=1), best, atol=2e-3)
        read[organ] = text_only_predictions(config, materials, 0).probabilities
    assert not np.allclose(read["colon"], read["brain"]) and not np.allclose(read["colon"], read[None])
