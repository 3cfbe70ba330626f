"""Quality of the pairs, and gain in accuracy as a function of the pairing score."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Float32, Int, Shaped

from clipit.comparison.analyses.result import AnalysisResult, compute_gain, compute_hits, heading
from clipit.comparison.plan import Plan
from clipit.comparison.statistics import PERCENT
from clipit.distributed import get_processes
from clipit.errors import counted
from clipit.evaluation.score_row import ScoreRow
from clipit.output_files.whole_files import write_parquet
from clipit.pairing.pair_rules import Candidates, Selection, find_candidates, judge_candidates, prepare_selection
from clipit.pairing.pair_statistics import agreement
from clipit.reporting.tables import number
from clipit.training.arms import resolve_arm
from clipit.vectors import centred
from clipit.workspace.workspace import Workspace

_QUARTILES = 4
_NO_PAIR = -1  # quartile of a tile without a pair
_NO_GROUP = -1


def analyse_pairing(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> list[AnalysisResult]:
    """Measure the quality of the pairs, and the gain by pairing score; empty without reports."""
    if plan.config.reports is None:
        return []
    return [_pair_quality(plan, workspace), _gain_by_score(plan, workspace, rows, folder)]


def _pair_quality(plan: Plan, workspace: Workspace) -> AnalysisResult:
    """Measure hubness and label agreement of the training tiles' pairs, using every label of the data set."""
    summary, train = workspace.pairs.summary, workspace.all_tiles.of_split("train")
    labels = dict(zip(train.ids.tolist(), train.truth.tolist(), strict=True))
    label_agreement = agreement(
        workspace.pairs.table, labels, index=workspace.index, class_vectors=workspace.class_embeddings()
    )

    def percent(share: float | None) -> str:
        return number(None if share is None else PERCENT * share, 1)

    labelled = counted(label_agreement["labelled"], "labelled tile")
    return AnalysisResult(
        heading=heading(plan, "Quality of the pairs"),
        text="Computed on training tiles. Label agreement uses every label of the data set, including those hidden "
        "from training, and is not used to select anything. All columns but `skewness` count the first snippet of each "
        "tile. `hubness`: fraction of tiles paired with the most-used 1% of the snippets; `neighbours`: fraction of "
        "tiles whose label is the majority label of the other tiles paired with the same snippet, computed for the "
        f"{label_agreement.get('neighbours_tiles', 0):,} of {labelled} that share their snippet; `chance`: fraction of "
        "the most frequent label; `text`: fraction of tiles whose label is the class nearest to their snippet; "
        "`AUROC`: how well the pairing score separates these tiles from the others.",
        header=(
            "snippets used",
            "hubness %",
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
                percent(label_agreement.get("neighbours")),
                percent(label_agreement.get("chance")),
                percent(label_agreement.get("zero_shot")),
                number(label_agreement.get("score_auroc"), 2),
            ),
        ),
        source=f"{workspace.pairs.artifact.folder.name}: pairs.parquet, summary.json; and the tiles' labels",
        values=({"pairs": str(workspace.pairs.artifact.file("pairs.parquet")), **summary, **label_agreement},),
    )


def _gain_by_score(plan: Plan, workspace: Workspace, rows: Sequence[ScoreRow], folder: Path) -> AnalysisResult:
    """Compute the gain in each quartile of the test tiles, ranked by cosine with their first snippet."""
    c = plan.comparison
    tiles, _ = compute_hits(rows, c.baseline, c.seeds[0])
    scores = first_cosines(workspace, tiles.ids)
    paired = np.isfinite(scores)
    quartile = np.full(len(scores), _NO_PAIR, dtype=np.int64)
    if paired.any():
        edges = np.quantile(scores[paired], np.linspace(0, 1, _QUARTILES + 1)[1:-1])
        quartile[paired] = np.searchsorted(edges, scores[paired], side="right")
    file = folder / "nearest-snippet-test.parquet"
    if get_processes().main:
        columns = {"tile_id": tiles.ids.tolist(), "score": pa.array(scores, from_pandas=True), "quartile": quartile}
        write_parquet(file, pa.table(columns))
    bounds = {
        q: (float(scores[quartile == q].min()), float(scores[quartile == q].max()))
        for q in range(_QUARTILES)
        if (quartile == q).any()
    }
    header = [f"{low:.2f} to {high:.2f}" for low, high in bounds.values()]
    quartiles = list(bounds)
    if not paired.all():
        header.append(f"no pair ({counted(int((~paired).sum()), 'tile')})")
        quartiles.append(_NO_PAIR)
    table, values = [], []
    for arm in plan.arms:
        if arm == c.baseline:
            continue
        gains, files = compute_gain(plan, rows, arm)
        means = {q: gains[quartile == q].mean() for q in quartiles}
        table.append((arm, *(number(PERCENT * mean, 1, signed=True) for mean in means.values())))
        for q, mean in means.items():
            low, high = bounds.get(q, (None, None))
            quartile_facts = {"quartile": q, "low": low, "high": high, "tiles": int((quartile == q).sum())}
            values.append({"arm": arm, **quartile_facts, "gain": float(mean), "scores": str(file), **files})
    return AnalysisResult(
        heading=heading(plan, "Gain by pairing score"),
        text=f"Difference in accuracy from {c.baseline}, in points, mean over seeds, in each quartile "
        "of the test tiles, ranked by cosine with their first snippet under the `pairing` rules (retrieved in "
        "memory; test tiles are never paired for training). If the retrieved text itself helps, tiles with close "
        "snippets should gain more than they do under the control that distils the VLM's image embedding. "
        f"{_arms_with_other_rules(plan)}Exploratory: there are no intervals.",
        header=("arm", *header),
        rows=tuple(table),
        source=f"predictions.parquet of the runs; predictions/{folder.name}/{file.name}",
        values=tuple(values),
    )


def _arms_with_other_rules(plan: Plan) -> str:
    """Return a sentence that names the arms with other pairing rules; "" if there are none."""
    config, seed = plan.config, plan.comparison.seeds[0]
    arms = [arm for arm in plan.arms if resolve_arm(plan.run_config(arm, seed)).pairing != config.pairing]
    if not arms:
        return ""
    return f"The same quartiles are used for arms with different `pairing` keys ({', '.join(arms)}). "


def first_cosines(workspace: Workspace, ids: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Compute the cosine of each test tile with its first snippet; NaN if the rules drop all candidates.

    Must be called by all processes.

    Args:
        workspace: Workspace whose configuration sets the `pairing` rules.
        ids: Ids of test tiles.
    """
    store = workspace.tile_store("test")
    cosines = [np.empty(0)]
    for candidates, kept in search_snippets(workspace, prepare_rules(workspace), store.rows(store.positions(ids))):
        first = candidates.cosines[np.arange(len(kept)), kept.argmax(axis=1)].astype(np.float64)
        cosines.append(np.where(kept.any(axis=1), first, np.nan))
    return np.concatenate(cosines)


def prepare_rules(workspace: Workspace) -> Selection:
    """Prepare the `pairing` rules, with statistics over the training tiles."""
    rules, train = workspace.config.pairing, workspace.tile_store("train")
    sources, groups = workspace.rule_inputs()
    return prepare_selection(
        workspace.pairs.as_searched(workspace.index),
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
    """Retrieve candidate snippets in memory, block by block, with a mask of those that the rules keep.

    Args:
        workspace: Workspace with the mean of the training tiles, for centring.
        vectors: Unit-norm tile embeddings before centring, one row per tile.
        groups: Group number of each training tile as in `rules.owners`, for `exclude_same_group`; None for tiles of
            other splits.
    """
    groups = np.full(len(vectors), _NO_GROUP, dtype=np.int64) if groups is None else groups
    for start in range(0, len(vectors), rules.rules.block):
        block = slice(start, start + rules.rules.block)
        candidates = find_candidates(rules, centred(vectors[block], workspace.tile_mean), groups[block], rules.rules.k)
        yield candidates, judge_candidates(candidates, rules.rules, rules.mutual) == 0
