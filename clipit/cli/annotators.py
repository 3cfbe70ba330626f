"""Summarise the labels of several annotators: agreement, confusion, human ceiling, and tiles with the least agreement.

With --masks, merge the masks of several annotators into a consensus per pixel, as input for clipit segment.
"""

from pathlib import Path
from typing import Any

from clipit.config.command_line import read_file_command
from clipit.errors import user_errors

_SHARED = "annotators of test tiles who also annotated other tiles"


def main() -> None:
    """Run the command."""
    with user_errors():
        extra: dict[str, dict[str, Any]] = {
            "--shown": {
                "type": int,
                "default": 24,
                "help": "number of tiles with the least agreement to show on the page (default: 24)",
            },
            "--masks": {
                "type": Path,
                "metavar": "TABLE",
                "help": "table of masks (columns tile, annotator, mask) to merge into a consensus per pixel",
            },
            "--mask-files": {
                "type": Path,
                "metavar": "FOLDER",
                "help": "folder or zip that the mask paths are relative to (default: the folder of the table)",
            },
            "--confidence": {
                "type": float,
                "default": 0.9,
                "help": "posterior probability below which pixels are ignored in the confident masks (default: 0.9)",
            },
        }
        file, options = read_file_command(__doc__, ["segmentation"], extra=extra, needs_reports=False)
        from clipit.api.labels import describe_annotators, merge_masks
        from clipit.distributed import get_processes

        if not get_processes().main:
            return
        if options.masks is None:
            described = describe_annotators(file, shown=options.shown)
            print(f"{described.summary}\npage: {described.page} (and .json, .csv)")
            return
        merged = merge_masks(
            file, options.masks, files=options.mask_files, confidence=options.confidence, shown=options.shown
        )
        print(f"page: {merged.page} (and .json)\nmasks: {merged.folder}")
        print(f"{_SHARED}: {merged.record['facts'][_SHARED]}")
        if merged.images == merged.folder:
            print("the images are in a zip: first unpack it into this folder, next to consensus/ and confident/")
        print(
            f"to use them: --tiles.path={merged.table} --tiles.images={merged.images} "
            "--tiles.columns.mask=mask_consensus"
        )
