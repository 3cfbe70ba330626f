"""NCT-CRC-HE-100K (train) and CRC-VAL-HE-7K (test) as published."""

from pathlib import Path

from clipit.config.run import TilesConfig
from clipit.errors import shortlist
from clipit.tiles.folders import image_files, subfolders
from clipit.tiles.readers import FileReader, file_stamp
from clipit.tiles.source import Published, SourceTiles

CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
COUNTS: dict[str, tuple[int, ...]] = {
    "NCT-CRC-HE-100K": (10_407, 10_566, 11_512, 11_557, 8_896, 13_536, 8_763, 10_446, 14_317),
    "CRC-VAL-HE-7K": (1_338, 847, 339, 634, 1_035, 592, 741, 421, 1_233),
}
"""Published numbers of tiles per class, in the order of `CLASSES`."""
MPP = 0.5
_PART_NAMES = {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "test"}
_PUBLISHED = Published(
    name="NCT-CRC-HE-100K and CRC-VAL-HE-7K",
    url="https://zenodo.org/records/1214456",
    licence="CC BY 4.0",
    layout="NCT-CRC-HE-100K/ and CRC-VAL-HE-7K/, each with nine class folders of .tif",
    direct="nct_crc",
)


def read_nct_crc(config: TilesConfig) -> SourceTiles:
    """The two folders: validation is cut out of the 100K, the 7K is the test part.

    No patient ids are published for the 100K, so the cut cannot keep patients apart.

    Raises:
        DataError: A folder is missing, or classes or counts are not the published ones.
    """
    root = Path(config.path).expanduser()
    ids: list[str] = []
    labels: list[str] = []
    parts: list[str] = []
    short: list[str] = []
    for folder, expected in COUNTS.items():
        if not (root / folder).is_dir():
            raise _PUBLISHED.missing(f"{folder} is not there", root, _nonorm_hint(root, folder))
        found = subfolders(root / folder)
        if found != list(CLASSES):
            raise _PUBLISHED.missing(
                f"expected the class folders {', '.join(CLASSES)}; found {', '.join(found) or 'none'}", root / folder
            )
        for name, count in zip(CLASSES, expected, strict=True):
            files = [file for file in image_files(root / folder / name)[0] if file.lower().endswith(".tif")]
            if len(files) != count and config.check_counts:
                raise _PUBLISHED.missing(
                    f"expected {count} .tif files, found {len(files)}",
                    root / folder / name,
                    "complete the copy, or say tiles.check_counts: false if it was made smaller on purpose",
                )
            if len(files) != count:
                short.append(f"{folder}/{name} {len(files)} instead of {count}")
            ids += [f"{folder}/{name}/{file}" for file in files]
            labels += [name] * len(files)
            parts += [folder] * len(files)
    return SourceTiles(
        ids=ids,
        labels=labels,
        parts=parts,
        groups=[""] * len(ids),
        mpp=[MPP] * len(ids),
        stamps=[file_stamp(root / name) for name in ids],
        reader=FileReader(root, ids),
        where=str(root),
        classes=CLASSES,
        part_names=_PART_NAMES,
        notes=(f"not as published: {shortlist(short, 18)}",) if short else (),
    )


def _nonorm_hint(root: Path, folder: str) -> str:
    other = f"{folder}-NONORM"
    if not (root / other).is_dir():
        return ""
    return (
        f"{other} is there: these are the tiles without colour normalisation, on which published figures do not rest; "
        "to use them on purpose, give them to source: folders"
    )
