"""Soft labels: cross-entropy against class probabilities instead of labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from clipit.config.effects import select_keys
from clipit.config.run import RunConfig, SoftLabelsConfig
from clipit.errors import DataError
from clipit.evaluation.probes import linear_probe
from clipit.output_files.artifacts import fingerprint
from clipit.tiles.tileset import TileSet
from clipit.training.arms import resolve_arm
from clipit.training.losses import correct_prior, sharpen, smooth_labels, soft_cross_entropy_sum
from clipit.training.terms.class_prompts import zero_shot
from clipit.training.terms.own_reports import own_report_fingerprints, own_report_labels
from clipit.training.terms.term import MicroBatch, Probabilities, Term, TermInputs
from clipit.workspace.workspace import Workspace

_SOURCES = {
    "zero_shot": "the VLM's zero-shot predictions",
    "vlm_probe": "a linear probe on the VLM's embeddings",
    "image_only": "an image-only student's predictions",
    "annotators": "class posteriors from the annotators' labels",
}
_OWN_REPORT = {
    "label": "labels of the patients' own reports",
    "rules": "rules applied to the patients' own reports",
    "text": "a text classifier applied to the patients' own reports",
    "case": "tile labels propagated within each patient, without text",
}


@dataclass(frozen=True)
class SoftLabels:
    """Class probabilities used instead of labels, with a weight between 0 and 1 per tile."""

    probabilities: Float32[np.ndarray, "n classes"]
    weights: Float32[np.ndarray, "n"]


class SoftLabelsTerm(Term[SoftLabelsConfig]):
    """Cross-entropy against soft labels, for unlabelled tiles or for tiles labelled by several annotators."""

    name = section = "soft_labels"
    switch = "source"

    @property
    def active(self) -> bool:
        """Whether a source is set; with weight 0, `prompt_bags` and `training.monitor=agreement` still use it."""
        return self.options.source != "none"

    @property
    def uses_vlm(self) -> bool:
        """True for sources that embed tiles, prompts or reports with the VLM."""
        own_report = self.config.own_report
        from_report = own_report.tiles != "all" or (own_report.labels == "text" and own_report.features == "vlm")
        return self.options.source in ("zero_shot", "vlm_probe") or (
            self.options.source == "own_report" and from_report
        )

    @property
    def reads(self) -> frozenset[str]:
        """The section from which the soft labels are computed; the image-only student is always trained with LoRA."""
        sections = {"own_report": "own_report", "image_only": "lora"}
        return frozenset(section for source, section in sections.items() if source == self.options.source)

    @property
    def replaces_labels(self) -> bool:
        """Whether the term applies to labelled tiles, whose targets are posteriors from the annotators' labels."""
        return self.options.source == "annotators"

    @property
    def uses_unlabelled(self) -> bool:
        """Whether the term applies to unlabelled tiles, as with every source except annotators."""
        return not self.replaces_labels

    @property
    def supervises_unlabelled(self) -> bool:
        """Whether unlabelled tiles get class targets, as with every source except annotators."""
        return not self.replaces_labels

    def problems(self) -> list[str]:
        """Check that the source has its inputs, and that `training.monitor=agreement` has a source."""
        problems = []
        if self.options.source == "zero_shot" and self.config.prompts is None:
            problems.append("soft_labels.source=zero_shot needs a prompt set: set the key prompts")
        if self.options.source == "vlm_probe" and self.config.tiles.labels.kind == "none":
            problems.append(
                "soft_labels.source=vlm_probe needs tile labels: set tiles.labels, or soft_labels.source=zero_shot"
            )
        annotations = self.config.tiles.annotations
        posteriors = annotations is not None and annotations.labels == "posterior"
        if posteriors != self.replaces_labels:
            problems.append(
                "tiles.annotations.labels=posterior and soft_labels.source=annotators belong together: set both, or "
                "use tiles.annotations.labels=consensus"
            )
        if self.config.training.monitor == "agreement" and self.replaces_labels:
            problems.append(
                "training.monitor=agreement is for runs without labels, but annotators also label the validation "
                "tiles: set training.monitor=balanced_accuracy"
            )
        if self.config.training.monitor == "agreement" and not self.active:
            problems.append("training.monitor=agreement compares predictions with soft labels: set soft_labels.source")
        return problems + (self._own_report_problems() if self.options.source == "own_report" else [])

    def _own_report_problems(self) -> list[str]:
        """Check that labels from the patients' own reports have their inputs."""
        own_report, key = self.config.own_report, "own_report"
        reports, no_labels = self.config.reports, self.config.tiles.labels.kind == "none"
        label_column = None if reports is None else reports.label_column
        checks = [
            (reports is None, "soft_labels.source=own_report needs reports: set reports.path"),
            (own_report.labels == "label" and label_column is None, f"{key}.labels=label needs reports.label_column"),
            (
                own_report.labels == "rules" and own_report.rules is None,
                f"{key}.labels=rules needs rules: set {key}.rules to a file or the name of a packaged rule set",
            ),
            (
                own_report.uses_tile_labels and no_labels,
                f"{key}.labels={own_report.labels} needs tile labels: set tiles.labels, or {key}.labels=label or rules",
            ),
            (
                own_report.tiles == "tissue" and (own_report.tissue_prompts is None or not own_report.tissue_classes),
                f"{key}.tiles=tissue needs {key}.tissue_prompts and {key}.tissue_classes",
            ),
            (
                own_report.tiles == "at_least_one" and own_report.background is None,
                f"{key}.tiles=at_least_one needs a class for tiles that do not show the finding: set {key}.background",
            ),
            (
                self.config.training.monitor == "agreement",
                "training.monitor=agreement compares validation tiles with soft labels, but reports of validation "
                "patients are never used: set training.monitor=balanced_accuracy or information",
            ),
        ]
        return [problem for applies, problem in checks if applies]

    def describe(self) -> str:
        """Describe the term with its source and weight."""
        own_report = self.config.own_report
        source = (
            _OWN_REPORT[own_report.labels] if self.options.source == "own_report" else _SOURCES[self.options.source]
        )
        control = ", shuffled across patients" if self.options.source == "own_report" and own_report.shuffled else ""
        return f"{source}{control} (soft labels, weight {self.weight:g})"

    def fingerprints(self, workspace: Workspace) -> dict[str, str]:
        """Return the fingerprints of the source's inputs.

        For the patients' own reports: reports, rules and tissue prompts; for annotators: their posteriors; for the
        image-only student: the keys of its training.
        """
        if self.options.source == "own_report":
            return own_report_fingerprints(self.config, workspace)
        if self.replaces_labels:
            train = workspace.tiles(self.config.seed).of_split("train")
            targets = smooth_labels(torch.from_numpy(_posteriors(train)), self.config.training.label_smoothing)
            return {"posteriors of annotators": fingerprint(targets.tolist())}
        if self.options.source != "image_only":
            return {}
        teacher = self.config.model_copy(update={"arm": "image_only"})
        image_only = resolve_arm(teacher)
        keys, built_in = (
            select_keys(config, "results")
            for config in (image_only, resolve_arm(teacher.model_copy(update={"arms": {}})))
        )
        others = sorted(key for key in {*keys, *built_in} if not key.startswith("training."))
        changed = {key: keys.get(key) for key in others if keys.get(key) != built_in.get(key)}
        training = {"arm image_only": fingerprint(select_keys(image_only.training, "results"))}
        return training | ({"other keys of arm image_only": fingerprint(changed)} if changed else {})

    def prepare(self, inputs: TermInputs) -> dict[str, Any]:
        """Compute the source's class probabilities for the training tiles, and correct them with `make_soft_labels`."""
        if self.options.source == "own_report":
            own_labels = own_report_labels(self.config, inputs.workspace, inputs.tiles)
            labelled = own_labels.weights > 0
            soft = make_soft_labels(own_labels.probabilities, self.options, own_labels.probabilities[labelled])
            self._soft = SoftLabels(soft.probabilities, soft.weights * own_labels.weights)
            return {"own_reports": own_labels.facts, "sections": {"The patients' own reports": own_labels.text}}
        if self.replaces_labels:
            train = inputs.tiles.of_split("train")
            posteriors, labelled = _posteriors(train), train.labels >= 0
            soft = make_soft_labels(
                np.where(labelled[:, None], posteriors, 1 / posteriors.shape[1]), self.options, posteriors[labelled]
            )
            self._soft = SoftLabels(soft.probabilities, soft.weights * labelled)
            return {"annotated_tiles": int(labelled.sum())}
        self._predict = _predictor(self.config, inputs)
        self._training = self._predict("train")
        self._soft = make_soft_labels(self._training, self.options)
        return {}

    def class_probabilities(self, split: str) -> Probabilities | None:
        """Return the class probabilities for the tiles of a split, corrected like those for the training tiles.

        None for the patients' own reports, since those of validation and test patients are never used. None for
        annotators, since they also label the validation tiles.
        """
        if self.options.source == "own_report" or self.replaces_labels:
            return None
        return make_soft_labels(self._predict(split), self.options, self._training).probabilities

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Sum the weights of the tiles that the term applies to."""
        return float((self._soft.weights[rows] * ((self.labels[rows] >= 0) == self.replaces_labels)).sum())

    def targets(self, batch: MicroBatch) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b"]]:
        """Return the soft labels of a micro-batch and their weights, which are 0 where the term does not apply."""
        weights = batch.tensor(self._soft.weights[batch.rows]) * ((batch.labels >= 0) == self.replaces_labels)
        return batch.tensor(self._soft.probabilities[batch.rows]), weights

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Sum the weighted cross-entropies; `training.label_smoothing` applies to annotator posteriors."""
        target, weights = self.targets(batch)
        if self.replaces_labels:
            target = smooth_labels(target, self.config.training.label_smoothing)
        return soft_cross_entropy_sum(batch.logits, target, weights)


def make_soft_labels(
    probabilities: Probabilities, options: SoftLabelsConfig, training: Float32[np.ndarray, "m classes"] | None = None
) -> SoftLabels:
    """Correct probabilities for the prior, sharpen them, and weight them by confidence, in this order.

    The prior is the mean probability of each class over the training tiles; correcting for it scales down classes that
    the source favours everywhere. The weight is 1 or, with `confidence`, 1 - H(p) / log C.

    Args:
        options: Configuration section `soft_labels`.
        training: Probabilities of the training tiles, for the prior; `probabilities` by default.

    Raises:
        DataError: A probability is NaN or infinite.
    """
    if not np.isfinite(probabilities).all():
        raise DataError(
            "soft labels contain NaN or infinite values", where="soft_labels.source", fix="use vlm.precision=fp32"
        )
    p = torch.from_numpy(probabilities.astype(np.float64))
    prior = p if training is None else torch.from_numpy(training.astype(np.float64))
    p = correct_prior(p, prior.mean(dim=0), options.prior_correction)
    p = sharpen(p, options.temperature)
    weights = np.ones(len(probabilities), dtype=np.float32)
    if options.confidence:
        entropy = -(p * p.clamp_min(1e-12).log()).sum(dim=1)
        weights = (1 - entropy / np.log(probabilities.shape[1])).clamp(0, 1).numpy().astype(np.float32)
    return SoftLabels(p.numpy().astype(np.float32), weights)


def _posteriors(train: TileSet) -> Probabilities:
    """Return the class posteriors of the training tiles; zeros for tiles that no annotator labelled.

    Raises:
        DataError: The tiles have no annotator labels.
    """
    if train.annotations is None:
        raise DataError(
            "the tiles have no annotator labels",
            where="soft_labels.source = annotators",
            fix="set tiles.annotations.path",
        )
    return train.annotations.posteriors(train.ids.tolist())


def _predictor(config: RunConfig, inputs: TermInputs) -> Callable[[str], Probabilities]:
    """Return a function from a split to the class probabilities of its tiles."""
    options = config.soft_labels
    if options.source == "zero_shot":
        return lambda split: zero_shot(inputs.workspace, split, centre=options.centred)
    if options.source == "vlm_probe":
        return _vlm_probe(inputs.workspace, inputs.tiles)
    return inputs.image_only


def _vlm_probe(workspace: Workspace, tiles: TileSet) -> Callable[[str], Probabilities]:
    """Fit a logistic regression on the VLM's image embeddings and the run's labels, without text or prompts."""

    def embeddings(split: str) -> Float32[np.ndarray, "n dim"]:
        store = workspace.tile_store(split)
        return store.rows(store.positions(tiles.of_split(split).ids))

    train, validation = tiles.of_split("train"), tiles.of_split("validation")
    probe = linear_probe(
        embeddings("train"), train.labels, embeddings("validation"), validation.labels, len(tiles.classes)
    )
    return lambda split: probe.probabilities(embeddings(split))
