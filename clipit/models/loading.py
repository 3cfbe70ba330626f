"""Functions that all model loaders share: readable errors, files, the hub, fingerprints of weights."""

import hashlib
import importlib
import json
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from clipit.errors import ClipitError, ModelError, explain
from clipit.models.backbone_specs import BACKBONES
from clipit.models.specs import ModelSpec
from clipit.models.vlm_specs import VLMS

_HUB_TIMEOUT_S = 5.0
"""Time for the hub to answer anything before this process goes on with what is cached."""

EMBEDDED = Path(__file__).parent / "embedded"

CLIP_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""Files of weights, of which transformers needs one; the first two hold all weights."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
"""Files of which a tokeniser of transformers needs one."""

TOKENIZER_RULES = "tokenizer_config.json"
"""File with the class of a tokeniser and its special tokens; without it transformers guesses."""


def expected_mpp(source: str) -> float | None:
    """Micrometres per pixel of the tiles that a model was trained on; None if unknown.

    It comes from the tables for their hub ids, and from the key `expected_mpp` in the configuration file of a folder.
    """
    folder = Path(source).expanduser()
    for name in ("open_clip_config.json", "config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get("expected_mpp")
            return None if value is None else float(value)
    hub_id = source.split(":")[-1].split("@")[0].lower()
    known = {spec.source.lower(): spec.expected_mpp for spec in (*BACKBONES.values(), *VLMS.values())}
    return known.get(hub_id)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a model's folder.

    Raises:
        ModelError: The file cannot be read, or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"unreadable: {error}", where=path, fix="copy the model's folder again") from error
    if not isinstance(value, dict):
        raise ModelError("not a JSON object", where=path, fix="copy the model's folder again")
    return value


def require_files(folder: Path, what: str, wanted: Mapping[str, Sequence[str]]) -> None:
    """Check that a model's folder is complete.

    Args:
        folder: Folder of the model.
        what: Description of the model, for the error.
        wanted: Part -> file names, of which one must exist.

    Raises:
        ModelError: Parts are missing; all are listed.
    """
    missing = [
        f"the {part} ({' or '.join(names)})"
        for part, names in wanted.items()
        if not any((folder / name).is_file() for name in names)
    ]
    if missing:
        raise ModelError(
            f"incomplete folder of {what}; missing: {'; '.join(missing)}",
            where=folder,
            fix="copy all files of the model's page into this folder",
        )


def hub_file(hub_id: str, names: Sequence[str]) -> Path:
    """Download the first of these files that a repository of the Hugging Face hub has, or find it in the cache.

    It raises the hub's own errors: use it inside `foreign_errors`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in names[:-1]:
        try:
            return Path(hf_hub_download(hub_id, name))
        except EntryNotFoundError:  # also raised when it is not cached and there is no network
            continue
    return Path(hf_hub_download(hub_id, names[-1]))


def optional_module(name: str) -> Any:
    """Import a module of a package that is no dependency of clipit.

    Deprecation warnings about such packages' own imports are silenced, because users cannot act on them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def weights_fingerprint(module: nn.Module, *more: object) -> str:
    """Fingerprint of the names, types, shapes and bytes of all weights (and of `more`), 16 hexadecimal digits.

    It does not depend on the file format or location of the weights.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for value in more:
        digest.update(f"|{value}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def hub_access() -> Iterator[None]:
    """Download from the hub within this block, or read its cache alone when it does not answer.

    The hub's client itself would try every file five times, with pauses, and print each attempt.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    before = constants.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        constants.HF_HUB_OFFLINE = before or not hub_answers()
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@cache
def hub_answers() -> bool:
    """Return whether the hub gives any answer at all; asked once per process."""
    answered = threading.Event()

    def ask() -> None:
        from huggingface_hub import constants, get_session

        with suppress(Exception):  # any status is an answer; whatever the network stack raises is none
            get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
            answered.set()

    # A daemon thread: a name server that never answers must not keep the program from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT_S)
    return answered.is_set()


@contextmanager
def foreign_errors(
    name: str, hub_id: str | None = None, hint: str = "", where: object = None, *, asks_hub: bool = False
) -> Iterator[None]:
    """Turn any error that a model package raises in this block into a `ModelError`.

    Args:
        name: Name of the model as the user gave it.
        hub_id: Its repository on the Hugging Face hub, if its files come from there.
        hint: Another possible cause, for the error.
        where: File or folder that is read, if there is no repository.
        asks_hub: Whether files may come from the hub although `hub_id` is None.
    """
    try:
        with hub_access() if hub_id or asks_hub else nullcontext():
            yield
    except ClipitError:
        raise
    except Exception as error:  # the packages raise some fifteen types, most of them undocumented
        raise ModelError(_readable(error, name, hub_id, hint, where)) from error


def _readable(error: Exception, name: str, hub_id: str | None, hint: str, where: object) -> str:
    kinds = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    page = f"https://huggingface.co/{hub_id.split('@')[0]}" if hub_id else ""
    if "GatedRepoError" in kinds:
        what = "this model is gated"
        fix = f"accept its licence at {page}, then log in with `hf auth login`; or give a local folder with its files"
    elif "RepositoryNotFoundError" in kinds:
        what = "the hub has no such model, or it is private"
        fix = f"check the spelling at {page}; log in with `hf auth login` for a private one"
    elif kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"} or (
        "couldn't connect" in text.lower() or "offline mode" in text.lower()
    ):
        what = "its files are not on this machine, and the hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
        fix = (
            f"download it where there is a network ({page or 'its page'}; `hf download ...`) "
            "and give the local folder, or go online"
        )
    elif "UnpicklingError" in kinds:
        what = "its checkpoint holds pickled objects, or is damaged; only tensors are loaded"
        fix = "use a safetensors file or a checkpoint that holds a state dict alone, from its own page"
    elif (
        "size mismatch" in text
        or "Missing key" in text
        or "Unexpected key" in text
        or "mismatched sizes" in text.lower()
    ):
        what = f"its weights do not fit its configuration ({text})"
        fix = f"use weights and configuration of one and the same model{f', from {page}' if page else ''}"
    else:
        what = f"it cannot be loaded ({text})"
        fix = f"check the name and the files{f' at {page}' if page else ''}"
    return explain(
        f"model {name}: {what}", where=where or hub_id or name, fix=f"{fix}. {hint}".strip() if hint else fix
    )


def checkpoint_file(spec: ModelSpec, path: Path | None, name: str) -> Path:
    """The checkpoint of a named model: `path` itself, the file `name` in that folder, or the hub's.

    Raises:
        ModelError: The file does not exist, or cannot be downloaded.
    """
    if path is None:
        with foreign_errors(spec.name, spec.source):
            return hub_file(spec.source, (name,))
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise ModelError(
            f"no file {name} of {spec.name}",
            where=path,
            fix=f"set vlm.path to the file of {spec.page}, or to the folder that holds it",
        )
    return file
