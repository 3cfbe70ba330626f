"""Display names of an adaptation's facts, for its page and card."""

from collections.abc import Mapping, Sequence

_TEXT_COUNTS = {
    "empty_text_bags": "tiles without any text",
    "empty_texts": "empty texts, dropped",
    "examples_like_prompts": "examples with a text that equals a class name or prompt",
    "long_words": "words of more than 500 characters, dropped",
    "minable_texts": "texts from which bags are mined",
    "pairs": "image-text pairs",
    "pruned_snippets": "snippets dropped by adapt.bags.margin",
    "repeated_texts": "repeated texts, merged",
    "split_texts": "texts longer than the context length, split",
    "texts": "distinct texts",
    "texts_like_prompts": "distinct texts that equal a class name or prompt",
    "without_snippets": "tiles without a paired snippet",
}
"""Names of the counts of texts in `training.json`, which the arm `images` does not use, and their display names."""
_LABELS = _TEXT_COUNTS | {
    "adapted_fingerprint": "fingerprint of the adapted VLM",
    "bags_without_negatives": "fraction of bags without negatives",
    "copies_of_held_out_tiles": "copies of held-out images, dropped",
    "both_sides": "patients with tiles both in training and in validation or test, whose reports are not used",
    "cases_with_report": "patients with reports that are used",
    "cases_with_several": "patients with several reports that are used",
    "chosen_step": "selected step",
    "empty_tile_bags": "tiles without neighbours",
    "external": "reports of patients without tiles, not used",
    "later_splits": "reports of patients with validation or test tiles, not used",
    "leaking_tiles": "images dropped because of leaks",
    "logit_scale": "logit scale, before and after adaptation",
    "mined_after_step": "step after which bags were last mined",
    "negatives_per_bag": "mean number of negatives per bag",
    "only_adapter": "reason for writing only the adapter",
    "own": "reports used (of patients with training tiles only)",
    "patients": "patients or groups",
    "patients_without_text": "patients whose reports have no usable text",
    "pruned_tiles": "neighbours dropped by adapt.bags.margin",
    "reports": "reports in the source",
    "run_fingerprint": "fingerprint of the adaptation",
    "tiles": "images",
    "tiles_without_patient": "images without a patient, not used",
    "tiles_without_text": "images without a text, not used",
    "trained_weights": "trained weights",
    "unreadable_tiles": "unreadable images, dropped",
    "vlm": "VLM",
    "vlm_fingerprint": "fingerprint of the VLM before adaptation",
    "without_patient": "reports without a patient, not used",
}


def fact_label(name: str) -> str:
    """Return the display name of a fact, by default its key with spaces instead of underscores."""
    return _LABELS.get(name, name.replace("_", " "))


def training_counts(summary: Mapping[str, object], arm: str) -> dict[str, object]:
    """Select the counts of an arm's training data that have a value; for the arm `images`, without counts of texts.

    Args:
        summary: Counts in `training.json`, key `examples`.
        arm: Name of the arm.
    """
    counts = {name: value for name, value in summary.items() if not isinstance(value, str) and value not in ([], None)}
    return {name: value for name, value in counts.items() if arm != "images" or name not in _TEXT_COUNTS}


def fact_text(value: object) -> object:
    """Format a value: lists joined by commas, floats with four significant digits, integers with separators."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(str(fact_text(each)) for each in value)
    return value
