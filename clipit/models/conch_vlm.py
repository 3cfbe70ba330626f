"""CONCH, through its own package (`conch`), with its own tokeniser.

Tried with the public package and random weights in its checkpoint's layout; the released weights are gated and
were not at hand.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import checkpoint_file, foreign_errors, optional_module
from clipit.models.preprocess import Preprocess
from clipit.models.specs import OPENAI_MEAN, OPENAI_STD, ModelSpec
from clipit.models.towers import Tokens, Towers

WEIGHTS = "pytorch_model.bin"
_NOT_RELEASED = "text_decoder."  # the caption decoder's weights were never published, and nothing here uses it


def conch_towers(spec: ModelSpec, path: Path | None) -> Towers:
    """CONCH from its checkpoint.

    The image projection is on in the joint space and off in the raw one; neither is normalised here.

    Args:
        spec: Its entry; `loader["config"]` is a name of the package's configurations, or one as a mapping.
        path: Its checkpoint or the folder that holds it; None: from the hub, which asks for access.

    Raises:
        ModelError: The package or the checkpoint is missing, or they do not fit each other.
    """
    check_package(spec)
    file = checkpoint_file(spec, path, WEIGHTS)
    with foreign_errors(spec.name, None if path else spec.source, f"The files must be those of {spec.page}.", file):
        package = optional_module("conch.open_clip_custom.coca_model")
        model: Any = package.CoCa(**_config(spec.loader["config"]))
        weights = _state(file)
        if "visual.trunk.pos_embed" in weights:
            package.resize_pos_embed(weights, model)  # as the package does for another input size
        report = model.load_state_dict(weights, strict=False)
    _check_weights(report.missing_keys, report.unexpected_keys, file)
    tokenizer = conch_tokenizer()
    length = int(model.context_length)

    def text(tokens: Tokens) -> Tensor:
        """Joint space, un-normalised; the package itself cuts the last place off for its class token."""
        embeddings: Tensor = model.encode_text(tokens["text"], normalize=False)
        return embeddings

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
        count_tokens=lambda texts: (
            [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]] if texts else []
        ),
        tokenise=lambda texts: {"text": tokens_of(tokenizer, texts, length)},
        vocabulary=tokenizer.get_vocab(),
        image=lambda pixels: model.encode_image(pixels, normalize=False, proj_contrast=True),
        text=text,
        raw=lambda pixels: model.encode_image(pixels, normalize=False, proj_contrast=False),
        raw_dim=int(model.visual.ln_contrast.normalized_shape[0]),
    )


def check_package(spec: ModelSpec) -> None:
    """Make sure that the package `conch` is there.

    Raises:
        ModelError: It is not.
    """
    if importlib.util.find_spec("conch") is None:
        raise ModelError(
            explain(
                "CONCH needs its own package, which is not installed",
                where=f"vlm.name: {spec.name}",
                fix="pip install git+https://github.com/mahmoodlab/CONCH.git; ask for access to the weights "
                f"at {spec.page}, then log in with `hf auth login` or set vlm.path to {WEIGHTS}",
            )
        )


def conch_tokenizer() -> Any:
    """The package's byte-level tokeniser; its helper `tokenize` calls what transformers 5 no longer has."""
    with foreign_errors("conch", None, "The package's tokenizers/ folder may be missing: install it again."):
        return optional_module("conch.open_clip_custom.custom_tokenizer").get_tokenizer()


def tokens_of(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Ids [b,length]: at most length - 1 of the text, filled with padding, and one padding for the class token."""
    found = tokenizer(list(texts), max_length=length - 1, truncation=True, padding="max_length", return_tensors="pt")[
        "input_ids"
    ]
    return torch.nn.functional.pad(found, (0, 1), value=int(tokenizer.pad_token_id))


def _config(config: str | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model, without the caption decoder."""
    if isinstance(config, str):
        folder = Path(str(optional_module("conch.open_clip_custom").__file__)).parent / "model_configs"
        values: dict[str, Any] = json.loads((folder / f"{config}.json").read_text(encoding="utf-8"))
    else:
        values = dict(config)
    values.pop("custom_text", None)
    return {**values, "multimodal_cfg": {**values["multimodal_cfg"], "layers": 0}}


def _state(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint: bare, under `state_dict`, or with `module.` before each name."""
    found = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(found, dict) and "state_dict" in found:
        found = found["state_dict"]
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def _check_weights(missing: Sequence[str], unexpected: Sequence[str], file: Path) -> None:
    unfit = [f"{name} is missing" for name in missing]
    unfit += [f"{name} is unknown" for name in unexpected if not name.startswith(_NOT_RELEASED)]
    if unfit:  # the package would go on with random values
        raise ModelError(
            explain(
                f"the weights do not fit CONCH: {shortlist(unfit)}",
                where=file,
                fix=f"give the released {WEIGHTS}; another model has another name",
            )
        )
