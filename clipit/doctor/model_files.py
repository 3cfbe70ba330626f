"""Whether a folder holds the files that its loader asks for; the loader's own words follow where it does not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipit.models.specs import ModelSpec

_TENSORS = ("model.safetensors", "pytorch_model.bin")
_SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TOKENISER = ("tokenizer.json", "vocab.json", "vocab.txt")
_PROCESSOR = ("preprocessor_config.json",)
_OPEN_CLIP = (("open_clip_model.safetensors", "open_clip_pytorch_model.bin", *_TENSORS),)
_CLIP = ((*_TENSORS, *_SHARDS), _TOKENISER, _PROCESSOR)
_TIMM = ((*_TENSORS, "pytorch_model.pth", "model.pth"),)
_BY_FAMILY: Mapping[str, Sequence[Sequence[str]]] = {
    "conch": (("pytorch_model.bin",),),
    "musk": (("model.safetensors",),),
    "keep": (("config.json",), _TENSORS, _TOKENISER),
    "timm": _TIMM,
    "transformers": (("config.json",), (*_TENSORS, *_SHARDS)),
}
"""Families whose entry of the table says how they are built: groups of files, of each of which one is needed."""


def lacks_files(place: Path, spec: "ModelSpec | None") -> bool:
    """Whether a model's folder is surely not whole; False for a file, which only its loader can judge.

    Args:
        place: Exists.
        spec: Its entry of the table, if it was named by one.
    """
    if not place.is_dir():
        return False
    needed = _BY_FAMILY.get(spec.family) if spec is not None else None
    if needed is None:
        needed = _by_content(place)
    return needed is None or not all(any((place / name).is_file() for name in names) for names in needed)


def _by_content(folder: Path) -> Sequence[Sequence[str]] | None:
    """What a folder needs by what its configuration says it is; None when it is no model of a known kind."""
    if (folder / "open_clip_config.json").is_file():
        text = _json(folder / "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
        return (*_OPEN_CLIP, _TOKENISER) if text.get("hf_tokenizer_name") else _OPEN_CLIP
    found = _json(folder / "config.json")
    if found.get("model_type") == "clip":
        return _CLIP
    if "architecture" in found:
        return _TIMM
    return ((*_TENSORS, *_SHARDS), _PROCESSOR) if "model_type" in found else None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
