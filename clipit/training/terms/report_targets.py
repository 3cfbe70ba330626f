"""Targets that add corpus information to a retrieved snippet: the rest of its reports, or the report labels.

A retrieved snippet is a function of the VLM's image embedding and a fixed corpus. These targets add information from
outside the embedding: which findings occur together in a report, and the labels of the reports.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from clipit.errors import DataError, counted, counted_of, shortlist
from clipit.evaluation.logistic import fit_logistic
from clipit.stores.embed import Store
from clipit.training.terms.target_vectors import PairedSnippets, SnippetVectors
from clipit.vectors import unit

_FOLDS = 5

REPORT_LABELS = ("report_labels", "report_labels_and_image")
"""Values of `distillation.target` that use the reports' own labels."""


@dataclass(frozen=True)
class ReportVectors:
    """Snippet vectors computed from the reports.

    Attributes:
        vectors: Function from positions in the text store to vectors.
        fell_back: Mask of the snippets that keep their own embedding, because the reports add no information.
        reason: Reason for falling back, for `describe_fallbacks`.
        unlabelled: Mask of the snippets that occur only in unlabelled reports; None if labels play no role.
    """

    vectors: SnippetVectors
    fell_back: Bool[np.ndarray, "s"]
    reason: str
    unlabelled: Bool[np.ndarray, "s"] | None = None

    def describe_fallbacks(self, paired: PairedSnippets) -> str:
        """State how many tiles fell back to their snippets' own embeddings.

        Args:
            paired: Snippets of each tile; a tile is counted if all of its snippets fell back.
        """
        fell = _count_tiles(paired, self.fell_back, "fell", "fell")
        text = f"{fell} back to their snippets' own embeddings: {self.reason}"
        if self.unlabelled is not None:
            text += (
                f"; {_count_tiles(paired, self.unlabelled, 'has', 'have')} only snippets from unlabelled reports; "
                "these snippets are classified like the others"
            )
        return text


def _count_tiles(paired: PairedSnippets, snippets: Bool[np.ndarray, "s"], one: str, several: str) -> str:
    """Format `N of M tiles` and a verb: tiles whose snippets are all in the mask, out of the tiles with any snippet."""
    exists = paired.positions >= 0
    all_masked = (snippets[np.maximum(paired.positions, 0)] | ~exists).all(axis=1) & paired.valid
    return counted_of(int(all_masked.sum()), int(paired.valid.sum()), f"tile {one}", f"tiles {several}")


def report_context(
    store: Store,
    snippet_ids: np.ndarray,
    report_ids: np.ndarray,
    vectors_of: SnippetVectors,
    in_context: Bool[np.ndarray, "_"] | None = None,
) -> ReportVectors:
    """Compute, for each snippet, the mean of the other snippets in its reports; its own vector if there are no others.

    Args:
        snippet_ids: Snippet id of each (snippet, report) entry. Snippets with equal embeddings share one id (the one
            used in pairs), so that their reports are merged, and no such snippet is context for another.
        report_ids: Report id of each entry.
        vectors_of: Function from positions to the snippets' own vectors.
        in_context: Mask of the entries that may be context (by section or organ); None for all.
    """
    positions = store.positions(snippet_ids)
    stored = vectors_of(np.arange(len(store.ids)))
    names, reports = np.unique(report_ids, return_inverse=True)
    entries = np.stack([positions, reports], axis=1)
    pairs = np.unique(entries, axis=0)  # a sentence may occur twice in one report
    context_pairs = pairs if in_context is None else np.unique(entries[in_context], axis=0)
    totals = np.zeros((len(names), store.dim), dtype=np.float32)
    np.add.at(totals, context_pairs[:, 1], stored[context_pairs[:, 0]])
    context = np.zeros_like(stored)
    np.add.at(context, pairs[:, 0], totals[pairs[:, 1]])
    np.subtract.at(context, context_pairs[:, 0], stored[context_pairs[:, 0]])  # a snippet is not its own context
    # The difference of sums is never exactly 0, so others are counted: those of all its reports, without its own.
    sizes = np.bincount(context_pairs[:, 1], minlength=len(names))
    others = np.bincount(pairs[:, 0], sizes[pairs[:, 1]], minlength=len(stored))
    others -= np.bincount(context_pairs[:, 0], minlength=len(stored))
    without_context = (others < 0.5) | (np.linalg.norm(context, axis=1) < 1e-6)
    context = np.where(without_context[:, None], stored, unit(context))
    reason = "their reports contain no other snippet that may serve as context"
    return ReportVectors(_lookup(context), without_context, reason)


def report_label_vectors(
    store: Store, snippet_ids: np.ndarray, labels: np.ndarray, groups: np.ndarray, vectors_of: SnippetVectors
) -> ReportVectors:
    """Compute a vector in the joint space for each snippet from a text classifier's prediction of the report label.

    A logistic regression from snippets to the labels of their reports is cross-fitted in five folds, divided by group,
    so that a report's label never affects the predictions for snippets of its own group. If a snippet occurs in several
    groups, the predictions of the classifiers fitted without each group's fold are averaged. The vector is the
    normalised sum over labels of p(label | snippet) times the mean vector of that label's snippets. It is the snippet's
    own vector if no classifier could be fitted because the other folds contain fewer than two labels.

    Args:
        snippet_ids: Snippet id of each (snippet, report) entry, as for `report_context`.
        labels: Label of each entry's report; "" if unknown, in which case the entry is not used for fitting.
        groups: Group of each entry's report.
        vectors_of: Function from positions to the snippets' own vectors.

    Raises:
        DataError: The reports have fewer than two labels, or fewer than two groups.
    """
    known = labels != ""
    names = np.unique(labels[known])
    if len(names) < 2 or len(np.unique(groups[known])) < 2:
        raise DataError(
            f"the reports have {counted(len(names), 'distinct label')} in "
            f"{counted(len(np.unique(groups[known])), 'group')} ({shortlist(names.tolist())}); a classifier needs two "
            "of each",
            where="reports.label_column",
            fix="name a column with the reports' labels, or choose a different distillation.target",
        )
    stored = vectors_of(np.arange(len(store.ids)))
    positions = store.positions(snippet_ids)
    code = np.searchsorted(names, np.where(known, labels, names[0]))
    means = unit(np.stack([stored[positions[known & (code == c)]].mean(axis=0) for c in range(len(names))]))
    group_names, group = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(group_names))[group] % min(_FOLDS, len(group_names))
    probabilities = np.zeros((len(store.ids), len(names)), dtype=np.float64)
    n_predictions = np.zeros(len(store.ids))
    for held_out in range(int(fold.max()) + 1):
        fit, predicted = known & (fold != held_out), np.unique(positions[fold == held_out])
        if len(np.unique(code[fit])) < 2:
            continue
        model = fit_logistic(stored[positions[fit]], code[fit])
        probabilities[np.ix_(predicted, model.classes_)] += model.predict_proba(stored[predicted])
        n_predictions[predicted] += 1
    probabilities /= np.maximum(n_predictions, 1)[:, None]
    vectors = unit((probabilities @ means).astype(np.float32))
    vectors = np.where((n_predictions == 0)[:, None], stored, vectors)
    unlabelled = np.ones(len(store.ids), dtype=np.bool_)
    unlabelled[positions[known]] = False
    reason = "the reports of other groups have fewer than two labels"
    return ReportVectors(_lookup(vectors), np.asarray(n_predictions == 0, dtype=np.bool_), reason, unlabelled)


def _lookup(table: Float32[np.ndarray, "s dim"]) -> SnippetVectors:
    return lambda positions: np.asarray(table[positions], dtype=np.float32)
