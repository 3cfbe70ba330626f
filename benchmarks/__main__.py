"""Benchmark clipit relative to the bare models; print a table and write JSON.

Takes about 15 minutes on 2 cores. On a machine with a GPU, the models are ViT-L/16 in bfloat16 and the index is larger.
`--gpu` runs only the benchmarks that depend on the GPU, within eight minutes, and names the output file after the GPU.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    adapt_mining,
    adapt_step,
    bag_step,
    batch_parts,
    checkpointing,
    classifier,
    embedding,
    faiss_threads,
    fresh_pages,
    hubness,
    index_recall,
    logistic_threads,
    lora_layers,
    map_stitching,
    mil_epoch,
    pairing,
    pairing_scale,
    prediction,
    report_splitting,
    slide_geojson,
    slide_memory,
    slide_tiles,
    slide_tissue,
    start_up,
    tile_input,
    token_head,
    training_step,
)
from benchmarks.harness import Measurement, Options, table
from benchmarks.machine import machine, machine_text
from clipit.errors import LaunchError, user_errors
from clipit.output_files.artifacts import write_json

BENCHMARKS: dict[str, Callable[[Options], list[Measurement]]] = {
    "embedding": embedding.measure,
    "pairing": pairing.measure,
    "pairing_scale": pairing_scale.measure,
    "hubness": hubness.measure,
    "index_recall": index_recall.measure,
    "training_step": training_step.measure,
    "lora_layers": lora_layers.measure,
    "checkpointing": checkpointing.measure,
    "fresh_pages": fresh_pages.measure,
    "batch_parts": batch_parts.measure,
    "logistic_threads": logistic_threads.measure,
    "mil_epoch": mil_epoch.measure,
    "bag_step": bag_step.measure,
    "adapt_step": adapt_step.measure,
    "adapt_mining": adapt_mining.measure,
    "classifier": classifier.measure,
    "prediction": prediction.measure,
    "report_splitting": report_splitting.measure,
    "tile_input": tile_input.measure,
    "token_head": token_head.measure,
    "map_stitching": map_stitching.measure,
    "slide_geojson": slide_geojson.measure,
    "slide_memory": slide_memory.measure,
    "slide_tiles": slide_tiles.measure,
    "slide_tissue": slide_tissue.measure,
    "start_up": start_up.measure,
    "faiss_threads": faiss_threads.measure,
}
GPU = ("training_step", "lora_layers", "bag_step", "checkpointing", "embedding", "pairing", "prediction")
"""Benchmarks that `--gpu` runs, the most important first."""
_GPU_REPEATS = 3  # maximum number of rounds with --gpu
_GPU_SECONDS = 330  # no benchmark is started after this time; the longest takes two minutes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line names, print a table and write JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument(
        "--json",
        type=Path,
        help="output file (default: outputs/benchmarks.json; with --gpu, results/gpu_<card>.json)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds, after one warm-up round")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, as a smoke test")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help=f"run only the benchmarks that depend on a GPU ({', '.join(GPU)}): 3 rounds, at most 8 minutes",
    )
    parser.add_argument(
        "--slide", type=Path, action="append", default=[], help="slide for slide_tiles (TIFF; may be repeated)"
    )
    parsed = parser.parse_args(arguments)
    unknown = [name for name in parsed.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    missing = [str(path) for path in parsed.slide if not path.is_file()]
    if missing:
        parser.error(f"no such slide: {', '.join(missing)}")
    if parsed.repeats < 1:
        parser.error("--repeats must be at least 1")
    start = time.monotonic()
    with user_errors(), tempfile.TemporaryDirectory(prefix="clipit-benchmarks-") as temporary:
        hardware = machine()
        print(machine_text(hardware), flush=True)
        gpu = hardware["device"] != "cpu" and not parsed.quick
        if parsed.gpu and not gpu and not parsed.quick:
            raise LaunchError(
                "there is no GPU that torch can use",
                where="--gpu",
                fix="use a machine with a GPU (clipit doctor shows which GPUs torch finds), or --quick",
            )
        names = parsed.names or list(GPU if parsed.gpu else BENCHMARKS)
        repeats = min(parsed.repeats, _GPU_REPEATS) if parsed.gpu else parsed.repeats
        file = parsed.json or _default_file(hardware["device"] if parsed.gpu else "")
        slides = tuple(parsed.slide)
        options = Options(Path(temporary), parsed.quick, 1 if parsed.quick else repeats, gpu or parsed.gpu, slides)
        measurements: list[Measurement] = []
        skipped: list[str] = []
        for name in names:
            if parsed.gpu and time.monotonic() - start > _GPU_SECONDS:
                skipped.append(name)
                continue
            folder = Path(temporary) / name
            folder.mkdir()
            print(f"measuring {name} ...", flush=True)
            measurements += BENCHMARKS[name](replace(options, folder=folder))
            record = {
                "measured": datetime.now(UTC).isoformat(timespec="seconds"),
                "quick": parsed.quick,
                "repeats": options.repeats,
                "machine": hardware,
                "figures": [measurement.as_dict() for measurement in measurements],
            }
            write_json(file, record)  # after each benchmark, so that an interruption loses nothing
        print(f"\n{table(measurements, quick=parsed.quick)}\n\n{file}")
        if skipped:
            print(f"out of time: {', '.join(skipped)} not measured; run them by name")
        if parsed.quick:
            print("quick sizes: these times say nothing about speed")


def _default_file(card: str) -> Path:
    """Return the default output file; results on a GPU are recorded under its name."""
    name = re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
    return Path(f"results/gpu_{name}.json") if name else Path("outputs/benchmarks.json")


if __name__ == "__main__":
    main()
