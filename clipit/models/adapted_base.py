"""Merged folders of adapted VLMs: the base model that they record, and the SHA-256 of their files."""

from pathlib import Path

from clipit.artifacts import read_json as read_record
from clipit.artifacts import write_record
from clipit.errors import ClipitError, ModelError, shortlist
from clipit.file_hashes import hash_files
from clipit.models.loading import OPEN_CLIP_CONFIG, read_json

ADAPTED_FROM = "adapted_from"
"""Key in the configuration of a merged folder that holds the public name of the model that was adapted."""
_FILES = "clipit_files.json"
_CARD = "README.md"
_COPY = "copy the folder again; if you changed the model on purpose, delete this file"


def record_files(folder: Path) -> None:
    """Record the SHA-256 of the files of a merged folder, except its card, in `clipit_files.json`."""
    files = {name: digest for name, digest in hash_files(folder, ["."]).items() if name != _CARD}
    write_record(folder / _FILES, {"files": files})


def check_files(name: str) -> None:
    """Check the files of a folder against `clipit_files.json`, if it has one.

    Args:
        name: Folder of a VLM, or any other name of one.

    Raises:
        ModelError: Files are missing or have changed.
    """
    folder = Path(name).expanduser()
    if not (folder / _FILES).is_file():
        return
    try:
        recorded = dict(read_record(folder / _FILES, _COPY)["files"])
        found = hash_files(folder, [file for file in recorded if (folder / file).is_file()])
    except (ClipitError, TypeError, ValueError) as error:  # such as a path outside of the folder
        raise ModelError("the record of the files is damaged", where=folder / _FILES, fix=_COPY) from error
    changed = [file for file, digest in recorded.items() if found.get(file) != digest]
    if changed:
        raise ModelError(
            f"files of the adapted VLM are missing or have changed: {shortlist(changed)}",
            where=folder / _FILES,
            fix=_COPY,
        )


def base_of_adapted(name: str) -> str:
    """Return the model that a VLM was adapted from; its own name if it was not adapted, or this is not recorded.

    Args:
        name: Configured name, which may be the merged folder of an adaptation.
    """
    for file in (Path(name).expanduser() / config for config in (OPEN_CLIP_CONFIG, "config.json")):
        if file.is_file():
            try:
                return str(read_json(file).get(ADAPTED_FROM, name))
            except ModelError:
                return name  # reported when the model is loaded
    return name
