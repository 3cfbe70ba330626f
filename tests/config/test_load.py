"""Tests of reading configurations from files and the command line, and of their error messages."""

import argparse
import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

import clipit
from clipit.api.configuration import load_config
from clipit.cli import predict
from clipit.comparison.plan import plan_comparison
from clipit.config.command_line import read_command, read_file_command
from clipit.config.file import SECTIONS
from clipit.config.load import (
    all_keys,
    dotted,
    merge,
    nested,
    validate,
    validate_file,
    with_current_names,
    without,
)
from clipit.config.paths import argument_path, expand_home, option_name, option_path, option_text
from clipit.errors import ConfigError
from clipit.sweeps.sweep_file import read_sweep
from clipit.training.arms import resolve_arm

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
    assert without({"a": {"b": {"c": 1}}, "e": {}}, ["a.b.c"]) == {
        "e": {}
    }  # an empty section would override other values when merged


def test_all_keys_include_optional_sections() -> None:
    assert {"reports.path", "tiles.labels.kind", "training.augmentation.stain", "seed"} <= set(all_keys())


def test_command_line_overrides_the_file(file: Callable[..., str]) -> None:
    values = {**MINIMAL, "lora": {"rank": 2, "alpha": 3.0}}
    config, _ = read_command(
        "test", [file(values), "--lora.rank=8", "--seed", "3", "--reports.path=r.txt", "--training.patience=2"]
    )
    assert (config.lora.rank, config.lora.alpha, config.seed) == (8, 3.0, 3)
    assert config.reports is not None and config.reports.path == "r.txt"
    assert config.training.patience == 2


def test_overridden_keys_are_recorded(file: Callable[..., str], tmp_path: Path) -> None:
    config, _ = read_command("test", [file(), "--lora.rank=8", "--seed", "3", '--training={"steps": 5}'])
    assert sorted(config.overrides) == ["lora.rank", "seed", "training.steps"]
    assert read_command("test", [file()])[0].overrides == ()
    # A run's config.yaml stores overridden keys; options of later commands are added.
    reread, _ = read_command("test", [file(config.model_dump(mode="json")), "--seed=4", "--lora.alpha=2"])
    assert sorted(reread.overrides) == ["lora.alpha", "lora.rank", "seed", "training.steps"]
    assert (reread.lora.rank, reread.seed, reread.training.steps) == (8, 4, 5)
    with pytest.raises(ConfigError, match="'overrides'"):
        read_command("test", [file({**MINIMAL, "overrides": "seed"}), "--seed=4"])


def test_command_line_overrides_the_arm(file: Callable[..., str]) -> None:
    from clipit.training.arms import resolve_arm

    line = [file({**MINIMAL, "arm": "clip_it_all"}), "--distillation.tiles=labelled"]
    assert resolve_arm(read_command("test", line)[0]).distillation.tiles == "labelled"
    assert resolve_arm(read_command("test", line[:1])[0]).distillation.tiles == "all"


def test_nprobe_needs_an_ivf_index(file: Callable[..., str]) -> None:
    keys = [file(), "--pairing.nprobe=4"]
    assert read_command("test", [*keys, "--pairing.index=PCA8,IVF16,Flat"])[0].pairing.nprobe == 4
    for key in ("Flat", "HNSW32"):
        with pytest.raises(ConfigError, match=r"'pairing'.*nprobe applies to IVF indexes"):
            read_command("test", [*keys, f"--pairing.index={key}"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["index=IVF16,Flat", "ef_search=4"], "ef_search applies to HNSW and NSG indexes, not to index=IVF16,Flat"),
        (["candidates=64"], "candidates applies to approximate indexes"),
        (["index=HNSW32", "k=5", "candidates=4"], "candidates=4 is below k=5"),
    ],
)
def test_search_options_that_do_not_apply_to_the_index_raise_an_error(
    file: Callable[..., str], options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_command("test", [file(), *(f"--pairing.{option}" for option in options)])
    allowed = read_command("test", [file(), "--pairing.index=IVF16_HNSW32,SQ8", "--pairing.ef_search=4"])[0]
    assert allowed.pairing.ef_search == 4


def test_negative_numbers_lists_and_null_sections(file: Callable[..., str]) -> None:
    values = {**MINIMAL, "reports": None}
    config, _ = read_command(
        "test", [file(values), "--reports.path=r", "--reports.morphology_margin", "-0.5", '--lora.targets=["mlp"]']
    )
    assert config.reports is not None and config.reports.morphology_margin == -0.5
    assert config.lora.targets == ("mlp",)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("exclude_terms=['adenocarcinoma']", ("adenocarcinoma",)),
        ("exclude_terms=['a, b', \"crohn's\"]", ("a, b", "crohn's")),
        ("exclude_terms=('a', 'b')", ("a", "b")),
        ("exclude_terms=('a',)", ("a",)),
        ("exclude_terms='a'", ("a",)),
        ("exclude_terms=()", ()),
        ('exclude_terms=["a\\"b", "c,d"]', ('a"b', "c,d")),
        ("exclude_terms=['a', 0.10]", ("a", "0.1")),
        ("exclude_terms=[0.10, 1]", ("0.10", "1")),
        ("exclude_terms=crohn's,x", ("crohn's", "x")),
        ("exclude_terms=(see note)", ("(see note)",)),
        ("exclude_terms= ['adenocarcinoma'] ", ("adenocarcinoma",)),
        ("sections=['microscopy']", ("microscopy",)),
        ("sections=None", None),
        ("sections=null", None),
        ("organ_column=None", None),
        ("text_column=None", "None"),
        ("text_column=['a']", "['a']"),
    ],
)
def test_lists_and_none_in_python_notation(file: Callable[..., str], option: str, value: object) -> None:
    reports = read_command("test", [file({**MINIMAL, "reports": {"path": "r"}}), f"--reports.{option}"])[0].reports
    assert getattr(reports, option.partition("=")[0]) == value


def test_sections_and_mappings_in_python_notation(file: Callable[..., str]) -> None:
    options = [
        "--lora={'rank': 4, 'targets': ('mlp', 'qkv')}",
        "--tiles.class_map={'a': 'b'}",
        "--arms={'mine': {'lora.rank': 3, 'backbone.pretrained': False, 'prompts': None}}",
        "--terms.mine.words=['a', None, {'b': (1, True)}]",
        "--arms.other.lora.targets=[qkv, mlp.fc1]",
        "--tiles.splits.train=[labelled,unlabelled ]",
        "--backbone.pretrained=False",
        "--backbone.pixels=None",
        "--reports=None",
    ]
    config, _ = read_command("test", [file({**MINIMAL, "reports": {"path": "r"}, "backbone": {"pixels": 8}}), *options])
    assert (config.lora.rank, config.lora.targets) == (4, ("mlp", "qkv"))
    assert config.tiles.class_map == {"a": "b"}
    mine = {"lora.rank": 3, "backbone.pretrained": False, "prompts": None}
    assert config.arms == {"mine": mine, "other": {"lora": {"targets": ["qkv", "mlp.fc1"]}}}
    assert config.tiles.splits == {"train": ("labelled", "unlabelled")}
    assert config.terms == {"mine": {"words": ["a", None, {"b": [1, True]}]}}
    assert (config.backbone.pretrained, config.backbone.pixels, config.reports) == (False, None, None)


@pytest.mark.parametrize("text", ["['a'", "('a', b)", "(a, b)", "['a', b]", "[" * 5000 + "'"])
def test_invalid_list_raises_an_error(file: Callable[..., str], text: str) -> None:
    with pytest.raises(ConfigError, match="cannot parse"):
        read_command("test", [file({**MINIMAL, "reports": {"path": "r"}}), f"--reports.exclude_terms={text}"])


@pytest.mark.parametrize("term", ["\u2019adenoma\u2019", "`adenoma`", "\\'adenoma\\'", "b'adenoma'", '"adenoma"'])
@pytest.mark.parametrize("key", ["include_terms", "exclude_terms"])
def test_terms_with_quotation_marks_raise_an_error(file: Callable[..., str], term: str, key: str) -> None:
    """Quoted terms would never match a snippet."""
    if term[0] != '"':
        with pytest.raises(ConfigError, match=r"terms must not contain their quotation marks: .*adenoma"):
            read_command("test", [file({**MINIMAL, "reports": {"path": "r"}}), f"--reports.{key}=[{term}]"])
    with pytest.raises(ConfigError, match=r"terms must not contain their quotation marks: .*adenoma"):
        read_command("test", [file({**MINIMAL, "reports": {"path": "r", key: ["polyp", term]}})])


def test_none_is_not_a_list_of_terms(file: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"--reports\.exclude_terms is a list, not None\n.*\n.*as \[\]"):
        read_command("test", [file({**MINIMAL, "reports": {"path": "r"}}), "--reports.exclude_terms=None"])


@pytest.mark.parametrize("options", [["--seed"], ["--seed", "3", "4"], ["--seed=3", "4"], ["--note", "--seed=3"]])
def test_option_needs_exactly_one_value(file: Callable[..., str], options: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"has (no value|2 values)"):
        read_command("test", [file(), *options])


@pytest.mark.parametrize(
    ("options", "message", "fix"),
    [
        (["--seed=3", "--run", "A", "B"], "--run takes one value, but is followed by A B", "--run A --run B"),
        (["--seed=3", "--run=A", "B"], "--run takes one value, but is followed by A B", "--run A --run B"),
        (["--record", "a", "b.json", "--seed=3"], "--record takes one value, but is followed by a b", "single quotes"),
        (["--seed=3", "--wait", "yes"], "--wait takes no value, but is followed by yes", "remove what follows"),
    ],
)
def test_words_after_an_option_of_the_command_are_not_taken_for_those_of_a_key(
    file: Callable[..., str], options: list[str], message: str, fix: str
) -> None:
    extra: dict[str, dict[str, Any]] = {
        "--run": {"action": "append"},
        "--record": {},
        "--wait": {"action": "store_true"},
        "--shown": {"nargs": "+"},
    }
    with pytest.raises(ConfigError, match=message) as error:
        read_command("test", [file(), *options], extra)
    assert fix in error.value.fix
    _, given = read_command("test", [file(), "--run", "A", "--run=B", "--shown", "c", "d", "--seed", "3"], extra)
    assert (given.run, given.shown) == (["A", "B"], ["c", "d"])


def test_all_errors_are_listed_with_suggestions(file: Callable[..., str]) -> None:
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
    with pytest.raises(ConfigError, match=r"'tiles\.path' is required, but not set"):
        validate({"tiles": {"source": "folders"}}, "here")


def test_reports_without_a_path_are_ignored_by_commands_that_need_none(file: Callable[..., str]) -> None:
    arguments = [file({**MINIMAL, "reports": {"min_words": 3}})]
    with pytest.raises(ConfigError, match=r"'reports\.path' is required, but not set"):
        read_file_command("test", (), arguments)
    assert read_file_command("test", (), arguments, needs_reports=False)[0].run.reports is None
    named, _ = read_file_command("test", (), [*arguments, "--reports.path=r.txt"], needs_reports=False)
    assert named.run.reports is not None and named.run.reports.min_words == 3
    with pytest.raises(ConfigError, match=r"unknown key 'reports\.min_wrods' \(did you mean 'reports\.min_words'"):
        read_file_command("test", (), [*arguments, "--reports.min_wrods=3"], needs_reports=False)


def test_errors_about_keys_name_no_help_that_does_not_list_them() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_file({**MINIMAL, "segmentation": {"training": {"stepz": 3}}}, "here")
    assert "segmentation.training" in str(caught.value) and "clipit train" not in str(caught.value)


def test_two_layer_projector_needs_late_fusion() -> None:
    with pytest.raises(ConfigError, match=r"'student'.*late_fusion"):
        validate({**MINIMAL, "student": {"projector_layers": 2}}, "here")
    validate({**MINIMAL, "student": {"projector_layers": 2, "head": "late_fusion"}}, "here")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".."])
def test_names_used_as_folders_must_be_plain(name: str) -> None:
    with pytest.raises(ConfigError, match="'name'"):
        validate({**MINIMAL, "name": name}, "here")
    with pytest.raises(ConfigError, match="'arms'"):
        validate({**MINIMAL, "arms": {name: {}}}, "here")


@pytest.mark.parametrize("key", ["name", "arms"])
def test_length_of_names_is_limited(key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}'.*201 characters"):
        validate({**MINIMAL, key: "x" * 201 if key == "name" else {"x" * 201: {}}}, "here")
    assert validate({**MINIMAL, "name": "x" * 200}, "here").name == "x" * 200


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("training.learning_rate", "nan", "finite"),
        ("tiles.mpp", "inf", "finite"),
        ("pairing.score_temperature", float("inf"), "finite"),
        ("comparison.learning_rates", [0.1, float("inf")], "finite"),
        ("comparison.seeds", [1, 2, 1], "repeated entries: 1"),
        ("comparison.tuning_seeds", [7, 7], "repeated entries: 7"),
        ("comparison.arms", ["image_only", "image_only"], "repeated entries: image_only"),
        ("comparison.backbones", ["a", "b", "a"], "repeated entries: a"),
        ("comparison.controls", ["image_only", "image_only"], "repeated entries: image_only"),
        ("comparison.learning_rates", [1e-3, 0.01, 0.001], "repeated entries: 0.001"),
        ("comparison.steps", [10, 10], "repeated entries: 10"),
        ("probing.seeds", [3, 3], "repeated entries: 3"),
        ("probing.shots", [1, 1], "repeated entries: 1"),
        ("probing.shares", [0.1, 0.1], "repeated entries: 0.1"),
        ("robustness.perturbations", {"blur": [1, 2, 1]}, "repeated entries: 1"),
        ("prompt_study.stains", ["H&E", "H&E"], "repeated entries: H&E"),
        ("evaluation.splits", ["train", "test", "train"], "repeated entries: train"),
        ("evaluation.splits", [], "at least 1"),
        ("own_report.tissue_classes", ["tumour", "stroma", "tumour"], "repeated entries: tumour"),
        ("seed", 2**32, "less than or equal to 4294967295"),
        ("tiles.split_seed", -1, "greater than or equal to 0"),
        ("tiles.labels.seed", 2**64, "less than or equal to 4294967295"),
        ("prompt_study.seed", 2**32, "less than or equal to 4294967295"),
        ("robustness.seed", 2**32, "less than or equal to 4294967295"),
        ("comparison.seeds", [2**32], "from 0 to 4294967295"),
        ("comparison.tuning_seeds", [-1], "from 0 to 4294967295"),
        ("probing.seeds", [2**70], "from 0 to 4294967295"),
        ("evaluation.bootstrap", 1, "at least 20 resamples"),
        ("distillation.word_drop", 1.0, "less than 1"),
        ("lora.dropout", 1.0, "less than 1"),
    ],
)
def test_invalid_values_raise_an_error(key: str, value: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)'{key}[.\d]*'.*{match}"):
        validate_file(merge(MINIMAL, nested({key: value})), "here")


def test_values_at_their_bounds_are_valid() -> None:
    keys = {"seed": 2**32 - 1, "evaluation.bootstrap": 20, "lora.dropout": 0.99, "comparison.seeds": [0, 2**32 - 1]}
    config = validate_file(merge(MINIMAL, nested(keys)), "here")
    assert (config.run.seed, config.run.evaluation.bootstrap, config.comparison.seeds) == (
        2**32 - 1,
        20,
        (0, 2**32 - 1),
    )
    assert validate(merge(MINIMAL, nested({"evaluation.bootstrap": 0})), "here").evaluation.bootstrap == 0


def test_unnamed_shifted_set_raises_an_error(file: Callable[..., str]) -> None:
    shifted = {"source": "table", "path": "x.csv"}
    with pytest.raises(ConfigError, match="name each shifted set"):
        validate_file({**MINIMAL, "comparison": {"shifted": shifted}}, "here")
    with pytest.raises(ConfigError, match="name each shifted set"):
        read_file_command(
            "test", ["comparison"], [file(), "--comparison.shifted.source=table", "--comparison.shifted.path=x.csv"]
        )
    config = validate_file({**MINIMAL, "comparison": {"shifted": {"centre 2": shifted}}}, "here")
    assert config.comparison.shifted["centre 2"].path == "x.csv"
    assert not [key for key in all_keys() if key.startswith("comparison.shifted.")]


def test_command_reads_its_sections(file: Callable[..., str]) -> None:
    config, _ = read_file_command("test", ["comparison"], [file(), "--comparison.seeds=[4]", "--lora.rank=3"])
    assert config.comparison.seeds == (4,) and config.run.lora.rank == 3
    assert config.run.overrides == ("lora.rank",), "overrides of the comparison are not overrides of the run"
    assert read_file_command("test", ["comparison"], [file({**MINIMAL, "comparison": {"seeds": [7]}})])[
        0
    ].comparison.seeds == (7,)


@pytest.mark.parametrize("option", ["--comparison.seeds=[4]", "--probing.at", "--comparison={}"])
def test_option_of_an_unread_section_raises_an_error(file: Callable[..., str], option: str) -> None:
    key = option.removeprefix("--").partition("=")[0]
    with pytest.raises(ConfigError, match=rf"this command does not read {key}\n"):
        read_command("test", [file(), option])


def test_unread_sections_of_the_file_are_validated(file: Callable[..., str]) -> None:
    wrong = {**MINIMAL, "probing": {"shot": [1]}, "trainig": {}}
    with pytest.raises(
        ConfigError, match=r"(?s)2 config.*'trainig' .did you mean 'training'.*did you mean 'probing.shots'"
    ):
        read_command("test", [file(wrong)])


def test_renamed_key_raises_an_error_with_its_new_name(file: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'zero_shot' \(it is now called 'prompt_study'\)"):
        read_command("test", [file({**MINIMAL, "zero_shot": {"draws": 3}})])
    with pytest.raises(ConfigError, match=r"it is now called 'prompt_study'"):
        read_file_command("test", ["prompt_study"], [file(), "--zero_shot.draws=3"])
    with pytest.raises(ConfigError, match=r"'comparison.why' \(it is now called 'comparison.analyses'\)"):
        read_command("test", [file({**MINIMAL, "comparison": {"why": []}})])


RULES: dict[str, Any] = {"soft_labels.own_report.rules": "msi"}


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        (nested(RULES), []),
        ({}, ["--soft_labels.own_report.rules=msi"]),
        ({"arm": "mine", "arms": {"mine": {"base": "own_rules", **RULES}}}, []),
        ({"comparison": {"arms": ["image_only", "clip_it_all"], "data_sets": {"a": RULES}}}, []),
    ],
)
def test_key_of_a_renamed_section_raises_an_error_wherever_it_is_set(
    file: Callable[..., str], keys: dict[str, Any], options: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"'soft_labels.own_report' \(it is now called 'own_report'\)"):
        read, _ = read_file_command("test", ["comparison"], [file({**MINIMAL, **keys}), *options])
        resolve_arm(read.run)
        plan_comparison(read.run, read.comparison)


def test_recorded_configuration_is_converted_to_current_names() -> None:
    recorded = {
        "soft_labels": {"source": "own_report", "own_report": {"labels": "rules", "rules": "msi"}},
        "arms": {"a": {**RULES, "lora.rank": 3}, "b": {"soft_labels": {"own_report": {"shuffled": True}}}},
        "overrides": ["soft_labels.own_report.rules", "seed"],
    }
    assert with_current_names(recorded) == {
        "soft_labels": {"source": "own_report"},
        "own_report": {"labels": "rules", "rules": "msi"},
        "arms": {"a": {"own_report.rules": "msi", "lora.rank": 3}, "b": {"own_report": {"shuffled": True}}},
        "overrides": ["own_report.rules", "seed"],
    }
    assert with_current_names(MINIMAL) == MINIMAL


@pytest.mark.parametrize(
    "options",
    [
        ["--lora.rank=2", "--lora.rank=3"],
        ["--lora.rank", "2", "--seed=1", "--lora.rank=2"],
        ["--comparison.seeds=1", "--comparison.seeds=2"],
        ["--lora.rnak=2", "--lora.rnak=3"],
        ["--note=a", "--note=b"],
    ],
)
def test_duplicate_option_raises_an_error(file: Callable[..., str], options: list[str]) -> None:
    option = options[-1].partition("=")[0]
    with pytest.raises(ConfigError, match=f"given more than once: {option}\n"):
        read_command("test", [file(), *options])


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ('--lora={"rank": 4}', "--lora.rank=16"),
        ('--tiles.labels={"kind": "none"}', "--tiles.labels.kind=all"),
        ('--tiles.splits={"train": "a"}', "--tiles.splits.train=b"),
        ("--tiles.class_map=a=b", "--tiles.class_map.a=c"),
        ("--reports.text_checks=null", "--reports.text_checks.headings=false"),
        ('--terms={"own": {"weight": 1}}', "--terms.own.weight=2"),
        ('--mil.conditions={"few": {"mil.labels_per_class": 2}}', "--mil.conditions.few={}"),
    ],
)
def test_section_and_key_with_different_values_raise_an_error(
    file: Callable[..., str], section: str, entry: str
) -> None:
    for options in ([section, entry], [entry, section]):
        with pytest.raises(ConfigError, match=f"given more than once: {entry.partition('=')[0]}"):
            read_file_command(None, ("mil",), [file(), "--reports.path=r.txt", *options])


def test_section_and_other_keys_are_merged(file: Callable[..., str]) -> None:
    options = ['--lora={"rank": 4}', "--lora.alpha=2", "--tiles.class_map=a=b", "--tiles.class_map.c=d"]
    config, _ = read_command(None, [file(), *options])
    assert (config.lora.rank, config.lora.alpha, config.tiles.class_map) == (4, 2, {"a": "b", "c": "d"})


@pytest.mark.parametrize(
    "options",
    [
        ["--tiles.splits.train=cli", "--tiles.class_map.a=cli"],
        ['--tiles.splits={"train": "cli"}', '--tiles.class_map={"a": "cli", "v1.2": "cli"}'],
    ],
)
def test_mapping_entry_on_the_command_line_overrides_the_arm(file: Callable[..., str], options: list[str]) -> None:
    keys = {"base": "clip_it_all", "tiles.splits": {"train": "arm", "test": "arm"}}
    keys["tiles.class_map"] = {"a": "arm", "b": "arm", "v1.2": "arm"}
    config, _ = read_command(None, [file({**MINIMAL, "arm": "mine", "arms": {"mine": keys}}), *options])
    tiles = resolve_arm(config).tiles
    assert tiles.splits == {"train": "cli", "test": "arm"}
    assert tiles.class_map == {"a": "cli", "b": "arm", "v1.2": "cli" if "v1.2" in options[1] else "arm"}


@pytest.mark.parametrize("option", ["--tiles.class_map=[1]", "--tiles.columns=file", '--tiles.splits=["a"]'])
def test_list_or_word_instead_of_a_mapping_raises_an_error(file: Callable[..., str], option: str) -> None:
    key = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf'(?s)^not a mapping: {re.escape(option)}.*{key}=\{{"name": VALUE\}}'):
        read_command("test", [file(), option])
    assert read_command("test", [file(), "--tiles.class_map=a=b"])[0].tiles.class_map == {"a": "b"}


@pytest.mark.parametrize("value", ['{"a": "b", "a": "c"}', "{'a': 'b', 'a': 'c'}", "a=b,a=c"])
def test_mapping_with_a_repeated_key_raises_an_error(file: Callable[..., str], value: str) -> None:
    with pytest.raises(ConfigError, match="the key 'a' is repeated in"):
        read_command("test", [file(), f"--tiles.class_map={value}"])


def test_script_options_can_be_repeatable(file: Callable[..., str]) -> None:
    extra: dict[str, dict[str, Any]] = {"--run": {"action": "append"}, "--record": {}}
    assert read_command("test", [file(), "--run=a", "--run=b"], extra)[1].run == ["a", "b"]
    with pytest.raises(ConfigError, match="given more than once: --config, --record"):
        read_command("test", [file(), file(), "--record=a", "--record", "b"], extra)


@pytest.mark.parametrize("broken", ["--lora.targets=[mlp", "--tiles.splits={a", '--lora={"rank'])
def test_unparsable_value_is_named(file: Callable[..., str], broken: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_file_command("test", ["comparison"], [file(), "--seed=3", broken, "--comparison.seeds=[1, 2]"])
    assert f"cannot parse {broken} (" in str(error.value)


@pytest.mark.parametrize(
    ("text", "duplicate"),
    [
        ("seed: 1\ntraining: {steps: 5}\nlora: {}\ntraining: {patience: 2}\n", r"'training' \(line 5\)"),
        ("lora:\n  rank: 2\n  rank: 4\n", r"'rank' \(line 4\)"),
        ("arms: {own: {lora.rank: 1, 'lora.rank': 2}}\n", r"'lora\.rank' \(line 2\)"),
    ],
)
def test_duplicate_key_in_the_file_raises_an_error(file: Callable[..., str], text: str, duplicate: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)key once\): {duplicate}\n.*keep each key once"):
        read_command("test", [file("tiles: {source: folders, path: tiles}\n" + text)])


def test_yaml_merge_keys_can_be_overridden(file: Callable[..., str]) -> None:
    arms = "arms:\n  a: &a {lora.rank: 1, seed: 1}\n  b: &b {<<: *a, lora.rank: 2}\n  c: {<<: *b, seed: 3}\n"
    config, _ = read_command("test", [file("tiles: {source: folders, path: tiles}\n" + arms)])
    assert config.arms["c"] == {"lora.rank": 2, "seed": 3}


def test_unreadable_file_raises_an_error(file: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    line = file()

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"(?s)no permission to read.*run\.yaml.*make the file readable"):
        read_command("test", [line])


def test_error_in_a_sweep_file_points_to_shipped_sweeps(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("- 1")
    with pytest.raises(ConfigError, match=r"(?s)not a mapping.*clipit init sweeps/lora_rank prints"):
        read_sweep(path)
    path.write_text("method: grid\na: [")
    with pytest.raises(ConfigError, match=r"(?s)not valid YAML.*sweep\.yaml, line 2"):
        read_sweep(path)
    with pytest.raises(
        ConfigError, match=r"(?s)no such.*contains sweep\.yaml\), or name a shipped file, such as sweeps/"
    ):
        read_sweep(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(("content", "match"), [("a: [", "YAML"), ("- 1", "mapping"), ("", "mapping")])
def test_files_without_a_mapping_raise_an_error(file: Callable[..., str], content: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_command("test", [file(content)])


def test_missing_file_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file(?s:.*)nothing\.yaml"):
        read_command("test", [f"--config={tmp_path / 'nothing.yaml'}"])
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_command("test", [f"--config={tmp_path}"])


def test_script_options(file: Callable[..., str]) -> None:
    _, options = read_command("test", [file(), "--fast"], {"--fast": {"action": "store_true"}})
    assert options.fast


def read_help(capsys: pytest.CaptureFixture[str], option: str, sections: Sequence[str] = ()) -> str:
    with pytest.raises(SystemExit, match="0"):
        read_file_command("what it does", sections, [option], {"--fast": {"help": "be fast"}})
    return " ".join(capsys.readouterr().out.split())


def test_help_lists_command_options_and_common_keys(capsys: pytest.CaptureFixture[str]) -> None:
    help_text = read_help(capsys, "--help")
    assert (
        "what it does" in help_text
        and "--config" in help_text
        and "--fast" in help_text
        and "--help-keys list all" in help_text
    )
    assert "--lora.rank VALUE Rank of the adapters. (integer, default `8`)" in help_text
    assert "--lora.alpha" not in help_text and "--comparison" not in help_text


def test_help_lists_the_keys_of_the_sections_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    help_text = read_help(capsys, "--help", ["comparison"])
    assert "--lora.alpha" not in help_text
    assert (
        "--comparison.bar" not in help_text
        and "--comparison.seeds VALUE" in help_text
        and "--comparison.shifted" in help_text
    )


def test_help_keys_lists_all_keys_and_sections(capsys: pytest.CaptureFixture[str]) -> None:
    help_text = read_help(capsys, "--help-keys", ["comparison"])
    expected = {key for key in all_keys() if key.partition(".")[0] not in {*SECTIONS} - {"comparison"}}
    absent = {key for key in expected if f"--{key} VALUE" not in help_text and f" {key}: " not in help_text}
    described_elsewhere = {"comparison.shifted", *(key for key in expected if key.startswith("second_vlm."))}
    assert absent == described_elsewhere
    assert "--comparison.shifted.<name> VALUE" in help_text and "--second_vlm VALUE" in help_text


HOME_KEYS = (
    "output", "prompts", "tiles.path", "tiles.images", "tiles.annotations.path", "reports.path", "reports.cancer_types",
    "reports.morphology_prompts", "reports.boilerplate_prompts", "vlm.name", "vlm.path", "vlm.adapter",
    "second_vlm.name", "second_vlm.path", "second_vlm.adapter", "adapt.pairs.path", "adapt.pairs.images",
    "adapt.bags.dictionary", "backbone.name", "backbone.path", "bags.dictionary", "probing.captions",
    "prompt_study.simple", "comparison.searched", "label_issues.verified",
)  # fmt: skip


@pytest.mark.parametrize("key", HOME_KEYS)
def test_path_keys_are_validated_and_expand_the_home_folder(
    file: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    base = {
        **MINIMAL,
        "reports": {"path": "r", "format": "tcga", "morphology_prompts": "a", "boilerplate_prompts": "b"},
    }

    def read(value: str, *options: str) -> str:
        in_file = merge(base, nested({key: value})) if not options else base
        read: Any = read_file_command("", SECTIONS, [file(in_file), *options])[0]
        read = read if key.partition(".")[0] in SECTIONS else read.run
        for part in key.split("."):
            read = getattr(read, part)
        return str(read)

    assert read("~/some/x") == read("", f"--{key}=~/some/x") == "/home/somebody/some/x"
    assert read("/a/~/x") == "/a/~/x"
    for options in ((), (f"--{key}=~nobody-of-that-name/x",)):
        with pytest.raises(ConfigError, match=f"(?s)'{key}'.*~nobody-of-that-name cannot be expanded"):
            read("~nobody-of-that-name/x", *options)
    with pytest.raises(ConfigError, match=f"(?s)'{key}'.*null character"):
        read("a\0b", f"--{key}=a\0b")
    with pytest.raises(ConfigError, match=f"(?s)'{key}'.*longer than 255 bytes"):
        read("a/" + "ä" * 128)
    os.mkfifo(tmp_path / "pipe.csv")
    for options in ((), (f"--{key}={tmp_path / 'pipe.csv'}",)):
        with pytest.raises(ConfigError, match=f"(?s)'{key}'.*is a pipe, not a file"):
            read(str(tmp_path / "pipe.csv"), *options)


def test_home_keys_are_complete() -> None:
    """Keys whose last part is the name of a path must be in `HOME_KEYS`."""
    path_keys = [key for key in all_keys() if key.rpartition(".")[2] in ("path", "images", "output", "dictionary")]
    assert set(path_keys) <= {*HOME_KEYS}


def test_paths_with_invalid_characters_raise_an_error(tmp_path: Path) -> None:
    for name in ("\u00e9\ud800", "\u00e9\0"):
        with pytest.raises(ConfigError, match="a path cannot contain"):
            clipit.load_config(name)
        with pytest.raises(ConfigError, match="a path cannot contain"):
            clipit.tile_slides(tmp_path / "s.tiff", name)
        with pytest.raises(ConfigError, match="a path cannot contain"):
            clipit.load_classifier(name)
    assert expand_home("slides/\udce9.svs") == "slides/\udce9.svs"  # an undecodable byte


def test_home_folder_is_expanded_in_script_options(file: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path(file().removeprefix("--config=")).parent))
    extra: dict[str, dict[str, Any]] = {"--run": {"type": Path, "action": "append"}}
    options = read_command("", ["--config=~/run.yaml", "--run=~/a", "--run", "~/b"], extra)[1]
    assert options.run == [Path("~/a").expanduser(), Path("~/b").expanduser()]
    assert expand_home("clip:~/model") == f"clip:{Path('~/model').expanduser()}"


def test_environment_variables_in_paths_are_expanded(file: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)

    def read(path: str) -> str:
        config = read_command("", [file(MINIMAL | {"output": path}), f"--tiles.path={path}"])[0]
        assert str(config.output) == config.tiles.path
        return config.tiles.path

    assert read("$SCRATCH/a") == read("${SCRATCH}/a") == "/scratch/a"
    assert read("/data/run_$SCRATCH") == "/data/run_/scratch"
    kept = ["/a/$RECYCLE.BIN/b", "/server/c$/b", "price_$5", "shards/x-{000..001}.tar", "a$NOWHERE"]
    assert [read(path) for path in kept] == kept
    for path, part in (("$NOWHERE/a", r"\$NOWHERE"), ("/a/${NOWHERE}/b", r"\$\{NOWHERE\}"), ("$EMPTY/a", r"\$EMPTY")):
        with pytest.raises(ConfigError, match=rf"variable {part} is not set; write the full path"):
            read(path)
    with pytest.raises(ConfigError, match=r"\$\{oc.env:SCRATCH\} has an unsupported form"):
        read("${oc.env:SCRATCH}/a")
    monkeypatch.chdir(Path(file().removeprefix("--config=")).parent)
    Path("$NOWHERE").mkdir()
    assert read("$NOWHERE/a") == "$NOWHERE/a"


def test_pipes_devices_and_sockets_raise_an_error_before_they_are_opened(
    file: Callable[..., str], tmp_path: Path
) -> None:
    pipe, link, address = tmp_path / "pipe.txt", tmp_path / "link.txt", tmp_path / "socket.txt"
    os.mkfifo(pipe)  # opening it would wait for a writer
    link.symlink_to(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        for path, kind in ((pipe, "a pipe"), (link, "a pipe"), (address, "a socket"), (Path(os.devnull), "a device")):
            with pytest.raises(ConfigError, match=rf"{path.name} is {kind}, not a file; save its content to a file"):
                read_command("", [file(), f"--reports.path={path}"])
            with pytest.raises(argparse.ArgumentTypeError, match=f"is {kind}, not a file"):
                option_path(str(path))


def test_configuration_can_be_read_from_a_pipe(file: Callable[..., str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    text = Path(file().removeprefix("--config=")).read_text(encoding="utf-8")
    with ThreadPoolExecutor(1) as threads:
        written = threads.submit(pipe.write_text, text, encoding="utf-8")
        assert read_command("", [f"--config={pipe}"])[0].tiles.path == read_command("", [file()])[0].tiles.path
        written.result(timeout=10)


def test_invalid_utf8_raises_an_error(file: Callable[..., str]) -> None:
    for option in ("--note=a\udcff", "--tiles.path=\udcff", "--tiles.class_map={'\udcff': 'a'}", "--\udcff=1"):
        with pytest.raises(ConfigError, match=r"not valid UTF-8: .*\\udcff"):
            read_command("", [file(), option])


def test_values_of_a_wrong_type_raise_an_error(file: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="--training is a section, so its value must be a mapping: 8"):
        read_command("", [file(), "--training=8", "--training.steps=2"])
    with pytest.raises(ConfigError, match="'training': Input should be a section, with keys and values"):
        read_command("", [file(), "--training=8"])
    with pytest.raises(ConfigError, match=r"names must be text, not null, true, 1;"):
        read_command("", [file(MINIMAL | {"tiles": {"source": "table", "path": "t", "classes": [None, True, 1]}})])
    with pytest.raises(ConfigError, match=r"'tiles.classes': Input should be a list, such as \[a, b\]"):
        read_command("", [file(MINIMAL | {"tiles": {"source": "table", "path": "t", "classes": "a, b"}})])
    assert read_command("", [file(), '--lora={"rank": 2}', "--training.steps=2"])[0].lora.rank == 2


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("training.lr", "training.learning_rate"),
        ("lr", "training.learning_rate"),
        ("training.wd", "training.weight_decay"),
        ("steps", "training.steps"),
        ("training.batch_size", "training.tiles_per_step"),
        ("batch_size", "training.tiles_per_step"),
    ],
)
def test_common_abbreviations_are_suggested(file: Callable[..., str], key: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown key '{key}' \(did you mean '{suggestion}'\?\)"):
        read_command("", [file(), f"--{key}=1"])


def test_dotted_key_in_a_file_raises_an_error(file: Callable[..., str]) -> None:
    for key, advice in (
        ("training.steps", "training: {steps: ...}"),
        ("tiles.labels.kind", "tiles: {labels: {kind: ...}}"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"unknown key '{key}' (write '{advice}')")):
            read_command("", [file({**MINIMAL, key: 1})])


def test_advice_on_repeated_options_depends_on_the_option(file: Callable[..., str]) -> None:
    with pytest.raises(ConfigError) as error:
        read_command("", [file(), "--output=a", "--output=b"])
    assert str(error.value).endswith("fix: give each option once")
    with pytest.raises(ConfigError, match=r"write a list as '--lora\.targets=\[a, b\]'"):
        read_command("", [file(), "--lora.targets=a", "--lora.targets=b"])


def test_numbers_instead_of_strings_raise_an_error(file: Callable[..., str]) -> None:
    for value in ([0, 1], [True, False]):
        with pytest.raises(ConfigError, match=r"'tiles\.classes': .*write them in quotes"):
            read_command("", [file({"tiles": {**MINIMAL["tiles"], "classes": value}})])
        with pytest.raises(ConfigError, match=r"'reports\.exclude_terms\.0': .*write it in quotes"):
            read_command("", [file({"reports": {"path": "reports.csv", "exclude_terms": value}})])


@pytest.mark.parametrize("values", [{"seed": True}, {"training": {"learning_rate": True}}, {"lora": {"rank": False}}])
def test_true_is_not_a_number(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="write a number, not true, false, yes"):
        validate({**MINIMAL, **values}, "test")


@pytest.mark.parametrize(
    ("key", "entry", "problem"),
    [
        ("lora", {"parameters": None}, "'lora' is nested; write dotted keys, such as lora.key"),
        ("training.learning_rate", {"min": 0.1, "max": float("inf")}, "finite min and max"),
        ("lora.rank", {"min": False, "max": 5}, "finite min and max"),
        ("lora.rank", {"min": 1, "max": 5, "distributions": "uniform"}, "unknown distributions"),
        ("lora.rank", {"value": 2, "values": [2, 4]}, "set only one of value, values"),
    ],
)
def test_invalid_sweep_parameters_raise_an_error(tmp_path: Path, key: str, entry: dict[str, Any], problem: str) -> None:
    command = ["${program}", "--config=a.yaml", "${args}"]
    values = {"method": "random", "parameters": {key: entry}, "command": command}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        read_sweep(tmp_path / "sweep.yaml")


def test_deeply_nested_option_cannot_be_parsed(file: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="cannot parse"):
        read_command("", [file(), f"--soft_labels={'[' * 20_000}"])


def test_nesting_depth_is_limited(file: Callable[..., str]) -> None:
    config = file(MINIMAL)
    many, deep = ".".join("a" * 2000), '{"a": ' * 500 + "1" + "}" * 500
    for option in (f"--{many}=1", f"--terms.{many}=1", f"--terms={deep}", f"--tiles.classes={'[' * 500}{']' * 500}"):
        with pytest.raises(ConfigError, match=r"^nested more than 40 levels deep: .{1,90}\n"):
            read_command(None, [config, option])
    with pytest.raises(ConfigError, match=r"nested more than 40 levels deep: a\.a"):
        resolve_arm(validate(merge(MINIMAL, {"arm": "deep", "arms": {"deep": {many: 1}}}), "here"))
    cyclic: dict[str, Any] = {}
    cyclic["a"] = cyclic
    for keys in ({many: 1}, {"terms": json.loads(deep)}, {"terms": cyclic}):
        with pytest.raises(ConfigError, match="nested more than 40 levels deep"):
            load_config(config.removeprefix("--config="), keys)
    assert nested({".".join("b" * 40): 1})


@pytest.mark.parametrize("key", ["arm", "output", "vlm.adapter", "comparison.searched", "tiles.path", "reports.path"])
def test_empty_value_raises_an_error(key: str, file: Callable[..., str]) -> None:
    """Empty values come from unset shell variables and must not silently disable an arm or an adapter."""
    for text in ("", "  "):
        with pytest.raises(ConfigError, match=f"'{key}': the value is empty; write a value"):
            read_file_command(None, ("comparison",), [file({**MINIMAL, "reports": {"path": "a"}}), f"--{key}={text}"])
    assert validate({**MINIMAL, "note": ""}, "test").note == ""


@pytest.mark.parametrize("convert", [option_path, option_name, option_text])
def test_empty_option_raises_an_error(convert: Callable[[str], object]) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"the (path|text) is empty"):
        convert("")
    assert str(convert("a b")) == "a b"


def test_paths_of_options_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert option_path(".") == argument_path(Path()) == tmp_path / "run"
    assert option_path("..") == tmp_path
    assert option_path("run") == Path("run")


@pytest.mark.parametrize("option", ["--prompts", "--vlm", "--path-column", "--id-column", "--images", "--out"])
def test_predict_rejects_empty_options(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predict._parser().parse_args(["run", "images", *([] if option == "--out" else ["--out=a.csv"]), f"{option}="])
    assert f"argument {option}: the" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["tiles.mpp", "tiles.slides.mpp"])
def test_resolutions_in_other_units_raise_an_error(key: str) -> None:
    for value in (250, 2.5e-7):
        with pytest.raises(ConfigError, match=f"'{key}': Input should be (less|greater) than or equal to"):
            validate(merge(MINIMAL, nested({key: value})), "test")
