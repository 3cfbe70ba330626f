"""What all loaders share: foreign errors made readable, fingerprints of weights, known facts."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from clipit.errors import ClipitError, ModelError, explain

EMBEDDED = Path(__file__).parent / "embedded"

_AT_20X = 0.5  # micrometres per pixel
_EXPECTED_MPP = {
    # Tile magnification in the tables of mahmoodlab/TRIDENT
    "mahmoodlab/uni": _AT_20X,
    "mahmoodlab/uni2-h": _AT_20X,
    "paige-ai/virchow": _AT_20X,
    "paige-ai/virchow2": _AT_20X,
    "bioptimus/h-optimus-0": _AT_20X,
    "bioptimus/h-optimus-1": _AT_20X,
    "bioptimus/h0-mini": _AT_20X,
    "prov-gigapath/prov-gigapath": _AT_20X,
}


def expected_mpp(source: str) -> float | None:
    """Micrometres per pixel of the tiles a model was trained on, where known.

    A local folder says it with the key `expected_mpp` at the top of its configuration file.
    """
    folder = Path(source)
    for name in ("open_clip_config.json", "config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get("expected_mpp")
            return None if value is None else float(value)
    return _EXPECTED_MPP.get(source.split(":")[-1].split("@")[0].lower())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder.

    Raises:
        ModelError: It cannot be read, or is no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(explain(f"unreadable: {error}", where=path, fix="copy the model's folder again")) from error
    if not isinstance(value, dict):
        raise ModelError(explain("not a JSON object", where=path, fix="copy the model's folder again"))
    return value


def weights_fingerprint(module: nn.Module, *more: object) -> str:
    """16 hexadecimal digits over the names, types, shapes and bytes of all weights (and `more`).

    It is the same for the same weights, wherever and in whichever file format they lie.
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
def foreign_errors(name: str, hub_id: str | None = None, hint: str = "") -> Iterator[None]:
    """Turn whatever a model package raises while loading `name` into one `ModelError`.

    Args:
        name: What the user asked for.
        hub_id: Its repository on the Hugging Face hub, if it has one.
        hint: What else could be wrong.
    """
    try:
        yield
    except ClipitError:
        raise
    except Exception as error:  # the packages raise some fifteen types, most of them undocumented
        raise ModelError(_readable(error, name, hub_id, hint)) from error


def _readable(error: Exception, name: str, hub_id: str | None, hint: str) -> str:
    kinds = set()
    link: BaseException | None = error
    while link is not None:
        kinds |= {kind.__name__ for kind in type(link).__mro__}
        link = link.__cause__ or link.__context__
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
    else:
        what = f"it cannot be loaded ({text})"
        fix = f"check the name and the files{f' at {page}' if page else ''}"
    return explain(f"model {name}: {what}", where=hub_id or name, fix=f"{fix}. {hint}".strip() if hint else fix)
