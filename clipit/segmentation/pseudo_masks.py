"""Pixel pseudo-labels: multiple-instance learning on image labels, applied to the images' tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Int16, Int64

from clipit.config.mask_training import PseudoLabelsConfig
from clipit.errors import ConfigError, DataError, counted, shortlist
from clipit.evaluation.predictions import NO_LABEL, softmax
from clipit.mil.mil_bags import MilBags
from clipit.mil.tile_store_bags import common_labels
from clipit.mil.train_network import MilModel
from clipit.output_files.artifacts import fingerprint
from clipit.output_files.whole_files import text_array
from clipit.patients import patients
from clipit.segmentation.token_store import TokenStore
from clipit.tiles.tileset import TileSet


@dataclass(frozen=True)
class TokenReader:
    """Tokens of each patient's images, as the instances of one bag.

    Attributes:
        images: Image ids of each bag.
    """

    store: TokenStore
    images: Sequence[Sequence[str]]

    @property
    def dim(self) -> int:
        """Dimension of the features."""
        return self.store.dim

    def fingerprint(self) -> str:
        """Compute a fingerprint of the tokens and of their assignment to the bags."""
        return fingerprint([self.store.fingerprint, [list(names) for names in self.images]])

    def sizes(self) -> Int64[np.ndarray, " b"]:
        """Return the number of tokens of each bag."""
        shapes = [[self.store.tokens(name).shape[:2] for name in names] for names in self.images]
        return np.array([sum(int(rows) * int(columns) for rows, columns in each) for each in shapes], dtype=np.int64)

    def features(self, row: int) -> Float32[np.ndarray, "n d"]:
        """Read the tokens of one bag."""
        # convert one by one: each memory map keeps a file open, and a patient may have thousands of images
        tokens = [self.store.tokens(name).reshape(-1, self.dim).astype(np.float32) for name in self.images[row]]
        return np.concatenate(tokens)

    def ids(self, row: int) -> list[str]:
        """Return an id for each token of one bag: image, row and column."""
        return [
            f"{name}[{down},{right}]"
            for name in self.images[row]
            for down, right in np.ndindex(*self.store.tokens(name).shape[:2])
        ]


def token_bags(tiles: TileSet, store: TokenStore) -> MilBags:
    """Group the tokens of each patient's images into one bag; an image without a patient is a separate bag.

    The label of a bag is the label shared by all of its labelled images; a bag with images of several classes has no
    label.

    Raises:
        DataError: A patient is in two splits.
    """
    patient_of = patients(tiles.groups, tiles.ids)
    patient_of = np.where(patient_of == "", tiles.ids, patient_of)
    names, first, member = np.unique(text_array(patient_of), return_index=True, return_inverse=True)
    labels, mixed = common_labels(tiles.labels, member.astype(np.int64), len(names))
    images = [[str(name) for name in tiles.ids[member == bag]] for bag in range(len(names))]
    unused = f"{counted(len(mixed), 'patient is', 'patients are')} not used, because their images have different labels"
    notes = (unused,) if len(mixed) else ()
    return MilBags(
        names=names.astype(object), labels=labels, patients=patient_of[first], splits=tiles.splits[first],
        classes=tiles.classes, reader=TokenReader(store, images), rows=np.arange(len(names), dtype=np.int64),
        notes=notes, where=tiles.where or "tiles",
    )  # fmt: skip


@dataclass(frozen=True)
class PseudoMasks:
    """Pseudo-labels of training images.

    Attributes:
        codes: Class of each cell of an image, by image id; -1 where the model is not confident.
        model: Facts about the multiple-instance model.
    """

    codes: Mapping[str, Int16[np.ndarray, "rows columns"]]
    classes: tuple[str, ...]
    model: Mapping[str, object]

    def without(self, names: Sequence[str]) -> "PseudoMasks":
        """Return a copy without the pseudo-labels of the named images.

        Raises:
            DataError: No image is left, or none of those left has a pseudo-label.
        """
        dropped = {*names}
        codes = {name: cells for name, cells in self.codes.items() if name not in dropped}
        if not codes:
            raise DataError(
                "no image is left for pseudo-labels: the masks of all labelled training images are used",
                where="segmentation.training.masks",
                fix="use fewer masks, or label more training images",
            )
        if not any((cells >= 0).any() for cells in codes.values()):
            raise DataError(
                f"no cell of {counted(len(codes), 'labelled training image')} has a confident pseudo-label",
                where="segmentation.training.pseudo.confidence",
                fix="lower this threshold, or label more training images",
            )
        return replace(self, codes=codes)

    def facts(self) -> dict[str, object]:
        """Return the provenance: the model, the number of images, and the fraction of cells per pseudo-label."""
        cells = np.concatenate([each.ravel() for each in self.codes.values()])
        shares = {name: round(float((cells == code).mean()), 4) for code, name in enumerate(self.classes)}
        return {"pseudo_images": len(self.codes), "pseudo_shares": str(shares), **self.model}

    def targets(self, classes: int) -> dict[str, Float32[np.ndarray, "rows columns c"]]:
        """Return the targets for a token head."""
        return {
            name: (codes[:, :, None] == np.arange(classes)).astype(np.float32) for name, codes in self.codes.items()
        }


def pseudo_masks(
    model: MilModel, tiles: TileSet, store: TokenStore, classes: Sequence[str], background: str,
    options: PseudoLabelsConfig,
) -> PseudoMasks:  # fmt: skip
    """Assign pseudo-labels to the tokens of labelled images where a multiple-instance model is confident.

    An image may contain the class that its label is evidence of, and the background. The probability of each of these
    two classes is the sum of the probabilities of all labels that are evidence of the class; the two sums are
    renormalised. A token gets the class whose probability is at least `confidence`, if any. An image whose label is
    evidence of the background contains nothing else, so all of its tokens are background.

    Args:
        model: Trained multiple-instance model, whose classes are the labels of the images.
        tiles: Images; those without a label are skipped.
        background: Class that may occur in any image, whatever its label.

    Raises:
        ConfigError: A label has no mask class, or no label is evidence of the background.
        DataError: No image has a label.
    """
    check_evidence(model.classes, classes, background, options)
    evidence = [classes.index(options.evidence[name]) for name in model.classes]
    background_code = classes.index(background)
    codes: dict[str, Int16[np.ndarray, "rows columns"]] = {}
    for name, label in zip(tiles.ids.tolist(), tiles.labels.tolist(), strict=True):
        if label == NO_LABEL:
            continue
        tokens = store.tokens(str(name))
        shape = tokens.shape[:2]
        target = evidence[label]
        if target == background_code:
            codes[str(name)] = np.full(shape, background_code, dtype=np.int16)
            continue
        logits = model.explain(tokens.reshape(-1, store.dim).astype(np.float32)).instance_logits
        probabilities = softmax(logits.float().cpu().numpy())
        target_probability = probabilities[:, [code == target for code in evidence]].sum(axis=1)
        background_probability = probabilities[:, [code == background_code for code in evidence]].sum(axis=1)
        share = target_probability / np.maximum(target_probability + background_probability, 1e-12)
        confident = [share >= options.confidence, share <= 1 - options.confidence]
        labels = np.select(confident, [target, background_code], -1)
        codes[str(name)] = labels.reshape(shape).astype(np.int16)
    if not codes:
        raise DataError("no training image has a label to learn from", where=tiles.where, fix="add labels")
    facts = {"mil_pooling": model.options.pooling, "mil_epoch": model.epoch, "confidence": options.confidence}
    return PseudoMasks(codes, tuple(classes), facts)


def check_evidence(labels: Sequence[str], classes: Sequence[str], background: str, options: PseudoLabelsConfig) -> None:
    """Check that every label is evidence of a mask class, and that at least one label is evidence of the background.

    Raises:
        ConfigError: A label has no mask class, or no label is evidence of the background; all problems are reported
            together.
    """
    problems = []
    missing = [name for name in labels if name not in options.evidence]
    unknown = sorted({*options.evidence.values()} - {*classes})
    if missing:
        problems.append(f"tile labels without a mask class: {shortlist(missing)}")
    if unknown:
        problems.append(f"unknown mask classes: {shortlist(unknown)}")
    if not missing and background not in {options.evidence[name] for name in labels}:
        problems.append(f"no label is evidence of {background}, so nothing separates it from other classes")
    if problems:
        raise ConfigError(
            "; ".join(problems),
            where="segmentation.training.pseudo.evidence",
            fix="map each label to the class it is evidence of, such as {normal: other, tumour: tumour}",
        )
