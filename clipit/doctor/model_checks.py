"""Check the models of a configuration: whether they load, are cached, or can be downloaded."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipit.config.run import BackboneConfig, VLMConfig
from clipit.doctor.check_results import Check, Status, failed_check
from clipit.errors import ClipitError

if TYPE_CHECKING:
    from clipit.models.specs import ModelSpec

Access = Literal["granted", "gated", "absent", "offline", "unreachable"]
AskHub = Callable[[str], Access]
"""Function that returns whether this user may download a repository of the Hugging Face Hub."""

_PACKAGES = {"conch": ("conch",), "musk": ("musk", "fairscale", "einops", "sentencepiece")}
"""Model family -> packages that load its models and are not dependencies of clipit."""
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


def check_hub(needed: bool = True) -> list[Check]:
    """Check whether the Hub can be reached and a token is present; the token itself is never shown.

    Args:
        needed: Whether a model or data set may come from the Hub; if False, all checks pass.
    """
    from huggingface_hub import constants, get_token

    from clipit.models.loading import hub_is_reachable

    if constants.HF_HUB_OFFLINE:
        mode = Check("PASS", "Hub", "HF_HUB_OFFLINE is set: models must be cached or given as folders")
    elif hub_is_reachable():
        mode = Check("PASS", "Hub", f"{constants.ENDPOINT} is reachable; cache: {constants.HF_HUB_CACHE}")
    elif not needed:
        mode = Check("PASS", "Hub", f"{constants.ENDPOINT} is unreachable; nothing is downloaded from it")
    else:
        fix = "without network access, use local model folders, and set HF_HUB_OFFLINE=1 so that runs do not wait"
        mode = Check(
            "WARN", "Hub", f"{constants.ENDPOINT} is unreachable. Cached models are in {constants.HF_HUB_CACHE}.", fix
        )
    if get_token():
        return [mode, Check("PASS", "token", "present")]
    if not needed:
        return [mode, Check("PASS", "token", "none; only gated models need one")]
    message = "There is no token, so gated models cannot be downloaded."
    return [mode, Check("WARN", "token", message, "hf auth login (or set HF_TOKEN)")]


def is_cached(hub_id: str) -> bool:
    """Return whether the local cache contains weights from this repository."""
    return any(path.suffix in _WEIGHTS and path.exists() for path in _snapshots(hub_id).glob("*/**/*"))


def _snapshots(hub_id: str) -> Path:
    """Return the folder of a model's snapshots in the local cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=hub_id.partition("@")[0], repo_type="model")
    return Path(constants.HF_HUB_CACHE) / name / "snapshots"


def vlm_weight_bytes(config: VLMConfig) -> int:
    """Return the size of a VLM's local weights in bytes; 0 if they are not on this machine."""
    from clipit.models.vlm_specs import VLMS

    path = Path(config.path or config.name.removeprefix("clip:")).expanduser()
    if path.is_file():
        return path.stat().st_size
    folders = [path]
    if not path.is_dir():
        hub_id = vlm_hub_id(config, VLMS.get(config.name))
        if hub_id is None:
            return 0
        folders = [*_snapshots(hub_id).glob("*")]
    sizes = [0]
    for folder in folders:  # a snapshot may contain the same weights in several formats
        for suffix in _WEIGHTS:
            sizes.append(sum(file.stat().st_size for file in folder.rglob(f"*{suffix}") if file.exists()))
    return max(sizes)


def check_vlm(subject: str, config: VLMConfig, ask: AskHub) -> list[Check]:
    """Check whether a VLM loads or can be downloaded, with separate checks of its package and its weights."""
    from clipit.models.vlm import load_vlm
    from clipit.models.vlm_specs import VLMS

    spec = VLMS.get(config.name)
    if config.name == "embedded":
        return [Check("PASS", subject, "bundled with clipit")]
    checks = []
    if spec is not None and not all(importlib.util.find_spec(name) for name in _PACKAGES.get(spec.family, ())):
        # Load by name only: with a path, the loader might fail on the path first.
        checks.append(_check_load(subject, config.name, lambda: load_vlm(VLMConfig(name=config.name))))
        if config.path is not None:
            if not Path(config.path).expanduser().exists():
                fix = f"download all files from {spec.page} into this folder"
                checks.append(Check("FAIL", subject, f"The path of {config.name} does not exist: {config.path}.", fix))
            return checks
    hub_id = vlm_hub_id(config, spec)
    if hub_id is None:
        return [*checks, _check_load(subject, config.name, lambda: load_vlm(config))]
    section = "second_vlm" if subject == "second VLM" else "vlm"
    return [*checks, check_download(subject, config.name, hub_id, spec, ask, section)]


def check_backbone(config: BackboneConfig, ask: AskHub) -> list[Check]:
    """Check whether a backbone loads, or can be downloaded."""
    from clipit.models.backbone_specs import BACKBONES
    from clipit.models.backbones import load_backbone

    if config.name == "embedded":
        return [Check("PASS", "backbone", "bundled with clipit")]
    if not config.pretrained:
        return [Check("PASS", "backbone", f"{config.name}, with random weights (pretrained: false)")]
    spec = BACKBONES.get(config.name)
    hub_id = backbone_hub_id(config, spec)
    if hub_id is None:
        return [_check_load("backbone", config.name, lambda: load_backbone(config))]
    return [check_download("backbone", config.name, hub_id, spec, ask, "backbone")]


def vlm_hub_id(config: VLMConfig, spec: "ModelSpec | None") -> str | None:
    """Return the repository of a VLM; None if nothing is downloaded, or the loader rejects the model.

    Args:
        spec: Table entry of the model; None for a name outside the table.
    """
    if config.path is not None:
        return None
    if spec is not None:
        untrusted = spec.family == "keep" and not config.trust_remote_code
        if untrusted or spec.family == "image_only" or spec.loader.get("checkpoint"):
            return None
        return _open_clip_hub_id(spec.source) if spec.loader.get("quick_gelu") else spec.source
    scheme, _, source = config.name.partition(":")
    if scheme == "open_clip":
        return _open_clip_hub_id(source)
    is_hub_id = scheme in ("hf-hub", "clip") and source and not Path(source).expanduser().is_dir()
    return source if is_hub_id else None


def _open_clip_hub_id(source: str) -> str | None:
    import open_clip

    architecture, _, tag = source.partition("/")
    published = open_clip.get_pretrained_cfg(architecture, tag) or {}
    return str(published.get("hf_hub") or "").rstrip("/") or None


def backbone_hub_id(config: BackboneConfig, spec: "ModelSpec | None") -> str | None:
    """Return the repository of a backbone; None if nothing is downloaded, or the loader rejects the model."""
    if config.path is not None or (
        spec is not None and spec.loader.get("remote_code") and not config.trust_remote_code
    ):
        return None
    source = (spec.source if spec else config.name).removeprefix("hf-hub:").removeprefix("transformers:")
    folder = Path(source).expanduser()
    if folder.is_dir() or folder.is_absolute():
        return None
    if "/" in source:
        return source
    import timm

    published = timm.get_pretrained_cfg(source) if source.partition(".")[0] in timm.list_models() else None
    if published is None or not published.hf_hub_id:
        return None
    tag = f".{published.tag}" if published.tag else ""
    return f"timm/{published.architecture}{tag}" if published.hf_hub_id == "timm/" else str(published.hf_hub_id)


def _check_load(subject: str, name: str, load: Callable[[], object]) -> Check:
    """Load the model as a run would; an error of the loader becomes a failed check."""
    try:
        load()
    except ClipitError as error:
        return failed_check(subject, error)
    except (ImportError, OSError, RuntimeError) as error:
        return Check("FAIL", subject, f"{name} cannot be loaded: {error}.", "clipit doctor --models lists known names")
    return Check("PASS", subject, f"{name} can be loaded")


def check_download(subject: str, name: str, hub_id: str, spec: "ModelSpec | None", ask: AskHub, section: str) -> Check:
    """Check whether a model is cached or can be downloaded from its repository on the Hub.

    Args:
        subject: Purpose of the model, as the subject of the check.
        spec: Table entry of the model; None for a name outside the table.
        ask: Function that returns whether the repository may be downloaded.
    """
    model = name if hub_id in name else f"{name} ({hub_id})"
    if is_cached(hub_id):
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
    status, message, fix = outcomes[ask(repository)]
    return Check(status, subject, message, fix)


def model_tables() -> str:
    """Format the tables of known VLMs and backbones as text."""
    from clipit.models.backbone_specs import BACKBONES
    from clipit.models.specs import spec_table
    from clipit.models.vlm_specs import VLMS

    tables = {"Vision-language models (vlm.name)": VLMS, "Backbones (backbone.name)": BACKBONES}
    return "\n\n".join(f"{title}\n{spec_table(specs.values())}" for title, specs in tables.items())
