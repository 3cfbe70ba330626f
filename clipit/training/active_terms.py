"""Which terms of the loss a configuration switches on."""

from clipit.config.run import RunConfig
from clipit.training.teaching import _MEANINGLESS, _TEXT_SIDES, REPORT_LABELS


def teaches_text(config: RunConfig) -> bool:
    """Whether the projector learns where texts lie, so that it can answer zero-shot questions (controls do not)."""
    d = config.distillation
    if d.tiles != "none" and (d.target in _MEANINGLESS or d.text != "frozen"):
        return False
    return d.tiles != "none" or config.prompt_bags.weight > 0 or config.bags.weight > 0


def uses_reports(config: RunConfig) -> bool:
    """Whether anything is taught that comes from the reports."""
    of_images = config.distillation.target in ("image", "class_prompts")
    return (config.distillation.tiles != "none" and not of_images) or config.bags.weight > 0


def uses_soft_labels(config: RunConfig) -> bool:
    """Whether tiles without a label take part through probabilities."""
    return config.soft_labels.source != "none"


def uses_unlabelled(config: RunConfig) -> bool:
    """Whether tiles without a label take part at all."""
    return (
        config.distillation.tiles == "all"
        or config.bags.weight > 0
        or uses_soft_labels(config)
        or config.consistency.weight > 0
    )


def sees_vlm(config: RunConfig) -> bool:
    """Whether the VLM has a part in the training."""
    return config.student.projector_layers > 0 or config.soft_labels.source in ("zero_shot", "vlm_probe")


def told_sources(config: RunConfig) -> str:
    """One line for the summary: what the student was taught from, with the weight of each term."""
    d, parts = config.distillation, []
    if config.tiles.labels.kind != "none":
        parts.append("labels (cross-entropy, weight 1)")
    if d.tiles != "none":
        how = [f"weight {d.weight:g}"]
        if config.second_vlm is not None:
            how.append(f"half of it for each of two VLMs, {config.vlm.name} and {config.second_vlm.name}")
        if d.text != "frozen":
            how.append(f"{_TEXT_SIDES[d.text]} fitted to the tiles' labels")
        if d.target in REPORT_LABELS and config.reports is not None:
            how.append(f"by the reports' own labels, column {config.reports.label_column}")
        parts.append(f"{d.target.replace('_', ' ')} for {d.tiles} tiles (distillation, {', '.join(how)})")
    if config.bags.weight > 0:
        parts.append(f"bags of snippets and tiles (weight {config.bags.weight:g})")
    if config.prompt_bags.weight > 0:
        parts.append(f"class prompts (weight {config.prompt_bags.weight:g})")
    if uses_soft_labels(config):
        source = {
            "zero_shot": "the VLM's zero-shot answers",
            "vlm_probe": "a linear probe of the VLM",
            "image_only": "an image-only student's answers",
        }
        parts.append(f"{source[config.soft_labels.source]} (soft labels, weight {config.soft_labels.weight:g})")
    if config.consistency.weight > 0:
        parts.append(f"consistency of two views (weight {config.consistency.weight:g})")
    return "; ".join(parts) + f". Step chosen by {config.training.monitor.replace('_', ' ')} on validation tiles"
