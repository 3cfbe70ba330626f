"""Score of one run on one test set with its provenance: a row of comparison.parquet."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Provenance of a score; None where a field does not apply (a linear probe uses no prompts).

    Attributes:
        pixels: Side length of the model's input in pixels.
        index: Fingerprint of the snippet index.
        training_tiles: Number of training tiles, labelled or not.
        tiles_fingerprint: Fingerprint of the tiles and of the labels that the run may use.
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
        """Fraction of training tiles that are labelled; None if nothing was trained."""
        if self.training_labels is None or not self.training_tiles:
            return None
        return self.training_labels / self.training_tiles


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """The score of one arm, or of the VLM itself, with one seed on one test set.

    Attributes:
        arm: Name of the arm, or of the reference classifier.
        chosen_step: Step whose checkpoint was kept.
        tiles_seen: Number of tiles read during training, counting repeats.
        seconds: Training time, in seconds.
        run: Folder of the run; None for a reference classifier.
        test_set: Name of the test set: `test` or the name of a shifted set.
        score: Value of the metric; None if undefined.
        reason: Reason why the score is undefined, or the classes over which it is averaged.
        resampled: Number and kind of the resampling units of the bootstrap, such as `12 groups`.
        zero_shot: Zero-shot score of the same student, using the class prompts.
        predictions_sha256: SHA-256 of the predictions file.
        searched: Tuned hyperparameters and their values, as JSON.
        tiles_per_second: Inference speed, in tiles per second.
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
    test_set: str
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
        """Build a row from a record of comparison.parquet or comparison.json.

        Raises:
            TypeError: A required column is missing.
        """
        values = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        values |= {name: Path(values[name]) for name in ("run", "predictions") if values.get(name)}
        provenance = {field.name: record.get(field.name) for field in fields(Provenance)}
        return cls(**{**values, "provenance": Provenance(**provenance)})

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
        """Return the path of the predictions file.

        Raises:
            ValueError: The score is undefined, so there are no predictions.
        """
        if self.predictions is None:
            raise ValueError(f"{self.arm}, seed {self.seed}, has no predictions for {self.test_set}")
        return self.predictions

    def run_folder(self) -> Path:
        """Return the folder of the run.

        Raises:
            ValueError: The row belongs to a reference classifier.
        """
        if self.run is None:
            raise ValueError(f"{self.arm} is not a run")
        return self.run


COSTS = ("learning_rate", "steps", "chosen_step", "tiles_seen", "seconds", "parameters", "tiles_per_second")
"""Columns with the learning rate, length and cost of a run's training."""
CSV_COLUMNS = (
    "data_set", "backbone", "arm", "test_set", "seed", "metric", "score", "zero_shot", "tiles", *COSTS, "searched",
    "classes", "pixels", "preprocess", "prompts", "prompts_hash", "index", "pairs", "vlm", "vlm_fingerprint",
    "backbone_fingerprint", "second_vlm", "training_labels", "validation_labels", "training_tiles",
    "tiles_fingerprint", "resampled", "commit", "versions", "command",
)  # fmt: skip
"""Columns of results/*.csv: scores with their provenance, without local paths."""
