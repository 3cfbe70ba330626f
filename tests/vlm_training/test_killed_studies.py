"""A study of adapted VLMs that dies without clean-up while it mines bags, exports and scores, and goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from launching import ROOT, run_program

import clipit
from clipit.output_files.artifacts import file_sha256

pytestmark = pytest.mark.slow

# Dies without any clean-up when the n-th file (from 0) whose path contains a text is about to get its final name, once
# another file exists.
DYING = """
import os, runpy, sys
from pathlib import Path
rename, (text, first, left), script = Path.replace, sys.argv[1:4], sys.argv[4]
left = int(left)
def replace(self, target):
    global left
    left -= text in str(target) and Path(first).exists()
    if left < 0:
        os._exit(9)
    return rename(self, target)
Path.replace = replace
sys.argv = sys.argv[4:]
runpy.run_path(script, run_name="__main__")
"""
KEYS = {
    "pairing.k": 2, "adapt.data": "bags", "adapt.steps": 5, "adapt.batch_size": 8, "adapt.micro_batch": 16,
    "adapt.learning_rate": 3e-3, "adapt.checkpoint_every": 2, "adapt.validate_every": 100, "adapt.log_every": 1,
    "adapt.arms": ["text"], "adapt.bags": {"tiles": 1, "snippets": 2, "mine_every": 3}, "probing.at": [1, 5],
    "leaks.pixels": "off",
}  # fmt: skip


def files_of(study: Path) -> dict[str, str]:
    """Hashes of what the training leaves: weights, mined bags, the merged model."""
    found = (path for kind in ("checkpoints", "mined", "vlm") for path in (study / "text-seed0" / kind).rglob("*"))
    return {str(path.relative_to(study)): file_sha256(path) for path in found if path.suffix == ".safetensors"}


def test_a_study_that_dies_while_mining_exporting_and_scoring_ends_as_one_that_does_not(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    config = write_config(KEYS)
    study = tmp_path / "out" / "adapt" / "small"
    folder = study / "text-seed0"
    for text, first, number in (
        ("/step-00000003/", "/", 1),  # the second file of the embeddings with the weights of the third step
        ("/training.json", folder / "vlm", 0),
        ("/out/", folder / "training.json", 1),  # the second file of what the adapted VLM is scored by
    ):
        command = [ROOT / "scripts" / "adapt_vlm.py", f"--config={config}"]
        done = run_program(script, text, str(first), str(number), *command)
        assert done.returncode == 9, done.stderr
        mined, exported, scored = (
            (folder / name).exists() for name in ("mined/step-00000003.safetensors", "vlm", "training.json")
        )
        assert [mined, exported, scored] == [number == 0 or scored, text != "/step-00000003/", text == "/out/"]
        assert not (study / "adapt.json").exists()
    again = clipit.adapt_vlm(config)
    assert again.folder == study
    straight = clipit.adapt_vlm(write_config(KEYS, tmp_path / "straight"))
    assert files_of(again.folder) == files_of(straight.folder) and len(files_of(study)) >= 3
    columns = ["task", "arm", "seed", "metric", "value"]
    pd.testing.assert_frame_equal(again.rows[columns], straight.rows[columns])
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.name.endswith((".tmp", ".partial", ".old"))]
    assert not left and not (folder / "mined" / "step-00000003").exists()
    assert json.loads((folder / "training.json").read_text())["steps"] == 5
