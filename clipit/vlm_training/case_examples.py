"""Examples from cases: tiles of a patient with the snippets of the patient's own reports."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipit.config.run import RunConfig
from clipit.config.vlm_training import AdaptArm, AdaptConfig
from clipit.distributed import build_once, get_processes
from clipit.errors import DataError
from clipit.output_files.artifacts import Artifact
from clipit.pairing.cases import Cases
from clipit.patients import patients
from clipit.reports.readers import Reports
from clipit.training.terms.case_labels import shuffled_order
from clipit.vlm_training.bag_batches import BagExamples, Members
from clipit.workspace.leak_policy import hash_images
from clipit.workspace.workspace import Workspace


def case_examples(
    config: RunConfig, section: AdaptConfig, arm: AdaptArm, seed: int, split: str, workspace: Workspace
) -> BagExamples:
    """Make examples from the patients of a split who have tiles and reports.

    Reports are split and filtered as for a text store. Reports of validation patients are used only for the validation
    loss, and reports of patients with tiles in several splits are dropped.

    Args:
        section: Section `adapt`.
        arm: Arm of the study. `shuffled_text` gives each patient the reports of another patient, with the same organ
            if possible; some of their sentences may by chance equal those of the patient's own report.
        split: train, validation or test.

    Raises:
        DataError: No patient of this split has both tiles and text, or the control has only one such patient.
    """
    tiles = workspace.all_tiles.of_split(split)
    cases = _cases_of(workspace, split)
    snippets = _own_snippets(workspace, cases)
    texts: list[str] = snippets.table("snippets.parquet").column("text").to_pylist()
    texts_of = _texts_of(snippets, cases)
    kept = np.flatnonzero(texts_of.lengths > 0)
    if not len(kept):
        raise DataError(
            f"no report of a {split} patient has a snippet left after filtering",
            where="reports",
            fix="relax the filters under `reports`",
        )
    number = np.full(len(cases.names), -1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    example_of = np.where(cases.case_of >= 0, number[cases.case_of], -1).astype(np.int64)
    tiles_of = Members.grouped(example_of, np.arange(len(tiles), dtype=np.int64), len(kept))
    partners = np.arange(len(kept), dtype=np.int64)
    if arm == "shuffled_text":
        partners = _draw_partners([cases.organs[case] for case in kept.tolist()], seed)
    used = int((example_of >= 0).sum())
    counts = {key: value for key, value in asdict(cases.counts).items() if key not in ("tiles", "cases")}
    return BagExamples(
        source=workspace.pixels_of(tiles, workspace.vlm.preprocess),
        tile_ids=tiles.ids.tolist(),
        texts=texts,
        tiles_of=tiles_of,
        texts_of=Members.of([texts_of[case] for case in kept.tolist()]),
        tiles_per_bag=section.cases.tiles,
        texts_per_bag=0 if arm == "images" else section.cases.snippets,
        batch_size=section.batch_size,
        seed=seed,
        groups=np.arange(len(kept), dtype=np.int64),
        partners=partners,
        pixel_codes=code_pixels(workspace, split),
        fingerprints={"tiles": tiles.fingerprint, "own reports": cases.fingerprint, "snippets": snippets.fingerprint},
        summary={
            "examples": len(kept),
            "tiles": used,
            "tiles_without_text": len(tiles) - used,
            "texts": len(texts),
            "patients_without_text": len(cases.names) - len(kept),
            **counts,
        },
    )


def code_pixels(workspace: Workspace, split: str) -> Int64[np.ndarray, "n"]:
    """Return a code per tile of a split, equal for tiles with the same pixels.

    With `leaks.pixels: off`, no image is compared, and every tile gets its own code.
    """
    tiles, config = workspace.all_tiles, workspace.config
    pixels = "off" if config.leaks.pixels == "off" else "exact"
    digests = hash_images(tiles, config, pixels)
    rows = np.flatnonzero(tiles.splits == split)
    if not isinstance(digests, np.ndarray):
        return np.arange(len(rows), dtype=np.int64)
    return np.unique(digests[rows], axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _cases_of(workspace: Workspace, split: str) -> Cases:
    """Join the tiles of a split with the reports of those patients who have no tiles in another split."""
    tiles = workspace.all_tiles
    if split == "train":
        return workspace.cases
    splits = np.where(tiles.splits == split, "train", "test")
    return workspace.cases_of(patients(tiles.groups, tiles.ids), splits)


def _own_snippets(workspace: Workspace, cases: Cases) -> Artifact:
    """Split the reports of these cases into snippets, with the filters of the text store."""
    corpus = Reports(
        tuple(report for reports in cases.reports for report in reports), (), workspace.reports_config.path
    )

    def make(folder: Path) -> dict[str, Any]:
        if not get_processes().main:
            return {}
        built = workspace.write_snippets(folder, corpus)
        return {"snippets": built.snippets.num_rows, "split_sentences": built.summary.split_sentences}

    return build_once(workspace.root, "own_snippets", workspace.snippet_inputs(corpus), make)


def _texts_of(snippets: Artifact, cases: Cases) -> Members:
    """Return the rows of the snippets of each case, without repetition."""
    names = snippets.table("snippets.parquet").column("snippet_id").to_pylist()
    row_of = {name: row for row, name in enumerate(names)}
    case_of = {report.report_id: case for case, reports in enumerate(cases.reports) for report in reports}
    sources = snippets.table("snippet_sources.parquet")
    rows: list[dict[int, None]] = [{} for _ in cases.names]
    for report, snippet in zip(
        sources.column("report_id").to_pylist(), sources.column("snippet_id").to_pylist(), strict=True
    ):
        rows[case_of[report]][row_of[snippet]] = None
    return Members.of([sorted(each) for each in rows])


def _draw_partners(organs: list[str], seed: int) -> Int64[np.ndarray, "n"]:
    """Draw a partner for each patient: another patient, whose reports replace the patient's own."""
    if len(organs) < 2:
        raise DataError(
            "only one patient has tiles and a report, so reports cannot be shuffled across patients",
            where="adapt.arms",
            fix="add patients, or remove shuffled_text from adapt.arms",
        )
    return shuffled_order(np.ones(len(organs), dtype=np.bool_), organs, seed)
