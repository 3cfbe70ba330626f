"""A study of adapted VLMs resumes after being killed while mining bags, exporting and scoring."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from launching import ROOT, run_program

import clipit
from clipit.output_files.artifacts import file_sha256

pytestmark = pytest.mark.slow

# Exits without clean-up before the n-th file (from 0) whose path contains a text is renamed, once another file exists.
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
    """Return hashes of the files that training leaves: weights, mined bags and the merged model."""
    paths = (path for kind in ("checkpoints", "mined", "vlm") for path in (study / "text-seed0" / kind).rglob("*"))
    return {str(path.relative_to(study)): file_sha256(path) for path in paths if path.suffix == ".safetensors"}


def test_a_study_killed_while_mining_exporting_and_scoring_gives_the_same_results(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    config = write_config(KEYS)
    study = tmp_path / "out" / "adapt" / "small"
    folder = study / "text-seed0"
    for text, first, number in (
        ("/step-00000003/", "/", 1),  # second file of the embeddings after step 3
        ("/training.json", folder / "vlm", 0),
        ("/out/", folder / "training.json", 1),  # second file written while scoring the adapted VLM
    ):
        command = [ROOT / "scripts" / "adapt_vlm.py", f"--config={config}"]
        result = run_program(script, text, str(first), str(number), *command)
        assert result.returncode == 9, result.stderr
        mined, exported, scored = (
            (folder / name).exists() for name in ("mined/step-00000003.safetensors", "vlm", "training.json")
        )
        assert [mined, exported, scored] == [number == 0 or scored, text != "/step-00000003/", text == "/out/"]
        assert not (study / "adapt.json").exists()
    resumed = clipit.adapt_vlm(config)
    assert resumed.folder == study
    uninterrupted = clipit.adapt_vlm(write_config(KEYS, tmp_path / "straight"))
    assert files_of(resumed.folder) == files_of(uninterrupted.folder) and len(files_of(study)) >= 3
    columns = ["task", "arm", "seed", "metric", "value"]
    pd.testing.assert_frame_equal(resumed.rows[columns], uninterrupted.rows[columns])
    leftovers = [
        path.name for path in (tmp_path / "out").rglob("*") if path.name.endswith((".tmp", ".partial", ".old"))
    ]
    assert not leftovers and not (folder / "mined" / "step-00000003").exists()
    assert json.loads((folder / "training.json").read_text())["steps"] == 5
