"""Configuration file: the keys of a run, plus the sections that only comparisons and studies read."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from clipit.config.argument_types import type_name
from clipit.config.comparison import ComparisonConfig
from clipit.config.mil import MilConfig
from clipit.config.run import RunConfig
from clipit.config.section import Section
from clipit.config.segmentation import SegmentationConfig
from clipit.config.studies import LabelIssuesConfig, ProbingConfig, PromptStudyConfig, RobustnessConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import ConfigError


class ConfigFile(Section):
    """Content of a configuration file, in which the keys of `run` are at the top level."""

    run: RunConfig
    comparison: ComparisonConfig = ComparisonConfig()
    probing: ProbingConfig = ProbingConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    prompt_study: PromptStudyConfig = PromptStudyConfig()
    label_issues: LabelIssuesConfig = LabelIssuesConfig()
    mil: MilConfig = MilConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    adapt: AdaptConfig = AdaptConfig()

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        run = {key: value for key, value in values.items() if key not in SECTIONS}
        return {"run": run} | {key: values[key] for key in SECTIONS if key in values}


SECTIONS = tuple(name for name in ConfigFile.model_fields if name != "run")
"""Sections of a configuration file that do not belong to a run."""


def run_section(config: RunConfig | ConfigFile) -> RunConfig:
    """Return the keys of a run from a configuration.

    Raises:
        ConfigError: The value is neither a configuration nor its keys of a run.
    """
    if isinstance(config, ConfigFile):
        return config.run
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"a configuration must be the result of load_config, not {type_name(config)}",
            where="config",
            fix="pass clipit.load_config(...)",
        )
    return config
