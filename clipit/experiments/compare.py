"""Arms over seeds on the same tiles: runs, reference rows, paired differences, one table."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipit.artifacts import git_commit, whole_file, write_json
from clipit.config import Config
from clipit.distributed import processes
from clipit.errors import ConfigError, DataError, explain
from clipit.evaluation.intervals import t_interval
from clipit.experiments.evaluation import evaluate_shifted
from clipit.experiments.identity import run_folder
from clipit.experiments.materials import Materials
from clipit.experiments.references import inference_cost, reference_rows
from clipit.experiments.run import check, train_run
from clipit.reporting.tables import difference, markdown_table, mean_sd
from clipit.training.arms import arm_keys, resolve_arm

PERCENT = 100.0
_COSTS = ("learning_rate", "steps", "chosen_step", "tiles_seen", "seconds", "parameters", "tiles_per_second")


def compare(config: Config, say: Callable[[str], None] = print) -> Path:
    """Run every arm with every seed (those finished are skipped) and write the comparison.

    Args:
        config: Its `comparison` section says what is compared.
        say: Takes lines for the user.

    Returns:
        The folder with comparison.md, comparison.parquet and comparison.json.
    """
    materials = Materials(config, say)
    c = config.comparison
    _check_all(config, materials)
    rows: list[dict[str, Any]] = []
    for seed in c.seeds:
        for arm in c.arms:
            run = config.model_copy(update={"arm": arm, "seed": seed})
            done = (run_folder(run) / "results.json").is_file()
            folder = train_run(run, materials, say)
            new = _run_rows(config, run, materials, folder, arm, seed)
            rows += new
            shown = ", ".join(f"{row['part']} {PERCENT * row['score']:.1f}" for row in new)
            materials.say(f"{'kept' if done else 'done'}: {arm}, seed {seed}: {c.metric} % {shown}")
    rows += reference_rows(config, materials)
    if processes().main:
        _add_costs(rows, materials)
    folder = config.output / "comparisons" / config.name
    if processes().main:
        _write(config, rows, folder)
    processes().wait()
    return folder


def _check_all(config: Config, materials: Materials) -> None:
    """Find what would stop the comparison half-way: all wrong arms at once, and missing test tiles.

    Raises:
        ConfigError: An arm is unknown or its keys do not fit.
        DataError: There is no test tile.
    """
    wrong = []
    told = {key for arm in config.comparison.arms for key in arm_keys(arm, config.arms)} & set(config.overrides)
    told = {key for key in told if not key.startswith("training.")}
    if told:
        wrong.append(
            explain(
                f"set for all arms, these keys would make arms alike: {', '.join(sorted(told))}",
                where="the command line",
                fix="leave them out, or describe an arm of your own under `arms`",
            )
        )
    for arm in config.comparison.arms:
        try:
            check(resolve_arm(config.model_copy(update={"arm": arm})))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n".join(wrong))
    if not len(materials.some_tiles.of_split("test")) or "test" not in config.evaluation.splits:
        raise DataError(
            explain(
                "a comparison needs test tiles",
                where="tiles.splits and evaluation.splits",
                fix="give tiles of the split test, and keep test among evaluation.splits",
            )
        )


def _add_costs(rows: list[dict[str, Any]], materials: Materials) -> None:
    """Parameters and tiles per second at inference, measured once per arm and for the VLM's image tower."""
    from clipit.models.inference import load_classifier

    costs: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["arm"] not in costs:
            if row.get("run"):
                classifier = load_classifier(Path(row["run"]) / "classifier", processes().device)
                source = materials.pixels("test", classifier.spec.preprocess)
                normalise = classifier.spec.preprocess.normalise
                found = inference_cost(source, lambda x, c=classifier, n=normalise: c.forward(n(x)))  # type: ignore[misc]
                costs[row["arm"]] = found | {"parameters": classifier.parameters}
            else:
                source = materials.pixels("test", materials.vlm.preprocess)
                found = inference_cost(source, materials.vlm.encode_images)
                costs[row["arm"]] = found | {"parameters": materials.vlm.image_parameters}
        row.update(costs[row["arm"]])


def _run_rows(
    config: Config, run: Config, materials: Materials, folder: Path, arm: str, seed: int
) -> list[dict[str, Any]]:
    """One row per test set of a finished run, read from its files."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    made_by = results["provenance"]
    common = {
        "arm": arm,
        "seed": seed,
        "steps": made_by["steps"],
        "chosen_step": made_by["chosen_step"],
        "tiles_seen": made_by["tiles_seen"],
        "seconds": made_by["seconds"],
        "learning_rate": resolve_arm(run).training.learning_rate,
        "run": str(folder),
    }
    scored = {"test": results["splits"]["test"]}
    if config.comparison.shifted is not None:
        resolved = resolve_arm(run)
        own = materials if materials.serves(resolved) else Materials(resolved, materials.say)
        scored["shifted"] = evaluate_shifted(resolved, own, folder)
    metric = config.comparison.metric
    rows = []
    for part, scores in scored.items():
        zero_shot = scores.get("zero_shot")
        rows.append(
            common
            | {
                "part": part,
                "score": scores["metrics"][metric]["value"],
                "zero_shot": zero_shot["metrics"][metric]["value"] if zero_shot else None,
            }
        )
    return rows


def _write(config: Config, rows: list[dict[str, Any]], folder: Path) -> None:
    with whole_file(folder / "comparison.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary)
    write_json(
        folder / "comparison.json", {"config": config.model_dump(mode="json"), "commit": git_commit(), "rows": rows}
    )
    with whole_file(folder / "comparison.md") as temporary:
        temporary.write_text(comparison_text(config, rows), encoding="utf-8")


def comparison_text(config: Config, rows: list[dict[str, Any]]) -> str:
    """The table, its reading aid and the note of the configuration, as Markdown."""
    c = config.comparison
    parts = list(dict.fromkeys(row["part"] for row in rows))
    header = ["arm"]
    for part in parts:
        header += [f"{part}: {c.metric.replace('_', ' ')} %", f"difference to {c.baseline}"]
    header += ["by prompts %", "learning rate", "steps", "chosen", "tiles seen", "seconds", "parameters", "tiles/s"]
    table = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        line = [arm]
        for part in parts:
            line += _cells(config, rows, arm, part)
        of_arm = [row for row in rows if row["arm"] == arm]
        zero_shot = [
            PERCENT * row["zero_shot"] for row in of_arm if row["part"] == "test" and row["zero_shot"] is not None
        ]
        line.append(mean_sd(zero_shot, 1) if zero_shot else "")
        line += [_plain(of_arm, key) for key in _COSTS]
        table.append(line)
    notes = [
        f"Mean and standard deviation over {len(c.seeds)} seeds; differences are paired by seed, with 95 % "
        "t-intervals. Seeds vary the labelled tiles, initialisation, batches and augmentation; tiles, VLM and backbone "
        "are fixed, so the intervals do not speak for other ones.",
        "`by prompts`: the same student read through its projection and the class prompts, test split. `chosen`: the "
        "step with the best validation score. `seconds`: training, with validation and the first reading of tiles. "
        "`parameters` and `tiles/s`: at inference, of images only.",
        *_below_reference(config, rows),
    ]
    if config.note:
        notes.append(" ".join(config.note.split()))
    return f"# {config.name}\n\n{markdown_table(header, table)}\n\n" + "\n\n".join(notes) + "\n"


def _below_reference(config: Config, rows: list[dict[str, Any]]) -> list[str]:
    """A sentence when students stay below the VLM itself on the test split."""
    means: dict[str, float] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        means[arm] = mean(row["score"] for row in rows if row["arm"] == arm and row["part"] == "test")
    references = {arm: score for arm, score in means.items() if arm.startswith("reference")}
    if not references:
        return []
    best = max(references, key=lambda arm: references[arm])
    below = [arm for arm in config.comparison.arms if arm in means and means[arm] < references[best]]
    if not below:
        return []
    return [f"Below the best reference row ({best}, {PERCENT * references[best]:.1f}): {', '.join(below)}."]


def _cells(config: Config, rows: list[dict[str, Any]], arm: str, part: str) -> list[str]:
    """Score and difference to the baseline of an arm on one test set."""
    c = config.comparison
    scores = {row["seed"]: PERCENT * row["score"] for row in rows if row["arm"] == arm and row["part"] == part}
    base = {row["seed"]: PERCENT * row["score"] for row in rows if row["arm"] == c.baseline and row["part"] == part}
    if not scores:
        return ["", ""]
    shown = mean_sd(list(scores.values()), 1)
    if arm == c.baseline or not set(scores) <= set(base):
        return [shown, ""]
    differences = [scores[seed] - base[seed] for seed in scores]
    return [shown, difference(mean(differences), t_interval(differences), 1)]


def _plain(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None and row["part"] == "test"]
    if not values:
        return ""
    return f"{np.mean(values):g}" if key == "learning_rate" else f"{np.mean(values):,.0f}"
