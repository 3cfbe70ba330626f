"""List the packaged prompt sets (`list`), check prompt sets (`lint FILE...`), or compare wordings (`study`)."""

import sys

from clipit.config.command_line import read_file_command
from clipit.config.computing_options import OptionParser
from clipit.config.paths import option_name, run_path
from clipit.errors import DataError, counted, user_errors
from clipit.prompts.early_check import check_prompt_files
from clipit.reporting.csv_export import RECORD_OPTION, check_export, finish_study


def list_sets(arguments: list[str]) -> None:
    """Print the packaged sets with their classes, number of prompts, source and licence."""
    OptionParser(prog="clipit prompts list", description="List the packaged prompt sets.").parse_args(arguments)
    from clipit.prompts.catalogue import list_text, packaged_sets

    print(list_text(packaged_sets()))


def lint(arguments: list[str]) -> None:
    """Print the problems of each file; exit with status 1 if any problem is an error, 2 if a file cannot be read."""
    parser = OptionParser(prog="clipit prompts lint", description="Check prompt sets.")
    parser.add_argument("files", type=option_name, nargs="+", help="YAML or JSON files, or names of packaged sets")
    parser.add_argument("--config", help="configuration with the classes and the VLM to check the prompts against")
    options = parser.parse_args(arguments)
    from clipit.prompts.lint import lint_file

    classes = count_tokens = budget = None
    if options.config is not None:
        from clipit.workspace.workspace import Workspace

        config, _ = read_file_command("", (), ["--config", options.config], needs_reports=False)
        workspace = Workspace(config.run)
        classes = workspace.all_tiles.classes
        count_tokens, budget = workspace.vlm.count_tokens, workspace.vlm.context_length
    errors = unreadable = 0
    for file in options.files:
        try:
            findings = lint_file(file, classes, count_tokens, budget)
        except DataError as error:
            unreadable += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        errors += sum(finding.level == "error" for finding in findings)
        print(f"{file}: {counted(len(findings), 'problem') if findings else 'no problems'}")
        for finding in findings:
            print(f"  {finding.text()}")
    raise SystemExit(2 if unreadable else 1 if errors else 0)


def study(arguments: list[str]) -> None:
    """Measure how much the wording of prompts matters."""
    extra = {"--run": {"type": run_path, "help": "folder of a run whose student is also evaluated"}, **RECORD_OPTION}
    description = "Measure how much the wording of prompts matters."
    file, options = read_file_command(
        description, ["prompt_study"], arguments, extra, needs_reports=False, config_usage="study --config FILE"
    )
    check_prompt_files(file)
    if options.record:
        check_export(options.record)
    from clipit.studies.prompt_wording.prompt_study import prompt_study
    from clipit.workspace.workspace import Workspace

    finish_study(prompt_study(file.run, file.prompt_study, Workspace(file.run), options.run), "prompts", options.record)


def main() -> None:
    """Run the command."""
    parser = OptionParser(description=__doc__)
    parser.add_argument("command", choices=("list", "lint", "study"))
    command = parser.parse_args(sys.argv[1:2]).command
    with user_errors():
        {"list": list_sets, "lint": lint, "study": study}[command](sys.argv[2:])
