"""Cached inputs of a configuration."""

import json
from collections.abc import Callable
from pathlib import Path

from clipit.config.run import RunConfig
from clipit.workspace.workspace import Workspace

MakeConfig = Callable[..., RunConfig]


def test_the_account_belongs_to_the_reports_that_were_read(configure: MakeConfig, tmp_path: Path) -> None:
    texts = ["Glands invade the muscularis.", "Margins are free of tumor."]
    (tmp_path / "first.jsonl").write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(texts)))
    (tmp_path / "second.jsonl").write_text((tmp_path / "first.jsonl").read_text() + '{"id": 2, "text": " "}\n')
    first, second = (
        Workspace(
            configure(
                {
                    "reports.path": str(tmp_path / f"{name}.jsonl"),
                    "reports.id_column": "id",
                    "reports.label_column": None,
                }
            )
        )
        for name in ("first", "second")
    )
    assert "0 empty; from" in first.snippet_summary() and "first.jsonl" in first.snippet_summary()
    assert second.snippets.folder == first.snippets.folder
    summary = second.snippet_summary()
    assert "2  with text, 1 empty; from" in summary and "second.jsonl, line 3: empty report" in summary
    assert "first.jsonl" not in summary
