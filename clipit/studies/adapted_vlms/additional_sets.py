"""Read the additional test sets on which forgetting is measured, and check them for leaks from the adaptation data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from clipit.config.load import read_yaml, require_tiles, validate_file
from clipit.config.run import RunConfig
from clipit.config.shipped import config_file
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import ConfigError
from clipit.vlm_training.bag_batches import BagExamples
from clipit.vlm_training.bag_examples import report_patients
from clipit.workspace.external_leaks import enforce_on_external
from clipit.workspace.leak_policy import hash_images
from clipit.workspace.workspace import Workspace


@dataclass(frozen=True)
class AdditionalSet:
    """An additional test set, checked for leaks from the adaptation data.

    Attributes:
        config: Configuration of the set, with the VLM before the adaptation.
        tests: Ids of the test tiles that are scored.
        notes: Notes on tiles that `leaks.policy` dropped or kept.
    """

    config: RunConfig
    tests: Shaped[np.ndarray, " n"]
    notes: tuple[str, ...] = ()


def read_additional_sets(config: RunConfig, section: AdaptConfig) -> dict[str, RunConfig]:
    """Read the configurations of `adapt.forgetting`, with the VLM, output folder and `evaluation` of `config`.

    Args:
        config: Configuration of the adaptation.
        section: Section `adapt`.

    Raises:
        ConfigError: An entry has keys other than `config`, its file cannot be read, or it lacks tiles or prompts.
    """
    sets = {}
    for name, entry in section.forgetting.items():
        where = f"adapt.forgetting.{name}"
        if set(entry) != {"config"}:
            raise ConfigError(
                f"expected only the key `config`, found {', '.join(sorted(entry)) or 'none'}",
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


def check_additional_sets(
    config: RunConfig,
    section: AdaptConfig,
    workspace: Workspace,
    sets: Mapping[str, RunConfig],
    examples: Sequence[BagExamples],
) -> dict[str, AdditionalSet]:
    """Check the test tiles of additional sets for leaks from the adaptation data; called by all processes.

    Tiles of the same patients and copies of the same images are leaks; with `bags`, so are tiles of the patients whose
    reports provide the snippets. With `leaks.policy: exclude`, leaks are dropped from the additional set.

    Args:
        config: Run configuration with the section `leaks`.
        section: Section `adapt`.
        sets: Configurations of the additional sets, from `read_additional_sets`.
        examples: Training and validation examples.

    Raises:
        DataError: There are leaks and the policy is `error`, or a set would become empty.
    """
    used_tiles = [each.used_tiles() for each in examples]
    additional = {}
    for name, other in sets.items():
        tests = workspace.for_config(other).all_tiles.of_split("test")
        previous_notes, where = tests.notes, f"adapt.forgetting.{name}"
        for tiles in used_tiles if config.leaks.policy != "off" else ():
            tests = enforce_on_external(tests, tiles, hash_images(tiles, config, config.leaks.pixels), config, where)[0]
        if section.data == "bags" and section.needs_reports:
            tests = enforce_on_external(tests, report_patients(workspace), None, config, f"{where}, reports")[0]
        notes = tuple(f"{where}: {note}" for note in tests.notes if note not in previous_notes)
        additional[name] = AdditionalSet(other, tests.ids, notes)
    return additional
