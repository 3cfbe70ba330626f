"""Table of known VLMs; to add a model of a known family, add an entry."""

from typing import Any

from clipit.models.specs import HALF, IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, OPENAI_STD, ModelSpec

_AT_20X = 0.5  # µm per pixel at 20x, the tile magnification in the tables of mahmoodlab/TRIDENT
_HUB = "https://huggingface.co/"


def _vlm(
    name: str, family: str, source: str, dim: int, context_length: int | None, raw_dim: int, **more: Any
) -> ModelSpec:
    """Build an entry with common defaults: OpenAI's means and standard deviations, 224 pixels, and the Hub page."""
    shared: dict[str, Any] = {
        "pixels": 224,
        "mean": OPENAI_MEAN,
        "std": OPENAI_STD,
        "page": _HUB + source,
        "licence": "unknown",
    }
    return ModelSpec(
        name=name,
        kind="vlm",
        family=family,
        source=source,
        dim=dim,
        context_length=context_length,
        raw_dim=raw_dim,
        **{**shared, **more},
    )


_ENTRIES = (
    _vlm(
        "clip-vit-b-32", "open_clip", "ViT-B-32-quickgelu/openai", 512, 77, 768,
        licence="MIT", page=_HUB + "openai/clip-vit-base-patch32", loader={"quick_gelu": True},
        note="Trained on natural images; OpenAI's weights need quick GELU.",
    ),
    _vlm(
        "clip-vit-l-14", "open_clip", "ViT-L-14-quickgelu/openai", 768, 77, 1024,
        licence="MIT", page=_HUB + "openai/clip-vit-large-patch14", loader={"quick_gelu": True},
        note="Trained on natural images; OpenAI's weights need quick GELU.",
    ),
    _vlm("plip", "clip", "vinid/plip", 512, 77, 768, licence="non-commercial"),
    _vlm(
        "conch", "conch", "MahmoodLab/conch", 512, 127, 512,
        pixels=448, expected_mpp=_AT_20X, licence="CC-BY-NC-ND-4.0", gated=True,
        loader={"config": "conch_ViT-B-16"},
        note="Needs the conch package. 127 tokens: the 128th position is for the class token.",
    ),
    _vlm("quiltnet-b-32", "open_clip", "wisdomik/QuiltNet-B-32", 512, 77, 768, licence="MIT",
         note="Its configuration does not set quick GELU, although it was fine-tuned from OpenAI's weights."),
    _vlm("quiltnet-b-16", "open_clip", "wisdomik/QuiltNet-B-16", 512, 77, 768, licence="MIT",
         note="Its configuration does not set quick GELU, although it was fine-tuned from OpenAI's weights."),
    _vlm("quiltnet-b-16-pmb", "open_clip", "wisdomik/QuiltNet-B-16-PMB", 512, 256, 768,
         note="Its text tower needs PubMedBERT's configuration and tokeniser files as well."),
    _vlm(
        "biomedclip", "open_clip", "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", 512, 256, 768,
        licence="MIT", note="Its text tower needs PubMedBERT's configuration and tokeniser files as well.",
    ),
    _vlm("bioclip", "open_clip", "imageomics/bioclip", 512, 77, 768,
         note="Trained on photographs and names of organisms, not on pathology."),
    _vlm(
        "pathgen-clip-b-16", "open_clip", "ViT-B-16", 512, 77, 768,
        gated=True, page="https://github.com/PathFoundation/PathGen-1.6M", loader={"checkpoint": True},
        note="Needs the checkpoint file from its page (pathgenclip.pt) as vlm.path.",
    ),
    _vlm(
        "pathgen-clip-l-14", "clip", "jamessyx/pathgenclip-vit-large-patch14-hf", 768, 77, 1024, gated=True,
        note="The authors' transformers version; scores differ between releases (PathGen-1.6M#7); some users run it at "
        "336 px.",
    ),
    _vlm(
        "musk", "musk", "xiangjx/musk", 1024, 100, 1024,
        pixels=384, mean=HALF, std=HALF, expected_mpp=_AT_20X, licence="CC-BY-NC-ND-4.0", gated=True,
        loader={"architecture": "musk_large_patch16_384"},
        note="Needs the musk package with fairscale, einops and sentencepiece. Raw embeddings use a single scale.",
    ),
    _vlm(
        "keep", "keep", "Astaxanthin/KEEP", 768, 256, 1024,
        mean=IMAGENET_MEAN, std=IMAGENET_STD, expected_mpp=_AT_20X, licence="MIT",
        note="Runs code from its repository, which requires vlm.trust_remote_code.",
    ),
    _vlm(
        "conch-v1.5", "image_only", "MahmoodLab/conchv1_5", 768, None, 768,
        pixels=448, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", expected_mpp=_AT_20X,
        gated=True,
        note="Only the image tower was released, so it cannot be used for pairing.",
    ),
    _vlm(
        "titan", "image_only", "MahmoodLab/TITAN", 768, None, 768,
        pixels=448, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", expected_mpp=_AT_20X,
        gated=True,
        note="Embeds whole slides from features, not tiles, so it cannot be used for pairing.",
    ),
)  # fmt: skip

VLMS: dict[str, ModelSpec] = {entry.name: entry for entry in _ENTRIES}
"""Table entries by name."""
