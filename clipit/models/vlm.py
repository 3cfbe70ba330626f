"""The frozen vision-language model: one interface over the packages that can load one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8

from clipit.config import VLMConfig
from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import EMBEDDED, expected_mpp, read_json, weights_fingerprint
from clipit.models.preprocess import Preprocess
from clipit.models.towers import Towers

_PROBE = "Moderately differentiated adenocarcinoma, grade 2; margins free."
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class VLM:
    """Two frozen towers with one joint space.

    Attributes:
        name: As configured.
        source: Folder, hub id or built-in name that it was loaded from.
        preprocess: Of the image tower.
        joint_dim: Dimension of the joint space.
        context_length: Most tokens of a text, special tokens included.
        expected_mpp: Micrometres per pixel of its training tiles; None when unknown.
        logit_scale: Trained factor on cosines.
        fingerprint: Over weights, preprocessing and tokeniser; the precision of a run is not part of it.
        precision: `fp32`, or the type of autocast.
        device: Where it computes.
    """

    name: str
    source: str
    preprocess: Preprocess
    joint_dim: int
    context_length: int
    expected_mpp: float | None
    logit_scale: float
    fingerprint: str
    precision: str
    device: torch.device
    towers: Towers = field(repr=False, compare=False)

    def describe(self) -> dict[str, Any]:
        """What a manifest or a classifier records about it (JSON-like)."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "joint_dim": self.joint_dim,
            "context_length": self.context_length,
            "logit_scale": self.logit_scale,
            "expected_mpp": self.expected_mpp,
            "preprocess": self.preprocess.describe(),
        }

    @property
    def image_parameters(self) -> int:
        """Weights of the image tower and its projection (named `vis...` in open_clip and transformers)."""
        return sum(p.numel() for name, p in self.towers.module.named_parameters() if name.startswith("vis"))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text as its text tower counts them: special tokens included, nothing cut."""
        return list(self.towers.count_tokens(_several(texts)))

    def encode_images(self, pixels: UInt8[torch.Tensor, "b 3 h w"]) -> Float[torch.Tensor, "b d"]:
        """Un-normalised float32 embeddings of `preprocess.pixels`.

        Raises:
            ModelError: The pixels do not have the size of its preprocessing.
        """
        size = self.preprocess.size
        if tuple(pixels.shape[-2:]) != (size, size):
            raise ModelError(
                explain(
                    f"pixels of {tuple(pixels.shape[-2:])} for a VLM of {size} x {size}",
                    where=self.name,
                    fix="make them with this VLM's own preprocess.pixels",
                )
            )
        with torch.inference_mode(), self._autocast():
            embeddings = self.towers.image(self.preprocess.normalise(pixels.to(self.device)))
        return embeddings.float().clone()  # cloned outside: an inference tensor could not serve as a target

    def encode_texts(self, texts: Sequence[str], *, truncate: bool = False) -> Float[torch.Tensor, "b d"]:
        """Un-normalised float32 embeddings.

        Raises:
            ModelError: A text is over the budget and `truncate` is False.
        """
        texts = _several(texts)
        if not texts:
            return torch.zeros(0, self.joint_dim, device=self.device)
        if not truncate:
            counts = self.count_tokens(texts)
            over = [
                f"{count}: {text[:60]!r}"
                for text, count in zip(texts, counts, strict=True)
                if count > self.context_length
            ]
            if over:
                raise ModelError(
                    explain(
                        f"{len(over)} texts have more than {self.context_length} tokens: {shortlist(over, 3)}",
                        where=self.name,
                        fix="split them, or pass truncate=True to have them cut",
                    )
                )
        with torch.inference_mode(), self._autocast():
            tokens = {key: value.to(self.device) for key, value in self.towers.tokenise(texts).items()}
            embeddings = self.towers.text(tokens)
        return embeddings.float().clone()

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES.get(self.precision)
        return torch.autocast(self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def load_vlm(config: VLMConfig, device: torch.device | str = "cpu") -> VLM:
    """Load and freeze the VLM of a configuration.

    Raises:
        ModelError: Unknown name, missing files, gated or absent weights.
    """
    device = torch.device(device)
    towers = _towers(config.name)
    towers.module.eval().requires_grad_(False)
    tokens = towers.tokenise([_PROBE])
    fingerprint = weights_fingerprint(
        towers.module, towers.preprocess.hash, towers.context_length, *(value.tolist() for value in tokens.values())
    )
    with torch.inference_mode():
        joint_dim = towers.text(tokens).shape[-1]
    towers.module.to(device)
    return VLM(
        name=config.name,
        source=towers.source,
        preprocess=towers.preprocess,
        joint_dim=joint_dim,
        context_length=towers.context_length,
        expected_mpp=expected_mpp(towers.source),
        logit_scale=towers.logit_scale,
        fingerprint=fingerprint,
        precision=config.precision,
        device=device,
        towers=towers,
    )


def _towers(name: str) -> Towers:
    from clipit.models import clip_vlm, open_clip_vlm

    if name == "embedded":
        return _from_folder(EMBEDDED / "vlm")
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip" and rest:
        return open_clip_vlm.builtin_towers(rest)
    if scheme == "hf-hub" and rest:
        return open_clip_vlm.hub_towers(rest)
    if scheme == "clip" and rest:
        return clip_vlm.clip_towers(rest)
    return _from_folder(Path(name).expanduser())


def _from_folder(folder: Path) -> Towers:
    from clipit.models import clip_vlm, open_clip_vlm

    if not folder.is_dir():
        raise ModelError(
            explain(
                "neither a known kind of VLM name nor a folder",
                where=folder,
                fix="write embedded, open_clip:ARCH/PRETRAINED, "
                "hf-hub:ID (open_clip), clip:ID (transformers), or a folder",
            )
        )
    if (folder / "open_clip_config.json").is_file():
        return open_clip_vlm.folder_towers(folder)
    found = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if found.get("model_type") == "clip":
        return clip_vlm.clip_towers(str(folder))
    seen = ""
    if found:
        seen = (
            f"; its config.json is that of {found.get('model_type') or found.get('architecture') or 'something else'}"
        )
    raise ModelError(
        explain(
            "no VLM in this folder: looked for open_clip_config.json (open_clip) "
            f"and for config.json with model_type clip (transformers){seen}",
            where=folder,
            fix="give the folder that holds the model's own files",
        )
    )


def _several(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise ModelError(
            explain("one text where a list of texts is due", where=repr(texts[:60]), fix="put it into a list: [text]")
        )
    return list(texts)
