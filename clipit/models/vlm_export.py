"""Write an adapted VLM: its adapter, and the merged model in its own format if the licence permits derivatives."""

import logging
from dataclasses import dataclass
from pathlib import Path

from clipit.config.run import VLMConfig
from clipit.errors import ConfigError, ModelError
from clipit.models.adapted_base import ADAPTED_FROM, base_of_adapted, record_files
from clipit.models.adapted_towers import AdaptedTowers, Tuning
from clipit.models.licences import vlm_licence
from clipit.models.loading import OPEN_CLIP_CONFIG, public_name, read_model_json
from clipit.models.python_vlm import PREFIX, python_towers
from clipit.models.vlm import VLM, load_vlm, vlm_fingerprint
from clipit.models.vlm_adapter import save_vlm_adapter
from clipit.models.vlm_specs import VLMS
from clipit.output_files.artifacts import whole_folder, write_json

logger = logging.getLogger(__name__)

MERGED, ADAPTER = "vlm", "adapter"
"""Names of the two folders that an adaptation writes."""


@dataclass(frozen=True)
class ExportedVLM:
    """Files of an adapted VLM.

    Attributes:
        merged: Folder in the VLM's own format; None if only the adapter is written.
        config: Configuration that loads the adapted VLM.
        reason: Why only the adapter is written; "" otherwise.
    """

    adapter: Path
    merged: Path | None
    config: VLMConfig
    fingerprint: str
    reason: str = ""


def check_adaptable(config: VLMConfig, tuning: Tuning) -> None:
    """Check before training that the adapted VLM can be written, and warn if its licence forbids derivatives.

    Raises:
        ConfigError: All weights would be trained although the licence forbids derivatives; or the VLM already has an
            adapter, and cannot be merged because of its licence or because it has no format of its own.
    """
    licence = vlm_licence(config.name)
    if config.adapter is not None and (licence.forbids_derivatives or not _has_format(config.name)):
        raise ConfigError(
            f"{licence.model} already has an adapter, and a second adaptation could only be written as another adapter",
            where=f"vlm.adapter: {config.adapter}",
            fix="remove vlm.adapter, and adapt the released model",
        )
    if not licence.forbids_derivatives:
        return
    if tuning == "full":
        raise ConfigError(
            f"the licence of {licence.model} ({licence.licence}) forbids derivatives, and with all weights trained "
            "the result would be a modified copy of the model",
            where="adapt.tuning: full",
            fix="set adapt.tuning: lora or projection, which write only an adapter",
        )
    logger.warning(
        f"The licence of {licence.model} ({licence.licence}) forbids derivatives: only an adapter is written, for your "
        f"own use with vlm.adapter; ask the model's publisher before you share it ({licence.page})"
    )


def _has_format(name: str) -> bool:
    """Return whether a VLM can be written in its own format; towers of a user's function may have none."""
    prefix, _, path = name.partition(":")
    return prefix != PREFIX or python_towers(path).save is not None


def export_vlm(vlm: VLM, config: VLMConfig, adapted: AdaptedTowers, folder: Path, card: str = "") -> ExportedVLM:
    """Write `adapter/` and, if licence and format permit, the merged model `vlm/`, each atomically.

    The adapted towers are moved to the CPU and merged in place.

    Args:
        vlm: VLM before the adaptation.
        config: Configuration that it was loaded from.
        adapted: Trained towers.
        folder: Folder of the adaptation.
        card: Text of `README.md` in both folders; "" for none.

    Raises:
        ModelError: The trained weights are not finite, or the written folder does not load as the same model.
    """
    licence = vlm_licence(vlm.name)
    adapted.cpu().eval()
    with whole_folder(folder / ADAPTER) as partial:
        save_vlm_adapter(adapted, {"name": public_name(vlm.name), "fingerprint": vlm.fingerprint}, partial)
        _write_card(partial, card)
    towers = adapted.merge()
    fingerprint = vlm_fingerprint(towers)
    with_adapter = config.model_copy(update={"adapter": str(folder / ADAPTER)})
    if licence.forbids_derivatives:
        reason = f"the licence of {licence.model} ({licence.licence}) forbids derivatives"
    elif towers.save is None:
        reason = f"{public_name(vlm.name)} has no format of its own"
    else:
        reason = ""
    if towers.save is None or reason:
        logger.info(f"Only the adapter is written, to be loaded with vlm.adapter: {reason}")
        return ExportedVLM(folder / ADAPTER, None, with_adapter, fingerprint, reason)
    with whole_folder(folder / MERGED) as partial:
        towers.save(partial)
        _write_origin(partial, base_of_adapted(config.name), vlm.expected_mpp)
        written = load_vlm(_merged_config(config, partial)).fingerprint
        if written != fingerprint:
            raise ModelError(
                f"the merged model cannot be written in its own format: its weights, tokeniser or preprocessing differ "
                f"when it is read again (fingerprint {written}, not {fingerprint})",
                where=folder / MERGED,
                fix=f"use the adapter with the VLM: vlm.adapter: {folder / ADAPTER}",
            )
        _write_card(partial, card)
        record_files(partial)
    return ExportedVLM(folder / ADAPTER, folder / MERGED, _merged_config(config, folder / MERGED), fingerprint)


def adapted_vlm(config: VLMConfig, folder: Path) -> VLMConfig:
    """Return the configuration that loads the VLM of a finished adaptation: merged, or the base with its adapter.

    Raises:
        ModelError: The folder contains neither a merged VLM nor an adapter.
    """
    if (folder / MERGED).is_dir():
        return _merged_config(config, folder / MERGED)
    if (folder / ADAPTER).is_dir():
        return config.model_copy(update={"adapter": str(folder / ADAPTER)})
    raise ModelError("no adapted VLM in this folder", where=folder, fix="finish the adaptation: clipit adapt")


def _merged_config(config: VLMConfig, folder: Path) -> VLMConfig:
    """Return the configuration that loads a merged folder: as `vlm.path` for a VLM in the table, else `vlm.name`."""
    location = {"path": str(folder)} if config.name in VLMS else {"name": str(folder), "path": None}
    return config.model_copy(update={"adapter": None, **location})


def _write_origin(folder: Path, base: str, mpp: float | None) -> None:
    """Record the base model and the µm per pixel of its training tiles in the model's configuration file."""
    file = next(file for name in (OPEN_CLIP_CONFIG, "config.json") if (file := folder / name).is_file())
    facts = {ADAPTED_FROM: public_name(base)} | ({"expected_mpp": mpp} if mpp is not None else {})
    write_json(file, read_model_json(file) | facts)


def _write_card(folder: Path, card: str) -> None:
    if card:
        (folder / "README.md").write_text(card, encoding="utf-8")
