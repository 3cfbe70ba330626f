"""Targets for the arms that learn from reports, and for their controls."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipit.config.mil import MilConfig
from clipit.config.run import RunConfig
from clipit.mil.mil_arms import ARMS, MilArm
from clipit.mil.mil_bags import MilBags
from clipit.mil.privileged import image_embeddings, predicted_labels, report_embeddings, report_labels
from clipit.mil.targets import BagTargets, join_targets
from clipit.mil.train_network import train_bag_network
from clipit.workspace.workspace import Workspace


def arm_targets(
    arm: MilArm, config: RunConfig, mil: MilConfig, workspace: Workspace, bags: MilBags, seed: int, root: Path
) -> BagTargets | None:
    """Return the targets of an arm's training bags in addition to their labels; None if the arm has none.

    Args:
        config: Run configuration, with `reports` if the arm reads them.
        mil: Weights of the targets, and options of the model that predicts labels.
        bags: Bags with the labels that the arm may use.
        seed: Seed for training and for shuffling reports.

    Raises:
        ConfigError: No reports are configured.
        DataError: No training patient has a report, or no report yields a class.
    """
    targets: list[BagTargets] = []
    if arm.labels == "reports":
        targets.append(report_labels(config, workspace, bags, seed, shuffled=arm.shuffled_reports))
    elif arm.labels == "predicted":
        teacher = train_bag_network(bags, mil.training.model_copy(update={"pooling": arm.pooling}), seed, root=root)
        targets.append(predicted_labels(teacher.predict, bags))
    if arm.vectors == "reports":
        targets.append(report_embeddings(config, workspace, bags, seed, shuffled=arm.shuffled_reports))
    elif arm.vectors == "images":
        report_arms = [name for name in mil.arms if name in ARMS and ARMS[name].vectors == "reports"]
        reported = report_embeddings(config, workspace, bags, seed) if report_arms else None
        targets.append(image_embeddings(bags, reported))
    return _weighted(targets, mil) if targets else None


def _weighted(parts: Sequence[BagTargets], mil: MilConfig) -> BagTargets:
    targets = parts[0] if len(parts) == 1 else join_targets(*parts)
    return replace(targets, label_weight=mil.targets.label_weight, vector_weight=mil.targets.vector_weight)
