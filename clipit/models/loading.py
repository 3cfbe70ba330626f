"""Utilities shared by all model loaders: error messages, files, Hub access and weight fingerprints."""

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

import torch
from torch import nn

from clipit.errors import ClipitError, ModelError, is_out_of_memory, out_of_memory
from clipit.input_files.git_lfs import PULL, find_pointer
from clipit.models.backbone_specs import BACKBONES
from clipit.models.specs import ModelSpec
from clipit.models.vlm_specs import VLMS
from clipit.models.weights import UNQUANTISED, check_unquantised_folder
from clipit.output_files.json_record import JsonRecord

_HUB_TIMEOUT_S = 5.0
"""Seconds to wait for a response from the Hub before using only the cache."""

_COPY_AGAIN = "copy the model's folder again"

EMBEDDED = Path(__file__).parent / "embedded"

CLIP_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""Weight files that transformers reads, one of which is needed; the last two list the shards that contain weights."""

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
"""Vocabulary files, one of which a transformers tokeniser needs."""

IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Files that may contain the configuration of a transformers image processor."""

OPEN_CLIP_CONFIG = "open_clip_config.json"
"""Configuration file of an open_clip model."""

_SCHEMES = ("open_clip:", "hf-hub:", "clip:", "transformers:")
"""Prefixes of model names, before a Hub id or a path."""

TOKENIZER_CONFIG = "tokenizer_config.json"
"""File with a tokeniser's class and special tokens; without it, transformers guesses them."""


def expected_mpp(source: str) -> float | None:
    """Look up the micrometres per pixel of the tiles that a model was trained on; None if unknown.

    Hub ids are looked up in the tables; for a folder, the key `expected_mpp` of its configuration file is read.
    """
    folder = Path(source).expanduser()
    for name in (OPEN_CLIP_CONFIG, "config.json"):
        if (folder / name).is_file():
            value = read_model_json(folder / name).get("expected_mpp")
            return None if value is None else float(value)
    hub_id = source.split(":")[-1].split("@")[0].lower()
    known = {spec.source.lower(): spec.expected_mpp for spec in (*BACKBONES.values(), *VLMS.values())}
    return known.get(hub_id)


def public_name(name: str) -> str:
    """Return a model's name, with a local path reduced to its last part."""
    scheme, colon, rest = name.partition(":") if name.startswith(_SCHEMES) else ("", "", name)
    prefix = f"{scheme}{colon}"
    if scheme == "open_clip":  # ARCH/PRETRAINED, which may be a file
        architecture, _, rest = rest.partition("/")
        prefix += f"{architecture}/"
    path = Path(rest).expanduser()
    if rest.startswith(("/", "~", ".")) or path.is_absolute() or ("/" in rest and path.exists()):
        return f"{prefix}local {path.name}"
    return name


def read_model_json(path: Path) -> JsonRecord:
    """Read a JSON object from a model's folder; looking up a missing key also raises a `ModelError`.

    Raises:
        ModelError: The file cannot be read or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"unreadable: {error}", where=path, fix=_COPY_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError("not a JSON object", where=path, fix=_COPY_AGAIN)
    return JsonRecord(value, path, _COPY_AGAIN, ModelError)


def read_image_processor(folder: Path) -> JsonRecord | None:
    """Read the configuration of transformers' image processor from a folder; None if it has none.

    As in transformers, the key `image_processor` of processor_config.json, which transformers 5 writes, takes
    precedence over preprocessor_config.json.
    """
    combined, separate = (folder / name for name in IMAGE_PROCESSOR_FILES)
    if combined.is_file():
        part = read_model_json(combined).get("image_processor")
        if isinstance(part, JsonRecord):
            return part
    return read_model_json(separate) if separate.is_file() else None


def require_files(folder: Path, contents: str, alternatives: Mapping[str, Sequence[str]]) -> None:
    """Check that a model's folder is complete.

    Args:
        contents: Kind of model, as named in the error message.
        alternatives: Possible file names for each part; one file per part is enough.

    Raises:
        ModelError: Parts are missing; the message lists them.
    """
    missing = [
        f"the {part} ({' or '.join(names)})"
        for part, names in alternatives.items()
        if not any((folder / name).is_file() for name in names)
    ]
    if missing:
        raise ModelError(
            f"the folder of {contents} is incomplete; missing: {'; '.join(missing)}",
            where=folder,
            fix="copy all files from the model's page into this folder",
        )


def hub_file(hub_id: str, names: Sequence[str]) -> Path:
    """Download the first of the files `names` that exists in a Hugging Face repository, or use the cached copy.

    Errors from the Hub are not converted: call this inside `foreign_errors`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in names[:-1]:
        try:
            return Path(hf_hub_download(hub_id, name))
        except EntryNotFoundError:  # also raised if the file is not cached and there is no network
            continue
    return Path(hf_hub_download(hub_id, names[-1]))


def optional_module(name: str) -> Any:
    """Import a module of an optional package.

    Deprecation warnings from the imports of such packages are silenced, because users cannot act on them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def weights_fingerprint(module: nn.Module, *more: object) -> str:
    """Hash all weights (names, types, shapes and bytes) and the values in `more`, as 16 hexadecimal digits.

    The fingerprint does not depend on the file format or location of the weights.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for value in more:
        digest.update(f"|{value}".encode())
    return digest.hexdigest()[:16]


@contextmanager
def hub_access() -> Iterator[None]:
    """Allow downloads from the Hub inside the `with` block; if the Hub is unreachable, use only cached files.

    Otherwise the Hub's client would retry every file five times, with pauses, and log each attempt.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with errors_only("huggingface_hub", "httpx"):
        try:
            constants.HF_HUB_OFFLINE = before or not hub_is_reachable()
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


@contextmanager
def errors_only(*names: str) -> Iterator[None]:
    """Silence messages of these loggers below level ERROR."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and its reports on weights; callers raise errors for unmatched weights."""
    from transformers.utils import logging as messages

    messages.disable_progress_bar()
    before = messages.get_verbosity()
    messages.set_verbosity_error()
    try:
        yield
    finally:
        messages.set_verbosity(before)


def load_pretrained(model_class: Any, source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a transformers model in float32, and return it with transformers' report on its weights.

    Args:
        source: Folder or Hub id.

    Raises:
        ModelError: The weights are quantised; transformers would convert them to float32 without their scales.
    """
    from transformers import PreTrainedConfig
    from transformers.utils import cached_file

    folder = Path(source)
    revision = {"revision": options["revision"]} if "revision" in options else {}
    if PreTrainedConfig.get_config_dict(source, **revision)[0].get("quantization_config"):
        problem = "the weights are quantised, according to quantization_config in config.json"
        raise ModelError(problem, where=source, fix=UNQUANTISED)
    if folder.is_dir():
        check_unquantised_folder(folder)
    with quiet_transformers():
        model, report = model_class.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32, **options
        )
    if not folder.is_dir():
        check_unquantised_folder(Path(cached_file(source, "config.json", **revision)).parent)
    return model, report


@cache
def hub_is_reachable() -> bool:
    """Check whether the Hub responds; the result is cached per process."""
    responded = threading.Event()

    def send_request() -> None:
        from huggingface_hub import constants, get_session

        with suppress(Exception):  # any HTTP status counts as a response, any exception as none
            get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
            responded.set()

    # A daemon thread, so that an unresponsive name server cannot keep the program from exiting.
    thread = threading.Thread(target=send_request, daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT_S)
    return responded.is_set()


@contextmanager
def foreign_errors(
    name: str, hub_id: str | None = None, hint: str = "", where: object = None, *, uses_hub: bool = False
) -> Iterator[None]:
    """Convert any error that a model package raises in this block into a `ModelError`.

    Args:
        name: Name of the model, for the error message.
        hub_id: Hugging Face repository of the model, if its files come from there.
        hint: Sentence to append to the fix.
        where: File or folder being read, if there is no repository.
        uses_hub: Whether files may be downloaded from the Hub even if `hub_id` is None.
    """
    try:
        with hub_access() if hub_id or uses_hub else nullcontext():
            yield
    except ClipitError:
        raise
    except Exception as error:  # the packages raise about fifteen exception types, most of them undocumented
        if is_out_of_memory(error):
            raise out_of_memory(error) from error
        raise _translate(error, name, hub_id, hint, where) from error


def _translate(error: Exception, name: str, hub_id: str | None, hint: str, where: object) -> ModelError:
    kinds = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    page = f"https://huggingface.co/{hub_id.split('@')[0]}" if hub_id else ""
    pointer = find_pointer(Path(str(where or name)).expanduser())
    if pointer is not None:
        problem, fix, where = "this file is a Git LFS pointer, not the data", PULL, pointer
    elif "GatedRepoError" in kinds:
        problem = "this model is gated"
        fix = f"accept its licence at {page}, then log in with `hf auth login`; or use a local folder with its files"
    elif "RepositoryNotFoundError" in kinds:
        problem = "the model does not exist on the Hub, or it is private"
        fix = f"check the spelling at {page}; for a private model, log in with `hf auth login`"
    elif kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"} or (
        "couldn't connect" in text.lower() or "offline mode" in text.lower()
    ):
        problem = (
            "its files are not on this machine, and the Hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
        )
        source = f"`hf download {hub_id.split('@')[0]}`; if it is gated, accept its licence at {page}" if hub_id else ""
        fix = (
            f"download it on a machine with network access ({source or 'from its page'}) and use the local folder, or "
            "go online"
        )
    elif "custom code" in text:  # from transformers, which would otherwise ask on the terminal
        problem = "it requires Python code from its own files, which is not trusted yet"
        at_page = f" at {page}" if page else ""
        fix = f"read that code{at_page}, then set trust_remote_code: true next to the model's name"
    elif "UnpicklingError" in kinds:
        problem = "its checkpoint contains pickled objects, or is damaged; only tensors are loaded"
        fix = "use a safetensors file, or a checkpoint that contains only a state dict, from the model's page"
    elif (
        "size mismatch" in text
        or "Missing key" in text
        or "Unexpected key" in text
        or "mismatched sizes" in text.lower()
    ):
        problem = f"its weights do not match its configuration ({text})"
        fix = f"use weights and configuration from the same model{f', from {page}' if page else ''}"
    else:
        problem = f"it cannot be loaded ({text})"
        fix = f"check the name and the files{f' at {page}' if page else ''}"
    return ModelError(
        f"model {name}: {problem}", where=where or hub_id or name, fix=f"{fix}. {hint}".strip() if hint else fix
    )


def checkpoint_file(spec: ModelSpec, path: Path | None, name: str) -> Path:
    """Locate a model's checkpoint: the file `path`, the file `name` in the folder `path`, or `name` on the Hub.

    Raises:
        ModelError: The file does not exist, or cannot be downloaded.
    """
    if path is None:
        with foreign_errors(spec.name, spec.source):
            return hub_file(spec.source, (name,))
    file = path / name if path.is_dir() else path
    if not file.is_file():
        raise ModelError(
            f"the checkpoint {name} of {spec.name} does not exist",
            where=path,
            fix=f"set vlm.path to the file from {spec.page}, or to the folder that contains it",
        )
    return file
