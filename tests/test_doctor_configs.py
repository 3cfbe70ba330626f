"""The doctor and the shipped configurations."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clipit.config.file import ConfigFile
from clipit.config.run import LabelsConfig, RunConfig, TilesConfig
from clipit.config.shipped import run_configs, shipped_folder
from clipit.doctor.check_results import Check, merge_checks
from clipit.doctor.configs import (
    check_config,
    check_shipped_config,
    command_of,
    head_entry,
    missing_keys,
    read_incomplete,
)
from clipit.doctor.data_checks import check_tiles
from clipit.doctor.diagnose import diagnose
from clipit.doctor.memory_check import check_memory_of_runs
from clipit.doctor.model_checks import Access
from clipit.errors import ConfigError


def offline(name: str) -> Access:
    return "offline"


def silent(name: str) -> Access:
    raise AssertionError(f"the Hub was asked about {name}")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Check]]:
    """Checks of every shipped configuration, outside of the checkout and without network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        return {path.name: check_shipped_config(path, offline) for path in run_configs(shipped_folder())}


def test_no_shipped_configuration_fails(shipped: dict[str, list[Check]]) -> None:
    assert {"demo.yaml", "own_table.yaml"} <= shipped.keys()
    for checks in shipped.values():
        assert checks and all(check.status != "FAIL" for check in checks), checks


def test_each_problem_is_listed_once_with_its_files(shipped: dict[str, list[Check]]) -> None:
    checks = merge_checks(shipped)
    keys = [(check.subject, check.message.partition(" [")[0], check.fix) for check in checks]
    assert len(keys) == len(set(keys))
    (bach,) = [check for check in checks if check.subject == "tiles" and "bach" in check.message]
    assert "bach.yaml" in bach.message and "published_table.yaml" in bach.message


def test_keys_that_are_the_users_to_give() -> None:
    (check,) = check_shipped_config(shipped_folder() / "own_table.yaml", silent)
    assert check.status == "WARN" and "--tiles.path=... --reports.path=..." in check.fix
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
    files = run_configs(tmp_path)
    assert [path.name for path in files] == ["broken.yaml", "wrong.yaml"]
    broken, wrong = (check_shipped_config(path, silent)[0] for path in files)
    assert (broken.status, wrong.status) == ("FAIL", "FAIL")
    assert "tiles.colour" in wrong.message and wrong.fix


def test_what_the_head_of_a_configuration_needs(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# T\n#\n# command   do it\n# needs     a GPU; memory:\n#           much\n# models    x\nname: a\n")
    assert head_entry(path, "needs") == "a GPU; memory: much"
    assert head_entry(path, "models") == "x" and head_entry(path, "data") == ""
    for path in run_configs(shipped_folder()):
        assert head_entry(path, "needs"), path


def test_every_model_and_data_set_of_the_published_table(shipped: dict[str, list[Check]]) -> None:
    checks = shipped["published_table.yaml"]
    messages = [check.message for check in checks]
    assert sum("kaiko" in line for line in messages) == 5 and sum("uni " in line for line in messages) == 1
    assert sum(check.subject == "tiles" for check in checks) == 3
    fixes = " ".join(check.fix for check in checks)
    for name in ("pcam", "bach", "nct_crc"):
        assert f"clipit download {name} --to data/{name}" in fixes


def test_worlds_that_the_command_of_a_configuration_writes(shipped: dict[str, list[Check]]) -> None:
    for name in ("synthetic.yaml", "demo.yaml"):
        (check,) = shipped[name]
        assert check.status == "PASS"


def test_a_configuration_with_keys_of_its_user(configure: Callable[..., RunConfig]) -> None:
    path, own = shipped_folder() / "own_table.yaml", configure()
    config, missing = read_incomplete(path, [])
    last = check_config(config, missing, path, silent)[-1]
    assert (last.status, last.subject) == ("WARN", "keys") and "--tiles.path=... --reports.path=..." in last.fix
    keys = [f"--tiles.path={own.tiles.path}", f"--reports.path={own.reports.path if own.reports else ''}"]
    config, missing = read_incomplete(path, [*keys, "--output=elsewhere"])
    assert config.run.output == Path("elsewhere") and not missing
    assert {check.status for check in check_config(config, missing, path, silent)} == {"PASS"}
    assert read_incomplete(shipped_folder() / "own_comparison.yaml", keys[:1])[1] == ["reports.path"]


def test_tiles_without_groups_are_named_with_the_key_to_set(tmp_path: Path) -> None:
    rows = [f"{number}.png,{'ab'[number % 2]},train,case {number // 2}" for number in range(12)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split,patient_id", *rows]) + "\n")
    for number in range(12):
        (tmp_path / f"{number}.png").touch()
    config = TilesConfig(source="table", path=str(tmp_path / "t.csv"))
    passed, warning = check_tiles("tiles", config)
    assert (passed.status, warning.status) == ("PASS", "WARN") and "has a group" in warning.message
    assert warning.fix.endswith("set --tiles.columns.group=patient_id")
    grouped = config.model_copy(update={"columns": {"group": "patient_id"}})
    assert [check.status for check in check_tiles("tiles", grouped)] == ["PASS"]


def test_wrong_tiles_are_found_although_reports_are_not_set() -> None:
    path = shipped_folder() / "own_table.yaml"
    config, missing = read_incomplete(path, ["--tiles.path=/nowhere/tiles.csv"])
    failed = [check for check in check_config(config, missing, path, silent) if check.status != "PASS"]
    assert [(check.subject, check.status) for check in failed] == [("tiles", "FAIL"), ("keys", "WARN")]
    assert "/nowhere/tiles.csv" in failed[0].message and failed[1].message == "Required keys are not set: reports.path."


def test_findings_of_several_files_are_listed_once() -> None:
    both, one = Check("FAIL", "tiles", "No tiles."), Check("WARN", "GPU", "No GPU.")
    assert merge_checks({"a.yaml": [both, one], "b.yaml": [both]}) == [
        both, Check("WARN", "GPU", "No GPU. [a.yaml]"),
    ]  # fmt: skip


def test_by_default_the_configurations_in_the_folder_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (check,) = diagnose()[0].checks
    assert check.status == "PASS" and "clipit init own_table" in check.message
    text = (shipped_folder() / "own_table.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "wrong.yaml").write_text("tiles: {source: table, path: a, colour: red}\n")
    groups = diagnose()
    assert {check.status for check in groups[-1].checks} == {"PASS"}, "the bundled models need no Hub and no token"
    checks = groups[0].checks
    assert checks[0].message == "mine.yaml, wrong.yaml"
    assert next(check.message for check in checks if check.subject == "keys").endswith("[mine.yaml]")
    assert any("tiles.colour" in check.message and "[wrong.yaml]" in check.message for check in checks)


@pytest.mark.parametrize("name", ["sweeps/lora_rank.yaml", "accelerate/two_cpu_processes.yaml"])
def test_files_that_configure_no_run_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not a run"):
        diagnose(shipped_folder() / name)


def test_the_memory_of_every_arm_is_checked_and_named_where_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimated(config: RunConfig, needs: str = "") -> list[Check]:
        steps = config.training.tiles_per_step
        return [Check("PASS" if steps < 1000 else "FAIL", "memory", f"{steps} tiles")]

    monkeypatch.setattr("clipit.doctor.memory_check.check_memory", estimated)
    arms = {
        "other": {"base": "image_only", "training.weight_decay": 0.1},
        "big": {"base": "image_only", "training.tiles_per_step": 4096},
    }
    tiles = {"source": "table", "path": "t.csv"}
    values = {"name": "a", "tiles": tiles, "training": {"tiles_per_step": 64}, "arms": arms}
    alone = ConfigFile.model_validate(values)
    assert check_memory_of_runs(alone) == [Check("PASS", "memory", "64 tiles")]
    compared = ConfigFile.model_validate(values | {"comparison": {"arms": ["image_only", "other", "big"]}})
    assert check_memory_of_runs(compared) == [
        Check("PASS", "memory, image_only, other", "64 tiles"), Check("FAIL", "memory, big", "4096 tiles"),
    ]  # fmt: skip
    same = ConfigFile.model_validate(values | {"comparison": {"arms": ["image_only", "other"]}})
    assert check_memory_of_runs(same) == [Check("PASS", "memory", "64 tiles")]


def test_a_class_without_training_labels_is_a_warning(tmp_path: Path) -> None:
    lines = ["path,label,split,group"]
    for place in range(8):
        split = "train" if place < 4 else "validation" if place < 6 else "test"
        (tmp_path / f"{place}.png").write_bytes(b"not read")
        lines.append(f"{place}.png,{'mucin' if place == 7 else 'ab'[place % 2]},{split},p{place}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config = TilesConfig(source="table", path=str(tmp_path / "t.csv"))
    passed, warning = check_tiles("tiles", config)
    assert (passed.status, warning.status) == ("PASS", "WARN")
    assert warning.message.startswith("No training tile is labelled mucin") and "tiles.class_map" in warning.fix
    none = config.model_copy(update={"labels": LabelsConfig(kind="none")})
    assert [check.status for check in check_tiles("tiles", none)] == ["PASS"]
