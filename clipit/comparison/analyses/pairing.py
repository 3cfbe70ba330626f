"""Quality of the pairs, and whether tiles with near snippets gain more."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int, Shaped

from clipit.artifacts import whole_file
from clipit.comparison.analyses.result import AnalysisResult, compute_gain, compute_hits, heading
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT
from clipit.distributed import get_processes
from clipit.evaluation.score_row import ScoreRow
from clipit.pairing.selection import Candidates, Selection, find, judge, prepare
from clipit.pairing.summary import agreement
from clipit.reporting.tables import number
from clipit.stores.embed import centred
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

_QUARTERS = 4
_NO_PAIR = -1  # quarter of a tile without a pair
_NO_GROUP = -1


def analyse_pairing(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> list[AnalysisResult]:
    """Measure the quality of the pairs, and the gain of tiles with near and far snippets; nothing without reports."""
    if plan.config.reports is None:
        return []
    return [_pair_quality(plan, workspace), _gain_by_score(plan, workspace, rows, folder)]


def _pair_quality(plan: Plan, workspace: Workspace) -> AnalysisResult:
    """Hubness and label agreement of the training tiles' pairs, judged by all labels of the data set."""
    summary, train = workspace.pairs.summary, workspace.all_tiles.of_split("train")
    labels = dict(zip(train.ids.tolist(), train.truth.tolist(), strict=True))
    agreed = agreement(workspace.pairs.table, labels, index=workspace.index, class_vectors=workspace.class_embeddings())

    def percent(share: float | None) -> str:
        return number(None if share is None else PERCENT * share, 1)

    return AnalysisResult(
        heading=heading(plan, "Quality of the pairs"),
        text="Training tiles. Label figures use every label of the data set, including those hidden from training; "
        "nothing is chosen by them. `neighbours`: tiles with the label of most other tiles of the same snippet; "
        "`text`: tiles with the label of the class that the snippet is nearest to; `AUROC`: how well the pairing "
        "score separates these from the others.",
        header=(
            "snippets used",
            "top 1 % hold %",
            "skewness",
            "neighbours %",
            "chance %",
            "text %",
            "AUROC of the score",
        ),
        rows=(
            (
                f"{summary['snippets_used']} of {summary['snippets']}",
                percent(summary.get("hub_share")),
                number(summary.get("skewness"), 1),
                percent(agreed.get("neighbours")),
                percent(agreed.get("chance")),
                percent(agreed.get("zero_shot")),
                number(agreed.get("score_auroc"), 2),
            ),
        ),
        source=f"{workspace.pairs.artifact.folder.name}: pairs.parquet, summary.json; and the tiles' labels",
        values=({"pairs": str(workspace.pairs.artifact.file("pairs.parquet")), **summary, **agreed},),
    )


def _gain_by_score(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> AnalysisResult:
    """Gain per quarter of the test tiles, by the cosine of their first snippet."""
    c = plan.comparison
    tiles, _ = compute_hits(rows, c.baseline, c.seeds[0])
    scores = first_cosines(workspace, tiles.ids)
    paired = np.isfinite(scores)
    quarter = np.full(len(scores), _NO_PAIR, dtype=np.int64)
    if paired.any():
        edges = np.quantile(scores[paired], np.linspace(0, 1, _QUARTERS + 1)[1:-1])
        quarter[paired] = np.searchsorted(edges, scores[paired], side="right")
    file = folder / "nearest-snippet-test.parquet"
    if get_processes().main:
        columns = {"tile_id": tiles.ids.tolist(), "score": pa.array(scores, from_pandas=True), "quarter": quarter}
        with whole_file(file) as temporary:
            pq.write_table(pa.table(columns), temporary)
    bounds = {
        q: (float(scores[quarter == q].min()), float(scores[quarter == q].max()))
        for q in range(_QUARTERS)
        if (quarter == q).any()
    }
    header = [f"{low:.2f} to {high:.2f}" for low, high in bounds.values()]
    shown = list(bounds)
    if not paired.all():
        header.append(f"no pair ({int((~paired).sum())} tiles)")
        shown.append(_NO_PAIR)
    table, values = [], []
    for arm in plan.arms:
        if arm == c.baseline:
            continue
        gains, files = compute_gain(plan, rows, arm)
        means = {q: gains[quarter == q].mean() for q in shown}
        table.append((arm, *(number(PERCENT * mean, 1, signed=True) for mean in means.values())))
        for q, mean in means.items():
            low, high = bounds.get(q, (None, None))
            part = {"quarter": q, "low": low, "high": high, "tiles": int((quarter == q).sum())}
            values.append({"arm": arm, **part, "gain": float(mean), "scores": str(file), **files})
    return AnalysisResult(
        heading=heading(plan, "Gain by pairing score"),
        text=f"Accuracy minus that of {c.baseline} in points, mean over seeds, in four equal parts of the test tiles "
        "by the cosine of their first snippet under the rules of `pairing` (searched for in memory; test tiles are "
        "never paired for training). If the retrieved text itself helps, tiles with near snippets gain more than they "
        f"do by the control that distils the VLM's image embedding. {_arms_with_other_rules(plan)}Exploratory: no "
        "intervals.",
        header=("arm", *header),
        rows=tuple(table),
        source=f"predictions.parquet of the runs; predictions/{folder.name}/{file.name}",
        values=tuple(values),
    )


def _arms_with_other_rules(plan: Plan) -> str:
    """A sentence that names the arms that pair by other rules than the configuration's."""
    config, seed = plan.config, plan.comparison.seeds[0]
    arms = [arm for arm in plan.arms if resolve_arm(plan.run_config(arm, seed)).pairing != config.pairing]
    if not arms:
        return ""
    return (
        f"Arms with `pairing` keys of their own ({', '.join(arms)}) are divided by the configuration's pairing, too. "
    )


def first_cosines(workspace: Workspace, ids: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Compute the cosine of each test tile with its first snippet; NaN for a tile that the rules leave without a pair.

    Call it in all processes.

    Args:
        workspace: Its configuration holds the rules of `pairing`.
        ids: Ids of test tiles.
    """
    store = workspace.tile_store("test")
    parts = [np.empty(0)]
    for candidates, kept in search_snippets(workspace, prepare_rules(workspace), store.rows(store.positions(ids))):
        first = candidates.cosines[np.arange(len(kept)), kept.argmax(axis=1)].astype(np.float64)
        parts.append(np.where(kept.any(axis=1), first, np.nan))
    return np.concatenate(parts)


def prepare_rules(workspace: Workspace) -> Selection:
    """Prepare the rules of `pairing`; what they need to know of all tiles comes from the training tiles."""
    rules, train = workspace.config.pairing, workspace.tile_store("train")
    sources, groups = workspace.pairing_facts()
    return prepare(
        workspace.index,
        train,
        rules,
        block=rules.block,
        sources=sources,
        groups=groups,
        shown=get_processes().main,
    )


def search_snippets(
    workspace: Workspace,
    rules: Selection,
    vectors: Float32[np.ndarray, "n dim"],
    groups: Int[np.ndarray, " n"] | None = None,
) -> Iterator[tuple[Candidates, Bool[np.ndarray, "b k"]]]:
    """Search the snippets of tiles in memory, in blocks, and tell which candidates the rules keep.

    Args:
        workspace: Workspace of the tiles.
        rules: The prepared rules.
        vectors: Unit-norm tile embeddings, not yet centred.
        groups: Group numbers of training tiles as `rules.owners` counts them, for `exclude_same_group`; None for other
            tiles.
    """
    groups = np.full(len(vectors), _NO_GROUP, dtype=np.int64) if groups is None else groups
    for start in range(0, len(vectors), rules.rules.block):
        block = slice(start, start + rules.rules.block)
        candidates = find(rules, centred(vectors[block], workspace.tile_mean), groups[block], rules.rules.k)
        yield candidates, judge(candidates, rules.rules, rules.mutual) == 0
