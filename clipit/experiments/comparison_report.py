"""What a comparison says, for people: comparison.md, comparison.tex and comparison.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from clipit.artifacts import read_json, whole_file
from clipit.config import Config
from clipit.evaluation.intervals import Difference
from clipit.evaluation.predictions import read_predictions
from clipit.evaluation.significance import FEWEST_SEEDS, paired_bootstrap_over_tiles
from clipit.experiments.cells import Setting
from clipit.experiments.comparison_pooled import confusion_sections
from clipit.experiments.comparison_rows import COSTS, RECORD
from clipit.experiments.published import CAUTION, SOURCE, published
from clipit.experiments.why import Finding
from clipit.reporting.comparison_page import comparison_page, raw_rows, seed_figure
from clipit.reporting.comparison_tables import (
    HEADER,
    PERCENT,
    Line,
    latex_table,
    lines,
    main_table,
    shown_columns,
    table_one,
)
from clipit.reporting.html import Figure, Section, Table, Text, write_page
from clipit.reporting.label_plots import label_curves_plot
from clipit.reporting.plane_plot import plane_plot
from clipit.reporting.tables import markdown_table
from clipit.training.arms import resolve_arm

Row = Mapping[str, Any]


def write_report(
    config: Config, settings: Sequence[Setting], rows: Sequence[Row], why: Sequence[Finding], folder: Path
) -> None:
    """Write all three files; what they show is computed from the rows and from the runs' predictions."""
    c = config.comparison
    resamples = config.evaluation.bootstrap

    def over_tiles(base: Sequence[Row], arm: Sequence[Row]) -> Difference | None:
        """Paired bootstrap over the test tiles of these runs."""
        if any(row["score"] is None for row in (*base, *arm)):
            return None
        tables = [[read_predictions(Path(row["predictions"])).select("test") for row in side] for side in (base, arm)]
        return paired_bootstrap_over_tiles(list(zip(*tables, strict=True)), c.metric, resamples)

    made = lines(rows, c.baseline, over_tiles)
    students = [row for row in rows if row.get("run")]
    against = {control: lines(students, control, over_tiles) for control in c.controls}
    known = {
        (s.data_set, s.backbone, arm): published(s.config.tiles.source, s.backbone, arm)
        for s in settings
        for arm in s.arms
        if s.config.tiles.labels.kind == "all"  # the published figures used all labels
    }
    beside = SOURCE if any(known.values()) else ""
    notes = _notes(config, settings, made, beside)
    with whole_file(folder / "comparison.md") as temporary:
        temporary.write_text(_markdown(config, made, against, known, notes, why), encoding="utf-8")
    with whole_file(folder / "comparison.tex") as temporary:
        temporary.write_text(_latex(config, made, known), encoding="utf-8")
    sections = _sections(config, made, against, known, notes, why, rows, folder)
    write_page(folder / "comparison.html", comparison_page(config.name, " ".join(config.note.split()), sections))


def _notes(config: Config, settings: Sequence[Setting], made: Sequence[Line], beside: str) -> list[str]:
    c = config.comparison
    n = len(c.seeds)
    notes = [
        f"{c.metric.replace('_', ' ')} in %, mean and standard deviation over {n} seed{'s' * (n > 1)}. Differences are "
        f"paired by seed, against {c.baseline}, with two 95 % intervals: Student's t over seeds ({_varies(config)}"
        "initialisation, batches and augmentation vary; tiles, VLM and backbone are fixed), and a paired bootstrap "
        f"over what is independent in the test sets ({_resampled(made)}; {config.evaluation.bootstrap} resamples, the "
        "same for all seeds).",
        f"p: paired t-test over seeds, Holm-corrected over all arms, data sets and backbones of a test set; none under "
        f"{FEWEST_SEEDS} seeds.",
    ]
    if n == 1:
        notes.append("One seed only: no interval over seeds, and no p.")
    if any("_at_" in arm for s in settings for arm in s.arms):
        notes.append(
            "..._at_N_steps: the same arm at the steps of the longest one, so that no arm is shown with less training."
        )
    notes += _tuning(config, settings)
    notes += _below_reference(made)
    notes += [f"{' / '.join(line.key)}: {_reason(line)}" for line in made if line.mean is None]
    over = {str(row["reason"]) for line in made for row in line.rows if str(row.get("reason", "")).startswith("over ")}
    notes += [f"{c.metric.replace('_', ' ')}: {text}." for text in sorted(over)]
    if beside:
        notes += [f"Published: {beside}. {CAUTION}"]
    return notes


def _varies(config: Config) -> str:
    labels = config.tiles.labels
    return "labelled tiles, " if labels.kind in ("fraction", "per_class") and labels.seed is None else ""


def _resampled(made: Sequence[Line]) -> str:
    found = {line.key[2]: str(row["resampled"]) for line in made for row in line.rows if row.get("resampled")}
    return ", ".join(f"{part}: {what}" for part, what in found.items()) or "tiles, or groups where known"


def _tuning(config: Config, settings: Sequence[Setting]) -> list[str]:
    """How the arms came by their learning rates, steps and other keys: what is known of it, and no more."""
    first = settings[0]
    seed = config.comparison.seeds[0]
    chosen = {}
    for arm in config.comparison.arms:
        t = resolve_arm(first.run(arm, seed)).training
        chosen[arm] = (t.learning_rate, t.steps)
    if len(set(chosen.values())) == 1:
        (rate, steps) = next(iter(chosen.values()))
        notes = [f"Not tuned: all arms at learning rate {rate:g} and {steps} steps."]
    else:
        c = config.comparison
        searched = config.output / "tuning" / f"{config.name}.json"
        found = read_json(searched, "delete it and tune again").get("arms", {}) if searched.is_file() else {}
        same = all(arm in found and found[arm] == config.arms.get(arm) for arm in c.arms)
        how = f"chosen by scripts/tune.py on validation tiles ({searched.name})" if same else "set in the configuration"
        notes = [
            f"Learning rates and steps per arm: {how}, all within one grid of {len(c.learning_rates)} learning rates x "
            f"{len(c.steps)} steps."
        ]
        edges = [arm for arm, (rate, _) in chosen.items() if rate in (min(c.learning_rates), max(c.learning_rates))]
        if edges and len(c.learning_rates) > 1:
            notes.append(f"At the edge of the grid, where a wider one might do better: {', '.join(edges)}.")
    if len(settings) > 1:
        notes.append("The same keys on every data set and backbone: nothing was chosen anew for any of them.")
    own = {
        arm: {k: v for k, v in config.arms.get(arm, {}).items() if k not in (*_GRID, "base")}
        for arm in config.comparison.arms
    }
    told = [f"{arm}: {', '.join(f'{k} {v}' for k, v in keys.items())}" for arm, keys in own.items() if keys]
    if told:
        notes.append(f"Keys beside the grid that the configuration gives to single arms: {'; '.join(told)}.")
    return notes


_GRID = ("training.learning_rate", "training.steps")


def _reason(line: Line) -> str:
    reasons = {str(row.get("reason")) for row in line.rows if row.get("reason")}
    return "not defined" + (f" ({'; '.join(sorted(reasons))})" if reasons else "")


def _below_reference(made: Sequence[Line]) -> list[str]:
    """A sentence per setting where students stay below the VLM itself on the test split."""
    notes = []
    for place in dict.fromkeys(line.key[:2] for line in made):
        here = [line for line in made if line.key[:2] == place and line.key[2] == "test" and line.mean is not None]
        references = [line for line in here if line.reference]
        if not references:
            continue
        best = max(references, key=lambda line: line.mean or 0.0)
        below = [line.key[3] for line in here if not line.reference and (line.mean or 0.0) < (best.mean or 0.0)]
        if below:
            shown = PERCENT * (best.mean or 0.0)
            notes.append(f"Below the best reference row ({best.key[3]}, {shown:.1f}): {', '.join(below)}.")
    return list(dict.fromkeys(notes))


def _costs(made: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    header = [
        "arm",
        "learning rate",
        "steps",
        "chosen",
        "tiles seen",
        "seconds",
        "parameters",
        "tiles/s",
        "by prompts %",
    ]
    rows = []
    for line in made:
        if line.key[2] == "test":
            read = [row["zero_shot"] for row in line.rows if row.get("zero_shot") is not None]
            shown = f"{PERCENT * mean(read):.1f}" if read else ""
            rows.append([" / ".join(line.key[:2] + line.key[3:]), *(_plain(line.rows, key) for key in COSTS), shown])
    alone = len({line.key[:2] for line in made}) == 1
    return header, [[row[0].rsplit(" / ", 1)[-1] if alone else row[0], *row[1:]] for row in rows]


def _plain(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values:
        return ""
    return f"{np.mean(values):g}" if key == "learning_rate" else f"{np.mean(values):,.0f}"


_COST_NOTE = (
    "chosen: the step with the best validation score. seconds: training, with validation and the first reading of "
    "tiles. parameters and tiles/s: at inference, of images only. by prompts: the same student read through its "
    "projection and the class prompts, test split."
)


_AGAINST = (
    "The same runs with the control in the place of the baseline; p-values are corrected over this table's arms, data "
    "sets and backbones."
)


def _ones(config: Config, made: Sequence[Line]) -> list[tuple[str, list[str], list[list[str]]]]:
    c = config.comparison
    others = [arm for arm in c.arms if arm != c.baseline]
    arms = [arm for arm in ("clip_it_paper", "clip_it_all", *others) if arm in others][:1]
    return [(f"{c.baseline} -> {arm}", *table_one(made, c.baseline, arm)) for arm in arms]


def _markdown(
    config: Config,
    made: Sequence[Line],
    against: Mapping[str, Sequence[Line]],
    known: Mapping[tuple[str, str, str], str],
    notes: Sequence[str],
    why: Sequence[Finding],
) -> str:
    parts = [f"# {config.name}", main_table(made, known), *notes]
    if config.note:
        parts.append(" ".join(config.note.split()))
    for control, own in against.items():
        parts += [f"## Against {control}", main_table(own), _AGAINST]
    for title, header, rows in _ones(config, made):
        parts += [f"## {title}", markdown_table(header, rows)]
    parts += ["## Costs", markdown_table(*_costs(made)), _COST_NOTE]
    for finding in why:
        parts += [f"## {finding.heading}", finding.text, markdown_table(finding.header, finding.rows)]
    return "\n\n".join(parts) + "\n"


def _latex(config: Config, made: Sequence[Line], known: Mapping[tuple[str, str, str], str]) -> str:
    caption = f"{config.name}: {config.comparison.metric.replace('_', ' ')} in %, {len(config.comparison.seeds)} seeds."
    tables = [latex_table(*shown_columns(made, known), caption)]
    tables += [latex_table(header, rows, f"{title}. {caption}") for title, header, rows in _ones(config, made)]
    return "\n".join(tables)


def _scores(made: Sequence[Line], known: Mapping[tuple[str, str, str], str]) -> Table:
    header, cells = shown_columns(made, known)
    traces = [f"comparison.parquet: {', '.join(filter(None, line.key))}" for line in made]
    return Table(header, cells, traces, left=sum(name in HEADER[:4] for name in header))


def _label_curves(config: Config, made: Sequence[Line], folder: Path) -> list[Figure]:
    """Score over the share of labelled training tiles, where the same tiles and backbone had several; one line per arm.

    Other data sets have other tiles: their points never stand on one line.
    """
    figures: list[Figure] = []
    tested = [line for line in made if line.key[2] == "test" and not line.reference]
    same = {line.key: (line.key[1], line.rows[0].get("tiles_fingerprint")) for line in tested}
    for backbone, tiles in dict.fromkeys(same.values()):
        series: dict[str, list[tuple[float, float | None]]] = {}
        for line in tested:
            if same[line.key] == (backbone, tiles):
                points = [(row["training_labels"] / row["training_tiles"], row["score"]) for row in line.rows]
                series.setdefault(line.key[3], []).extend(points)
        if any(len({share for share, _ in points}) > 1 for points in series.values()):
            path = folder / f"labels-{len(figures)}.png"
            label_curves_plot(series, path, metric=config.comparison.metric, title=f"{config.name}: {backbone}")
            caption = "Test score over the share of labelled training tiles; bands: lowest to highest seed."
            source = "comparison.parquet: score over training_labels / training_tiles"
            figures.append(Figure(path.read_bytes(), caption, alt=caption, source=source))
    return figures


def _sections(
    config: Config,
    made: Sequence[Line],
    against: Mapping[str, Sequence[Line]],
    known: Mapping[tuple[str, str, str], str],
    notes: Sequence[str],
    why: Sequence[Finding],
    rows: Sequence[Row],
    folder: Path,
) -> list[Section]:
    c = config.comparison
    sections = [Section("Scores", [_scores(made, known), *(Text(note) for note in notes)])]
    for control, own in against.items():
        sections.append(Section(f"Against {control}", [_scores(own, {}), Text(_AGAINST)]))
    for title, one_header, one_rows in _ones(config, made):
        sections.append(Section(title, [Table(one_header, one_rows, source="the table above, test split")]))
    figures = []
    for place in dict.fromkeys(line.key[:3] for line in made):
        scores = {
            line.key[3]: {str(s): None if v is None else PERCENT * v for s, v in line.scores.items()}
            for line in made
            if line.key[:3] == place
        }
        what = f"{' / '.join(dict.fromkeys(place))}: {c.metric.replace('_', ' ')} %"
        figures.append(seed_figure(scores, what=what, baseline=c.baseline, source="comparison.parquet, column score"))
    sections.append(Section("Seed by seed", figures))
    sections += confusion_sections(made)
    curves = _label_curves(config, made, folder)
    if curves:
        sections.append(Section("Label efficiency", curves))
    sections.append(Section("Costs", [Table(*_costs(made), source="comparison.parquet"), Text(_COST_NOTE)]))
    for i, finding in enumerate(why):
        parts: list[Any] = [Text(finding.text), Table(finding.header, finding.rows, source=finding.source)]
        if finding.planes:
            path = folder / f"plane-{i}.png"
            plane_plot(finding.planes, path, title=finding.heading)
            parts.append(Figure(path.read_bytes(), finding.heading, alt=finding.text, source=finding.source))
        sections.append(Section(finding.heading, parts))
    shown = [{key: row.get(key) for key in RECORD} | {"run": row.get("run")} for row in rows]
    sections.append(Section("All rows", [raw_rows(shown, "One row per run and test set", "comparison.parquet")]))
    return sections
