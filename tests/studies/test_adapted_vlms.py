"""The evaluation of adapted VLMs: scores before and after, differences with controls, and the page."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from launching import run_two
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score
from tiny_models import WORDS, MakeFile

import clipit
from clipit.api.vlm_adaptation import AdaptationResult
from clipit.config.file import ConfigFile
from clipit.config.load import NO_TILES, merge, nested, validate_file
from clipit.config.studies import ProbingConfig
from clipit.errors import ArtifactError, ClipitError, ConfigError, DataError, DivergenceError
from clipit.evaluation.intervals import Interval, t_interval
from clipit.evaluation.model_comparison import ModelDifference, Subject
from clipit.evaluation.significance import Significance
from clipit.evaluation.zero_shot import prompt_embeddings
from clipit.models.vlm_export import adapted_vlm
from clipit.reporting.adapt_facts import training_counts
from clipit.reporting.adapt_page import AdaptContent, adapt_sections, adapt_verdict
from clipit.reporting.study_page import render_markdown
from clipit.reporting.vlm_card import write_card_scores
from clipit.studies.adapted_vlms import adaptation_study
from clipit.studies.adapted_vlms.measure import measure_tiles, worse_than_chance
from clipit.studies.model_features import joint_features
from clipit.workspace.workspace import Workspace

pytestmark = pytest.mark.slow


def change_vlm(config: Any, section: Any, arm: str, seed: int, workspace: Workspace, measure: Any) -> Path:
    """Simulate an adaptation by perturbing the projections of the VLM."""
    folder: Path = config.output / "adapt" / config.name / f"{arm}-seed{seed}"
    shutil.copytree(config.vlm.name, folder / "vlm")
    weights = load_file(folder / "vlm" / "model.safetensors")
    rng = np.random.default_rng([seed, len(arm)])
    for name, value in weights.items():
        if name.endswith("projection.weight"):
            value += 0.3 * value.std() * value.new_tensor(rng.standard_normal(tuple(value.shape)))
    save_file(weights, folder / "vlm" / "model.safetensors", metadata={"format": "pt"})
    record = {"steps": 3, "seconds": 0.5, "examples": {"arm": arm, "examples": 18, "negatives_per_bag": 11.0}}
    (folder / "training.json").write_text(json.dumps(record))
    (folder / "vlm" / "README.md").write_text("# Card\n\n## Training\n\n- Seed\n\n## Limits\n\n- Many\n")
    rows = [{"step": step, "loss": 2.0 / (step + 1)} for step in range(4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measure(folder)
    return folder


@pytest.fixture(scope="module")
def keys(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Configuration keys with a report for each patient and an additional set that measures forgetting."""
    folder = tmp_path_factory.mktemp("adapted")
    rows = [
        {
            "id": f"{split}{n}",
            "text": f"Section {n} shows {WORDS[n % 30]}. <b>Seen</b> {split}.",
            "group": f"{split}-{n}",
        }
        for split, count in (("train", 18), ("validation", 6), ("test", 12))
        for n in range(count)
    ]
    (folder / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = {key: world[key] for key in ("tiles", "prompts")} | {"name": "other"}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    return {
        "reports.path": str(folder / "reports.jsonl"), "reports.group_column": "group", "reports.label_column": None,
        "output": str(folder / "out"), "adapt.seeds": [0, 1], "adapt.batch_size": 8,
        "adapt.arms": ["text", "shuffled_text"], "probing.at": [1, 5],
        "adapt.forgetting": {"<other>": {"config": str(folder / "other.yaml")}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def adapted(world: dict[str, Any], keys: dict[str, Any]) -> tuple[ConfigFile, AdaptationResult]:
    file = validate_file(merge(world, nested(keys)), "test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation_study, "adapt", change_vlm)
        return file, clipit.adapt_vlm(file)


def test_adaptations_that_diverge_do_not_stop_the_study(
    world: dict[str, Any], keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"output": str(tmp_path), "adapt.forgetting": {}, "adapt.seeds": [0, 1, 2], "evaluation.bootstrap": 100}
    file = validate_file(merge(world, nested(keys | changes)), "test")
    diverging = {("shuffled_text", 1)}

    def diverge(config: Any, section: Any, arm: str, seed: int, *others: Any) -> Path:
        if (arm, seed) in diverging:
            raise DivergenceError("training diverged: the loss in step 1 is infinite or not a number")
        shutil.rmtree(config.output / "adapt" / config.name / f"{arm}-seed{seed}", ignore_errors=True)
        return change_vlm(config, section, arm, seed, *others)

    monkeypatch.setattr(adaptation_study, "adapt", diverge)
    study = clipit.adapt_vlm(file)
    (failed,) = study.failed
    assert (failed["arm"], failed["seed"]) == ("shuffled_text", 1) and "the loss in step 1" in failed["reason"]
    scores = study.rows[study.rows.metric == "balanced_accuracy"]
    assert {*scores[scores.arm == "text"].seed} == {*scores[scores.arm == "shuffled_text"].seed} == {0, 2}
    for page in (study.folder / "adapt.html", study.folder / "adapt.md"):
        text = page.read_text(encoding="utf-8")
        assert "1 of 6 adaptations failed and has no score (shuffled_text, seed 1: training diverged" in text
        assert "use only the seeds 0, 2, which every arm has." in text
    diverging |= {("text", seed) for seed in (0, 1, 2)}
    study = clipit.adapt_vlm(file)
    assert len(study.failed) == 4 and "no adaptation of the arm 'text' has finished" in study.verdict
    assert "except text, which failed with every seed" in (study.folder / "adapt.md").read_text(encoding="utf-8")
    diverging |= {("shuffled_text", seed) for seed in (0, 2)}
    with pytest.raises(DivergenceError, match=r"(?s)nothing can be compared.*lower adapt\.learning_rate"):
        clipit.adapt_vlm(file)


def test_a_vlm_of_another_adaptation_is_an_error(
    world: dict[str, Any], keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"output": str(tmp_path), "adapt.forgetting": {}, "adapt.seeds": [0], "adapt.arms": ["text"]}
    file = validate_file(merge(world, nested(keys | changes)), "test")

    def exchange(config: Any, section: Any, arm: str, seed: int, workspace: Workspace, measure: Any) -> Path:
        folder = change_vlm(config, section, arm, seed, workspace, lambda folder: {})
        record = json.loads((folder / "training.json").read_text())
        (folder / "training.json").write_text(json.dumps(record | {"adapted_fingerprint": "0123456789abcdef"}))
        measure(folder)
        return folder

    monkeypatch.setattr(adaptation_study, "adapt", exchange)
    with pytest.raises(ArtifactError, match=r"(?s)belongs to a different adaptation.*0123456789abcdef.*adapt again"):
        clipit.adapt_vlm(file)


def test_scores_can_be_reproduced_with_the_adapted_vlm(adapted: tuple[ConfigFile, AdaptationResult]) -> None:
    file, result = adapted
    rows = result.rows
    zero_shot = rows[(rows.task == "zero-shot") & (rows.metric == "balanced_accuracy")]
    assert set(zero_shot.arm) == {"before", "text", "shuffled_text"} and len(zero_shot) == 5
    row = zero_shot[(zero_shot.arm == "text") & (zero_shot.seed == 1)].iloc[0]
    config = file.run.model_copy(update={"vlm": adapted_vlm(file.run.vlm, result.folder / "text-seed1")})
    workspace = Workspace(config)
    assert row.fingerprint == workspace.vlm.fingerprint != zero_shot[zero_shot.arm == "before"].iloc[0].fingerprint
    test = joint_features(workspace).split(workspace.all_tiles, "test")
    classes = np.stack(
        [
            workspace.encode([t.replace("{}", n) for t in ("{}.", "an image of {}.") for n in names]).mean(axis=0)
            for names in (["normal gland"], ["stroma with fibrosis"], ["tumour with atypia"])
        ]
    )
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    assert row.value == pytest.approx(balanced_accuracy_score(test.labels, (test.vectors @ classes.T).argmax(axis=1)))
    probes = rows[(rows.task == "linear probe") & (rows.metric == "auroc")]
    assert len(probes) == 6 and set(probes.labels) == {24}, "two seeds of each model; labels of train and validation"


def test_worse_than_chance_detects_swapped_class_names_only(world: dict[str, Any], tmp_path: Path) -> None:
    truth = np.repeat([0, 1], 20)
    assert worse_than_chance(truth, 1 - truth) == 0.0
    some_right = np.where(np.arange(40) % 20 < 5, truth, 1 - truth)
    assert worse_than_chance(truth, some_right) == pytest.approx(0.25)
    half_right = np.where(np.arange(40) % 2 == 0, truth, 1 - truth)
    assert worse_than_chance(truth, half_right) is None and worse_than_chance(truth, truth) is None
    assert worse_than_chance(truth, np.zeros(40, dtype=np.int64)) is None, "a constant prediction is exactly at chance"
    assert worse_than_chance(truth[18:22], 1 - truth[18:22]) is None, "four labels are too few"
    config = validate_file(merge(world, {"output": str(tmp_path / "out")}), "test").run
    workspace = Workspace(config)
    classes = workspace.all_tiles.classes
    validation = joint_features(workspace).split(workspace.all_tiles, "validation")
    predicted = zero_shot_predictions(workspace, validation.vectors)
    source = Path(world["tiles"]["path"])
    table = pd.read_csv(source, dtype=str, keep_default_na=False)
    for shift in (0, 1):  # labels that always agree with the prompts, and that never do
        shifted = [classes[(code + shift) % len(classes)] for code in predicted]
        labels = dict(zip(validation.ids.tolist(), shifted, strict=True))
        changed = table.assign(
            label=[labels.get(path, label) for path, label in zip(table.path, table.label, strict=True)],
            path=[str(source.parent / path) for path in table.path],
        )
        path = tmp_path / f"tiles{shift}.csv"
        changed.to_csv(path, index=False)
        keys = {"output": str(tmp_path / str(shift)), "tiles": {"path": str(path)}}
        config = validate_file(merge(world, keys), "test").run
        workspace = Workspace(config)
        scores = measure_tiles(config, ProbingConfig(), workspace, joint_features(workspace), (0,))
        used = int((workspace.tiles(0).of_split("validation").labels >= 0).sum())  # labels kept by the seed
        assert scores.below_chance == ((0.0, used) if shift else None)


def zero_shot_predictions(workspace: Workspace, vectors: np.ndarray) -> np.ndarray:
    """Class whose prompts are most similar to each vector."""
    assert workspace.prompts is not None
    classes = prompt_embeddings(workspace.prompts, workspace.encode, None, workspace.all_tiles.classes)
    return np.asarray((vectors @ classes.T).argmax(axis=1))


def test_the_card_of_an_adapted_vlm_contains_the_scores_of_its_seed(
    adapted: tuple[ConfigFile, AdaptationResult],
) -> None:
    result = adapted[1]
    card = (result.vlm("text", 1) / "README.md").read_text(encoding="utf-8")
    score = next(s for s in result.numbers["scores"] if s["task"] == "zero-shot" and s["metric"] == "auroc")
    after = result.rows.query("task == 'zero-shot' and metric == 'auroc' and arm == 'text' and seed == 1").value.item()
    line = next(line for line in card.splitlines() if line.startswith("| zero-shot, AUROC"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == [f"{score['mean']:.3f}", f"{after:.3f}"]
    assert card.index("## Training") < card.index("## Scores") < card.index("## Limits") and "linear probe" not in card
    write_card_scores(result.vlm("text", 1).parent, [("recall@5", None, float("nan"))])
    card = (result.vlm("text", 1) / "README.md").read_text(encoding="utf-8")
    assert card.count("## Scores") == 1 and "AUROC" not in card and "n/a" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt.batch_size": 500}, "a batch of 500"),
        ({"adapt.lora.targets": ["no_such_layer"]}, "no_such_layer"),
        ({"adapt.towers": ["text"], "adapt.arms": ["text", "images"]}, "remove the arm 'images'"),
        ({"reports.path": "missing.jsonl"}, "missing.jsonl"),
    ],
)
def test_invalid_arms_are_errors_before_the_vlm_is_measured(
    world: dict[str, Any], keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(adaptation_study, "_measure", lambda *_: pytest.fail("measured before the check"))
    with pytest.raises(ClipitError, match=message):
        clipit.adapt_vlm(validate_file(merge(world, nested(keys | changes | {"output": str(tmp_path)})), "test"))


def test_page_without_test_tiles() -> None:
    content = AdaptContent([], [], examples={"images": training_counts({"tiles": 30, "texts": 9, "own": 3}, "images")})
    text = render_markdown("x", "", adapt_sections(content), adapt_verdict(content))
    assert "could not be evaluated without labelled test tiles" in text
    assert "on the test tiles" not in text and "Differences" not in text and "controls" not in text
    assert "images" in text and "distinct texts" not in text and "reports used (of patients" in text


def test_differences_are_paired_within_and_between_tasks(
    adapted: tuple[ConfigFile, AdaptationResult],
) -> None:
    table, scores = adapted[1].table, adapted[1].scores
    for frame, key in ((scores, "scores"), (table, "contrasts")):
        assert [*frame.columns] == [name for name in adapted[1].numbers[key][0] if name != "seeds"]
    line = table.query(
        "task == 'zero-shot' and metric == 'auroc' and model == 'text' and reference == 'shuffled_text'"
    ).iloc[0]
    means = scores.query("task == 'zero-shot' and metric == 'auroc'").set_index("model")["mean"]
    assert line["difference"] == pytest.approx(means["text"] - means["shuffled_text"])
    assert line["low"] <= line["difference"] <= line["high"]
    comparisons = set(zip(table.task, table.model, table.reference_task, table.reference, strict=True))
    assert ("zero-shot", "text", "linear probe", "before") in comparisons
    assert ("zero-shot, <other>", "text", "zero-shot, <other>", "before") in comparisons
    assert ("text to image", "text", "text to image", "shuffled_text") in comparisons


def test_an_additional_set_with_the_same_tiles_has_the_same_scores(
    adapted: tuple[ConfigFile, AdaptationResult],
) -> None:
    means = adapted[1].scores.set_index(["task", "model", "metric"])["mean"]
    for model in ("before", "text"):
        assert means["zero-shot", model, "auroc"] == means["zero-shot, <other>", model, "auroc"]


def test_the_page_escapes_names_and_gives_the_verdict(adapted: tuple[ConfigFile, AdaptationResult]) -> None:
    result = adapted[1]
    page, text = result.page.read_text(encoding="utf-8"), result.report.read_text(encoding="utf-8")
    assert "&lt;other&gt;" in page and "<other>" not in page
    assert result.verdict.split(":")[0] in text and "shuffled_text" in text
    assert "mean number of negatives per bag" in page and "negatives_per_bag" not in page
    assert "text-seed0" not in result.verdict
    assert result.vlm("text", 1) == result.folder / "text-seed1" / "vlm"
    with pytest.raises(DataError, match="text, seed 1"):
        result.vlm("text", 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt.forgetting": {"x": {"tiles": "a.yaml"}}}, "expected only the key `config`"),
        ({"adapt.forgetting": {"x": {"config": "missing.yaml"}}}, "missing.yaml"),
    ],
)
def test_invalid_additional_sets_are_errors(configure_file: MakeFile, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clipit.adapt_vlm(configure_file(changes))


def test_own_adaptation_template_with_pairs_and_with_bags() -> None:
    file = clipit.load_config("own_adaptation", {"adapt.data": "pairs", "adapt.pairs.path": "captions.csv"})
    assert file.run.reports is None and file.adapt.bags.snippets <= file.run.pairing.k


def test_cases_require_tiles(world: dict[str, Any]) -> None:
    with pytest.raises(ClipitError, match="has no tiles"):
        clipit.adapt_vlm(validate_file(world | {"tiles": {"source": "table", "path": NO_TILES}}, "test"))


def test_pairs_can_be_exported_for_other_trainers(
    world: dict[str, Any], keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from clipit.cli.main import main

    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(merge(world, nested(keys))))
    command = ["clipit", "adapt", "--config", str(path), "--write-pairs", str(tmp_path / "pairs")]
    command.append("--adapt.batch_size=5000")  # the batch size does not matter because nothing is trained
    monkeypatch.setattr("sys.argv", command)
    main()
    assert "validation" in capsys.readouterr().out
    lines = (tmp_path / "pairs" / "train.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "filepath\ttitle" and Path(lines[1].split("\t")[0]).is_file()
    for wrong in ([*command, "--record", str(tmp_path / "a.csv")], [*command[:4], "--format", "csv"]):
        monkeypatch.setattr("sys.argv", wrong)
        with pytest.raises(SystemExit):
            main()
        assert wrong[-2] in capsys.readouterr().err


def test_two_processes_give_the_same_scores_as_one(world: dict[str, Any], keys: dict[str, Any], tmp_path: Path) -> None:
    changes = {"adapt.seeds": [0], "adapt.arms": ["text"], "adapt.steps": 2, "adapt.micro_batch": 3}
    values = merge(world, nested(keys | changes | {"output": str(tmp_path / "one")}))
    one = clipit.adapt_vlm(validate_file(values, "test"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values | {"output": str(tmp_path / "two")}))
    done = run_two("scripts/adapt_vlm.py", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stderr
    rows = [one.rows, AdaptationResult(tmp_path / "two" / one.folder.relative_to(tmp_path / "one")).rows]
    scores = [table.set_index(["task", "arm", "metric", "seed"]).value.sort_index() for table in rows]
    assert len(scores[0]) > 20
    pd.testing.assert_series_equal(*scores, rtol=1e-5)


def _difference(model: str, reference: str, seeds: list[float], groups: tuple[float, float]) -> ModelDifference:
    p = Significance(None, "few seeds")
    return ModelDifference(
        Subject("zero-shot", model), Subject("zero-shot", reference), "balanced_accuracy", dict(enumerate(seeds)),
        sum(seeds) / len(seeds), Interval(*groups), t_interval(seeds), p, p,
    )  # fmt: skip


UP, FLAT = ([0.2, 0.21, 0.22], (0.1, 0.3)), ([-0.02, 0.0, 0.02], (-0.1, 0.1))


@pytest.mark.parametrize(
    ("from_controls", "of_controls", "verdict", "addition"),
    [
        (UP, FLAT, "The text helped", "and more than with shuffled texts and with images alone"),
        (FLAT, UP, "Better than before, but so is a control", "not shown to be more than the change"),
        (FLAT, FLAT, "Better than before, but not shown to be better than a control", "not shown to be more"),
        (
            ([0.2], (0.1, 0.3)),
            FLAT,
            "Better than before, but the comparison with a control is undecided",
            "only one seed",
        ),
        (([0.2, 0.2], (0.1, 0.3)), FLAT, "Better than before, but the comparison", "no spread over seeds"),
    ],
)
def test_verdict_by_differences_from_controls(
    from_controls: Any, of_controls: Any, verdict: str, addition: str
) -> None:
    controls = ("shuffled_text", "images")
    contrasts = [_difference("text", "before", *UP)]
    contrasts += [_difference(arm, "before", *of_controls) for arm in controls]
    contrasts += [_difference("text", arm, *from_controls) for arm in controls]
    text = adapt_verdict(AdaptContent([], contrasts))
    assert text.startswith(verdict + (":" if verdict.endswith("control") else "")) and addition in text
    assert ("but so is a control" in text) == (from_controls is FLAT and of_controls is UP)
