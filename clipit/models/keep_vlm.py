"""KEEP: transformers with the Python code of its own repository, only when the user allows it.

Tried with code and files of its layout and random weights; the released weights were not at hand.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import CLIP_WEIGHTS, TOKENIZER_FILES, foreign_errors, hub_file, read_json, require_files
from clipit.models.preprocess import preprocess_from_spec
from clipit.models.specs import ModelSpec
from clipit.models.towers import Tokens, Towers

_WEIGHTS = CLIP_WEIGHTS[:2]
_PARTS = ("encode_image", "encode_text", "visual", "logit_scale")
"""What is used of its code."""


def keep_towers(spec: ModelSpec, path: Path | None, trust_remote_code: bool) -> Towers:
    """KEEP from its hub id or a local folder.

    Its code normalises the joint space itself. The model is built from its configuration and filled here: its
    code predates transformers 5, whose `from_pretrained` it cannot satisfy.

    Raises:
        ModelError: Remote code is not allowed; files are missing; weights do not fit.
    """
    source = spec.source if path is None else str(path)
    if not trust_remote_code:
        raise ModelError(
            explain(
                f"{spec.name} runs Python code of its repository (modeling_keep.py), which is not allowed yet",
                where=source,
                fix=f"read that code ({spec.page}), then set vlm.trust_remote_code: true",
            )
        )
    if path is not None:
        require_files(
            path,
            spec.name,
            {"configuration": ("config.json",), "weights": _WEIGHTS, "tokeniser": TOKENIZER_FILES},
        )
        _check_family(spec, path)
    with foreign_errors(spec.name, None if path else spec.source, "Its code may ask for other package versions.", path):
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        config = AutoConfig.from_pretrained(source, trust_remote_code=True)
        model: Any = AutoModel.from_config(config, trust_remote_code=True).float()
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        file = hub_file(spec.source, _WEIGHTS) if path is None else _first(path)
        _check_parts(spec, model, source)
        report = model.load_state_dict(_state(file), strict=False)
    missing = [key for key in report.missing_keys if not key.endswith("position_ids")]
    if missing:
        raise ModelError(
            explain(
                f"the weights do not fit {spec.name}; missing: {shortlist(missing)}",
                where=file,
                fix=f"copy all files of {spec.page} into one folder",
            )
        )
    budget = int(spec.context_length or tokenizer.model_max_length)

    def tokenise(texts: Sequence[str]) -> Tokens:
        """Ids and masks, padded to the longest text; what exceeds the budget is cut."""
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=budget, return_tensors="pt")
        return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}

    def image(pixels: Tensor) -> Tensor:
        """Joint space."""
        embeddings: Tensor = model.encode_image(pixels)
        return embeddings

    def text(tokens: Tokens) -> Tensor:
        """Joint space."""
        embeddings: Tensor = model.encode_text(dict(tokens))
        return embeddings

    return Towers(
        module=model,
        preprocess=preprocess_from_spec(spec),
        context_length=budget,
        logit_scale=float(model.logit_scale.detach().exp()),
        source=source,
        count_tokens=lambda texts: (
            [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]] if texts else []
        ),
        tokenise=tokenise,
        vocabulary=tokenizer.get_vocab(),
        image=image,
        text=text,
        raw=model.visual,
        raw_dim=int(model.visual.num_features),
    )


def _check_family(spec: ModelSpec, folder: Path) -> None:
    found = read_json(folder / "config.json")
    if "auto_map" not in found:
        raise ModelError(
            explain(
                f"not {spec.name}: its config.json names no Python code of its own (auto_map), but the model type "
                f"{found.get('model_type', 'none')}",
                where=folder,
                fix=f"give a folder with all files of {spec.page}",
            )
        )


def _check_parts(spec: ModelSpec, model: Any, source: str) -> None:
    absent = [part for part in _PARTS if not hasattr(model, part)]
    absent += ["visual.num_features"] if not absent and not hasattr(model.visual, "num_features") else []
    if absent:
        raise ModelError(
            explain(
                f"not {spec.name}: a {type(model).__name__} without {', '.join(absent)}",
                where=source,
                fix=f"give a folder with all files of {spec.page}",
            )
        )


def _first(folder: Path) -> Path:
    return next(folder / name for name in _WEIGHTS if (folder / name).is_file())


def _state(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a checkpoint that holds a state dict alone."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    found: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return found
