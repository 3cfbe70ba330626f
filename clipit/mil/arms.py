"""Arms of the study: the networks, and training on shuffled labels as a control."""

from collections.abc import Iterable
from dataclasses import dataclass

from clipit.config.mil import MilConfig, MilPooling
from clipit.errors import ConfigError
from clipit.mil.bags import MilBags, keep_labels, shuffle_labels
from clipit.mil.inputs import ZERO_SHOT

FLOOR = "class frequencies"
"""Arm that gives every bag the class frequencies of the training bags."""


@dataclass(frozen=True)
class MilArm:
    """A trained arm.

    Attributes:
        title: What it does, for the page.
        pooling: Pooling of the network.
        shuffled: Whether the labels of training and validation bags are permuted.
    """

    title: str
    pooling: MilPooling
    shuffled: bool = False

    def bags(self, bags: MilBags, labels_per_class: int | None, seed: int) -> MilBags:
        """Return the bags with the labels that this arm is trained on."""
        kept = keep_labels(bags, labels_per_class, seed)
        return shuffle_labels(kept, seed) if self.shuffled else kept


ARMS: dict[str, MilArm] = {
    "attention": MilArm("gated attention (Ilse et al., ICML 2018)", "attention"),
    "mean": MilArm("mean of the instances, with the same embedding and classifier", "mean"),
    "max": MilArm("highest instance logit of each class", "max"),
    "shuffled_labels": MilArm("control: gated attention trained on permuted labels", "attention", shuffled=True),
}
"""Trained arms by name."""


def check_arms(mil: MilConfig) -> None:
    """Check the names of the arms.

    Raises:
        ConfigError: An arm is unknown, or no arm is trained.
    """
    unknown = [name for name in mil.arms if name not in (*ARMS, ZERO_SHOT)]
    if unknown:
        raise ConfigError(
            f"unknown arms: {', '.join(unknown)}", where="mil.arms", fix=f"use some of {', '.join((*ARMS, ZERO_SHOT))}"
        )
    if mil.reference == ZERO_SHOT and len(mil.arms) == 1:
        raise ConfigError("no arm is trained", where="mil.arms", fix=f"add some of {', '.join(ARMS)}")


def arm_titles(names: Iterable[str]) -> dict[str, str]:
    """Return what each arm does."""
    titles = {name: arm.title for name, arm in ARMS.items()}
    titles[ZERO_SHOT] = (
        "no training: cosine of each instance to the class prompts, pooled by the mean of the top K or all instances "
        "(MI-Zero), chosen on the validation bags"
    )
    titles[FLOOR] = "floor: every bag gets the class frequencies of the training bags"
    return {name: titles[name] for name in names}
