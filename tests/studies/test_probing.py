"""The probing study on a small world: reproducible scores, provenance, and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sklearn.neighbors import KNeighborsClassifier
from study_records import missing_columns
from tiny_models import MakeConfig, MakeFile

import clipit
from clipit.api.experiments import ProbeResult
from clipit.comparison.analyses.complementarity import (
    image_probe_predictions,
    mean_snippets,
    retrieved_text,
    text_only_predictions,
)
from clipit.comparison.analyses.pairing import prepare_rules
from clipit.config.file import ConfigFile
from clipit.errors import ArtifactError, DataError, ModelError
from clipit.evaluation.complementarity import complementarity
from clipit.evaluation.metrics import compute_metrics
from clipit.models.inference import load_classifier
from clipit.runs.feature_stores import saw_labels
from clipit.runs.train import train_run
from clipit.studies.model_features import backbone_features, classifier_features
from clipit.studies.probing.probing_study import probe
from clipit.studies.probing.text_retrieval import read_captions
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {
    "probing.centred": True,
    "probing.probes": ["linear", "adamw", "knn", "simple_shot"],
    "probing.adamw_steps": 20,
    "probing.episodes": 5,
    "probing.shots": [1, 30],
    "probing.shares": [0.01, 0.5, 1.0],
    "probing.seeds": [0, 1],
    "probing.at": [1, 5, 50],
    "evaluation.bootstrap": 20,
}


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory, world: dict[str, Any]) -> Path:
    """Table with a caption for every second test tile; two tiles share a caption, and one row occurs twice."""
    path = tmp_path_factory.mktemp("captions") / "captions.csv"
    lines = [
        f"images/test-{i:03d}.png,an image of {'tumour' if i % 3 else 'gland'} with {max(i, 2)} nuclei"
        for i in range(0, 24, 2)
    ]
    lines[1] = lines[0].replace("test-000", "test-002")
    lines.append(lines[5])
    path.write_text("\n".join(["tile_id,text", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def probed(
    world: dict[str, Any], shared_output: Path, captions: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ConfigFile, Path, Path]:
    """Configuration, run and result folder of a probing study."""
    from clipit.config.load import merge, nested, validate_file

    keys = SMALL | {"probing.captions": str(captions), "arm": "clip_it_all", "name": "probed"}
    file = validate_file(merge({**world, "output": shared_output}, nested(keys)), "test")
    run = train_run(file.run)
    return file, run, clipit.probe(file, run).folder


def test_rows_in_python_match_the_table(probed: tuple[ConfigFile, Path, Path]) -> None:
    result = ProbeResult(probed[2])
    assert len(result.rows) == pq.read_table(probed[2] / "probing.parquet").num_rows
    assert result.page.is_file() and result.report.is_file()


def rows_of(folder: Path, **criteria: object) -> list[dict[str, Any]]:
    rows = pq.read_table(folder / "probing.parquet").to_pylist()
    return [row for row in rows if all(row[key] == value for key, value in criteria.items())]


def test_every_model_has_every_probe_and_scores_can_be_reproduced(probed: tuple[ConfigFile, Path, Path]) -> None:
    file, run, folder = probed
    config = file.run
    subjects = {row["subject"] for row in rows_of(folder, task="knn")}
    assert {"VLM, joint space", "backbone, frozen", f"classifier {run.name}"} <= subjects
    for subject in subjects:
        assert {row["task"] for row in rows_of(folder, subject=subject, metric="accuracy")} >= set(file.probing.probes)
    workspace = Workspace(config)
    train, test = workspace.tiles(config.seed).of_split("train"), workspace.all_tiles.of_split("test")
    frozen = backbone_features(config, workspace)
    labelled = train.labels >= 0
    model = KNeighborsClassifier(min(20, int(labelled.sum())), metric="cosine", algorithm="brute")
    model.fit(frozen.vectors["train"][labelled], train.labels[labelled])
    row = rows_of(folder, subject="backbone, frozen", task="knn", metric="accuracy")[0]
    assert row["value"] == pytest.approx(model.score(frozen.vectors["test"], test.labels))
    assert (row["labels"], row["n"]) == (12, 24)
    assert row["low"] <= row["value"] <= row["high"]


def test_undefined_shares_and_shots_are_reported_with_a_reason(probed: tuple[ConfigFile, Path, Path]) -> None:
    _, _, folder = probed
    few = rows_of(folder, task="curve linear", share=0.01)
    assert few and all(row["value"] is None and "leaves no labels of class 0, 1, 2" in row["reason"] for row in few)
    assert all(row["value"] is not None for row in rows_of(folder, task="curve linear", share=0.5))
    assert all("fewer than 30" in row["reason"] for row in rows_of(folder, task="few_shot", k=30))
    page = (folder / "probing.md").read_text(encoding="utf-8")
    assert "fewer than 30 labelled training tiles of class 0, 1, 2" in page
    assert (folder / "label_efficiency.png").is_file()


def test_retrieval_between_tiles_prompts_and_captions(probed: tuple[ConfigFile, Path, Path]) -> None:
    _, _, folder = probed
    assert {row["n"] for row in rows_of(folder, task="text (class prompts) to image")} == {3}
    assert {row["k"] for row in rows_of(folder, task="image to text (single prompts)")} == {1, 5}
    recall = {(row["task"], row["k"]): row for row in rows_of(folder, metric="recall")}
    assert recall["caption to image", 50]["value"] == 1.0
    assert recall["caption to image", 50]["n"] == 11, "every distinct caption is a query"
    assert recall["image to caption", 1]["n"] == 12
    assert recall["image to caption", 1]["random"] == pytest.approx(1 / 11)
    assert recall["caption to image", 5]["random"] == pytest.approx(5 / 24)


def test_predictions_of_the_run_and_provenance_are_in_the_table(probed: tuple[ConfigFile, Path, Path]) -> None:
    _, run, folder = probed
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))["splits"]["test"]
    own_head = rows_of(folder, task="own head", metric="accuracy")[0]
    assert own_head["value"] == pytest.approx(results["metrics"]["accuracy"]["value"])
    prompted = rows_of(folder, task="zero_shot, student", metric="accuracy")[0]
    assert prompted["value"] == pytest.approx(results["zero_shot"]["metrics"]["accuracy"]["value"])
    facts = json.loads((folder / "probing.json").read_text(encoding="utf-8"))
    assert facts["run"] == str(run)
    assert facts["subjects"]["VLM, joint space"]["preprocess"]
    assert {"tiles", "commit", "command", "prompts"} <= set(facts)
    rows = rows_of(folder)
    assert not missing_columns(rows)
    prompt_tasks = {row["task"] for row in rows if row["prompts_hash"]}
    assert prompt_tasks == {
        "zero_shot", "zero_shot, centred", "zero_shot, student", "text (class prompts) to image",
        "image to text (single prompts)",
    }  # fmt: skip
    assert {row["seed"] for row in rows if row["share"] is not None} == {0, 1}
    run_rows = [row for row in rows if row["subject"] == f"classifier {run.name}"]
    assert all(row["run_seed"] == 0 and row["pairs"] and row["arm"] == "clip_it_all" for row in run_rows)


def test_features_that_saw_labels_are_marked(probed: tuple[ConfigFile, Path, Path], tmp_path: Path) -> None:
    _, run, folder = probed
    saw_labels_by_subject = {row["subject"]: row["features_saw_labels"] for row in rows_of(folder, task="few_shot")}
    assert saw_labels_by_subject.pop(f"classifier {run.name}") == "true" and set(saw_labels_by_subject.values()) == {
        "false"
    }
    page = (folder / "probing.html").read_text(encoding="utf-8")
    assert "saw labels" in page and "does not measure label efficiency" in page

    def saw_labels_of_run(tuning: str, labels: int, validation: int) -> str:
        (tmp_path / "config.yaml").write_text(f"backbone: {{tuning: {tuning}}}", encoding="utf-8")
        counts = {"training_labels": labels, "validation_labels": validation}
        (tmp_path / "training.json").write_text(json.dumps(counts), encoding="utf-8")
        return saw_labels(tmp_path)

    assert saw_labels(tmp_path) == "unknown", "the folder has no record"
    assert saw_labels_of_run("lora", 12, 12) == saw_labels_of_run("lora", 0, 12) == "true"
    assert saw_labels_of_run("lora", 0, 0) == saw_labels_of_run("frozen", 12, 12) == "false"
    saw_labels_of_run("lora", 12, 12)
    (tmp_path / "training.json").unlink()
    assert saw_labels(tmp_path) == "unknown"
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ArtifactError, match="configuration is damaged"):
        saw_labels(tmp_path)


def test_classifier_features_are_the_inputs_of_its_head(probed: tuple[ConfigFile, Path, Path]) -> None:
    file, run, _ = probed
    config = file.run
    workspace = Workspace(config)
    features = classifier_features(config, workspace, run).vectors["test"].astype(float)
    classifier = load_classifier(run / "classifier", "cpu")
    tiles = workspace.all_tiles.of_split("test")
    probabilities = classifier.predict_proba([tiles.read(i) for i in range(len(tiles))])
    head = load_file(run / "classifier" / "model.safetensors")
    logits = features @ head["head.weight"].T.astype(float) + head["head.bias"]
    expected = np.log(probabilities)
    np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], atol=1e-3)
    untrained = backbone_features(config, workspace).vectors["test"]
    assert np.abs(untrained - features).max() > 1e-3, "the adapter is not merged"


def test_features_are_cached(probed: tuple[ConfigFile, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    config = probed[0].run
    first = backbone_features(config, Workspace(config)).vectors

    def fail_to_read(self: object, index: int) -> None:
        raise AssertionError("a tile was read again")

    monkeypatch.setattr("clipit.tiles.tileset.TileSet.read", fail_to_read)
    workspace = Workspace(config)
    monkeypatch.setattr(workspace, "warn_about_view", lambda *a, **k: None)
    cached = backbone_features(config, workspace).vectors
    assert all((first[split] == cached[split]).all() for split in first)


def test_runs_of_another_configuration_and_folders_without_a_run_are_errors(
    probed: tuple[ConfigFile, Path, Path], tmp_path: Path
) -> None:
    file, run, _ = probed
    config = file.run
    tiles = config.tiles.model_copy(update={"classes": ("tumour", "gland", "stroma")})
    other = config.model_copy(update={"tiles": tiles})
    with pytest.raises(DataError, match="the classifier has the classes gland, stroma, tumour"):
        classifier_features(other, Workspace(other), run)
    with pytest.raises(DataError, match="the predictions have the classes"):
        probe(other, file.probing, run)
    with pytest.raises(DataError, match="this folder does not contain a finished run"):
        probe(config, file.probing, tmp_path)
    with pytest.raises(ModelError):
        classifier_features(config, Workspace(config), tmp_path)


def test_without_labels_probes_are_undefined_and_the_rest_is_measured(configure_file: MakeFile, tmp_path: Path) -> None:
    file = configure_file(SMALL, **{"tiles.labels.kind": "none", "name": "blank", "probing.shares": []})
    folder = probe(file.run, file.probing)
    assert all(row["value"] is None and row["reason"] for row in rows_of(folder, task="linear"))
    assert all(row["value"] is not None for row in rows_of(folder, task="zero_shot", metric="accuracy"))
    assert not (folder / "label_efficiency.png").exists()


def test_the_page_states_the_classes_that_the_scores_cover(
    configure_file: MakeFile, world: dict[str, Any], tmp_path: Path
) -> None:
    table = Path(world["tiles"]["path"])
    lines = [line for line in table.read_text().splitlines() if ",tumour,test," not in line]
    (tmp_path / "tiles.csv").write_text("\n".join(lines), encoding="utf-8")
    tiles = {"tiles.path": str(tmp_path / "tiles.csv"), "tiles.images": str(table.parent)}
    keys = {**SMALL, "probing.shares": [], "probing.shots": [1], "probing.probes": ["knn"], "name": "two"}
    file = configure_file(**keys, **tiles)
    page = (probe(file.run, file.probing) / "probing.md").read_text(encoding="utf-8")
    assert "No tile of the test split has the class tumour: balanced accuracy and F1 are averaged over" in page
    assert "the other 2 of 3 classes" in page


def test_invalid_captions_are_errors(tmp_path: Path) -> None:
    known = np.array(["007", "b"])
    path = tmp_path / "captions.csv"

    def write_captions(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    assert read_captions(write_captions("tile_id,text\n007,a gland\n"), known) == (["007"], ["a gland"])
    assert read_captions(write_captions(" tile_id, text\n007 , a gland\n"), known) == (["007"], [" a gland"])
    for text, message in (
        ("tile,text\n007,x\n", "missing columns: tile_id"),
        ("tile_id,text\n007,x\n8,y\n", "1 caption belongs to no test tile: 8"),
        ("tile_id,text\nb,\n", "no text for b"),
        ("tile_id,text\nb,nan\n", "no text for b"),
        ("tile_id,text\nb,--\n", "no text for b"),
        ("tile_id,text\nb,a\0gland\n", "no text for b"),
        ("tile_id,text\n", "no caption"),
        ("tile_id,text\nb,x,y\n", "has 3 fields, but the header has 2"),
        ('tile_id,text\nb,"x\n007,y\n', "malformed row"),
        ('tile_id,text\nb,"x\n007,y"\n', r"record 1 \(line 2\) contains 1 additional row in column text"),
        ('tile_id,text\nb,"x, w\n007,y"\n', r"this caption contains the rows of 007(?s:.*)line 2"),
    ):
        with pytest.raises(DataError, match=message):
            read_captions(write_captions(text), known)
    path.write_bytes(b"tile_id,text\nb,caf\xe9\n")
    with pytest.raises(DataError, match=r"(?s)not UTF-8 text.*line 2\n"):
        read_captions(path, known)
    with pytest.raises(DataError, match=r"no such caption file(?s:.*) contains captions.csv"):
        read_captions(tmp_path / "nowhere.csv", known)


def test_captions_of_tiles_whose_paths_are_written_in_another_way(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("tile_id,text\nset\\a.png,a gland\n./set/b.png,stroma\nset\\a.png,a duct\n", encoding="utf-8")
    ids, _ = read_captions(path, np.array(["set/a.png", "set/b.png"]))
    assert ids == ["set/a.png", "set/b.png", "set/a.png"]


def test_long_captions_with_line_breaks(tmp_path: Path) -> None:
    ids = [f"{i:04d}" for i in range(3000)]
    text = "a gland,\n" * 100
    path = tmp_path / "captions.csv"
    path.write_text("tile_id,text\n" + "".join(f'{name},"{text}"\n' for name in ids), encoding="utf-8")
    assert path.stat().st_size > 2_000_000
    assert read_captions(path, np.array(ids)) == (ids, [text] * len(ids))


def test_retrieved_texts_of_training_tiles_match_their_pairs(configure: MakeConfig) -> None:
    for block in (7, 4096):
        workspace = Workspace(configure({"pairing.block": block}))
        pairs = dict(
            zip(*(workspace.pairs.table.column(name).to_pylist() for name in ("tile_id", "snippet_id")), strict=True)
        )
        index, ids = workspace.index, workspace.all_tiles.of_split("train").ids
        paired = index.vectors(np.searchsorted(index.ids, [pairs[tile] for tile in ids.tolist()]))
        np.testing.assert_allclose(retrieved_text(workspace)["train"], paired, atol=1e-3)
    dim = index.store.dim
    none = np.empty((0, dim), dtype=np.float32)
    assert mean_snippets(workspace, prepare_rules(workspace), none).shape == (0, dim)


def test_text_only_and_image_probe_predict_test_tiles_without_writing_pairs(configure: MakeConfig) -> None:
    workspace = Workspace(configure())
    pairs = workspace.pairs.table.num_rows
    before = sorted(path.name for path in workspace.root.iterdir())
    text, image = text_only_predictions(workspace, 0), image_probe_predictions(workspace, 0)
    test = workspace.all_tiles.of_split("test")
    assert text.ids.tolist() == image.ids.tolist() == test.ids.tolist()
    assert not np.allclose(text.probabilities, image.probabilities)
    created = {path.name for path in workspace.root.iterdir()} - set(before)
    assert not any(name.startswith("pairs") for name in created)
    assert workspace.pairs.table.num_rows == pairs == 72
    counts = complementarity(image, text, 10)
    assert counts.tiles == 24
    accuracy = compute_metrics(image.labels, image.probabilities)["accuracy"]
    assert (counts.both + counts.only_vision) / 24 == pytest.approx(accuracy)
