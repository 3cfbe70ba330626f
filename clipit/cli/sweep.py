"""Run a sweep file in wandb's format without wandb's server; several agents may share one output folder.

Additional options (--config=FILE, --section.key=value) change the configuration shared by all trials.
"""

import sys

from clipit.config.command_line import HELP_KEYS, HELP_KEYS_OPTION, read_file_command
from clipit.config.computing_options import OptionParser
from clipit.config.shipped import config_file
from clipit.errors import user_errors
from clipit.prompts.early_check import check_run_prompts


def main() -> None:
    """Parse the command line, check all trials, run the unfinished ones and print the table."""
    if HELP_KEYS in sys.argv:
        read_file_command(__doc__, ())
    parser = OptionParser(
        description=__doc__,
        usage="%(prog)s FILE [--config FILE] [options] [--section.key=value ...]",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=config_file, help="sweep file, or the name of a shipped one: sweeps/lora_rank")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file or name of a shipped configuration that the trials modify (default: as in the sweep file)",
    )
    parser.add_argument(HELP_KEYS, **HELP_KEYS_OPTION)
    parser.add_argument(
        "--launch", metavar="COMMAND", help='start each trial in separate processes: "accelerate launch ..."'
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help="maximum number of trials (default: run_cap of the file)"
    )
    parser.add_argument(
        "--draws-seed", type=int, default=0, metavar="N", help="seed for drawing values (methods `random`, `bayes`)"
    )
    parser.add_argument(
        "--trial", action="store_true", help="run one trial, with its values given as options (used by wandb's agent)"
    )
    arguments, rest = parser.parse_known_args()
    if arguments.config is not None:
        rest = [f"--config={arguments.config}", *rest]
    with user_errors():
        from clipit.sweeps.sweep_file import parse_options, read_sweep
        from clipit.sweeps.trials import make_trial, plan_sweep

        sweep, options = read_sweep(arguments.file), parse_options(rest)
        if arguments.trial:
            from clipit.sweeps.run_sweep import run_launched_trial

            run_launched_trial(make_trial(sweep, options))
            return
        plan = plan_sweep(sweep, options, arguments.count, arguments.draws_seed)
        check_run_prompts(plan.trials[0].config)
        from clipit.distributed import get_processes
        from clipit.sweeps.run_sweep import run_sweep
        from clipit.sweeps.sweep_page import read_sweep_head

        folder = run_sweep(plan, arguments.launch)
        if get_processes().main:
            print(f"\n{read_sweep_head(folder)}\n")
            files = {"page": "sweep.html", "text": "sweep.md", "trials": "trials.csv", "plot": "sweep.png"}
            print("\n".join(f"{title}: {folder / name}" for title, name in files.items()))
