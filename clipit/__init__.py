"""clipit: train image-only histology classifiers with pathology reports and a frozen vision-language model."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# By default, idle OpenMP threads spin, which makes small models about twenty times slower if other programs run on
# the same cores. Passive waiting costs next to nothing. The variable must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from clipit.api.configuration import load_config
    from clipit.api.experiments import compare, probe, tune
    from clipit.api.labels import describe_annotators, find_label_issues, merge_masks
    from clipit.api.mil import train_mil
    from clipit.api.prediction import predict
    from clipit.api.runs import evaluate, evaluate_external, train
    from clipit.api.segmentation import segment
    from clipit.api.sharing import export_program, push_classifier
    from clipit.api.slides import compare_slides, score_slides, tile_slides
    from clipit.api.texts import build_text_index, pair
    from clipit.api.vlm_adaptation import adapt_vlm, write_pairs
    from clipit.errors import ClipitError
    from clipit.models.inference import load_classifier

    __version__: str

__all__ = [
    "ClipitError",
    "__version__",
    "adapt_vlm",
    "build_text_index",
    "compare",
    "compare_slides",
    "describe_annotators",
    "evaluate",
    "evaluate_external",
    "export_program",
    "find_label_issues",
    "load_classifier",
    "load_config",
    "merge_masks",
    "pair",
    "predict",
    "probe",
    "push_classifier",
    "score_slides",
    "segment",
    "tile_slides",
    "train",
    "train_mil",
    "tune",
    "write_pairs",
]

_MODULES = {
    "ClipitError": "clipit.errors",
    "load_config": "clipit.api.configuration",
    "load_classifier": "clipit.models.inference",
    **dict.fromkeys(("build_text_index", "pair"), "clipit.api.texts"),
    **dict.fromkeys(("describe_annotators", "find_label_issues", "merge_masks"), "clipit.api.labels"),
    **dict.fromkeys(("adapt_vlm", "write_pairs"), "clipit.api.vlm_adaptation"),
    **dict.fromkeys(("export_program", "push_classifier"), "clipit.api.sharing"),
    "train_mil": "clipit.api.mil",
    "predict": "clipit.api.prediction",
    **dict.fromkeys(("train", "evaluate", "evaluate_external"), "clipit.api.runs"),
    **dict.fromkeys(("compare_slides", "score_slides", "tile_slides"), "clipit.api.slides"),
    "segment": "clipit.api.segmentation",
    **dict.fromkeys(("compare", "tune", "probe"), "clipit.api.experiments"),
}
"""Module of each public name, imported on first use, so that `import clipit` does not import torch."""


def __dir__() -> list[str]:
    """List the public names, which are imported on first use."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "__version__":
        from clipit.versions import package_version

        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
