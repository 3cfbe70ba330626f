"""Quick checks before a model is loaded, an image is decoded or a text is embedded."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from clipit.config.load import names_tiles
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError, ClipitError, counted, shortlist
from clipit.prompts.prompt_set import PromptSet, check_classes, unused_classes

if TYPE_CHECKING:
    from clipit.workspace.workspace import Workspace

Model = Literal["vlm", "second_vlm", "backbone"]


def check_inputs(
    workspace: "Workspace", models: Sequence[Model] = (), prompts: Sequence[PromptSet] = (), *, reports: bool = False
) -> None:
    """Check the output folder, the model names, the path of the reports, the tiles and the prompts of a workspace.

    Images, reports and weights are not read. Problems with the data are reported together; those with models, whose
    packages take seconds to import, are reported afterwards. Classes of a prompt set that no tile has are logged.
    Must be called by all processes.

    Args:
        models: Sections of the models that the command loads. The key `prompts` is checked against the classes only if
            the VLM is among them, because only the VLM uses prompts.
        prompts: Additional prompt sets that are used with these tiles.
        reports: Whether the command needs reports.

    Raises:
        ClipitError: A check fails.
    """
    from clipit.reports.readers import check_report_path

    config = workspace.config
    _run_checks(
        lambda: check_output(config.output),
        *([lambda: check_report_path(workspace.reports_config)] if reports else []),
        lambda: _check_tiles_and_prompts(workspace, prompts, own="vlm" in models),
    )
    _run_checks(*(_model_check(config, model) for model in models))


def _run_checks(*steps: Callable[[], None]) -> None:
    """Run all checks, and raise one error that lists all problems."""
    problems: list[ClipitError] = []
    for step in steps:
        try:
            step()
        except ClipitError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ClipitError("\n".join([f"{counted(len(problems), 'problem')}:", *(str(problem) for problem in problems)]))


def check_output(folder: Path) -> None:
    """Check that an output folder can be created, or that an empty one can be written to; nothing is created.

    The permissions of a folder that is not empty are not checked, because it may contain another user's finished runs,
    and reading those needs no write permission.

    Raises:
        ArtifactError: The folder, or the nearest existing parent, is a file or cannot be written to.
    """
    nearest = next((path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()), Path("/"))
    if not nearest.is_dir():
        fix = "choose a different folder with --output"
        raise ArtifactError("this is a file, not a folder", where=nearest, fix=fix)
    is_used = nearest == folder.absolute() and any(nearest.iterdir())
    if not is_used and not os.access(nearest, os.W_OK | os.X_OK):
        purpose = "" if nearest == folder.absolute() else f", in which the output folder {folder} would be created"
        raise ArtifactError(
            f"no permission to write to this folder{purpose}",
            where=nearest,
            fix="choose a different folder with --output, or change the folder's permissions",
        )


def _model_check(config: RunConfig, model: Model) -> Callable[[], None]:
    def check() -> None:
        if model == "backbone":
            from clipit.models.backbones import backbone_repository

            backbone_repository(config.backbone)
            return
        from clipit.models.vlm_sources import check_vlm_name

        vlm = config.vlm if model == "vlm" else config.second_vlm
        if vlm is not None:
            check_vlm_name(vlm)

    return check


def _check_tiles_and_prompts(workspace: "Workspace", additional: Sequence[PromptSet], *, own: bool) -> None:
    own_prompts = workspace.prompts if own else None
    sets = [*([own_prompts] if own_prompts is not None else []), *additional]
    if not names_tiles(workspace.config):
        return
    tiles = workspace.listed_tiles
    for prompts in sets if tiles.classes else ():
        check_classes(prompts, tiles.classes)
        unused = unused_classes(prompts, tiles.classes)
        if unused:
            workspace.log_once(
                f"note: ignoring classes of the prompt set {prompts.name} that no tile has: {shortlist(unused)}"
            )
