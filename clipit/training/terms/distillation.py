"""Distillation: the projector predicts one frozen vector per tile, for one VLM or two."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipit.config.run import DistillationConfig
from clipit.errors import DataError, ModelError, counted
from clipit.models.student import Student
from clipit.output_files.artifacts import fingerprint
from clipit.tiles.pixel_source import PixelSource
from clipit.training.losses import cosine_distillation_sum
from clipit.training.terms.distillation_targets import make_targets
from clipit.training.terms.report_targets import REPORT_LABELS
from clipit.training.terms.target_vectors import Targets
from clipit.training.terms.term import MicroBatch, Normalise, Term, TermInputs
from clipit.training.terms.warm_start import warm_start
from clipit.workspace.workspace import Workspace

_MEANINGLESS = ("shuffled_text", "random_text", "random_codes")
_TEXT_SIDES = {"adapter": "adapter on the text embeddings", "lora": "LoRA in the text tower"}
_WITHOUT_SNIPPETS = ("image", "class_prompts")


class DistillationTerm(Term[DistillationConfig]):
    """Cosine distance between predicted and target embeddings (CLIP-IT, arXiv 2504.16181)."""

    name = section = "distillation"
    switch = "tiles"
    targets: Targets
    """One target vector per training tile; set by `prepare`."""

    @property
    def active(self) -> bool:
        """Whether any tile gets a target."""
        return self.options.tiles != "none"

    @property
    def weight(self) -> float:
        """`distillation.weight`, divided by two if there are two VLMs."""
        return self.options.weight / (1 if self.config.second_vlm is None else 2)

    @property
    def uses_reports(self) -> bool:
        """True for all targets except those that the VLM computes without snippets."""
        return self.options.target not in _WITHOUT_SNIPPETS

    @property
    def uses_pairing(self) -> bool:
        """Always True: `pairing.centring` shifts every target."""
        return True

    @property
    def reads(self) -> frozenset[str]:
        """The key for centring zero-shot predictions, and the section for LoRA, if they determine the targets."""
        read_keys = {"soft_labels.centred": self.options.target == "class_prompts", "lora": self.options.text == "lora"}
        return frozenset(key for key, read in read_keys.items() if read)

    @property
    def uses_unlabelled(self) -> bool:
        """Whether `distillation.tiles` is `all`."""
        return self.options.tiles == "all"

    @property
    def teaches_text(self) -> bool | None:
        """True unless the target is a meaningless control, or an adapted text side has a separate space."""
        return not self.is_control and self.options.text == "frozen"

    @property
    def is_control(self) -> bool:
        """Whether the target is another tile's text, random text or random vectors."""
        return self.options.target in _MEANINGLESS

    def problems(self) -> list[str]:
        """Check that the target and the text side have their inputs, and do not conflict with other keys."""
        d, student, reports = self.options, self.config.student, self.config.reports
        disabled, adapted, second = not self.active, d.text != "frozen", self.config.second_vlm is not None
        own_space = f"distillation.text={d.text} creates a separate text space, which"
        checks = [
            (
                not disabled and student.projector_layers == 0,
                "distillation needs a projector: set student.projector_layers=1, or distillation.tiles=none",
            ),
            (
                not disabled and self.uses_reports and reports is None,
                "distillation from text needs reports: set reports.path, or distillation.tiles=none",
            ),
            (
                student.warm_start and (disabled or d.target in _WITHOUT_SNIPPETS),
                "student.warm_start fits a head on paired text: set distillation.tiles=labelled or all, and "
                "distillation.target=text",
            ),
            (
                bool(d.sections) and d.target != "report_context",
                "distillation.sections applies only to distillation.target=report_context: set both or neither",
            ),
            (
                d.word_drop > 0 and (disabled or d.target in _WITHOUT_SNIPPETS),
                "distillation.word_drop needs a text target: set distillation.target=text or distillation.word_drop=0",
            ),
            (
                adapted and (disabled or d.target != "text"),
                f"distillation.text={d.text} needs paired text as the target: set distillation.target=text",
            ),
            (
                adapted and self.config.prompt_bags.weight > 0,
                f"{own_space} does not contain the class prompts: set prompt_bags.weight=0",
            ),
            (
                adapted and (self.config.bags.weight > 0 or second),
                f"{own_space} neither bags nor a second VLM can use: set bags.weight=0, and remove second_vlm",
            ),
            (
                d.text == "lora" and d.word_drop > 0,
                "distillation.text=lora embeds complete snippets: set distillation.word_drop=0",
            ),
            (
                not disabled and d.target == "class_prompts" and self.config.prompts is None,
                "distillation.target=class_prompts needs a prompt set: set the key prompts",
            ),
            (
                not disabled and d.target in REPORT_LABELS and reports is not None and reports.label_column is None,
                f"distillation.target={d.target} needs reports with labels: set reports.label_column",
            ),
            (
                second and (student.head != "linear" or student.projector_layers != 1 or disabled),
                "second_vlm needs distillation, student.head=linear and student.projector_layers=1: set these, or "
                "remove second_vlm",
            ),
        ]
        return [problem for applies, problem in checks if applies]

    def describe(self) -> str:
        """Describe the target with its tiles, its weight, the VLMs and additional inputs."""
        d, details = self.options, [f"weight {self.options.weight:g}"]
        if self.config.second_vlm is not None:
            details.append(f"half of it for each of two VLMs, {self.config.vlm.name} and {self.config.second_vlm.name}")
        if d.text != "frozen":
            details.append(f"{_TEXT_SIDES[d.text]}, fitted to the tiles' labels")
        if d.target in REPORT_LABELS and self.config.reports is not None:
            details.append(f"with the reports' own labels, column {self.config.reports.label_column}")
        return f"{d.target.replace('_', ' ')} for {d.tiles} tiles (distillation, {', '.join(details)})"

    def describe_publicly(self) -> str:
        """Describe the target with its tiles, without the names of the VLMs and of the label column."""
        target = self.options.target.replace("_", " ")
        return f"{target} targets in the teacher's joint space, for {self.options.tiles} tiles"

    def fingerprints(self, workspace: Workspace) -> dict[str, str]:
        """Return the fingerprint of the reports' own labels, if the target uses them."""
        if self.options.target not in REPORT_LABELS:
            return {}
        labels = [[report.report_id, report.label] for report in workspace.reports.reports]
        return {"labels of reports": fingerprint(labels)}

    def prepare(self, inputs: TermInputs) -> dict[str, Any]:
        """Build one target per training tile.

        Raises:
            DataError: None of the tiles selected for distillation has a target.
        """
        self.targets, facts = make_targets(self.config, inputs.workspace, inputs.tiles)
        labelled = self.labels >= 0
        distilled = labelled if self.options.tiles == "labelled" else np.ones(len(labelled), dtype=np.bool_)
        count = int((distilled & self.targets.valid).sum())
        if not count or (self.config.student.warm_start and not (labelled & self.targets.valid).any()):
            raise DataError(
                "no labelled tile has a pair, which student.warm_start needs"
                if count
                else f"none of the {counted(int(distilled.sum()), 'tile')} selected for distillation has a pair",
                where="distillation.tiles and pairing",
                fix="relax the pairing (threshold, margin, mutual), or select all tiles: distillation.tiles=all",
            )
        return {**facts, "distilled_tiles": f"{count} of {int(distilled.sum())}"}

    def initialise(self, student: Student, normalise: Normalise, source: PixelSource) -> None:
        """Run stage 1 of CLIP-IT, if `student.warm_start` is set."""
        if self.config.student.warm_start:
            warm_start(self.config, student, normalise, source, self.labels, self.targets)

    def mask(self, rows: Int[np.ndarray, "b"]) -> Bool[np.ndarray, "b"]:
        """Return the mask of the tiles with a target among these training tiles."""
        valid = np.asarray(self.targets.valid[rows], dtype=np.bool_)
        return valid & (self.labels[rows] >= 0) if self.options.tiles == "labelled" else valid

    def count(self, rows: Int[np.ndarray, "b"]) -> float:
        """Count the tiles with a target."""
        return float(self.mask(rows).sum())

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Sum the cosine distances to the targets."""
        return self._distance(batch, batch.projected)

    def _distance(self, batch: MicroBatch, projected: Float[Tensor, "b dim"]) -> Float[Tensor, ""]:
        vectors = batch.tensor(self.targets.vectors[batch.rows].astype(np.float32))
        return cosine_distillation_sum(projected, vectors, batch.tensor(self.mask(batch.rows)))


class SecondDistillationTerm(DistillationTerm):
    """Distillation from `second_vlm`, which has its own stores, pairs and projector."""

    name = "second_distillation"

    @property
    def active(self) -> bool:
        """Whether a second VLM is configured and distillation is enabled."""
        return self.config.second_vlm is not None and super().active

    def problems(self) -> list[str]:
        """Return no problems, since the first distillation term checks the keys for both VLMs."""
        return []

    def describe(self) -> str:
        """Return "", since the first distillation term describes both VLMs."""
        return ""

    def describe_publicly(self) -> str:
        """Return "", since the first distillation term describes the target."""
        return ""

    def fingerprints(self, workspace: Workspace) -> dict[str, str]:
        """Return the fingerprint of the second VLM."""
        return {"second VLM": workspace.for_config(self.config.for_second_vlm()).vlm.fingerprint}

    def prepare(self, inputs: TermInputs) -> dict[str, Any]:
        """Look up targets in the second VLM's stores, and drop those of tiles without a target from the first VLM."""
        workspace = inputs.workspace.for_config(self.config.for_second_vlm())
        targets, facts = make_targets(self.config, workspace, inputs.tiles)
        first = inputs.term(DistillationTerm)
        self.targets = targets if first is None else Targets(targets.vectors, targets.valid & first.targets.valid)
        facts |= {"vlm": workspace.vlm.name, "vlm_fingerprint": workspace.vlm.fingerprint}
        return {f"second_{name}": value for name, value in facts.items()}

    def initialise(self, student: Student, normalise: Normalise, source: PixelSource) -> None:
        """Do nothing: stage 1 uses only the first VLM."""

    def sum(self, batch: MicroBatch) -> Float[Tensor, ""]:
        """Sum the cosine distances of the second projector's output to the targets."""
        if batch.second_projection is None:
            raise ModelError(
                "a second VLM needs a second projector", where="second_vlm", fix="pass second_dim to build_student"
            )
        return self._distance(batch, batch.second_projection)
