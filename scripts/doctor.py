"""Say what stands between this machine and a run: PASS, WARN or FAIL for each thing, and what to do.

Without --config it goes over every configuration shipped. Exit status 1 when anything fails.
"""

import argparse
import os
import sys
from pathlib import Path

from clipit.errors import ConfigError, explain, user_errors


def main() -> None:
    """Parse, look, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, usage="%(prog)s [--config FILE [--section.key=value ...]] [--models]"
    )
    parser.add_argument(
        "--config", type=Path, help="YAML file to be used: of a run (its keys can be overridden), a sweep or Accelerate"
    )
    parser.add_argument("--models", action="store_true", help="print the tables of known models instead")
    options, keys = parser.parse_known_args()
    with user_errors():
        if keys and options.config is None:
            raise ConfigError(explain(f"unknown options: {' '.join(keys)}", fix="keys go with --config; see --help"))
        if options.models:
            from clipit.doctor.models import model_tables

            print(model_tables())
            return
        from clipit.doctor.findings import rendered
        from clipit.doctor.run import diagnose

        sections = diagnose(options.config, keys)
        print(rendered(sections, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        raise SystemExit(any(finding.status == "FAIL" for section in sections for finding in section.findings))


if __name__ == "__main__":
    main()
