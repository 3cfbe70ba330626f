"""The wheel: built from the sources, installed outside of the checkout, and used there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clipit.cli.commands import command_names

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel, whose files come from a build without network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "clipit/configs/own_table.yaml" in names and "clipit/configs/sweeps/lora_rank.yaml" in names
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


def test_the_installed_command_finds_all_it_needs(installed: Path, tmp_path: Path) -> None:
    where = subprocess.run(
        [sys.executable, "-c", "import clipit; print(clipit.__file__)"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(installed))
    assert {*command_names()} <= {*clipit(installed, tmp_path, "--help").stdout.split()}
    assert (installed / "bin/clipit").is_file()
    shown = clipit(installed, tmp_path, "init", "own_table")
    assert shown.stdout == (ROOT / "configs/own_table.yaml").read_text(encoding="utf-8")
    made = clipit(installed, tmp_path, "world", "--output", "small", "--cases", "--variant", "nothing=1")
    assert made.returncode == 2 and "error: not a variant of the reports" in made.stderr
    assert not (tmp_path / "small").exists(), "refused before the world is written"


@pytest.mark.slow
def test_an_installed_clipit_trains_with_a_shipped_configuration(installed: Path, tmp_path: Path) -> None:
    from PIL import Image

    rows = ["path,label,split"]
    for number in range(24):
        colour = (200, 80 + 100 * (number % 2), 150 + number)
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},{('train', 'validation', 'test')[number // 8]}")
    (tmp_path / "tiles.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "reports.txt").write_text("Invasive ductal carcinoma of the breast.\nNormal colonic mucosa is seen.\n")
    options = [
        "--tiles.path=tiles.csv",
        "--reports.path=reports.txt",
        "--training.steps=4",
        "--evaluation.bootstrap=20",
    ]
    done = clipit(
        installed,
        tmp_path,
        "train",
        "--config",
        "own_table",
        *options,
        "--training.evaluate_every=4",
        "--leaks.pixels=off",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs").is_dir() and "classifier:" in done.stdout
