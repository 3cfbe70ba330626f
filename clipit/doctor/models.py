"""Where the models of a configuration come from, and whether they are there."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.doctor.findings import Finding, from_error
from clipit.doctor.hub import Hub, in_cache
from clipit.doctor.model_files import lacks_files
from clipit.errors import ClipitError

if TYPE_CHECKING:
    from clipit.models.specs import ModelSpec

_PACKAGES = {"conch": ("conch",), "musk": ("musk", "fairscale", "einops", "sentencepiece")}
"""Family -> the packages that open it, which are no dependencies of clipit."""
_OTHERS = "python scripts/doctor.py --models lists the names"


@dataclass(frozen=True)
class Place:
    """Where a model's files are looked for: one of `folder` and `hub_id`, or neither."""

    folder: Path | None = None
    hub_id: str | None = None
    spec: "ModelSpec | None" = None
    problem: str = ""
    """Why there is no place."""
    fix: str = ""
    """What to do about it; "": the loader says so, at once and without the network."""
    built_in: bool = False


def model_findings(config: RunConfig, hub: Hub) -> list[Finding]:
    """What there is to say about each model of the configuration."""
    second = config.second_vlm
    return [
        *vlm_findings("VLM", config.vlm, hub),
        *(vlm_findings("second VLM", second, hub) if second is not None else []),
        *backbone_findings(config.backbone, hub),
    ]


def vlm_findings(what: str, config: VLMConfig, hub: Hub) -> list[Finding]:
    """Whether a VLM can be opened, or fetched."""

    def load(wanted: VLMConfig = config) -> None:
        """As the run would; called only where it cannot come to the weights."""
        from clipit.models.vlm import load_vlm

        load_vlm(wanted)

    place = vlm_place(config)
    findings = []
    if place.spec is not None and _missing_packages(place.spec):
        # By the name alone the loader stops at the package; with a path it may stop at that.
        findings.append(_said(what, partial(load, VLMConfig(name=config.name)), "its package is not installed"))
        if place.folder is not None:
            return [*findings, *([] if _whole(place) else [_not_whole(what, config.name, place)])]
    return [*findings, place_finding(what, config.name, place, hub, load)]


def backbone_findings(config: BackboneConfig, hub: Hub) -> list[Finding]:
    """Whether a backbone can be opened, or fetched."""
    from clipit.models.backbone_specs import BACKBONES

    if not config.pretrained:
        return [Finding("PASS", "backbone", f"{config.name}: without weights (pretrained: false)")]

    def load() -> None:
        """As the run would; called only where it cannot come to the weights."""
        from clipit.models.backbones import load_backbone

        load_backbone(config)

    return [place_finding("backbone", config.name, backbone_place(config, BACKBONES), hub, load)]


def vlm_place(config: VLMConfig) -> Place:
    """Where `load_vlm` would look."""
    from clipit.models.vlm_specs import VLMS

    name, spec = config.name, VLMS.get(config.name)
    if name == "embedded":
        return Place(built_in=True)
    if spec is not None and spec.family == "image_only":
        return Place(spec=spec, problem=f"cannot pair tiles with texts: {spec.note}")
    if spec is not None and spec.loader.get("remote_code", spec.family == "keep") and not config.trust_remote_code:
        return _of_remote_code(spec, "vlm")
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


def _of_remote_code(spec: "ModelSpec", section: str) -> Place:
    return Place(
        spec=spec,
        problem="it runs Python code of its own repository, which is not allowed yet",
        fix=f"read that code ({spec.page}), then set {section}.trust_remote_code: true",
    )


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
        return _of_remote_code(spec, "backbone")
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
        return Place(problem="timm has no weights for it", fix=f"choose another backbone; {_OTHERS}")
    tag = f".{found.tag}" if found.tag else ""
    return Place(hub_id=hub_id if hub_id != "timm/" else f"timm/{found.architecture}{tag}", spec=spec)


def place_finding(what: str, name: str, place: Place, hub: Hub, load: Callable[[], None]) -> Finding:
    """Whether a model can be opened from its place, or fetched.

    Args:
        what: VLM or backbone.
        name: As configured.
        place: Where its files are looked for.
        hub: Whom to ask about a model that is not here.
        load: Opens the model; called where it stops at once, for its own words.
    """
    if place.built_in:
        return Finding("PASS", what, f"{name}: part of the package")
    if place.problem:
        return (
            Finding("FAIL", what, f"{name}: {place.problem}", place.fix)
            if place.fix
            else _said(what, load, place.problem)
        )
    if place.folder is not None:
        if _whole(place):
            return Finding("PASS", what, f"{name}: {place.folder}")
        return _said(what, load, f"{name}: {place.folder} is not there, or is no whole model")
    section = {"VLM": "vlm", "second VLM": "second_vlm"}.get(what, "backbone")
    key = f"{section}.{'path' if place.spec is not None else 'name'}"
    return _hub_finding(what, name, place.hub_id or "", place.spec is not None and place.spec.gated, hub, key)


def _whole(place: Place) -> bool:
    return place.folder is not None and place.folder.exists() and not lacks_files(place.folder, place.spec)


def _missing_packages(spec: "ModelSpec") -> list[str]:
    return [name for name in _PACKAGES.get(spec.family, ()) if importlib.util.find_spec(name) is None]


def _not_whole(what: str, name: str, place: Place) -> Finding:
    page = place.spec.page if place.spec else ""
    return Finding(
        "FAIL", what, f"{name}: {place.folder} lacks its files", f"get them from {page}, all into this folder"
    )


def _said(what: str, load: Callable[[], None], otherwise: str) -> Finding:
    """What the loader itself says, word for word; a run would end with the same."""
    try:
        load()
    except ClipitError as error:
        return from_error(what, error)
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("FAIL", what, f"{otherwise} ({error})", _OTHERS)
    return Finding("PASS", what, "it can be opened")


def _hub_finding(what: str, name: str, hub_id: str, gated: bool, hub: Hub, key: str) -> Finding:
    page = f"https://huggingface.co/{hub_id.partition('@')[0]}"
    title = name if hub_id in name else f"{name} ({hub_id})"
    if in_cache(hub_id):
        return Finding("PASS", what, f"{title}: in the local cache")
    access = hub.access(hub_id)
    fetch = f"where there is a network: hf download {hub_id.partition('@')[0]}; copy the folder here: --{key}=FOLDER"
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
