"""Benchmark clipit against the bare models; print a table and write JSON.

About 15 minutes on 2 cores. On a machine with a GPU, the models are ViT-L/16 in bfloat16 and the index is larger.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import (
    bag_step,
    classifier,
    embedding,
    faiss_threads,
    hubness,
    map_stitching,
    mil_epoch,
    pairing,
    prediction,
    report_splitting,
    slide_geojson,
    slide_tiles,
    slide_tissue,
    start_up,
    token_head,
    training_step,
)
from benchmarks.harness import Figure, Options, table
from benchmarks.machine import machine, machine_text
from clipit.artifacts import write_json
from clipit.errors import user_errors

BENCHMARKS: dict[str, Callable[[Options], list[Figure]]] = {
    "embedding": embedding.measure,
    "pairing": pairing.measure,
    "hubness": hubness.measure,
    "training_step": training_step.measure,
    "mil_epoch": mil_epoch.measure,
    "bag_step": bag_step.measure,
    "classifier": classifier.measure,
    "prediction": prediction.measure,
    "report_splitting": report_splitting.measure,
    "token_head": token_head.measure,
    "map_stitching": map_stitching.measure,
    "slide_geojson": slide_geojson.measure,
    "slide_tiles": slide_tiles.measure,
    "slide_tissue": slide_tissue.measure,
    "start_up": start_up.measure,
    "faiss_threads": faiss_threads.measure,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks.json"), help="output file")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds, after one warm-up round")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one round, as a smoke test")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}: choose from {', '.join(BENCHMARKS)}")
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    with user_errors(), tempfile.TemporaryDirectory(prefix="clipit-benchmarks-") as temporary:
        hardware = machine()
        print(machine_text(hardware), flush=True)
        gpu = hardware["device"] != "cpu" and not given.quick
        options = Options(Path(temporary), given.quick, 1 if given.quick else given.repeats, gpu)
        figures: list[Figure] = []
        for name in given.names or BENCHMARKS:
            folder = Path(temporary) / name
            folder.mkdir()
            print(f"measuring {name} ...", flush=True)
            figures += BENCHMARKS[name](replace(options, folder=folder))
            record = {
                "measured": datetime.now(UTC).isoformat(timespec="seconds"),
                "quick": given.quick,
                "repeats": options.repeats,
                "machine": hardware,
                "figures": [figure.as_dict() for figure in figures],
            }
            write_json(given.json, record)  # after each benchmark, so that an interruption loses nothing
        print(f"\n{table(figures, quick=given.quick)}\n\n{given.json}")
        if given.quick:
            print("quick sizes: these figures say nothing about speed")


if __name__ == "__main__":
    main()
