"""Where the models of a configuration come from, and whether they are there."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipit.config import BackboneConfig, Config, VLMConfig
from clipit.doctor.findings import Finding
from clipit.doctor.hub import Hub, in_cache

if TYPE_CHECKING:
    from clipit.models.specs import ModelSpec

_PACKAGES = {"conch": "conch", "musk": "musk"}
"""Family -> the package that opens it, which is no dependency of clipit."""


@dataclass(frozen=True)
class Place:
    """Where a model's files are looked for: one of `folder` and `hub_id`, or neither."""

    folder: Path | None = None
    hub_id: str | None = None
    spec: "ModelSpec | None" = None
    problem: str = ""
    """Why there is no place."""
    built_in: bool = False


def model_findings(config: Config, hub: Hub) -> list[Finding]:
    """One finding per model of the configuration."""
    from clipit.models.backbone_specs import BACKBONES

    findings = [place_finding("VLM", config.vlm.name, vlm_place(config.vlm), hub)]
    if config.second_vlm is not None:
        findings.append(place_finding("second VLM", config.second_vlm.name, vlm_place(config.second_vlm), hub))
    backbone = config.backbone
    if not backbone.pretrained:
        findings.append(Finding("PASS", "backbone", f"{backbone.name}: without weights (pretrained: false)"))
    else:
        findings.append(place_finding("backbone", backbone.name, backbone_place(backbone, BACKBONES), hub))
    return findings


def vlm_place(config: VLMConfig) -> Place:
    """Where `load_vlm` would look."""
    from clipit.models.vlm_specs import VLMS

    name, spec = config.name, VLMS.get(config.name)
    if name == "embedded":
        return Place(built_in=True)
    if spec is not None and spec.family == "image_only":
        return Place(spec=spec, problem=f"cannot pair tiles with texts: {spec.note}")
    if spec is not None and spec.loader.get("remote_code", spec.family == "keep") and not config.trust_remote_code:
        return Place(spec=spec, problem="runs code of its own repository: read it, then set trust_remote_code: true")
    if config.path is not None:
        return Place(folder=Path(config.path).expanduser(), spec=spec)
    if spec is not None and spec.loader.get("checkpoint"):
        return Place(spec=spec, problem=f"get its checkpoint from {spec.page} and give it as path")
    if spec is not None and spec.family == "open_clip":
        return _open_clip_place(spec.source, spec)
    if spec is not None:
        return Place(hub_id=spec.source, spec=spec)
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip" and rest:
        return _open_clip_place(rest, None)
    if scheme in ("hf-hub", "clip") and rest:
        folder = Path(rest).expanduser()
        return Place(folder=folder) if folder.is_dir() else Place(hub_id=rest)
    return Place(folder=Path(name).expanduser())


def _open_clip_place(source: str, spec: "ModelSpec | None") -> Place:
    """`ARCH/TAG`, `ARCH/FILE`, or (in the table) a hub id."""
    import open_clip

    architecture, _, tag = source.partition("/")
    if architecture not in open_clip.list_models():
        if spec is not None:
            return Place(hub_id=source, spec=spec)
        return Place(problem=f"open_clip has no architecture {architecture}")
    if Path(tag).is_file():
        return Place(folder=Path(tag), spec=spec)
    known = open_clip.get_pretrained_cfg(architecture, tag) or {}
    hub_id = str(known.get("hf_hub") or "").rstrip("/")
    return Place(hub_id=hub_id, spec=spec) if hub_id else Place(spec=spec, problem=f"no weights {tag!r} in open_clip")


def backbone_place(config: BackboneConfig, known: "Mapping[str, ModelSpec]") -> Place:
    """Where `load_backbone` would look."""
    name, spec = config.name, known.get(config.name)
    if name == "embedded":
        return Place(built_in=True)
    if spec is not None and spec.loader.get("remote_code") and not config.trust_remote_code:
        return Place(spec=spec, problem="runs code of its own repository: read it, then set trust_remote_code: true")
    if config.path is not None:
        return Place(folder=Path(config.path).expanduser(), spec=spec)
    source = spec.source if spec is not None else name
    for prefix in ("hf-hub:", "transformers:"):
        source = source.removeprefix(prefix)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Place(folder=folder, spec=spec)
    if "/" in source and not folder.is_absolute():
        return Place(hub_id=source, spec=spec)
    import timm

    if source.partition(".")[0] not in timm.list_models():
        return Place(folder=folder)
    found = timm.get_pretrained_cfg(source)
    hub_id = found.hf_hub_id if found is not None else None
    if not hub_id:
        return Place(problem="timm has no weights for it")
    tag = f".{found.tag}" if found.tag else ""
    return Place(hub_id=hub_id if hub_id != "timm/" else f"timm/{found.architecture}{tag}", spec=spec)


def place_finding(what: str, name: str, place: Place, hub: Hub) -> Finding:
    """Whether a model can be opened from its place, or fetched."""
    spec = place.spec
    note = spec.note if spec else ""
    if place.built_in:
        return Finding("PASS", what, f"{name}: part of the package")
    if place.problem:
        return Finding("FAIL", what, f"{name}: {place.problem}", "see python scripts/doctor.py --models for others")
    package = _PACKAGES.get(spec.family) if spec else None
    if package and importlib.util.find_spec(package) is None:
        page = spec.page if spec else ""
        return Finding("FAIL", what, f"{name}: the package {package} is not installed", f"see {page}. {note}")
    if place.folder is not None:
        if place.folder.exists():
            return Finding("PASS", what, f"{name}: {place.folder}")
        return Finding(
            "FAIL", what, f"{name}: {place.folder} is neither there nor a known name",
            "correct the name or the path; python scripts/doctor.py --models lists the names",
        )  # fmt: skip
    hub_id = place.hub_id or ""
    return _hub_finding(what, name, hub_id, spec is not None and spec.gated, hub)


def _hub_finding(what: str, name: str, hub_id: str, gated: bool, hub: Hub) -> Finding:
    page = f"https://huggingface.co/{hub_id.partition('@')[0]}"
    title = name if hub_id in name else f"{name} ({hub_id})"
    if in_cache(hub_id):
        return Finding("PASS", what, f"{title}: in the local cache")
    access = hub.access(hub_id)
    fetch = f"where there is a network: hf download {hub_id.partition('@')[0]}; copy the folder here and name it"
    ask = f"accept the licence at {page}, hf auth login; " if gated else ""
    if access == "granted":
        return Finding("PASS", what, f"{title}: not here yet, will be fetched when first used")
    if access == "gated":
        return Finding(
            "FAIL",
            what,
            f"{title}: gated, and this user has no access",
            f"accept the licence at {page}, then hf auth login",
        )
    if access == "absent":
        return Finding(
            "FAIL", what, f"{title}: the hub has no such model, or it is private", f"check the spelling: {page}"
        )
    if access == "offline":
        return Finding(
            "FAIL",
            what,
            f"{title}: not in the local cache, and HF_HUB_OFFLINE is set",
            f"{ask}unset HF_HUB_OFFLINE; or {fetch}",
        )
    gate = "; it is gated, and access could not be checked" if gated else ""
    return Finding("WARN", what, f"{title}: not in the local cache, and the hub does not answer{gate}", f"{ask}{fetch}")


def model_tables() -> str:
    """Both tables of models, for people."""
    from clipit.models.backbone_specs import BACKBONES
    from clipit.models.specs import spec_table
    from clipit.models.vlm_specs import VLMS

    tables = {"Vision-language models (vlm.name)": VLMS, "Backbones (backbone.name)": BACKBONES}
    return "\n\n".join(f"{title}\n{spec_table(known.values())}" for title, known in tables.items())
