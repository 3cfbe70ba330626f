"""The table of segmentation methods. To add a method, add an entry."""

from clipit.segmentation.method import Method
from clipit.segmentation.pseudo_methods import missing_evidence, missing_unet_evidence, token_heads_pseudo, unets_pseudo
from clipit.segmentation.token_methods import (
    missing_training_masks,
    student_prompt_tokens,
    student_token_classes,
    token_heads,
    vlm_prompt_tokens,
    vlm_token_classes,
)
from clipit.segmentation.unet_methods import missing_unet_masks, unets
from clipit.segmentation.zero_shot_methods import (
    classifier_classes,
    classifier_windows,
    missing_prompts,
    missing_run,
    missing_student,
    prompt_classes,
    student_classes,
    student_windows,
    vlm_windows,
)

METHODS: dict[str, Method] = {
    "vlm_windows": Method("windows, VLM with class prompts", missing_prompts, vlm_windows, classes=prompt_classes),
    "student_windows": Method(
        "windows, student with class prompts", missing_student, student_windows, classes=student_classes
    ),
    "classifier_windows": Method(
        "windows, classifier of a run", missing_run, classifier_windows, classes=classifier_classes
    ),
    "vlm_tokens": Method(
        "patch tokens, VLM with class prompts", missing_prompts, vlm_prompt_tokens, classes=vlm_token_classes
    ),
    "student_tokens": Method(
        "patch tokens, student with class prompts",
        missing_student,
        student_prompt_tokens,
        classes=student_token_classes,
    ),
    "token_head": Method("linear head on frozen patch tokens", missing_training_masks, token_heads, trained=True),
    "token_head_pseudo": Method(
        "linear head, masks and pseudo-labels", missing_evidence, token_heads_pseudo, trained=True
    ),
    "unet": Method("U-Net", missing_unet_masks, unets, trained=True),
    "unet_pseudo": Method("U-Net, masks and pseudo-labels", missing_unet_evidence, unets_pseudo, trained=True),
}
"""Methods by the name in `segmentation.methods` (`clipit.config.segmentation.SegmentationMethod`), in table order."""
