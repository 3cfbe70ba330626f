"""Tests of the wheel, built from the sources and installed outside the checkout."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from clipit.cli.commands import command_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Site folder with the installed wheel, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "clipit/configs/own_table.yaml" in names and "clipit/configs/sweeps/lora_rank.yaml" in names
    assert {path.name for path in (ROOT / "data_cards").glob("*.md")} == {
        name.removeprefix("clipit/data_cards/") for name in names if name.startswith("clipit/data_cards/")
    }
    assert "clipit/py.typed" in names and not [name for name in names if name.startswith(("tests", "scripts"))]
    vendor = "clipit/reporting/vendor/openseadragon"
    assert {f"{vendor}/openseadragon.min.js", f"{vendor}/LICENSE.txt"} <= {*names}
    site = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", str(site), str(wheel)], check=True)
    return site


def clipit(site: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "clipit", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_installed_command_finds_its_files(installed: Path, tmp_path: Path) -> None:
    imported = subprocess.run(
        [sys.executable, "-c", "import clipit; print(clipit.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert imported.stdout.startswith(str(installed))
    assert {*command_names()} <= {*clipit(installed, tmp_path, "--help").stdout.split()}
    assert (installed / "bin/clipit").is_file()
    printed = clipit(installed, tmp_path, "init", "own_table")
    assert printed.stdout == (ROOT / "configs/own_table.yaml").read_text(encoding="utf-8")
    result = clipit(installed, tmp_path, "world", "--output", "small", "--cases", "--variant", "nothing=1")
    assert result.returncode == 2 and "error: invalid variant of the reports" in result.stderr
    assert not (tmp_path / "small").exists(), "the arguments must be validated before anything is written"


RUN_COMMANDS = """
import contextlib, json, sys
from clipit.cli.main import main
for arguments, output in json.loads(sys.argv.pop()):
    sys.argv = arguments
    with contextlib.ExitStack() as stack:
        if output:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(output, "w"))))
        try:
            main()
        except SystemExit as error:
            if error.code:
                raise
"""
"""Program that runs several commands in one process, so that libraries are imported only once."""


def readme_commands() -> list[tuple[list[str], str]]:
    """Commands of the README's first-use section, as arguments and the redirection target ("" for none)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"## First use on your own tiles\n(.*?)\n## ", text, re.DOTALL)[1]
    blocks = "".join(re.findall(r"```\n(.*?)```", section, re.DOTALL)).replace("\\\n", " ")
    (run,) = re.findall(r"^RUN=(\S+)$", blocks, re.MULTILINE)
    lines = [line.replace("$RUN", run) for line in blocks.splitlines() if line.startswith("clipit ")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [(w[: w.index(">")], w[-1]) if ">" in w else (w, "") for w in words]


def write_users_files(folder: Path) -> None:
    """Write the files that the README assumes: tables, zips and a folder of tiles, and a file of reports."""
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "new_tiles").mkdir()
    for name, count in (("tiles", 24), ("second_hospital", 8), ("new_tiles", 3)):
        rows = ["path,label,split"]
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for number in range(count):
                colour = np.array((200, 80 + 100 * (number % 2), 150))
                pixels = (colour + rng.integers(0, 40, (64, 64, 3))).astype(np.uint8)
                file = folder / "new_tiles" / f"{number}.png"
                Image.fromarray(pixels).save(file)
                archive.write(file, file.name)
                rows.append(f"{file.name},{'ab'[number % 2]},{('train', 'validation', 'test')[number // 8]}")
                if name != "new_tiles":
                    file.unlink()
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    reports = "Invasive ductal carcinoma of the breast.\nNormal colonic mucosa is seen.\n"
    (folder / "reports.txt").write_text(reports)


@pytest.mark.slow
def test_first_use_in_the_readme_works_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    write_users_files(tmp_path)
    commands = readme_commands()
    assert [command[1] for command, _ in commands] == ["init", "doctor", "train", "predict", "evaluate", "export"]
    small = ["--training.steps=4", "--training.evaluate_every=4", "--evaluation.bootstrap=20"]
    del commands[1]  # the doctor's exit status depends on the machine
    commands[1][0].extend(small)
    completed = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS, json.dumps(commands)],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    run = tmp_path / "outputs/own_table/runs/own_table/clip_it_all-seed0"
    assert (run / "report.html").is_file() and (run / "classifier/README.md").is_file()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 4
    assert len([*run.glob("external/*/report.html")]) == 1 and (tmp_path / "model.onnx").is_file()
