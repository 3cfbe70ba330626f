"""Targets that bring something from outside of the retrieved snippet: its report, or the reports' own labels.

A retrieved snippet is a function of the VLM's image embedding and a fixed corpus. What is built here adds what the
corpus knows beside it: which findings occur in one report, and what a whole report was called.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int

from clipit.errors import DataError, explain, shortlist
from clipit.stores.embed import Store, unit
from clipit.training.targets import Chosen, SnippetVectors

_FOLDS = 5


@dataclass(frozen=True)
class FromReports:
    """Vectors made from what the reports know of each snippet.

    Attributes:
        vectors: By row of the text store.
        fell_back: Snippets of which the reports know nothing more: their vector is their own.
        why: What they lack, for the account.
        unlabelled: Snippets that stand in no labelled report; what the classifier says of them is used all the same.
    """

    vectors: SnippetVectors
    fell_back: Bool[np.ndarray, "s"]
    why: str
    unlabelled: Bool[np.ndarray, "s"] | None = None

    def account(self, chosen: Chosen) -> str:
        """How many tiles are taught their snippets themselves, for people.

        Args:
            chosen: The snippets of each tile; a tile of several counts when this holds for all of them.
        """
        text = f"{_tiles(chosen, self.fell_back)} tiles fell back to their snippets themselves: {self.why}"
        if self.unlabelled is not None:
            text += (
                f"; {_tiles(chosen, self.unlabelled)} tiles have snippets of reports without a label alone, "
                "which are judged as the others are"
            )
        return text


def _tiles(chosen: Chosen, snippets: Bool[np.ndarray, "s"]) -> str:
    """`N of M`: tiles all of whose snippets are among these, of the tiles that have any."""
    there = chosen.positions >= 0
    all_of_them = (snippets[np.maximum(chosen.positions, 0)] | ~there).all(axis=1) & chosen.valid
    return f"{int(all_of_them.sum())} of {int(chosen.valid.sum())}"


def report_context(
    store: Store,
    snippet_ids: np.ndarray,
    report_ids: np.ndarray,
    vectors_of: SnippetVectors,
    told: Bool[np.ndarray, "_"] | None = None,
) -> FromReports:
    """For each snippet the mean of the other snippets of the reports that hold it; itself where there are none.

    Args:
        store: Text store.
        snippet_ids: One entry per source of a snippet: the id that pairs name (of snippets with equal embeddings the
            one that stands for them all, so that their reports are joined and none is the context of another) ...
        report_ids: ... and the report that it came from.
        vectors_of: The snippets' own vectors.
        told: Entries that may be context (of some sections, of some organs); None: all.
    """
    positions = store.positions(snippet_ids)
    own = vectors_of(np.arange(len(store.ids)))
    names, reports = np.unique(report_ids, return_inverse=True)
    entries = np.stack([positions, reports], axis=1)
    pairs = np.unique(entries, axis=0)  # a sentence may stand twice in one report
    context_pairs = pairs if told is None else np.unique(entries[told], axis=0)
    totals = np.zeros((len(names), store.dim), dtype=np.float32)
    np.add.at(totals, context_pairs[:, 1], own[context_pairs[:, 0]])
    context = np.zeros_like(own)
    np.add.at(context, pairs[:, 0], totals[pairs[:, 1]])
    np.subtract.at(context, context_pairs[:, 0], own[context_pairs[:, 0]])  # a snippet is no context of itself
    alone = np.linalg.norm(context, axis=1) < 1e-6
    context = np.where(alone[:, None], own, unit(context))

    def vectors(positions: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        """Looked up."""
        return np.asarray(context[positions], dtype=np.float32)

    return FromReports(vectors, alone, "no other snippet stands there in their reports")


def report_label_vectors(
    store: Store, snippet_ids: np.ndarray, labels: np.ndarray, groups: np.ndarray, vectors_of: SnippetVectors
) -> FromReports:
    """What a text-only classifier, trained on the reports' labels, says of a snippet, as a point of the joint space.

    A logistic regression from snippet to its report's label is fitted on reports of other groups (five folds): a
    report's label never judges the snippets of that report or of its group. A snippet of several groups' reports is
    judged once without each of their folds, and the mean of these answers is taken. The target is the sum over labels
    of p(label | snippet) times the mean vector of that label's snippets, normalised; the snippet itself where no
    classifier could be fitted, because the other folds know fewer than two labels.

    Args:
        store: Text store.
        snippet_ids: One entry per source of a snippet: the id that pairs name, as for `report_context` ...
        labels: ... its report's label ("": unknown, left out of the fit) ...
        groups: ... and its report's group.
        vectors_of: The snippets' own vectors.

    Raises:
        DataError: The reports have fewer than two labels, or fewer than two groups.
    """
    from sklearn.linear_model import LogisticRegression

    known = labels != ""
    names = np.unique(labels[known])
    if len(names) < 2 or len(np.unique(groups[known])) < 2:
        raise DataError(
            explain(
                f"the reports have {len(names)} different labels in {len(np.unique(groups[known]))} groups "
                f"({shortlist(names.tolist())}); a classifier of them needs two of each",
                where="reports.label_column",
                fix="name a column with the reports' labels, or choose another distillation.target",
            )
        )
    own = vectors_of(np.arange(len(store.ids)))
    positions = store.positions(snippet_ids)
    code = np.searchsorted(names, np.where(known, labels, names[0]))
    means = unit(np.stack([own[positions[known & (code == c)]].mean(axis=0) for c in range(len(names))]))
    group_names, group = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(group_names))[group] % min(_FOLDS, len(group_names))
    probabilities = np.zeros((len(store.ids), len(names)), dtype=np.float64)
    times = np.zeros(len(store.ids))
    for held_out in range(int(fold.max()) + 1):
        fit, judged = known & (fold != held_out), np.unique(positions[fold == held_out])
        if len(np.unique(code[fit])) < 2:
            continue
        model = LogisticRegression(max_iter=1000).fit(own[positions[fit]], code[fit])
        probabilities[np.ix_(judged, model.classes_)] += model.predict_proba(own[judged])
        times[judged] += 1
    probabilities /= np.maximum(times, 1)[:, None]
    made = unit((probabilities @ means).astype(np.float32))
    made = np.where((times == 0)[:, None], own, made)
    unlabelled = np.ones(len(store.ids), dtype=np.bool_)
    unlabelled[positions[known]] = False

    def vectors(positions: Int[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape dim"]:
        """Looked up."""
        return np.asarray(made[positions], dtype=np.float32)

    why = "the reports of other groups have fewer than two labels"
    return FromReports(vectors, np.asarray(times == 0, dtype=np.bool_), why, unlabelled)
