"""Published data sets by name: one entry per data set, read by a generic or a dedicated reader.

The data card of each data set (`data_cards/<card>.md`) states the sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from clipit.errors import DataError
from clipit.input_files.nearby_files import similar_names

Count = tuple[str, str, int]
"""Published split ("" for all), class ("" for all) and number of tiles."""

_ZENODO = "https://zenodo.org/records"


@dataclass(frozen=True)
class Remote:
    """File to download: its URL, published checksum and content."""

    url: str
    md5: str
    unpacked: str
    """Name of the file or folder that unpacking the download creates."""
    unpacked_md5: str = ""
    """Published checksum of the unpacked file; "" if none is published."""

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DataSet:
    """Published data set: facts about it, and how to read it."""

    title: str
    reader: Literal["own", "names", "table"]
    """Where labels come from: `own` (a dedicated module), `names` (file paths) or `table` (a csv next to the
    images)."""
    layout: str
    """Required content of the folder `tiles.path`."""
    classes: tuple[str, ...]
    """Class names in order; empty to use the names in the data."""
    licence: str
    page: str
    citation: str
    card: str
    """Name of the data card."""
    mpp: float = float("nan")
    """Micrometres per pixel; nan if unpublished or not the same for all tiles."""
    pattern: str = ""
    """Reader `names`: regular expression for file paths, with the groups `label`, `group` and `magnification`."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Class name for each text that the group `label` matches; other texts are themselves class names."""
    table: str = ""
    """Reader `table`: name of the csv in tiles.path; its images are in `images`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Reader `table`: published column names, keyed by clipit's column names."""
    split_names: Mapping[str, str] = field(default_factory=dict)
    """Split for each published split name, in addition to the usual names."""
    counts: tuple[Count, ...] = ()
    """Published numbers of tiles; empty if unknown."""
    counts_at: Mapping[str, tuple[Count, ...]] = field(default_factory=dict)
    """Published numbers of tiles by magnification."""
    class_count: int | None = None
    """Number of classes, if their names are unknown."""
    test_fraction: float | None = None
    """Fraction of the tiles to hold out for testing, by group; None if a test split is published.

    0.3 with seed 1 follows PLIP's protocol, and is also used for other data sets without a published test split."""
    test_seed: int = 1
    faults: str = ""
    """Known issues that affect results; they are added to the notes of the tiles."""
    by_annotators: bool = False
    """Whether the labels are derived from published labels of several annotators."""
    group_kind: str = ""
    """Kind of group, such as micrograph or slide; "" if groups are patients or unknown."""
    files: tuple[Remote, ...] = ()
    """Direct downloads."""
    access: str = ""
    """How to obtain the data set if there is no direct download."""
    name: str = ""
    """Key of the data set in `DATASETS`."""

    def missing(self, problem: str, where: object, hint: str = "") -> DataError:
        """Build the error for missing or unexpected files, with what exists there and how to obtain the data set."""
        if isinstance(where, Path) and not where.is_file() and not where.is_symlink():
            problem = f"{problem}; {similar_names(str(where))}"
        fix = f"get {self.title} from {self.page} (licence: {self.licence})"
        if self.files:
            command = f"clipit download {self.name} --to data/{self.name}"
            fix = f"{command} (licence: {self.licence}); or {fix}"
        fix += f" and set tiles.path to the folder with {self.layout}"
        return DataError(problem, where=where, fix=f"{hint}; otherwise {fix}" if hint else fix)


def _pcam_file(split: str, axis: str, md5: str, unpacked_md5: str) -> Remote:
    name = f"camelyonpatch_level_2_split_{split}_{axis}.h5"
    return Remote(f"{_ZENODO}/2546921/files/{name}.gz", md5, name, unpacked_md5)


_BREAKHIS_FAULTS = "magnifications are mixed unless tiles.magnification chooses one"
_BREAKHIS = DataSet(
    title="BreakHis, benign or malignant",
    reader="names",
    layout="BreaKHis_v1/ as unpacked: histology_slides/breast/*/SOB/*/*/{40X,100X,200X,400X}/SOB_*.png",
    classes=("benign", "malignant"),
    licence="CC BY 4.0",
    page="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
    citation="Spanhol et al., IEEE Transactions on Biomedical Engineering 2016",
    card="breakhis",
    pattern=r"SOB_(?P<label>[BM])_[A-Z]+-(?P<group>\d+-[^-/]+)-(?P<magnification>40|100|200|400)-\d+\.png$",
    labels={"B": "benign", "M": "malignant"},
    counts=(("", "benign", 2_480), ("", "malignant", 5_429)),
    counts_at={
        "40X": (("", "benign", 625), ("", "malignant", 1_370)),
        "100X": (("", "benign", 644), ("", "malignant", 1_437)),
        "200X": (("", "benign", 623), ("", "malignant", 1_390)),
        "400X": (("", "benign", 588), ("", "malignant", 1_232)),
    },
    test_fraction=0.3,
    faults=_BREAKHIS_FAULTS,
    access="download BreaKHis_v1.tar.gz from that page and unpack it; no checksum is published",
)
_KATHER_2016 = (
    "01_TUMOR",
    "02_STROMA",
    "03_COMPLEX",
    "04_LYMPHO",
    "05_DEBRIS",
    "06_MUCOSA",
    "07_ADIPOSE",
    "08_EMPTY",
)
_NCT_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_NCT_COUNTS: dict[str, tuple[int, ...]] = {
    "NCT-CRC-HE-100K": (10_407, 10_566, 11_512, 11_557, 8_896, 13_536, 8_763, 10_446, 14_317),
    "CRC-VAL-HE-7K": (1_338, 847, 339, 634, 1_035, 592, 741, 421, 1_233),
}
_LUNG = ("lung_aca", "lung_n", "lung_scc")
_COLON = ("colon_aca", "colon_n")


def _lc25000(title: str, classes: tuple[str, ...]) -> DataSet:
    return DataSet(
        title=title,
        reader="names",
        layout="lung_colon_image_set/{lung_image_sets,colon_image_sets}/{" + ",".join(classes) + "}/*.jpeg",
        classes=classes,
        licence="offered for free use, but the authors' README names no licence",
        page="https://github.com/tampapath/lung_colon_image_set",
        citation="Borkowski et al., arXiv 1912.12142",
        card="lc25000",
        pattern=rf"(?:^|/)(?P<label>{'|'.join(classes)})/[^/]+$",
        counts=tuple(("", name, 5_000) for name in classes),
        test_fraction=0.3,
        faults=(
            "20 augmented copies of each of 250 originals per class and no published groups: a random split puts "
            "copies of one original on both sides, so scores are far too high; use source=table with a group column"
        ),
        access="follow the link on that page and unpack lung_colon_image_set",
    )


_ENTRIES: dict[str, DataSet] = {
    "pcam": DataSet(
        title="PatchCamelyon",
        reader="own",
        layout="camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5",
        classes=("no_tumor", "tumor"),
        licence="CC0 1.0",
        page=f"{_ZENODO}/2546921",
        citation="Veeling et al., MICCAI 2018, arXiv 1806.03962",
        card="pcam",
        mpp=0.97,
        counts=(("train", "", 262_144), ("valid", "", 32_768), ("test", "", 32_768)),
        files=(
            _pcam_file("train", "x", "1571f514728f59376b705fc836ff4b63", "01844da899645b4d6f84946d417ba453"),
            _pcam_file("train", "y", "35c2d7259d906cfc8143347bb8e05be7", "0781386bf6c2fb62d58ff18891466aca"),
            _pcam_file("valid", "x", "d5b63470df7cfa627aeec8b9dc0c066e", "81cf9680f1724c40673f10dc88e909b1"),
            _pcam_file("valid", "y", "2b85f58b927af9964a4c15b8f7e8f179", "94d8aacc249253159ce2a2e78a86e658"),
            _pcam_file("test", "x", "d8c2d60d490dbd479f8199bdfa0cf6ec", "2614b2e6717d6356be141d9d6dbfcb7e"),
            _pcam_file("test", "y", "60a7035772fbdb7f34eb86d4420cf66a", "11ed647efe9fe457a4eb45df1dba19ba"),
        ),
    ),
    "nct_crc": DataSet(
        title="NCT-CRC-HE-100K and CRC-VAL-HE-7K",
        reader="own",
        layout="NCT-CRC-HE-100K/ and CRC-VAL-HE-7K/, each with nine class folders of .tif",
        classes=_NCT_CLASSES,
        licence="CC BY 4.0",
        page=f"{_ZENODO}/1214456",
        citation="Kather, Halama and Marx, Zenodo 2018",
        card="nct_crc",
        mpp=0.5,
        counts=tuple(
            (split, name, count)
            for split, counts in _NCT_COUNTS.items()
            for name, count in zip(_NCT_CLASSES, counts, strict=True)
        ),
        files=(
            Remote(
                f"{_ZENODO}/1214456/files/NCT-CRC-HE-100K.zip", "035777cf327776a71a05c95da6d6325f", "NCT-CRC-HE-100K"
            ),
            Remote(f"{_ZENODO}/1214456/files/CRC-VAL-HE-7K.zip", "2fd1651b4f94ebd818ebf90ad2b6ce06", "CRC-VAL-HE-7K"),
        ),
    ),
    "bach": DataSet(
        title="BACH (ICIAR 2018), micrographs",
        reader="own",
        layout="Photos/{Normal,Benign,InSitu,Invasive}/*.tif",
        classes=("Benign", "InSitu", "Invasive", "Normal"),
        licence="CC BY-NC-ND 4.0",
        page=f"{_ZENODO}/3632035",
        citation="Aresta et al., Medical Image Analysis 2019",
        card="bach",
        group_kind="micrograph",
        mpp=0.42,
        counts=tuple(("", name, 100) for name in ("Benign", "InSitu", "Invasive", "Normal")),
        files=(
            Remote(
                f"{_ZENODO}/3632035/files/ICIAR2018_BACH_Challenge.zip",
                "8ae1801334aa943c44627c1eef3631b2",
                "ICIAR2018_BACH_Challenge",
            ),
        ),
    ),
    "pannuke": DataSet(
        title="PanNuke, benign or malignant, as prepared for PLIP",
        reader="names",
        layout="<tissue>_{benign,malignant}_<number>.png as PLIP writes them, or folders benign/ and malignant/",
        classes=("benign", "malignant"),
        licence="CC BY-NC-SA 4.0",
        page="https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke",
        citation="Gamper et al., ECDP 2019 and arXiv 2003.10778",
        card="pannuke",
        mpp=0.25,
        pattern=r"(?:^|[/_])(?P<label>benign|malignant)(?:/[^/]+|_\d+\.png)$",
        test_fraction=0.3,
        faults="slides and patients are not published, so tiles of one patient may be on both sides of the split",
        access="download the three folds and prepare the tiles as described in the data card",
    ),
    "digestpath": DataSet(
        title="DigestPath 2019 colonoscopy tissue, benign or malignant, as prepared for PLIP",
        reader="names",
        layout="{negative,positive}/<source image>_downsample=<n>_<number>.png as PLIP writes them",
        classes=("benign", "malignant"),
        licence="terms of the challenge; read them on its page",
        page="https://digestpath2019.grand-challenge.org/",
        citation="Da et al., Medical Image Analysis 2022",
        card="digestpath",
        group_kind="source image",
        pattern=r"(?:^|/)(?P<label>negative|positive|benign|malignant)/(?:(?P<group>[^/]+)_downsample=)?[^/]+$",
        labels={"negative": "benign", "positive": "malignant"},
        test_fraction=0.3,
        faults="PLIP's own split puts tiles of one image on both sides; here, all tiles of an image stay in one split",
        access="register for the challenge and prepare the tiles as described in the data card",
    ),
    "wsss4luad": DataSet(
        title="WSSS4LUAD training tiles, tumour or normal, as in PLIP",
        reader="names",
        layout="1.training/<slide>-<x>-<y>-[tumor, stroma, normal].png",
        classes=("normal", "tumor"),
        licence="terms of the challenge; read them on its page",
        page="https://wsss4luad.grand-challenge.org/",
        citation="Han et al., arXiv 2204.06455",
        card="wsss4luad",
        group_kind="slide",
        pattern=r"(?:^|/)(?:(?P<group>\d+)-)?[^/]*\[(?P<label>[01]), ?[01], ?[01]\]\.png$",
        labels={"0": "normal", "1": "tumor"},
        counts=(("", "", 10_091),),
        test_fraction=0.3,
        faults="a tile is labelled tumor whenever its tumour bit is set, even if most of it is stroma",
        access="register for the challenge and unpack 1.training",
    ),
    "kimia_path24c": DataSet(
        title="KIMIA Path24C",
        reader="names",
        layout="Test-patches/<scan>/*.jpg and a training folder with the same 24 scans",
        classes=(),
        licence="terms of Kimia Lab; read them on its page",
        page="https://kimialab.uwaterloo.ca/kimia/index.php/pathology-images-kimia-path24/",
        citation="Shafiei et al., arXiv 2102.07611",
        card="kimia_path24c",
        mpp=0.5,
        pattern=r"(?:^|/)(?P<label>[^/]+)/[^/]+$",
        split_names={"Test-patches": "test"},
        counts=(("Test-patches", "", 1_325),),
        class_count=24,
        faults="a class is a scan, not a diagnosis: train and test tiles come from the same scans",
        access="request it on that page",
    ),
    "mhist": DataSet(
        title="MHIST",
        reader="table",
        layout="annotations.csv and images/",
        classes=("HP", "SSA"),
        licence="BMIRDS research use agreement",
        page="https://bmirds.github.io/MHIST/",
        citation="Wei et al., AIME 2021, arXiv 2101.12355",
        card="mhist",
        table="annotations.csv",
        columns={"path": "Image Name", "label": "Majority Vote Label", "split": "Partition"},
        counts=(("train", "", 2_175), ("test", "", 977)),
        faults="labels are majority votes of seven pathologists, who often disagree; patients are not published",
        by_annotators=True,
        access="fill in the form on that page; the links come by e-mail",
    ),
    "lc25000": _lc25000("LC25000, lung and colon", (*_COLON, *_LUNG)),
    "lc25000_lung": _lc25000("LC25000, lung", _LUNG),
    "lc25000_colon": _lc25000("LC25000, colon", _COLON),
    "breakhis": _BREAKHIS,
    "breakhis_types": replace(
        _BREAKHIS,
        title="BreakHis, eight tumour types",
        classes=("A", "F", "PT", "TA", "DC", "LC", "MC", "PC"),
        pattern=_BREAKHIS.pattern.replace("(?P<label>[BM])_[A-Z]+", "[BM]_(?P<label>[A-Z]+)"),
        labels={},
        counts=(("", "", 7_909),),
        counts_at={
            "40X": (("", "", 1_995),),
            "100X": (("", "", 2_081),),
            "200X": (("", "", 2_013),),
            "400X": (("", "", 1_820),),
        },
        faults=f"{_BREAKHIS_FAULTS}; some types have as few as three patients",
    ),
    "kather2016": DataSet(
        title="Kather 2016, colorectal textures",
        reader="names",
        layout="Kather_texture_2016_image_tiles_5000/{01_TUMOR,...,08_EMPTY}/*.tif",
        classes=_KATHER_2016,
        licence="CC BY 4.0",
        page=f"{_ZENODO}/53169",
        citation="Kather et al., Scientific Reports 2016",
        card="kather2016",
        group_kind="slide",
        mpp=0.495,
        pattern=r"(?:^|/)(?P<label>0[1-8]_[A-Z]+)/(?:[^/]*(?P<group>CRC-Prim-HE-\d+))?[^/]*$",
        counts=tuple(("", name, 625) for name in _KATHER_2016),
        test_fraction=0.3,
        faults="there are only ten slides, each in a single split, so the test split contains few of them",
        files=(
            Remote(
                f"{_ZENODO}/53169/files/Kather_texture_2016_image_tiles_5000.zip",
                "0ddbebfc56344752028fda72602aaade",
                "Kather_texture_2016_image_tiles_5000",
            ),
        ),
    ),
    "sicapv2": DataSet(
        title="SICAPv2",
        reader="names",
        layout="{train,test}/{NC,G3,G4,G5}/<slide>_Block_Region_*.jpg, sorted as in partition/Test/{Train,Test}.xlsx",
        classes=("NC", "G3", "G4", "G5"),
        licence="see the page of the data set",
        page="https://data.mendeley.com/datasets/9xxm58dvs3/2",
        citation="Silva-Rodríguez et al., Computer Methods and Programs in Biomedicine 2020",
        card="sicapv2",
        group_kind="slide",
        pattern=r"(?:^|/)(?P<label>NC|G3|G4|G5)/(?:(?P<group>[^_/]+)_Block_Region_)?[^/]*$",
        faults="neighbouring tiles overlap by half; non-cancerous tiles come only from non-cancerous slides",
        access="download it from that page and sort the images as described in the data card",
    ),
}
DATASETS = {name: replace(entry, name=name) for name, entry in _ENTRIES.items()}
"""Data sets by value of `tiles.source`. To add one, write an entry and a data card, and extend `TileSource`."""
