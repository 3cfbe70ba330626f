"""Check this machine, its packages and your configuration; list problems with fixes first, then passed checks.

Without --config, the configurations in the current folder are checked. The exit status is 1 if a check fails.
"""

import os
import sys

from clipit.config.command_line import HELP_KEYS, HELP_KEYS_OPTION, read_file_command
from clipit.config.computing_options import OptionParser
from clipit.config.file import SECTIONS
from clipit.config.shipped import config_file
from clipit.errors import ConfigError, user_errors


def main() -> None:
    """Run the command."""
    if HELP_KEYS in sys.argv:
        read_file_command(__doc__, SECTIONS)
    parser = OptionParser(description=__doc__, usage="%(prog)s [--config FILE [--section.key=value ...]] [--models]")
    parser.add_argument("--config", type=config_file, help="YAML file of a run; its keys can be overridden")
    parser.add_argument(HELP_KEYS, **HELP_KEYS_OPTION)
    parser.add_argument("--models", action="store_true", help="print the tables of known models and exit")
    options, keys = parser.parse_known_args()
    with user_errors():
        if keys and options.config is None:
            raise ConfigError(f"unknown options: {' '.join(keys)}", fix="configuration keys need --config; see --help")
        if options.models:
            print(model_tables())
            return
        _announce("starting")
        from clipit.doctor.check_results import format_checks
        from clipit.doctor.diagnose import diagnose

        groups = diagnose(options.config, keys, announce=lambda subject: _announce(f"checking {subject}"))
        print(format_checks(groups, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        raise SystemExit(any(check.status == "FAIL" for checks in groups.values() for check in checks))


def model_tables() -> str:
    """Format the tables of known VLMs and backbones as text."""
    from clipit.models.backbone_specs import BACKBONES
    from clipit.models.specs import spec_table
    from clipit.models.vlm_specs import VLMS

    tables = {"Vision-language models (vlm.name)": VLMS, "Backbones (backbone.name)": BACKBONES}
    return "\n\n".join(f"{title}\n{spec_table(specs.values())}" for title, specs in tables.items())


def _announce(step: str) -> None:
    """Print what happens next, since importing packages and reading data take seconds."""
    print(f"{step} ...", file=sys.stderr, flush=True)
