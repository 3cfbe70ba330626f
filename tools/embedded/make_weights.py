"""Train the VLM and the backbone that ship with the package, record their hashes, and evaluate them."""

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float

from clipit.config.load import validate
from clipit.errors import user_errors
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.output_files.artifacts import file_sha256, read_json, write_json
from clipit.pairing.sources import representative_rows
from clipit.prompts.prompt_set import load_prompts
from clipit.synthetic.case_latents import CaseWorldConfig
from clipit.synthetic.case_world import write_case_world
from clipit.synthetic.corpora import GRADES
from clipit.synthetic.tile_draws import tile_latents
from clipit.synthetic.tile_world import ALL_NAMES, CASES, GRADE_CLASSES, GRADE_PROMPTS, WorldConfig, write_world
from clipit.synthetic.vocabulary import ORGANS
from clipit.vectors import centred
from clipit.versions import versions
from clipit.workspace.workspace import Workspace
from tools.embedded.captions import Wording
from tools.embedded.measure import check_embedded
from tools.embedded.measure_status import check_status
from tools.embedded.train_backbone import BackboneRecipe, train_backbone
from tools.embedded.train_vlm import VLMRecipe, train_vlm

SUMS = "SHA256SUMS.json"
MEASURED = "measured.json"
GATE = 0.80
"""Zero-shot accuracy below which distilled text showed no gain in a trial."""


def make_embedded_weights(
    folder: Path,
    seed: int,
    vlm: VLMRecipe | None = None,
    backbone: BackboneRecipe | None = None,
    world: WorldConfig | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Train the bundled VLM and backbone, and evaluate them on a world that shares no tile or report with training.

    `vlm/`, `backbone/`, `SHA256SUMS.json` (hash of each file) and `measured.json` (recipes, versions, scores) are
    written to `folder`. Earlier files are replaced when both models are trained.

    Args:
        folder: Folder for the two model folders.
        seed: Seed for the training data and for training; worlds use separate random streams, even with the same seed.
        vlm: Recipe for the VLM; defaults to the recipe of the shipped VLM.
        backbone: Recipe for the backbone; defaults to the recipe of the shipped backbone.
        world: Synthetic data set (world) on which the models are evaluated; defaults to the world of the demo.
        threads: Number of CPU threads used by torch; the same number gives the same weights on the same machine.

    Returns:
        Content of `measured.json`.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    torch.set_num_threads(threads)
    vlm, backbone, world = vlm or VLMRecipe(), backbone or BackboneRecipe(), world or WorldConfig()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        start = time.perf_counter()
        facts: dict[str, Any] = {"seed": seed, "threads": threads, "recipes": {"vlm": vlm, "backbone": backbone}}
        facts["recipes"] = {key: vars(recipe) for key, recipe in facts["recipes"].items()}
        facts["vlm"] = train_vlm(work / "vlm", seed, vlm)
        facts["backbone"] = train_backbone(work / "backbone", seed, backbone)
        facts["training_seconds"] = round(time.perf_counter() - start)
        write_world(work / "world", world)
        facts["world"] = world.model_dump(mode="json")
        facts["scores"] = check_embedded(work / "vlm", work / "backbone", work / "world")
        facts["grades"] = check_grades(work / "vlm", work / "world", work / "grades")
        facts["gate"] = {"zero_shot": GATE, "passed": facts["scores"]["zero_shot_test"] >= GATE}
        facts["versions"] = versions()
        for part in ("vlm", "backbone"):
            _replace(work / part, folder / part)
    write_json(folder / SUMS, hash_models(folder))
    write_json(folder / MEASURED, facts)
    return facts


def make_status_vlm(
    folder: Path, seed: int, recipe: VLMRecipe, world: CaseWorldConfig, threads: int = 1
) -> dict[str, Any]:
    """Train only a VLM; measure how well it and the shipped one predict the molecular status on synthetic cases.

    `vlm/` and `measured.json` (recipe, versions, scores) are written to `folder`; an earlier VLM is replaced.

    Args:
        folder: Folder for the VLM's folder.
        seed: Seed for the training data and for training.
        recipe: Recipe of the VLM.
        world: Synthetic data set of cases (world) on which the VLM is evaluated.
        threads: Number of CPU threads used by torch; the same number gives the same weights on the same machine.

    Returns:
        Content of `measured.json`.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    torch.set_num_threads(threads)
    facts: dict[str, Any] = {"seed": seed, "threads": threads, "recipe": vars(recipe)}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        start = time.perf_counter()
        facts["vlm"] = train_vlm(work / "vlm", seed, recipe)
        facts["training_seconds"] = round(time.perf_counter() - start)
        write_case_world(work / "world", world)
        facts["world"] = world.model_dump(mode="json")
        facts["scores"] = {
            "trained": check_status(str(work / "vlm"), work / "world"),
            "shipped": check_status("embedded", work / "world"),
        }
        facts["versions"] = versions()
        _replace(work / "vlm", folder / "vlm")
    write_json(folder / MEASURED, facts)
    return facts


def check_grades(vlm: Path, world: Path, output: Path) -> dict[str, dict[str, Any]]:
    """Measure how well the VLM, and the reports that it retrieves, predict the grade of tumour tiles.

    The tiles are the training tiles that show tumour, paired with snippets of `case_reports.jsonl` as in
    configs/knowing_reports.yaml. The scores are fractions from 0 to 1, for all these tiles and for ambiguous ones,
    whose nuclei and glands occur in both grades. `probe`: accuracy of a logistic regression on the image embeddings of
    the validation split. Other scores are computed with and without centring both modalities. `grade_alone`,
    `all_names`: zero-shot accuracy with the prompts that use the word grade, and with all names of `prompts.yaml`.
    `nearest_case`: the grade of the nearest snippet's reports is correct. `nearest_case_none`: these reports describe
    no tumour. `consensus`: the more frequent of low and high among the 20 nearest is correct (a tie counts one half).
    Scores without tiles are omitted.

    Args:
        vlm: Folder of a VLM.
        world: Folder written by `write_world`.
        output: Folder for stores and pairs.

    Raises:
        DataError: A prompt set in the world has different classes (for example, from an earlier version).
    """
    facts = read_json(world / "world.json", "regenerate the world")["config"]
    workspaces = {name: _grade_workspace(vlm, world, output, name == "centred") for name in ("centred", "uncentred")}
    scores = {name: _score_grades(workspace, world) for name, workspace in workspaces.items()}
    train, probe = workspaces["uncentred"].all_tiles.of_split("train"), _score_probe(workspaces["uncentred"])
    latents = tile_latents(facts["seed"], "world/train", facts["train"])
    numbers = [int(name.rpartition("-")[2]) for name in train.ids.tolist()]
    ambiguous = (latents.pleo[numbers] == 1) & (latents.gland[numbers] == 1)
    return {
        name: {"tiles": int(keep.sum())}
        | ({"probe": float(np.mean(probe[keep]))} if keep.any() else {})
        | {
            variant: {name: float(np.mean(values[keep])) for name, values in figures.items()}
            for variant, figures in scores.items()
            if keep.any()
        }
        for name, keep in (("all", np.ones_like(ambiguous)), ("ambiguous", ambiguous))
    }


def _score_grades(workspace: Workspace, world: Path) -> dict[str, np.ndarray]:
    """Return whether prompts and the nearest reports give the correct grade, for each training tile of a tumour."""
    train, store = workspace.all_tiles.of_split("train"), workspace.tile_store("train")
    images = centred(store.rows(store.positions(train.ids)), workspace.tile_mean)
    scores = {}
    for name, file in (("grade_alone", GRADE_PROMPTS), ("all_names", ALL_NAMES)):
        classes = prompt_embeddings(load_prompts(world / file), workspace.encode, workspace.text_mean, train.classes)
        scores[name] = (images @ classes.T).argmax(axis=1) == train.truth
    nearest = _nearest_grades(workspace, train.ids)
    correct = np.take_along_axis(nearest, train.truth[:, None, None], axis=2)[..., 0]
    other = np.take_along_axis(nearest, 1 - train.truth[:, None, None], axis=2)[..., 0]
    more = np.sign((correct.sum(axis=1) - other.sum(axis=1)).round(9))  # rounded, so that a tie is exact
    return scores | {
        "nearest_case": correct[:, 0],
        "nearest_case_none": nearest[:, 0, 2],
        "consensus": 0.5 + 0.5 * more,
    }


def _score_probe(workspace: Workspace) -> Bool[np.ndarray, "n"]:
    """Return which training tiles are classified correctly by a probe fitted and tuned on validation tiles."""
    parts = {split: workspace.all_tiles.of_split(split) for split in ("train", "validation")}
    stores = {split: workspace.tile_store(split) for split in parts}
    embeddings = {split: stores[split].rows(stores[split].positions(part.ids)) for split, part in parts.items()}
    x, y, half = embeddings["validation"], parts["validation"].truth, np.arange(len(parts["validation"])) % 2 == 0
    probe = linear_probe(x[half], y[half], x[~half], y[~half], 2)
    return np.asarray(probe.probabilities(embeddings["train"]).argmax(axis=1) == parts["train"].truth, dtype=np.bool_)


def _grade_workspace(vlm: Path, world: Path, output: Path, centring: bool) -> Workspace:
    values: dict[str, Any] = {
        "output": str(output),
        "tiles": {
            "source": "table",
            "path": str(world / "tiles.csv"),
            "images": str(world / "tiles.zip"),
            "classes": list(GRADE_CLASSES.values()),
            "class_map": GRADE_CLASSES,
        },
        "reports": {
            "path": str(world / CASES),
            "id_column": "id",
            "organ_column": "organ",
            "group_column": "group",
            "label_column": "grade",
            "morphology_prompts": str(world / "morphology.yaml"),
            "boilerplate_prompts": str(world / "boilerplate.yaml"),
        },
        "vlm": {"name": str(vlm), "batch_size": 256},
        "pairing": {"k": 20, "organs": ORGANS, "centring": centring},
    }
    return Workspace(validate(values, "check_grades"))


def _nearest_grades(workspace: Workspace, tiles: np.ndarray) -> Float[np.ndarray, "n 20 3"]:
    """Compute the fractions of low, high and none among the reports with each tile's snippets, nearest first."""
    sources = workspace.snippets.table("snippet_sources.parquet")
    label_of = {report.report_id: report.label for report in workspace.reports.reports}
    grades = [label_of[report] for report in sources.column("report_id").to_pylist()]
    index = workspace.index  # a row represents all snippets with equal embeddings, and has the sources of all
    snippet_ids = np.asarray(sources.column("snippet_id").to_pylist(), dtype=np.str_)
    snippets = index.ids[representative_rows(index)[index.store.positions(snippet_ids)]]
    counts: dict[str, Counter[str]] = {}
    for snippet, grade in zip(snippets.tolist(), grades, strict=True):
        if grade:  # reports of the other organ have none
            counts.setdefault(snippet, Counter())[grade] += 1
    pairs = workspace.pairs.table  # by tile, then by rank
    shares: dict[str, list[list[float]]] = {}
    for tile, snippet in zip(pairs.column("tile_id").to_pylist(), pairs.column("snippet_id").to_pylist(), strict=True):
        count = counts[snippet]
        shares.setdefault(tile, []).append([count[grade] / count.total() for grade in GRADES])
    return np.array([shares[tile] for tile in tiles.tolist()], dtype=np.float64)


def hash_models(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 of every file of the two model folders, by relative path."""
    files = [path for part in ("vlm", "backbone") for path in sorted((folder / part).iterdir())]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def _replace(source: Path, target: Path) -> None:
    from clipit.errors import disk_errors

    with disk_errors(target):
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())  # new files, with the permissions of the user's umask


def main() -> None:
    """Parse the command line, train, and print the scores."""
    parser = argparse.ArgumentParser(
        description="Train the tiny VLM and backbone that ship with the package, and evaluate them. "
        "Takes about 10 minutes on one core."
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/embedded"), help="folder for vlm/ and backbone/")
    parser.add_argument("--seed", type=int, default=100, help="seed for the training data and for training")
    parser.add_argument("--world-seed", type=int, default=0, help="seed of the world on which the models are evaluated")
    parser.add_argument("--vlm-tiles", type=int, default=12_000, help="training tiles; fewer give a weaker VLM")
    parser.add_argument("--vlm-epochs", type=int, default=10, help="training epochs of the VLM")
    parser.add_argument(
        "--captions",
        choices=get_args(Wording),
        default="graded",
        help="wording of the captions; coarse: without tumour grades; status, rare_status: naming the molecular status "
        "often or rarely",
    )
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads used by torch")
    parser.add_argument(
        "--vlm-only",
        action="store_true",
        help="do not train a backbone; evaluate how well the VLM predicts the molecular status on synthetic cases",
    )
    parser.add_argument("--small", action="store_true", help="train for a few steps only, to test the program")
    arguments = parser.parse_args()

    with user_errors():
        world = WorldConfig(seed=arguments.world_seed)
        vlm = VLMRecipe(tiles=arguments.vlm_tiles, epochs=arguments.vlm_epochs, wording=arguments.captions)
        backbone = BackboneRecipe()
        if arguments.small:
            world = WorldConfig(seed=arguments.world_seed, train=160, validation=160, test=80, shift=80, reports=40)
            vlm, backbone = (
                VLMRecipe(tiles=256, epochs=1, wording=arguments.captions),
                BackboneRecipe(tiles=192, epochs=1),
            )
        if arguments.vlm_only:
            sizes = {"train": 8, "validation": 8, "test": 8, "shift": 8, "external": 0} if arguments.small else {}
            cases = CaseWorldConfig(seed=arguments.world_seed, **sizes)
            facts = make_status_vlm(arguments.output, arguments.seed, vlm, cases, arguments.threads)
            print(json.dumps(facts["scores"], indent=2))
            print(f"weights and measured.json: {arguments.output}")
            return
        facts = make_embedded_weights(arguments.output, arguments.seed, vlm, backbone, world, arguments.threads)
        print(json.dumps(facts["scores"], indent=2))
        if not facts["gate"]["passed"]:
            print(f"warning: zero-shot accuracy is below {facts['gate']['zero_shot']}; the demo would show no gain")
        print(f"weights, hashes and measured.json: {arguments.output}")


if __name__ == "__main__":
    main()
