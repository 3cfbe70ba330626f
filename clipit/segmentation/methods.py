"""The table of methods of segmentation; to add a method, add an entry."""

from clipit.segmentation.method import Method
from clipit.segmentation.zero_shot import (
    classifier_windows,
    missing_prompts,
    missing_run,
    missing_student,
    student_windows,
    vlm_windows,
)

METHODS: dict[str, Method] = {
    "vlm_windows": Method("windows, VLM against prompts", missing_prompts, vlm_windows),
    "student_windows": Method("windows, student against prompts", missing_student, student_windows),
    "classifier_windows": Method("windows, classifier of a run", missing_run, classifier_windows),
}
"""Methods by the name in `segmentation.methods` (`clipit.config.segmentation.SegmentationMethod`), in table order."""
