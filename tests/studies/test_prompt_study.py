"""The prompt study: its rows, its page, a student asked too, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from study_records import lacking

from clipit.config.run import RunConfig
from clipit.errors import ClipitError, ConfigError, DataError, ModelError
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.runs.train import train_run
from clipit.studies.prompts.study import SCHEMA, prompt_study
from clipit.studies.prompts.subjects import remembered, study_tiles
from clipit.workspace.workspace import Workspace

SIMPLE = {
    "name": "plain",
    "version": 1,
    "templates": ["{}"],
    "classes": {
        "gland": ["gland"],
        "stroma": ["stroma"],
        "tumour": ["tumour with more words than its text tower can read at once and three more words"],
    },
}
KEYS = {
    "zero_shot.draws": 7,
    "zero_shot.candidates": 5,
    "zero_shot.screening_tiles": 10,
    "zero_shot.templates": ["a {stain} {organ} image of {} {magnification}", "{} {organ} {magnification} {stain}"],
    "zero_shot.organs": ["", "mucosa"],
    "evaluation.bootstrap": 20,
}


@pytest.fixture
def simple(tmp_path: Path) -> str:
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(SIMPLE), encoding="utf-8")
    return str(path)


def quiet(config: RunConfig) -> Workspace:
    return Workspace(config)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    table = pq.read_table(folder / "prompts.parquet")
    assert table.schema.equals(SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_every_way_of_asking_is_a_row(configure: Callable[..., RunConfig], simple: str) -> None:
    config = configure(KEYS, name="ways", **{"zero_shot.simple": simple})
    workspace = quiet(config)
    folder = prompt_study(config, workspace)
    rows = rows_of(folder)
    asked = {(row["subject"], row["prompts"]) for row in rows}
    assert asked == {(who, what) for who in ("VLM", "VLM, centred") for what in ("plain", "small")}
    for subject, prompts in asked:
        own = [row for row in rows if (row["subject"], row["prompts"]) == (subject, prompts)]
        kinds = [row["kind"] for row in own]
        assert (kinds.count("mode"), kinds.count("draw"), kinds.count("cell")) == (3, 7, 2 * 2 * 3 * 2)
        assert {row["split"] for row in own} == {"test"} and {row["tiles"] for row in own} == {24}
    ensemble = next(r for r in rows if (r["subject"], r["prompts"], r["mode"]) == ("VLM", "small", "ensemble"))
    test = workspace.all_tiles.of_split("test")
    store = workspace.tile_store("test")
    assert workspace.prompts is not None
    classes = prompt_embeddings(workspace.prompts, workspace.encode, None, test.classes)
    probabilities = zero_shot_probabilities(store.rows(store.positions(test.ids)), classes, workspace.vlm.logit_scale)
    expected = compute_metrics(test.labels, probabilities)
    assert {name: ensemble[name] for name in expected} == pytest.approx(expected)


def test_the_page_says_what_a_reader_needs(configure: Callable[..., RunConfig], simple: str) -> None:
    config = configure(KEYS, name="page", **{"zero_shot.simple": simple, "note": "A note."})
    folder = prompt_study(config, quiet(config))
    text = (folder / "prompts.md").read_text(encoding="utf-8")
    for part in (
        "A note.",
        "only reported",
        "sampled (7 draws): median",
        "Simple against rich",
        "(none)",
        "at 40x",
        "no label read",
    ):
        assert part in text
    cut = next(line for line in text.splitlines() if line.startswith("| plain") and "own texts" in line)
    assert [cell.strip() for cell in cut.split("|")[3:6]] == ["3", "1", "2"]
    for picture in ("prompts_spread.png", "prompts_grid.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_rich_minus_simple_is_written_as_numbers(configure: Callable[..., RunConfig], simple: str) -> None:
    config = configure(KEYS, name="numbers", **{"zero_shot.simple": simple})
    folder = prompt_study(config, quiet(config))
    told = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    assert told["commit"] is not None and told["command"] and told["versions"] and told["config"]["name"] == "numbers"
    found = {(row["subject"], row["metric"]): row for row in told["differences"]}
    rows = {
        (row["subject"], row["prompts"]): row
        for row in rows_of(folder)
        if row["kind"] == "mode" and row["mode"] == "ensemble"
    }
    assert {who for who, _ in found} == {"VLM", "VLM, centred"}
    for (subject, metric), row in found.items():
        rich, plain = rows[subject, "small"], rows[subject, "plain"]
        assert row["value"] == pytest.approx(rich[metric] - plain[metric], abs=1e-6)
        assert (row["rich_hash"], row["simple_hash"]) == (rich["prompts_hash"], plain["prompts_hash"])
        assert (row["resamples"], row["seed"], row["tiles"]) == (20, config.seed, 24)
    shown = found["VLM", "balanced_accuracy"]
    assert shown["low"] <= shown["high"]
    text = (folder / "prompts.md").read_text(encoding="utf-8")
    assert f"{shown['value']:+.3f} [{shown['low']:+.3f}, {shown['high']:+.3f}]" in text
    assert "20 resamples, seed 0" in text and "prompts.json" in text


def test_without_a_second_set_there_is_no_difference(configure: Callable[..., RunConfig]) -> None:
    config = configure(KEYS, name="alone")
    folder = prompt_study(config, quiet(config))
    assert json.loads((folder / "prompts.json").read_text(encoding="utf-8"))["differences"] == []


def test_every_row_carries_what_it_was_measured_on(configure: Callable[..., RunConfig], simple: str) -> None:
    config = configure(KEYS, name="record", **{"zero_shot.simple": simple})
    workspace = quiet(config)
    rows = rows_of(prompt_study(config, workspace))
    assert not lacking(rows)
    assert all(row["prompts"] and row["prompts_hash"] for row in rows)
    assert {row["classes"] for row in rows} == {3} and {row["metric"] for row in rows} == {"balanced_accuracy"}
    assert {row["pixels"] for row in rows} == {32} and {row["preprocess"] for row in rows} == {
        workspace.vlm.preprocess.hash
    }
    assert {row["vlm_fingerprint"] for row in rows} == {workspace.vlm.fingerprint}
    moved = {row["subject"] for row in rows if row["index"] == workspace.index.artifact.fingerprint}
    assert moved == {"VLM, centred"}, "the snippets' mean has a part in these figures only"


def test_cut_tokens_are_counted(configure: Callable[..., RunConfig], simple: str) -> None:
    config = configure(KEYS, name="cut", prompts=simple)
    workspace = quiet(config)
    rows = rows_of(prompt_study(config, workspace))
    ensemble = next(row for row in rows if row["mode"] == "ensemble" and row["kind"] == "mode")
    text = SIMPLE["classes"]["tumour"][0]  # type: ignore[index]
    over = workspace.vlm.count_tokens([text])[0] - workspace.vlm.context_length
    assert over == 2
    assert (ensemble["cut_texts"], ensemble["cut_tokens"]) == (1, 2)


def test_the_same_again(configure: Callable[..., RunConfig]) -> None:
    config = configure(KEYS, name="again")
    first = rows_of(prompt_study(config, quiet(config)))
    assert rows_of(prompt_study(config, quiet(config))) == first
    other = configure(KEYS, name="again", **{"zero_shot.seed": 1})
    assert rows_of(prompt_study(other, quiet(other))) != first


def test_a_student_is_asked_in_the_space_it_was_taught(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configure(KEYS, name="asked", output=tmp_path, arm="clip_it_all", **{"training.steps": 2})
    workspace = quiet(config)
    run = train_run(config, workspace)
    folder = prompt_study(config, workspace, run)
    assert folder.name == f"asked-{run.name}"
    rows = rows_of(folder)
    student = next(row for row in rows if row["subject"] == f"student {run.name}" and row["mode"] == "ensemble")
    assert not lacking(rows)
    assert student["run_seed"] == 0 and student["fingerprint"] != workspace.vlm.fingerprint
    scores = json.loads((run / "results.json").read_text(encoding="utf-8"))["splits"]["test"]["zero_shot"]["metrics"]
    assert student["balanced_accuracy"] == pytest.approx(scores["balanced_accuracy"]["value"])
    assert student["ece"] == pytest.approx(scores["ece"]["value"], abs=1e-4)


def test_a_student_without_text_is_refused(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configure(KEYS, name="mute", output=tmp_path, arm="image_only", **{"training.steps": 1})
    workspace = quiet(config)
    run = train_run(config, workspace)
    with pytest.raises(ModelError, match="trained without text"):
        prompt_study(config, workspace, run)
    with pytest.raises(ClipitError, match="to do"):
        prompt_study(config, workspace, tmp_path / "nowhere")


def test_what_it_refuses(configure: Callable[..., RunConfig], world: dict[str, Any]) -> None:
    def study(**keys: Any) -> None:
        """A study of the small world with these keys."""
        config = configure(KEYS | keys, name="refused")
        prompt_study(config, quiet(config))

    with pytest.raises(ConfigError, match="no prompt set"):
        study(prompts=None)
    with pytest.raises(DataError, match="without prompts: gland"):
        study(prompts="pcam")
    with pytest.raises(DataError, match="without prompts: gland"):
        study(**{"zero_shot.simple": "pcam"})
    with pytest.raises(ConfigError, match="both called small"):
        study(**{"zero_shot.simple": world["prompts"]})
    with pytest.raises(ConfigError, match="must hold each of"):
        study(**{"zero_shot.templates": ["an image of {}"]})


def test_screening_tiles_are_training_tiles_and_drawn_by_seed(configure: Callable[..., RunConfig]) -> None:
    config = configure(KEYS)
    test, screening = study_tiles(config, quiet(config))
    assert set(test.splits) == {"test"} and set(screening.splits) == {"train"}
    assert len(screening) == 10
    other = configure(KEYS, **{"zero_shot.seed": 1})
    assert study_tiles(other, quiet(other))[1].ids.tolist() != screening.ids.tolist()


def test_no_text_is_embedded_twice() -> None:
    seen: list[str] = []

    def encode(texts: Any) -> np.ndarray:
        """Lengths of the texts."""
        seen.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    lookup = remembered(encode)
    np.testing.assert_array_equal(lookup(["a", "bb", "a"])[:, 0], [1, 2, 1])
    np.testing.assert_array_equal(lookup(["ccc", "bb"])[:, 0], [3, 2])
    assert seen == ["a", "bb", "ccc"]
