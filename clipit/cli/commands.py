"""The table of subcommands."""

COMMANDS: dict[str, dict[str, str]] = {
    "Begin": {
        "demo": "compare arms on a synthetic world and try the exported classifier",
        "init": "print a shipped configuration to start from",
        "doctor": "check this machine, its packages and a configuration",
        "download": "download a published data set",
        "world": "write a synthetic world of tiles and reports, or slides",
        "completion": "print a script that completes commands and keys in a shell",
    },
    "Tiles, reports and prompts": {
        "check-leaks": "find tiles, patients and reports on both sides of a split",
        "report-labels": "label reports by rules and by a text classifier",
        "annotators": "describe several annotators, their agreement and consensus",
        "label-issues": "find labels that are probably wrong",
        "prompts": "list and check prompt sets, measure their wording",
        "index": "cut reports into snippets, embed and index them",
        "pair": "pair tiles with their nearest snippets and browse the pairs",
    },
    "One classifier": {
        "train": "train, export and evaluate a classifier",
        "evaluate": "evaluate a finished run again, or on new tiles and prompts",
        "predict": "predict images with an exported classifier",
        "export": "write a classifier as an ONNX or torch.export file",
        "push": "upload a classifier to the Hugging Face Hub",
        "pages": "rewrite the pages of a run or comparison",
    },
    "Whole slides": {
        "slides": "tile, score and map whole slides, and compare arms on them",
        "mil": "learn labels of slides or patients from stored features",
    },
    "Experiments": {
        "compare": "compare arms over seeds, with controls and statistics",
        "tune": "search hyperparameters, the same grid for every arm",
        "sweep": "run a sweep file in wandb's format",
        "adapt": "adapt the VLM itself, with controls, and measure it before and after",
        "probe": "measure frozen features by probes and retrieval",
        "segment": "segment tiles by several methods, scored with masks",
        "robustness": "measure perturbations, calibration and adaptation of runs",
    },
}
"""Subcommands by task, with a summary each; the module in `clipit.cli` has the same name."""


def command_names() -> list[str]:
    """List the subcommands."""
    return [name for group in COMMANDS.values() for name in group]
