"""Read NCT-CRC-HE-100K (train) and CRC-VAL-HE-7K (test) in their published layout."""

from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import shortlist
from clipit.images.image_files import image_files, image_stamps, subfolders
from clipit.images.image_readers import FileReader
from clipit.tiles.datasets import DATASETS
from clipit.tiles.source import SourceTiles

NCT_CRC = DATASETS["nct_crc"]
COUNTS = {(folder, name): count for folder, name, count in NCT_CRC.counts}
"""Published number of tiles by folder and class."""
_SPLIT_NAMES = {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "test"}


def read_nct_crc(config: TilesConfig) -> SourceTiles:
    """Read both folders: the 100K set is split into train and validation, and the 7K set is the test split.

    No patient ids are published for the 100K set, so its train and validation splits may share patients.

    Raises:
        DataError: A folder is missing, or classes or tile counts differ from the published ones.
    """
    root = Path(config.path).expanduser()
    ids: list[str] = []
    differing: list[str] = []
    for folder in _SPLIT_NAMES:
        _check_folder(root, folder)
        images = [
            file for file in image_files(root / folder, config.unreadable).images if file.lower().endswith(".tif")
        ]
        for name in NCT_CRC.classes:
            expected = COUNTS[folder, name]
            files = [file for file in images if file.startswith(f"{name}/")]
            if len(files) != expected and config.check_counts:
                raise NCT_CRC.missing(
                    f"expected {expected} .tif files, found {len(files)}",
                    root / folder / name,
                    "complete the copy, or set tiles.check_counts: false if it is a subset",
                )
            if len(files) != expected:
                differing.append(f"{folder}/{name} {len(files)} instead of {expected}")
            ids += [f"{folder}/{file}" for file in files]
    return SourceTiles(
        ids=ids,
        labels=[name.split("/")[1] for name in ids],
        source_splits=[name.split("/")[0] for name in ids],
        groups=[""] * len(ids),
        mpp=[NCT_CRC.mpp] * len(ids),
        stamps=image_stamps(root, ids),
        reader=FileReader(root, ids),
        where=str(root),
        classes=NCT_CRC.classes,
        split_names=_SPLIT_NAMES,
        notes=(f"not as published: {shortlist(differing, 18)}",) if differing else (),
    )


def _check_folder(root: Path, folder: str) -> None:
    if not (root / folder).is_dir():
        unnormalised = f"{folder}-NONORM"
        hint = (
            f"{unnormalised} exists, but contains the tiles without colour normalisation, which published results do "
            "not use; to use them anyway, set tiles.source: folders"
        )
        raise NCT_CRC.missing(f"{folder} is missing", root, hint if (root / unnormalised).is_dir() else "")
    names = subfolders(root / folder)
    if names != list(NCT_CRC.classes):
        raise NCT_CRC.missing(
            f"expected the class folders {', '.join(NCT_CRC.classes)}; found {', '.join(names) or 'none'}",
            root / folder,
        )
