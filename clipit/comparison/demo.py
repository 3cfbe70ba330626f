"""The demo: CLIP-IT from raw reports to an exported classifier, on a synthetic world."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clipit.comparison.compare import compare
from clipit.comparison.export_tables import read_comparison
from clipit.comparison.report.write import read_head
from clipit.comparison.statistics import PERCENT
from clipit.config.comparison import ComparisonConfig
from clipit.config.run import RunConfig
from clipit.errors import counted
from clipit.reporting.tables import LABELS, difference, interval, markdown_table, mean_sd
from clipit.runs.folder import run_folder
from clipit.runs.predict_tiles import open_classifier
from clipit.synthetic.case_latents import CaseWorldConfig
from clipit.synthetic.case_world import ensure_case_world
from clipit.synthetic.tile_world import WorldConfig, ensure_world
from clipit.tiles.load_tiles import read_tiles

logger = logging.getLogger(__name__)

WORLD = WorldConfig(seed=0)
"""World of the demo; comparisons over several worlds create more with `ensure_world`."""
CASE_WORLD = CaseWorldConfig(seed=0)
"""World of the demo with reports of the patients that the tiles come from (`--cases`)."""
_SHOWN_ARMS = ("clip_it_all", "own_rules")


def demo(config: RunConfig, comparison: ComparisonConfig, *, cases: bool = False, agents: int = 1) -> Path:
    """Write the synthetic world, compare the arms on it, and try the exported classifier.

    Args:
        config: Configuration such as configs/demo.yaml. Its tiles and reports are in one folder, which is written if it
            is missing.
        comparison: Arms and seeds to compare.
        cases: Whether to use the world whose tiles and reports come from the same patients.
        agents: Number of processes that share the runs.

    Returns:
        Folder of the run whose classifier is tried.
    """
    start = time.perf_counter()
    world = write_demo_world(config, cases=cases)
    folder = compare(config, comparison, agents)
    arm = next((name for name in _SHOWN_ARMS if name in comparison.arms), comparison.arms[0])
    run = run_folder(config.model_copy(update={"arm": arm, "seed": comparison.seeds[0]}))
    logger.info(f"\n{read_head(folder)}\n")
    logger.info(_try_classifier(config, run))
    logger.info(f"\nThe world:      {world}")
    logger.info(f"Comparison:     {folder / 'comparison.html'} (and .md, .tex, .parquet)")
    logger.info(f"Runs:           {run.parent}")
    logger.info(f"One run's page: {run / 'report.html'}")
    logger.info(f"One classifier: {run / 'classifier'}")
    logger.info(f"total time: {time.perf_counter() - start:.0f} s")
    return run


def demo_table(parts: Mapping[str, tuple[RunConfig, ComparisonConfig]]) -> str:
    """Format the test scores (in %) of several finished parts of the demo as one table.

    Args:
        parts: Configurations of each part, keyed by its kind of reports (the first column).
    """
    rows = []
    for reports, (config, comparison) in parts.items():
        for line in read_comparison(config.output / "comparisons" / config.name)["lines"]:
            if line["test_set"] != "test" or line["reference"]:
                continue
            scores = [PERCENT * seed["score"] for seed in line["seeds"]]
            cells = [reports, LABELS[comparison.metric], line["arm"], mean_sd(scores, 1)]
            gain, bounds = line["difference"], [line[over] or {} for over in ("over_seeds", "over_tiles")]
            cells += [
                "" if gain is None else difference(PERCENT * gain, None, 1),
                *(interval(_percent(b.get("low")), _percent(b.get("high")), 1, signed=True) for b in bounds),
            ]
            rows.append(cells)
    header = ("reports", "score", "arm", "mean ± sd", "difference", "t over seeds", "over tiles")
    return markdown_table(header, rows, left=3)


def write_demo_world(config: RunConfig, *, cases: bool = False) -> Path:
    """Write the synthetic world into the folder of the configuration's tiles, unless it already exists.

    The folder is written atomically, so a folder with other content must have been created by the user.

    Args:
        config: Configuration whose tiles are in the folder of the world.
        cases: Whether to write the world whose tiles and reports come from the same patients.

    Raises:
        ArtifactError: The folder contains something else, or a different world; it is left unchanged.
    """
    folder = Path(config.tiles.path).parent
    return ensure_case_world(folder, CASE_WORLD) if cases else ensure_world(folder, WORLD)


def _percent(value: float | None) -> float | None:
    return None if value is None else PERCENT * value


def _try_classifier(config: RunConfig, run: Path) -> str:
    """Describe the exported classifier's predictions for a few test tiles, including zero-shot with new prompts."""
    tiles = read_tiles(config.tiles, check=False).of_split("test")
    rows = np.linspace(0, len(tiles) - 1, 4).astype(int)
    images = [tiles.read(int(row)) for row in rows]
    classifier = open_classifier(config, run)
    lines = [f"The exported classifier ({run.name}) on {counted(len(images), 'test tile')}:"]
    lines += [
        f"  {tiles.ids[row]}: {predicted} (truth: {tiles.classes[int(tiles.truth[row])]})"
        for row, predicted in zip(rows, classifier.predict(images), strict=True)
    ]
    if classifier.spec.vlm is not None:  # trained with text, so it also supports new prompts
        prompts = {
            "tumour": ["a tumour with atypical glands", "carcinoma with marked nuclear pleomorphism"],
            "no tumour": ["benign tissue without tumour", "normal glands", "fat", "connective tissue", "lymphocytes"],
        }
        shares = [f"{probabilities[0]:.0%}" for probabilities in classifier.zero_shot(images, prompts)]
        lines.append(f"Zero-shot probability of tumour, from new prompts: {', '.join(shares)}")
    return "\n".join(lines)
