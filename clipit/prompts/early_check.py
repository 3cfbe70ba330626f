"""Read the prompt files of a command at its start, before slow packages are imported."""

from collections.abc import Callable
from pathlib import Path

from clipit.config.file import ConfigFile
from clipit.config.run import RunConfig
from clipit.prompts.prompt_set import load_prompt_bag, load_prompts


def check_prompt_file(name: str | Path | None, load: Callable[[str], object] = load_prompts) -> None:
    """Check a prompt file; names of packaged sets and missing files are checked where they are used.

    Raises:
        DataError: The file is invalid.
    """
    if name is not None and Path(name).expanduser().is_file():
        load(str(Path(name).expanduser()))


def check_prompt_files(file: ConfigFile) -> None:
    """Check all prompt files that a configuration names, whether or not the command uses them.

    Raises:
        DataError: A file is invalid.
    """
    check_run_prompts(file.run)
    check_prompt_file(file.prompt_study.simple)
    check_prompt_file(file.segmentation.prompts)
    for keys in file.comparison.data_sets.values():
        prompts = keys.get("prompts")
        check_prompt_file(prompts if isinstance(prompts, str) else None)


def check_run_prompts(run: RunConfig) -> None:
    """Check the prompt files of a run.

    Raises:
        DataError: A file is invalid.
    """
    check_prompt_file(run.prompts)
    check_prompt_file(run.own_report.tissue_prompts)
    if run.reports is not None and run.reports.morphology_prompts is not None:
        check_prompt_file(run.reports.morphology_prompts, load_prompt_bag)
        check_prompt_file(run.reports.boilerplate_prompts, load_prompt_bag)
