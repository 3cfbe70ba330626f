"""Train a network on bags and choose the epoch on validation bags; interrupted training resumes."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from clipit.config.mil import MilTrainingConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import DataError, ModelError
from clipit.evaluation.predictions import NO_LABEL, softmax
from clipit.mil.mil_bags import MilBags
from clipit.mil.network import MilNetwork, MilOutput
from clipit.mil.targets import BagTargets, TargetedBags, select_targeted, target_loss
from clipit.models.weights import write_tensors
from clipit.output_files.artifacts import REBUILD, fingerprint, read_json, reading, write_record
from clipit.output_files.whole_files import write_text
from clipit.stores.moments import mean_and_deviation
from clipit.training.checkpoints import Progress, best_file, load_checkpoint, save_checkpoint, save_weights

WEIGHTS, RECORD = "model.safetensors", "model.json"
_CHECKPOINTS, _LOSSES, _RUN = "checkpoints", "losses.jsonl", "run.json"
_CHECKPOINT_SECONDS = 20.0  # between checkpoints; does not affect the result
_STATISTICS_INSTANCES = 512  # instances per training bag used for the mean and standard deviation


@dataclass(frozen=True)
class MilModel:
    """A trained network.

    Attributes:
        network: Network with the weights of the chosen epoch, in evaluation mode.
        epoch: Chosen epoch, from 1.
        losses: Mean cross-entropy on the training bags and on the validation bags, for each epoch.
    """

    network: MilNetwork
    classes: tuple[str, ...]
    options: MilTrainingConfig
    seed: int
    epoch: int
    losses: tuple[tuple[float, float], ...]

    def explain(self, features: Float32[np.ndarray, "n d"]) -> MilOutput:
        """Compute logits, attention, instance logits and representation of one bag."""
        device = self.network.mean.device
        with torch.inference_mode():
            output: MilOutput = self.network(torch.from_numpy(features).to(device))
        return output

    def predict(self, bags: MilBags) -> Float32[np.ndarray, "b c"]:
        """Compute the class probabilities of bags, with one bag in memory at a time.

        Raises:
            DataError: The features have a different dimension from the training features.
        """
        check_dim(bags, len(self.network.mean))
        logits = [self.explain(bags.features(bag)).logits.float().cpu().numpy() for bag in range(len(bags))]
        return softmax(np.stack(logits)) if logits else np.empty((0, len(self.classes)), dtype=np.float32)


def check_dim(bags: MilBags, dim: int) -> None:
    """Check that features have the dimension that the network was trained on.

    Raises:
        DataError: The features have a different dimension.
    """
    if bags.dim != dim:
        raise DataError(
            f"the features have {bags.dim} dimensions; the model was trained on {dim}",
            where=bags.where,
            fix="use features from the same model as in training",
        )


def check_trainable(bags: MilBags) -> None:
    """Check that there are enough bags to train and to select the epoch; all problems are reported together.

    Raises:
        DataError: There are fewer than two classes, a class has no labelled training bag, or labelled validation bags
            are missing or all of one class.
    """
    problems = []
    if len(bags.classes) < 2:
        problems.append(f"all labels belong to one class: {', '.join(bags.classes) or 'none'}")
    known = {}
    for split in ("train", "validation"):
        labels = bags.labels[(bags.splits == split) & (bags.labels != NO_LABEL)]
        known[split] = {bags.classes[code] for code in np.unique(labels).tolist()}
    missing = [name for name in bags.classes if name not in known["train"]]
    if not known["train"]:
        problems.append("no training bag has a label")
    elif missing:
        problems.append(f"no training bag is labelled {', '.join(missing)}")
    if not known["validation"]:
        problems.append("no validation bag has a label, so no epoch can be chosen")
    elif len(known["validation"]) == 1 < len(bags.classes):
        problems.append(f"all labelled validation bags belong to one class, {', '.join(known['validation'])}")
    if problems:
        raise DataError(
            "no network can be trained on these bags:\n    " + "\n    ".join(problems),
            where=bags.where,
            fix="label more bags, move bags (whole patients) between the splits, or remove classes without bags",
        )


def train_bag_network(
    bags: MilBags, options: MilTrainingConfig, seed: int, targets: BagTargets | None = None, *, root: Path | None = None
) -> MilModel:
    """Train a network on the labelled training bags, and keep the epoch with the lowest loss on validation bags.

    The loss is the mean cross-entropy over the bags in a batch. Bags are read one at a time; the order of the bags,
    dropout and the drawn instances depend only on (seed, epoch).

    With targets, each step also uses a batch of training bags with targets, labelled or not, and adds the mean of
    `target_loss`. Unless `steps_per_epoch` is set, an epoch is one pass over the larger of the two sets; the smaller
    one is repeated. Validation and prediction need no targets.

    Args:
        bags: Bags of all splits; labels of the test split are not used.
        seed: Seed for initialisation, dropout and the order of the bags.
        targets: Targets of training bags in addition to their labels, such as those from reports
            (`clipit.mil.privileged`).
        root: Output root, in which the model is stored as the artefact `mil_model`, so that interrupted training can
            resume; None to train in memory.

    Raises:
        DataError: There are too few bags; see `check_trainable`.
        ModelError: The loss became infinite or NaN.
    """
    check_trainable(bags)
    if select_targeted(bags, targets) is None:
        targets = None  # so that the fingerprint is that of a model trained without targets
    if root is None:
        return _fit(bags, options, seed, targets, None)
    inputs = {"bags": bags.fingerprint, "options": options.model_dump(mode="json"), "seed": seed}
    if targets is not None:
        inputs["targets"] = targets.fingerprint

    def make(folder: Path) -> dict[str, Any]:
        if not get_processes().main:
            return {}
        write_record(folder / _RUN, {"fingerprint": fingerprint(inputs)})  # as for runs, checkpoints store it
        model = _fit(bags, options, seed, targets, folder / _CHECKPOINTS)
        _save(folder, model)
        return {"epoch": model.epoch, "epochs": len(model.losses), "dim": bags.dim}

    artifact = build_once(root, "mil_model", inputs, make)
    weights, record = artifact.file(WEIGHTS), artifact.file(RECORD)
    return _load(weights, record, options, seed)


def _fit(
    bags: MilBags, options: MilTrainingConfig, seed: int, targets: BagTargets | None, checkpoints: Path | None
) -> MilModel:
    device = get_processes().device
    labelled = bags.select(bags.labels != NO_LABEL)
    train, validation = labelled.of_split("train"), labelled.of_split("validation")
    torch.manual_seed(seed)
    network = MilNetwork(bags.dim, len(bags.classes), options)
    features = (train.features(bag) for bag in range(len(train)))
    mean, deviation = mean_and_deviation(features, _STATISTICS_INSTANCES)
    network.standardise(torch.from_numpy(mean), torch.from_numpy(deviation))
    targeted = select_targeted(bags, targets)
    if targeted is not None and targeted.targets.dim:
        network.target_head = torch.nn.Linear(options.hidden, targeted.targets.dim)
    network.to(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, foreach=False
    )
    state = Progress() if checkpoints is None else load_checkpoint(checkpoints, network, optimizer)
    losses = [] if checkpoints is None else _read_losses(checkpoints, state.step)
    best = _best_weights(checkpoints, state, network)
    saved = time.monotonic()
    while state.step < options.epochs and not state.stopped:
        training_loss = train_epoch(network, optimizer, train, targeted, options, seed, state.step)
        validation_loss = _mean_loss(network, validation)
        if not np.isfinite([training_loss, validation_loss]).all():
            raise ModelError(
                f"the loss is infinite or not a number in epoch {state.step + 1}",
                where=bags.where,
                fix="lower mil.training.learning_rate",
            )
        state.step += 1
        losses.append((training_loss, validation_loss))
        if state.best_score is None or -validation_loss > state.best_score:
            state.best_step, state.best_score, state.validations_without_gain = state.step, -validation_loss, 0
            best = {name: value.detach().clone() for name, value in network.state_dict().items()}
        else:
            state.validations_without_gain += 1
        state.stopped = state.validations_without_gain >= options.patience
        if checkpoints is not None and time.monotonic() - saved >= _CHECKPOINT_SECONDS:
            _save_checkpoint(checkpoints, state, network, optimizer, best, losses)
            saved = time.monotonic()
    network.load_state_dict(best)
    network.target_head = None
    network.eval()
    return MilModel(network, bags.classes, options, seed, state.best_step, tuple(losses))


def train_epoch(
    network: MilNetwork,
    optimizer: torch.optim.Optimizer,
    bags: MilBags,
    targeted: TargetedBags | None,
    options: MilTrainingConfig,
    seed: int,
    epoch: int,
) -> float:
    """Train for one epoch, and return the mean cross-entropy with the labels.

    Args:
        targeted: Training bags with targets; None if there are none.
        options: Batch size and instances.
        epoch: Index of the epoch, from 0.
    """
    network.train()
    torch.manual_seed(seed * 1_000_003 + epoch)  # for dropout
    generator = np.random.default_rng([seed, epoch])
    size = options.batch_size
    largest = max(len(bags), 0 if targeted is None else len(targeted.bags))
    steps = options.steps_per_epoch or -(-largest // size)
    batches = _batches(len(bags), size, steps, generator)
    targeted_batches = [] if targeted is None else _batches(len(targeted.bags), size, steps, generator)
    device, total = network.mean.device, torch.zeros((), device=network.mean.device)

    def output_of(source: MilBags, bag: int) -> MilOutput:
        features = _sample_instances(source.features(bag), options.instances, generator)
        output: MilOutput = network(torch.from_numpy(features).to(device))
        return output

    for step, batch in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        for bag in batch:  # one bag's activations are in memory at a time
            loss = _cross_entropy(output_of(bags, bag).logits, int(bags.labels[bag]))
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        if targeted is not None:
            for bag in targeted_batches[step]:
                loss = target_loss(network, output_of(targeted.bags, bag), targeted, bag)
                (loss / len(targeted_batches[step])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(total) / sum(map(len, batches))


def _batches(count: int, size: int, steps: int, generator: np.random.Generator) -> list[list[int]]:
    """Draw one batch per step from all rows in random order, and shuffle again after each pass."""
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = generator.permutation(count)
        batches += [order[start : start + size].tolist() for start in range(0, count, size)]
    return batches[:steps]


def _sample_instances(
    features: Float32[np.ndarray, "n d"], limit: int | None, generator: np.random.Generator
) -> Float32[np.ndarray, "m d"]:
    if limit is None or len(features) <= limit:
        return features
    return features[np.sort(generator.choice(len(features), limit, replace=False))]


def _mean_loss(network: MilNetwork, bags: MilBags) -> float:
    network.eval()
    device, total = network.mean.device, torch.zeros((), device=network.mean.device)
    with torch.inference_mode():
        for bag in range(len(bags)):
            output: MilOutput = network(torch.from_numpy(bags.features(bag)).to(device))
            total += _cross_entropy(output.logits, int(bags.labels[bag]))
    return float(total) / len(bags)


def _cross_entropy(logits: Float[Tensor, " c"], label: int) -> Float[Tensor, ""]:
    return torch.nn.functional.cross_entropy(logits, torch.tensor(label, device=logits.device))


def _best_weights(checkpoints: Path | None, state: Progress, network: MilNetwork) -> dict[str, Tensor]:
    """Return the weights of the best epoch so far from its checkpoint, or the initial weights if there is none."""
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    if checkpoints is None or not state.best_step:
        return weights
    from safetensors.torch import load_file

    return weights | load_file(best_file(checkpoints, state.best_step), device=str(network.mean.device))


def _save_checkpoint(
    folder: Path,
    state: Progress,
    network: MilNetwork,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    losses: Sequence[tuple[float, float]],
) -> None:
    lines = "".join(f"{json.dumps(pair)}\n" for pair in losses)
    write_text(folder / _LOSSES, lines)
    current = {name: value.detach().clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best)
    state.best_sha256 = save_weights(best_file(folder, state.best_step), network)
    network.load_state_dict(current)
    save_checkpoint(folder, state, network, optimizer)


def _read_losses(folder: Path, epochs: int) -> list[tuple[float, float]]:
    """Read only the losses of the first epochs, because the loaded checkpoint may be older than the file."""
    path = folder / _LOSSES
    if not epochs:
        return []
    with reading(path, REBUILD):
        pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(float(training), float(validation)) for training, validation in pairs[:epochs]]


def _save(folder: Path, model: MilModel) -> None:
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    (folder / _RUN).unlink()
    write_tensors(folder / WEIGHTS, model.network.state_dict())
    record = {
        "classes": model.classes,
        "options": model.options.model_dump(mode="json"),
        "seed": model.seed,
        "epoch": model.epoch,
        "losses": model.losses,
    }
    write_record(folder / RECORD, record)


def _load(weights: Path, record: Path, options: MilTrainingConfig, seed: int) -> MilModel:
    from safetensors.torch import load_file

    values = read_json(record, REBUILD)
    with reading(weights, REBUILD):
        state = load_file(weights)
        classes = tuple(values["classes"])
        network = MilNetwork(len(state["mean"]), len(classes), options)
        network.load_state_dict(state)
        losses = tuple((float(a), float(b)) for a, b in values["losses"])
        epoch = int(values["epoch"])
    network.to(get_processes().device).eval()
    return MilModel(network, classes, options, seed, epoch, losses)
