"""VLMs that transformers opens as `CLIPModel`: hub ids and local folders."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipit.errors import ModelError, explain, shortlist
from clipit.models.loading import (
    CLIP_WEIGHTS,
    TOKENIZER_FILES,
    TOKENIZER_RULES,
    foreign_errors,
    read_json,
    require_files,
)
from clipit.models.preprocess import preprocess_from_transformers
from clipit.models.towers import Tokens, Towers
from clipit.models.weights import mismatches

_PROCESSOR = "preprocessor_config.json"
_PARTS = {
    "configuration": ("config.json",),
    "weights": CLIP_WEIGHTS,
    "tokeniser": TOKENIZER_FILES[:2],
    "tokeniser's rules": (TOKENIZER_RULES,),
    "processor": (_PROCESSOR,),
}


def clip_towers(source: str) -> Towers:
    """A transformers CLIP model.

    Args:
        source: Hub id (`vinid/plip`, with `@revision` if wanted) or a local folder.

    Raises:
        ModelError: It is absent, gated, incomplete, or no CLIP model.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar per loaded file says nothing to a user
    local = Path(source).is_dir()
    if local:
        require_files(Path(source), "a transformers CLIP model", _PARTS)
    hub_id, _, revision = (source, "", "") if local else source.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    with foreign_errors(source if local else f"clip:{source}", None if local else hub_id):
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # what does not fit is said below, in one error
        try:
            loaded: Any = CLIPModel.from_pretrained(
                hub_id, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32, **options
            )
        finally:
            logging.set_verbosity(verbosity)
        model, report = loaded
        tokenizer: Any = AutoTokenizer.from_pretrained(hub_id, trust_remote_code=False, **options)
        if local:  # the file itself: the class would fill in defaults for what it lacks
            processor = read_json(Path(source) / _PROCESSOR)
        else:
            processor = CLIPImageProcessor.from_pretrained(hub_id, **options).to_dict()
    unfit = [f"{key} is missing" for key in sorted(report["missing_keys"]) if not key.endswith("position_ids")]
    unfit += mismatches(report.get("mismatched_keys", ()))
    if unfit:  # transformers would go on with random values
        raise ModelError(
            explain(
                f"the weights do not fit a CLIP model: {shortlist(unfit)}",
                where=source,
                fix="use a folder or hub id that CLIPModel.save_pretrained wrote",
            )
        )
    budget = int(model.config.text_config.max_position_embeddings)

    def tokenise(texts: Any) -> Tokens:
        """Ids and masks, padded to the longest text; what exceeds the budget is cut."""
        inputs = tokenizer(list(texts), padding=True, truncation=True, max_length=budget, return_tensors="pt")
        return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}

    return Towers(
        module=model,
        preprocess=preprocess_from_transformers(processor, source),
        context_length=budget,
        logit_scale=float(model.logit_scale.detach().exp()),
        source=source,
        count_tokens=lambda texts: (
            [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]] if texts else []
        ),
        tokenise=tokenise,
        vocabulary=tokenizer.get_vocab(),
        image=lambda pixels: _projected(model.get_image_features(pixel_values=pixels)),
        text=lambda tokens: _projected(model.get_text_features(**tokens)),
        raw=lambda pixels: model.vision_model(pixel_values=pixels).pooler_output,
        raw_dim=int(model.config.vision_config.hidden_size),
    )


def _projected(output: Any) -> Tensor:
    """transformers 4 returns the projected embedding, 5 an output that holds it as `pooler_output`."""
    embeddings: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embeddings
