"""CONCH, loaded with its own package (`conch`) and tokeniser.

Tested with the public package and random weights laid out as in its checkpoint; not tested with the released
weights, which are gated.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, shortlist
from clipit.models.loading import checkpoint_file, foreign_errors, optional_module
from clipit.models.preprocess import Preprocess
from clipit.models.specs import OPENAI_MEAN, OPENAI_STD, ModelSpec
from clipit.models.token_grids import trunk_grid
from clipit.models.towers import Towers, transformers_token_counter
from clipit.models.weights import read_tensors

WEIGHTS = "pytorch_model.bin"
_NOT_RELEASED = "text_decoder."  # prefix of the caption decoder's weights, which are unused and not published


def check_conch_package(spec: ModelSpec) -> None:
    """Check that CONCH's package is installed.

    Raises:
        ModelError: It is missing.
    """
    if importlib.util.find_spec("conch") is None:
        raise ModelError(
            "CONCH needs its own package, which is not installed",
            where=f"vlm.name: {spec.name}",
            fix="pip install git+https://github.com/mahmoodlab/CONCH.git; ask for access to the weights "
            f"at {spec.page}, then log in with `hf auth login` or set vlm.path to {WEIGHTS}",
        )


def conch_towers(spec: ModelSpec, path: Path | None) -> Towers:
    """Load CONCH from its checkpoint.

    `image` applies the contrastive projection and `raw` omits it; neither normalises embeddings.

    Args:
        spec: CONCH's entry in the table; `loader["config"]` is the name of one of the package's configurations, or the
            configuration itself.
        path: Checkpoint, or the folder that contains it; None to download it from the gated repository.

    Raises:
        ModelError: The package or the checkpoint is missing, or the weights do not match.
    """
    check_conch_package(spec)
    file = checkpoint_file(spec, path, WEIGHTS)
    with foreign_errors(spec.name, None if path else spec.source, f"Use the files from {spec.page}.", file):
        package = optional_module("conch.open_clip_custom.coca_model")
        model: Any = package.CoCa(**_config(spec.loader["config"]))
        weights = read_tensors(file)
        if "visual.trunk.pos_embed" in weights:
            package.resize_pos_embed(weights, model)  # as the package does for other input sizes
        report = model.load_state_dict(weights, strict=False)
    mismatched = [f"{name} is missing" for name in report.missing_keys]
    mismatched += [f"{name} is unknown" for name in report.unexpected_keys if not name.startswith(_NOT_RELEASED)]
    if mismatched:  # the package would keep random values
        raise ModelError(
            f"the weights do not match CONCH: {shortlist(mismatched)}",
            where=file,
            fix=f"use the released {WEIGHTS}, or set vlm.name to the model that this file belongs to",
        )
    tokenizer = conch_tokenizer()
    length = int(model.context_length)
    return Towers(
        module=model,
        preprocess=Preprocess(
            size=int(model.visual.image_size[0]),
            resize_to=int(model.visual.image_size[0]),
            mode="shortest",
            interpolation="bicubic",
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
        ),
        context_length=length - 1,
        logit_scale=float(model.logit_scale.detach().exp()),
        source=str(file),
        count_tokens=transformers_token_counter(tokenizer),
        tokenise=lambda texts: {"text": token_ids(tokenizer, texts, length)},
        vocabulary=tokenizer.get_vocab(),
        image=lambda pixels: model.encode_image(pixels, normalize=False, proj_contrast=True),
        # the package itself drops the last position for its class token
        text=lambda tokens: model.encode_text(tokens["text"], normalize=False),
        raw=lambda pixels: model.encode_image(pixels, normalize=False, proj_contrast=False),
        raw_dim=int(model.visual.ln_contrast.normalized_shape[0]),
        tokens=lambda pixels: patch_tokens(model.visual, pixels),
    )


def patch_tokens(visual: Any, pixels: Tensor) -> Tensor:
    """Return patch tokens [b,h,w,d] in the joint space, each passed separately through the contrastive pooler."""
    grid = trunk_grid(visual.trunk, pixels)
    pooled = visual.attn_pool_contrast(grid.flatten(0, 2)[:, None])[:, 0]
    projected: Tensor = visual.ln_contrast(pooled) @ visual.proj_contrast
    return projected.reshape(*grid.shape[:3], -1)


def conch_tokenizer() -> Any:
    """Load the package's byte-level tokeniser.

    The package's helper `tokenize` is not used, because it calls a method that transformers 5 lacks.
    """
    with foreign_errors("conch", None, "The package's tokenizers/ folder may be missing: reinstall the package."):
        return optional_module("conch.open_clip_custom.custom_tokenizer").get_tokenizer()


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Return ids [b,length]: up to length - 1 tokens of the text, padding, and a placeholder for the class token."""
    ids = tokenizer(list(texts), max_length=length - 1, truncation=True, padding="max_length", return_tensors="pt")[
        "input_ids"
    ]
    return torch.nn.functional.pad(ids, (0, 1), value=int(tokenizer.pad_token_id))


def _config(config: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's arguments, without the caption decoder."""
    if isinstance(config, str):
        folder = Path(str(optional_module("conch.open_clip_custom").__file__)).parent / "model_configs"
        values: dict[str, Any] = json.loads((folder / f"{config}.json").read_text(encoding="utf-8"))
    else:
        values = dict(config)
    values.pop("custom_text", None)
    return {**values, "multimodal_cfg": {**values["multimodal_cfg"], "layers": 0}}
