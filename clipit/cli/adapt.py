"""Adapt the VLM to pairs, bags or cases, with controls, and evaluate it before and after on held-out patients."""

import sys
from pathlib import Path
from typing import Any

from clipit.config.command_line import read_file_command
from clipit.errors import ConfigError, counted, shortlist, user_errors
from clipit.prompts.early_check import check_prompt_files
from clipit.reporting.csv_export import RECORD_OPTION, check_export, finish_study

_OPTIONS: dict[str, dict[str, Any]] = {
    **RECORD_OPTION,
    "--write-pairs": {
        "type": Path,
        "metavar": "FOLDER",
        "help": "write the training and validation examples in the format of open_clip's trainer, without training",
    },
    "--format": {
        "choices": ("csv", "webdataset"),
        "help": "with --write-pairs: tables of image paths and captions (csv, default) or tar shards (webdataset)",
    },
}


def main() -> None:
    """Run the command."""
    with user_errors():
        file, options = read_file_command(__doc__, ["adapt", "probing"], extra=_OPTIONS, needs_tiles=False)
        check_prompt_files(file)
        if options.write_pairs:
            if options.record:
                raise ConfigError(
                    "--write-pairs yields no scores to export", where="--record", fix="remove one of the options"
                )
            from clipit.api.vlm_adaptation import write_pairs

            counts = write_pairs(file, options.write_pairs, options.format or "csv")
            print(f"{', '.join(f'{split} {count:,}' for split, count in counts.items())} pairs: {options.write_pairs}")
            return
        if options.format:
            raise ConfigError(
                "this option needs --write-pairs", where="--format", fix="remove it, or add --write-pairs FOLDER"
            )
        if options.record:
            check_export(options.record)
        from clipit.api.vlm_adaptation import adapt_vlm

        study = adapt_vlm(file)
        finish_study(study.folder, "adapt", options.record)
        if study.failed:
            listed = shortlist([f"{each['arm']}, seed {each['seed']}" for each in study.failed])
            count = counted(len(study.failed), "adaptation")
            print(f"error: {count} failed: {listed}; see the page", file=sys.stderr)
            raise SystemExit(1)
