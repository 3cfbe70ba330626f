"""Build the target of each training tile from `distillation.target` and `distillation.text`."""

from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Shaped

from clipit.config.run import RunConfig
from clipit.errors import DataError, shortlist
from clipit.output_files.whole_files import text_array
from clipit.pairing.leaks import patient_of
from clipit.pairing.sources import representative_rows
from clipit.stores.embed import Store
from clipit.tiles.tileset import TileSet
from clipit.training.terms.class_prompts import required_class_embeddings, zero_shot
from clipit.training.terms.report_targets import report_context, report_label_vectors
from clipit.training.terms.target_vectors import (
    PairedSnippets,
    SnippetVectors,
    Targets,
    class_targets,
    draw_random_snippets,
    image_targets,
    mean_targets,
    paired_snippets,
    random_codes,
    shuffle_snippets,
    stored_vectors,
    sum_targets,
)
from clipit.training.terms.text_side import fit_adapter, fit_text_lora, labelled_snippets
from clipit.workspace.workspace import Workspace


def make_targets(config: RunConfig, workspace: Workspace, tiles: TileSet) -> tuple[Targets, dict[str, Any]]:
    """Build one target per training tile, and return them with entries for training.json.

    Args:
        config: Run configuration, with its arm resolved.
        workspace: Workspace with stores, pairs and VLM.
        tiles: All tiles, with the labels that the run may use.
    """
    d, train = config.distillation, tiles.of_split("train")
    if d.target == "image":
        return image_targets(train.ids, workspace.tile_store("train"), workspace.tile_mean), {}
    if d.target == "class_prompts":
        probabilities = zero_shot(workspace, "train", centre=config.soft_labels.centred)
        return class_targets(probabilities, required_class_embeddings(workspace, "distillation.target")), {}
    store = workspace.text_store(d.word_drop, config.seed) if d.word_drop else workspace.index.store
    paired = paired_snippets(train.ids, workspace.pairs, store)
    if d.target == "shuffled_text":
        paired = shuffle_snippets(paired, config.seed)
    elif d.target == "random_text":
        paired = draw_random_snippets(paired, len(store.ids), config.seed)
    vectors_of, facts = _snippet_vectors(config, workspace, store, paired, train)
    targets = mean_targets(paired, vectors_of, store.dim)
    if d.target in ("text_and_image", "report_labels_and_image"):
        targets = sum_targets(targets, image_targets(train.ids, workspace.tile_store("train"), workspace.tile_mean))
    return targets, facts


def _snippet_vectors(
    config: RunConfig, workspace: Workspace, store: Store, paired: PairedSnippets, train: TileSet
) -> tuple[SnippetVectors, dict[str, Any]]:
    """Return the function that looks up snippet vectors (stored or derived), and entries for training.json."""
    d, stored = config.distillation, stored_vectors(store, workspace.index)
    if d.target == "random_codes":
        return random_codes(store, config.seed), {}
    if d.target in ("report_context", "report_labels", "report_labels_and_image"):
        sources = workspace.snippets.table("snippet_sources.parquet")
        ids = np.asarray(sources.column("snippet_id").to_pylist(), dtype=np.str_)
        index = workspace.index  # one snippet represents all snippets with equal embeddings, and gets all their reports
        snippet_ids = index.ids[representative_rows(index)[index.store.positions(ids)]]
        report_ids = text_array(sources.column("report_id").to_pylist())
        if d.target == "report_context":
            from_reports = report_context(store, snippet_ids, report_ids, stored, _in_context(config, sources))
        else:
            from_reports = report_label_vectors(store, snippet_ids, *_labels_and_groups(workspace, report_ids), stored)
        return from_reports.vectors, {"fallbacks": from_reports.describe_fallbacks(paired)}
    if d.text == "adapter":
        positions, labels = labelled_snippets(paired, train.labels)
        adapted = fit_adapter(stored, positions, labels, store.dim, config.seed)
    elif d.text == "lora":
        texts, mean = workspace.snippet_texts(), workspace.index.mean
        adapted = fit_text_lora(workspace.vlm, texts, store, mean, paired, train.labels, config.lora, config.seed)
    else:
        return stored, {}
    return adapted.vectors, {"text_side": adapted.cost}


def _in_context(config: RunConfig, sources: pa.Table) -> Bool[np.ndarray, "_"]:
    """Return the mask of the snippet sources that may serve as context: configured sections and organs only.

    Raises:
        DataError: No snippet comes from any of the configured sections.
    """
    allowed = np.ones(len(sources), dtype=np.bool_)
    if config.distillation.sections:
        sections = sources.column("section").to_pylist()
        allowed &= np.isin(np.asarray(sections, dtype=np.str_), config.distillation.sections)
        if not allowed.any():
            raise DataError(
                f"no snippet comes from a section named {shortlist(config.distillation.sections)}",
                where="distillation.sections",
                fix=f"use some of: {shortlist(sorted(set(sections)))}",
            )
    if config.pairing.organs:
        organs = {organ.casefold() for organ in config.pairing.organs}
        allowed &= np.array([str(organ).casefold() in organs for organ in sources.column("organ").to_pylist()])
    return allowed


def _labels_and_groups(
    workspace: Workspace, report_ids: Shaped[np.ndarray, "_"]
) -> tuple[Shaped[np.ndarray, "_"], Shaped[np.ndarray, "_"]]:
    """Look up the label of each report ("" if unlabelled) and its patient (the report's id if unknown)."""
    known = {r.report_id: (r.label or "", patient_of(r) or r.report_id) for r in workspace.reports.reports}
    rows = [known[report_id] for report_id in report_ids.tolist()]
    labels, groups = [label for label, _ in rows], [group for _, group in rows]
    return text_array(labels), text_array(groups)
