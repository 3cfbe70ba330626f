"""VLMs that transformers loads as `CLIPModel`: Hub ids and local folders."""

import logging
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from clipit.errors import ModelError, shortlist
from clipit.models.loading import (
    CLIP_WEIGHTS,
    IMAGE_PROCESSOR_FILES,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    foreign_errors,
    load_pretrained,
    read_image_processor,
    require_files,
)
from clipit.models.preprocess import preprocess_from_transformers
from clipit.models.token_grids import square_grid
from clipit.models.towers import Towers, transformers_token_counter, transformers_tokenise
from clipit.models.weights import mismatches, unused_layers

logger = logging.getLogger(__name__)

_FILES = {
    "configuration": ("config.json",),
    "weights": CLIP_WEIGHTS,
    "tokeniser": TOKENIZER_FILES[:2],
    "tokeniser's configuration": (TOKENIZER_CONFIG,),
    "processor": IMAGE_PROCESSOR_FILES,
}


def clip_towers(source: str) -> Towers:
    """Load a CLIP model with transformers.

    Args:
        source: Hub id (`vinid/plip`, optionally with `@revision`) or a local folder.

    Raises:
        ModelError: The model is missing, gated, incomplete, or not a CLIP model.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    local = Path(source).is_dir()
    if local:
        require_files(Path(source), "a transformers CLIP model", _FILES)
    hub_id, _, revision = (source, "", "") if local else source.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    with foreign_errors(source if local else f"clip:{source}", None if local else hub_id):
        model, report = load_pretrained(CLIPModel, hub_id, **options)  # mismatched weights are reported together below
        tokenizer: Any = AutoTokenizer.from_pretrained(hub_id, trust_remote_code=False, **options)
        if local:  # read the file itself, because the class fills in defaults for missing keys
            processor = read_image_processor(Path(source))
        else:
            processor = CLIPImageProcessor.from_pretrained(hub_id, **options).to_dict()
    problems = [f"{key} is missing" for key in sorted(report["missing_keys"]) if not key.endswith("position_ids")]
    problems += mismatches(report.get("mismatched_keys", ()))
    unused = sorted(key for key in report["unexpected_keys"] if not key.endswith("position_ids"))
    problems += [f"{key} is not in the model of config.json" for key in unused_layers(model, unused)]
    if processor is None:
        raise ModelError(
            "processor_config.json has no key image_processor, and there is no preprocessor_config.json",
            where=source,
            fix="save the image processor into this folder too: CLIPProcessor.save_pretrained",
        )
    if problems:  # transformers would keep random weights
        raise ModelError(
            f"the weights do not match a CLIP model: {shortlist(problems)}",
            where=source,
            fix="use a folder or Hub id written by CLIPModel.save_pretrained, with its own config.json",
        )
    if unused:
        logger.warning(f"{source}: weights that the CLIP model does not use: {shortlist(unused)}")
    context_length = int(model.config.text_config.max_position_embeddings)

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        # load a fresh tokeniser, because tokenising has stored truncation and padding in the first one
        AutoTokenizer.from_pretrained(hub_id, trust_remote_code=False, **options).save_pretrained(folder)
        if local:
            for name in IMAGE_PROCESSOR_FILES:
                if (Path(source) / name).is_file():
                    shutil.copyfile(Path(source) / name, folder / name)
        else:
            CLIPImageProcessor.from_pretrained(hub_id, **options).save_pretrained(folder)

    return Towers(
        module=model,
        preprocess=preprocess_from_transformers(processor, source),
        context_length=context_length,
        logit_scale=float(model.logit_scale.detach().exp()),
        source=source,
        count_tokens=transformers_token_counter(tokenizer),
        tokenise=transformers_tokenise(tokenizer, context_length),
        vocabulary=tokenizer.get_vocab(),
        image=lambda pixels: _projected(model.get_image_features(pixel_values=pixels)),
        text=lambda tokens: _projected(model.get_text_features(**tokens)),
        raw=lambda pixels: model.vision_model(pixel_values=pixels).pooler_output,
        raw_dim=int(model.config.vision_config.hidden_size),
        tokens=lambda pixels: _patch_tokens(model, pixels),
        save=save,
    )


def _patch_tokens(model: Any, pixels: Tensor) -> Tensor:
    """Return patch tokens, normalised and projected like the class token."""
    hidden = model.vision_model(pixel_values=pixels).last_hidden_state[:, 1:]
    projected: Tensor = model.visual_projection(model.vision_model.post_layernorm(hidden))
    return square_grid(projected, "the CLIP model")


def _projected(output: Any) -> Tensor:
    """Return the projected embedding: the output itself in transformers 4, its `pooler_output` in transformers 5."""
    embeddings: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embeddings
