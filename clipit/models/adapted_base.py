"""Folders of adapted VLMs: look up the recorded base model, and verify the files."""

from pathlib import Path

from clipit.errors import ClipitError, ModelError, shortlist
from clipit.models.loading import OPEN_CLIP_CONFIG, read_model_json
from clipit.output_files.artifacts import read_json, write_record
from clipit.output_files.file_hashes import hash_files

ADAPTED_FROM = "adapted_from"
"""Configuration key in a merged folder, for the public name of the model that was adapted."""
_FILES = "clipit_files.json"
_CARD = "README.md"
_COPY = "copy the folder again; if you changed the model on purpose, delete this file"


def record_files(folder: Path) -> None:
    """Write the SHA-256 of each file of a merged folder, except its card, to `clipit_files.json`."""
    files = {name: digest for name, digest in hash_files(folder, ["."]).items() if name != _CARD}
    write_record(folder / _FILES, {"files": files})


def check_files(name: str) -> None:
    """Verify the files of an adapted VLM against `clipit_files.json`; models without this file always pass.

    Args:
        name: Name or folder of a VLM.

    Raises:
        ModelError: Files are missing or have changed.
    """
    folder = Path(name).expanduser()
    if not (folder / _FILES).is_file():
        return
    try:
        recorded = dict(read_json(folder / _FILES, _COPY)["files"])
        current = hash_files(folder, [file for file in recorded if (folder / file).is_file()])
    except (ClipitError, TypeError, ValueError) as error:  # for instance a path outside the folder
        raise ModelError("the list of file hashes is damaged", where=folder / _FILES, fix=_COPY) from error
    changed = [file for file, digest in recorded.items() if current.get(file) != digest]
    if changed:
        raise ModelError(
            f"files of the adapted VLM are missing or have changed: {shortlist(changed)}",
            where=folder / _FILES,
            fix=_COPY,
        )


def base_of_adapted(name: str) -> str:
    """Return the name of the model that a VLM was adapted from, or its own name if no base model is recorded.

    Args:
        name: Configured name of the VLM, which may be the merged folder of an adaptation.
    """
    for file in (Path(name).expanduser() / config for config in (OPEN_CLIP_CONFIG, "config.json")):
        if file.is_file():
            try:
                return str(read_model_json(file).get(ADAPTED_FROM, name))
            except ModelError:
                return name  # reported when the model is loaded
    return name
