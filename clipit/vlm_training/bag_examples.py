"""Examples from bags: training tiles with their nearest tiles, paired snippets and prompts, as in CPLIP."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.errors import ConfigError, DataError, counted
from clipit.output_files.artifacts import fingerprint
from clipit.pairing.leaks import SeenTiles, patient_of
from clipit.patients import patients
from clipit.prompts.dictionary import MAX_TEXTS, load_dictionary
from clipit.training.terms.bag_members import make_contrast_bags, neighbour_members, prompt_members
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.vlm_training.case_examples import code_pixels
from clipit.vlm_training.pair_examples import draw_partners
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class MinedBags:
    """Members of the bags of all training tiles.

    Attributes:
        tiles: Rows of the training tiles in each tile bag, the tile itself first.
        texts: Indices of the texts in each text bag: rows of the table of snippets, then of the distinct prompts.
        counts: Numbers of pruned members and empty bags.
    """

    tiles: Members
    texts: Members
    prompts: tuple[str, ...]
    counts: dict[str, int]


def bag_examples(
    config: RunConfig, section: AdaptConfig, arm: AdaptArm, seed: int, split: str, workspace: Workspace
) -> BagExamples:
    """Make examples from the training tiles, with bags mined with the VLM before adaptation.

    Tile bags contain the nearest tiles of other patients. Text bags contain the paired snippets, under the rules of
    `pairing`, and the nearest prompts. Bags with a tile or a text in common are not negatives of each other.

    Args:
        section: Section `adapt`.
        arm: Arm of the study. `shuffled_text` gives each tile the text bag of a tile of another patient.
        split: Must be train: tiles of other splits are never paired.

    Raises:
        DataError: Another split is requested, or all text bags are empty.
        ConfigError: There are fewer pairs per tile than snippets in a bag.
    """
    if split != "train":
        raise DataError(
            "validation and test tiles are not paired, so they have no bags",
            where="adapt.data",
            fix="use cases or pairs instead of bags, if a validation loss is needed",
        )
    if section.bags.snippets and config.pairing.k < section.bags.snippets:
        raise ConfigError(
            f"bags of {counted(section.bags.snippets, 'snippet')} need at least as many pairs per tile, but "
            f"pairing.k is {config.pairing.k}",
            where="adapt.bags.snippets",
            fix=f"set pairing.k={section.bags.snippets}, or lower adapt.bags.snippets",
        )
    return examples_of(section, arm, seed, workspace, first_mined_bags(section, workspace))


def first_mined_bags(section: AdaptConfig, workspace: Workspace) -> MinedBags:
    """Return the bags mined with the VLM before adaptation; mined once for all arms and seeds."""
    content = fingerprint([section.bags.model_dump(mode="json"), _inputs(section, workspace)])
    mined: MinedBags = workspace.cached(f"bags {content}", lambda: mine_bags(section, workspace))
    return mined


def mine_bags(section: AdaptConfig, workspace: Workspace) -> MinedBags:
    """Collect the bags of all training tiles from the pairs and stores of a workspace."""
    options = section.bags.model_dump(exclude={"mine_every"})
    base = workspace.config
    changed = {**options, "text_neighbours": False, "weighted": False}
    config = base.model_copy(update={"bags": base.bags.model_copy(update=changed)})
    train = workspace.all_tiles.of_split("train")
    if section.bags.snippets:
        bags = make_contrast_bags(config, workspace, train)
        numbers, tiles, prompts, counts = bags.text_ids(np.arange(len(train))), bags.tiles, bags.prompts, bags.counts
    else:
        prompts = prompt_members(config, workspace, train)
        numbers = np.where(prompts.exists, prompts.codes[prompts.rows], -1)
        tiles, counts = neighbour_members(config, workspace, train)
    members = np.arange(len(train), dtype=np.int64)[:, None]
    if tiles is not None:
        row_of = np.empty(tiles.store.size, dtype=np.int64)
        row_of[tiles.store.positions(train.ids)] = members[:, 0]
        rows = np.where(tiles.members >= 0, row_of[np.maximum(tiles.members, 0)], -1)
        members = np.concatenate([members, rows], axis=1)
    return MinedBags(_members(members), _members(numbers), prompts.texts if prompts is not None else (), counts)


def _inputs(section: AdaptConfig, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of the inputs from which bags are mined before the adaptation."""
    tiles = workspace.all_tiles.of_split("train")
    inputs = {"tiles": tiles.fingerprint, "groups": fingerprint(tiles.groups.tolist())}
    if section.bags.snippets:
        inputs["pairs"] = workspace.pairs.artifact.fingerprint
    if section.bags.prompts:
        inputs["prompt dictionary"] = load_dictionary(section.bags.dictionary).hash
    if section.bags.class_prompts and workspace.prompts is not None:
        inputs["class prompts"] = workspace.prompts.hash
    return inputs


def report_patients(workspace: Workspace) -> SeenTiles:
    """Return the reports that supply snippets, with their patients, represented as training tiles."""
    reports = workspace.reports.reports
    ids = np.array([each.report_id for each in reports], dtype=object)
    groups = np.array([patient_of(each) for each in reports], dtype=object)
    return SeenTiles(ids, np.full(len(ids), "train", dtype=object), groups)


def _members(table: Int64[np.ndarray, "n k"]) -> Members:
    """Return the rows of a table, padded with -1, as lists without padding or repeated members."""
    return Members.of([list(dict.fromkeys(row[row >= 0].tolist())) for row in table])


def examples_of(section: AdaptConfig, arm: AdaptArm, seed: int, workspace: Workspace, mined: MinedBags) -> BagExamples:
    """Make examples from the tiles whose text bag is not empty.

    Args:
        section: Section `adapt`.
        workspace: Workspace with the VLM before the adaptation.

    Raises:
        DataError: All text bags are empty.
    """
    tiles = workspace.all_tiles.of_split("train")
    kept = np.flatnonzero(mined.texts.lengths > 0)
    if not len(kept):
        raise DataError("every text bag is empty", where="adapt.bags", fix="raise adapt.bags.margin")
    texts_of = Members.of([mined.texts[row] for row in kept.tolist()])
    used, indices = np.unique(texts_of.values, return_inverse=True)
    snippets: list[str] = []
    if section.bags.snippets:
        snippets = workspace.snippets.table("snippets.parquet", ["text"]).column("text").to_pylist()
    numbers = np.arange(len(kept), dtype=np.int64)
    patient_of = patients(tiles.groups, tiles.ids)[kept]
    bags = section.bags
    dictionary_texts = bags.prompts * (MAX_TEXTS if bags.whole_entries else 1)
    count = len(snippets)
    return BagExamples(
        source=workspace.pixels_of(tiles, workspace.vlm.preprocess),
        tile_ids=tiles.ids.tolist(),
        texts=[snippets[row] if row < count else mined.prompts[row - count] for row in used.tolist()],
        tiles_of=Members.of([mined.tiles[row] for row in kept.tolist()]),
        texts_of=Members(indices.astype(np.int64), texts_of.starts),
        tiles_per_bag=1 + bags.tiles,
        texts_per_bag=0 if arm == "images" else bags.snippets + dictionary_texts + bags.class_prompts,
        batch_size=section.batch_size,
        seed=seed,
        groups=numbers,
        partners=draw_partners(patient_of, seed) if arm == "shuffled_text" else numbers,
        pixel_codes=code_pixels(workspace, "train"),
        neighbours=True,
        fingerprints=_inputs(section, workspace),
        summary={
            "examples": len(kept),
            "tiles": len(kept),
            "tiles_without_text": len(tiles) - len(kept),
            "texts": len(used),
            "minable_texts": count + len(mined.prompts),
            **mined.counts,
        },
    )
