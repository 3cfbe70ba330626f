"""A score of one run on one test set, with the provenance written next to it: a row of comparison.parquet."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a score was computed from; None where it does not apply (a linear probe reads no prompts).

    Attributes:
        classes: Number of classes.
        pixels: Side of the model's input.
        preprocess: Hash of the preprocessing.
        prompts: Name of the prompt set.
        prompts_hash: Hash of its texts.
        index: Fingerprint of the index of snippets.
        pairs: Fingerprint of the pairs.
        vlm: Name of the VLM.
        vlm_fingerprint: Fingerprint of its weights.
        backbone_fingerprint: Fingerprint of the backbone's weights.
        second_vlm: Name of the VLM of the second view.
        training_labels: Number of labelled training tiles.
        validation_labels: Number of labelled validation tiles.
        training_tiles: Number of training tiles, labelled or not.
        commit: Commit of the code.
        tiles_fingerprint: Fingerprint of the tiles and their visible labels.
        command: Command line that computed the score.
        versions: Versions of the libraries, as JSON.
    """

    classes: int | None = None
    pixels: int | None = None
    preprocess: str | None = None
    prompts: str | None = None
    prompts_hash: str | None = None
    index: str | None = None
    pairs: str | None = None
    vlm: str | None = None
    vlm_fingerprint: str | None = None
    backbone_fingerprint: str | None = None
    second_vlm: str | None = None
    training_labels: int | None = None
    validation_labels: int | None = None
    training_tiles: int | None = None
    commit: str | None = None
    tiles_fingerprint: str | None = None
    command: str | None = None
    versions: str | None = None

    @property
    def labelled_share(self) -> float | None:
        """Share of the training tiles that are labelled; None where nothing was trained."""
        if self.training_labels is None or not self.training_tiles:
            return None
        return self.training_labels / self.training_tiles


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """The score of one arm, or of the VLM itself, with one seed on one test set.

    Attributes:
        data_set: Name of the data set.
        backbone: Name of the student's backbone.
        arm: Name of the arm, or of the reference classifier.
        seed: Seed of the run.
        steps: Training steps.
        chosen_step: Step whose checkpoint was kept.
        tiles_seen: Tiles read during training, with repetitions.
        seconds: Duration of the training.
        learning_rate: Learning rate of the run.
        run: Folder of the run; None for a reference classifier.
        provenance: What the score was computed from.
        part: Name of the test set: `test`, or a shifted set's.
        tiles: Number of labelled test tiles.
        metric: Name of the metric.
        score: Value in 0..1; None where it is not defined.
        reason: Why it is not defined, or over which classes it is averaged.
        resampled: Number and kind of the units that the bootstrap draws, such as `12 groups`.
        zero_shot: Score of the same student by class prompts.
        predictions: File of the predictions.
        predictions_sha256: Hash of that file.
        searched: The hyperparameters of the search grid and their values, as JSON.
        tiles_per_second: Speed of inference.
        parameters: Number of parameters at inference.
    """

    data_set: str
    backbone: str
    arm: str
    seed: int
    steps: int | None = None
    chosen_step: int | None = None
    tiles_seen: int | None = None
    seconds: float | None = None
    learning_rate: float | None = None
    run: Path | None = None
    provenance: Provenance = Provenance()
    part: str
    tiles: int | None = None
    metric: str
    score: float | None
    reason: str | None = None
    resampled: str | None = None
    zero_shot: float | None = None
    predictions: Path | None = None
    predictions_sha256: str | None = None
    searched: str | None = None
    tiles_per_second: float | None = None
    parameters: int | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ScoreRow":
        """Read a row of comparison.parquet or comparison.json.

        Raises:
            TypeError: A required column is missing.
        """
        own = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        own |= {name: Path(own[name]) for name in ("run", "predictions") if own.get(name)}
        source = {field.name: record.get(field.name) for field in fields(Provenance)}
        return cls(**{**own, "provenance": Provenance(**source)})

    def to_record(self) -> dict[str, Any]:
        """Return the row as a flat record, in the order of the columns of comparison.parquet."""
        record: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if name == "provenance":
                record |= value
            else:
                record[name] = str(value) if isinstance(value, Path) else value
        return record

    def predictions_file(self) -> Path:
        """Return the file of the predictions, which every scored row has.

        Raises:
            ValueError: The row has none: its score is not defined.
        """
        if self.predictions is None:
            raise ValueError(f"{self.arm}, seed {self.seed}, has no predictions of {self.part}")
        return self.predictions

    def run_folder(self) -> Path:
        """Return the folder of the run.

        Raises:
            ValueError: The row is of a reference classifier.
        """
        if self.run is None:
            raise ValueError(f"{self.arm} is not a run")
        return self.run


COSTS = ("learning_rate", "steps", "chosen_step", "tiles_seen", "seconds", "parameters", "tiles_per_second")
"""Columns that say what a run costs."""
CSV_COLUMNS = (
    "data_set", "backbone", "arm", "part", "seed", "metric", "score", "zero_shot", "tiles", *COSTS, "searched",
    "classes", "pixels", "preprocess", "prompts", "prompts_hash", "index", "pairs", "vlm", "vlm_fingerprint",
    "backbone_fingerprint", "second_vlm", "training_labels", "validation_labels", "training_tiles",
    "tiles_fingerprint", "resampled", "commit", "versions", "command",
)  # fmt: skip
"""Columns of results/*.csv: the scores with their provenance, without paths of one machine."""
