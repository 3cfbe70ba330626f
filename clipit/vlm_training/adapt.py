"""Adapt a VLM: train it on examples, and write an adapter and a merged model to a folder per arm and seed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from clipit.config.effects import fingerprint_keys, select_keys
from clipit.config.load import without
from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.distributed import get_processes
from clipit.errors import ClipitError, ConfigError, counted, is_out_of_memory
from clipit.models.adapted_towers import AdaptedTowers, adapt_towers
from clipit.models.loading import public_name
from clipit.models.precision import tf32_products
from clipit.models.vlm import VLM, load_vlm
from clipit.models.vlm_adapter import read_vlm_adapter
from clipit.models.vlm_export import ADAPTER, check_adaptable, export_vlm
from clipit.output_files.artifacts import locked
from clipit.output_files.run_files import recorded_fingerprint, write_run_json
from clipit.pairing.leaks import SeenTiles
from clipit.reporting.training_curves import describe_log
from clipit.reporting.vlm_card import AdaptationFacts, vlm_card
from clipit.runs.fingerprint import RunFingerprint
from clipit.runs.folder import (
    check_fingerprint,
    claim_folder,
    delete_temporary_files,
    is_started,
    recorded_precision,
)
from clipit.runs.tracking import finish_trackers, start_trackers
from clipit.tiles.tileset import TileSet
from clipit.training.auto_precision import resolve_precision
from clipit.training.checkpoints import Progress, best_file, load_checkpoint, load_weights
from clipit.training.loop import Schedule, StepParts, clip_gradients, make_optimizer, run_steps
from clipit.training.step import Clock
from clipit.vlm_training.bag_batches import BagExamples
from clipit.vlm_training.bag_examples import report_patients
from clipit.vlm_training.contrastive_step import ContrastStep, ScaleWatch, clamp_scale
from clipit.vlm_training.examples import make_examples, validation_examples
from clipit.vlm_training.mining import mine, warn_if_mining_is_slow
from clipit.workspace.adapted_patients import write_adapted_patients
from clipit.workspace.preflight import check_inputs
from clipit.workspace.workspace import Workspace

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRAINING = "training.json"
"""File of a finished adaptation with its counts, loss and provenance."""
_VALIDATION_BATCHES = 4  # batches of bags per validation loss


@dataclass(frozen=True)
class _Adaptation:
    """One adaptation, with its precision resolved and its examples read.

    Attributes:
        section: Section `adapt`, with the towers and the precision that this arm uses.
        seed: Seed for initialisation, order and augmentation.
        validation: Bags of the validation split, if they are needed.
    """

    config: RunConfig
    section: AdaptConfig
    arm: AdaptArm
    seed: int
    workspace: Workspace
    folder: Path
    examples: BagExamples
    validation: BagExamples | None


def adaptation_folder(config: RunConfig, arm: str, seed: int) -> Path:
    """Return the folder of an adaptation."""
    return config.output / "adapt" / config.name / f"{arm}-seed{seed}"


def is_adapted(folder: Path) -> bool:
    """Return whether a folder contains a finished adaptation."""
    return (folder / TRAINING).is_file() and (folder / ADAPTER).is_dir()


def adapt(
    config: RunConfig,
    section: AdaptConfig,
    arm: AdaptArm,
    seed: int,
    workspace: Workspace,
    measure: Callable[[Path], Mapping[str, float]] = lambda folder: {},
) -> Path:
    """Start or resume the adaptation of the configured VLM; a finished adaptation is not repeated.

    Args:
        section: Section `adapt`.
        seed: Seed for initialisation, order and augmentation.
        measure: Function that maps an adaptation folder to scores of its VLM by name, for the tracker; called by all
            processes.

    Returns:
        The folder of the adaptation: config.yaml, run.json, metrics.jsonl, checkpoints/, training.json,
        adapted_patients.json, adapter/ and, if the licence and the format allow it, vlm/.

    Raises:
        ConfigError: All weights would be trained although the licence forbids derivatives, the VLM already has an
            adapter and cannot be exported as a merged model, or the keys contradict the arm or the data.
        DataError: The examples cannot be built.
        ModelError: The training diverged, or the weights cannot be trained.
        ArtifactError: The folder belongs to a different adaptation.
    """
    processes = get_processes()
    check_adaptable(config.vlm, section.tuning)
    check_inputs(workspace, ["vlm"], reports=section.needs_reports)
    folder = adaptation_folder(config, arm, seed)
    with locked(folder) if processes.main else nullcontext():
        if processes.main:
            delete_temporary_files(folder)
        section = _resolve_precision(config, used_towers(section, arm), folder)
        examples = make_examples(config, section, arm, seed, "train", workspace)
        done = processes.broadcast(is_adapted(folder))
        validation = None
        if not done or section.keep == "best":
            validation = validation_examples(config, section, arm, seed, workspace)
        if validation is None and section.keep == "best":
            raise ConfigError(
                "the best step cannot be chosen, because there is no validation split",
                where="adapt.keep: best",
                fix="set adapt.keep: last, or add validation data",
            )
        adaptation = _Adaptation(config, section, arm, seed, workspace, folder, examples, validation)
        fingerprint = _fingerprint(adaptation)
        if processes.main:
            if done:
                check_fingerprint(folder, fingerprint, config)
                read_vlm_adapter(folder / ADAPTER)  # checks that it belongs to this adaptation
            else:
                recorded = section.model_copy(update={"arms": (arm,), "seeds": (seed,)})
                claim_folder(folder, config, fingerprint, {"adapt": recorded.model_dump(mode="json")})
        processes.barrier()
        trackers: list[GeneralTracker] = []  # open until the scores are logged
        if not done:
            trackers = _train_and_export(adaptation, fingerprint)
        processes.barrier()
        finish_trackers(trackers, measure(folder), section.steps)
    return folder


def used_towers(section: AdaptConfig, arm: AdaptArm) -> AdaptConfig:
    """Restrict `towers` to the image tower if the arm uses no text, so that the text tower keeps its weights."""
    if arm != "images":
        return section
    if "image" not in section.towers:
        raise ConfigError(
            "the arm 'images' trains the image tower, which is not in adapt.towers",
            where="adapt.arms",
            fix="remove the arm 'images', or add image to adapt.towers",
        )
    return section.model_copy(update={"towers": ("image",)})


def _resolve_precision(config: RunConfig, section: AdaptConfig, folder: Path) -> AdaptConfig:
    """Replace `precision: auto` with the recorded precision, or else with one that the devices support."""
    recorded = None
    if section.precision == "auto" and (is_started(folder) or is_adapted(folder)):
        recorded = recorded_precision(folder, "adapt.precision")
    training = config.training.model_copy(update={"precision": section.precision})
    resolved = resolve_precision(config.model_copy(update={"training": training}), recorded)
    return section.model_copy(update={"precision": resolved.training.precision})


def _fingerprint(adaptation: _Adaptation) -> RunFingerprint:
    """Compute the fingerprint of an adaptation from its keys and inputs, with validation data only for `keep: best`."""
    config, section, validation = adaptation.config, adaptation.section, adaptation.validation
    selected = [fingerprint_keys(section, "adapt.")]
    if section.data == "bags":
        selected.append(fingerprint_keys(config.pairing, "pairing."))
    keys = {key: value for part in selected for key, value in part.keys.items()}
    keys |= {"adapt.arm": adaptation.arm, "adapt.seed": adaptation.seed}
    unused = frozenset(key for part in selected for key in part.unused)
    defaults = {key: value for part in selected for key, value in part.defaults.items()}
    inputs = {"VLM": adaptation.workspace.vlm.fingerprint, **adaptation.examples.fingerprints}
    if section.keep == "best" and validation is not None:
        inputs |= {f"validation {name}": value for name, value in validation.fingerprints.items()}
    return RunFingerprint(keys, inputs, unused, defaults)


def _train_and_export(adaptation: _Adaptation, fingerprint: RunFingerprint) -> "list[GeneralTracker]":
    """Train the VLM, write it, and return the trackers, which are still open."""
    processes = get_processes()
    config, section, arm, seed = adaptation.config, adaptation.section, adaptation.arm, adaptation.seed
    folder, examples, validation = adaptation.folder, adaptation.examples, adaptation.validation
    trackers = start_trackers(config, folder, {"arm": arm, "seed": seed, **fingerprint.keys}, arm)

    def log(row: dict[str, Any], step: int) -> None:
        for tracker in trackers:
            tracker.log(row, step=step)

    vlm = load_vlm(config.vlm, processes.device)  # a separate copy, whose weights are trained
    torch.manual_seed(seed)
    options = (section.tuning, section.towers, section.lora, section.learn_temperature)
    adapted = adapt_towers(vlm.towers, *options, base_name=public_name(vlm.name)).to(processes.device)
    trained = sum(weight.numel() for weight in adapted.trainable().values())
    with tf32_products(processes.device), _memory_errors(section):
        progress = _train(adaptation, vlm, adapted, recorded_fingerprint(folder) or fingerprint.value, log)
    if processes.main:
        scale = float(adapted.logit_scale.detach().exp())
        counts = {"step": progress.best_step or progress.step, "weights": trained, "logit_scale": scale}
        card = vlm_card(vlm, _card_facts(section, arm, seed, examples.summary, counts))
        write_adapted_patients(folder, _used(adaptation), config.vlm)
        exported = export_vlm(vlm, config.vlm, adapted, folder, card)
        facts: dict[str, Any] = {
            "arm": arm,
            "seed": seed,
            "steps": progress.step,
            "chosen_step": progress.best_step or progress.step,
            "validation_loss": None if progress.best_score is None else -progress.best_score,
            "seconds": round(progress.seconds, 2),
            "trained_weights": trained,
            "logit_scale": [vlm.logit_scale, scale],
            "vlm": public_name(vlm.name),
            "vlm_fingerprint": vlm.fingerprint,
            "adapted_fingerprint": exported.fingerprint,
            "only_adapter": exported.reason,
            "adapt": without(section.model_dump(mode="json"), [*select_keys(section, "recipe", "evaluation")]),
            "examples": examples.summary,
            "validation_examples": None if validation is None else validation.summary,
            **describe_log(folder / "metrics.jsonl"),
        }
        write_run_json(folder / TRAINING, facts, folder)
    return trackers


def _used(adaptation: _Adaptation) -> list[TileSet | SeenTiles]:
    """Return the images that are used, including those that select the step, and the reports that supply texts."""
    section, validation = adaptation.section, adaptation.validation
    used: list[TileSet | SeenTiles] = [adaptation.examples.used_tiles()]
    if section.keep == "best" and validation is not None:
        used.append(validation.used_tiles())
    if section.data == "bags" and section.needs_reports and adaptation.arm != "images":
        used.append(report_patients(adaptation.workspace))
    return used


def _card_facts(
    section: AdaptConfig, arm: AdaptArm, seed: int, summary: Mapping[str, Any], trained: Mapping[str, Any]
) -> AdaptationFacts:
    return AdaptationFacts(
        arm=arm,
        seed=seed,
        data=section.data,
        tuning=section.tuning,
        towers=section.towers,
        weights=trained["weights"],
        settings={
            "steps": trained["step"],
            "bags_per_step": section.batch_size,
            "peak_learning_rate": section.learning_rate,
            **({"rank": section.lora.rank} if section.tuning == "lora" else {}),
        },
        counts=summary,
        logit_scale=trained["logit_scale"],
    )


def _train(
    adaptation: _Adaptation,
    vlm: VLM,
    adapted: AdaptedTowers,
    fingerprint: str,
    log: Callable[[dict[str, Any], int], None],
) -> Progress:
    """Train the adapted towers in place, and load the weights of the selected step."""
    processes = get_processes()
    section, arm, seed, folder = adaptation.section, adaptation.arm, adaptation.seed, adaptation.folder
    examples, validation = adaptation.examples, adaptation.validation
    optimizer = make_optimizer(adapted.trainable().values(), section.learning_rate, section.weight_decay)
    checkpoints = folder / "checkpoints"
    progress = load_checkpoint(checkpoints, adapted, optimizer)
    warn_if_mining_is_slow(examples, section)
    contrast = ContrastStep(adapted, examples, section, seed, processes, section.precision)

    def mine_at(examples: BagExamples, step: int, due: bool) -> BagExamples:
        adapted.eval()
        current = replace(vlm, towers=adapted.towers)
        return mine(section, arm, examples, current, adaptation.workspace, folder, step, fingerprint, due=due)

    steps = _MiningSteps(contrast, mine_at)
    scorer = None if validation is None else replace(steps.contrast, examples=validation, clock=Clock())
    best, watch = section.keep == "best", ScaleWatch(vlm.logit_scale)

    def validate(scorer: ContrastStep) -> tuple[dict[str, float | None], float | None]:
        loss = scorer.mean_loss(range(_VALIDATION_BATCHES))
        return {"validation_loss": loss}, -loss if best else None

    parts = StepParts(
        model=adapted,
        optimizer=optimizer,
        saved_optimizer=optimizer,
        compute=steps.compute,
        clip=lambda: clip_gradients(adapted.trainable().values(), section.clip_norm),
        after_update=lambda: clamp_scale(adapted),
        validate=None if scorer is None else lambda: validate(scorer),
        facts=lambda: _facts(steps.contrast, watch.check(adapted)),
        status=lambda: f"{steps.contrast.clock.speed():.0f} images/s, data wait {steps.contrast.clock.data_wait():.0%}",
        seconds=steps.contrast.clock.seconds,
        scaler=lambda: None,
        log=log,
        device=processes.device,
    )
    schedule = Schedule(
        title=f"adapting {public_name(vlm.name)} ({arm}, seed {seed})",
        steps=section.steps,
        learning_rate=section.learning_rate,
        rate_key="adapt.learning_rate",
        warmup=section.warmup,
        log_every=section.log_every,
        validate_every=section.validate_every,
        checkpoint_every=section.checkpoint_every,
    )
    run_steps(schedule, parts, progress, folder, processes)
    steps.contrast.clock.reading.report("adapting", "training.threads", cached=examples.source.cached)
    if progress.best_step:
        load_weights(best_file(checkpoints, progress.best_step), adapted, progress.best_sha256)
    return progress


class _MiningSteps:
    """Compute steps on prefetched pixels, and re-mine the bags when due."""

    def __init__(self, contrast: ContrastStep, mine_at: Callable[[BagExamples, int, bool], BagExamples]) -> None:
        self.contrast = contrast
        self._mine_at = mine_at
        self._pixels: Iterator[tuple[Int[np.ndarray, "n"], Tensor]] | None = None

    def compute(self, step: int) -> dict[str, Tensor]:
        """Compute the gradients of a step, after re-mining the bags if due."""
        section = self.contrast.section
        every = section.bags.mine_every if section.data == "bags" else 0
        if self._pixels is None or (every and step % every == 0):
            mined_at = step - step % every if every else 0
            if mined_at:  # even if training resumes after this step
                mined = self._mine_at(self.contrast.examples, mined_at, step == mined_at)
                self.contrast = replace(self.contrast, examples=mined)
            end = min(mined_at + every, section.steps) if every else section.steps
            self._pixels = self.contrast.pixels(range(step, end))
        return self.contrast(step, self._pixels)


def _facts(contrast: ContrastStep, scale: float) -> dict[str, float]:
    clock = contrast.clock
    return {
        "logit_scale": scale,
        "images_per_second": round(clock.speed(), 2),
        "data_wait": round(clock.data_wait(), 4),
    }


@contextmanager
def _memory_errors(section: AdaptConfig) -> Iterator[None]:
    """Convert out-of-memory errors into an error that names `adapt.micro_batch`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ClipitError(
            "not enough memory for the activations of "
            f"{counted(section.micro_batch, 'image or text', 'images or texts')}",
            where="adapt.micro_batch",
            fix=f"lower adapt.micro_batch, for example to {max(section.micro_batch // 2, 1)} (the gradient is still "
            "that of the whole batch; only dropout, if any, draws different random numbers), or choose "
            "adapt.tuning=projection",
        ) from error
