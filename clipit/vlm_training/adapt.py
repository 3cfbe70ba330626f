"""Adapt a VLM: train or resume one adaptation, and export the adapted VLM."""

from pathlib import Path

from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.workspace.workspace import Workspace


def adaptation_folder(config: RunConfig, arm: AdaptArm, seed: int) -> Path:
    """Return the path of the folder of an adaptation."""
    return config.output / "adapt" / config.name / f"{arm}-seed{seed}"


def adapt(config: RunConfig, section: AdaptConfig, arm: AdaptArm, seed: int, workspace: Workspace) -> Path:
    """Adapt the VLM of a configuration, or resume it; a finished adaptation is not repeated.

    Args:
        config: Run configuration.
        section: Section `adapt`.
        arm: Arm of the study.
        seed: Seed of initialisation, order and augmentation.
        workspace: Workspace of this configuration; its VLM keeps its weights.

    Returns:
        The folder of the adaptation: config.yaml, metrics.jsonl, checkpoints/, training.json, adapter/ and, where the
        licence permits it, vlm/.
    """
    raise NotImplementedError(adaptation_folder(config, arm, seed))
