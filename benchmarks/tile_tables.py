"""Memory per tile when a table of zipped tiles is read: the peak, and the memory that is still in use afterwards.

    python -m benchmarks.tile_tables

prints the difference between tables of 105,000 and 5,000 tiles, each read in a separate process.
"""

import gc
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.pairing_memory import peak_bytes

_SIZES = (5_000, 105_000)  # tiles per table
_PER_SLIDE = 500  # tiles per slide


def main() -> None:
    """Measure both sizes; given a table and a zip, print the memory of this process as JSON."""
    if sys.argv[1:]:
        _print_memory(*sys.argv[1:])
        return
    results = []
    with tempfile.TemporaryDirectory(prefix="clipit-benchmarks-") as folder:
        for count in _SIZES:
            table, archive = _write(Path(folder), count)
            command = [sys.executable, "-m", "benchmarks.tile_tables", str(table), str(archive)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(result.stdout.splitlines()[-1]))
    for name in ("held", "peak"):
        print(f"{name}: {(results[1][name] - results[0][name]) / (_SIZES[1] - _SIZES[0]):.0f} bytes per tile")


def _write(folder: Path, count: int) -> tuple[Path, Path]:
    table, archive = folder / f"{count}.csv", folder / f"{count}.zip"
    splits, labels = ("train", "train", "val", "test"), ("tumour", "stroma", "gland")
    with zipfile.ZipFile(archive, "w") as file, table.open("w", encoding="utf-8") as rows:
        rows.write("path,label,split,group,mpp\n")
        for tile in range(count):
            slide = tile // _PER_SLIDE
            name = f"tiles/slide_{slide:05d}/tile_{tile:08d}.jpg"
            file.writestr(name, b"x")
            rows.write(f"{name},{labels[tile % 3]},{splits[slide % 4]},patient_{slide:05d},0.5\n")
    return table, archive


def _print_memory(table: str, archive: str) -> None:
    from clipit.config.run import LabelsConfig, TilesConfig
    from clipit.tiles.hidden_labels import hide_labels
    from clipit.tiles.load_tiles import read_tiles

    before = _resident_bytes()
    tiles = hide_labels(read_tiles(TilesConfig(source="table", path=table, images=archive)), LabelsConfig(), seed=0)
    tiles.try_read(0)  # opens the zip
    gc.collect()
    print(json.dumps({"held": _resident_bytes() - before, "peak": peak_bytes() - before}))


def _resident_bytes() -> int:
    """Return the resident memory of this process, on Linux."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
