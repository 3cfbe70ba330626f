"""Test that two processes compute the same pairs and bags as one."""

from pathlib import Path

import numpy as np
import pytest
from launching import run_program, run_two
from tiny_models import write_store

from clipit.stores.index import build_index, has_faiss
from clipit.vectors import unit

pytestmark = pytest.mark.slow

MAKE = """
import sys
from pathlib import Path
from clipit.output_files.artifacts import open_artifact
from clipit.config.run import PairingConfig
from clipit.stores.embed import Store
from clipit.errors import DataError
from clipit.stores.index import build_index, has_faiss
from clipit.pairing.options import compare_options, options_text
from clipit.pairing.pairs import pair_tiles
from clipit.pairing.tile_bags import tile_bags
texts, tiles = (Store(open_artifact(Path(sys.argv[i]), kind)) for i, kind in ((1, "text_store"), (2, "tile_store")))
out = Path(sys.argv[3])
index = build_index(Path(sys.argv[1]).parent, texts)
for block in (16, 4096):  # more blocks than processes, and one block, so that the processes share the shards
    pair_tiles(out / f"plain{block}", index, tiles, k=3, block=block)
    for correction in ("csls", "inverted_softmax", "sinkhorn"):
        rules = PairingConfig(correction=correction, mutual=True, score_temperature=0.1, margin=0.001)
        pairs = pair_tiles(out / f"{correction}{block}", index, tiles, k=3, block=block, rules=rules)
if has_faiss():  # settings are chosen and recall is measured by all processes together
    pair_tiles(out / "lists", build_index(Path(sys.argv[1]).parent, texts, key="IVF16,Flat"), tiles, k=3, block=16)
tile_bags(out / "bags", tiles, 4, mean=tiles.mean(), pairs=pairs, index=index, block=16, margin=0.1)
tile_bags(out / "bags4096", tiles, 4, mean=tiles.mean(), pairs=pairs, index=index, margin=0.1)
table = options_text(compare_options(index, tiles, PairingConfig(block=16)))
(out / f"options{__import__('clipit.distributed').distributed.get_processes().rank}.txt").write_text(table)
try:
    pair_tiles(out / "none", index, tiles, block=16, rules=PairingConfig(threshold=1.0))
except DataError as error:
    print("refused:", str(error).splitlines()[0], flush=True)
"""


def test_two_processes_write_the_same_files_as_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    embeddings = [unit(rng.normal(size=(n, 8)).astype(np.float32) + 0.5) for n in (9000, 90)]
    texts = write_store(tmp_path, [f"s{i:04d}" for i in range(9000)], embeddings[0])
    tiles = write_store(tmp_path, [f"t{i:03d}" for i in range(90)], embeddings[1], kind="tile_store")
    build_index(tmp_path, texts)
    script = tmp_path / "make.py"
    script.write_text(MAKE)
    for name, run_in in {"one": run_program, "two": run_two}.items():
        (tmp_path / name).mkdir()
        result = run_in(script, texts.artifact.folder, tiles.artifact.folder, tmp_path / name)
        assert result.returncode == 0, result.stderr[-2000:]
        assert result.stdout.count("refused: the rules drop all 90") == {"one": 1, "two": 2}[name]
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.parquet"))
    files += sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("summary.json"))
    files = [file for file in files if not any(part.endswith(".partial") for part in file.parts)]
    assert len(files) == 20 + 2 * has_faiss()
    for file in files:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), file
    tables = [(tmp_path / file).read_text() for file in ("one/options0.txt", "two/options0.txt", "two/options1.txt")]
    assert tables[0] == tables[1] == tables[2]
