"""Why an arm helps or not: what text knows that vision does not, how good the pairs are, where the gain lies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Shaped

from clipit.artifacts import whole_file
from clipit.comparison.analyses.result import AnalysisResult, gain, hits, title
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT
from clipit.distributed import get_processes
from clipit.evaluation.score_row import ScoreRow
from clipit.pairing.agreement import agreement
from clipit.pairing.selection import find, judge, prepare
from clipit.reporting.tables import number
from clipit.stores.embed import centred
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

_QUARTERS = 4
_NO_PAIR = -1  # in the place of a quarter's number


def _pairing(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> list[AnalysisResult]:
    """How good the pairs are, and whether tiles with near snippets gain more."""
    if plan.config.reports is None:
        return []
    return [_quality(plan, workspace), _by_score(plan, workspace, rows, folder)]


def _quality(plan: Plan, workspace: Workspace) -> AnalysisResult:
    """Hubness and agreement of the training tiles' pairs, judged afterwards by all labels that the data set has."""
    summary, train = workspace.pairs.summary, workspace.all_tiles.of_split("train")
    labels = dict(zip(train.ids.tolist(), train.truth.tolist(), strict=True))
    found = agreement(workspace.pairs.table, labels, index=workspace.index, class_vectors=workspace.class_embeddings())

    def share(value: float | None) -> str:
        """In %."""
        return number(None if value is None else PERCENT * value, 1)

    return AnalysisResult(
        title(plan, "Quality of the pairs"),
        "Training tiles. Label figures use every label that the data set has, also those hidden from training: for "
        "looking, never for choosing. `neighbours`: tiles whose label is that of most others with the same snippet; "
        "`text`: tiles whose label is the class that the snippet is nearest to; `AUROC`: whether the score tells them.",
        ("snippets used", "top 1 % hold %", "skewness", "neighbours %", "chance %", "text %", "AUROC of the score"),
        (
            (
                f"{summary['snippets_used']} of {summary['snippets']}",
                share(summary.get("hub_share")),
                number(summary.get("skewness"), 1),
                share(found.get("neighbours")),
                share(found.get("chance")),
                share(found.get("zero_shot")),
                number(found.get("score_auroc"), 2),
            ),
        ),
        f"{workspace.pairs.artifact.folder.name}: pairs.parquet, summary.json; and the tiles' labels",
        {},
        ({"pairs": str(workspace.pairs.artifact.file("pairs.parquet")), **summary, **found},),
    )


def _by_score(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> AnalysisResult:
    """Gain per quarter of the test tiles, by how near their first snippet is."""
    c = plan.comparison
    tiles, _ = hits(rows, c.baseline, c.seeds[0])
    scores = first_cosines(workspace, tiles.ids)
    paired = np.isfinite(scores)
    quarter = np.full(len(scores), _NO_PAIR, dtype=np.int64)
    if paired.any():
        edges = np.quantile(scores[paired], np.linspace(0, 1, _QUARTERS + 1)[1:-1])
        quarter[paired] = np.searchsorted(edges, scores[paired], side="right")
    file = folder / "nearest-snippet-test.parquet"
    columns = {"tile_id": tiles.ids.tolist(), "score": pa.array(scores, from_pandas=True), "quarter": quarter}
    _keep_table(file, columns)
    bounds = {
        q: (float(scores[quarter == q].min()), float(scores[quarter == q].max()))
        for q in range(_QUARTERS)
        if (quarter == q).any()
    }
    shown = [*bounds, *([] if paired.all() else [_NO_PAIR])]
    table, values = [], []
    for arm in plan.arms:
        if arm != c.baseline:
            _, gains, files = gain(plan, rows, arm)
            table.append((arm, *(number(PERCENT * gains[quarter == q].mean(), 1, signed=True) for q in shown)))
            for q in shown:
                low, high = bounds.get(q, (None, None))
                part = {"quarter": q, "low": low, "high": high, "tiles": int((quarter == q).sum())}
                mean = float(gains[quarter == q].mean())
                values.append({"arm": arm, **part, "gain": mean, "scores": str(file), **files})
    header = [f"{low:.2f} to {high:.2f}" for low, high in bounds.values()]
    if not paired.all():
        header.append(f"no pair ({int((~paired).sum())} tiles)")
    return AnalysisResult(
        title(plan, "Gain by pairing score"),
        f"Accuracy against {c.baseline} in points, mean over seeds, in four equal parts of the test tiles by the "
        "cosine of the first snippet that the rules of `pairing` give them, as they give training tiles theirs "
        "(searched for in memory; test tiles are never paired for training). "
        "If the retrieved text itself helped, tiles with near snippets should gain more than they do by the "
        f"control that distils the VLM's image embedding. {_own_rules(plan)}Exploratory: no intervals.",
        ("arm", *header),
        tuple(table),
        f"predictions.parquet of the runs; predictions/{folder.name}/{file.name}",
        {},
        tuple(values),
    )


def _own_rules(plan: Plan) -> str:
    """A sentence where arms pair by other keys than those that the quarters are made by."""
    config, seed = plan.config, plan.comparison.seeds[0]
    own = [arm for arm in plan.arms if resolve_arm(plan.run(arm, seed)).pairing != config.pairing]
    if not own:
        return ""
    return (
        f"Also for arms with `pairing` keys of their own ({', '.join(own)}) the parts are those of the configuration's "
        "pairing, not of theirs. "
    )


def first_cosines(workspace: Workspace, ids: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Cosine of each test tile with the first snippet that the rules of `pairing` give it; NaN where they give none.

    What the rules need to know of all tiles they know of the training tiles alone. Call it in all processes.

    Args:
        workspace: Their configuration has the rules.
        ids: Of the test tiles.
    """
    rules, store = workspace.config.pairing, workspace.tile_store("test")
    sources, groups = workspace.pairing_facts()
    train, main = workspace.tile_store("train"), get_processes().main
    chosen = prepare(workspace.index, train, rules, block=rules.block, sources=sources, groups=groups, shown=main)
    parts = [np.empty(0)]
    for start in range(0, len(ids), rules.block):
        own = ids[start : start + rules.block]
        queries = centred(store.rows(store.positions(own)), workspace.tile_mean)
        # No report is left out as a test tile's own group's: exclude_same_group is for training tiles.
        found = find(chosen, queries, np.full(len(own), -1, dtype=np.int64), rules.k)
        kept = judge(found, rules, chosen.mutual) == 0
        first = found.cosines[np.arange(len(own)), kept.argmax(axis=1)].astype(np.float64)
        parts.append(np.where(kept.any(axis=1), first, np.nan))
    return np.concatenate(parts)


def _keep_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a table that every process has, once."""
    if get_processes().main:
        with whole_file(path) as temporary:
            pq.write_table(pa.table(dict(columns)), temporary)
