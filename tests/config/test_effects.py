"""Tests of the declared effects of configuration keys and of run fingerprints."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel

from clipit.config.effects import EFFECTS, field_effect, fingerprint_keys, is_within, select_keys
from clipit.config.load import validate
from clipit.config.new_inputs import _CHANGEABLE
from clipit.config.run import RunConfig, VLMConfig
from clipit.config.vlm_training import AdaptConfig
from clipit.errors import ArtifactError
from clipit.output_files.artifacts import write_json
from clipit.runs.fingerprint import RunFingerprint, _model_name, run_fingerprint
from clipit.runs.folder import check_fingerprint
from clipit.training.arms import resolve_arm
from clipit.training.terms.term_table import unused_keys, uses_key
from clipit.workspace.workspace import Workspace

CONFIG = validate({"tiles": {"source": "folders", "path": "tiles"}, "reports": {"path": "r"}, "second_vlm": {}}, "test")


def all_leaves(config: BaseModel, section: str = "results", prefix: str = "") -> dict[str, str]:
    """Effect of each leaf key, collected independently of the package's own functions."""
    leaves: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        declared = [marker.effect for marker in field.metadata if type(marker).__name__ == "KeyEffect"]
        effect, value = declared[0] if declared else section, getattr(config, name)
        if isinstance(value, BaseModel):
            leaves |= all_leaves(value, effect, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = effect
    return leaves


def with_changed_key(config: BaseModel, key: str) -> Any:
    """Copy of a configuration in which a key has a different, unvalidated value."""
    name, _, rest = key.partition(".")
    value = with_changed_key(getattr(config, name), rest) if rest else "a different value"
    return config.model_copy(update={name: value})


LEAVES = all_leaves(CONFIG)


def fingerprint_of_keys(config: RunConfig) -> str:
    return RunFingerprint(select_keys(config, "results"), {}).value


def test_each_key_has_exactly_one_effect() -> None:
    assert len(LEAVES) > 130 and set(LEAVES.values()) == set(EFFECTS)
    selected = [key for effect in EFFECTS for key in select_keys(CONFIG, effect)]
    assert sorted(selected) == sorted(LEAVES), "a key has no effect or more than one"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("key", sorted(LEAVES))
def test_only_keys_that_affect_results_change_the_fingerprint(key: str) -> None:
    assert (fingerprint_of_keys(with_changed_key(CONFIG, key)) != fingerprint_of_keys(CONFIG)) == (
        LEAVES[key] == "results"
    )


def test_keys_that_do_not_affect_results() -> None:
    """Users may change these keys without retraining, so a key in this list must not affect any score."""
    assert set(select_keys(CONFIG, "speed")) == {
        "vlm.batch_size", "second_vlm.batch_size", "pairing.block", "training.threads", "training.cache_tiles",
        "training.cache_gigabytes",
        "training.gradient_checkpointing", "training.checkpoint_every", "evaluation.batch_size",
    }  # fmt: skip
    assert set(select_keys(CONFIG, "reporting")) == {
        "name", "output", "note", "training.log_every", "evaluation.page", "tracking.tracker", "tracking.project",
        "tracking.group", "tracking.wandb_mode",
    }  # fmt: skip
    assert set(select_keys(CONFIG, "recipe")) == {"arm", "arms", "overrides"}
    assert select_keys(CONFIG.evaluation, "evaluation") == {"splits": ["validation", "test"], "bootstrap": 1000}


def test_changeable_keys_of_finished_runs_do_not_affect_results() -> None:
    """`trust_remote_code` is an exception: it does not affect results, but existing fingerprints contain it."""
    changeable = [key for key in LEAVES if is_within(key, _CHANGEABLE)]
    assert {name for name in _CHANGEABLE if not any(is_within(key, {name}) for key in LEAVES)} == set()
    assert {key for key in changeable if LEAVES[key] == "results"} == {
        "vlm.trust_remote_code", "backbone.trust_remote_code",
    }  # fmt: skip


def test_fields_inherit_the_effect_of_their_section() -> None:
    assert field_effect(RunConfig, "tracking") == "reporting" and field_effect(RunConfig, "lora") == "results"
    assert field_effect(type(CONFIG.vlm), "batch_size") == "speed"
    assert field_effect(type(CONFIG.leaks), "policy", "data") == "data"


def test_fingerprint_lists_differences(configure: Callable[..., RunConfig]) -> None:
    def fingerprint_of(**keys: Any) -> RunFingerprint:
        config = resolve_arm(configure({"arm": "clip_it_all", **keys}))
        return run_fingerprint(config, Workspace(config), "backbone")

    first = fingerprint_of()
    record = {"keys": dict(first.keys), "inputs": dict(first.inputs)}
    assert first.differences(record) == []
    same = fingerprint_of(**{"training.threads": 3, "note": "x", "vlm.batch_size": 7, "leaks.policy": "note"})
    assert same.value == first.value and same.differences(record) == []
    other = fingerprint_of(**{"lora.rank": 3, "tiles.labels.seed": 5})
    assert other.value != first.value
    differences = other.differences(record)
    assert differences[:2] == ["lora.rank: 4 in the folder, 3 now", "tiles.labels.seed: 0 in the folder, 5 now"]
    assert differences[2].startswith("labels of tiles: ") and len(differences) == 3


def test_keys_of_approximate_indexes_do_not_change_fingerprints_of_flat_indexes(
    configure: Callable[..., RunConfig],
) -> None:
    def keys_of(**keys: Any) -> set[str]:
        config = resolve_arm(configure({"arm": "clip_it_all", **keys}))
        return set(run_fingerprint(config, Workspace(config), "backbone").keys)

    added = {"pairing.candidates", "pairing.nprobe", "pairing.ef_search"}
    assert not keys_of() & added, "fingerprints from before these keys were added must stay valid"
    assert keys_of(**{"pairing.index": "IVF16,Flat"}) == keys_of() | added - {"pairing.ef_search"}
    assert keys_of(**{"pairing.index": "IVF16_HNSW8,Flat"}) == keys_of() | added


@pytest.mark.parametrize(
    ("arm", "keys", "unused", "read"),
    [
        ("image_only", {}, "distillation.weight distillation.target bags.tiles soft_labels.weight own_report vlm", ""),
        ("image_only_frozen", {}, "lora", "distillation.tiles bags.weight soft_labels.source"),
        ("clip_it_all", {"tiles.labels.kind": "all"}, "tiles.labels.value own_report", "tiles.labels.seed vlm lora"),
        ("clip_it_all", {"tiles.labels.kind": "none"}, "tiles.labels.value tiles.labels.seed", "distillation.weight"),
        ("text_lora", {"backbone.tuning": "frozen"}, "soft_labels.centred", "lora"),
        ("self_training", {"backbone.tuning": "frozen"}, "own_report vlm", "lora soft_labels.weight"),
        ("class_prompts", {}, "soft_labels.weight", "soft_labels.centred"),
        ("own_label", {}, "vlm distillation.weight", "own_report soft_labels.weight"),
        ("image_only", {"soft_labels.source": "annotators"}, "own_report", "training.learning_rate soft_labels.weight"),
    ],
)
def test_sections_and_terms_declare_unused_keys(
    configure: Callable[..., RunConfig], arm: str, keys: dict[str, Any], unused: str, read: str
) -> None:
    config = resolve_arm(configure({"overrides": list(keys), **keys}, arm=arm))
    declared = unused_keys(config)
    assert declared >= {*unused.split()} and not declared & {*read.split()}
    fingerprint = fingerprint_keys(config, unused=declared)
    assert not [key for key in fingerprint.keys if is_within(key, {*unused.split()})]
    assert all(any(is_within(key, {name}) for key in fingerprint.keys) for name in read.split())
    assert uses_key(config, "training.learning_rate")


def test_adaptation_uses_only_the_keys_of_its_data_source() -> None:
    fingerprint = fingerprint_keys(AdaptConfig(data="bags", tuning="full"), "adapt.")
    assert fingerprint.unused == {"adapt.pairs", "adapt.cases", "adapt.lora"}
    assert fingerprint.defaults == {"adapt.bags.whole_entries": False}
    sections = {key.split(".")[1] for key in fingerprint.keys}
    assert "bags" in sections and not sections & {"pairs", "cases", "lora", "arms", "seeds", "forgetting"}


def test_missing_key_in_a_record_is_compared_with_its_default(configure: Callable[..., RunConfig]) -> None:
    config = resolve_arm(configure(arm="image_only"))
    now = run_fingerprint(config, Workspace(config), "backbone")
    assert "training.compile" not in now.keys
    assert now.matches({"keys": now.keys, "inputs": now.inputs})
    assert now.matches({"keys": {**now.keys, "training.compile": False}, "inputs": now.inputs})
    compiled = {"keys": {**now.keys, "training.compile": True}, "inputs": now.inputs}
    assert now.differences(compiled) == ["training.compile: True in the folder, False now"]
    assert not now.matches(compiled)


def test_records_with_former_key_names_stay_valid(configure: Callable[..., RunConfig]) -> None:
    def fingerprint_of(arm: str, **keys: Any) -> RunFingerprint:
        config = resolve_arm(configure({"reports.label_column": "finding", **keys}, arm=arm))
        workspace = Workspace(config)
        workspace.__dict__["cases"] = SimpleNamespace(fingerprint="reports of patients")
        return run_fingerprint(config, workspace, "backbone")

    old = {"soft_labels.own_report.labels": "label", "soft_labels.own_report.several": "all"}
    without_labels = fingerprint_of("image_only")
    assert not [key for key in without_labels.keys if key.startswith("own_report.")]
    record = {"keys": {**without_labels.keys, **old}, "inputs": without_labels.inputs}
    assert without_labels.matches(record)
    assert fingerprint_of("image_only", **{"own_report.several": "latest"}).matches(record)
    labelled = fingerprint_of("own_label")
    others = {key: value for key, value in labelled.keys.items() if not key.startswith("own_report.")}
    kept = {f"soft_labels.{key}": value for key, value in labelled.keys.items() if key not in others}
    assert labelled.matches({"keys": others | kept, "inputs": labelled.inputs})
    assert labelled.differences({"keys": others | kept | {"soft_labels.own_report.several": "latest"}, "inputs": {}})[
        0
    ] == ("own_report.several: latest in the folder, all now")


def test_folder_of_a_different_run_raises_an_error_with_the_differences(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"fingerprint": "x", "keys": {"seed": 0, "lora.rank": 8}, "inputs": {"VLM": "a"}})
    with pytest.raises(
        ArtifactError, match=r"(?s)lora\.rank: 8 in the folder, 16 now\n +VLM: a in the folder, b now\n.*--name"
    ):
        check_fingerprint(tmp_path, RunFingerprint({"seed": 0, "lora.rank": 16}, {"VLM": "b"}))
    (tmp_path / "config.yaml").write_text("tiles: {source: table, path: a.csv}\nseed: 3\n")
    now = validate({"tiles": {"source": "table", "path": "b.csv"}}, "here")
    with pytest.raises(ArtifactError, match=r"VLM: a .*\n +tiles\.path: a\.csv in the folder, b\.csv now\n"):
        check_fingerprint(tmp_path, RunFingerprint({"seed": 0, "lora.rank": 16}, {"VLM": "b"}), now)
    write_json(tmp_path / "run.json", {"fingerprint": "x"})
    with pytest.raises(ArtifactError, match=r"(?s)written by an earlier version of clipit\n.*delete the run's folder"):
        check_fingerprint(tmp_path, RunFingerprint({}, {}))


@pytest.fixture
def write_tiles(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, classes: tuple[str, str] = ("mucin", "stroma")) -> Path:
        """Write a table of 20 tiles, and their images on the first call."""
        pictures = tmp_path / "pictures"
        if not pictures.is_dir():
            pictures.mkdir()
            for number in range(20):
                pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(pictures / f"{number:02d}.png")
        rows = [f"t{number},{number:02d}.png,{classes[number % 2]}" for number in range(20)]
        splits = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
        path = tmp_path / name
        path.write_text("id,path,label,split\n" + "".join(f"{r},{s}\n" for r, s in zip(rows, splits, strict=True)))
        return path

    return write


def table_fingerprint(tmp_path: Path, table: Path, **keys: Any) -> RunFingerprint:
    section = {"source": "table", "path": str(table), "images": str(tmp_path / "pictures"), **keys}
    config = validate({"tiles": section, "output": str(tmp_path / "out"), "leaks": {"policy": "off"}}, "here")
    config = resolve_arm(config.model_copy(update={"arm": "image_only"}))
    return run_fingerprint(config, Workspace(config), "backbone")


def test_renamed_labels_change_the_fingerprint(write_tiles: Callable[..., Path], tmp_path: Path) -> None:
    first = table_fingerprint(tmp_path, write_tiles("a.csv"))
    renamed = table_fingerprint(tmp_path, write_tiles("a.csv", ("mucus", "stroma")))
    assert renamed.value != first.value
    difference = "classes of tiles: mucin, stroma in the folder, mucus, stroma now"
    assert renamed.differences({"keys": first.keys, "inputs": first.inputs}) == [difference]


def test_different_tile_resolution_changes_the_fingerprint(write_tiles: Callable[..., Path], tmp_path: Path) -> None:
    """Slides are read at the resolution of the training tiles, which the classifier records."""
    tables = {}
    for mpp in ("", "1.0", "0.5"):
        table = write_tiles(f"mpp{mpp}.csv")
        head, *rows = table.read_text().splitlines()
        table.write_text("\n".join([f"{head},mpp", *(f"{row},{mpp}" for row in rows)]))
        tables[mpp] = table_fingerprint(tmp_path, table)
    now = tables["0.5"]
    records = {mpp: {"keys": each.keys, "inputs": each.inputs} for mpp, each in tables.items()}
    assert now.differences(records["1.0"]) == ["mpp of tiles: 1 in the folder, 0.5 now"]
    assert not now.matches(records[""]) and now.matches(records["0.5"])
    earlier = {key: value for key, value in now.inputs.items() if key != "mpp of tiles"}
    assert now.matches({"keys": now.keys, "inputs": earlier}), "records of earlier versions lack the resolution"


def test_fingerprint_does_not_depend_on_the_data_path(write_tiles: Callable[..., Path], tmp_path: Path) -> None:
    first = table_fingerprint(tmp_path, write_tiles("a.csv"))
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    linked = table_fingerprint(tmp_path, write_tiles("b.csv"), images=str(tmp_path / "link"))
    assert linked.value == first.value


def test_changed_modification_times_raise_an_error_with_advice(
    write_tiles: Callable[..., Path], tmp_path: Path
) -> None:
    first = table_fingerprint(tmp_path, write_tiles("a.csv"))
    write_json(tmp_path / "run.json", {"keys": first.keys, "inputs": first.inputs})
    check_fingerprint(tmp_path, table_fingerprint(tmp_path, write_tiles("b.csv")))
    os.utime(tmp_path / "pictures/00.png", ns=(0, 0))
    with pytest.raises(ArtifactError, match=r"(?s)tiles: .*fix: .*copy them again with their modification times"):
        check_fingerprint(tmp_path, table_fingerprint(tmp_path, write_tiles("a.csv")))


def test_model_folders_are_identified_by_their_content(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"heads": 3}' if name != "three" else '{"heads": 6}')
    one, two, three = (_model_name(VLMConfig(name=str(tmp_path / name))) for name in ("one", "two", "three"))
    assert one == two == _model_name(VLMConfig(name=f"clip:{tmp_path / 'one'}")) != three
    assert _model_name(VLMConfig(name="plip", path=str(tmp_path / "one"))).startswith("plip ")
    assert one == _model_name(VLMConfig(name=f"hf-hub:{tmp_path / 'two'}"))
    assert _model_name(VLMConfig(name="hf-hub:owner/name")) == "hf-hub:owner/name"
    assert _model_name(VLMConfig(name="open_clip:ViT-B-32/openai")) == "open_clip:ViT-B-32/openai"
    checkpoint = VLMConfig(name=f"open_clip:ViT-B-32/{tmp_path / 'one' / 'config.json'}")
    assert _model_name(checkpoint) == "open_clip:ViT-B-32/local file"


def test_records_with_model_paths_stay_valid(write_tiles: Callable[..., Path], tmp_path: Path) -> None:
    """Earlier versions recorded the folder's path after `hf-hub:`."""
    (tmp_path / "model").mkdir()
    name = f"hf-hub:{tmp_path / 'model'}"
    section = {"source": "table", "path": str(write_tiles("a.csv")), "images": str(tmp_path / "pictures")}
    values = {"tiles": section, "output": str(tmp_path / "out"), "leaks": {"policy": "off"}, "backbone": {"name": name}}
    config = resolve_arm(validate(values, "here").model_copy(update={"arm": "image_only"}))
    now = run_fingerprint(config, Workspace(config), "backbone")
    assert now.keys["backbone.name"].startswith("local folder")
    earlier = {"keys": {**now.keys, "backbone.name": name}, "inputs": now.inputs}
    assert now.matches(earlier)
    assert not now.matches({**earlier, "keys": {**now.keys, "backbone.name": "hf-hub:/other"}})


def test_split_and_group_keys_affect_the_fingerprint_only_through_the_tiles() -> None:
    """The fingerprint omits these keys so that earlier fingerprints stay valid."""
    keys = {"tiles.test_fraction", "tiles.folds", "tiles.fold", "tiles.group_pattern"}
    assert keys <= set(select_keys(CONFIG, "data"))
    one = validate({"tiles": {"source": "folders", "path": "t", "splits": {"test": "a"}}}, "test")
    assert select_keys(one, "results")["tiles.splits"] == {"test": "a"}, "a string must not become a list"


def test_different_fold_changes_the_fingerprint(write_tiles: Callable[..., Path], tmp_path: Path) -> None:
    table = write_tiles("a.csv")
    pooled = {"splits": {"train": ["train", "validation", "test"]}, "folds": 4}
    folds = [table_fingerprint(tmp_path, table, **pooled, fold=fold) for fold in (0, 1)]
    assert folds[0].value != folds[1].value and folds[0].keys == folds[1].keys
