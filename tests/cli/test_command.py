"""Tests of the `clipit` command: subcommands, shipped configurations, completion and the scripts that mirror it."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipit.cli.commands import COMMANDS, OWN_OPTIONS, READS_KEYS, SUBCOMMANDS, command_names
from clipit.cli.completion import completion_script
from clipit.cli.init import OWN_DATA
from clipit.cli.main import main, usage
from clipit.config.command_line import read_file_command
from clipit.config.computing_options import OptionParser
from clipit.config.file import SECTIONS
from clipit.config.load import all_keys
from clipit.config.paths import run_path
from clipit.config.shipped import config_file, shipped_folder, shipped_names
from clipit.errors import ConfigError
from clipit.tiles.datasets import DATASETS

ROOT = Path(__file__).parents[2]
RENAMED = {"adapt": "adapt_vlm", "index": "build_text_index", "world": "make_world"}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["clipit", *arguments])
    main()


@pytest.mark.parametrize(
    "arguments",
    [
        ("world", "--output=a", "--output", "b"),
        ("predict", "run", "tiles", "--out=a.csv", "--out=b.csv"),
        ("slides", "tile", "slide.svs", "--out=a", "--out=b"),
        ("slides", "compare", "slides.csv", "--out=a", "--runs", "a", "--out=b"),
        ("download", "pcam", "--to=a", "--to=b"),
        ("init", "pcam", "--to=a", "--to=b"),
        ("export", "run", "--out=a.onnx", "--out=b.onnx"),
        ("sweep", "sweeps/lora_rank", "--count=1", "--count=2"),
        ("sweep", "sweeps/lora_rank", "--seed=1", "--seed=2"),
        ("train", "--config=pcam", "--output=a", "--output=b"),
    ],
)
def test_duplicate_option_raises_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments)
    assert "options given more than once: --" in capsys.readouterr().err


def test_many_files_are_parsed_in_linear_time() -> None:
    parser = OptionParser()
    parser.add_argument("images", nargs="+")
    start = time.monotonic()
    parser.parse_args([f"tiles/of/a/slide/{number}.png" for number in range(40_000)])
    assert time.monotonic() - start < 3


def test_each_command_has_a_module_and_a_script() -> None:
    modules = {path.stem for path in (ROOT / "clipit/cli").glob("*.py")} - {"__init__", "main", "commands"}
    assert {name.replace("-", "_") for name in command_names()} == modules
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} == {RENAMED.get(name, name) for name in modules}
    for name in modules:
        text = (ROOT / f"scripts/{RENAMED.get(name, name)}.py").read_text(encoding="utf-8")
        assert f"from clipit.cli.{name} import main" in text and len(ast.parse(text).body) == 3


def test_help_lists_all_commands_without_importing_torch() -> None:
    code = "import sys; sys.argv = ['clipit']; import clipit.cli.main as m; m.main(); assert 'torch' not in sys.modules"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for title, commands in COMMANDS.items():
        assert f"{title}:" in text
        assert all(f"  {name} " in text for name in commands)
    assert text.strip() == usage() and max(map(len, text.splitlines())) <= 110


def test_help_of_commands_does_not_import_torch() -> None:
    code = """
import contextlib, io, sys
from clipit.cli.commands import command_names
from clipit.cli.main import main
for name in command_names():
    sys.argv = ["clipit", name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    if "torch" in sys.modules:
        sys.exit(f"clipit {name} --help imports torch")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_doctor_reports_a_broken_torch_import() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['clipit', 'doctor']"
    code += "; import clipit.cli.main as m; m.main()"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    assert (
        "FAIL  torch  torch and torchvision cannot be imported" in completed.stdout
        and "pip install torch" in completed.stdout
    )


def test_export_help_shows_the_actual_tolerance(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from clipit.models.interchange import TOLERANCE

    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "export", "--help")
    assert float(re.search(r"\(default: ([\d.]+)\)\s", capsys.readouterr().out)[1]) == TOLERANCE


def test_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run(monkeypatch, "--version")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{capsys.readouterr().out.split()[1]}"' in project


def test_unknown_command_suggests_the_closest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "check_leak")
    assert "did you mean check-leaks?" in capsys.readouterr().err


@pytest.mark.parametrize("name", command_names())
def test_help_of_each_command_shows_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, name, "--help")
    usage_of = {"train": "train --config FILE"}.get(name, name)
    assert capsys.readouterr().out.startswith(f"usage: clipit {usage_of}")


def test_init_lists_and_writes_configurations_without_overwriting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    run(monkeypatch, "init")
    listing = capsys.readouterr().out
    entries = [line.split()[0] for line in listing.splitlines() if re.match(r"  \S", line)]
    assert sorted(entries) == sorted(shipped_names()) and entries[:5] == [*OWN_DATA]
    assert max(map(len, listing.splitlines())) <= 120 and not re.search(r"\.$", listing, re.M)
    run(monkeypatch, "init", "own_table")
    text = capsys.readouterr().out
    assert text == (ROOT / "configs/own_table.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    run(monkeypatch, "init", "own_table", "--to", str(path))
    assert path.read_text(encoding="utf-8") == text
    for arguments, message in ((("own_table", "--to", str(path)), "the file already exists"), (("mine",), "own_table")):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, "init", *arguments)
        assert message in capsys.readouterr().err


def test_download_lists_the_data_sets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run(monkeypatch, "download")
    listing = capsys.readouterr().out
    assert all(re.search(rf"^\| {name} +\| ", listing, re.M) for name in DATASETS)
    assert re.search(r"^\| pcam .*\| CC0 1.0 .*\| yes +\|$", listing, re.M) and "by hand" in listing
    run(monkeypatch, "download", "list")
    assert capsys.readouterr().out == listing
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "download", "nothing")
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "download", "pcam")
    assert "required: --to" in capsys.readouterr().err


def test_config_takes_a_file_or_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file("demo") == shipped_folder() / "demo.yaml"
    assert config_file("sweeps/lora_rank") == shipped_folder() / "sweeps/lora_rank.yaml"
    assert config_file("demo.yaml") == Path("demo.yaml") and config_file("../demo") == Path("../demo")
    Path("demo").write_text("name: mine\ntiles: {source: table, path: a.csv}\n")
    assert config_file("demo") == Path("demo")
    assert read_file_command("", (), ["--config", "demo"])[0].run.name == "mine"
    Path("demo").unlink()
    Path("demo").mkdir()  # a folder does not hide the shipped file
    assert config_file("demo") == shipped_folder() / "demo.yaml" and config_file("demo/") == Path("demo")
    assert read_file_command("", (), [], default_config="demo")[0].run.name == "demo"
    with pytest.raises(ConfigError, match="no such"):
        read_file_command("", (), ["--config", "nothing"])


def test_classifier_folder_resolves_to_its_run(tmp_path: Path) -> None:
    run = tmp_path / "image_only-seed0"
    (run / "classifier").mkdir(parents=True)
    assert run_path(str(run / "classifier")) == run / "classifier", "not a run's classifier: returned unchanged"
    (run / "config.yaml").touch()
    (run / "classifier" / "clipit.json").touch()
    assert run_path(str(run / "classifier")) == run_path(f"{run}/classifier/") == run_path(str(run)) == run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_covers_commands_options_and_keys(shell: str) -> None:
    script = completion_script(shell)
    assert all(re.search(rf"\b{name}\b", script) for name in command_names())
    assert all(word in script for word in ("lora.rank", "comparison.seeds", "own_table", "fish"))
    assert ("-l accept-licence" if shell == "fish" else "--accept-licence") in script


def test_quotes_in_the_fish_completion_are_balanced() -> None:
    lines = completion_script("fish").splitlines()[1:]
    assert [line for line in lines if line.replace(r"\'", "").count("'") % 2] == []
    assert any(r"wandb\'s format" in line for line in lines)


COMPLETED = {
    ("tra",): {"train"},
    ("predict", "--ou"): {"--out"},
    ("slides", "ma"): {"map"},
    ("slides", "map", "--snip"): {"--snippets"},
    ("push", "--pri"): {"--private"},
    ("train", "--lora.ra"): {"--lora.rank="},
    ("predict", "--lora.ra"): set(),
    ("train", "--comparison.se"): set(),
    ("compare", "--comparison.se"): {"--comparison.seeds=", "--comparison.searched="},
    ("train", "--config", "own_t"): {"own_table"},
    ("train", "--config", "=", "own_t"): {"own_table"},
    ("init", "own_t"): {"own_table"},
    ("train", "--tiles.path", "=", "til"): set(),
}
"""Words on a bash command line, and the expected completions of the last one; empty if bash completes file names."""


def test_bash_completes_commands_options_keys_and_configurations() -> None:
    lines = [
        f'COMP_WORDS=(clipit {" ".join(words)}); COMP_CWORD={len(words)}; _clipit; echo "${{COMPREPLY[@]}}"'
        for words in COMPLETED
    ]
    script = "\n".join([completion_script("bash"), *lines])
    completed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    completions = [{*line.split()} for line in completed.stdout.splitlines()]
    assert dict(zip(COMPLETED, completions, strict=True)) == COMPLETED


@pytest.mark.parametrize(
    "name", [f"{name} {s}".strip() for name in command_names() for s in SUBCOMMANDS.get(name, ("",))]
)
def test_completion_offers_the_options_in_the_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, *name.split(), "--help")
    listed = {*re.findall(r"(?m)^ {1,8}(?:-\w, )?--([\w.-]*\w)", capsys.readouterr().out)}
    keys = {*all_keys()}
    read = READS_KEYS.get(name, ())
    own_options = {option.removeprefix("--") for option in OWN_OPTIONS.get(name, ())} | (
        {"config", "help-keys"} if name in READS_KEYS else set()
    )
    parsed = "lora.rank" in listed  # a few commands accept configuration keys without listing them
    assert listed - keys == (own_options | {"help"}) - keys
    assert {key.partition(".")[0] for key in listed & keys} & {*SECTIONS} == ({*read} if parsed else set())
    assert name in READS_KEYS or not parsed


@pytest.mark.parametrize("name", sorted(READS_KEYS))
def test_help_keys_lists_the_keys_of_every_command_that_reads_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, *name.split(), "--help-keys")
    output = capsys.readouterr().out
    assert output.startswith(f"usage: clipit {name} ") and "--lora.alpha VALUE" in output
    assert "--help-keys" in completion_script("bash").partition(f'"{name}") words=')[2].partition("\n")[0]


def test_interrupt_during_import_exits_cleanly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.import_module", interrupt)
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, "train")
    assert raised.value.code == 130 and capsys.readouterr().err.startswith("interrupted")
