"""Summarise a tile set at the start of a command: the tiles that were read, and missing information."""

import numpy as np

from clipit.config.run import TilesConfig
from clipit.errors import as_note, counted, printable, shortlist
from clipit.patients import patients
from clipit.tiles.datasets import DATASETS
from clipit.tiles.tileset import SPLITS, TileSet

_MAX_CLASSES = 10  # classes to list; the others are counted


def tiles_overview(tiles: TileSet, config: TilesConfig, title: str = "tiles", *, tests_only: bool = False) -> str:
    """Summarise the source, classes, splits, labels and patients of tiles, and list the effects of missing information.

    Args:
        config: Section `tiles` with which the tiles were read.
        tests_only: Whether the tiles are an additional test set, which needs no other splits.
    """
    counts = np.bincount(tiles.truth[tiles.truth >= 0], minlength=len(tiles.classes)).tolist()
    classes = [f"{name} {count:,}" for name, count in zip(tiles.classes, counts, strict=True)]
    groups = patients(tiles.groups, tiles.ids)
    lines = [
        f"{title}: {config.source} {config.path}",
        f"  {counted(len(tiles), 'tile')}, {counted(len(classes), 'class', 'classes')}: "
        f"{shortlist(classes, _MAX_CLASSES) or 'no labels'}",
    ]
    for split in SPLITS:
        in_split = tiles.splits == split
        if in_split.any():
            labelled = int((tiles.truth[in_split] >= 0).sum())
            unlabelled = int(in_split.sum()) - labelled
            labels = "no labels" if not labelled else f"{labelled:,} labelled, {unlabelled:,} not"
            labels = "all labelled" if labelled and not unlabelled else labels
            count, _, noun = counted(int(in_split.sum()), "tile").partition(" ")
            lines.append(f"  {split:<10} {count:>7} {noun}, {labels}, {_patients_of(groups[in_split])}")
    lines += [f"  labels used: {used}" for used in [_labels_used(config)] if used]
    problems = tile_problems(tiles, config, groups, tests_only=tests_only)
    lines += [f"  problem: {problem}{f': {fix}' if fix else ''}" for problem, fix in problems]
    lines += [f"  {as_note(note)}" for note in tiles.notes]
    return printable("\n".join(lines), keep="\n")


def _patients_of(groups: np.ndarray) -> str:
    known = groups[groups != ""]
    if not known.size:
        return "patients unknown"
    rest = int(groups.size - known.size)
    text = f"{counted(len(set(known.tolist())), 'patient or slide', 'patients or slides')}"
    return f"{text}, unknown for {counted(rest, 'tile')}" if rest else text


def _labels_used(config: TilesConfig) -> str:
    """Describe the limit on the labels that a run may use; "" without a limit."""
    labels = config.labels
    limits = {
        "all": "",
        "none": "none (tiles.labels.kind: none)",
        "fraction": f"{labels.value:.4g} of each class, drawn for each seed (tiles.labels)",
        "per_class": f"{labels.value:g} of each class, drawn for each seed (tiles.labels)",
    }
    return "" if labels.kind == "fraction" and labels.value == 1 else limits[labels.kind]


def tile_problems(
    tiles: TileSet, config: TilesConfig, groups: np.ndarray, *, tests_only: bool = False
) -> list[tuple[str, str]]:
    """List missing splits, labels and groups, each with its consequence and a fix; the fix is "" if there is none.

    Args:
        config: Section `tiles` with which the tiles were read.
        groups: Patient or slide of each tile; "" if unknown.
        tests_only: Whether the tiles are an additional test set, which needs no other splits.
    """
    problems = []
    masks = {split: tiles.splits == split for split in SPLITS}
    labelled = {split: mask & (tiles.truth >= 0) for split, mask in masks.items()}
    if not tests_only and not masks["train"].any():
        problems.append(("no train split, so nothing can be trained", "name it in tiles.splits"))
    elif not tests_only and not masks["validation"].any():
        problems.append(("no validation split, so the best step cannot be chosen", ""))
    if not masks["test"].any():
        problems.append(("no test split, so no test score", "hold one out with tiles.test_fraction or tiles.folds"))
    for split, effect in (
        ("train", "nothing can be learnt from labels"),
        ("validation", "the best step cannot be selected by labels"),
        ("test", "there is no test score"),
    ):
        if masks[split].any() and not labelled[split].any():
            problems.append((f"no labels in {split}, so {effect}", ""))
    uses_labels = {"train": config.labels.kind != "none", "test": True}
    for split in (split for split, used in uses_labels.items() if used):
        present = set(tiles.truth[labelled[split]].tolist())
        absent = [name for code, name in enumerate(tiles.classes) if code not in present]
        if absent and present:
            effect, fix = "so they are not scored", ""
            if split == "train":
                effect, fix = "so they cannot be learnt from labels", "label some, or drop or merge these classes"
                fix += " with tiles.class_map"
            problems.append((f"no labelled {split} tiles of {shortlist(absent)}, {effect}", fix))
    ungrouped = int((groups == "").sum())
    if ungrouped:
        how_many = "no groups" if ungrouped == len(tiles) else f"no group for {counted(ungrouped, 'tile')}"
        effect = "so tiles of one patient or slide may be in two splits, which makes scores too high"
        if tests_only:
            effect = "so patients or slides are not compared with those of the training tiles"
        fix = "add a `group` column with the patient or slide, or set tiles.columns.group or tiles.group_pattern"
        fix = "" if config.source in DATASETS else fix  # the groups of published data sets are documented
        problems.append((f"{how_many}, {effect}", tiles.advice or fix))
    return problems
