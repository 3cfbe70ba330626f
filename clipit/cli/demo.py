"""Run the demo: write synthetic worlds, compare arms on them over seeds, and try the exported classifiers.

Without --config, --cases or --tune, the demo has two parts: one with reports of other patients (configuration demo),
and one with the patients' own reports (configuration demo_own_reports). A final table shows the results of both.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clipit.config.command_line import AGENTS, read_file_command
from clipit.errors import user_errors

if TYPE_CHECKING:
    from clipit.config.run import RunConfig


def main() -> None:
    """Run the command."""
    with user_errors():
        extra = {
            "--tune": {"action": "store_true", "help": "search the arms' learning rates and steps instead"},
            "--cases": {"action": "store_true", "help": "run only the part with the patients' own reports"},
            "--agents": AGENTS["--agents"]
            | {
                "default": None,
                "help": "processes that share the runs (default: one per CPU core, at most 4; one with a GPU)",
            },
        }
        named_options = {argument.partition("=")[0] for argument in sys.argv}
        cases = (
            (False, True) if not named_options & {"--config", "--cases", "--tune"} else ("--cases" in named_options,)
        )
        parts = [
            read_file_command(
                __doc__, ["comparison"], extra=extra, default_config="demo_own_reports" if case else "demo"
            )
            for case in cases
        ]
        from clipit.comparison.agents import demo_agents
        from clipit.comparison.demo import demo, demo_table, write_demo_world
        from clipit.comparison.tune import tune
        from clipit.distributed import get_processes

        for case, (file, options) in zip(cases, parts, strict=True):
            agents = demo_agents() if options.agents is None else options.agents
            if options.tune:
                write_demo_world(file.run, cases=case)
                trials = tune(file.run, file.comparison, agents)
                print(f"\nall trials: {trials} (chosen arms: the .yaml file next to it)")
            else:
                run = demo(file.run, file.comparison, cases=case, agents=agents)
                if not case:
                    _map_slides(run, file.run)
        if len(parts) > 1 and get_processes().main:
            whose = ("of other patients", "of the same patients")
            files = {name: (file.run, file.comparison) for name, (file, _) in zip(whose, parts, strict=True)}
            print(f"\n{demo_table(files)}")


def _map_slides(run: Path, config: "RunConfig") -> None:
    """Map synthetic slides with the classifier of a run, if the packages that read slides are installed."""
    from clipit.distributed import get_processes
    from clipit.errors import DataError
    from clipit.slide_tasks.slides_demo import demo_slides
    from clipit.slides.opening import MISSING_SLIDE_PACKAGES, import_openslide

    try:
        import_openslide()
        text = demo_slides(run, config.output / "slides", config)
    except DataError as error:
        if error.fix != MISSING_SLIDE_PACKAGES:
            raise
        text = f"note: no slides were mapped: {error.what}\n  fix: {error.fix}"
    if get_processes().main:
        print(f"\n{text}")
