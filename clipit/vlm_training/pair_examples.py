"""Examples from pairs: images with one or more texts each."""

import logging
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64, Shaped

from clipit.config.load import names_tiles
from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.errors import DataError, as_note, counted_of, shortlist
from clipit.output_files.artifacts import fingerprint
from clipit.pairing.leaks import Leak, find_copies, find_leaks, find_shared_patients
from clipit.pairing.patient_spelling import misspelled_pairs
from clipit.patients import patients
from clipit.tiles.tileset import SPLITS, TileSet
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.vlm_training.captions import FittedTexts, fit_texts
from clipit.vlm_training.pair_sources import CaptionedTiles, hold_out, read_captioned
from clipit.workspace.leak_policy import hash_images, select_hashes
from clipit.workspace.tile_hashes import tile_digests
from clipit.workspace.tile_reading import artefacts_of
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pairs:
    """Images of all splits that have a text and do not leak."""

    tiles: TileSet
    texts: FittedTexts
    pixel_codes: Int64[np.ndarray, "n"]
    captions: str
    without_text: int
    leaks: int
    copies: int


def pair_examples(
    config: RunConfig, section: AdaptConfig, arm: AdaptArm, seed: int, split: str, workspace: Workspace
) -> BagExamples:
    """Make examples from the images of a split: one image and one of its texts per bag.

    Images of the same patient are negatives, unless they have the same pixels or a text in common. Images with a copy
    in a held-out split of the pairs are dropped or raise an error, depending on `leaks`.

    Args:
        section: Section `adapt`.
        arm: Arm of the study. `shuffled_text` gives each image the texts of an image of another patient.
        split: train, validation or test.

    Raises:
        DataError: The split has no image with a text; or patients or images of the evaluated tiles or of a held-out
            split are among the training pairs (`leaks.policy`); or the arm is `shuffled_text` and all images are of
            one patient.
    """
    inputs = config.model_dump(mode="json", include={"tiles", "leaks", "prompts"})  # leaks depend on these
    content = fingerprint([section.pairs.model_dump(mode="json"), workspace.vlm.fingerprint, inputs])
    pairs: _Pairs = workspace.cached(f"pairs {content}", lambda: _read(section, workspace))
    chosen = np.flatnonzero(pairs.tiles.splits == split)
    tiles = pairs.tiles.select(chosen)
    if not len(tiles):
        names, counts = np.unique(pairs.tiles.splits, return_counts=True)
        listed = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts.tolist(), strict=True))
        raise DataError(
            f"no {split} image has a text; images with texts: {listed}",
            where=pairs.tiles.where,
            fix="add images with texts, or correct the splits (adapt.pairs.columns)",
        )
    texts_of = Members.of([pairs.texts.members[row] for row in chosen.tolist()])
    numbers = np.arange(len(tiles), dtype=np.int64)
    patient_of = patients(tiles.groups, tiles.ids)
    return BagExamples(
        source=workspace.pixels_of(tiles, workspace.vlm.preprocess),
        tile_ids=tiles.ids.tolist(),
        texts=pairs.texts.texts,
        tiles_of=Members.of(numbers[:, None].tolist()),
        texts_of=texts_of,
        tiles_per_bag=1,
        texts_per_bag=0 if arm == "images" else 1,
        batch_size=section.batch_size,
        seed=seed,
        groups=numbers,
        partners=draw_partners(patient_of, seed) if arm == "shuffled_text" else numbers,
        pixel_codes=pairs.pixel_codes[chosen],
        fingerprints={"pairs": pairs.tiles.fingerprint, "texts": pairs.captions},
        summary={
            "examples": len(tiles),
            "tiles": len(tiles),
            "texts": len(set(texts_of.values.tolist())),
            "pairs": len(texts_of.values),
            "patients": len(set(patient_of.tolist()) - {""}),
            "tiles_without_text": pairs.without_text,
            "unreadable_tiles": len(pairs.tiles.quarantined),
            "leaking_tiles": pairs.leaks,
            "copies_of_held_out_tiles": pairs.copies,
            **pairs.texts.counts,
            "notes": list(pairs.tiles.notes),
        },
    )


def draw_partners(patient_of: Shaped[np.ndarray, " n"], seed: int) -> Int64[np.ndarray, "n"]:
    """Draw a partner for each image: an image of another patient, whose texts replace the image's own.

    The texts of every image are used once, unless one patient has more than half of the images.

    Args:
        patient_of: Patient of each image; "" if unknown, in which case the image counts as a separate patient.

    Raises:
        DataError: All images belong to one patient.
    """
    n = len(patient_of)
    names = [f"patient {name}" if name else f"image {row}" for row, name in enumerate(patient_of.tolist())]
    codes = np.unique(np.asarray(names, dtype=object), return_inverse=True)[1]
    counts = np.bincount(codes)
    if len(counts) < 2:
        raise DataError(
            "all images belong to one patient, so texts cannot be shuffled across patients",
            where="adapt.arms",
            fix="add images of other patients, or remove shuffled_text from adapt.arms",
        )
    rng = np.random.default_rng([seed, 0x5F])
    order = np.lexsort((rng.permutation(n), rng.permutation(len(counts))[codes]))
    largest = int(counts.max())
    partners = np.empty(n, dtype=np.int64)
    if 2 * largest <= n:
        partners[order] = np.roll(order, -largest)  # images of a patient are adjacent in this order
        return partners
    for code in range(len(counts)):
        others = order[codes[order] != code]
        of_patient = order[codes[order] == code]
        partners[of_patient] = others[np.arange(len(of_patient)) % len(others)]
    return partners


def _read(section: AdaptConfig, workspace: Workspace) -> _Pairs:
    """Read the pairs, split long texts, and drop images that leak or have no text."""
    captioned = read_captioned(section.pairs, workspace.root)
    config, vlm = workspace.config, workspace.vlm
    digests = tile_digests(artefacts_of(config), captioned.tiles)
    pixel_codes = np.unique(digests, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    leaking = _leaks(captioned, workspace) if names_tiles(config) else set[str]()
    texts = fit_texts(
        [captioned.captions_of(tile) for tile in range(len(captioned.tiles))], vlm.count_tokens, vlm.context_length
    )
    with_text = texts.members.lengths > 0
    kept = np.flatnonzero(with_text & ~captioned.tiles.among(leaking))
    if not len(kept):
        raise DataError(
            "no image has a text", where=captioned.tiles.where, fix="fill in the texts (adapt.pairs.columns)"
        )
    listed = captioned.tiles.select(kept)
    tiles = hold_out(listed, section.pairs)
    copies = _copies(captioned, tiles, workspace, by_user=tiles is listed)
    if copies:
        kept, tiles = kept[~tiles.among(copies)], tiles.select(~tiles.among(copies))
    return _Pairs(
        tiles=tiles,
        texts=replace(texts, members=Members.of([texts.members[row] for row in kept.tolist()])),
        pixel_codes=pixel_codes[kept],
        captions=fingerprint([captioned.captions_of(row) for row in kept.tolist()]),
        without_text=int((~with_text).sum()),
        leaks=len(leaking),
        copies=len(copies),
    )


def _copies(captioned: CaptionedTiles, tiles: TileSet, workspace: Workspace, *, by_user: bool) -> set[str]:
    """Find the images that have copies in a held-out split of the pairs; with the policy `note`, they are only logged.

    Args:
        captioned: Images with texts, before any image is dropped.
        tiles: Images that are used, with their final splits.
        by_user: Whether the splits are those of the source. If images were held out here, the policy `error` drops
            their copies.
    """
    config = workspace.config
    image_hashes = None if config.leaks.policy == "off" else hash_images(captioned.tiles, config, config.leaks.pixels)
    if image_hashes is None:
        return set()
    row_of = {name: row for row, name in enumerate(captioned.tiles.ids.tolist())}
    rows = np.asarray([row_of[name] for name in tiles.ids.tolist()], dtype=np.int64)
    leaks = {leak.id: leak for leak in find_leaks(tiles, config.leaks, select_hashes(image_hashes, rows))}
    listed = [f"{name} (copy of {leak.other_split} image {leak.other_id})" for name, leak in sorted(leaks.items())]
    one, several = "image with texts is", "images with texts are"
    problem = f"{counted_of(len(leaks), len(tiles), one, several)} also in a held-out split of the pairs"
    return _apply_policy(set(leaks), problem, listed, captioned.tiles.where, config, fatal=by_user)


def _apply_policy(
    leaks: set[str], problem: str, listed: list[str], where: object, config: RunConfig, *, fatal: bool = True
) -> set[str]:
    """Return the images to drop under `leaks.policy`, and log the leaks or raise an error."""
    policy = config.leaks.policy
    if not leaks:
        return set()
    if policy == "error" and fatal:
        raise DataError(
            f"{problem}: {shortlist(listed, 3)}",
            where=where,
            fix="remove them, or set --leaks.policy=exclude to drop them, or note to only log them. If different "
            "patients have the same name, rename them",
        )
    outcome = "kept on request (leaks.policy: note)" if policy == "note" else "dropped"
    logger.info(f"note: {problem}, {outcome}: {shortlist(listed, 3)}")
    return set() if policy == "note" else leaks


def _leaks(captioned: CaptionedTiles, workspace: Workspace) -> set[str]:
    """Find the images that must not be trained on; with the policy `note`, they are only logged.

    Training images are compared with the tiles of validation and test, validation images with the test tiles.
    """
    config = workspace.config
    if config.leaks.policy == "off":
        return set()
    tiles, leaks = workspace.all_tiles, dict[str, Leak]()
    image_hashes, tile_hashes = (hash_images(each, config, config.leaks.pixels) for each in (captioned.tiles, tiles))
    ranks = {name: rank for rank, name in enumerate(SPLITS)}
    pair_ranks = np.asarray([ranks[name] for name in captioned.tiles.splits.tolist()])
    tile_ranks = np.asarray([ranks[name] for name in tiles.splits.tolist()])
    for rank in (0, 1):
        pair_rows, test_rows = np.flatnonzero(pair_ranks == rank), np.flatnonzero(tile_ranks > rank)
        pairs, tests = captioned.tiles.select(pair_rows), tiles.select(test_rows)
        if not len(pairs) or not len(tests):
            continue
        leaks |= find_shared_patients(pairs, tests)
        for remark in misspelled_pairs(pairs, tests):
            logger.info(as_note(remark))
        if image_hashes is not None and tile_hashes is not None:
            pair_hashes, test_hashes = select_hashes(image_hashes, pair_rows), select_hashes(tile_hashes, test_rows)
            copies = find_copies(pairs, pair_hashes, tests, test_hashes, config.leaks)
            leaks |= {name: leak for name, leak in copies.items() if name not in leaks}
    listed = [
        f"{name} ({'patient ' + leak.group if leak.group else 'copy'} of {leak.split} tile {leak.id})"
        for name, leak in sorted(leaks.items())
    ]
    one, several = "image with texts matches", "images with texts match"
    count = counted_of(len(leaks), len(captioned.tiles), one, several)
    problem = f"{count} evaluated tiles or their patients"
    return _apply_policy(set(leaks), problem, listed, captioned.tiles.where, config)
