"""The command `clipit`: find the subcommand and run it."""

import difflib
import importlib
import sys

from clipit.cli.commands import COMMANDS, command_names
from clipit.errors import user_errors


def main() -> None:
    """Run the subcommand named by the first argument."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        with user_errors():
            print(usage())
    elif name == "--version":
        from clipit.versions import package_version

        print(f"clipit {package_version()}")
    elif name in command_names():
        sys.argv = [f"clipit {name}", *rest]  # program name in usage messages and in provenance
        with user_errors():  # also for an interrupt during the import
            module = importlib.import_module(f"clipit.cli.{name.replace('-', '_')}")
        module.main()
    else:
        close = difflib.get_close_matches(name.replace("_", "-"), command_names(), 1)
        hint = f"did you mean {close[0]}? " if close else ""
        print(f"error: unknown command {name!r}\n  fix: {hint}clipit --help lists all commands", file=sys.stderr)
        raise SystemExit(2)


def usage() -> str:
    """Compose the text of `clipit --help`."""
    lines = ["usage: clipit COMMAND [options]", "       clipit COMMAND --help"]
    for title, commands in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:<14} {summary}" for name, summary in commands.items())]
    lines += [
        "",
        "With several processes: accelerate launch -m clipit COMMAND ...",
        "Exit status: 0 success, 1 a check found problems, 2 error (see the message), 3 incomplete check",
        "(check-leaks), 130 interrupted.",
    ]
    return "\n".join(lines)
