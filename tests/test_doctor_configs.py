"""The doctor and the shipped configurations."""

from pathlib import Path

from clipit.doctor.configs import SHIPPED, command_of, missing_keys, shipped_configs, survey
from clipit.doctor.hub import Hub


def test_every_shipped_configuration_is_valid_and_spoken_of() -> None:
    files = shipped_configs()
    assert {"demo.yaml", "own_table.yaml"} <= {path.name for path in files}
    for path in files:
        section = survey(path, Hub(ask=lambda _: "offline"))
        assert section.findings and all(finding.status != "FAIL" for finding in section.findings), section


def test_keys_that_are_the_users_to_give() -> None:
    path = SHIPPED / "own_table.yaml"
    section = survey(path, Hub())
    (finding,) = section.findings
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
