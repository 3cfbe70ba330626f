"""Tests of the doctor on the shipped configurations and on configurations in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipit.config.file import ConfigFile
from clipit.config.run import LabelsConfig, RunConfig, TilesConfig
from clipit.config.shipped import run_configs, shipped_folder
from clipit.config.vlm_training import AdaptConfig
from clipit.doctor import model_checks
from clipit.doctor.check_results import Check, merge_checks
from clipit.doctor.configs import check_adaptation, check_config, missing_keys, read_incomplete
from clipit.doctor.data_checks import check_tiles
from clipit.doctor.diagnose import diagnose
from clipit.errors import ConfigError, ModelError


def offline(name: str, hub_id: str, hint: str) -> None:
    raise ModelError(f"model {name} is not on this machine", where=hub_id, fix=hint)


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(name: str, *_: str) -> None:
        raise AssertionError(f"unexpected Hub request for {name}")

    monkeypatch.setattr(model_checks, "ask_hub", unexpected)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Check]]:
    """Checks of each shipped configuration, run outside the checkout and without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        patch.setattr(model_checks, "ask_hub", offline)
        patch.setattr("clipit.doctor.configs.check_memory", lambda configs: [])
        return {path.name: check_config(*read_incomplete(path, []), path) for path in run_configs(shipped_folder())}


def test_shipped_configurations_lack_only_data_models_and_packages(shipped: dict[str, list[Check]]) -> None:
    assert {"demo.yaml", "own_table.yaml"} <= shipped.keys()
    for checks in shipped.values():
        failed = {check.subject for check in checks if check.status == "FAIL"}
        assert checks and failed <= {"vlm", "backbone", "tiles", "reports", "data"}, checks
        assert all(check.fix for check in checks if check.status != "PASS")


def test_each_problem_is_listed_once_with_its_files(shipped: dict[str, list[Check]]) -> None:
    checks = merge_checks(shipped)
    keys = [(check.subject, check.message.partition(" [")[0], check.fix) for check in checks]
    assert len(keys) == len(set(keys))
    (bach,) = [check for check in checks if check.subject == "tiles" and "bach" in check.message]
    assert "bach.yaml" in bach.message and "published_table.yaml" in bach.message


def test_required_keys_that_are_not_set_are_a_warning() -> None:
    path = shipped_folder() / "own_table.yaml"
    (check,) = [check for check in check_config(*read_incomplete(path, []), path) if check.status != "PASS"]
    assert check.status == "WARN" and "--tiles.path=... --reports.path=..." in check.fix
    assert missing_keys({"tiles": {"source": "table"}}) == ["tiles.path"]


def test_folder_with_a_sweep_and_broken_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text("method: grid\nparameters: {}\n")
    (tmp_path / "broken.yaml").write_text("tiles: [\n")
    (tmp_path / "wrong.yaml").write_text("tiles: {source: table, path: a, colour: red}\n")
    assert [path.name for path in run_configs(tmp_path)] == ["broken.yaml", "wrong.yaml"]
    names, broken, wrong = diagnose()["Configurations in this folder"]
    assert names.message == "broken.yaml, wrong.yaml" and (broken.status, wrong.status) == ("FAIL", "FAIL")
    assert "[broken.yaml]" in broken.message and "tiles.colour" in wrong.message and wrong.fix


def test_published_table_checks_each_model_and_data_set(shipped: dict[str, list[Check]]) -> None:
    checks = shipped["published_table.yaml"]
    messages = [check.message for check in checks]
    assert sum("kaiko" in line for line in messages) == 5 and sum("uni " in line for line in messages) == 1
    assert sum(check.subject == "tiles" for check in checks) == 3
    fixes = " ".join(check.fix for check in checks)
    for name in ("pcam", "bach", "nct_crc"):
        assert f"clipit download {name} --to data/{name}" in fixes


def test_keys_from_the_command_line_complete_a_configuration(configure: Callable[..., RunConfig]) -> None:
    path, configured = shipped_folder() / "own_table.yaml", configure()
    config, missing = read_incomplete(path, [])
    (check,) = [check for check in check_config(config, missing, path) if check.subject == "keys"]
    assert check.status == "WARN" and "--tiles.path=... --reports.path=..." in check.fix
    keys = [
        f"--tiles.path={configured.tiles.path}",
        f"--reports.path={configured.reports.path if configured.reports else ''}",
    ]
    config, missing = read_incomplete(path, [*keys, "--output=elsewhere"])
    assert config.run.output == Path("elsewhere") and not missing
    assert {check.status for check in check_config(config, missing, path)} == {"PASS"}
    assert read_incomplete(shipped_folder() / "own_comparison.yaml", keys[:1])[1] == ["reports.path"]


def test_tiles_without_groups_are_a_warning_with_the_key_to_set(tmp_path: Path) -> None:
    rows = [
        f"{number}.png,{'ab'[number % 2]},{'test' if number > 9 else 'train'},case {number // 2}"
        for number in range(12)
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split,patient_id", *rows]) + "\n")
    for number in range(12):
        (tmp_path / f"{number}.png").touch()
    config = TilesConfig(source="table", path=str(tmp_path / "t.csv"))
    passed, warning = check_tiles_section(config)
    assert (passed.status, warning.status) == ("PASS", "WARN") and "no groups" in warning.message
    assert warning.fix.endswith("set --tiles.columns.group=patient_id")
    grouped = config.model_copy(update={"columns": {"group": "patient_id"}})
    assert [check.status for check in check_tiles_section(grouped)] == ["PASS"]


def check_tiles_section(section: TilesConfig) -> list[Check]:
    return check_tiles("tiles", section, RunConfig(name="a", tiles=section))


def test_missing_tiles_are_reported_even_without_reports() -> None:
    path = shipped_folder() / "own_table.yaml"
    config, missing = read_incomplete(path, ["--tiles.path=/nowhere/tiles.csv"])
    failed = [check for check in check_config(config, missing, path) if check.status != "PASS"]
    assert [(check.subject, check.status) for check in failed] == [("tiles", "FAIL"), ("keys", "WARN")]
    assert "/nowhere/tiles.csv" in failed[0].message and failed[1].message == "Required keys are not set: reports.path."


def test_checks_shared_by_several_files_are_listed_once() -> None:
    both, one = Check("FAIL", "tiles", "No tiles."), Check("WARN", "GPU", "No GPU.")
    assert merge_checks({"a.yaml": [both, one], "b.yaml": [both]}) == [
        both, Check("WARN", "GPU", "No GPU. [a.yaml]"),
    ]  # fmt: skip


def test_configurations_in_the_working_directory_are_checked_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (check,) = diagnose()["Configurations in this folder"]
    assert check.status == "PASS" and "clipit init own_table" in check.message
    text = (shipped_folder() / "own_table.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "wrong.yaml").write_text("tiles: {source: table, path: a, colour: red}\n")
    checks = diagnose()["Configurations in this folder"]
    assert checks[0].message == "mine.yaml, wrong.yaml"
    assert next(check.message for check in checks if check.subject == "keys").endswith("[mine.yaml]")
    assert any("tiles.colour" in check.message and "[wrong.yaml]" in check.message for check in checks)


@pytest.mark.parametrize("name", ["sweeps/lora_rank.yaml", "accelerate/two_cpu_processes.yaml"])
def test_files_that_do_not_configure_a_run_raise_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="not a run"):
        diagnose(shipped_folder() / name)


def test_memory_is_checked_for_each_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    def estimate(config: RunConfig, free: int) -> Check:
        steps = config.training.tiles_per_step
        return Check("PASS" if steps < 1000 else "FAIL", "memory", f"{steps} tiles")

    monkeypatch.setattr("clipit.doctor.model_checks.check_training_memory", estimate)
    arms = {
        "other": {"base": "image_only", "training.weight_decay": 0.1},
        "big": {"base": "image_only", "training.tiles_per_step": 4096},
    }
    tiles = {"source": "table", "path": "t.csv"}
    values = {"name": "a", "arm": "image_only", "tiles": tiles, "training": {"tiles_per_step": 64}, "arms": arms}

    def memory(**sections: dict[str, Any]) -> list[Check]:
        checks = check_config(ConfigFile.model_validate(values | sections), [], Path("a.yaml"))
        return [check for check in checks if check.subject == "memory"]

    assert memory() == [Check("PASS", "memory", "64 tiles")]
    assert memory(comparison={"arms": ["image_only", "other", "big"]}) == [
        Check("PASS", "memory", "64 tiles [image_only, other]"), Check("FAIL", "memory", "4096 tiles [big]"),
    ]  # fmt: skip
    assert memory(comparison={"arms": ["image_only", "other"]}) == [Check("PASS", "memory", "64 tiles")]


def test_contradictory_keys_are_listed_with_the_other_problems(configure_file: Callable[..., ConfigFile]) -> None:
    file = configure_file({"training.tiles_per_step": 64, "training.accumulation": 100, "prompts": "/no/prompts.yaml"})
    failed = [check for check in check_config(file, [], Path("a.yaml")) if check.status == "FAIL"]
    assert [check.subject for check in failed] == ["keys", "prompts"]
    assert "less than one tile per micro-batch" in failed[0].message


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"data": "bags"}, "needs reports, but none are configured"),
        ({"data": "pairs", "pairs": {"path": "/no/pairs.csv"}}, "/no/pairs.csv does not exist"),
        ({"data": "pairs", "pairs": {"path": "*.tar"}, "forgetting": {"b": {"config": "/no/b.yaml"}}}, "/no/b.yaml"),
    ],
)
def test_missing_data_of_an_adaptation_fail(
    configure_file: Callable[..., ConfigFile], keys: dict[str, Any], problem: str
) -> None:
    file = configure_file(reports=None)
    assert check_adaptation(file.run, file.adapt) == []
    (check,) = check_adaptation(file.run, AdaptConfig.model_validate(keys))
    assert check.status == "FAIL" and check.subject == "adaptation" and problem in check.message and check.fix


def test_class_without_training_labels_is_a_warning(tmp_path: Path) -> None:
    lines = ["path,label,split,group"]
    for place in range(8):
        split = "train" if place < 4 else "validation" if place < 6 else "test"
        (tmp_path / f"{place}.png").write_bytes(b"not read")
        lines.append(f"{place}.png,{'mucin' if place == 7 else 'ab'[place % 2]},{split},p{place}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    config = TilesConfig(source="table", path=str(tmp_path / "t.csv"))
    passed, warning = check_tiles_section(config)
    assert (passed.status, warning.status) == ("PASS", "WARN")
    assert "no labelled train tiles of mucin" in warning.message and "tiles.class_map" in warning.fix
    unlabelled = config.model_copy(update={"labels": LabelsConfig(kind="none")})
    assert [check.status for check in check_tiles_section(unlabelled)] == ["PASS"]
