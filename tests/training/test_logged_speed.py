"""Logging of the time spent waiting for tiles and compiling the backbone."""

import json
import re
from pathlib import Path

import pytest
import torch
from logged_lines import capture_log
from tiny_models import MakeConfig

from clipit.images import read_ahead
from clipit.models.checkpointing import compiled_backbone
from clipit.runs.train import train_run
from clipit.training import train_student

WAITING = r"{}: [\d,]+ tiles/s, \d+% of the time waiting for tiles"


def test_waiting_time_and_compilation_time_are_logged(
    configure: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def eager(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        train_student,
        "compiled_backbone",
        lambda backbone, enabled: compiled_backbone(backbone, enabled, backend=eager),
    )
    monkeypatch.setattr(read_ahead, "_MIN_SECONDS", 0.0)
    log_lines = capture_log()
    keys = {"training.compile": True, "training.steps": 2, "training.evaluate_every": 2}
    run = train_run(configure({**keys, "output": str(tmp_path), "arm": "clip_it_all"}))
    assert graphs, "the backbone was not compiled"
    assert json.loads((run / "training.json").read_text())["compile_seconds"] > 0
    assert [
        line for line in log_lines if re.fullmatch(r"note: the first step took \d+ s, because it compiled .*", line)
    ]

    for title in ("embedding tiles", "training", "predicting test"):
        assert [line for line in log_lines if re.match(WAITING.format(title), line)], title
