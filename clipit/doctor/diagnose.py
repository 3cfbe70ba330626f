"""Run all checks: the machine, its packages, the Hub, and configurations."""

from collections.abc import Callable, Sequence
from pathlib import Path

from clipit.config.load import read_yaml
from clipit.config.shipped import run_configs, shipped_folder
from clipit.doctor.check_results import Check, CheckGroup, failed_check, merge_checks
from clipit.doctor.configs import check_config, check_shipped_config, head_entry, read_incomplete
from clipit.doctor.machine import check_machine
from clipit.doctor.memory_check import check_memory, check_memory_of_runs
from clipit.doctor.model_checks import Access, AskHub, ask_hub, check_hub
from clipit.doctor.packages import check_packages
from clipit.errors import ClipitError, ConfigError, counted


def diagnose(
    path: Path | None = None,
    options: Sequence[str] = (),
    *,
    shipped: bool = False,
    announce: Callable[[str], None] = lambda subject: None,
) -> list[CheckGroup]:
    """Run all checks.

    Args:
        path: Configuration file of a run or comparison; None for all in the current folder.
        options: Overrides, as on a command line (`--lora.rank=8`).
        shipped: Whether to check the shipped configurations instead, most of which lack data and models.
        announce: Function that is called with the name of each check before it starts.

    Raises:
        ConfigError: The file cannot be read, is not a run configuration, or has invalid keys.
    """
    output = Path("outputs")
    hub_ids: list[str] = []

    def ask(hub_id: str) -> Access:
        hub_ids.append(hub_id)
        return ask_hub(hub_id)

    if shipped:
        files = run_configs(shipped_folder())
        announce(counted(len(files), "shipped configuration"))
        checks = merge_checks({file.name: check_shipped_config(file, ask) for file in files})
        group = CheckGroup("Shipped configurations", checks)
    elif path is None:
        group = CheckGroup("Configurations in this folder", _check_folder(Path(), ask, announce))
    else:
        if {"method", "distributed_type"} & set(read_yaml(path)):
            fix = "use the configuration named in the command at the top of the file"
            raise ConfigError("this file configures a sweep or Accelerate, not a run", where=path, fix=fix)
        file, missing = read_incomplete(path, options)
        needs = head_entry(path, "needs")
        announce(f"{path}: its models, tiles, reports and prompts")
        checks = check_config(file, missing, path, ask)
        announce(f"the memory that {path} needs")
        checks += check_memory(file.run, needs) if missing else check_memory_of_runs(file, needs)
        output, group = file.run.output, CheckGroup(str(path), checks)
    groups = [group]
    announce("this machine")
    groups.append(CheckGroup("This machine", check_machine(output)))
    announce("packages")
    groups.append(CheckGroup("Packages", check_packages()))
    announce("the Hugging Face Hub")
    groups.append(CheckGroup("Hugging Face Hub", check_hub(needed=bool(hub_ids) or not (path or run_configs(Path())))))
    return groups


def _check_folder(folder: Path, ask: AskHub, announce: Callable[[str], None]) -> list[Check]:
    """Check all run configurations in a folder; an invalid key affects only its own file."""
    files = run_configs(folder)
    if not files:
        hint = "none found; clipit init own_table > config.yaml writes one, --shipped checks those in the package"
        return [Check("PASS", "configurations", hint)]
    checks = {}
    for file in files:
        announce(f"{file.name}: its models, tiles, reports and prompts")
        try:
            checks[file.name] = check_config(*read_incomplete(file, []), file, ask)
        except ClipitError as error:
            checks[file.name] = [failed_check("keys", error)]
    names = Check("PASS", "configurations", ", ".join(checks))
    return [names, *merge_checks(checks)]
