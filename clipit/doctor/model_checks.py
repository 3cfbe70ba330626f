"""Check the models of a configuration: whether they load, are cached, or can be downloaded."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Literal, TypeVar

from clipit.config.run import BackboneConfig, VLMConfig
from clipit.doctor.check_results import Check, Status, failed_check, find_failures, try_check
from clipit.errors import ClipitError
from clipit.models.backbone_specs import BACKBONES
from clipit.models.backbones import backbone_repository, load_backbone
from clipit.models.specs import ModelSpec
from clipit.models.vlm import load_vlm
from clipit.models.vlm_sources import check_vlm_name, vlm_repository
from clipit.models.vlm_specs import VLMS

Access = Literal["granted", "gated", "absent", "offline", "unreachable"]
_ModelConfig = TypeVar("_ModelConfig", VLMConfig, BackboneConfig)
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")


@cache
def ask_hub(hub_id: str) -> Access:
    """Return whether this user may download a repository; `unreachable` after a few seconds without a response."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    from clipit.models.loading import hub_is_reachable

    if constants.HF_HUB_OFFLINE:
        return "offline"
    if not hub_is_reachable():
        return "unreachable"
    try:
        HfApi().auth_check(hub_id)
    except GatedRepoError:
        return "gated"
    except RepositoryNotFoundError:
        return "absent"
    except Exception:  # any error of the network stack counts as unreachable
        return "unreachable"
    return "granted"


def cached_bytes(hub_id: str) -> int:
    """Return the size of a repository's weights in the local cache in bytes; 0 if they are not cached."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

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


def check_vlm(subject: str, config: VLMConfig) -> list[Check]:
    """Check whether a VLM loads or can be downloaded, with separate checks of its package and its weights."""
    problems, repository = find_failures(subject, partial(check_vlm_name, config)), vlm_repository(config)
    if repository is None:
        weights = _check_load(subject, config, load_vlm)
    else:
        section = "second_vlm" if subject == "second VLM" else "vlm"
        weights = check_download(subject, config.name, repository, VLMS.get(config.name), section)
    return list(dict.fromkeys([*problems, weights]))  # the loader checks the name, too


def check_backbone(config: BackboneConfig) -> list[Check]:
    """Check whether a backbone loads, or can be downloaded."""
    try:
        repository = backbone_repository(config)
    except ClipitError as error:
        return [failed_check("backbone", error)]
    if repository is None or not config.pretrained:
        return [_check_load("backbone", config, load_backbone)]
    return [check_download("backbone", config.name, repository, BACKBONES.get(config.name), "backbone")]


def _check_load(subject: str, config: _ModelConfig, load: Callable[[_ModelConfig], object]) -> Check:
    if config.name == "embedded":
        return Check("PASS", subject, "bundled with clipit")
    return try_check(subject, partial(load, config), f"{config.name} can be loaded")


def check_download(subject: str, name: str, hub_id: str, spec: ModelSpec | None, section: str) -> Check:
    """Check whether a model is cached or can be downloaded from its repository on the Hub.

    Args:
        subject: Role of the model, shown as the subject of the check.
        spec: Table entry of the model; None for a name that is not in the table.
        section: Section of the configuration that names the model.
    """
    model = name if hub_id in name else f"{name} ({hub_id})"
    if cached_bytes(hub_id):
        return Check("PASS", subject, f"{model} is in the local cache")
    repository = hub_id.partition("@")[0]
    page = f"https://huggingface.co/{repository}"
    licence = f"accept the licence at {page}, then hf auth login"
    gated = spec is not None and spec.gated
    download = f"on a machine with network access: hf download {repository}; copy the folder here and set "
    download = f"{licence}; " * gated + f"{download}--{section}.{'path' if spec else 'name'}=FOLDER"
    unknown = "; it is gated, and access could not be checked" * gated
    missing = f"{model} is not in the local cache, and"
    outcomes: dict[Access, tuple[Status, str, str]] = {
        "granted": ("PASS", f"{model} is downloaded on first use", ""),
        "gated": ("FAIL", f"{model} is gated, and this user has no access.", licence),
        "absent": ("FAIL", f"{model} does not exist on the Hub, or is private.", f"check the spelling: {page}"),
        "offline": ("FAIL", f"{missing} HF_HUB_OFFLINE is set.", f"unset HF_HUB_OFFLINE; or {download}"),
        "unreachable": ("WARN", f"{missing} the Hub is unreachable{unknown}.", download),
    }
    status, message, fix = outcomes[ask_hub(repository)]
    return Check(status, subject, message, fix)
