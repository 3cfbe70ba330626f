"""Keys of a resolved configuration that contradict each other."""

from clipit.config.run import RunConfig
from clipit.distributed import get_processes
from clipit.errors import ConfigError, explain
from clipit.training.active_terms import uses_reports, uses_soft_labels
from clipit.training.teaching import COLDEST, REPORT_LABELS

LABEL_FREE = ("agreement", "information")
"""What `training.monitor` may be when no validation tile has a label."""
_MOST_BYTES = 4 * 2**30
"""That the bags' term may take in one process."""
_HELD, _HELD_LEARNT = 6, 9
"""How many times the similarities of all members (4 bytes each) a step holds at most: both directions with their masks,
what is kept for the gradient, and the gradient's own passing values; with a learnt temperature. Measured on a CPU."""
_NO_SNIPPET = ("image", "class_prompts")


def check(config: RunConfig) -> None:
    """Refuse keys of a resolved configuration that contradict each other, all at once.

    Raises:
        ConfigError: See above.
    """
    problems = [*_of_distillation(config), *_of_other_terms(config), *_of_batches(config)]
    if problems:
        raise ConfigError(explain("; ".join(problems), where=f"arm {config.arm or '(none)'}", fix="change these keys"))


def _of_distillation(config: RunConfig) -> list[str]:
    problems = []
    d, s = config.distillation, config.student
    off = d.tiles == "none"
    if not off and s.projector_layers == 0:
        problems.append("distillation needs a projector: student.projector_layers=1, or distillation.tiles=none")
    if uses_reports(config) and config.reports is None:
        problems.append("distilling text needs reports: set reports.path, or distillation.tiles=none and bags.weight=0")
    if s.warm_start and (off or d.target in _NO_SNIPPET):
        problems.append(
            "student.warm_start fits a head on paired text: distillation.tiles=labelled or all, target text"
        )
    if d.sections and d.target != "report_context":
        problems.append("distillation.sections belongs to distillation.target=report_context")
    if d.word_drop and (off or d.target in _NO_SNIPPET):
        problems.append("distillation.word_drop needs a text as target: distillation.target=text, or word_drop=0")
    if d.text != "frozen" and (off or d.target != "text"):
        problems.append(f"distillation.text={d.text} needs paired text as target: distillation.target=text")
    if d.text != "frozen" and config.prompt_bags.weight > 0:
        problems.append(
            f"distillation.text={d.text} makes a space of its own, in which the class prompts have no place: "
            "prompt_bags.weight=0"
        )
    if d.text != "frozen" and (config.bags.weight > 0 or config.second_vlm is not None):
        problems.append(
            f"distillation.text={d.text} makes a space of its own, in which bags and a second VLM have no place: "
            "bags.weight=0 and no second_vlm"
        )
    if d.text == "lora" and d.word_drop:
        problems.append("distillation.text=lora embeds whole snippets again: distillation.word_drop=0")
    if d.target in ("class_prompts",) and not off and config.prompts is None:
        problems.append("distillation.target=class_prompts needs a prompt set: prompts")
    if d.target in REPORT_LABELS and not off and config.reports and config.reports.label_column is None:
        problems.append(f"distillation.target={d.target} needs reports with labels: reports.label_column")
    if config.second_vlm is not None and (s.head != "linear" or s.projector_layers != 1 or off):
        problems.append("second_vlm needs distillation, student.head=linear and student.projector_layers=1")
    return problems


def _of_other_terms(config: RunConfig) -> list[str]:
    problems = []
    layers, prompts = config.student.projector_layers, config.prompts
    for key, weight in (("bags.weight", config.bags.weight), ("prompt_bags.weight", config.prompt_bags.weight)):
        if weight > 0 and layers == 0:
            problems.append(f"{key} needs a projector: student.projector_layers=1, or {key}=0")
    if config.prompt_bags.weight > 0 and prompts is None:
        problems.append("prompt_bags.weight needs a prompt set: prompts")
    if config.soft_labels.source == "zero_shot" and prompts is None:
        problems.append("soft_labels.source=zero_shot needs a prompt set: prompts")
    if config.soft_labels.source == "vlm_probe" and config.tiles.labels.kind == "none":
        problems.append(
            "soft_labels.source=vlm_probe is fitted on labels: tiles.labels, or soft_labels.source=zero_shot"
        )
    problems += _of_bags(config)
    if config.training.monitor == "agreement" and not uses_soft_labels(config):
        problems.append("training.monitor=agreement compares with soft labels: soft_labels.source")
    return problems


def _of_bags(config: RunConfig) -> list[str]:
    bags, t, problems = config.bags, config.training, []
    if bags.weight == 0:
        return []
    if config.pairing.k < bags.snippets:
        problems.append(f"bags.snippets={bags.snippets} needs as many pairs per tile: pairing.k is {config.pairing.k}")
    if t.accumulation > 1:
        problems.append(
            "bags contrast a tile with the whole batch, which accumulation cuts: training.accumulation=1, "
            "or bags.weight=0"
        )
    if bags.learn_temperature and bags.temperature < COLDEST:
        problems.append(f"bags.learn_temperature holds it at {COLDEST} or above: bags.temperature={COLDEST} or more")
    texts, tiles = bags.snippets + bags.prompts + bags.class_prompts, 1 + bags.tiles * (1 + bags.text_neighbours)
    own = -(-t.tiles_per_step // get_processes().count)  # each process contrasts its own tiles with all
    times = _HELD_LEARNT if bags.learn_temperature else _HELD
    needed = 4 * times * own * t.tiles_per_step * tiles * texts
    if needed > _MOST_BYTES:
        problems.append(
            f"bags of {tiles} tiles and {texts} texts need "
            f"about {needed / 2**30:.1f} GiB in a step of {t.tiles_per_step} tiles (at most "
            f"{_MOST_BYTES / 2**30:.0f}): lower training.tiles_per_step, bags.tiles, bags.snippets or bags.prompts"
        )
    return problems


def _of_batches(config: RunConfig) -> list[str]:
    t, n = config.training, get_processes().count
    if t.tiles_per_step >= n * t.accumulation:
        return []
    return [
        f"training.tiles_per_step={t.tiles_per_step} gives nothing to some of {n} processes "
        f"x {t.accumulation} micro-batches"
    ]
