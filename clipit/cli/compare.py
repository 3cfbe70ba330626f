"""Compare arms over seeds, data sets and backbones, to show whether text helps, by how much, and why."""

import sys
from pathlib import Path

from clipit.config.command_line import AGENTS, read_file_command
from clipit.errors import counted, shortlist, user_errors
from clipit.prompts.early_check import check_prompt_files


def main() -> None:
    """Run the command."""
    with user_errors():
        extra = {
            "--record": {"type": Path, "metavar": "FILE.csv", "help": "also export all rows to this file"},
            **AGENTS,
        }
        file, options = read_file_command(__doc__, ["comparison"], extra=extra)
        from clipit.api.experiments import compare

        check_prompt_files(file)  # before importing packages, which takes seconds
        from clipit.comparison.export_tables import export_csv
        from clipit.comparison.report.write import read_head
        from clipit.distributed import get_processes
        from clipit.reporting.csv_export import check_export

        if options.record:
            check_export(options.record)
        comparison = compare(file, agents=options.agents)
        if get_processes().main:
            if options.record:
                export_csv(comparison.folder, options.record)
            print(f"\n{read_head(comparison.folder)}\n")
            files = {"page": comparison.page, "text": comparison.report}
            files["rows"] = comparison.folder / "comparison.parquet"
            print("\n".join(f"{title}: {path}" for title, path in files.items()))
            if comparison.failed:
                runs = [f"{run['arm']} on {run['data_set']}, seed {run['seed']}" for run in comparison.failed]
                count = counted(len(runs), "run")
                print(f"error: {count} failed: {shortlist(runs)}; see the page", file=sys.stderr)
                raise SystemExit(1)
