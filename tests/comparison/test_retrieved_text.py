"""Tests that the text-only classifier uses the snippets that the pairing rules assign to each tile."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import MakeConfig

from clipit.comparison.analyses.complementarity import retrieved_text, text_only_predictions
from clipit.vectors import centred, unit
from clipit.workspace.workspace import Workspace


@pytest.mark.parametrize(
    "rules",
    [
        {"pairing.k": 2},
        {"pairing.k": 3, "pairing.correction": "csls", "pairing.score_temperature": 0.1},
        {"pairing.k": 2, "pairing.mutual": True, "pairing.mutual_neighbours": 3},
    ],
)
def test_training_tiles_retrieve_their_pairs(configure: MakeConfig, rules: dict[str, Any]) -> None:
    workspace = Workspace(configure(rules))
    train, retrieved = workspace.all_tiles.of_split("train"), retrieved_text(workspace)
    index, expected = workspace.index, np.zeros_like(retrieved["train"])
    rows = {tile: row for row, tile in enumerate(train.ids.tolist())}
    for pair in workspace.pairs.table.to_pylist():
        vector = index.vectors(np.searchsorted(index.ids, [pair["snippet_id"]]))[0]
        expected[rows[pair["tile_id"]]] += vector * pair.get("weight", 1.0)
    np.testing.assert_allclose(retrieved["train"], unit(expected), atol=1e-3)
    assert (np.linalg.norm(expected, axis=1) == 0).any() == bool(rules.get("pairing.mutual")), (
        "only mutual pairing leaves tiles without a pair"
    )


def test_test_tiles_retrieve_only_snippets_of_the_configured_organ(
    configure: MakeConfig, world: dict[str, Any], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in Path(world["reports"]["path"]).read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["organ"] = ("Colon", "brain")[number % 2]
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    keys = {"reports.path": str(tmp_path / "reports.jsonl"), "reports.organ_column": "organ", "output": str(tmp_path)}
    predicted = {}
    for organ in ("colon", "brain", None):
        workspace = Workspace(configure({**keys, "pairing.organs": [organ] if organ else []}))
        retrieved = retrieved_text(workspace)
        store = workspace.tile_store("test")
        sources = pq.read_table(workspace.snippets.file("snippet_sources.parquet")).to_pylist()
        embedded = workspace.text_store()
        allowed = [row["snippet_id"] for row in sources if organ in (None, row["organ"].lower())]
        vectors = centred(embedded.rows(embedded.positions(np.array(sorted(set(allowed))))), workspace.text_mean)
        tiles = centred(store.rows(store.positions(workspace.all_tiles.of_split("test").ids)), workspace.tile_mean)
        best = (tiles @ vectors.T).max(axis=1)
        np.testing.assert_allclose((tiles * retrieved["test"]).sum(axis=1), best, atol=2e-3)
        predicted[organ] = text_only_predictions(workspace, 0).probabilities
    assert not np.allclose(predicted["colon"], predicted["brain"]) and not np.allclose(
        predicted["colon"], predicted[None]
    )
