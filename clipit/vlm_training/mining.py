"""Re-mine bags during the adaptation: embed with the VLM's current weights, and store the lists of members."""

import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.distributed import get_processes
from clipit.errors import ArtifactError, counted
from clipit.output_files.artifacts import fingerprint, reading, whole_file
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.vlm_training.bag_examples import MinedBags, examples_of, first_mined_bags, mine_bags
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from clipit.models.vlm import VLM

logger = logging.getLogger(__name__)

_TIME_SHARE = 0.1
"""Maximum time that a mining pass should take, relative to the steps until the next pass."""
_STEP_COST = 2.5
"""Cost of an image or text in a training step relative to mining: two forward passes and a backward pass (cached
gradients), versus reading the image, one forward pass and the search (`benchmarks/adapt_mining.py`)."""
_FACTS = "facts"
_RESTART = "delete the folder of this adaptation and start again"


def mine(
    section: AdaptConfig,
    arm: AdaptArm,
    examples: BagExamples,
    vlm: "VLM",
    workspace: Workspace,
    folder: Path,
    step: int,
    run_fingerprint: str,
    *,
    due: bool = True,
) -> BagExamples:
    """Mine the bags again with the adapted VLM; called by all processes.

    Tiles, snippets and prompts are embedded with the current weights, and bags are collected as before the adaptation.
    The members are stored in `mined/` of the adaptation's folder, from which training that resumes after this step
    reads them; the embeddings are deleted. The texts of the result may differ from those of `examples`.

    Args:
        section: Section `adapt`.
        examples: Examples that the result replaces.
        vlm: VLM whose towers have the current weights, in evaluation mode.
        workspace: Workspace of this configuration, with the VLM before the adaptation.
        step: Step after which the bags are mined.
        due: Whether the current weights are those after `step`. Otherwise the members must already be stored.

    Raises:
        ArtifactError: Stored members are damaged or belong to a different adaptation, or they are missing and the
            current weights are those of a later step.
    """
    processes, started = get_processes(), time.monotonic()
    name = f"step-{step:08d}"
    file, stores = folder / "mined" / f"{name}.safetensors", folder / "mined" / name
    identity = fingerprint([run_fingerprint, step])
    if not processes.broadcast(file.is_file()):
        if not due:
            raise ArtifactError(
                f"the bags that were mined after step {step} are missing, and the weights of that step no longer exist",
                where=file,
                fix=_RESTART,
            )
        adapted = replace(vlm, fingerprint=f"{vlm.fingerprint}-{identity}")
        mined = mine_bags(section, _replace_vlm(workspace, adapted, stores))
        processes.barrier()  # other processes may still be reading the embeddings, which are deleted next
        if processes.main:
            _save(file, mined, identity)
            shutil.rmtree(stores, ignore_errors=True)
            logger.info(f"bags re-mined after step {step}: {time.monotonic() - started:.1f} s")
        processes.barrier()
    mined = _load(file, identity, first_mined_bags(section, workspace).prompts)
    mined_examples = examples_of(section, arm, examples.seed, workspace, mined)
    summary = examples.summary | mined_examples.summary | {"mined_after_step": step}
    return replace(mined_examples, batch_size=examples.batch_size, summary=summary)


def warn_if_mining_is_slow(examples: BagExamples, section: AdaptConfig) -> None:
    """Warn if mining the bags takes more than a tenth of the training time.

    Mining embeds all training tiles and texts; a step embeds only those of its batch.

    Args:
        section: Section `adapt`.
    """
    every = section.bags.mine_every
    if not every:
        return
    least = least_interval(examples)
    if every < least:
        logger.warning(
            f"mining the bags takes about {_TIME_SHARE * least / every:.0%} of the time of the "
            f"{counted(every, 'step')} until the next mining pass; with "
            f"adapt.bags.mine_every={least}, it would take a tenth of the time"
        )


def least_interval(examples: BagExamples) -> int:
    """Estimate after how many steps bags can be re-mined so that mining takes a tenth of the time of these steps.

    Args:
        examples: Examples of the training split, from bags.
    """
    batch = examples.batch(0)
    per_step = _STEP_COST * (len(batch.tiles) + len(batch.texts) + len(batch.others))
    mined = len(examples.tile_ids) + int(examples.summary["minable_texts"])
    return int(np.ceil(mined / (_TIME_SHARE * per_step)))


def _replace_vlm(workspace: Workspace, vlm: "VLM", root: Path) -> Workspace:
    """Return a workspace with the same tiles and snippets, but embeddings, index and pairs of a different VLM."""
    other = Workspace(workspace.config)
    other.root = root
    # Set cached properties, so that they are not computed.
    vars(other).update(vlm=vlm, all_tiles=workspace.all_tiles)
    if workspace.config.reports is not None:
        vars(other).update(snippets=workspace.snippets)
    return other


def _save(file: Path, mined: MinedBags, identity: str) -> None:
    values = {
        "tiles.values": mined.tiles.values,
        "tiles.starts": mined.tiles.starts,
        "texts.values": mined.texts.values,
        "texts.starts": mined.texts.starts,
    }
    counts = {name: int(count) for name, count in mined.counts.items()}
    facts = json.dumps({"identity": identity, "counts": counts}, sort_keys=True)
    with whole_file(file) as temporary:
        # A single entry, because several are written in arbitrary order, and mining again must give the same bytes.
        save_file(values, temporary, {_FACTS: facts})


def _load(file: Path, identity: str, prompts: tuple[str, ...]) -> MinedBags:
    try:
        with reading(file, _RESTART), safe_open(file, framework="numpy") as stored:
            facts = json.loads((stored.metadata() or {}).get(_FACTS, "{}"))
            if facts.get("identity") != identity:
                raise ArtifactError("these bags belong to a different adaptation", where=file, fix=_RESTART)
            tiles, texts = (
                Members(stored.get_tensor(f"{name}.values"), stored.get_tensor(f"{name}.starts"))
                for name in ("tiles", "texts")
            )
    except SafetensorError as error:
        raise ArtifactError(f"unreadable: {error}", where=file, fix=_RESTART) from error
    return MinedBags(tiles, texts, prompts, facts["counts"])
