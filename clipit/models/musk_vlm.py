"""MUSK, loaded with its own package (`musk`) and its SentencePiece tokeniser.

Tested with the public package and random weights; not tested with the released weights, which are gated.
"""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, shortlist
from clipit.models.loading import checkpoint_file, foreign_errors, optional_module
from clipit.models.preprocess import preprocess_from_spec
from clipit.models.specs import ModelSpec
from clipit.models.towers import Tokens, Towers
from clipit.models.weights import read_tensors, unused_layers

WEIGHTS = "model.safetensors"
_PACKAGES = ("musk", "fairscale", "einops", "sentencepiece")
_START, _PAD, _END, _UNKNOWN, _OFFSET = 0, 1, 2, 3, 1
"""Ids of XLM-R's special tokens, and the offset of its ids from those of the SentencePiece file."""

_SPECIAL = {"<s>": _START, "<pad>": _PAD, "</s>": _END, "<unk>": _UNKNOWN}


def text_ids(processor: Any, text: str) -> list[int]:
    """Return the ids of a text as XLM-R's tokeniser does: special tokens written in the text get their own ids.

    Args:
        processor: SentencePiece processor; `encode` maps a text to ids, and `get_piece_size` counts its pieces.
        text: Text without start and end tokens.
    """
    special = {**_SPECIAL, "<mask>": int(processor.get_piece_size()) + _OFFSET}
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, special))})", text):
        if part in special:
            ids.append(special[part])
        elif part.strip():
            ids += [piece + _OFFSET if piece else _UNKNOWN for piece in processor.encode(part)]
    return ids


def check_musk_packages(spec: ModelSpec) -> None:
    """Check that MUSK's packages are installed.

    Raises:
        ModelError: Some are missing.
    """
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ModelError(
            f"MUSK needs packages that are not installed: {', '.join(absent)}",
            where=f"vlm.name: {spec.name}",
            fix="pip install --no-deps git+https://github.com/lilab-stanford/MUSK.git (it pins old versions) and "
            f"pip install --no-deps fairscale einops sentencepiece; ask for access to the weights at {spec.page}",
        )


def musk_towers(spec: ModelSpec, path: Path | None) -> Towers:
    """Load MUSK from `model.safetensors`.

    `image` and `text` apply the projection heads, `raw` does not; images are encoded at a single scale, and no
    embedding is normalised.

    Args:
        spec: MUSK's entry in `VLMS`; `loader["architecture"]` is its name in timm.
        path: Weights file, or the folder that contains it; None to download it from the gated repository.

    Raises:
        ModelError: Packages or weights are missing, or the weights do not match.
    """
    check_musk_packages(spec)
    file = checkpoint_file(spec, path, WEIGHTS)
    with foreign_errors(spec.name, None if path else spec.source, f"Use the files from {spec.page}.", file):
        import timm

        package = optional_module("musk.modeling")  # registers its architectures with timm
        model: Any = timm.create_model(spec.loader["architecture"])
        # The package's own loader prints missing weights and keeps their random values.
        report = model.load_state_dict(read_tensors(file), strict=False)
        model_file = Path(str(package.__file__)).parent / "models" / "tokenizer.spm"
        processor = optional_module("sentencepiece").SentencePieceProcessor(model_file=str(model_file))
    problems = [f"{key} is missing" for key in report.missing_keys]
    problems += [f"{key} is not in the model" for key in unused_layers(model, report.unexpected_keys)]
    if problems:
        raise ModelError(
            f"the weights do not match {spec.name}: {shortlist(problems)}",
            where=file,
            fix=f"use {WEIGHTS} from {spec.page}",
        )
    budget = int(spec.context_length or 100)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [[_START, *text_ids(processor, text), _END] for text in texts]

    def tokenise(texts: Sequence[str]) -> Tokens:
        """Tokenise, truncate and pad to the context length; the mask is 1 where padded."""
        truncated = [ids if len(ids) <= budget else [*ids[: budget - 1], _END] for ids in encode(texts)]
        padded = torch.tensor([[*ids, *[_PAD] * (budget - len(ids))] for ids in truncated])
        lengths = torch.tensor([len(ids) for ids in truncated])[:, None]
        return {"text": padded, "padding": (torch.arange(budget)[None] >= lengths).long()}

    def image(pixels: Tensor, with_head: bool = True) -> Tensor:
        embeddings: Tensor = model(image=pixels, with_head=with_head, out_norm=False, ms_aug=False)[0]
        return embeddings

    def text(tokens: Tokens) -> Tensor:
        embeddings: Tensor = model(
            text_description=tokens["text"], padding_mask=tokens["padding"], with_head=True, out_norm=False
        )[1]
        return embeddings

    return Towers(
        module=model,
        preprocess=preprocess_from_spec(spec),
        context_length=budget,
        logit_scale=float(model.logit_scale.detach().exp()),
        source=str(file),
        count_tokens=lambda texts: [len(ids) for ids in encode(texts)],
        tokenise=tokenise,
        vocabulary={processor.id_to_piece(i): i for i in range(processor.get_piece_size())},
        image=image,
        text=text,
        raw=lambda pixels: image(pixels, with_head=False),
        raw_dim=int(model.vision_head.in_features),
        is_image_weight=lambda name: ".A." in name or "vision_" in name,  # A: the image expert of each layer
    )
