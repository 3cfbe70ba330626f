"""What a run's student is taught beside labels, made from its workspace."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32

from clipit.config.run import RunConfig
from clipit.errors import DataError, explain, shortlist
from clipit.pairing.sources import row_of_each
from clipit.prompts.prompt_set import check_classes
from clipit.runs.bags import make_bags
from clipit.runs.soft_labels import (
    Probabilities,
    _as_taught,
    _judge,
    _no_prompts,
    _zero_shot,
)
from clipit.stores.embed import Store
from clipit.tiles.tileset import TileSet
from clipit.training.active_terms import teaches_text
from clipit.training.arms import second_teacher
from clipit.training.soft_labels import soft_labels
from clipit.training.targets import (
    Chosen,
    SnippetVectors,
    Targets,
    added,
    bag_means,
    chosen_snippets,
    class_targets,
    image_targets,
    random_codes,
    random_snippets,
    shuffled,
    stored_vectors,
)
from clipit.training.teaching import REPORT_LABELS, Teaching
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class Taught:
    """The teaching, and what stands beside the scores of the run.

    Attributes:
        teaching: For the training loop.
        judge: Split -> the soft labels of its tiles, for a choice of step without labels; None without soft labels.
        facts: Costs and counts.
    """

    teaching: Teaching
    judge: Callable[[str], Probabilities] | None
    facts: dict[str, Any] = field(default_factory=dict)


def make_teaching(config: RunConfig, workspace: Workspace, tiles: TileSet, image_only: Callable[[], Path]) -> Taught:
    """All that the configuration asks for.

    Args:
        config: Its arm resolved.
        workspace: Of this configuration.
        tiles: With the labels that the run sees.
        image_only: Trains (or finds) the image-only run of the same seed and gives its folder.

    Raises:
        DataError: The classes of the prompt set are not those of the tiles, or nothing can be taught.
    """
    if workspace.prompts is not None and teaches_text(config):
        check_classes(workspace.prompts, tiles.classes)  # the export needs them: not only after the training
    facts: dict[str, Any] = {}
    targets = second = None
    if config.distillation.tiles != "none":
        targets = _targets(config, workspace, tiles, facts)
        facts["distilled_tiles"] = _distilled_tiles(config, tiles.of_split("train").labels, targets)
        if config.second_vlm is not None:
            of_second: dict[str, Any] = {}
            second = _targets(config, workspace.for_config(second_teacher(config)), tiles, of_second)
            facts |= {f"second_{name}": value for name, value in of_second.items()}
    judge = _judge(config, workspace, tiles, image_only)
    soft = None if judge is None else soft_labels(judge("train"), config.soft_labels)
    prototypes = _prototypes(workspace) if config.prompt_bags.weight > 0 else None
    bags = None
    if config.bags.weight > 0:
        bags = make_bags(config, workspace, tiles.of_split("train"))
        facts["bags"] = bags.counts
    return Taught(Teaching(targets, second, soft, prototypes, bags), _as_taught(config, judge), facts)


def _distilled_tiles(config: RunConfig, labels: np.ndarray, targets: Targets) -> str:
    """How many of the tiles that should be distilled have something to be distilled to.

    Raises:
        DataError: None has.
    """
    wanted = labels >= 0 if config.distillation.tiles == "labelled" else np.ones(len(labels), dtype=np.bool_)
    taught = int((wanted & targets.valid).sum())
    if not taught or (config.student.warm_start and not ((labels >= 0) & targets.valid).any()):
        raise DataError(
            explain(
                f"none of the {int(wanted.sum())} tiles to be distilled has a pair (for warm_start: no labelled one)",
                where="distillation.tiles and pairing",
                fix="loosen the pairing (threshold, margin, mutual), or distil all tiles: distillation.tiles=all",
            )
        )
    return f"{taught} of {int(wanted.sum())}"


def _prototypes(workspace: Workspace) -> Float32[np.ndarray, "classes dim"]:
    found = workspace.class_embeddings()
    if found is None:
        raise _no_prompts("prompt_bags.weight")
    return found


def _targets(config: RunConfig, workspace: Workspace, tiles: TileSet, facts: dict[str, Any]) -> Targets:
    """One vector per training tile, as `distillation.target` says."""
    d, train = config.distillation, tiles.of_split("train")
    if d.target == "image":
        return image_targets(train.ids, workspace.tile_store("train"), workspace.tile_mean)
    if d.target == "class_prompts":
        likely = _zero_shot(workspace, "train", config.soft_labels.centred)
        return class_targets(likely, _prototypes(workspace))
    store = workspace.text_store(d.word_drop, config.seed) if d.word_drop else workspace.index.store
    chosen = chosen_snippets(train.ids, workspace.pairs, store)
    if d.target == "shuffled_text":
        chosen = shuffled(chosen, config.seed)
    elif d.target == "random_text":
        chosen = random_snippets(chosen, len(store.ids), config.seed)
    vectors = _snippet_vectors(config, workspace, store, chosen, train, facts)
    targets = bag_means(chosen, vectors, store.dim)
    if d.target in ("text_and_image", "report_labels_and_image"):
        return added(targets, image_targets(train.ids, workspace.tile_store("train"), workspace.tile_mean))
    return targets


def _snippet_vectors(
    config: RunConfig, workspace: Workspace, store: Store, chosen: Chosen, train: TileSet, facts: dict[str, Any]
) -> SnippetVectors:
    """What stands for a snippet: its embedding, or something made of it."""
    from clipit.training.report_targets import report_context, report_label_vectors

    d, own = config.distillation, stored_vectors(store, workspace.index)
    if d.target == "random_codes":
        return random_codes(store, config.seed)
    if d.target == "report_context" or d.target in REPORT_LABELS:
        sources = pq.read_table(workspace.snippets.file("snippet_sources.parquet"))
        named = np.asarray(sources.column("snippet_id").to_pylist(), dtype=np.str_)
        index = workspace.index  # pairs name one of several snippets with equal embeddings: it has the sources of all
        snippet_ids = index.ids[row_of_each(index)[index.store.positions(named)]]
        report_ids = np.asarray(sources.column("report_id").to_pylist(), dtype=np.str_)
        if d.target == "report_context":
            made = report_context(store, snippet_ids, report_ids, own, _told(config, sources))
        else:
            made = report_label_vectors(store, snippet_ids, *workspace.report_labels(report_ids), own)
        facts["fallbacks"] = made.account(chosen)
        return made.vectors
    if d.text == "frozen":
        return own
    from clipit.training.text_side import fit_adapter, fit_text_lora, labelled_snippets

    if d.text == "adapter":
        positions, labels = labelled_snippets(chosen, train.labels)
        adapted = fit_adapter(own, positions, labels, store.dim, config.seed)
    else:
        adapted = fit_text_lora(
            workspace.vlm,
            workspace.snippet_texts(),
            store,
            workspace.index.mean,
            chosen,
            train.labels,
            config.lora,
            config.seed,
        )
    facts["text_side"] = adapted.cost
    return adapted.vectors


def _told(config: RunConfig, sources: pa.Table) -> Bool[np.ndarray, "_"]:
    """Which sources of snippets may be context: of the sections asked for, and of the organs that pairing allows.

    Raises:
        DataError: No report has such a section.
    """
    counts = np.ones(len(sources), dtype=np.bool_)
    if config.distillation.sections:
        there = sources.column("section").to_pylist()
        counts &= np.isin(np.asarray(there, dtype=np.str_), config.distillation.sections)
        if not counts.any():
            raise DataError(
                explain(
                    f"no snippet stands in a section called {shortlist(config.distillation.sections)}",
                    where="distillation.sections",
                    fix=f"name some of: {shortlist(sorted(set(there)))}",
                )
            )
    if config.pairing.organs:
        wanted = {organ.casefold() for organ in config.pairing.organs}
        counts &= np.array([str(organ).casefold() in wanted for organ in sources.column("organ").to_pylist()])
    return counts
