"""One VLM embedding per report: the mean of its snippets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from clipit.config.run import ReportsConfig
from clipit.distributed import build_once, get_processes
from clipit.output_files.artifacts import fingerprint
from clipit.output_files.whole_files import write_array
from clipit.reports.build import snippet_keys
from clipit.reports.readers import Report, Reports
from clipit.vectors import unit
from clipit.workspace.workspace import Workspace

_FILE = "vectors.npy"


def report_vectors(
    workspace: Workspace, reports: Sequence[Report], config: ReportsConfig
) -> Float32[np.ndarray, "n dim"]:
    """Return the normalised mean embedding of each report's snippets; zeros for a report without snippets.

    The snippets are not filtered by morphology. The vectors are cached as an artefact.

    Args:
        config: Section `reports` with the filters.
    """
    corpus = Reports(tuple(reports), (), config.path)
    inputs: dict[str, Any] = {
        "reports": corpus.fingerprint,
        "config": snippet_keys(config),
        "vlm": workspace.vlm.fingerprint,
    }

    def make(folder: Path) -> dict[str, Any]:
        from clipit.reports.build import build_snippets

        if not get_processes().main:
            return {}
        unfiltered = config.model_copy(update={"morphology_prompts": None, "boilerplate_prompts": None})
        built = build_snippets(corpus, unfiltered, workspace.vlm.count_tokens, workspace.vlm.context_length)
        embedded = workspace.encode(built.snippets.column("text").to_pylist())
        row_of = {name: row for row, name in enumerate(built.snippets.column("snippet_id").to_pylist())}
        report_rows = {report.report_id: row for row, report in enumerate(reports)}
        sums = np.zeros((len(reports), embedded.shape[1]), dtype=np.float32)
        sources = zip(
            built.sources.column("report_id").to_pylist(), built.sources.column("snippet_id").to_pylist(), strict=True
        )
        for report, snippet in sources:
            sums[report_rows[report]] += embedded[row_of[snippet]]
        write_array(folder / _FILE, unit(sums))
        return {"reports": len(reports), "fingerprint": fingerprint(list(report_rows))}

    return np.asarray(build_once(workspace.root, "report_vectors", inputs, make).array(_FILE), dtype=np.float32)
