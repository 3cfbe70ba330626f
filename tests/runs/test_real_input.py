"""Training on real colorectal tiles and real TCGA reports with configs/own_table.yaml, as documented."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from launching import ROOT, start

DATA = os.environ.get("CLIPIT_TEST_DATA")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA, reason="CLIPIT_TEST_DATA is not set: no real tiles and reports"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("own_table")
    data = Path(str(DATA))
    reports = (data / "reports" / "tcga_colon_reports_clipit.txt").read_text(encoding="utf-8").splitlines()
    report_file = tmp_path_factory.mktemp("reports") / "colon.txt"  # test_real_reports splits all of them
    report_file.write_text("\n".join(reports[:80]), encoding="utf-8")
    header, *rows = (data / "crc_polito5" / "labels.csv").read_text(encoding="utf-8").splitlines()
    labels_file = report_file.with_name("labels.csv")
    labels_file.write_text("\n".join([header, *rows[::8]]), encoding="utf-8")
    command = [
        *(ROOT / "scripts/train.py", "--config", "configs/own_table.yaml"),
        f"--tiles.path={labels_file}",
        f"--tiles.images={data / 'crc_polito5' / 'crc_polito5_tiles.zip'}",
        f"--reports.path={report_file}",
        *("--prompts=crc_polito5", "--tiles.labels.kind=per_class", "--tiles.labels.value=20"),
        *("--training.steps=20", "--training.evaluate_every=10", "--evaluation.bootstrap=50", f"--output={output}"),
    ]
    done = start(*command, plots=True).wait(540)
    assert done.returncode == 0, done.stderr
    assert "80  with text" in done.stdout, "the summary of the reports is printed"
    return output / "runs" / "own_table" / "clip_it_all-seed0"


def test_every_validation_and_test_tile_is_predicted(run: Path) -> None:
    table = pq.read_table(run / "predictions.parquet")
    splits = table.column("split").to_pylist()
    assert splits.count("test") == 50
    assert splits.count("validation") == 30


def test_summary_states_the_limits_of_the_scores(run: Path) -> None:
    summary = (run / "summary.md").read_text(encoding="utf-8")
    assert "say nothing about CLIP-IT on real pathology" in " ".join(summary.split())
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["provenance"]["training_labels"] == 100
    assert results["splits"]["test"]["metrics"]["accuracy"]["value"] > 0.25, "chance level is 0.2 for five classes"


def test_classifier_can_be_loaded_with_timm(run: Path) -> None:
    import timm
    import torch

    from clipit import load_classifier

    model = timm.create_model(f"local-dir:{run / 'classifier'}", pretrained=True).eval()
    ours = load_classifier(run / "classifier", "cpu")
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(pixels), ours.forward(pixels)[0], atol=1e-5, rtol=1e-5)


def test_the_classifier_contains_no_report_text(run: Path) -> None:
    snippets = next((run.parents[2] / "artefacts").glob("snippets-*/snippets.parquet"))
    texts = [text for text in pq.read_table(snippets).column("text").to_pylist() if len(text) > 20]
    exported = b"".join(path.read_bytes() for path in (run / "classifier").rglob("*") if path.is_file())
    assert len(texts) > 1000
    assert not [text for text in texts if text.encode() in exported]
