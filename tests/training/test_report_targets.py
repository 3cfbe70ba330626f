"""Distillation targets from the other snippets and labels of a report, and the count of tiles without such a target."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_store

from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.pairing.sources import representative_rows
from clipit.stores.index import build_index
from clipit.training.arms import resolve_arm
from clipit.training.terms.distillation_targets import make_targets
from clipit.training.terms.report_targets import report_context, report_label_vectors
from clipit.training.terms.target_vectors import PairedSnippets, stored_vectors
from clipit.vectors import unit
from clipit.workspace.workspace import Workspace


@pytest.fixture
def workspace(configure: Callable[..., RunConfig]) -> Workspace:
    return Workspace(configure({"pairing.k": 2}))


def make_pairs(*positions: list[int]) -> PairedSnippets:
    table = np.array(positions)
    return PairedSnippets(table, np.ones(table.shape, dtype=np.float32))


def test_context_is_the_mean_of_the_other_snippets(workspace: Workspace) -> None:
    store = workspace.index.store
    embeddings = stored_vectors(store, workspace.index)
    ids = store.ids[:5]
    # Report A contains snippets 0, 1 (twice) and 2; B contains 2 and 3; C contains only 4.
    snippets = np.array([ids[0], ids[1], ids[1], ids[2], ids[2], ids[3], ids[4]])
    reports = np.array(["A", "A", "A", "A", "B", "B", "C"])
    rows = store.positions(ids)
    vectors = embeddings(rows)
    context = report_context(store, snippets, reports, embeddings).vectors(rows)
    assert np.allclose(context[0], unit(vectors[1] + vectors[2]), atol=1e-5)
    assert np.allclose(context[2], unit(vectors[0] + vectors[1] + vectors[3]), atol=1e-5)
    assert np.allclose(context[4], vectors[4], atol=1e-5)  # the only snippet of its report keeps its own embedding


def test_a_frequent_snippet_without_context_keeps_its_own_embedding(workspace: Workspace) -> None:
    store = workspace.index.store
    embeddings = stored_vectors(store, workspace.index)
    snippets = np.array([store.ids[0]] * 1000 + [store.ids[1], store.ids[2]])
    reports = np.array([f"r{number}" for number in range(1000)] + ["other", "other"])
    rows = store.positions(store.ids[:3])
    from_reports = report_context(store, snippets, reports, embeddings)
    assert from_reports.fell_back[rows].tolist() == [True, False, False]
    assert np.allclose(from_reports.vectors(rows)[0], embeddings(rows)[0], atol=1e-5)


def test_context_from_selected_sections(workspace: Workspace) -> None:
    store = workspace.index.store
    embeddings = stored_vectors(store, workspace.index)
    ids = store.ids[:4]
    # Report A contains snippets 0 and 1, and 2 in its diagnosis; B contains only 3, in its diagnosis.
    snippets, reports = np.array(ids), np.array(["A", "A", "A", "B"])
    rows = store.positions(ids)
    vectors = embeddings(rows)
    in_context = np.array([False, False, True, True])
    from_reports = report_context(store, snippets, reports, embeddings, in_context)
    context = from_reports.vectors(rows)
    assert np.allclose(context[0], vectors[2], atol=1e-5) and np.allclose(context[1], vectors[2], atol=1e-5)
    assert np.allclose(context[2], vectors[2], atol=1e-5) and np.allclose(context[3], vectors[3], atol=1e-5)
    assert from_reports.fell_back[rows].tolist() == [False, False, True, True], "a diagnosis is not its own context"


def test_the_error_names_a_section_that_no_report_has(configure: Callable[..., RunConfig]) -> None:
    config = resolve_arm(configure({"distillation.sections": ["diagnoses"]}, arm="report_context"))
    workspace = Workspace(config)
    with pytest.raises(DataError, match=r"(?s)section named diagnoses.*distillation\.sections.*unknown"):
        make_targets(config, workspace, workspace.tiles(config.seed))


def test_report_labels_give_class_means_without_the_label_of_the_snippets_own_report(workspace: Workspace) -> None:
    store = workspace.index.store
    n = len(store.ids)
    draws = np.random.default_rng(0)
    sides = draws.permutation(n) % 2
    clear = np.where(sides[:, None] == 0, 1.0, -1.0) * np.eye(store.dim)[0] + 0.1 * draws.standard_normal(
        (n, store.dim)
    )
    table = unit(clear.astype(np.float32))
    labels = np.where(sides == 0, "low", "high")
    groups = np.array([f"P{i}" for i in range(n)])
    targets = report_label_vectors(store, store.ids, labels, groups, lambda rows: table[rows]).vectors(np.arange(n))
    assert (np.sign(targets[:, 0]) == np.where(sides == 0, 1, -1)).all()
    # Flipping the label of a snippet's own report has no effect, because that report is excluded from the fit.
    flipped = labels.copy()
    flipped[0] = "high" if labels[0] == "low" else "low"
    flipped_targets = report_label_vectors(store, store.ids, flipped, groups, lambda rows: table[rows]).vectors(
        np.arange(n)
    )
    assert np.sign(flipped_targets[0, 0]) == np.sign(targets[0, 0])
    with pytest.raises(DataError, match=r"reports\.label_column"):
        report_label_vectors(store, store.ids, np.full(n, "low"), groups, lambda rows: table[rows])


def test_tiles_that_fall_back_to_their_snippet_are_counted(workspace: Workspace) -> None:
    store = workspace.index.store
    ids = store.ids[:4]
    embeddings = stored_vectors(store, workspace.index)
    # Report A contains snippets 0 and 1, B contains only 2, and C and D contain only 3.
    from_reports = report_context(store, ids[[0, 1, 2, 3, 3]], np.array(["A", "A", "B", "C", "D"]), embeddings)
    rows = store.positions(ids)
    assert from_reports.fell_back[rows].tolist() == [False, False, True, True]
    pairs = make_pairs([rows[0], rows[2]], [rows[2], rows[3]], [rows[3], -1], [rows[1], -1], [-1, -1])
    assert from_reports.describe_fallbacks(pairs).startswith(
        "2 of 4 tiles fell back to their snippets' own embeddings: their reports contain no other snippet "
        "that may serve as context"
    )


def test_tiles_whose_reports_cannot_be_classified_are_counted(workspace: Workspace) -> None:
    store = workspace.index.store
    embeddings = stored_vectors(store, workspace.index)
    ids = store.ids[:6]
    # Leaving out either of the two groups leaves only one label.
    labels, groups = np.array(["low", "low", "low", "high", "high", ""]), np.array(["P"] * 3 + ["Q"] * 3)
    from_reports = report_label_vectors(store, ids, labels, groups, embeddings)
    rows = store.positions(ids)
    assert from_reports.fell_back.all() and np.allclose(from_reports.vectors(rows), embeddings(rows), atol=1e-6)
    assert from_reports.unlabelled is not None and from_reports.unlabelled[rows].tolist() == [False] * 5 + [True]
    message = from_reports.describe_fallbacks(make_pairs([rows[0]], [rows[5]], [-1]))
    assert (
        message.startswith("2 of 2 tiles fell back")
        and "1 of 2 tiles has only snippets from unlabelled reports" in message
    )


def test_snippets_with_equal_embeddings_share_their_reports(tmp_path: Path) -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32))
    vectors[2] = vectors[0]
    index = build_index(tmp_path, write_store(tmp_path, ["a", "b", "twin of a", "c"], vectors), centring=False)
    embeddings = stored_vectors(index.store, index)
    snippets = np.array(["a", "b", "twin of a", "c", "a"])
    reports = np.array(["A", "A", "B", "B", "B"])  # report B contains both twins
    representatives = index.ids[representative_rows(index)[index.store.positions(snippets)]]
    assert representatives.tolist() == ["a", "b", "a", "c", "a"]
    from_reports = report_context(index.store, representatives, reports, embeddings)
    stored = embeddings(np.arange(4))
    assert np.allclose(from_reports.vectors(np.array([0]))[0], unit(stored[1] + stored[3]), atol=1e-5)
    assert np.allclose(from_reports.vectors(np.array([3]))[0], unit(stored[:1])[0], atol=1e-5), "twins are counted once"


@pytest.mark.parametrize("target", ["report_context", "report_labels"])
def test_the_reports_of_twins_are_merged_in_a_run(configure: Callable[..., RunConfig], target: str) -> None:
    config = configure({"distillation.target": target}, arm="clip_it_all")
    workspace = Workspace(config)
    assert len(workspace.index.ids) < len(workspace.index.store.ids), (
        "the small world must have snippets with equal embeddings"
    )
    targets, facts = make_targets(config, workspace, workspace.tiles(0))
    assert "of 72 tiles fell back" in facts["fallbacks"] and targets.valid.all()
