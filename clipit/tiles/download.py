"""Published data sets from the web: licence first, then verified files, unpacked beside each other."""

from collections.abc import Callable
from pathlib import Path

from clipit.artifacts import locked
from clipit.errors import DataError, explain
from clipit.tiles.datasets import DATASETS, DataSet
from clipit.tiles.fetch import Say, fetch
from clipit.tiles.unpack import unpack


def terms(name: str) -> str:
    """What a user should read before the download: title, licence, page, citation, known faults."""
    row = DATASETS[name]
    lines = [row.title, f"  licence: {row.licence}", f"  page: {row.page}", f"  cite: {row.citation}"]
    if row.faults:
        lines.append(f"  known fault: {row.faults}")
    return "\n".join([*lines, f"  data card: data_cards/{row.card}.md"])


def download(name: str, folder: Path, *, accept: Callable[[], bool], say: Say = print) -> Path:
    """Download, verify and unpack a data set; what is there already is left as it is. Gives `tiles.path`.

    Args:
        name: A key of `DATASETS`.
        folder: Where it goes; made if needed.
        accept: Asks whether the licence is accepted, after the terms were said.
        say: Takes lines for people.

    Raises:
        DataError: It has no direct download, the licence is not accepted, or a file cannot be got or is damaged.
        ArtifactError: The disk is full or may not be written.
    """
    row = DATASETS[name]
    say(terms(name))
    if not row.files:
        raise DataError(
            explain(
                f"{row.title} has no public direct address with a checksum",
                where=row.page,
                fix=f"{row.access}; then give tiles.source {name} and tiles.path the folder with {row.layout}",
            )
        )
    if not accept():
        raise DataError(
            explain("the licence was not accepted: nothing was downloaded", fix="answer yes, or give --accept-licence")
        )
    with locked(folder / f".{name}", waiting=say):
        _get(row, folder, say)
    say(f"{row.title} is in {folder}: tiles.source {name}, tiles.path {folder}")
    return folder


def _get(row: DataSet, folder: Path, say: Say) -> None:
    for remote in row.files:
        if (folder / remote.makes).exists():  # it appears whole or not at all
            say(f"{remote.makes}: there already")
            continue
        say(f"{remote.name}: downloading")
        archive = fetch(remote.url, folder / remote.name, remote.md5, page=row.page, say=say)
        say(f"{remote.name}: checksum right, unpacking")
        unpack(archive, remote.makes)
        archive.unlink()  # verified and unpacked: kept once, not twice
