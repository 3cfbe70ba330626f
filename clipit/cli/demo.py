"""Run the demo: write the synthetic world, compare arms on it over seeds, and try the exported classifier."""

import sys
from pathlib import Path

from clipit.config.command_line import AGENTS, read_file_command
from clipit.errors import user_errors


def main() -> None:
    """Run the command."""
    with user_errors():
        extra = {
            "--tune": {"action": "store_true", "help": "search the arms' learning rates and steps instead"},
            "--cases": {"action": "store_true", "help": "use the world in which the tiles' own patients have reports"},
            "--agents": AGENTS["--agents"]
            | {
                "default": None,
                "help": "processes that share the runs (default: one per CPU core, at most 4; one with a GPU)",
            },
        }
        default = "demo_own_reports" if "--cases" in sys.argv else "demo"
        file, options = read_file_command(__doc__, ["comparison"], extra=extra, default_config=default)
        from clipit.comparison.agents import demo_agents
        from clipit.comparison.demo import demo, write_demo_world
        from clipit.comparison.tune import tune

        agents = demo_agents() if options.agents is None else options.agents
        if options.tune:
            write_demo_world(file.run, cases=options.cases)
            print(f"\nall trials: {tune(file.run, file.comparison, agents)} (chosen arms: the .yaml file beside it)")
        else:
            run = demo(file.run, file.comparison, cases=options.cases, agents=agents)
            if not options.cases:
                _map_slides(run, file.run.output / "slides")


def _map_slides(run: Path, out: Path) -> None:
    """Map synthetic slides with the classifier of a run, if the packages that read slides are installed."""
    from clipit.distributed import get_processes
    from clipit.errors import DataError
    from clipit.slide_tasks.demo import demo_slides
    from clipit.slides.opening import MISSING_SLIDE_PACKAGES, import_openslide

    try:
        import_openslide()
        text = demo_slides(run, out)
    except DataError as error:
        if error.fix != MISSING_SLIDE_PACKAGES:
            raise
        text = f"note: no slides were mapped: {error.what}\n  to do: {error.fix}"
    if get_processes().main:
        print(f"\n{text}")
