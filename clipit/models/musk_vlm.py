"""MUSK, through its own package (`musk`) and its own sentencepiece file.

Tried with the public package and random weights; the released weights are gated and were not at hand.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import checkpoint_file, foreign_errors, optional_module
from clipit.models.preprocess import preprocess_from_spec
from clipit.models.specs import ModelSpec
from clipit.models.towers import Tokens, Towers

WEIGHTS = "model.safetensors"
_PACKAGES = ("musk", "fairscale", "einops", "sentencepiece")
_START, _PAD, _END, _UNKNOWN, _OFFSET = 0, 1, 2, 3, 1
"""XLM-R's first ids, and by how much its ids exceed those of the sentencepiece file."""


def musk_towers(spec: ModelSpec, path: Path | None) -> Towers:
    """MUSK from `model.safetensors`: heads on in the joint space, off in the raw one, one scale, no norm.

    Args:
        spec: Its entry; `loader["architecture"]` is the package's name for timm.
        path: The weights or the folder that holds them; None: from the hub, which asks for access.

    Raises:
        ModelError: Package or weights are missing, or they do not fit each other.
    """
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise ModelError(
            explain(
                f"MUSK needs packages that are not installed: {', '.join(absent)}",
                where=f"vlm.name: {spec.name}",
                fix="pip install --no-deps git+https://github.com/lilab-stanford/MUSK.git (it pins old versions) and "
                f"pip install --no-deps fairscale einops sentencepiece; ask for access to the weights at {spec.page}",
            )
        )
    file = checkpoint_file(spec, path, WEIGHTS)
    with foreign_errors(spec.name, None if path else spec.source, f"The files must be those of {spec.page}.", file):
        import timm
        from safetensors.torch import load_file

        package = optional_module("musk.modeling")  # makes itself known to timm
        model: Any = timm.create_model(spec.loader["architecture"])
        # The package's own loader prints what is missing and goes on with random values.
        report = model.load_state_dict(load_file(file), strict=False)
        pieces = Path(str(package.__file__)).parent / "models" / "tokenizer.spm"
        processor = optional_module("sentencepiece").SentencePieceProcessor(model_file=str(pieces))
    if report.missing_keys:
        raise ModelError(
            explain(
                f"the weights do not fit {spec.name}; missing: {shortlist(report.missing_keys)}",
                where=file,
                fix=f"give {WEIGHTS} of {spec.page}",
            )
        )
    budget = int(spec.context_length or 100)

    def ids(texts: Sequence[str]) -> list[list[int]]:
        """Per text, special tokens included, nothing cut."""
        found: list[list[int]] = processor.encode(list(texts)) if texts else []
        return [[_START, *(piece + _OFFSET if piece else _UNKNOWN for piece in text), _END] for text in found]

    def tokenise(texts: Sequence[str]) -> Tokens:
        """Ids and padding mask (1 where padded), all of the whole budget."""
        cut = [text if len(text) <= budget else [*text[: budget - 1], _END] for text in ids(texts)]
        padded = torch.tensor([[*text, *[_PAD] * (budget - len(text))] for text in cut])
        lengths = torch.tensor([len(text) for text in cut])[:, None]
        return {"text": padded, "padding": (torch.arange(budget)[None] >= lengths).long()}

    def image(pixels: Tensor, with_head: bool = True) -> Tensor:
        """Class token of one scale, through the head or not, un-normalised."""
        found: Tensor = model(image=pixels, with_head=with_head, out_norm=False, ms_aug=False)[0]
        return found

    def text(tokens: Tokens) -> Tensor:
        """Joint space, un-normalised."""
        found: Tensor = model(
            text_description=tokens["text"], padding_mask=tokens["padding"], with_head=True, out_norm=False
        )[1]
        return found

    return Towers(
        module=model,
        preprocess=preprocess_from_spec(spec),
        context_length=budget,
        logit_scale=float(model.logit_scale.detach().exp()),
        source=str(file),
        count_tokens=lambda texts: [len(text) for text in ids(texts)],
        tokenise=tokenise,
        vocabulary={processor.id_to_piece(i): i for i in range(processor.get_piece_size())},
        image=image,
        text=text,
        raw=lambda pixels: image(pixels, with_head=False),
        raw_dim=int(model.vision_head.in_features),
        of_image=lambda name: ".A." in name or "vision_" in name,  # A: the expert of pictures in each layer
    )
