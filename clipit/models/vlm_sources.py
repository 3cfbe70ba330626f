"""Which loader opens the VLM that a configuration names."""

from pathlib import Path

from clipit.config.run import VLMConfig
from clipit.errors import ConfigError, ModelError, explain
from clipit.models.loading import EMBEDDED, read_json
from clipit.models.specs import ModelSpec, similar_names
from clipit.models.towers import Towers
from clipit.models.vlm_specs import VLMS


def named_towers(spec: ModelSpec, config: VLMConfig) -> Towers:
    """An entry of the table: from the hub, or under its rules from the folder or file of `vlm.path`.

    Raises:
        ModelError: It cannot pair; a file, a package or an access is missing.
    """
    from clipit.models import clip_vlm, conch_vlm, keep_vlm, musk_vlm, open_clip_vlm

    path = None if config.path is None else Path(config.path).expanduser()
    if spec.family == "image_only":
        raise ModelError(
            explain(
                f"{spec.name} cannot pair tiles with texts: {spec.note}",
                where=f"vlm.name: {spec.name}",
                fix="choose a VLM with a text tower (python scripts/doctor.py --models)",
            )
        )
    _check_quick_gelu(
        config, spec.family == "open_clip" or (path is not None and path.is_dir() and _is_open_clip(path))
    )
    if path is not None and not path.exists():
        raise ModelError(
            explain("vlm.path does not exist", where=path, fix=f"give the folder or file of {spec.name} ({spec.page})")
        )
    if spec.family == "conch":
        return conch_vlm.conch_towers(spec, path)
    if spec.family == "musk":
        return musk_vlm.musk_towers(spec, path)
    if spec.family == "keep":
        return keep_vlm.keep_towers(spec, path, config.trust_remote_code)
    if path is None:
        if spec.family == "open_clip":
            return open_clip_vlm.named_towers(spec, config.quick_gelu)
        return clip_vlm.clip_towers(spec.source)
    # Several of these are published in both formats: the folder decides.
    if path.is_dir():
        return _from_folder(path, config, spec)
    return open_clip_vlm.checkpoint_towers(path, spec, config.quick_gelu)


def unnamed_towers(config: VLMConfig) -> Towers:
    """What no entry of the table names: built-in names of open_clip, hub ids, folders.

    Raises:
        ConfigError: `vlm.path` beside such a name.
        ModelError: Nothing is known under this name, or it cannot be loaded.
    """
    from clipit.models import clip_vlm, open_clip_vlm

    name = config.name
    if config.path is not None:
        raise ConfigError(
            explain(
                f"vlm.path goes with a name of the table, and {name!r} is none",
                where=f"vlm.path: {config.path}",
                fix=f"write vlm.name: {config.path} alone, or one of the names: {', '.join(VLMS)}",
            )
        )
    if name == "embedded":
        return _from_folder(EMBEDDED / "vlm", config)
    scheme, _, rest = name.partition(":")
    if scheme == "open_clip" and rest:
        return open_clip_vlm.builtin_towers(rest, config.quick_gelu)
    if scheme in ("hf-hub", "clip") and Path(rest).expanduser().is_dir():  # a folder, whatever stands before it
        return _from_folder(Path(rest).expanduser(), config)
    if scheme == "hf-hub" and rest:
        return open_clip_vlm.hub_towers(rest, config.quick_gelu)
    if scheme == "clip" and rest:
        _check_quick_gelu(config, False)
        return clip_vlm.clip_towers(rest)
    return _from_folder(Path(name).expanduser(), config)


def _check_quick_gelu(config: VLMConfig, is_open_clip: bool) -> None:
    if config.quick_gelu is not None and not is_open_clip:
        raise ConfigError(
            explain(
                f"vlm.quick_gelu is for models that open_clip loads, and {config.name} is none: its own "
                "configuration names its activation",
                where="vlm.quick_gelu",
                fix="leave vlm.quick_gelu out",
            )
        )


def _is_open_clip(folder: Path) -> bool:
    from clipit.models import open_clip_vlm

    return (folder / open_clip_vlm.CONFIG).is_file()


def _from_folder(folder: Path, config: VLMConfig, spec: ModelSpec | None = None) -> Towers:
    from clipit.models import clip_vlm, open_clip_vlm

    if not folder.is_dir():
        near = similar_names(config.name, VLMS)
        if config.name in {VLMS[key].source for key in near if VLMS[key].family == "clip"}:
            near.append(f"clip:{config.name}")
        raise ModelError(
            explain(
                "neither a known kind of VLM name nor a folder",
                where=folder,
                fix=(f"similar names: {', '.join(near)}; or " if near else "")
                + f"write embedded, a name of the table ({', '.join(VLMS)}), open_clip:ARCH/PRETRAINED, "
                "hf-hub:ID (open_clip), clip:ID (transformers), or a folder",
            )
        )
    if _is_open_clip(folder):
        return open_clip_vlm.folder_towers(folder, spec, config.quick_gelu)
    _check_quick_gelu(config, False)
    found = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if found.get("model_type") == "clip":
        return clip_vlm.clip_towers(str(folder))
    seen = ""
    if found:
        seen = (
            f"; its config.json is that of {found.get('model_type') or found.get('architecture') or 'something else'}"
        )
    raise ModelError(
        explain(
            f"no {spec.name if spec else 'VLM'} in this folder: looked for {open_clip_vlm.CONFIG} (open_clip) "
            f"and for config.json with model_type clip (transformers){seen}",
            where=folder,
            fix="give the folder that holds the model's own files",
        )
    )
