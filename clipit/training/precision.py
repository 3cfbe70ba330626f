"""Resolve `training.precision: auto`, on which results depend."""

from clipit.config.run import RunConfig
from clipit.distributed import get_processes


def resolve_precision(config: RunConfig) -> RunConfig:
    """Replace `training.precision: auto` by the mixed precision that the devices of all processes compute in."""
    if config.training.precision != "auto":
        return config
    from clipit.models.precision import mixed_precision

    processes = get_processes()
    precisions = set(processes.gather(mixed_precision(processes.device)))
    training = config.training.model_copy(update={"precision": precisions.pop() if len(precisions) == 1 else "no"})
    return config.model_copy(update={"training": training})
