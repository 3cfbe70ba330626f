"""Make the examples of an adaptation: the table of its kinds of data, and checks that they share."""

import dataclasses
import logging

from clipit.config.load import names_tiles
from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.errors import DataError
from clipit.vlm_training.bag_batches import BagExamples, check_negatives
from clipit.vlm_training.bags import bag_examples
from clipit.vlm_training.captions import count_prompt_texts
from clipit.vlm_training.cases import case_examples
from clipit.vlm_training.pairs import pair_examples
from clipit.workspace.workspace import Workspace

logger = logging.getLogger(__name__)

_MAKERS = {"cases": case_examples, "pairs": pair_examples, "bags": bag_examples}


def make_examples(
    config: RunConfig, section: AdaptConfig, arm: AdaptArm, seed: int, split: str, workspace: Workspace
) -> BagExamples:
    """Make the examples of a split as `adapt.data` says; called by all processes.

    Args:
        config: Run configuration.
        section: Section `adapt`.
        arm: Arm of the study.
        seed: Seed of the order and of the control's exchange.
        split: `train`, or a split whose examples are never trained on: `validation` or `test`.
        workspace: Workspace of this configuration.

    Raises:
        DataError: The split has no examples, the training part fewer than a batch, or no bag of a batch has a negative.
    """
    examples = _MAKERS[section.data](config, section, arm, seed, split, workspace)
    count = int(examples.tiles_of.lengths.sum())
    if split == "train" and count < examples.batch_size:
        raise DataError(
            f"only {count} training images have a text, fewer than a batch of {examples.batch_size}",
            where="adapt.batch_size",
            fix=f"use at most {count}, or add data",
        )
    examples = dataclasses.replace(examples, batch_size=min(count, examples.batch_size))
    facts = {"data": section.data, "arm": arm, "split": split} | examples.summary | check_negatives(examples)
    if arm == "text":
        classes = workspace.all_tiles.classes if names_tiles(config) else ()
        facts |= count_prompt_texts(examples, workspace.prompts, classes)
    return dataclasses.replace(examples, summary=facts)


def validation_examples(
    config: RunConfig, section: AdaptConfig, arm: AdaptArm, seed: int, workspace: Workspace
) -> BagExamples | None:
    """Make the examples of the validation part; None, with a note, if there are none.

    Args:
        config: Run configuration.
        section: Section `adapt`.
        arm: Arm of the study.
        seed: Seed of the draws.
        workspace: Workspace of this configuration.
    """
    try:
        return make_examples(config, section, arm, seed, "validation", workspace)
    except DataError as error:
        logger.info(f"note: no validation loss: {error}")
        return None
