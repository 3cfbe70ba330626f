"""Programs run as subprocesses: two processes, kills by a signal, concurrent programs and failed launches."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from launching import LAUNCHER, ROOT, TWO, run_group, run_program, start
from run_files import losses, predictions

from clipit.comparison.compare import compare
from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested
from clipit.config.run import RunConfig
from clipit.runs.train import train_run
from clipit.stores import embed as embedding
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
WriteConfig = Callable[..., Path]

# Runs several commands in the same two processes, each with its own number of rows per shard, because starting the
# processes takes longer than the commands.
COMMANDS = """
import atexit, json, runpy, sys
from pathlib import Path
# Registered first, hence called last: threads that outlive the process group may abort the program.
atexit.register(lambda: print("threads", [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]))
import clipit.stores.embed, clipit.tiles.resized_tiles, pytest
clipit.tiles.resized_tiles._BLOCK = 8  # small enough that both processes cache resized tiles on disk
sys.path.insert(0, sys.argv[2])
from no_plots import COMPARISON_PLOTS, RUN_PLOTS, leave_out_plots
leave_out_plots(pytest.MonkeyPatch(), RUN_PLOTS | COMPARISON_PLOTS)
for shard, command in json.loads(Path(sys.argv[1]).read_text()):
    clipit.stores.embed.SHARD = shard or clipit.stores.embed.SHARD
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
"""
WHOLE_BATCHES = {
    "training.steps": 20, "training.accumulation": 2, "training.tiles_per_step": 13, "training.learning_rate": 1e-3,
    "training.evaluate_every": 10, "arm": "clip_it_all", "pairing.block": 16, "pairing.k": 2,
}  # fmt: skip
EVERY_TERM = {
    "training.steps": 12, "training.tiles_per_step": 13, "training.learning_rate": 1e-3, "arm": "bags",
    "training.evaluate_every": 6, "bags.learn_temperature": True, "bags.prompts": 2, "pairing.correction": "csls",
    "prompt_bags.weight": 0.5, "soft_labels.source": "zero_shot", "soft_labels.confidence": True,
    "consistency.weight": 0.5,
}  # fmt: skip
COMPARED = {
    "training.steps": 4, "training.learning_rate": 1e-3, "training.evaluate_every": 2, "evaluation.bootstrap": 20,
    "comparison.arms": ["image_only", "clip_it_all"], "comparison.seeds": [1], "comparison.steps": [4],
    "comparison.learning_rates": [1e-3],
}  # fmt: skip
SEVERAL_SHARDS = {"training.steps": 6, "pairing.block": 10, "training.learning_rate": 1e-3}
ARMS = ("clip_it_paper", "word_drop", "image_embedding", "heads_without_text")

# Writes the environment variables that the launcher sets for a process, without importing torch.
VARIABLES = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], os.environ.get("RANK", "0")).write_text(json.dumps(dict(os.environ)))
"""

# Exits without clean-up when the n-th file is about to be renamed to its final name.
EXITING = """
import os, sys
from pathlib import Path
rename, left, script = Path.replace, int(sys.argv.pop(1)), sys.argv.pop(1)
def replace(self, target):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    return rename(self, target)
Path.replace = replace
import clipit.stores.embed
clipit.stores.embed.SHARD = 20
import runpy
runpy.run_path(script, run_name="__main__")
"""


def files_of(output: Path, kind: str) -> dict[str, str]:
    (folder,) = (path for path in (output / "artefacts").glob(f"{kind}-*") if path.is_dir())
    files: dict[str, str] = json.loads((folder / "manifest.json").read_text())["files"]
    return files


def train_in_this_process(make: Callable[..., RunConfig], output: Path, changes: dict[str, Any]) -> Path:
    return train_run(make({**changes, "output": str(output)}))


def same_predictions(one: Path, other: Path) -> bool:
    a, b = predictions(one), predictions(other)
    same = a.column_names == b.column_names and a.column("id").equals(b.column("id"))
    columns = [name for name in a.column_names if name.startswith("p_")]
    return same and all(np.allclose(a[name], b[name], atol=1e-4) for name in columns)


def launched_variables(options: Sequence[str], folder: Path, **more: str) -> list[dict[str, str]]:
    """Environment variables of each process started by `accelerate launch` with the given options."""
    script, variables_folder = folder / "variables.py", folder / "variables"
    script.write_text(VARIABLES)
    variables_folder.mkdir()
    launched = run_program(*LAUNCHER, *options, script, variables_folder, **more)
    assert launched.returncode == 0, launched.stderr
    return [json.loads(path.read_text()) for path in sorted(variables_folder.iterdir())]


@pytest.fixture(scope="module")
def two_processes(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folders of the commands run by two processes: equal, terms, compared and shards."""
    folder = tmp_path_factory.mktemp("two")

    def command(script: str, name: str, changes: dict[str, Any], *options: str) -> list[str]:
        values = merge({**world, "output": str(folder / name)}, nested(changes))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        return [str(ROOT / "scripts" / script), f"--config={folder / name}.yaml", *options]

    commands = [
        (None, command("train.py", "equal", WHOLE_BATCHES | {"training.cache_tiles": "disk"})),
        (None, command("train.py", "terms", EVERY_TERM)),
        (None, command("compare.py", "compared", COMPARED)),
        # Small shards, so that both processes write some.
        *((20, command("train.py", "shards", SEVERAL_SHARDS, f"--arm={arm}")) for arm in ARMS),
    ]
    (folder / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    (folder / "commands.py").write_text(COMMANDS, encoding="utf-8")
    variables = launched_variables(TWO, folder, ACCELERATE_USE_CPU="1")
    done = run_group([folder / "commands.py", folder / "commands.json", ROOT / "tests"], variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("classifier:") == 2 + len(ARMS), "only the main process prints"
    assert done.stdout.count("comparison.html") == 1
    assert done.stdout.count("threads [") == 2 and "gloo" not in done.stdout
    return folder


def test_two_processes_match_one(two_processes: Path, configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    two = two_processes / "equal" / "runs" / "small" / "clip_it_all-seed0"
    one = train_in_this_process(configure, tmp_path / "one", WHOLE_BATCHES)
    assert len(losses(one)) == 20
    assert np.allclose(losses(two), losses(one), rtol=1e-4)
    assert same_predictions(two, one)
    for kind in ("snippets", "text_store", "tile_store", "index", "pairs"):
        assert files_of(two_processes / "equal", kind) == files_of(tmp_path / "one", kind)
    cached = [
        json.loads(path.read_text()) for path in two_processes.glob("equal/artefacts/resized_tiles-*/manifest.json")
    ]
    assert len(cached) == 2, "training and validation tiles were cached on disk"


def test_two_processes_match_one_with_several_shards_and_arms(
    two_processes: Path, configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = two_processes / "shards"
    monkeypatch.setattr(embedding, "SHARD", 20)
    for arm in ARMS:
        one = train_in_this_process(configure, tmp_path / "one", {**SEVERAL_SHARDS, "arm": arm})
        two = output / "runs" / "small" / one.name
        assert np.allclose(losses(two), losses(one), rtol=1e-4), arm
        assert same_predictions(two, one), arm
    for kind in ("tile_store", "pairs"):
        assert files_of(output, kind) == files_of(tmp_path / "one", kind)
    artefacts = [output / "artefacts", tmp_path / "one" / "artefacts"]
    stores = [sorted(path.name for path in folder.glob("text_store-*[0-9a-f]")) for folder in artefacts]
    assert len(stores[0]) == 2 and stores[0] == stores[1]
    for name in stores[0]:
        manifests = [json.loads((folder / name / "manifest.json").read_text()) for folder in artefacts]
        assert manifests[0]["files"] == manifests[1]["files"] and len(manifests[0]["files"]) > 20


@pytest.mark.parametrize(("options", "count"), [(("--cpu", "--num_processes", "2"), 1), (TWO, 2)])
def test_fewer_processes_than_requested_is_an_error(
    write_config: WriteConfig, tmp_path: Path, options: tuple[str, ...], count: int
) -> None:
    import torch

    if torch.cuda.is_available() and options is TWO:
        pytest.skip("this launch is valid on a machine with GPUs")
    processes = launched_variables(options, tmp_path)
    assert len(processes) == count
    command = [ROOT / "scripts" / "train.py", f"--config={write_config()}"]
    done = run_program(*command, **processes[0]) if count == 1 else run_group(command, processes)
    assert done.returncode == 2
    assert (
        done.stderr.count("ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu --num_processes 2 -m clipit train")
        == count
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_resume_after_sigkill_during_training(
    write_config: WriteConfig, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    changes = {
        "training.steps": 60,
        "training.checkpoint_every": 5,
        "training.evaluate_every": 7,
        "arm": "clip_it_all",
    }
    config = write_config(changes)
    folder = tmp_path / "out" / "runs" / "small" / "clip_it_all-seed0"
    program = start(ROOT / "scripts" / "train.py", f"--config={config}")
    deadline = time.monotonic() + 90
    while not list((folder / "checkpoints").glob("step-000000[1-9]?")):
        assert program.running() and time.monotonic() < deadline, program.printed("stderr")
        time.sleep(0.02)
    program.kill()
    assert program.wait().returncode == -signal.SIGKILL
    assert not (folder / "classifier").exists()
    steps_before_kill = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 10 <= steps_before_kill < 60
    resumed = train_in_this_process(configure, tmp_path / "out", changes)
    uninterrupted = train_in_this_process(configure, tmp_path / "uninterrupted", changes)
    assert resumed == folder
    assert losses(resumed) == losses(uninterrupted)
    assert predictions(resumed).equals(predictions(uninterrupted))
    outcomes = [json.loads((run / "training.json").read_text()) for run in (resumed, uninterrupted)]
    assert outcomes[0]["chosen_step"] == outcomes[1]["chosen_step"]


def test_resume_after_exit_between_files_of_an_artefact(
    write_config: WriteConfig, configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "exiting.py"
    script.write_text(EXITING)
    artefacts = tmp_path / "out" / "artefacts"
    # First within the tile store (4 shards, 8 files), then within the text store (15 shards).
    no_artefact: set[str] = set()
    for files, finished, unfinished in (
        (5, no_artefact, "tile_store"),
        (20, {"snippets", "tile_store"}, "text_store"),
    ):
        config = write_config({"leaks.pixels": "off"})  # no other files are written
        done = run_program(script, str(files), ROOT / "scripts" / "pair.py", f"--config={config}")
        assert done.returncode == 9, done.stderr
        manifests = {path.parent.name.split("-")[0] for path in artefacts.glob("*/manifest.json")}
        assert finished <= manifests and unfinished not in manifests and "pairs" not in manifests
        assert list(artefacts.glob(f"{unfinished}-*.partial/emb-*.npy"))
    monkeypatch.setattr(embedding, "SHARD", 20)
    resumed, uninterrupted = (
        Workspace(configure(output=str(tmp_path / name))).pairs for name in ("out", "uninterrupted")
    )
    assert resumed.artifact.manifest.files == uninterrupted.artifact.manifest.files
    assert resumed.artifact.folder.parent == artefacts
    for kind in ("text_store", "tile_store"):
        assert files_of(tmp_path / "out", kind) == files_of(tmp_path / "uninterrupted", kind)
    assert not [path.name for path in artefacts.rglob("*") if path.name.endswith((".tmp", ".partial"))]


def test_two_programs_build_the_same_artefacts_once(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config()
    programs = [start(ROOT / "scripts" / "pair.py", f"--config={config}") for _ in range(2)]
    results = [program.wait() for program in programs]
    assert [done.returncode for done in results] == [0, 0], results
    assert sum("reports into snippets" in done.stdout for done in results) == 1  # the program that split them
    assert sum("exact duplicates" in done.stdout for done in results) == 1  # the program that printed the summary
    assert all("72 tiles paired" in done.stdout for done in results)
    folders = [path.name for path in (tmp_path / "out" / "artefacts").iterdir() if path.is_dir()]
    kinds = sorted(name.rsplit("-", 1)[0] for name in folders)
    assert kinds == ["index", "pairs", "snippets", "text_store", "tile_digests", "tile_store"]


def test_two_processes_match_one_with_every_term(
    two_processes: Path, configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    two = two_processes / "terms" / "runs" / "small" / "bags-seed0"
    one = train_in_this_process(configure, tmp_path / "one", EVERY_TERM)
    assert np.allclose(losses(two), losses(one), rtol=1e-4)
    assert same_predictions(two, one)
    first = json.loads((one / "metrics.jsonl").read_text().splitlines()[0])
    assert {"bags", "prompt_bags", "soft_labels", "consistency", "distillation"} <= set(first)


def test_two_processes_give_the_same_comparison_as_one(
    two_processes: Path, configure_file: Callable[..., ConfigFile], tmp_path: Path
) -> None:
    file = configure_file({**COMPARED, "output": str(tmp_path / "one")})
    single_folder = compare(file.run, file.comparison)
    parallel_folder = two_processes / "compared" / "comparisons" / single_folder.name
    two, one = (pq.read_table(folder / "comparison.parquet").to_pylist() for folder in (parallel_folder, single_folder))
    keys = ("data_set", "arm", "test_set", "seed")
    assert [[row[key] for key in keys] for row in two] == [[row[key] for key in keys] for row in one]
    assert np.allclose([row["score"] for row in two], [row["score"] for row in one], atol=1e-4)
    assert (parallel_folder / "comparison.html").is_file()
