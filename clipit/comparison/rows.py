"""Rows of a comparison: one per run and test set, each with all that must stand beside a score."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from clipit.artifacts import file_sha256, git_commit, versions
from clipit.comparison.grid import axes_of, chosen
from clipit.comparison.plan import Plan
from clipit.comparison.vlm_reference import CENTRED, PROBE, inference_cost, reference_rows
from clipit.distributed import get_processes
from clipit.runs.evaluate import evaluate_shifted, shifted_predictions
from clipit.runs.folder import read_results
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

COSTS = ("learning_rate", "steps", "chosen_step", "tiles_seen", "seconds", "parameters", "tiles_per_second")
RECORD = (
    "data_set", "backbone", "arm", "part", "seed", "metric", "score", "zero_shot", "tiles", *COSTS, "searched",
    "classes", "pixels", "preprocess", "prompts", "prompts_hash", "index", "pairs", "vlm", "vlm_fingerprint",
    "backbone_fingerprint", "second_vlm", "training_labels", "validation_labels", "training_tiles",
    "tiles_fingerprint", "resampled", "commit", "versions", "command",
)  # fmt: skip
"""Columns of a record in results/*.csv: the scores, and all that must stand beside them."""
_PROVENANCE = (
    "classes", "pixels", "preprocess", "prompts", "prompts_hash", "index", "pairs", "vlm", "vlm_fingerprint",
    "backbone_fingerprint", "second_vlm", "training_labels", "validation_labels", "training_tiles", "commit",
)  # fmt: skip


def run_rows(plan: Plan, workspace: Workspace, folder: Path, arm: str, seed: int) -> list[dict[str, Any]]:
    """One row per test set of a finished run, read from its files."""
    results = read_results(folder)
    made_by = results["provenance"]
    resolved = resolve_arm(plan.run(arm, seed))
    common = {
        "data_set": plan.data_set,
        "backbone": plan.backbone,
        "arm": arm,
        "seed": seed,
        "steps": made_by["steps"],
        "chosen_step": made_by["chosen_step"],
        "tiles_seen": made_by["tiles_seen"],
        "seconds": made_by["seconds"],
        "learning_rate": resolved.training.learning_rate,
        "run": str(folder),
        **_beside(made_by),
    }
    scored = {"test": (results["splits"]["test"], folder / "predictions.parquet")}
    own = workspace.for_config(resolved)
    for name in plan.config.comparison.shifted:
        scored[name] = (evaluate_shifted(resolved, own, folder, name), shifted_predictions(own, folder, name))
    metric = plan.config.comparison.metric
    searched = json.dumps(chosen(plan.config, arm, list(axes_of(plan.config, arm))))
    rows = []
    for part, (scores, predictions) in scored.items():
        zero_shot = scores.get("zero_shot")
        rows.append(
            common
            | {
                "part": part,
                "tiles": scores["labelled"],
                "metric": metric,
                "score": scores["metrics"][metric]["value"],
                "reason": scores["metrics"][metric].get("over") or scores["metrics"][metric].get("reason"),
                "resampled": scores["resampled"],
                "zero_shot": zero_shot["metrics"][metric]["value"] if zero_shot else None,
                "predictions": str(predictions),
                "predictions_sha256": file_sha256(predictions),
                "searched": searched,
            }
        )
    return rows


def reference_rows_of(plan: Plan, workspace: Workspace, folder: Path) -> list[dict[str, Any]]:
    """The VLM's own rows on a plan's test sets, with what stands beside them; their predictions go to the folder."""
    config = plan.config
    vlm, prompts = workspace.vlm, workspace.prompts
    beside = {
        "data_set": plan.data_set,
        "backbone": plan.backbone,
        "metric": config.comparison.metric,
        "classes": len(workspace.all_tiles.classes),
        "pixels": vlm.preprocess.size,
        "preprocess": vlm.preprocess.hash,
        "vlm": vlm.name,
        "vlm_fingerprint": vlm.fingerprint,
        "commit": git_commit(),
        "command": shlex.join(sys.argv),
        "versions": json.dumps(versions(), sort_keys=True),
    }
    # Each row has what it was made from: the probe never sees a prompt, and only centring takes a mean of the snippets.
    asked = {"prompts": prompts.name, "prompts_hash": prompts.hash, "training_labels": 0} if prompts else {}
    found = []
    for row in reference_rows(config, workspace, folder):
        own: dict[str, Any] = {} if row["arm"] == PROBE else dict(asked)
        if row["arm"] == CENTRED:
            own["index"] = workspace.index.artifact.fingerprint
        if get_processes().main and row.get("predictions"):  # the main process has written them
            own["predictions_sha256"] = file_sha256(Path(row["predictions"]))
        found.append(beside | row | own)
    return found


def add_costs(plan: Plan, rows: list[dict[str, Any]], workspace: Workspace) -> None:
    """Parameters and tiles per second at inference, measured once per arm and for the VLM's image tower."""
    from clipit.models.inference import load_classifier

    costs: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["arm"] not in costs:
            if row.get("run"):
                folder, trust = Path(row["run"]) / "classifier", plan.config.backbone.trust_remote_code
                classifier = load_classifier(folder, get_processes().device, trust_remote_code=trust)
                source = workspace.pixels("test", classifier.spec.preprocess)
                normalise = classifier.spec.preprocess.normalise
                found = inference_cost(source, lambda x, c=classifier, n=normalise: c.forward(n(x)))  # type: ignore[misc]
                costs[row["arm"]] = found | {"parameters": classifier.parameters}
            else:
                source = workspace.pixels("test", workspace.vlm.preprocess)
                found = inference_cost(source, workspace.vlm.encode_images)
                costs[row["arm"]] = found | {"parameters": workspace.vlm.image_parameters}
        row.update(costs[row["arm"]])


def _beside(made_by: dict[str, Any]) -> dict[str, Any]:
    kept = {key: made_by.get(key) for key in _PROVENANCE} | {"tiles_fingerprint": made_by.get("tiles")}
    told = json.dumps(made_by.get("versions", {}), sort_keys=True)
    return kept | {"command": made_by.get("command"), "versions": told}
