"""Check this machine, its packages and your configuration; list problems with fixes first, then passed checks.

Without --config, the configurations in the current folder are checked. The exit status is 1 if a check fails.
"""

import argparse
import os
import sys

from clipit.config.shipped import config_file
from clipit.errors import ConfigError, user_errors


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [--config FILE [--section.key=value ...]] [--shipped] [--models]"
    )
    parser.add_argument("--config", type=config_file, help="YAML file of a run; its keys can be overridden")
    parser.add_argument("--shipped", action="store_true", help="check the shipped configurations instead")
    parser.add_argument("--models", action="store_true", help="print the tables of known models and exit")
    options, keys = parser.parse_known_args()
    with user_errors():
        if keys and options.config is None:
            raise ConfigError(f"unknown options: {' '.join(keys)}", fix="configuration keys need --config; see --help")
        if options.shipped and options.config is not None:
            raise ConfigError("--shipped and --config are mutually exclusive", fix="remove one of them")
        if options.models:
            from clipit.doctor.model_checks import model_tables

            print(model_tables())
            return
        _announce("starting")
        from clipit.doctor.check_results import format_checks
        from clipit.doctor.diagnose import diagnose

        groups = diagnose(
            options.config, keys, shipped=options.shipped, announce=lambda subject: _announce(f"checking {subject}")
        )
        print(format_checks(groups, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        raise SystemExit(any(check.status == "FAIL" for group in groups for check in group.checks))


def _announce(step: str) -> None:
    """Print what happens next, since importing packages and reading data take seconds."""
    print(f"{step} ...", file=sys.stderr, flush=True)
