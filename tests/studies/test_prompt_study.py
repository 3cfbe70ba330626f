"""The prompt study: rows, page, students, and invalid configurations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from launching import run_program
from no_plots import PROMPT_PLOTS, leave_out_plots
from study_records import missing_columns

import clipit
from clipit.config.file import ConfigFile
from clipit.config.load import merge, nested, validate_file
from clipit.errors import ClipitError, ConfigError, DataError, ModelError
from clipit.evaluation.metrics import compute_metrics
from clipit.evaluation.zero_shot import prompt_embeddings, zero_shot_probabilities
from clipit.runs.train import train_run
from clipit.studies.prompt_wording.prompt_study import SCHEMA, prompt_study
from clipit.studies.prompt_wording.zero_shot_models import memoise, select_tiles
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
    "prompt_study.centred": True,
    "prompt_study.draws": 7,
    "prompt_study.candidates": 5,
    "prompt_study.screening_tiles": 10,
    "prompt_study.templates": ["a {stain} {organ} image of {} {magnification}", "{} {organ} {magnification} {stain}"],
    "prompt_study.organs": ["", "mucosa"],
    "evaluation.bootstrap": 20,
}


@pytest.fixture(scope="module")
def simple_prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "plain.yaml"
    path.write_text(yaml.safe_dump(SIMPLE), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def two_sets(world: dict[str, Any], shared_output: Path, simple_prompts: str) -> tuple[ConfigFile, Path]:
    """Configuration and folder of a study of rich and simple prompts, which tests must not modify."""
    keys = nested({**KEYS, "name": "ways", "prompt_study.simple": simple_prompts, "note": "A note."})
    config = validate_file(merge({**world, "output": shared_output}, keys), "test")
    return config, study(config)


@pytest.fixture(autouse=True)
def no_plots(two_sets: tuple[ConfigFile, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing all plots except those of the shared study, which runs first."""
    leave_out_plots(monkeypatch, PROMPT_PLOTS)


def study(file: ConfigFile, run: Path | None = None) -> Path:
    return prompt_study(file.run, file.prompt_study, Workspace(file.run), run)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    table = pq.read_table(folder / "prompts.parquet")
    assert table.schema.equals(SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def test_every_prompt_variant_has_a_row(two_sets: tuple[ConfigFile, Path]) -> None:
    config, folder = two_sets
    workspace = Workspace(config.run)
    rows = rows_of(folder)
    variants = {(row["subject"], row["prompts"]) for row in rows}
    assert variants == {(subject, prompts) for subject in ("VLM", "VLM, centred") for prompts in ("plain", "small")}
    for subject, prompts in variants:
        variant_rows = [row for row in rows if (row["subject"], row["prompts"]) == (subject, prompts)]
        kinds = [row["kind"] for row in variant_rows]
        assert (kinds.count("mode"), kinds.count("draw"), kinds.count("cell")) == (3, 7, 2 * 2 * 3 * 2)
        assert {row["split"] for row in variant_rows} == {"test"} and {row["tiles"] for row in variant_rows} == {24}
    ensemble = next(r for r in rows if (r["subject"], r["prompts"], r["mode"]) == ("VLM", "small", "ensemble"))
    test = workspace.all_tiles.of_split("test")
    store = workspace.tile_store("test")
    assert workspace.prompts is not None
    classes = prompt_embeddings(workspace.prompts, workspace.encode, None, test.classes)
    probabilities = zero_shot_probabilities(store.rows(store.positions(test.ids)), classes, workspace.vlm.logit_scale)
    expected = compute_metrics(test.labels, probabilities)
    assert {name: ensemble[name] for name in expected} == pytest.approx(expected)


def test_the_page_has_tables_plots_and_notes(two_sets: tuple[ConfigFile, Path]) -> None:
    _, folder = two_sets
    text = (folder / "prompts.md").read_text(encoding="utf-8")
    for part in (
        "A note.",
        "were not used to select a prompt",
        "sampled (7 draws): median",
        "Simple versus rich",
        "(none)",
        "at 40x",
        "without their labels",
    ):
        assert part in text
    truncated = next(line for line in text.splitlines() if line.startswith("| plain") and "the prompt set" in line)
    assert [cell.strip() for cell in truncated.split("|")[3:6]] == ["3", "1", "2"]
    for picture in ("prompts_spread.png", "prompts_grid.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_differences_of_rich_and_simple_prompts_are_written_to_json(two_sets: tuple[ConfigFile, Path]) -> None:
    config, folder = two_sets
    record = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    assert (
        record["commit"] is not None and record["command"] and record["versions"] and record["config"]["name"] == "ways"
    )
    differences = {(row["subject"], row["metric"]): row for row in record["differences"]}
    rows = {
        (row["subject"], row["prompts"]): row
        for row in rows_of(folder)
        if row["kind"] == "mode" and row["mode"] == "ensemble"
    }
    assert {subject for subject, _ in differences} == {"VLM", "VLM, centred"}
    for (subject, metric), row in differences.items():
        rich, plain = rows[subject, "small"], rows[subject, "plain"]
        assert row["value"] == pytest.approx(rich[metric] - plain[metric], abs=1e-6)
        assert (row["rich_hash"], row["simple_hash"]) == (rich["prompts_hash"], plain["prompts_hash"])
        assert (row["resamples"], row["seed"], row["tiles"]) == (20, config.run.seed, 24)
    shown = differences["VLM", "balanced_accuracy"]
    assert shown["low"] <= shown["high"]
    text = (folder / "prompts.md").read_text(encoding="utf-8")
    assert f"{shown['value']:+.3f} [{shown['low']:+.3f}, {shown['high']:+.3f}]" in text
    assert "20 resamples, seed 0" in text and "prompts.json" in text


def test_no_differences_without_a_second_prompt_set(configure_file: Callable[..., ConfigFile]) -> None:
    config = configure_file(KEYS, name="alone")
    folder = study(config)
    assert json.loads((folder / "prompts.json").read_text(encoding="utf-8"))["differences"] == []


def test_every_row_has_its_provenance(two_sets: tuple[ConfigFile, Path]) -> None:
    config, folder = two_sets
    workspace = Workspace(config.run)
    rows = rows_of(folder)
    assert not missing_columns(rows)
    assert all(row["prompts"] and row["prompts_hash"] for row in rows)
    assert {row["classes"] for row in rows} == {3} and {row["metric"] for row in rows} == {"balanced_accuracy"}
    assert {row["pixels"] for row in rows} == {32} and {row["preprocess"] for row in rows} == {
        workspace.vlm.preprocess.hash
    }
    assert {row["vlm_fingerprint"] for row in rows} == {workspace.vlm.fingerprint}
    centred_subjects = {row["subject"] for row in rows if row["index"] == workspace.index.artifact.fingerprint}
    assert centred_subjects == {"VLM, centred"}, "only centred scores depend on the mean of the snippets"


def test_truncated_tokens_are_counted(configure_file: Callable[..., ConfigFile], simple_prompts: str) -> None:
    config = configure_file(KEYS, name="cut", prompts=simple_prompts)
    workspace = Workspace(config.run)
    rows = rows_of(study(config))
    ensemble = next(row for row in rows if row["mode"] == "ensemble" and row["kind"] == "mode")
    text = SIMPLE["classes"]["tumour"][0]  # type: ignore[index]
    excess = workspace.vlm.count_tokens([text])[0] - workspace.vlm.context_length
    assert excess == 2
    assert (ensemble["cut_texts"], ensemble["cut_tokens"]) == (1, 2)


def test_the_study_is_reproducible_and_depends_on_the_seed(configure_file: Callable[..., ConfigFile]) -> None:
    config = configure_file(KEYS, name="again")
    first = rows_of(study(config))
    assert rows_of(study(config)) == first
    other = configure_file(KEYS, name="again", **{"prompt_study.seed": 1})
    assert rows_of(study(other)) != first


def test_a_student_is_scored_in_its_training_space(configure_file: Callable[..., ConfigFile], tmp_path: Path) -> None:
    config = configure_file(KEYS, name="student", output=tmp_path, arm="clip_it_all", **{"training.steps": 2})
    workspace = Workspace(config.run)
    run = train_run(config.run, workspace)
    folder = study(config, run)
    assert folder.name == f"student-{run.name}"
    rows = rows_of(folder)
    student = next(row for row in rows if row["subject"] == f"student {run.name}" and row["mode"] == "ensemble")
    assert not missing_columns(rows)
    assert student["run_seed"] == 0 and student["fingerprint"] != workspace.vlm.fingerprint
    scores = json.loads((run / "results.json").read_text(encoding="utf-8"))["splits"]["test"]["zero_shot"]["metrics"]
    assert student["balanced_accuracy"] == pytest.approx(scores["balanced_accuracy"]["value"])
    assert student["ece"] == pytest.approx(scores["ece"]["value"], abs=1e-4)


def test_a_student_without_text_is_an_error(configure_file: Callable[..., ConfigFile], tmp_path: Path) -> None:
    config = configure_file(KEYS, name="without-text", output=tmp_path, arm="image_only", **{"training.steps": 1})
    workspace = Workspace(config.run)
    run = train_run(config.run, workspace)
    with pytest.raises(ModelError, match="trained without text"):
        study(config, run)
    with pytest.raises(ClipitError, match="fix: "):
        study(config, tmp_path / "nowhere")


def test_invalid_prompt_sets_are_errors(configure_file: Callable[..., ConfigFile], world: dict[str, Any]) -> None:
    def run_study(**keys: Any) -> None:
        config = configure_file(KEYS | keys, name="invalid")
        study(config)

    with pytest.raises(ConfigError, match="no prompt set"):
        run_study(prompts=None)
    with pytest.raises(DataError, match="without prompts: gland"):
        run_study(prompts="pcam")
    with pytest.raises(DataError, match="without prompts: gland"):
        run_study(**{"prompt_study.simple": "pcam"})
    with pytest.raises(ConfigError, match="have the same name, small"):
        run_study(**{"prompt_study.simple": world["prompts"]})
    with pytest.raises(ConfigError, match="must contain each of"):
        run_study(**{"prompt_study.templates": ["an image of {}"]})


def test_screening_tiles_are_training_tiles_drawn_by_seed(configure_file: Callable[..., ConfigFile]) -> None:
    config = configure_file(KEYS)
    test, screening = select_tiles(config.run, config.prompt_study, Workspace(config.run))
    assert set(test.splits) == {"test"} and set(screening.splits) == {"train"}
    assert len(screening) == 10
    other = configure_file(KEYS, **{"prompt_study.seed": 1})
    assert select_tiles(other.run, other.prompt_study, Workspace(other.run))[1].ids.tolist() != screening.ids.tolist()


def test_only_some_modes_need_training_tiles(configure_file: Callable[..., ConfigFile], tmp_path: Path) -> None:
    keys = {"output": str(tmp_path), "tiles.splits": {"test": ["train", "validation", "test"]}, "reports": None}
    keys |= {"prompt_study.draws": 7, "evaluation.bootstrap": 20, "tiles.labels": {"kind": "all"}}
    with pytest.raises(DataError, match=r"(?s)no training tiles to screen prompts on.*prompt_study\.modes="):
        study(configure_file(keys))
    folder = study(configure_file(keys, **{"prompt_study.modes": ["single", "ensemble", "sampled"]}))
    modes = pq.read_table(folder / "prompts.parquet")["mode"].to_pylist()
    assert {"single", "ensemble", "sampled"} <= set(modes) and "screened" not in modes


def test_no_text_is_embedded_twice() -> None:
    encoded: list[str] = []

    def encode(texts: Any) -> np.ndarray:
        encoded.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    lookup = memoise(encode)
    np.testing.assert_array_equal(lookup(["a", "bb", "a"])[:, 0], [1, 2, 1])
    np.testing.assert_array_equal(lookup(["ccc", "bb"])[:, 0], [3, 2])
    assert encoded == ["a", "bb", "ccc"]


def test_only_centred_embeddings_need_reports(world: dict[str, Any], tmp_path: Path) -> None:
    values = {**world, "reports": {"min_words": 3}, "output": str(tmp_path / "out"), "name": "no-reports"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    centred = clipit.load_config(tmp_path / "c.yaml", {"prompt_study.centred": True, "probing.centred": True})
    assert centred.run.reports is None
    for measure in (study, clipit.probe):
        with pytest.raises(ConfigError, match=r"(?s)needs reports.*set reports\.path"):
            measure(centred)
    command = ("-m", "clipit", "prompts", "study", "--config", str(tmp_path / "c.yaml"), "--prompt_study.draws=2")
    done = run_program(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out/prompts/no-reports/prompts.parquet").is_file()
