"""Check the name of a configured VLM, and select its loader."""

from pathlib import Path

from clipit.config.run import VLMConfig
from clipit.errors import ConfigError, ModelError
from clipit.input_files.nearby_files import similar_names
from clipit.models.loading import EMBEDDED, OPEN_CLIP_CONFIG, read_model_json
from clipit.models.python_vlm import PREFIX
from clipit.models.specs import ModelSpec, similar_models
from clipit.models.towers import Towers
from clipit.models.vlm_specs import VLMS


def check_vlm_name(config: VLMConfig) -> None:
    """Check the name, path and adapter of a VLM, without loading it or contacting the Hub.

    Raises:
        ConfigError: `vlm.path` is given with a name that is not in `VLMS`.
        ModelError: The name is unknown, the path does not exist, the model has no text tower, a package is missing, or
            `vlm.adapter` is not a complete adapter.
    """
    if config.adapter is not None:
        from clipit.models.vlm_adapter import read_vlm_adapter

        read_vlm_adapter(Path(config.adapter).expanduser())
    spec = VLMS.get(config.name)
    if spec is not None:
        _check_packages(spec)
        _check_table_entry(spec, config)
        return
    _check_path(config)
    scheme, _, rest = config.name.partition(":")
    if scheme == "open_clip" and rest:
        from clipit.models import open_clip_vlm

        open_clip_vlm.check_builtin(rest)
    elif config.name != "embedded" and not (scheme in ("hf-hub", "clip", PREFIX) and rest):
        _check_folder(Path(config.name).expanduser(), config)


def vlm_repository(config: VLMConfig) -> str | None:
    """Return the Hub repository of a VLM; None if nothing is downloaded, or the loader rejects the model."""
    from clipit.models import open_clip_vlm

    spec = VLMS.get(config.name)
    if config.path is not None:
        return None
    scheme, _, source = config.name.partition(":")
    if spec is not None:
        untrusted = spec.family == "keep" and not config.trust_remote_code
        if untrusted or spec.family == "image_only" or spec.loader.get("checkpoint"):
            return None
        scheme, source = "open_clip" if spec.loader.get("quick_gelu") else "hf-hub", spec.source
    if scheme == "open_clip":
        return open_clip_vlm.builtin_repository(source)
    return source if scheme in ("hf-hub", "clip") and source and not Path(source).expanduser().is_dir() else None


def table_towers(spec: ModelSpec, config: VLMConfig) -> Towers:
    """Load a VLM that is in the table, from the Hub or from the folder or file `vlm.path`.

    Raises:
        ModelError: The VLM has no text tower, a file or package is missing, or access has not been granted.
    """
    from clipit.models import clip_vlm, conch_vlm, keep_vlm, musk_vlm, open_clip_vlm

    _check_table_entry(spec, config)
    path = None if config.path is None else Path(config.path).expanduser()
    if spec.family == "conch":
        return conch_vlm.conch_towers(spec, path)
    if spec.family == "musk":
        return musk_vlm.musk_towers(spec, path)
    if spec.family == "keep":
        return keep_vlm.keep_towers(spec, path, config.trust_remote_code)
    if path is None:
        if spec.family == "open_clip":
            return open_clip_vlm.listed_towers(spec, config.quick_gelu, config.trust_remote_code)
        return clip_vlm.clip_towers(spec.source)
    # Some of these are published in two formats, so the folder's content decides.
    if path.is_dir():
        return _from_folder(path, config, spec)
    return open_clip_vlm.checkpoint_towers(path, spec, config.quick_gelu)


def other_towers(config: VLMConfig) -> Towers:
    """Load a VLM that is not in `VLMS`: a built-in name of open_clip, a Hub id, a folder, or a user's function.

    Raises:
        ConfigError: `vlm.path` is given with such a name.
        ModelError: The name is unknown, or the model cannot be loaded.
    """
    from clipit.models import clip_vlm, open_clip_vlm, python_vlm

    name = config.name
    _check_path(config)
    if name == "embedded":
        return _from_folder(EMBEDDED / "vlm", config)
    scheme, _, rest = name.partition(":")
    if scheme == PREFIX and rest:
        _check_quick_gelu(config, False)
        return python_vlm.python_towers(rest)
    if scheme == "open_clip" and rest:
        return open_clip_vlm.builtin_towers(rest, config.quick_gelu)
    if scheme in ("hf-hub", "clip") and Path(rest).expanduser().is_dir():  # a folder, despite the prefix
        return _from_folder(Path(rest).expanduser(), config)
    if scheme == "hf-hub" and rest:
        return open_clip_vlm.hub_towers(rest, config.quick_gelu, config.trust_remote_code)
    if scheme == "clip" and rest:
        _check_quick_gelu(config, False)
        return clip_vlm.clip_towers(rest)
    return _from_folder(Path(name).expanduser(), config)


def _check_packages(spec: ModelSpec) -> None:
    """Check that the packages that a known VLM needs besides clipit's dependencies are installed."""
    from clipit.models import conch_vlm, musk_vlm

    if spec.family == "conch":
        conch_vlm.check_conch_package(spec)
    elif spec.family == "musk":
        musk_vlm.check_musk_packages(spec)


def _check_table_entry(spec: ModelSpec, config: VLMConfig) -> None:
    path = None if config.path is None else Path(config.path).expanduser()
    if spec.family == "image_only":
        raise ModelError(
            f"{spec.name} cannot pair tiles with texts: {spec.note}",
            where=f"vlm.name: {spec.name}",
            fix="choose a VLM with a text tower (clipit doctor --models)",
        )
    of_open_clip = spec.family == "open_clip" or (path is not None and path.is_dir() and _is_open_clip(path))
    _check_quick_gelu(config, of_open_clip)
    if path is not None and not path.exists():
        raise ModelError(
            "vlm.path does not exist",
            where=path,
            fix=f"set it to the folder or file of {spec.name} ({spec.page}); {similar_names(str(path))}",
        )


def _check_path(config: VLMConfig) -> None:
    if config.path is not None:
        raise ConfigError(
            f"vlm.path can only be used with the name of a known VLM, and {config.name!r} is not one",
            where=f"vlm.path: {config.path}",
            fix=f"set vlm.name: {config.path} and remove vlm.path, or use one of: {', '.join(VLMS)}",
        )


def _check_quick_gelu(config: VLMConfig, is_open_clip: bool) -> None:
    if config.quick_gelu is not None and not is_open_clip:
        raise ConfigError(
            f"vlm.quick_gelu applies only to models that open_clip loads, and {config.name} is not one: its own "
            "configuration sets the activation",
            where="vlm.quick_gelu",
            fix="remove vlm.quick_gelu",
        )


def _is_open_clip(folder: Path) -> bool:
    return (folder / OPEN_CLIP_CONFIG).is_file()


def _check_folder(folder: Path, config: VLMConfig) -> None:
    if not folder.is_dir():
        similar = similar_models(config.name, VLMS)
        if config.name in {VLMS[key].source for key in similar if VLMS[key].family == "clip"}:
            similar.append(f"clip:{config.name}")
        raise ModelError(
            "unknown VLM: neither a known name nor a folder",
            where=folder,
            fix=(f"similar names: {', '.join(similar)}; or " if similar else "")
            + f"use embedded, a known name ({', '.join(VLMS)}), open_clip:ARCH/PRETRAINED, "
            "hf-hub:ID (open_clip), clip:ID (transformers), python:package.module:function, or a folder",
        )


def _from_folder(folder: Path, config: VLMConfig, spec: ModelSpec | None = None) -> Towers:
    from clipit.models import clip_vlm, open_clip_vlm

    _check_folder(folder, config)
    if _is_open_clip(folder):
        return open_clip_vlm.folder_towers(folder, spec, config.quick_gelu, config.trust_remote_code)
    _check_quick_gelu(config, False)
    description = read_model_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    model_type = description.get("model_type") or description.get("architecture") or "a different model"
    if description.get("model_type") == "clip":
        return clip_vlm.clip_towers(str(folder))
    other = f"; its config.json is for {model_type}" if description else ""
    raise ModelError(
        f"no {spec.name if spec else 'VLM'} in this folder: looked for {OPEN_CLIP_CONFIG} (open_clip) "
        f"and for config.json with model_type clip (transformers){other}",
        where=folder,
        fix="use the folder that contains the model's files",
    )
