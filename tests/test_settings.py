"""Configuration: file, command line, one list of all errors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipit.errors import ConfigError
from clipit.settings import all_keys, dotted, merge, nested, read_command, validate, without

MINIMAL: dict[str, Any] = {"tiles": {"source": "folders", "path": "tiles"}}


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(values: Any = MINIMAL) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return f"--config={path}"

    return write


def test_merge_and_nested() -> None:
    assert nested({"lora.rank": 8, "lora.alpha": 2, "seed": 1}) == {"lora": {"rank": 8, "alpha": 2}, "seed": 1}
    assert merge({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}


def test_dotted_and_without() -> None:
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": {}, "f": None}
    assert dotted(tree) == ["a.b", "a.c.d", "e", "f"]
    assert nested(dict.fromkeys(dotted(tree))) == {"a": {"b": None, "c": {"d": None}}, "e": None, "f": None}
    assert without(tree, []) == tree
    assert without(tree, ["a.b", "f", "g"]) == {"a": {"c": {"d": 2}}, "e": {}}
    assert without(tree, ["a.c", "f.x"]) == {"a": {"b": 1}, "e": {}}
    assert without(tree, ["a", "a.b"]) == {"e": {}, "f": None}


def test_all_keys_reach_into_optional_sections() -> None:
    assert {"reports.path", "tiles.labels.kind", "training.augmentation.stain", "seed"} <= set(all_keys())


def test_command_line_comes_last(file: Callable[..., str]) -> None:
    values = {**MINIMAL, "lora": {"rank": 2, "alpha": 3.0}}
    config, _ = read_command(
        "test", [file(values), "--lora.rank=8", "--seed", "3", "--reports.path=r.txt", "--training.patience=2"]
    )
    assert (config.lora.rank, config.lora.alpha, config.seed) == (8, 3.0, 3)
    assert config.reports is not None and config.reports.path == "r.txt"
    assert config.training.patience == 2


def test_the_keys_that_were_given_are_kept(file: Callable[..., str], tmp_path: Path) -> None:
    config, _ = read_command("test", [file(), "--lora.rank=8", "--seed", "3", '--training={"steps": 5}'])
    assert sorted(config.overrides) == ["lora.rank", "seed", "training.steps"]
    assert read_command("test", [file()])[0].overrides == ()
    # A run's config.yaml remembers them; a further command adds its own.
    again, _ = read_command("test", [file(config.model_dump(mode="json")), "--seed=4", "--lora.alpha=2"])
    assert sorted(again.overrides) == ["lora.alpha", "lora.rank", "seed", "training.steps"]
    assert (again.lora.rank, again.seed, again.training.steps) == (8, 4, 5)
    with pytest.raises(ConfigError, match="'overrides'"):
        read_command("test", [file({**MINIMAL, "overrides": "seed"}), "--seed=4"])


def test_an_arm_does_not_undo_the_command_line(file: Callable[..., str]) -> None:
    from clipit.training.arms import resolve_arm

    line = [file({**MINIMAL, "arm": "clip_it_all"}), "--distillation.tiles=labelled"]
    assert resolve_arm(read_command("test", line)[0]).distillation.tiles == "labelled"
    assert resolve_arm(read_command("test", line[:1])[0]).distillation.tiles == "all"


def test_nprobe_is_for_lists(file: Callable[..., str]) -> None:
    keys = [file(), "--pairing.nprobe=4"]
    assert read_command("test", [*keys, "--pairing.index=PCA8,IVF16,Flat"])[0].pairing.nprobe == 4
    for key in ("Flat", "HNSW32"):
        with pytest.raises(ConfigError, match=r"'pairing'.*nprobe belongs to an IVF index"):
            read_command("test", [*keys, f"--pairing.index={key}"])


def test_negative_numbers_lists_and_a_null_section(file: Callable[..., str]) -> None:
    values = {**MINIMAL, "reports": None}
    config, _ = read_command(
        "test", [file(values), "--reports.path=r", "--reports.morphology_margin", "-0.5", '--lora.targets=["mlp"]']
    )
    assert config.reports is not None and config.reports.morphology_margin == -0.5
    assert config.lora.targets == ("mlp",)


def test_all_errors_at_once_with_suggestions(file: Callable[..., str]) -> None:
    values = {**MINIMAL, "lora": {"rnak": 2}, "trainning": {}, "seed": -1}
    with pytest.raises(ConfigError) as error:
        read_command("test", [file(values), "--training.step=5", "--training.learning_rate=fast", "--vlm.nmae", "x"])
    text = str(error.value)
    assert "6 configuration errors" in text
    for part in (
        "unknown key 'lora.rnak' (did you mean 'lora.rank'?)",
        "unknown key 'trainning' (did you mean 'training'?)",
        "unknown key 'training.step' (did you mean 'training.steps'?)",
        "unknown key 'vlm.nmae' (did you mean 'vlm.name'?)",
        "'training.learning_rate'",
        "'seed'",
    ):
        assert part in text


def test_required_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'tiles\.path': Field required"):
        validate({"tiles": {"source": "folders"}}, "here")


def test_a_two_layer_projector_does_not_go_with_the_linear_head() -> None:
    with pytest.raises(ConfigError, match=r"'student'.*late_fusion"):
        validate({**MINIMAL, "student": {"projector_layers": 2}}, "here")
    validate({**MINIMAL, "student": {"projector_layers": 2, "head": "late_fusion"}}, "here")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".."])
def test_names_that_become_folders_are_plain(name: str) -> None:
    with pytest.raises(ConfigError, match="'name'"):
        validate({**MINIMAL, "name": name}, "here")
    with pytest.raises(ConfigError, match="'arms'"):
        validate({**MINIMAL, "arms": {name: {}}}, "here")


@pytest.mark.parametrize(("content", "match"), [("a: [", "YAML"), ("- 1", "mapping"), ("", "mapping")])
def test_files_that_are_no_configuration(file: Callable[..., str], content: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_command("test", [file(content)])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file(?s:.*)nothing\.yaml"):
        read_command("test", [f"--config={tmp_path / 'nothing.yaml'}"])
    with pytest.raises(ConfigError, match="not a readable YAML"):
        read_command("test", [f"--config={tmp_path}"])


def test_options_of_a_script(file: Callable[..., str]) -> None:
    _, options = read_command("test", [file(), "--fast"], {"--fast": {"action": "store_true"}})
    assert options.fast


def test_help_lists_the_keys(file: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read_command("what it does", ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "what it does" in shown and "--lora.rank" in shown and "--config" in shown
