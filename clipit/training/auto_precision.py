"""Resolve `training.precision: auto` once per run, because results depend on the precision."""

from clipit.config.run import RunConfig
from clipit.distributed import get_processes


def resolve_precision(config: RunConfig, recorded: str | None = None) -> RunConfig:
    """Replace `training.precision: auto` with the precision to use; must be called by all processes.

    Args:
        recorded: Precision that the run was started with; None to choose one that the devices of all processes support.
    """
    if config.training.precision != "auto":
        return config
    from clipit.models.precision import mixed_precision

    processes = get_processes()
    precision = processes.broadcast(recorded)
    if precision is None:
        suitable = set(processes.gather(mixed_precision(processes.device)))
        precision = suitable.pop() if len(suitable) == 1 else "no"
    return config.model_copy(update={"training": config.training.model_copy(update={"precision": precision})})
