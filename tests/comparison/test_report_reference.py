"""Tests of comparisons with the patients' own reports: probes on report labels, verdicts and rebuilt pages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from logged_lines import capture_log
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny_models import CLASSES, WORDS, MakeFile

from clipit.comparison.compare import _check_reports, compare
from clipit.comparison.plan import plan_comparison
from clipit.comparison.rebuild import rebuild_comparison
from clipit.comparison.report_reference import score_report_probes
from clipit.comparison.vlm_reference import PROBE, score_reference, score_vlm
from clipit.config.file import ConfigFile
from clipit.config.run import RunConfig
from clipit.errors import DataError
from clipit.evaluation.predictions import read_predictions
from clipit.evaluation.probes import linear_probe
from clipit.evaluation.score_row import ScoreRow
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

FINDINGS = {f"train-{number}": CLASSES[number % 3] for number in range(14)}  # 4 of 18 patients have no report


@pytest.fixture
def own_config(configure_file: MakeFile, tmp_path: Path) -> ConfigFile:
    """A comparison with reports of 14 training patients, one test patient and one patient without tiles."""
    path = tmp_path / "own.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for patient, finding in {**FINDINGS, "test-0": "tumour", "elsewhere": "gland"}.items():
            text = f"{' '.join(WORDS[:8]).capitalize()}. {finding.capitalize()} is seen."
            stream.write(
                json.dumps({"id": f"r-{patient}", "patient": patient, "text": text, "finding": finding}) + "\n"
            )
    return configure_file(
        {
            "output": tmp_path / "out",
            "name": "own",
            "reports.path": str(path),
            "reports.group_column": "patient",
            "leaks.policy": "exclude",
            "training.steps": 2,
            "training.evaluate_every": 1,
            "evaluation.bootstrap": 20,
            "comparison.arms": ["image_only", "own_label", "own_case"],
            "comparison.seeds": [1, 2],
            "comparison.analyses": [],
            "comparison.pairing_page": 0,
        }
    )


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("reports", {"group_column": "id"}, "no training patient has a report"),
        ("leaks", {"policy": "error"}, "reports? of patients with validation or test tiles"),
    ],
)
def test_reports_are_checked_before_the_first_run(
    own_config: ConfigFile, tmp_path: Path, section: str, keys: dict[str, str], message: str
) -> None:
    changed = getattr(own_config.run, section).model_copy(update=keys)
    with pytest.raises(DataError, match=message):
        compare(own_config.run.model_copy(update={section: changed}), own_config.comparison)
    assert not (tmp_path / "out" / "runs").exists()


def test_seed_dependent_labels_are_checked_for_each_seed(
    own_config: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[tuple[str | None, int]] = []

    def labels(config: RunConfig, workspace: Workspace, tiles: TileSet) -> None:
        assert tiles is workspace.tiles(config.seed)
        checked.append((config.arm, config.seed))
        if len(checked) == 3:
            raise DataError("that is all")

    monkeypatch.setattr("clipit.comparison.compare.own_report_labels", labels)
    with pytest.raises(DataError, match="that is all"):
        compare(own_config.run, own_config.comparison)
    assert checked == [("own_label", 1), ("own_case", 1), ("own_case", 2)]


def test_reports_of_shifted_patients_are_a_warning(own_config: ConfigFile, tmp_path: Path) -> None:
    log_lines = capture_log()
    table = Path(own_config.run.tiles.path)
    rows = [row for row in table.read_text(encoding="utf-8").splitlines() if ",test," in row][:8]
    rows = [row.rpartition(",")[0] + ",elsewhere" for row in rows]
    (tmp_path / "far.csv").write_text("\n".join(["path,label,split,group", *rows]) + "\n", encoding="utf-8")
    shifted = own_config.run.tiles.model_copy(update={"path": str(tmp_path / "far.csv"), "images": str(table.parent)})
    changes = {"arms": ("image_only", "own_snippet"), "shifted": {"far": shifted}}
    leaks = own_config.run.leaks.model_copy(update={"pixels": "off"})
    comparison = own_config.comparison.model_copy(update=changes)
    (plan,) = plan_comparison(own_config.run.model_copy(update={"leaks": leaks}), comparison)
    _check_reports(plan, Workspace(plan.config))
    warning = "own_snippet may retrieve snippets from 1 report of patients in the shifted set far"
    assert any(warning in line for line in log_lines)


def vectors(workspace: Workspace, split: str) -> np.ndarray:
    store, tiles = workspace.tile_store(split), workspace.all_tiles.of_split(split)
    return store.rows(store.positions(tiles.ids)).astype(np.float64)


def propagate_report_labels(workspace: Workspace, seed: int) -> np.ndarray:
    """Label of each tile, or the finding of its patient if the tile is unlabelled."""
    train = workspace.tiles(seed).of_split("train")
    report_labels = [CLASSES.index(FINDINGS[group]) if group in FINDINGS else -1 for group in train.groups.tolist()]
    return np.where(train.labels >= 0, train.labels, report_labels)


def test_report_probe_is_fitted_on_tile_and_report_labels(own_config: ConfigFile, tmp_path: Path) -> None:
    (plan,) = plan_comparison(own_config.run, own_config.comparison)
    workspace = Workspace(plan.config)
    rows = score_report_probes(plan, workspace, tmp_path / "predictions")
    assert [(row.arm, row.seed) for row in rows] == [("reference: VLM probe on labels of own_label", s) for s in (1, 2)]
    labels, validation = propagate_report_labels(workspace, 1), workspace.tiles(1).of_split("validation").labels
    assert (labels >= 0).sum() > 56 > (workspace.tiles(1).of_split("train").labels >= 0).sum() == 12
    probe = linear_probe(vectors(workspace, "train"), labels, vectors(workspace, "validation"), validation, 3)
    test = workspace.all_tiles.of_split("test")
    predicted = probe.probabilities(vectors(workspace, "test"))
    assert rows[0].score == pytest.approx((predicted.argmax(axis=1) == test.labels).mean())
    path = tmp_path / "predictions" / "vlm-probe-on-labels-of-own_label-seed1-test.parquet"
    assert rows[0].predictions == path and rows[0].run is None and rows[0].tiles == 24
    np.testing.assert_allclose(read_predictions(path).probabilities, predicted, atol=1e-6)
    provenance = rows[0].provenance
    assert (provenance.training_labels, provenance.validation_labels, provenance.training_tiles) == (12, 12, 72)


def test_probes_without_tile_labels(own_config: ConfigFile, configure_file: MakeFile, tmp_path: Path) -> None:
    values = {**own_config.run.model_dump(mode="json"), "comparison": {"arms": ["own_label"], "baseline": "own_label"}}
    file = configure_file(values, **{"tiles.labels.kind": "none"})
    (plan,) = plan_comparison(file.run, file.comparison)
    workspace = Workspace(plan.config)
    row = score_report_probes(plan, workspace, tmp_path / "predictions")[0]
    x, y = vectors(workspace, "train"), propagate_report_labels(workspace, 0)
    scaler = StandardScaler().fit(x[y >= 0])
    expected = LogisticRegression(C=1, max_iter=2000).fit(scaler.transform(x[y >= 0]), y[y >= 0])
    test = workspace.all_tiles.of_split("test")
    assert row.score == expected.score(scaler.transform(vectors(workspace, "test")), test.truth)
    assert (row.provenance.training_labels, row.provenance.validation_labels) == (0, 0)
    plain = next(row for row in score_vlm(plan, workspace, tmp_path / "predictions") if row.arm == PROBE)
    assert plain.score is None and "0 classes and 0 validation labels" in str(plain.reason)


@pytest.mark.slow
def test_comparison_with_own_reports_has_references_and_verdicts(own_config: ConfigFile) -> None:
    folder = compare(own_config.run, own_config.comparison)
    name = "reference: VLM probe on labels of own_label"
    rows = [row for row in pq.read_table(folder / "comparison.parquet").to_pylist() if row["arm"] == name]
    assert [row["seed"] for row in rows] == [1, 2] and all(row["predictions_sha256"] for row in rows)
    assert all(row["parameters"] and row["tiles_per_second"] for row in rows)
    numbers = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    (result,) = numbers["verdicts"]
    assert (result["arm"], result["test_set"]) == ("own_label", "test") and result["verdict"]
    contrasts = {contrast["role"]: contrast for contrast in result["contrasts"]}
    lines = {line["arm"]: line["mean"] for line in numbers["lines"]}
    for role, control in (("baseline", "image_only"), ("case", "own_case"), ("report probe", name)):
        assert contrasts[role]["control"] == control
        assert contrasts[role]["difference"] == pytest.approx(lines["own_label"] - lines[control])
    assert contrasts["shuffled"]["control"] is None and contrasts["shuffled"]["over_seeds"]["reason"] == "not tested"
    facts = [note for note in numbers["notes"] if "training patients have a label" in note]
    assert [note.partition(":")[0] for note in facts] == ["own_label", "own_case"]
    labelled = "own_label: 14 of 18 training patients have a label (reports: gland 5, stroma 5, tumour 4)"
    assert facts[0].startswith(labelled)

    texts = {
        kind: (folder / f"comparison.{kind}").read_text(encoding="utf-8") for kind in ("md", "tex", "html", "json")
    }
    assert texts["md"].split("\n\n")[1] == numbers["verdict"] and numbers["verdict"].startswith("own_label")
    assert "## Verdicts" in texts["md"] and f"own_label: {result['verdict']}" in texts["md"]
    assert "Verdicts</h2>" in texts["html"] and name in texts["html"]
    for kind in ("md", "tex", "html"):
        (folder / f"comparison.{kind}").unlink()
    rebuild_comparison(own_config.run)
    assert texts == {kind: (folder / f"comparison.{kind}").read_text(encoding="utf-8") for kind in texts}


def test_comparison_without_report_labels_has_no_report_probes(own_config: ConfigFile, tmp_path: Path) -> None:
    comparison = own_config.comparison.model_copy(update={"arms": ("image_only", "clip_it_all", "own_case")})
    (plan,) = plan_comparison(own_config.run, comparison)
    assert score_report_probes(plan, Workspace(plan.config), tmp_path) == [] and not any(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    ("metric", "reason"),
    [("auroc", "no tile of class tumour"), ("balanced_accuracy", "over 2 of 3 classes; no tile of tumour")],
)
def test_reference_rows_state_why_a_score_is_undefined_or_restricted(
    own_config: ConfigFile, tmp_path: Path, metric: str, reason: str
) -> None:
    test = Workspace(own_config.run).all_tiles.of_split("test")
    test = replace(test, labels=np.where(test.labels == test.classes.index("tumour"), -1, test.labels))
    row = ScoreRow(
        data_set="d", backbone="b", arm="reference: VLM zero-shot", seed=0, test_set="test", metric=metric, score=None
    )
    probabilities = np.full((len(test), 3), 1 / 3, dtype=np.float32)
    scored = score_reference(row, test, probabilities, tmp_path / "p.parquet")
    assert (scored.score is None, scored.reason) == (metric == "auroc", reason)
