from pathlib import Path

import numpy as np
import pytest

from clipit.config.run import LabelsConfig, TilesConfig
from clipit.image_readers import FileReader
from clipit.tiles.labels import hide_labels
from clipit.tiles.load import load_tiles, read_tiles

from .conftest import paint, write_table


def test_what_is_read_once_serves_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = [
        {"path": f"{place}.png", "label": place % 2, "split": "train" if place < 9 else "test"} for place in range(12)
    ]
    for row in table:
        paint(tmp_path / str(row["path"]))
    (tmp_path / "10.png").write_bytes(b"no image")
    asked = TilesConfig(
        source="table",
        path=str(write_table(tmp_path / "t.csv", table)),
        labels=LabelsConfig(kind="per_class", value=1),
        unreadable="quarantine",
    )
    everything = read_tiles(asked)
    np.testing.assert_array_equal(everything.labels, everything.truth)
    assert (everything.truth >= 0).all()
    assert set(everything.splits) == {"train", "validation", "test"}
    assert everything.quarantined == ("10.png",)
    for seed in range(4):
        again, hidden = load_tiles(asked, seed), hide_labels(everything, asked.labels, seed)
        assert ((again.labels >= 0) & (again.splits == "train")).sum() == 2
        for column in ("ids", "labels", "truth", "splits", "groups", "rows"):
            np.testing.assert_array_equal(getattr(again, column), getattr(hidden, column))
        assert (again.fingerprint, again.notes, again.quarantined) == (
            hidden.fingerprint,
            hidden.notes,
            hidden.quarantined,
        )
    monkeypatch.setattr(FileReader, "read", None)  # hiding looks at no image
    hide_labels(everything, asked.labels, 9)
