"""Check a resolved configuration for keys that contradict each other."""

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, counted
from clipit.training.terms.term_table import all_terms


def check_keys(config: RunConfig) -> None:
    """Raise one error for all contradictory keys of a resolved configuration.

    Raises:
        ConfigError: Some keys contradict each other.
    """
    problems = [problem for term in all_terms(config) for problem in term.problems()]
    size, micro_batches = config.training.tiles_per_step, config.training.micro_batches
    processes = get_processes().count
    if size < processes * micro_batches:
        problems.append(
            f"training.tiles_per_step={size} is less than one tile per micro-batch: "
            f"{counted(processes, 'process', 'processes')} x {counted(micro_batches, 'micro-batch', 'micro-batches')}"
        )
    if problems:
        raise ConfigError("; ".join(problems), where=f"arm {config.arm or '(none)'}", fix="change these keys")
