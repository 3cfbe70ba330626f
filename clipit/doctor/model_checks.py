"""Check the models of a configuration: whether they load or can be downloaded, and whether training fits in memory."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.distributed import get_processes
from clipit.doctor.check_results import Check, as_sentence, failed_check, merge_checks, record_error
from clipit.errors import ClipitError
from clipit.free_memory import device_memory
from clipit.models.backbone_specs import BACKBONES
from clipit.models.backbones import backbone_repository, load_backbone
from clipit.models.loading import foreign_errors
from clipit.models.specs import ModelSpec
from clipit.models.vlm import load_vlm
from clipit.models.vlm_sources import check_vlm_name, vlm_repository
from clipit.models.vlm_specs import VLMS
from clipit.training.auto_precision import resolve_precision
from clipit.training.memory_estimate import estimate_without_weights
from clipit.training.memory_plan import choose_memory_plan
from clipit.training.terms.term_table import uses_vlm

_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


def check_vlm(section: str, config: VLMConfig) -> list[Check]:
    """Check whether a VLM loads or can be downloaded, with separate checks of its package and its weights."""
    checks: list[Check] = []
    with record_error(section, checks):
        check_vlm_name(config)
    checks += _check_weights(section, config, vlm_repository(config), load_vlm, VLMS)
    return list(dict.fromkeys(checks))  # the loader checks the name, too


def check_backbone(config: BackboneConfig) -> list[Check]:
    """Check whether a backbone loads, or can be downloaded."""
    hub_id = backbone_repository(config)
    return _check_weights("backbone", config, hub_id if config.pretrained else None, load_backbone, BACKBONES)


def _check_weights(
    section: str, config: Any, hub_id: str | None, load: Callable[[Any], object], specs: Mapping[str, ModelSpec]
) -> list[Check]:
    """Check whether a model loads from this machine or, with a repository, is cached or can be downloaded."""
    checks: list[Check] = []
    with record_error(section, checks):
        if hub_id is None:
            load(config)
            state = "can be loaded"
        elif cached_bytes(hub_id):
            state = f"({hub_id}) is in the local cache"
        else:
            key = "path" if config.name in specs else "name"
            ask_hub(config.name, hub_id, f"A folder with its files is read with --{section}.{key}=FOLDER.")
            state = f"({hub_id}) is downloaded on first use"
        checks.append(Check("PASS", section, f"{config.name} {state}"))
    return checks


def ask_hub(name: str, hub_id: str, hint: str) -> None:
    """Check that this user may download a repository.

    Raises:
        ModelError: The repository is gated or does not exist, or the Hub cannot be reached.
    """
    with foreign_errors(name, hub_id, hint):
        repository = hub_id.partition("@")[0]
        try:
            HfApi().auth_check(repository)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:  # also the answer of a mirror (HF_ENDPOINT) without this check
            HfApi().model_info(repository)


def cached_bytes(hub_id: str) -> int:
    """Return the size of a repository's weights in the local cache in bytes; 0 if they are not cached."""
    name = repo_folder_name(repo_id=hub_id.partition("@")[0], repo_type="model")
    return max(map(_weight_bytes, (Path(constants.HF_HUB_CACHE) / name / "snapshots").glob("*")), default=0)


def vlm_weight_bytes(config: VLMConfig) -> int:
    """Return the size of a VLM's local weights in bytes; 0 if they are not on this machine."""
    path = Path(config.path or config.name.removeprefix("clip:")).expanduser()
    repository = None if path.exists() else vlm_repository(config)
    return _weight_bytes(path) if repository is None else cached_bytes(repository)


def _weight_bytes(path: Path) -> int:
    """Return the size of a weights file, or of the weights in a folder, which may contain them in several formats."""
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.rglob("*") if file.exists()]
    return max(sum(file.stat().st_size for file in files if file.suffix == suffix) for suffix in _WEIGHTS)


def check_memory(configs: Mapping[str, RunConfig]) -> list[Check]:
    """Compare the memory that the training of each arm needs with the free memory, without loading weights.

    Args:
        configs: Name of an arm -> its configuration, with the arm resolved.
    """
    free = device_memory(get_processes().device)
    return merge_checks({name: [check_training_memory(config, free)] for name, config in configs.items()})


def check_training_memory(config: RunConfig, free: int) -> Check:
    """Compare the memory that training needs with the free memory in bytes.

    Args:
        config: Run configuration, with its arm resolved.
    """
    config = resolve_precision(config)
    precision = config.training.precision
    try:
        estimate, pixels = estimate_without_weights(config.backbone, config.lora, config.student, precision)
    except Exception as error:  # the model is unknown, not cached, or cannot be built without its weights
        reason = failed_check("", error).message[:200]
        fix = "correct the backbone if its own check fails; the estimate is repeated when training starts"
        return Check("WARN", "memory", f"The memory needed for training could not be estimated: {reason}", fix)
    vlms = [vlm for vlm in (config.vlm, config.second_vlm) if vlm is not None and uses_vlm(config)]
    reserved = sum(map(vlm_weight_bytes, vlms))  # VLMs stay in memory during training
    try:
        plan = choose_memory_plan(config, estimate, free, reserved=reserved, pixels=pixels)
    except ClipitError as error:
        return failed_check("memory", error)
    notes = ". ".join(note.partition(": ")[2] for note in plan.notes)
    if not plan.fits:
        return Check("WARN", "memory", as_sentence(notes))
    return Check("PASS", "memory", ". ".join(filter(None, [plan.message, notes])))
