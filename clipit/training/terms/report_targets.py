"""Targets that add what the corpus knows of a retrieved snippet: the rest of its reports, or the reports' labels.

A retrieved snippet is a function of the VLM's image embedding and a fixed corpus. These targets add information from
outside: which findings occur in one report, and how whole reports were labelled.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

from clipit.errors import DataError, shortlist
from clipit.stores.embed import Store, unit
from clipit.training.terms.target_vectors import PairedSnippets, SnippetVectors

_FOLDS = 5


REPORT_LABELS = ("report_labels", "report_labels_and_image")
"""Values of `distillation.target` that read the reports' own labels."""


@dataclass(frozen=True)
class ReportVectors:
    """Snippet vectors computed from the reports.

    Attributes:
        vectors: Positions in the text store to vectors.
        fell_back: Snippets about which the reports add nothing: their vector is their own embedding.
        reason: What these lack, for `describe_fallbacks`.
        unlabelled: Snippets of reports without a label; the classifier's prediction for them is used all the same.
    """

    vectors: SnippetVectors
    fell_back: Bool[np.ndarray, "s"]
    reason: str
    unlabelled: Bool[np.ndarray, "s"] | None = None

    def describe_fallbacks(self, paired: PairedSnippets) -> str:
        """Count the tiles whose target is their snippets' own embedding.

        Args:
            paired: Snippets of each tile; a tile counts when this holds for all of its snippets.
        """
        text = (
            f"{_count_tiles(paired, self.fell_back)} tiles fell back to their snippets' own embeddings: {self.reason}"
        )
        if self.unlabelled is not None:
            text += (
                f"; {_count_tiles(paired, self.unlabelled)} tiles have only snippets of reports without a label, "
                "which are classified as the others are"
            )
        return text


def _count_tiles(paired: PairedSnippets, snippets: Bool[np.ndarray, "s"]) -> str:
    """`N of M`: tiles all of whose snippets are among `snippets`, of the tiles that have any."""
    exists = paired.positions >= 0
    all_of_them = (snippets[np.maximum(paired.positions, 0)] | ~exists).all(axis=1) & paired.valid
    return f"{int(all_of_them.sum())} of {int(paired.valid.sum())}"


def report_context(
    store: Store,
    snippet_ids: np.ndarray,
    report_ids: np.ndarray,
    vectors_of: SnippetVectors,
    in_context: Bool[np.ndarray, "_"] | None = None,
) -> ReportVectors:
    """Per snippet, the mean of the other snippets of its reports; its own vector where there are none.

    Args:
        store: Text store.
        snippet_ids: Snippet id of each (snippet, report) entry. Of snippets with equal embeddings it is the one that
            pairs name, so that their reports are joined and none is the context of another.
        report_ids: Report id of each entry.
        vectors_of: The snippets' own vectors.
        in_context: Entries that may be context (of some sections, of some organs); None: all.
    """
    positions = store.positions(snippet_ids)
    stored = vectors_of(np.arange(len(store.ids)))
    names, reports = np.unique(report_ids, return_inverse=True)
    entries = np.stack([positions, reports], axis=1)
    pairs = np.unique(entries, axis=0)  # a sentence may stand twice in one report
    context_pairs = pairs if in_context is None else np.unique(entries[in_context], axis=0)
    totals = np.zeros((len(names), store.dim), dtype=np.float32)
    np.add.at(totals, context_pairs[:, 1], stored[context_pairs[:, 0]])
    context = np.zeros_like(stored)
    np.add.at(context, pairs[:, 0], totals[pairs[:, 1]])
    np.subtract.at(context, context_pairs[:, 0], stored[context_pairs[:, 0]])  # a snippet is no context of itself
    alone = np.linalg.norm(context, axis=1) < 1e-6
    context = np.where(alone[:, None], stored, unit(context))

    return ReportVectors(_lookup(context), alone, "their reports hold no other such snippet")


def report_label_vectors(
    store: Store, snippet_ids: np.ndarray, labels: np.ndarray, groups: np.ndarray, vectors_of: SnippetVectors
) -> ReportVectors:
    """Per snippet, the prediction of a text-only classifier of the reports' labels, as a point of the joint space.

    A logistic regression from a snippet to its report's label is fitted in five folds over groups, so that a report's
    label never enters the prediction for snippets of that report or of its group. A snippet of several groups is
    predicted once without each of their folds, and the predictions are averaged. The vector is the sum over labels of
    p(label | snippet) times the mean vector of that label's snippets, normalised; the snippet's own vector where no
    classifier could be fitted, because the other folds have fewer than two labels.

    Args:
        store: Text store.
        snippet_ids: Snippet id of each (snippet, report) entry, as for `report_context`.
        labels: Label of each entry's report; "" where unknown, left out of the fit.
        groups: Group of each entry's report.
        vectors_of: The snippets' own vectors.

    Raises:
        DataError: The reports have fewer than two labels, or fewer than two groups.
    """
    from sklearn.linear_model import LogisticRegression

    known = labels != ""
    names = np.unique(labels[known])
    if len(names) < 2 or len(np.unique(groups[known])) < 2:
        raise DataError(
            f"the reports have {len(names)} different labels in {len(np.unique(groups[known]))} groups "
            f"({shortlist(names.tolist())}); a classifier of them needs two of each",
            where="reports.label_column",
            fix="name a column with the reports' labels, or choose another distillation.target",
        )
    stored = vectors_of(np.arange(len(store.ids)))
    positions = store.positions(snippet_ids)
    code = np.searchsorted(names, np.where(known, labels, names[0]))
    means = unit(np.stack([stored[positions[known & (code == c)]].mean(axis=0) for c in range(len(names))]))
    group_names, group = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(group_names))[group] % min(_FOLDS, len(group_names))
    probabilities = np.zeros((len(store.ids), len(names)), dtype=np.float64)
    times = np.zeros(len(store.ids))
    for held_out in range(int(fold.max()) + 1):
        fit, predicted = known & (fold != held_out), np.unique(positions[fold == held_out])
        if len(np.unique(code[fit])) < 2:
            continue
        model = LogisticRegression(max_iter=1000).fit(stored[positions[fit]], code[fit])
        probabilities[np.ix_(predicted, model.classes_)] += model.predict_proba(stored[predicted])
        times[predicted] += 1
    probabilities /= np.maximum(times, 1)[:, None]
    vectors = unit((probabilities @ means).astype(np.float32))
    vectors = np.where((times == 0)[:, None], stored, vectors)
    unlabelled = np.ones(len(store.ids), dtype=np.bool_)
    unlabelled[positions[known]] = False

    reason = "the reports of other groups have fewer than two labels"
    return ReportVectors(_lookup(vectors), np.asarray(times == 0, dtype=np.bool_), reason, unlabelled)


def _lookup(table: Float32[np.ndarray, "s dim"]) -> SnippetVectors:
    return lambda positions: np.asarray(table[positions], dtype=np.float32)
