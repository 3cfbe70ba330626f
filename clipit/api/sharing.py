"""Share a classifier in Python: export it as a self-contained program, or upload it to the Hugging Face Hub."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipit.api.entry import public

if TYPE_CHECKING:
    from clipit.models.inference import Classifier
    from clipit.models.interchange import ExportedProgram

logger = logging.getLogger(__name__)


@public
def export_program(
    classifier: "Classifier | str | Path",
    path: str | Path,
    format: Literal["onnx", "torch_export"] = "onnx",
    *,
    tolerance: float | None = None,
    trust_remote_code: bool = False,
) -> "ExportedProgram":
    """Export a classifier as a self-contained program.

    The program maps normalised pixels [b,3,h,w] to logits [b,C] for any batch size b. The logits of the program are
    compared with those of the classifier before the file is moved into place.

    Example:
        >>> exported = clipit.export_program("outputs/runs/own/clip_it_all-seed0", "model.onnx")
        >>> exported.differences  # largest logit difference, by input

    Args:
        classifier: Folder of a run or of its classifier, repository on the Hub, or a loaded classifier in float32,
            which is moved to the CPU.
        path: File to write, `.onnx` or `.pt2`; an existing file is replaced.
        format: `onnx`, or `torch_export` for a program of `torch.export`.
        tolerance: Largest logit difference allowed, relative to the largest logit; None for 0.0001.
        trust_remote_code: Whether to run Python code that defines the backbone.

    Raises:
        ModelError: There is no such classifier, packages are missing, the backbone cannot be exported, or the logits
            differ.
        ArtifactError: The file cannot be written.
    """
    from clipit.models.inference import Classifier, load_classifier
    from clipit.models.interchange import TOLERANCE
    from clipit.models.interchange import export_program as export

    if not isinstance(classifier, Classifier):
        classifier = load_classifier(classifier, "cpu", trust_remote_code=trust_remote_code)
    return export(classifier, Path(path), format, tolerance=TOLERANCE if tolerance is None else tolerance)


@public
def push_classifier(classifier: str | Path, repository: str, *, private: bool = False, permitted: bool = False) -> str:
    """Upload a classifier with its card to the Hugging Face Hub, without confirmation; log its files and licences.

    Example:
        >>> clipit.push_classifier("outputs/runs/own/clip_it_all-seed0", "owner/tiles", private=True)
        >>> clipit.load_classifier("owner/tiles")

    Args:
        classifier: Folder of a run or of its classifier.
        repository: Repository on the Hub, `owner/name`; it is created if it does not exist.
        private: Whether a new repository is private.
        permitted: Whether you have the rights holders' permission to share models whose licences do not permit it.

    Returns:
        URL of the repository.

    Raises:
        ModelError: The folder contains no classifier, its files have changed, a licence does not permit sharing it, or
            the Hub rejects the upload.
        ArtifactError: The classifier has no card, or the repository's name is invalid.
    """
    from clipit.models.hub import plan_upload
    from clipit.models.hub import push_classifier as push

    upload = plan_upload(Path(classifier), repository, private=private)
    logger.info(upload.describe())
    return push(upload, accept=lambda: True, permitted=permitted)
