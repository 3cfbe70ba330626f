"""VLM that embeds new prompts for a classifier: it must be the VLM used in training."""

from pathlib import Path

import torch

from clipit.config.run import VLMConfig
from clipit.errors import ModelError
from clipit.models.classifier_spec import ClassifierSpec
from clipit.models.vlm import VLM, load_vlm
from clipit.models.vlm_adapter import RECORD
from clipit.models.vlm_specs import VLMS

_PASS_VLM = "use load_classifier(..., vlm=NAME_OR_FOLDER) or, in a command, --vlm NAME_OR_FOLDER"
_PASS_ADAPTED = (
    "use load_classifier(..., vlm=FOLDER) or, in a command, --vlm FOLDER, with the folder of the adapter or of the "
    "adapted VLM, if there is one; in Python, vlm=VLMConfig(name=..., path=..., adapter=...) also works"
)


def load_text_vlm(
    spec: ClassifierSpec, given: str | VLMConfig | None, device: torch.device, *, trust_remote_code: bool
) -> VLM:
    """Load the VLM that a classifier was trained with, to embed new prompts.

    Args:
        spec: Description of the classifier.
        given: VLM named by the caller, or the folder of an adapter; None for the VLM named by the classifier.
        device: Device of the VLM.
        trust_remote_code: Whether to run Python code that defines the VLM.

    Raises:
        ModelError: The classifier was trained without text; its VLM has to be named by the caller; or the VLM cannot be
            loaded, or is not the one used in training.
    """
    if spec.vlm is None:
        raise ModelError("this classifier does not name a VLM", where="vlm", fix="pass embeddings instead of texts")
    trained_with: str = spec.vlm["name"]
    adapted = spec.vlm.get("adapter") is not None
    if adapted and given is None:
        raise ModelError(
            f"new prompts need the VLM used in training, {trained_with} with an adapter, which is not part of the "
            "classifier",
            where="zero_shot",
            fix=f"{_PASS_ADAPTED}; or use cached prompts (prompts=None), or embeddings instead of texts",
        )
    name = given.name if isinstance(given, VLMConfig) else given or trained_with
    config = given if isinstance(given, VLMConfig) else _config(spec.vlm, trained_with, given, trust_remote_code)
    try:
        vlm = load_vlm(config, device)
    except ModelError as error:
        raise ModelError(
            f"new prompts need the VLM {name}, which cannot be loaded:\n{error}",
            where="zero_shot",
            fix=f"{_PASS_VLM}; or use cached prompts (prompts=None), or embeddings instead of texts",
        ) from error
    if vlm.fingerprint != spec.vlm["fingerprint"]:
        trained = f"{trained_with}{' with an adapter' if adapted else ''}, {spec.vlm['fingerprint']}"
        raise ModelError(
            f"{name} (fingerprint {vlm.fingerprint}) is not the VLM used in training ({trained})",
            where="zero_shot",
            fix=_PASS_ADAPTED if adapted else f"{_PASS_VLM}, with the same weights and preprocessing",
        )
    return vlm


def _config(described: dict[str, object], trained_with: str, given: str | None, trust_remote_code: bool) -> VLMConfig:
    """Return the configuration of the VLM that the caller names, or else of the VLM used in training.

    If the VLM used in training is in the table, a folder named by the caller is loaded according to that entry. The
    folder of an adapter is added to the VLM used in training.

    Raises:
        ModelError: The VLM is named only by the classifier's file, and is neither embedded nor in the table. The file
            of an untrusted classifier could name any model.
    """
    is_adapter = given is not None and (Path(given).expanduser() / RECORD).is_file()
    if (given is None or is_adapter) and trained_with != "embedded" and trained_with not in VLMS:
        raise ModelError(
            "this VLM is named only by the classifier's file and is not in clipit's table, so it is not loaded",
            where=trained_with,
            fix=f"check this name, then {_PASS_ADAPTED if is_adapter else _PASS_VLM}",
        )
    keys = {"trust_remote_code": trust_remote_code, "quick_gelu": described.get("quick_gelu")}
    if is_adapter:
        return VLMConfig(name=trained_with, adapter=given, **keys)
    name = given or trained_with
    if trained_with in VLMS and name not in VLMS:
        return VLMConfig(name=trained_with, path=name, **keys)
    return VLMConfig(name=name, **keys)
