"""The doctor and the shipped configurations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipit.config.run import RunConfig
from clipit.doctor.configs import SHIPPED, missing_keys, shipped_configs, survey
from clipit.doctor.files import file_section
from clipit.doctor.heads import command_of, head_entry
from clipit.doctor.hub import Hub


def test_every_shipped_configuration_is_valid_and_spoken_of() -> None:
    files = shipped_configs()
    assert {"demo.yaml", "own_table.yaml"} <= {path.name for path in files}
    for path in files:
        section = survey(path, Hub(ask=lambda _: "offline"))
        assert section.findings and all(finding.status != "FAIL" for finding in section.findings), section


def test_keys_that_are_the_users_to_give() -> None:
    path = SHIPPED / "own_table.yaml"
    (finding,) = survey(path, Hub()).findings
    assert finding.status == "WARN" and "--tiles.path=... --reports.path=..." in finding.found
    assert missing_keys({"tiles": {"source": "table"}}) == ["tiles.path"]


def test_command_at_the_head_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# Title\n#\n# command   first \\\n#               --second\n# needs     much\nname: a\n")
    assert command_of(path) == "first --second"
    path.write_text("name: a\n")
    assert command_of(path) == ""


def test_sweeps_and_broken_files_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("method: grid\nparameters: {}\n")
    (tmp_path / "broken.yaml").write_text("tiles: [\n")
    (tmp_path / "wrong.yaml").write_text("tiles: {source: table, path: a, colour: red}\n")
    files = shipped_configs(tmp_path)
    assert [path.name for path in files] == ["broken.yaml", "wrong.yaml"]
    broken, wrong = (survey(path, Hub()).findings[0] for path in files)
    assert (broken.status, wrong.status) == ("FAIL", "FAIL")
    assert "tiles.colour" in wrong.found and wrong.fix


def test_what_the_head_of_a_configuration_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# T\n#\n# command   do it\n# needs     a GPU; memory:\n#           much\n# models    x\nname: a\n")
    assert head_entry(path, "needs") == "a GPU; memory: much"
    assert head_entry(path, "models") == "x" and head_entry(path, "data") == ""
    for path in shipped_configs():
        assert head_entry(path, "needs"), path


def test_the_shipped_table_is_looked_at_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    findings = survey(SHIPPED / "published_table.yaml", Hub(ask=lambda _: "offline")).findings
    found = [finding.found for finding in findings]
    assert sum("kaiko" in line for line in found) == 5 and sum("uni " in line for line in found) == 1
    assert sum(finding.what == "tiles" for finding in findings) == 3
    fixes = " ".join(finding.fix for finding in findings)
    for name in ("pcam", "bach", "nct_crc"):
        assert f"scripts/download.py {name} --to data/{name}" in fixes


def test_worlds_that_the_command_of_a_configuration_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, command in (("synthetic.yaml", "make comparison"), ("demo.yaml", "scripts/demo.py")):
        (finding,) = survey(SHIPPED / name, Hub(ask=lambda _: "offline")).findings
        assert finding.status == "PASS" and command in finding.found


def test_a_configuration_with_keys_of_its_user(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[..., RunConfig]
) -> None:
    own = configure()
    section, output = file_section(SHIPPED / "own_table.yaml", [], Hub())
    last = section.findings[-1]
    assert (last.status, last.what) == ("FAIL", "keys") and "--tiles.path=... --reports.path=..." in last.found
    keys = [f"--tiles.path={own.tiles.path}", f"--reports.path={own.reports.path if own.reports else ''}"]
    section, output = file_section(SHIPPED / "own_table.yaml", [*keys, "--output=elsewhere"], Hub())
    assert output == Path("elsewhere") and {finding.status for finding in section.findings} == {"PASS"}
    last = file_section(SHIPPED / "own_comparison.yaml", keys[:1], Hub())[0].findings[-1]
    assert last.found == "yours to give: --reports.path=..."


def test_the_shipped_sweep_before_and_after_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(SHIPPED)
    (tmp_path / "scripts").symlink_to(SHIPPED.parent / "scripts")
    monkeypatch.chdir(tmp_path)
    section, _ = file_section(Path("configs/sweeps/lora_rank.yaml"), [], Hub())
    (failed,) = [finding for finding in section.findings if finding.status == "FAIL"]
    assert failed.what == "data" and "make demo" in failed.fix
    assert any("15 trials of lora.rank, seed" in finding.found for finding in section.findings)


def test_a_sweep_whose_files_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {
        "program": "scripts/none.py", "method": "grid", "parameters": {"seed": {"values": [0]}},
        "command": ["${program}", "--trial", "--config=configs/none.yaml", "${args}"],
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    section, _ = file_section(tmp_path / "sweep.yaml", [], Hub())
    assert [(f.status, f.what) for f in section.findings] == [("FAIL", "program"), ("FAIL", "config")]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**values, "method": "bayes"}))
    assert "bayes" in file_section(tmp_path / "sweep.yaml", [], Hub())[0].findings[0].found


@pytest.mark.parametrize("path", sorted((SHIPPED / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_files_of_accelerate(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(SHIPPED.parent)
    section, _ = file_section(path.relative_to(SHIPPED.parent), [], Hub())
    named = [finding for finding in section.findings if finding.what == "command"]
    assert {finding.status for finding in named} == {"PASS"} and "scripts/train.py" in [f.found for f in named]
    monkeypatch.chdir(tmp_path)
    lost = file_section(path, [], Hub())[0].findings
    assert "scripts/train.py is not there" in " ".join(f.found for f in lost if f.status == "FAIL")
