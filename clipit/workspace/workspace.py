"""What a run is made from: built when first asked for, opened when it exists already."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Float32

from clipit.artifacts import Artifact, fingerprint, whole_file, write_json
from clipit.config.effects import select_keys
from clipit.config.run import LabelsConfig, ReportsConfig, RunConfig, TilesConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import ConfigError, DataError, shortlist
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.pairing.pairs import Pairs, pair_tiles
from clipit.pairing.summary import summary_text
from clipit.prompts.prompt_set import PromptSet, load_bag, load_prompts
from clipit.stores.embed import Store, centred, embed_texts, embed_tiles, unit
from clipit.stores.index import Index, build_index
from clipit.tiles.labels import hide_labels
from clipit.tiles.load import mpp_warning, read_tiles
from clipit.tiles.pixel_source import PixelSource
from clipit.tiles.splits import patients
from clipit.tiles.tileset import TileSet
from clipit.workspace.leak_policy import checked_reports, checked_shifted, checked_tiles

if TYPE_CHECKING:
    from clipit.models.preprocess import Preprocess
    from clipit.models.vlm import VLM
    from clipit.reports.readers import Reports

logger = logging.getLogger(__name__)

_SECTIONS = ("output", "tiles", "reports", "leaks", "prompts", "vlm", "pairing")
"""Keys of the configuration that decide what the workspace are."""


class Workspace:
    """Tiles, VLM, snippets, stores, index and pairs of a configuration.

    Runs that differ only in arm, seed or optimisation may share one object: what it makes does not depend on these
    (labels do, and are given per seed).
    """

    def __init__(self, config: RunConfig, shared: dict[str, Any] | None = None) -> None:
        """Nothing is read or built yet.

        Args:
            config: Its tiles, reports, prompts, vlm and pairing sections count.
            shared: What workspace of other configurations have in memory; see `serving`.
        """
        self.config = config
        self.root = config.output / "artefacts"
        self._shared = {} if shared is None else shared
        self._shared.setdefault(_key("workspace", config, _SECTIONS), self)

    def for_config(self, config: RunConfig) -> "Workspace":
        """Workspace for another configuration; what both have in common is read and loaded once."""
        found: Workspace | None = self._shared.get(_key("workspace", config, _SECTIONS))
        return Workspace(config, self._shared) if found is None else found

    def _once(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, kept for all workspace that share a memory."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def tiles(self, seed: int) -> TileSet:
        """All tiles, with the labels that this seed keeps."""
        key = f"{seed} {_key('labelled', self.config, ('tiles', 'leaks'))}"
        found: TileSet = self._once(key, lambda: hide_labels(self.all_tiles, self.config.tiles.labels, seed))
        return found

    @cached_property
    def all_tiles(self) -> TileSet:
        """All tiles with all their labels: for what no training sees, and where labels do not matter.

        Less those that stand on both sides of a split, when `leaks` says so.
        """
        found: TileSet = self._once(
            _key("checked", self.config, ("tiles", "leaks")),
            lambda: checked_tiles(self._tiles_as_read, self.config),
        )
        return found

    @cached_property
    def _tiles_as_read(self) -> TileSet:
        """All tiles of the data set, leaks and all."""
        # Which labels are kept makes no difference here, unless none may be read.
        unlabelled = self.config.tiles.labels.kind == "none"
        tiles = self.config.tiles.model_copy(update={"labels": LabelsConfig(kind="none" if unlabelled else "all")})
        key = f"tiles {fingerprint(tiles.model_dump(mode='json'))}"
        found: TileSet = self._once(key, lambda: self._told_of(read_tiles(tiles, check=False)))
        if not found.classes and self.prompts is not None:  # no label is known: the prompts say what to tell apart
            return replace(found, classes=tuple(self.prompts.classes))
        return found

    def _told_of(self, tiles: TileSet) -> TileSet:
        """The same tiles; it is said how many images were left out."""
        if tiles.quarantined:
            count, total = len(tiles.quarantined), len(tiles) + len(tiles.quarantined)
            logger.info(f"note: {count} of {total} images cannot be decoded, left out: {shortlist(tiles.quarantined)}")
        return tiles

    def shifted_tiles(self, name: str, section: TilesConfig) -> TileSet:
        """The test tiles of a further test set of the comparison, less those that training has seen (`leaks`).

        Args:
            name: Name of the set under `comparison.shifted`, for messages.
            section: Its tiles.

        Raises:
            DataError: It has none, or other classes, or patients or images of training are among them.
        """
        content = fingerprint(section.model_dump(mode="json"))
        key = f"shifted {name} {content} {_key('checked', self.config, ('tiles', 'leaks', 'prompts'))}"
        found: TileSet = self._once(key, lambda: self._checked_shifted(name, section))
        return found

    def _checked_shifted(self, name: str, section: TilesConfig) -> TileSet:
        """Read and checked; called by all processes."""
        key = f"tiles {fingerprint(section.model_dump(mode='json'))}"
        found: TileSet = self._once(key, lambda: self._told_of(read_tiles(section)))
        tests = found.of_split("test")
        self._check_patients(name, tests)
        if not len(tests):
            raise DataError(
                "no test tiles in a shifted set", where=f"comparison.shifted.{name}", fix="name its split test"
            )
        ours = self.all_tiles.classes
        if tests.classes != ours:
            raise DataError(
                f"a shifted set has the classes {', '.join(tests.classes)}; the tiles have {', '.join(ours)}",
                where=f"comparison.shifted.{name}",
                fix="name its classes in its class_map (its label: ours), and all of ours in its classes",
            )
        own = self.all_tiles
        learnt = own.select(own.splits != "test")
        return checked_shifted(tests, self._tiles_as_read, learnt, name, self.config)

    def _check_patients(self, name: str, tests: TileSet) -> None:
        """Refuse (or tell of) patients of a shifted test set that training or validation has seen."""
        own = self.all_tiles
        learnt = own.select(own.splits != "test")
        shared = set(patients(tests.groups, tests.ids).tolist()) & set(patients(learnt.groups, learnt.ids).tolist())
        shared -= {""}
        if not shared or self.config.leaks.policy == "off":
            return
        what = f"{len(shared)} patients of the shifted set are among those of training: {shortlist(sorted(shared))}"
        if self.config.leaks.policy == "note":
            logger.info(f"note: comparison.shifted.{name}: {what}")
            return
        raise DataError(what, where=f"comparison.shifted.{name}", fix="take them out of one side, or leaks.policy=note")

    def pixels(self, split: str, preprocess: "Preprocess") -> PixelSource:
        """The tiles of a split as a model wants them; kept, so that runs in one program read them once."""
        return self.other_pixels(self.all_tiles.of_split(split), preprocess)

    def other_pixels(self, tiles: TileSet, preprocess: "Preprocess") -> PixelSource:
        """The same for any tiles."""
        t = self.config.training
        found: PixelSource = self._once(
            f"pixels {tiles.fingerprint} {preprocess.hash}",
            lambda: PixelSource(tiles, preprocess.pixels, t.cache_tiles, t.threads),
        )
        return found

    @cached_property
    def vlm(self) -> "VLM":
        """The frozen VLM."""
        from clipit.models.vlm import load_vlm

        def load() -> "VLM":
            """From disk, with a word about the tiles' resolution."""
            vlm = load_vlm(self.config.vlm, get_processes().device)
            self.warn_of_mpp(vlm.name, vlm.expected_mpp, vlm.preprocess)
            return vlm

        vlm: VLM = self._once(_key("vlm", self.config, ("vlm",)), load)
        return vlm

    def warn_of_mpp(self, model: str, expected: float | None, preprocess: "Preprocess") -> None:
        """Tell the user when tiles reach a model at another resolution than it was trained at."""
        if expected is not None and len(self.all_tiles):
            resize = preprocess.resize_to / min(self.all_tiles.read(0).size)
            warning = mpp_warning(self.all_tiles, expected, model, resize=resize)
            if warning:
                logger.info(f"warning: {warning}")

    def encode(self, texts: Sequence[str]) -> Float32[np.ndarray, "n dim"]:
        """Texts (prompts) to unit vectors; those over the budget are cut, and it is said."""
        size = self.config.vlm.batch_size
        cut, tokens = self.vlm.cut_tokens(texts)
        if cut:
            logger.info(
                f"warning: {cut} of {len(texts)} texts exceed the {self.vlm.context_length} tokens of {self.vlm.name}: "
                f"{tokens} tokens were cut"
            )
        parts = [
            self.vlm.encode_texts(list(texts[start : start + size]), truncate=True).cpu().numpy()
            for start in range(0, len(texts), size)
        ]
        return unit(np.concatenate(parts))

    def _reports_config(self) -> ReportsConfig:
        if self.config.reports is None:
            raise ConfigError("this needs reports, and none are configured", where="reports", fix="set reports.path")
        return self.config.reports

    @cached_property
    def reports(self) -> "Reports":
        """The reports as they were read, less those that may not be used (`leaks`)."""
        from clipit.reports.readers import read_reports

        read = read_reports(self._reports_config())
        return checked_reports(read, lambda: self._tiles_as_read, self.config)

    @cached_property
    def snippets(self) -> Artifact:
        """The snippets of the reports, cut for this VLM's text tower."""
        reports, reports_config = self.reports, self._reports_config()

        def make(folder: Path) -> dict[str, Any]:
            """Cut, merge and filter, in the main process alone."""
            from clipit.reports.build import build_snippets

            if not get_processes().main:
                return {}
            logger.info(f"cutting {len(reports.reports):,} reports into snippets")
            similarity = self._morphology if reports_config.morphology_prompts else None
            made = build_snippets(reports, reports_config, self.vlm.count_tokens, self.vlm.context_length, similarity)
            for name, table in (("snippets", made.snippets), ("snippet_sources", made.sources)):
                with whole_file(folder / f"{name}.parquet") as temporary:
                    pq.write_table(table, temporary)
            write_json(folder / "account.json", made.account.as_dict())
            with whole_file(folder / "account.txt") as temporary:
                temporary.write_text(made.account.text() + "\n", encoding="utf-8")
            return {"reports": len(reports.reports), "snippets": made.snippets.num_rows}

        snippets = build_once(self.root, "snippets", self.snippet_inputs(), make)
        logger.info(snippets.file("account.txt").read_text(encoding="utf-8").rstrip())
        return snippets

    def snippet_inputs(self) -> dict[str, Any]:
        """All that the snippets depend on."""
        config = self._reports_config()
        return {
            "reports": self.reports.fingerprint,
            "config": select_keys(config, "results"),
            "vlm": self.vlm.fingerprint,
            **{key: _bag_hash(name) for key, name in _bags(config).items()},
        }

    def report_labels(self, report_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label and group of the report of each entry; "" where there is no label, the report itself without group."""
        known = {r.report_id: (r.label or "", r.group or r.report_id) for r in self.reports.reports}
        found = [known[report] for report in report_ids.tolist()]
        return np.array([label for label, _ in found], dtype=np.str_), np.array([g for _, g in found], dtype=np.str_)

    def account_text(self) -> str:
        """What became of the reports, for people."""
        return self.snippets.file("account.txt").read_text(encoding="utf-8").rstrip()

    def _morphology(self, texts: Sequence[str]) -> Float[np.ndarray, "n"]:
        """Similarity to the morphology bag minus similarity to the boilerplate bag, around the texts' own mean.

        Text embeddings lie in a narrow cone; without centring, any two of them are similar.
        """
        reports = self.config.reports
        if reports is None or not texts:
            return np.zeros(len(texts))
        embedded = self.encode(texts)
        mean = embedded.mean(axis=0)
        nearest = [
            (centred(embedded, mean) @ centred(self.encode(load_bag(name).texts), mean).T).max(axis=1)
            for name in _bags(reports).values()
        ]
        return np.asarray(nearest[0] - nearest[1], dtype=np.float64)

    def text_store(self, word_drop: float = 0.0, seed: int = 0) -> Store:
        """Embeddings of the snippets, or of the snippets with words left out."""
        size = self.config.vlm.batch_size
        return embed_texts(self.root, self.vlm, self.snippets, batch_size=size, word_drop=word_drop, seed=seed)

    @cached_property
    def index(self) -> Index:
        """The index over the snippets."""
        p = self.config.pairing
        return build_index(
            self.root, self.text_store(), key=p.index, centring=p.centring, backend=p.backend, nprobe=p.nprobe
        )

    def tile_store(self, split: str) -> Store:
        """The VLM's embeddings of a split's tiles."""
        return embed_tiles(self.root, self.vlm, self.all_tiles.of_split(split), batch_size=self.config.vlm.batch_size)

    @cached_property
    def pairs(self) -> Pairs:
        """The pairs of the training tiles (no other tile is ever paired)."""
        p = self.config.pairing
        sources, groups = self.pairing_facts()
        store = self.tile_store("train")
        return pair_tiles(self.root, self.index, store, k=p.k, block=p.block, rules=p, sources=sources, groups=groups)

    def pairing_facts(self) -> tuple[pa.Table | None, dict[str, str] | None]:
        """What a pairing rule may need: the sources of the snippets, and the group of each training tile."""
        p = self.config.pairing
        wanted = bool(p.organs) or p.exclude_same_group
        sources = pq.read_table(self.snippets.file("snippet_sources.parquet")) if wanted else None
        if not p.exclude_same_group:
            return sources, None
        tiles = self.all_tiles.of_split("train")
        return sources, dict(zip(tiles.ids.tolist(), tiles.groups.tolist(), strict=True))

    @cached_property
    def tile_mean(self) -> Float32[np.ndarray, "dim"] | None:
        """Mean of the training tiles' embeddings when centring is on; None without reports, as `text_mean`."""
        centring = self.config.pairing.centring and self.config.reports is not None
        return self.tile_store("train").mean() if centring else None

    @cached_property
    def text_mean(self) -> Float32[np.ndarray, "dim"] | None:
        """Mean of the snippets' embeddings when centring is on and there are reports."""
        return self.index.mean if self.config.reports is not None else None

    @cached_property
    def prompts(self) -> PromptSet | None:
        """The prompt set for zero-shot, if one is configured."""
        return load_prompts(self.config.prompts) if self.config.prompts else None

    def class_embeddings(self) -> Float32[np.ndarray, "classes dim"] | None:
        """One unit vector per class from the prompts, in the tiles' class order, centred as the snippets are."""
        if self.prompts is None:
            return None
        return prompt_embeddings(self.prompts, self.encode, self.text_mean, self.all_tiles.classes)

    def snippet_texts(self) -> dict[str, str]:
        """Snippet id -> text."""
        table = pq.read_table(self.snippets.file("snippets.parquet"), columns=["snippet_id", "text"])
        return dict(zip(table.column("snippet_id").to_pylist(), table.column("text").to_pylist(), strict=True))

    def pairing_text(self) -> str:
        """The pairing summary for people."""
        return summary_text(self.pairs.summary, self.snippet_texts())


def _key(what: str, config: RunConfig, sections: Sequence[str]) -> str:
    """Stands for these sections of a configuration in the shared memory."""
    return what + fingerprint([config.model_dump(mode="json", include={name}) for name in sections])


def _bags(config: ReportsConfig) -> dict[str, str]:
    """Names of the two prompt bags of the snippet filter, what to keep first; empty without a filter."""
    if config.morphology_prompts is None or config.boilerplate_prompts is None:
        return {}
    return {"morphology": config.morphology_prompts, "boilerplate": config.boilerplate_prompts}


def _bag_hash(name: str) -> str:
    return fingerprint(list(load_bag(name).texts))
