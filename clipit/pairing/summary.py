"""What a pairing looks like: scores, how unevenly snippets are used, examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def summarise(pairs: pa.Table, n_snippets: int) -> dict[str, Any]:
    """Figures of a pairing, computed on the nearest snippet of each tile.

    Args:
        pairs: tile_id, rank, snippet_id, score.
        n_snippets: Snippets that could have been chosen.

    Returns:
        Score quantiles; distinct snippets used; the share of tiles that the most used 1 % of all snippets hold
        (hubness); the ten most used snippets; ten examples spread over the scores.
    """
    first = np.asarray(pairs.column("rank")) == 0
    tiles = np.asarray(pairs.column("tile_id"))[first]
    snippets = np.asarray(pairs.column("snippet_id"))[first].astype(np.str_)
    scores = np.asarray(pairs.column("score"))[first]
    if not len(tiles):
        return {"tiles": 0, "snippets": n_snippets, "snippets_used": 0}
    names, counts = np.unique(snippets, return_counts=True)
    order = np.lexsort((names, -counts))
    top = max(1, n_snippets // 100)
    by_score = np.argsort(-scores, kind="stable")
    examples = by_score[np.linspace(0, len(by_score) - 1, min(10, len(by_score))).astype(int)]
    return {
        "tiles": len(tiles),
        "snippets": n_snippets,
        "snippets_used": len(names),
        "hub_share": float(counts[order[:top]].sum() / len(tiles)),
        "hub_snippets": top,
        "score_quantiles": {str(q): float(np.quantile(scores, q)) for q in _QUANTILES},
        "most_used": [{"snippet_id": str(names[i]), "tiles": int(counts[i])} for i in order[:10]],
        "examples": [
            {"tile_id": str(tiles[i]), "snippet_id": str(snippets[i]), "score": float(scores[i])} for i in examples
        ],
    }


def summary_text(summary: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The figures as lines for a person.

    Args:
        summary: From `summarise`.
        texts: Snippet id -> text.
    """
    if not summary["tiles"]:
        return "no tile was paired"
    scores = summary["score_quantiles"]
    lines = [
        f"{summary['tiles']} tiles paired with {summary['snippets_used']} of {summary['snippets']} snippets",
        f"scores (cosine): 5 % {scores['0.05']:.3f}, median {scores['0.5']:.3f}, 95 % {scores['0.95']:.3f}",
        f"hubness: the {summary['hub_snippets']} most used snippets (1 %) hold {summary['hub_share']:.1%} of the tiles",
        "most used:",
    ]
    lines += [f"  {row['tiles']:6d} tiles  {texts[row['snippet_id']][:90]}" for row in summary["most_used"][:5]]
    lines.append("examples, from the best score to the worst:")
    lines += [
        f"  {row['score']:.3f}  {row['tile_id']}  {texts[row['snippet_id']][:90]}" for row in summary["examples"][:5]
    ]
    return "\n".join(lines)
