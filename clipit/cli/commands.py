"""The table of subcommands."""

COMMANDS: dict[str, dict[str, str]] = {
    "Getting started": {
        "demo": "compare arms on a synthetic world and try the exported classifier",
        "init": "print a shipped configuration to start from",
        "doctor": "check this machine, its packages and a configuration",
        "download": "download a published data set",
        "world": "generate a synthetic data set of tiles and reports, or of slides",
        "completion": "print a shell script that completes commands, options and keys",
    },
    "Tiles, reports and prompts": {
        "check-leaks": "find tiles, patients and reports on both sides of a split",
        "report-labels": "label reports with rules and a text classifier",
        "annotators": "describe several annotators, their agreement and consensus",
        "label-issues": "find labels that are probably wrong",
        "prompts": "list and check prompt sets, and compare their wordings",
        "index": "split reports into snippets, embed and index them",
        "pair": "pair tiles with their nearest snippets and browse the pairs",
    },
    "One classifier": {
        "train": "train, export and evaluate a classifier",
        "evaluate": "evaluate a finished run again, or on new tiles and prompts",
        "predict": "classify images with an exported classifier",
        "export": "write a classifier as an ONNX or torch.export file",
        "push": "upload a classifier to the Hugging Face Hub",
        "pages": "rewrite the pages of a run or comparison",
    },
    "Whole-slide images": {
        "slides": "tile, score and map whole-slide images, and compare arms on them",
        "mil": "predict slide or patient labels from stored features",
    },
    "Experiments": {
        "compare": "compare arms over seeds, with controls and statistics",
        "tune": "tune hyperparameters with the same grid for every arm",
        "sweep": "run a sweep file in wandb's format",
        "adapt": "adapt the VLM itself, with controls, and evaluate it before and after",
        "probe": "evaluate frozen features with probes and retrieval",
        "segment": "segment tiles with several methods, scored against masks",
        "robustness": "measure robustness, calibration and test-time adaptation",
    },
}
"""Subcommands by task, with their summaries; the module in `clipit.cli` has the same name."""

SUBCOMMANDS: dict[str, tuple[str, ...]] = {
    "prompts": ("list", "lint", "study"),
    "slides": ("tile", "score", "map", "compare"),
}
"""Subcommands of a subcommand, such as `slides tile`."""

READS_KEYS: dict[str, tuple[str, ...]] = {
    "demo": ("comparison",),
    "doctor": ("comparison",),
    "check-leaks": ("comparison",),
    "report-labels": (),
    "annotators": ("segmentation",),
    "label-issues": ("label_issues",),
    "prompts study": ("prompt_study",),
    "index": (),
    "pair": (),
    "train": (),
    "evaluate": (),
    "pages": (),
    "mil": ("mil",),
    "compare": ("comparison",),
    "tune": ("comparison",),
    "sweep": (),
    "adapt": ("adapt", "probing"),
    "probe": ("probing",),
    "segment": ("segmentation",),
    "robustness": ("robustness", "comparison"),
}
"""Commands that read a configuration (`--config`) and its keys as options, with the sections that they read."""

_MODEL = ("--batch-size", "--workers", "--device", "--bf16", "--trust-remote-code")
_SLIDES = ("--out", "--images", "--mpp", "--tile-mpp", "--tile-pixels", "--overlap", "--min-tissue", "--contours")
_SCORES = (*_SLIDES, "--leaks-policy", "--classifier", "--prompts", "--classes", "--vlm", *_MODEL)
OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "demo": ("--agents", "--cases", "--tune"),
    "init": ("--to",),
    "doctor": ("--models",),
    "download": ("--to", "--accept-licence"),
    "world": (
        *("--seed", "--output", "--cases", "--variant", "--slides", "--reports", "--size"),
        *("--annotators", "--skills", "--biased", "--coverage", "--annotated"),
    ),
    "check-leaks": ("--pixels",),
    "report-labels": ("--per-answer", "--rules-only"),
    "annotators": ("--confidence", "--mask-files", "--masks", "--shown"),
    "prompts lint": ("--config",),
    "prompts study": ("--record", "--run"),
    "pair": ("--features", "--compare-rules"),
    "evaluate": ("--run",),
    "predict": (
        *("--out", "--prompts", "--classes", "--images", "--path-column", "--id-column", "--mpp", "--tile-mpp"),
        *("--vlm", *_MODEL),
    ),
    "export": ("--format", "--out", "--tolerance", "--trust-remote-code"),
    "push": ("--private", "--yes", "--i-have-permission"),
    "pages": ("--of", "--max-tiles"),
    "slides tile": (*_SLIDES, "--write"),
    "slides score": _SCORES,
    "slides map": (*_SCORES, "--snippets", "--top"),
    "slides compare": (*_SLIDES, "--leaks-policy", "--reference", "--runs", "--prompts", "--vlm", *_MODEL),
    "mil": ("--record",),
    "compare": ("--agents", "--record"),
    "tune": ("--agents",),
    "sweep": ("--launch", "--count", "--draws-seed", "--trial"),
    "adapt": ("--format", "--record", "--write-pairs"),
    "probe": ("--record", "--run"),
    "segment": ("--record", "--run"),
    "robustness": ("--record", "--run"),
}
"""Options of each command other than configuration keys, `--help`, and `--config` and `--help-keys` of `READS_KEYS`."""


def command_names() -> list[str]:
    """Return the names of all subcommands."""
    return [name for group in COMMANDS.values() for name in group]
