"""Arms of the slide-label study: networks, targets in addition to labels, and controls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from clipit.config.mil import MilConfig, MilPooling
from clipit.config.run import RunConfig
from clipit.errors import ConfigError, counted
from clipit.evaluation.predictions import NO_LABEL
from clipit.mil.inputs import ZERO_SHOT
from clipit.mil.mil_bags import MilBags, keep_labels, shuffle_labels, unchanged_shares
from clipit.mil.privileged import image_embeddings, predicted_labels, report_embeddings, report_labels
from clipit.mil.targets import BagTargets, join_targets
from clipit.mil.train_network import train_bag_network
from clipit.workspace.workspace import Workspace

_MIN_SHUFFLED = 4  # labels per class; with fewer labels, permutations often restore the labels or swap whole classes

FLOOR = "class frequencies"
"""Name of the arm that predicts the class frequencies of the training bags for every bag."""


@dataclass(frozen=True)
class MilArm:
    """A trained arm.

    Attributes:
        shuffled: Whether the labels of training and validation bags are permuted.
        labels: Source of labels for unlabelled training bags; None to leave them unlabelled.
        vectors: Source of the vectors that representations of training bags learn to predict; None without vectors.
        shuffled_reports: Whether reports are shuffled across patients with the same organ.
        controls: Arms that this arm is compared with.
    """

    title: str
    pooling: MilPooling
    shuffled: bool = False
    labels: Literal["reports", "predicted"] | None = None
    vectors: Literal["reports", "images"] | None = None
    shuffled_reports: bool = False
    controls: tuple[str, ...] = ()

    @property
    def reads_reports(self) -> bool:
        """Whether the arm learns from reports of training patients."""
        return self.labels == "reports" or self.vectors == "reports"

    def bags(self, bags: MilBags, labels_per_class: int | None, seed: int) -> MilBags:
        """Return the bags with the labels that this arm is trained on."""
        kept = keep_labels(bags, labels_per_class, seed)
        return shuffle_labels(kept, seed) if self.shuffled else kept

    def notes(self, bags: MilBags, labels_per_class: int | None, seed: int) -> list[str]:
        """State how many bags keep their label if the arm permutes labels; an empty list for other arms."""
        if not self.shuffled:
            return []
        kept = keep_labels(bags, labels_per_class, seed)
        shares = unchanged_shares(kept, shuffle_labels(kept, seed)).items()
        listed = "; ".join(f"{split} {same:.0%} (by chance {chance:.0%})" for split, (same, chance) in shares)
        notes = [f"fraction of bags that keep their label: {listed}"]
        smallest_class = min(min(kept.counts()[split][name] for name in kept.classes) for split, _ in shares)
        if smallest_class < _MIN_SHUFFLED:
            notes.append(
                f"a class has only {counted(smallest_class, 'label')} in train or validation; below {_MIN_SHUFFLED}, "
                "permutations often restore the labels or swap whole classes, so the scores of this control are "
                "unreliable"
            )
        return notes


ARMS: dict[str, MilArm] = {
    "attention": MilArm("gated attention (Ilse et al., ICML 2018)", "attention"),
    "mean": MilArm("mean of the instances, with the same embedding and classifier as attention", "mean"),
    "max": MilArm("highest instance logit of each class", "max"),
    "shuffled_labels": MilArm("control: gated attention trained on permuted labels", "attention", shuffled=True),
    "report_labels": MilArm(
        "attention; unlabelled bags get the label read from their patient's report",
        "attention",
        labels="reports",
        controls=("attention", "predicted_labels", "shuffled_report_labels"),
    ),
    "report_embedding": MilArm(
        "attention; representations are also trained to predict the embedding of their patient's report",
        "attention",
        vectors="reports",
        controls=("attention", "image_embedding", "shuffled_report_embedding"),
    ),
    "report": MilArm(
        "attention; labels and embeddings come from the patients' reports",
        "attention",
        labels="reports",
        vectors="reports",
        controls=("attention", "predicted_labels", "image_embedding"),
    ),
    "predicted_labels": MilArm(
        "control without text: unlabelled bags get labels predicted by the arm `attention` with the same seed",
        "attention",
        labels="predicted",
    ),
    "image_embedding": MilArm(
        "control without text: representations are also trained to predict the mean of the bag's features",
        "attention",
        vectors="images",
    ),
    "shuffled_report_labels": MilArm(
        "control: report_labels, but with labels from other patients with the same organ",
        "attention",
        labels="reports",
        shuffled_reports=True,
    ),
    "shuffled_report_embedding": MilArm(
        "control: report_embedding, but with reports from other patients with the same organ",
        "attention",
        vectors="reports",
        shuffled_reports=True,
    ),
}
"""Trained arms by name."""


def class_frequencies(bags: MilBags, labels_per_class: int | None, seed: int) -> Float32[np.ndarray, "b c"]:
    """Return the scores of the floor: the class frequencies among labelled training bags, the same for every bag."""
    kept = keep_labels(bags, labels_per_class, seed).of_split("train").labels
    counts = np.bincount(kept[kept != NO_LABEL], minlength=len(bags.classes))
    return np.tile((counts / counts.sum()).astype(np.float32), (len(bags), 1))


def check_arms(config: RunConfig, mil: MilConfig) -> None:
    """Check that all arms are known, and that reports are configured for arms that need them.

    Raises:
        ConfigError: An arm is unknown, reports are missing, or no arm is trained.
    """
    unknown = [name for name in mil.arms if name not in (*ARMS, ZERO_SHOT)]
    if unknown:
        raise ConfigError(
            f"unknown arms: {', '.join(unknown)}", where="mil.arms", fix=f"choose from {', '.join((*ARMS, ZERO_SHOT))}"
        )
    report_arms = [name for name in mil.arms if name in ARMS and ARMS[name].reads_reports]
    if report_arms and config.reports is None:
        raise ConfigError(
            f"the arms {', '.join(report_arms)} need reports, but none are configured",
            where="reports",
            fix="set reports.path, or remove these arms from mil.arms",
        )
    if mil.reference == ZERO_SHOT and len(mil.arms) == 1:
        raise ConfigError("no arm is trained", where="mil.arms", fix=f"add at least one of {', '.join(ARMS)}")


def arm_titles(names: Iterable[str]) -> dict[str, str]:
    """Return the description of each arm."""
    titles = {name: arm.title for name, arm in ARMS.items()}
    titles[ZERO_SHOT] = (
        "no training: cosine similarity of each instance to the class prompts, averaged over the top K or all "
        "instances (MI-Zero); the pooling is chosen on the validation bags"
    )
    titles[FLOOR] = "floor: the class frequencies of the training bags, predicted for every bag"
    return {name: titles[name] for name in names}


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
