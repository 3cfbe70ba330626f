"""Effects of keys: declared at each key, and decisive for a run's fingerprint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from clipit.artifacts import write_json
from clipit.config.effects import EFFECTS, field_effect, select_keys
from clipit.config.load import validate
from clipit.config.run import RunConfig
from clipit.errors import ArtifactError
from clipit.runs.fingerprint import RunFingerprint, run_fingerprint
from clipit.runs.folder import check_fingerprint
from clipit.training.arms import resolve_arm
from clipit.workspace.workspace import Workspace

CONFIG = validate({"tiles": {"source": "folders", "path": "tiles"}, "reports": {"path": "r"}, "second_vlm": {}}, "test")


def all_leaves(config: BaseModel, section: str = "results", prefix: str = "") -> dict[str, str]:
    """Every key that holds a value, with its effect: an independent reading of the declarations."""
    leaves: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        declared = [marker.effect for marker in field.metadata if type(marker).__name__ == "KeyEffect"]
        effect, value = declared[0] if declared else section, getattr(config, name)
        if isinstance(value, BaseModel):
            leaves |= all_leaves(value, effect, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = effect
    return leaves


def changed(config: BaseModel, key: str) -> Any:
    """The configuration with another value of a key, which is not validated."""
    name, _, rest = key.partition(".")
    value = changed(getattr(config, name), rest) if rest else "another value"
    return config.model_copy(update={name: value})


LEAVES = all_leaves(CONFIG)


def keys_of_a_run(config: RunConfig) -> str:
    return RunFingerprint(select_keys(config, "results"), {}).value


def test_every_key_has_one_of_the_effects() -> None:
    assert len(LEAVES) > 130 and set(LEAVES.values()) == set(EFFECTS)
    selected = [key for effect in EFFECTS for key in select_keys(CONFIG, effect)]
    assert sorted(selected) == sorted(LEAVES), "each key once"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("key", sorted(LEAVES))
def test_a_key_changes_the_fingerprint_exactly_if_it_changes_results(key: str) -> None:
    assert (keys_of_a_run(changed(CONFIG, key)) != keys_of_a_run(CONFIG)) == (LEAVES[key] == "results")


def test_keys_of_speed_and_reporting() -> None:
    """What a user may change without training again; a key that joins this list must not change a number."""
    assert set(select_keys(CONFIG, "speed")) == {
        "vlm.batch_size", "second_vlm.batch_size", "pairing.block", "training.threads", "training.cache_tiles",
        "training.checkpoint_every", "evaluation.batch_size",
    }  # fmt: skip
    assert set(select_keys(CONFIG, "reporting")) == {
        "name", "output", "note", "training.log_every", "tracking.tracker", "tracking.project", "tracking.wandb_mode",
    }  # fmt: skip
    assert set(select_keys(CONFIG, "recipe")) == {"arm", "arms", "overrides"}
    assert select_keys(CONFIG.evaluation, "evaluation") == {"splits": ["validation", "test"], "bootstrap": 1000}


def test_a_field_has_the_effect_of_its_section_unless_it_declares_one() -> None:
    assert field_effect(RunConfig, "tracking") == "reporting" and field_effect(RunConfig, "lora") == "results"
    assert field_effect(type(CONFIG.vlm), "batch_size") == "speed"
    assert field_effect(type(CONFIG.leaks), "policy", "data") == "data"


def test_a_fingerprint_names_what_differs(configure: Callable[..., RunConfig]) -> None:
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
    assert other.differences(record) == ["lora.rank", "tiles.labels.seed", "labels of tiles"]


def test_the_folder_of_another_run_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"fingerprint": "x", "keys": {"seed": 0, "lora.rank": 8}, "inputs": {"VLM": "a"}})
    with pytest.raises(ArtifactError, match=r"(?s)another configuration; differences: lora\.rank, VLM\n.*--name"):
        check_fingerprint(tmp_path, RunFingerprint({"seed": 0, "lora.rank": 16}, {"VLM": "b"}))
    write_json(tmp_path / "run.json", {"fingerprint": "x"})
    with pytest.raises(ArtifactError, match=r"(?s)written by an earlier version of clipit\n.*delete the run's folder"):
        check_fingerprint(tmp_path, RunFingerprint({}, {}))
