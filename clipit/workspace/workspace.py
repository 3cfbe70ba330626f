"""Cached inputs of a configuration: tiles, reports, VLM, stores, index and pairs."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Shaped

from clipit.config.file import ConfigFile, run_section
from clipit.config.load import names_tiles
from clipit.config.run import ReportsConfig, RunConfig, TilesConfig, TrainingConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import ConfigError, counted
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.output_files.artifacts import Artifact, fingerprint, write_json
from clipit.output_files.whole_files import write_parquet
from clipit.pairing.cases import Cases, join_cases, join_patients
from clipit.pairing.pair_statistics import summary_text
from clipit.pairing.pairs import Pairs, pair_tiles
from clipit.prompts.prompt_set import PromptSet, load_prompt_bag, load_prompts
from clipit.reports.build import Snippets, build_snippets, snippet_keys
from clipit.reports.rules import RuleSet, label_report
from clipit.stores.approximate import search_settings
from clipit.stores.approximate_build import check_key
from clipit.stores.embed import Store, embed_prompts, embed_texts, embed_tiles
from clipit.stores.index import Index, build_index, has_faiss
from clipit.tiles.hidden_labels import hide_labels, with_all_labels
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.resized_tiles import resize_tiles, resized_folder, worth_caching
from clipit.tiles.tileset import TileSet
from clipit.workspace.adapted_patients import CHECKED, note_adapted_vlms
from clipit.workspace.leak_policy import enforce_on_reports, enforce_on_shifted, enforce_on_tiles, with_report_policy
from clipit.workspace.near_duplicates import warn_about_near_duplicates
from clipit.workspace.snippet_filter import filter_prompt_bags, score_morphology
from clipit.workspace.tile_reading import (
    artefacts_of,
    cache_key,
    check_shifted,
    note_many_classes,
    read_configured,
    read_with_overview,
    tile_warnings,
    with_kept_size,
)

if TYPE_CHECKING:
    from clipit.models.preprocess import Preprocess
    from clipit.models.vlm import VLM
    from clipit.reports.readers import Reports

logger = logging.getLogger(__name__)

_SECTIONS = ("output", "tiles", "reports", "leaks", "prompts", "vlm", "second_vlm", "backbone", "pairing")
"""Keys of the configuration that determine a workspace; the models, because the notes of its tiles depend on them."""
_MODELS = ("vlm", "second_vlm", "backbone")


class Workspace:
    """Tiles, reports, VLM, stores, index and pairs of a configuration.

    Everything is read or built on first use and then cached: artefacts on disk, the rest in memory. Runs that differ
    only in arm, seed or optimisation can share a workspace, because only the labels depend on the seed.
    """

    def __init__(self, config: RunConfig | ConfigFile, shared: dict[str, Any] | None = None) -> None:
        """Create the workspace without reading or building anything.

        Args:
            config: Configuration.
            shared: In-memory cache that the workspaces of several configurations share; see `for_config`.
        """
        self.config = config = run_section(config)
        self.split_reports = False  # whether this process split the reports into snippets and logged the summary
        self.root = artefacts_of(config)
        self._shared = {} if shared is None else shared
        self._shared.setdefault(cache_key("workspace", config, *_SECTIONS), self)

    def for_config(self, config: RunConfig) -> "Workspace":
        """Return the workspace of a different configuration; inputs that both need are loaded only once."""
        workspace: Workspace | None = self._shared.get(cache_key("workspace", config, *_SECTIONS))
        return Workspace(config, self._shared) if workspace is None else workspace

    def apart(self, config: RunConfig) -> "Workspace":
        """Return a workspace for an adaptation's own VLM; it uses this workspace's cache, but does not add to it.

        Everything that the returned workspace loads, such as the weights of the VLM, is released with it.
        """
        return Workspace(config, {**self._shared, CHECKED: True})

    def cached(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the value of `make`, computed once per key and cached in the shared cache."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def tiles(self, seed: int) -> TileSet:
        """Return all tiles, with the labels that this seed keeps."""
        key = f"{seed} {cache_key('labelled', self.config, 'tiles', 'leaks', *_MODELS)}"
        tiles: TileSet = self.cached(key, lambda: hide_labels(self.all_tiles, self.config.tiles.labels, seed))
        return tiles

    @cached_property
    def all_tiles(self) -> TileSet:
        """All tiles with all labels, except those that `leaks` drops. For training, use `tiles`, which hides labels."""
        key = cache_key("checked", with_all_labels(self.config), "tiles", "leaks")

        def check() -> TileSet:
            kept = enforce_on_tiles(self.tiles_as_read, self.config)
            return note_many_classes(warn_about_near_duplicates(kept, self.config))

        tiles: TileSet = self.cached(key, check)
        return tiles if CHECKED in self._shared else note_adapted_vlms(tiles, self.config, self.cached)

    @property
    def listed_tiles(self) -> TileSet:
        """All tiles of the source, before images are decoded and leaks are dropped; for cheap checks."""
        return self._read_tiles(decode=False)

    @cached_property
    def tiles_as_read(self) -> TileSet:
        """All tiles of the data set, including leaks."""
        return self._read_tiles()

    def _read_tiles(self, *, decode: bool = True) -> TileSet:
        return read_configured(self.config, self.cached, lambda: self.prompts, root=self.root, decode=decode)

    def log_once(self, text: str, level: int = logging.INFO) -> None:
        """Log a text, unless a workspace with the same cache has already logged it."""
        self.cached(f"logged {text}", lambda: logger.log(level, text))

    def shifted_tiles(self, name: str, section: TilesConfig) -> TileSet:
        """Read a shifted test set without the tiles that `leaks` drops. Must be called by all processes.

        Args:
            name: Name of the set under `comparison.shifted`, for error messages.
            section: Tile configuration of the set.

        Raises:
            DataError: The set has no test tiles or different classes, or shares patients or images with training.
        """

        def check() -> TileSet:
            tests = read_with_overview(streamed, self.cached, root=self.root, shifted=name).of_split("test")
            run_tiles = self.all_tiles
            check_shifted(tests, run_tiles.classes, f"comparison.shifted.{name}")
            seen = run_tiles.select(run_tiles.splits != "test")
            return enforce_on_shifted(tests, self.tiles_as_read, seen, name, self.config)

        streamed = with_kept_size(section, self.config)
        content = fingerprint(streamed.model_dump(mode="json"))
        own = cache_key("checked", with_all_labels(self.config), "tiles", "leaks", "prompts")
        key = f"shifted {name} {content} {own}"
        unit = f"{name!r} tile"
        return note_adapted_vlms(self.cached(key, check), self.config, self.cached, unit)

    def pixels(self, split: str, preprocess: "Preprocess") -> PixelSource:
        """Return the preprocessed images of a split."""
        return self.pixels_of(self.all_tiles.of_split(split), preprocess)

    def pixels_of(self, tiles: TileSet, preprocess: "Preprocess") -> PixelSource:
        """Return the preprocessed images of tiles, cached so that several runs in one process read them once.

        Tiles with the same images share a source; the labels, groups and classes of its `tiles` may be those of others.
        """
        t = self.config.training
        source: PixelSource = self.cached(
            f"pixels {tiles.fingerprint} {preprocess.hash}",
            lambda: PixelSource(tiles, preprocess.pixels, t.cache_tiles, t.threads),
        )
        return source

    def cache_pixels(self, split: str, preprocess: "Preprocess", training: TrainingConfig, reads: float) -> None:
        """Cache the resized tiles of a split on disk as `training.cache_tiles` requires.

        Must be called by all processes.

        Args:
            reads: Mean number of times that training reads a tile.
        """
        tiles, size, mode = self.all_tiles.of_split(split), preprocess.size, training.cache_tiles
        folder = resized_folder(self.root, tiles, size, preprocess.hash)
        total, budget = len(self.all_tiles), training.cache_gigabytes
        if not len(tiles) or mode not in ("disk", "auto"):
            return
        if mode == "auto" and not worth_caching(len(tiles), total, size, reads=reads, gigabytes=budget, folder=folder):
            return
        pixels = self.cached(
            f"resized {folder.name}",
            lambda: resize_tiles(self.root, tiles, preprocess.pixels, size, preprocess.hash, threads=training.threads),
        )
        self.pixels(split, preprocess).use_resized(pixels)

    def warn_about_view(self, model: str, expected: float | None, preprocess: "Preprocess") -> None:
        """Warn, once for all runs, if a model crops the tiles, or was trained at a different resolution."""
        if names_tiles(self.config):
            for warning in tile_warnings(self.tiles_as_read, self.cached, expected, model, preprocess):
                self.log_once(warning, logging.WARNING)

    @cached_property
    def prompts(self) -> PromptSet | None:
        """The prompt set for zero-shot prediction; None if not configured."""
        return load_prompts(self.config.prompts) if self.config.prompts else None

    @cached_property
    def reports(self) -> "Reports":
        """The reports, except those that `leaks` drops."""
        config = with_report_policy(with_all_labels(self.config))
        reports: Reports = self.cached(
            cache_key("kept reports", config, "tiles", "reports", "leaks", "prompts"),
            lambda: self._keep_reports(self._reports_as_read),
        )
        return reports

    def _keep_reports(self, reports: "Reports") -> "Reports":
        if names_tiles(self.config):
            return enforce_on_reports(reports, lambda: self.tiles_as_read, self.config)
        logger.info("note: without tiles, reports of validation and test patients are unknown and cannot be dropped")
        return reports

    @cached_property
    def _reports_as_read(self) -> "Reports":
        from clipit.reports.readers import read_reports

        reports: Reports = self.cached(
            cache_key("reports", self.config, "reports"), lambda: read_reports(self.reports_config)
        )
        return reports

    @cached_property
    def cases(self) -> Cases:
        """The training tiles with the reports of their patients."""
        return join_cases(self._reports_as_read.reports, self.all_tiles)

    def cases_of(self, owners: Shaped[np.ndarray, " n"], splits: Shaped[np.ndarray, " n"]) -> Cases:
        """Join rows such as slides, given by patient and split, with the reports of their patients."""
        return join_patients(self._reports_as_read.reports, owners, splits)

    def rule_classes(self, rules: RuleSet, cases: Cases) -> dict[str, str]:
        """Return the class that a rule set assigns to each report of these cases, by report id; cached for all arms."""
        key, reports = f"rules {cases.fingerprint} {rules.hash}", [r for listed in cases.reports for r in listed]
        class_names: dict[str, str] = self.cached(
            key, lambda: {r.report_id: label_report(r.text, rules).class_name for r in reports}
        )
        return class_names

    @property
    def reports_config(self) -> ReportsConfig:
        """The section `reports`.

        Raises:
            ConfigError: No reports are configured.
        """
        if self.config.reports is None:
            raise ConfigError(
                "this command needs reports, but none are configured", where="reports", fix="set reports.path"
            )
        return self.config.reports

    @cached_property
    def snippets(self) -> Artifact:
        """The snippets of the reports, each within the context length of the VLM's text tower."""
        reports = self.reports

        def make(folder: Path) -> dict[str, Any]:
            if not get_processes().main:
                return {}
            logger.info(f"splitting {counted(len(reports.reports), 'report')} into snippets")
            built = self.write_snippets(folder, reports)
            write_json(folder / "account.json", built.summary.as_dict())
            self.split_reports = True
            return {"reports": len(reports.reports), "snippets": built.snippets.num_rows}

        snippets = build_once(self.root, "snippets", self.snippet_inputs(), make)
        if self.split_reports:  # commands that reuse the snippets do not log their summary again
            logger.info(self._format_summary(snippets))
        return snippets

    def write_snippets(self, folder: Path, reports: "Reports") -> Snippets:
        """Split reports into snippets, filter them as configured, and write them to an artefact's folder."""
        section, vlm = self.reports_config, self.vlm
        similarity = (
            (lambda texts: score_morphology(texts, self.encode, section)) if filter_prompt_bags(section) else None
        )
        built = build_snippets(reports, section, vlm.count_tokens, vlm.context_length, similarity)
        for name, table in (("snippets", built.snippets), ("snippet_sources", built.sources)):
            write_parquet(folder / f"{name}.parquet", table)
        return built

    def snippet_inputs(self, reports: "Reports | None" = None) -> dict[str, Any]:
        """Return everything that determines the snippets of all reports, or of the given ones."""
        section = self.reports_config
        return {
            "reports": (reports or self.reports).fingerprint,
            "config": snippet_keys(section),
            "vlm": self.vlm.fingerprint,
            **{
                key: fingerprint(list(load_prompt_bag(name).texts)) for key, name in filter_prompt_bags(section).items()
            },
        }

    def snippet_summary(self) -> str:
        """Summarise how many sentences were split, and how many snippets were merged and dropped."""
        return self._format_summary(self.snippets)

    def _format_summary(self, snippets: Artifact) -> str:
        """Format the summary with the current path of the reports, which may have changed since the build."""
        from clipit.reports.snippet_summary import read_summary

        return read_summary(snippets.file("account.json")).text(self.reports)

    def snippet_texts(self) -> dict[str, str]:
        """Return the text of each snippet by id."""
        table = self.snippets.table("snippets.parquet", ["snippet_id", "text"])
        return dict(zip(table.column("snippet_id").to_pylist(), table.column("text").to_pylist(), strict=True))

    @cached_property
    def vlm(self) -> "VLM":
        """The frozen VLM."""
        from clipit.models.vlm import load_vlm

        load = partial(load_vlm, self.config.vlm, get_processes().device)
        vlm: VLM = self.cached(cache_key("vlm", self.config, "vlm"), load)
        self.warn_about_view(vlm.name, vlm.expected_mpp, vlm.preprocess)
        return vlm

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """Encode prompts as unit vectors; long texts are truncated with a warning."""
        return embed_prompts(self.vlm, texts, self.config.vlm.batch_size)

    def class_embeddings(self) -> Float32[np.ndarray, "classes dim"] | None:
        """Compute unit-norm class embeddings from the prompts, in the tiles' class order, centred like the snippets."""
        if self.prompts is None:
            return None
        return prompt_embeddings(self.prompts, self.encode, self.text_mean, self.all_tiles.classes)

    def text_store(self, word_drop: float = 0.0, seed: int = 0) -> Store:
        """Return the embeddings of the snippets, optionally with words dropped at random."""
        size = self.config.vlm.batch_size
        return embed_texts(self.root, self.vlm, self.snippets, batch_size=size, word_drop=word_drop, seed=seed)

    def tile_store(self, split: str) -> Store:
        """Return the embeddings of the tiles of a split."""
        return embed_tiles(
            self.root,
            self.vlm,
            self.all_tiles.of_split(split),
            batch_size=self.config.vlm.batch_size,
            threads=self.config.training.threads,
        )

    @cached_property
    def text_mean(self) -> Float32[np.ndarray, "dim"] | None:
        """Mean embedding of the snippets; None without centring or without reports."""
        return self.index.mean if self.config.reports is not None else None

    @cached_property
    def tile_mean(self) -> Float32[np.ndarray, "dim"] | None:
        """Mean embedding of the training tiles; None without centring or without reports."""
        centring = self.config.pairing.centring and self.config.reports is not None
        return self.tile_store("train").mean() if centring else None

    @cached_property
    def index(self) -> Index:
        """The index of the snippets."""
        p = self.config.pairing
        count = int(self.snippets.manifest.facts["snippets"])
        if p.index != "Flat" and count and has_faiss():  # checked before the snippets are embedded
            check_key(p.index, self.vlm.joint_dim, count)
        return build_index(
            self.root, self.text_store(), key=p.index, centring=p.centring, backend=p.backend, search=search_settings(p)
        )

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of the training tiles; tiles of other splits are never paired."""
        p = self.config.pairing
        sources, groups = self.rule_inputs()
        store = self.tile_store("train")
        return pair_tiles(self.root, self.index, store, k=p.k, block=p.block, rules=p, sources=sources, groups=groups)

    def rule_inputs(self) -> tuple[pa.Table | None, dict[str, str] | None]:
        """Return the snippets' sources and the training tiles' groups, each None unless a pairing rule needs it."""
        p, snippets = self.config.pairing, self.snippets  # errors in reports are raised before tiles are embedded
        needs_groups = p.exclude_same_group or p.reports != "any"
        sources = snippets.table("snippet_sources.parquet") if needs_groups or p.organs else None
        if not needs_groups:
            return sources, None
        tiles = self.all_tiles.of_split("train")
        return sources, dict(zip(tiles.ids.tolist(), tiles.groups.tolist(), strict=True))

    def pairing_summary(self) -> str:
        """Summarise the pairs as text."""
        return summary_text(self.pairs.summary, self.snippet_texts())
