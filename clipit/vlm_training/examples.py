"""Build the training examples of an adaptation: the table of data kinds, and checks shared by all kinds."""

import dataclasses
import logging

import numpy as np

from clipit.config.load import names_tiles
from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.errors import DataError, counted
from clipit.output_files.artifacts import fingerprint
from clipit.vlm_training.bag_batches import BagExamples, check_negatives
from clipit.vlm_training.bag_examples import bag_examples
from clipit.vlm_training.captions import count_prompt_texts
from clipit.vlm_training.case_examples import case_examples
from clipit.vlm_training.pair_examples import pair_examples
from clipit.workspace.workspace import Workspace

_MAKERS = {"cases": case_examples, "pairs": pair_examples, "bags": bag_examples}


def make_examples(
    config: RunConfig,
    section: AdaptConfig,
    arm: AdaptArm,
    seed: int,
    split: str,
    workspace: Workspace,
    *,
    batches: bool = True,
) -> BagExamples:
    """Build the examples of a split from the kind of data in `adapt.data`; called by all processes.

    Args:
        section: Section `adapt`.
        seed: Seed for the order and for the control's shuffled texts.
        split: `train`, or a split whose examples are never trained on: `validation` or `test`.
        batches: Whether batches are drawn from the examples. Otherwise their number and negatives are not checked.

    Raises:
        DataError: The split has no examples, the train split has fewer than a batch, or no bag in a batch has a
            negative.
    """
    examples = _MAKERS[section.data](config, section, arm, seed, split, workspace)
    fingerprints = examples.fingerprints | {"examples": examples_content(examples)}
    examples = dataclasses.replace(examples, fingerprints=fingerprints)
    facts = {"data": section.data, "arm": arm, "split": split} | examples.summary
    if batches:
        n_bags = _different_bags(examples)
        if split == "train" and n_bags < examples.batch_size:
            available = (
                f"{counted(len(examples), 'training patient gives', 'training patients give')} "
                f"{counted(n_bags, 'different bag')}"
                if section.data == "cases"
                else f"only {counted(n_bags, 'training example')}"
            )
            raise DataError(
                f"{available}, fewer than a batch of {examples.batch_size}",
                where="adapt.batch_size",
                fix=f"use at most {max(min(len(examples), n_bags), 2)}, or add data",
            )
        examples = dataclasses.replace(examples, batch_size=min(n_bags, examples.batch_size))
        facts |= check_negatives(examples)
    if arm == "text":
        classes = workspace.all_tiles.classes if names_tiles(config) else ()
        facts |= count_prompt_texts(
            examples, workspace.prompts, classes, split, lambda text: workspace.log_once(text, logging.WARNING)
        )
    return dataclasses.replace(examples, summary=facts)


def _different_bags(examples: BagExamples) -> int:
    """Count the distinct tile bags; tiles that serve as neighbours of others form no additional bags."""
    if examples.neighbours:
        return len(examples)
    return int(np.maximum(examples.tiles_of.lengths // examples.tiles_per_bag, 1).sum())


def examples_content(examples: BagExamples) -> str:
    """Return the fingerprint of all inputs from which batches are drawn, except pixels and the wording of texts."""
    members = [array for each in (examples.tiles_of, examples.texts_of) for array in (each.values, each.starts)]
    numbers = [*members, examples.groups, examples.partners, examples.pixel_codes]
    return fingerprint([examples.tile_ids, len(examples.texts), *(values.tolist() for values in numbers)])


def validation_examples(
    config: RunConfig,
    section: AdaptConfig,
    arm: AdaptArm,
    seed: int,
    workspace: Workspace,
    *,
    batches: bool = True,
) -> BagExamples | None:
    """Build the examples of the validation split; None, with a note, if there are none.

    Args:
        section: Section `adapt`.
        batches: Whether batches are drawn from the examples.
    """
    try:
        return make_examples(config, section, arm, seed, "validation", workspace, batches=batches)
    except DataError as error:
        workspace.log_once(f"note: no validation loss: {error}")
        return None
