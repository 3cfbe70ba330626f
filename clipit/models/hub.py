"""Classifiers on the Hugging Face Hub: download one by repository name, and upload a classifier folder."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipit.errors import ArtifactError, ModelError
from clipit.models.classifier_spec import CARD, CLASSIFIER, DESCRIPTION, read_spec, verify_files
from clipit.models.licences import ModelLicence, model_licences
from clipit.models.loading import foreign_errors, hub_access

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Upload:
    """Content of an upload by `push_classifier`.

    Attributes:
        repository: Repository on the Hub, `owner/name`.
        files: Sizes in bytes of the exported files and the card, by file name.
        private: Whether a new repository is private.
    """

    folder: Path
    repository: str
    files: dict[str, int]
    licences: Sequence[ModelLicence]
    private: bool

    @property
    def objections(self) -> list[str]:
        """Descriptions of the licences that do not permit sharing the classifier."""
        return [
            f"the licence of the {licence.role} {licence.model}, {licence.licence}, {licence.objection}"
            f"{f' ({licence.page})' if licence.page else ''}"
            for licence in self.licences
            if licence.objection
        ]

    def describe(self) -> str:
        """List the files and licences, so that the user can confirm the upload."""
        lines = [f"upload to {self.repository} ({'private' if self.private else 'public'}, if it is new)"]
        lines += [f"  {name}  {size:,} bytes" for name, size in self.files.items()]
        lines += [
            f"licence of the {licence.role} {licence.model}: {licence.licence}"
            + ("" if licence.known else " (make sure that you may share it)")
            for licence in self.licences
        ]
        return "\n".join(lines)


def classifier_folder(name: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a classifier: a local one, or the downloaded files of a repository on the Hub.

    A local path takes precedence. For the folder of a run, the classifier folder inside it is returned. Only the card,
    `clipit.json` and the files that it lists are downloaded.

    Args:
        name: Local folder of a classifier or of a finished run, or a repository as `owner/name`.
        revision: Branch, tag or commit of the repository; None for its main branch.

    Raises:
        ModelError: There is no such folder or repository, it contains no classifier, or the Hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.exists() or isinstance(name, Path) or not _REPOSITORY.fullmatch(name):
        if revision is not None:
            raise ModelError("revision applies only to repositories on the Hub", where=folder, fix="remove it")
        nested = folder / CLASSIFIER
        return nested if nested.is_dir() and not (folder / DESCRIPTION).is_file() else folder
    from huggingface_hub import snapshot_download

    label = f"{name} (no such folder, so it is looked up on the Hub)"
    with foreign_errors(label, name, "If you mean a local folder, correct its path."):
        first = Path(snapshot_download(name, revision=revision, allow_patterns=[DESCRIPTION, CARD]))
        if not (first / DESCRIPTION).is_file():
            raise ModelError(
                f"no classifier in this repository: {DESCRIPTION} is missing",
                where=f"https://huggingface.co/{name}",
                fix="use a repository created by clipit push",
            )
        files = [*read_spec(first, check_files=False).files, DESCRIPTION, CARD]
        commit = first.name  # the folder of a snapshot is named after its commit
        return Path(snapshot_download(name, revision=commit, allow_patterns=files))


def plan_upload(folder: Path, repository: str, *, private: bool = False) -> Upload:
    """Check a classifier and list what would be uploaded.

    Args:
        folder: Folder of a classifier or of a finished run.
        repository: Repository on the Hub, as `owner/name`.
        private: Whether a new repository is private.

    Raises:
        ModelError: The folder contains no classifier, or its files have changed.
        ArtifactError: The classifier has no card or is in the folder of a run that did not export it, or the
            repository's name is invalid.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ArtifactError("invalid repository name", where=repository, fix="write it as owner/name")
    folder = classifier_folder(folder)
    spec = read_spec(folder)
    verify_files(folder, spec, adapter=True)
    if not (folder / CARD).is_file():
        raise ArtifactError(
            f"this classifier has no card ({CARD})",
            where=folder,
            fix="run clipit evaluate with the run's configuration to write the card, or write one yourself",
        )
    names = [CARD, DESCRIPTION, *sorted(name for name in spec.files if (folder / name).is_file())]
    sizes = {name: (folder / name).stat().st_size for name in names}
    return Upload(folder, repository, sizes, model_licences(spec), private)


def push_classifier(upload: Upload, *, accept: Callable[[], bool], permitted: bool = False) -> str:
    """Upload a classifier to the Hub, creating the repository if needed.

    Args:
        upload: Result of `plan_upload`.
        accept: Function that returns whether the user agrees to the upload.
        permitted: Whether the licence holders have given permission, where a licence does not permit sharing.

    Returns:
        Address of the repository.

    Raises:
        ModelError: A licence does not permit sharing the classifier, the user does not agree, or the upload fails.
    """
    from huggingface_hub import HfApi, constants

    if upload.objections and not permitted:
        raise ModelError(
            f"nothing was uploaded: {'; '.join(upload.objections)}",
            where=upload.folder,
            fix="ask the licence holder for permission; if you have it, pass --i-have-permission (in Python: "
            "permitted=True)",
        )
    if not accept():
        raise ModelError("nothing was uploaded: you did not agree", fix="answer yes, or pass --yes")
    api = HfApi(library_name="clipit")
    with hub_access():
        try:
            api.create_repo(upload.repository, private=upload.private, exist_ok=True)
            api.upload_folder(
                repo_id=upload.repository,
                folder_path=upload.folder,
                allow_patterns=list(upload.files),
                commit_message="Classifier exported by clipit",
            )
        except Exception as error:  # the Hub's client documents only some of the exceptions that it raises
            offline = constants.HF_HUB_OFFLINE
            raise ModelError(
                "the Hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
                if offline
                else f"the Hub rejected the upload: {' '.join(str(error).split())[:300]}",
                where=upload.repository,
                fix="go online"
                if offline
                else "log in with `hf auth login` and a token that may write to this repository",
            ) from error
    return f"{constants.ENDPOINT}/{upload.repository}"
