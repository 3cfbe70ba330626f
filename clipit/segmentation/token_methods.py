"""Segmentation from patch tokens: comparison with prompts, or a linear head trained on masks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image

from clipit.distributed import get_processes
from clipit.evaluation.predictions import NO_LABEL, softmax
from clipit.evaluation.zero_shot import class_means, embed_prompt_set
from clipit.models.patch_tokens import PatchTokens, backbone_tokens, student_tokens, vlm_tokens
from clipit.output_files.artifacts import fingerprint
from clipit.prompts.prompt_set import load_prompts
from clipit.runs.prediction_inputs import embed_classes
from clipit.segmentation.mask_draws import draw_order, masks_title, nested_counts
from clipit.segmentation.method import MethodInputs, Segmenter
from clipit.segmentation.token_head import Targets, train_token_head
from clipit.segmentation.token_maps import Lattice, lattice_of, token_rows
from clipit.segmentation.token_store import TokenStore, store_tokens
from clipit.segmentation.zero_shot_methods import map_classes, prompt_classes, prompts_name
from clipit.tiles.masks import MaskSet
from clipit.tiles.tileset import TileSet
from clipit.vectors import unit

TokenScores = Callable[[Float[np.ndarray, "rows columns d"]], Float32[np.ndarray, "rows columns c"]]
"""Function from tokens to the probabilities of the mask classes."""


@dataclass(frozen=True, eq=False)
class TokenModel:
    """Token model of a study; token maps that are in the store are read instead of computed.

    Attributes:
        store: Stored token maps of the study's images; None to compute all of them.
        overlap: Overlap of adjacent windows as a fraction of their edge length.
        batch_size: Windows per forward pass.
    """

    tokens: PatchTokens
    store: TokenStore | None
    overlap: float
    batch_size: int

    def lattice(self, image: Image.Image, mpp: float) -> Lattice:
        """Lay the grid of token cells over an image."""
        return lattice_of(image.height, image.width, mpp, self.tokens)

    def probabilities(self, image: Image.Image, mpp: float, score: TokenScores) -> Float32[np.ndarray, "c h w"]:
        """Score the tokens of an image, one row of windows at a time, and interpolate between cell centres."""
        lattice = self.lattice(image, mpp)
        stored = None if self.store is None else self.store.find(image, mpp)
        rows = (
            token_rows(image, lattice, self.tokens, self.overlap, self.batch_size)
            if stored is None
            else (stored[top : top + self.tokens.side] for top in range(0, len(stored), self.tokens.side))
        )
        return lattice.to_pixels(np.concatenate([score(part) for part in rows]))

    def facts(self) -> dict[str, object]:
        """Return the provenance of the scores."""
        return {
            "model": self.tokens.name,
            "fingerprint": self.tokens.fingerprint,
            "preprocess": self.tokens.preprocess.hash,
            "pixels": self.tokens.preprocess.size,
            "model_mpp": self.tokens.mpp,
            "tokens": f"{self.tokens.side} x {self.tokens.side} per window",
            "overlap": self.overlap,
        }


@dataclass(frozen=True, eq=False)
class HeadInputs:
    """Tokens and targets that heads are trained on.

    Attributes:
        model: Token model, whose store contains all images with masks.
    """

    inputs: MethodInputs
    model: TokenModel

    @cached_property
    def train(self) -> MaskSet:
        """Training masks."""
        return self.inputs.masks.of_split("train")

    @property
    def store(self) -> TokenStore:
        """Store of the tokens."""
        if self.model.store is None:
            raise ValueError("training a head requires a token store")
        return self.model.store

    def targets(self, rows: Sequence[int]) -> Targets:
        """Return the class proportions in the cells of the given training masks."""
        targets = {}
        for row in rows:
            image, codes = self.train.read(row)
            lattice = self.model.lattice(image, float(self.train.tiles.mpp[row]))
            targets[str(self.train.tiles.ids[row])] = lattice.to_cells(codes, len(self.train.classes.names))
        return targets

    def draw(self, count: int, seed: int) -> list[int]:
        """Draw training masks with a seed; a larger draw contains all smaller ones."""
        tiles = self.train.tiles
        return [int(row) for row in draw_order(tiles.ids, tiles.groups, seed)[:count]]

    def segmenter(self, name: str, sources: Sequence[Targets], masks: int, seed: int, **facts: object) -> Segmenter:
        """Train a head, and return its segmenter."""
        options = self.inputs.options.training.head
        classes = len(self.train.classes.names)
        head = train_token_head(self.store, sources, options, seed, classes)
        head_facts = {"head": fingerprint([head.weight.tolist(), head.bias.tolist()]), "steps": options.steps, **facts}

        def probabilities(image: Image.Image, mpp: float) -> Float32[np.ndarray, "c h w"]:
            return self.model.probabilities(image, mpp, head.probabilities)

        return Segmenter(name, probabilities, {**self.model.facts(), **head_facts}, training_masks=masks, seed=seed)


def head_inputs(inputs: MethodInputs) -> HeadInputs:
    """Compute and store the tokens of the images that heads are trained on.

    The store contains the images with masks and, if a method of the study makes pseudo-labels, the images with labels.
    """
    options = inputs.options.training
    tokens = vlm_tokens(inputs.vlm) if options.tokens == "vlm" else _backbone(inputs)
    tiles = inputs.masks.tiles
    if {"token_head_pseudo", "unet_pseudo"} & {*inputs.options.methods}:
        names = {*tiles.ids.tolist(), *labelled_images(inputs.workspace.all_tiles).ids.tolist()}
        tiles = inputs.workspace.all_tiles
        tiles = tiles.select(tiles.among(names))
    overlap, size = options.head.overlap, options.head.batch_size
    store = store_tokens(inputs.workspace.root, tokens, tiles, overlap=overlap, batch_size=size)
    return HeadInputs(inputs, TokenModel(tokens, store, overlap, size))


def labelled_images(tiles: TileSet) -> TileSet:
    """Return the training and validation images that have a label."""
    return tiles.select((tiles.labels != NO_LABEL) & (tiles.splits != "test"))


def missing_training_masks(inputs: MethodInputs) -> str:
    """Name the missing input for training on masks; "" if nothing is missing."""
    return "" if len(inputs.masks.of_split("train")) else "training tiles with masks: fill in the mask column"


def token_heads(inputs: MethodInputs) -> list[Segmenter]:
    """Train a linear head on tokens for each number of masks and each seed."""
    heads = head_inputs(inputs)
    options = inputs.options.training
    segmenters = []
    for count in nested_counts(options.masks, len(heads.train)):
        for seed in options.seeds:
            targets = heads.targets(heads.draw(count, seed))
            name = f"linear head on {options.tokens} tokens, {masks_title(count)}, seed {seed}"
            segmenters.append(heads.segmenter(name, [targets], count, seed))
    return segmenters


def vlm_prompt_tokens(inputs: MethodInputs) -> list[Segmenter]:
    """Compare the VLM's patch tokens with class prompts.

    Raises:
        ConfigError: A mask class has no prompts.
        ModelError: The VLM provides no patch tokens.
    """
    vlm, prompts = inputs.vlm, load_prompts(str(prompts_name(inputs)))
    vectors = class_means(embed_prompt_set(prompts, vlm.encode_prompts))
    facts = {"prompts": prompts.name, "prompts_hash": prompts.hash, "vlm": vlm.name, "vlm_fingerprint": vlm.fingerprint}
    return [
        _zero_shot(
            "VLM, patch tokens", vlm_tokens(vlm), tuple(prompts.classes), vectors, vlm.logit_scale, inputs, facts
        )
    ]


def student_prompt_tokens(inputs: MethodInputs) -> list[Segmenter]:
    """Compare a student's patch tokens in the joint space with class prompts.

    Raises:
        ConfigError: A mask class has no prompts.
        ModelError: The classifier was trained without text, or provides no patch tokens.
    """
    classifier = inputs.classifier
    tokens = student_tokens(classifier)
    known = embed_classes(classifier, load_prompts(str(prompts_name(inputs))))
    facts = {"prompts": known.source, "run": classifier.spec.provenance.get("run")}
    return [
        _zero_shot(
            "student, patch tokens", tokens, tuple(known.classes), known.embeddings, known.logit_scale, inputs, facts
        )
    ]


def vlm_token_classes(inputs: MethodInputs) -> Sequence[str]:
    """Return the classes of the prompts.

    Raises:
        ModelError: The VLM provides no patch tokens.
    """
    vlm_tokens(inputs.vlm)
    return prompt_classes(inputs)


def student_token_classes(inputs: MethodInputs) -> Sequence[str]:
    """Return the classes of the prompts.

    Raises:
        ModelError: The classifier was trained without text, or provides no patch tokens.
    """
    student_tokens(inputs.classifier)
    return prompt_classes(inputs)


def _zero_shot(
    name: str,
    tokens: PatchTokens,
    classes: tuple[str, ...],
    vectors: Float32[np.ndarray, "k d"],
    scale: float,
    inputs: MethodInputs,
    facts: Mapping[str, object],
) -> Segmenter:
    """Segment with the softmax of the scaled cosines between tokens and class vectors, summed by mask class."""
    options = inputs.options
    matrix = map_classes(classes, inputs.masks.classes.names, options.class_map, tokens.name)
    head = options.training.head
    model = TokenModel(tokens, None, head.overlap, head.batch_size)

    def score(grid: Float[np.ndarray, "rows columns d"]) -> Float32[np.ndarray, "rows columns c"]:
        cosines = unit(grid.reshape(-1, grid.shape[2]).astype(np.float32)) @ vectors.T
        summed = softmax(cosines * np.float32(scale)) @ matrix
        shares = summed / np.maximum(summed.sum(axis=1, keepdims=True), 1e-12)
        return np.asarray(shares.reshape(*grid.shape[:2], -1), dtype=np.float32)

    def probabilities(image: Image.Image, mpp: float) -> Float32[np.ndarray, "c h w"]:
        return model.probabilities(image, mpp, score)

    return Segmenter(name, probabilities, {**model.facts(), **facts})


def _backbone(inputs: MethodInputs) -> PatchTokens:
    from clipit.models.backbones import load_backbone

    config = inputs.config
    return backbone_tokens(load_backbone(config.backbone, get_processes().device, seed=config.seed))
