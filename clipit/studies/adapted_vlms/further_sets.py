"""Read the further sets on which forgetting is measured."""

from clipit.config.load import read_yaml, require_tiles, validate_file
from clipit.config.run import RunConfig
from clipit.config.shipped import config_file
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import ConfigError


def read_further_sets(config: RunConfig, section: AdaptConfig) -> dict[str, RunConfig]:
    """Read the configurations of `adapt.forgetting`, with the VLM, the output folder and the speed keys of this one.

    Args:
        config: Run configuration.
        section: Section `adapt`.

    Raises:
        ConfigError: An entry has other keys than `config`, its file cannot be read, or it lacks tiles or prompts.
    """
    sets = {}
    for name, entry in section.forgetting.items():
        where = f"adapt.forgetting.{name}"
        if set(entry) != {"config"}:
            raise ConfigError(
                f"expected the key config, found {', '.join(sorted(entry)) or 'none'}",
                where=where,
                fix="name a configuration file with tiles and prompts: {config: FILE}",
            )
        path = config_file(entry["config"])
        run = validate_file(read_yaml(path), f"{path} ({where})").run
        require_tiles(run)
        if run.prompts is None:
            raise ConfigError(
                "forgetting is measured by zero-shot classification, but no prompts are configured",
                where=f"{path} ({where})",
                fix="set prompts",
            )
        sets[name] = run.model_copy(
            update={"output": config.output, "vlm": config.vlm, "evaluation": config.evaluation, "reports": None}
        )
    return sets
