"""Linear heads on synthetic tokens, trained on masks or on pseudo-labels from image labels."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from token_fixtures import CLASSES, colour_model, open_images, write_images

from clipit.config.load import validate_file
from clipit.config.mask_training import PseudoLabelsConfig, TokenHeadConfig
from clipit.errors import ConfigError, DataError
from clipit.mil.train_network import train_bag_network
from clipit.segmentation import token_methods
from clipit.segmentation.method import MethodInputs
from clipit.segmentation.pseudo_masks import TokenReader, pseudo_masks, token_bags
from clipit.segmentation.pseudo_methods import token_heads_pseudo
from clipit.segmentation.segmentation_study import read_study_masks
from clipit.segmentation.token_head import train_token_head
from clipit.segmentation.token_maps import lattice_of
from clipit.segmentation.token_methods import token_heads
from clipit.segmentation.token_store import TokenStore, store_tokens
from clipit.tiles.masks import MaskSet
from clipit.tiles.tileset import TileSet
from clipit.workspace.workspace import Workspace

OPTIONS = TokenHeadConfig(steps=30, tokens_per_step=64, learning_rate=0.1)
TRAINING = {"epochs": 15, "hidden": 8, "learning_rate": 0.03, "dropout": 0.0, "pooling": "mean"}
EVIDENCE = PseudoLabelsConfig.model_validate(
    {
        "evidence": {"normal": "other", "tumour": "tumour"},
        "confidence": 0.8,
        "training": TRAINING,
    }
)
Images = tuple[TileSet, MaskSet, TokenStore]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    tiles, masks = open_images(write_images(folder, patients=8))
    return tiles, masks, store_tokens(folder / "out", colour_model(), tiles)


@dataclass(frozen=True, eq=False)
class OneImage(TokenStore):
    """In-memory token store of one image."""

    grid: np.ndarray

    @property
    def dim(self) -> int:
        return int(self.grid.shape[2])

    def tokens(self, name: str) -> np.ndarray:
        return self.grid


def shares(masks: MaskSet, rows: list[int]) -> dict[str, np.ndarray]:
    lattice = lattice_of(64, 64, 1.0, colour_model())
    return {str(masks.tiles.ids[row]): lattice.to_cells(masks.read(row)[1], 2) for row in rows}


def test_head_on_separable_tokens_generalises_to_other_images(images: Images) -> None:
    _, masks, store = images
    tumour = int(np.flatnonzero(masks.counts[:, 1] > 0)[0])
    head = train_token_head(store, [shares(masks, [tumour])], OPTIONS, seed=0, classes=2)
    for row in (tumour, len(masks) - 1, len(masks) - 3):
        predicted = head.probabilities(store.tokens(str(masks.tiles.ids[row]))).argmax(axis=2)
        np.testing.assert_array_equal(predicted, shares(masks, [row])[str(masks.tiles.ids[row])].argmax(axis=2))
    repeated = train_token_head(store, [shares(masks, [tumour])], OPTIONS, seed=0, classes=2)
    np.testing.assert_array_equal(head.weight, repeated.weight)
    other = train_token_head(store, [shares(masks, [tumour])], OPTIONS, seed=1, classes=2)
    assert (other.weight != head.weight).any()


def test_default_head_matches_logistic_regression_on_rare_overlapping_classes() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(4096) < 0.15
    spectrum = 0.9 ** np.arange(32)  # correlated features; the weak ones separate the classes
    mixing = np.linalg.qr(rng.normal(size=(32, 32)))[0]
    tokens = ((rng.normal(size=(4096, 32)) + 0.35 * truth[:, None]) * spectrum) @ mixing + 3
    tokens = tokens.astype(np.float16)
    grid = tokens.reshape(64, 64, 32)
    targets = np.stack([~truth, truth], axis=1).astype(np.float32).reshape(64, 64, 2)
    head = train_token_head(OneImage(None, grid), [{"image": targets}], TokenHeadConfig(), seed=0, classes=2)  # type: ignore[arg-type]
    predicted = head.probabilities(grid).reshape(-1, 2)[:, 1]
    features = (tokens - tokens.mean(axis=0, dtype=np.float64)) / tokens.std(axis=0, dtype=np.float64)
    best = LogisticRegression(C=1e3, max_iter=1000).fit(features, truth).predict_proba(features)[:, 1]
    assert log_loss(truth, predicted) < 1.05 * log_loss(truth, best)
    assert roc_auc_score(truth, predicted) > roc_auc_score(truth, best) - 0.005 > 0.9


def test_ignored_cells_do_not_change_a_head(images: Images) -> None:
    _, masks, store = images
    row = int(np.flatnonzero(masks.counts[:, 1] > 0)[0])
    targets = shares(masks, [row])
    name = next(iter(targets))
    normal = str(masks.tiles.ids[int(np.flatnonzero(masks.counts[:, 1] == 0)[0])])
    ignored = {name: targets[name], normal: np.zeros_like(targets[name])}
    head = train_token_head(store, [ignored], OPTIONS, seed=0, classes=2)
    predicted = head.probabilities(store.tokens(name)).argmax(axis=2)
    np.testing.assert_array_equal(predicted, targets[name].argmax(axis=2))
    with pytest.raises(DataError, match="every pixel is ignored"):
        train_token_head(store, [{normal: np.zeros_like(targets[name])}], OPTIONS, seed=0, classes=2)


def test_image_labels_become_pseudo_labels_of_tokens(images: Images, tmp_path: Path) -> None:
    tiles, masks, store = images
    model = train_bag_network(
        token_bags(tiles.select(tiles.splits != "test"), store), EVIDENCE.training, 0, root=tmp_path
    )
    train = tiles.of_split("train")
    pseudo_labels = pseudo_masks(model, train, store, CLASSES.names, "other", EVIDENCE)
    assert set(pseudo_labels.codes) == set(train.ids.tolist())
    truth = {name: each.argmax(axis=2) for name, each in shares(masks, list(range(len(masks)))).items()}
    for name, label in zip(train.ids.tolist(), train.labels.tolist(), strict=True):
        codes = pseudo_labels.codes[name]
        if tiles.classes[label] == "normal":
            assert (codes == 0).all()  # images with the background label contain only background
        confident = codes >= 0
        np.testing.assert_array_equal(codes[confident], truth[name][confident])
    assert any((codes == 1).any() for codes in pseudo_labels.codes.values())
    head = train_token_head(store, [pseudo_labels.targets(2)], OPTIONS, seed=0, classes=2)
    test = next(str(name) for name in tiles.of_split("test").ids if truth[str(name)].any())
    assert (head.probabilities(store.tokens(test)).argmax(axis=2) == truth[test]).mean() > 0.9
    assert set(pseudo_labels.without([str(train.ids[0])]).codes) == set(train.ids[1:].tolist())
    with pytest.raises(DataError, match="the masks of all labelled training images are used"):
        pseudo_labels.without(train.ids.tolist())
    unsure = replace(
        pseudo_labels, codes={name: np.full_like(codes, -1) for name, codes in pseudo_labels.codes.items()}
    )
    with pytest.raises(DataError, match=r"no cell of .* labelled training images has a confident pseudo-label"):
        unsure.without([])


def test_bags_are_the_tokens_of_a_patient(images: Images) -> None:
    tiles, _, store = images
    bags = token_bags(tiles, store)
    assert bags.names.tolist() == sorted({*tiles.groups.tolist()})
    assert bags.sizes.tolist() == [128] * 8
    assert bags.features(0).shape == (128, 3)
    assert bags.ids(0)[64] == "p0-1.png[0,0]"
    assert {bags.classes[code] for code in bags.labels[:2]} == {"normal", "tumour"}


def test_patients_with_more_images_than_the_limit_of_open_files(images: Images) -> None:
    resource = pytest.importorskip("resource")
    _, _, store = images
    reader = TokenReader(store, [store.ids * 10])
    expected = reader.features(0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len([*Path("/dev/fd").iterdir()])
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        features = reader.features(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(reader.images[0]) > 100 and np.array_equal(features, expected)


def test_labels_without_a_class_or_background_are_errors(images: Images, tmp_path: Path) -> None:
    tiles, _, store = images
    model = train_bag_network(token_bags(tiles, store), EVIDENCE.training, 0, root=tmp_path)
    for evidence, message in (
        ({"tumour": "tumour"}, "tile labels without a mask class: normal"),
        ({"tumour": "tumour", "normal": "mucosa"}, "unknown mask classes: mucosa"),
        ({"tumour": "tumour", "normal": "tumour"}, "no label is evidence of other"),
    ):
        with pytest.raises(ConfigError, match=message):
            pseudo_masks(
                model, tiles, store, CLASSES.names, "other", EVIDENCE.model_copy(update={"evidence": evidence})
            )


def study_inputs(folder: Path, seeds: list[int]) -> MethodInputs:
    """Methods of few masks, with a label of one in two training and validation images."""
    training = {"masks": [2, None], "seeds": seeds, "head": OPTIONS.model_dump(), "pseudo": EVIDENCE.model_dump()}
    values = {
        "output": str(folder / "out"),
        "tiles": {
            "source": "table",
            "path": str(write_images(folder, patients=16)),
            "labels": {"kind": "fraction", "value": 0.5},
        },
        "segmentation": {
            "classes": {"other": 0, "tumour": 1},
            "methods": ["token_head", "token_head_pseudo"],
            "training": training,
        },
    }
    file = validate_file(values, "test")
    options, workspace = file.segmentation, Workspace(file.run)
    return MethodInputs(file.run, options, workspace, read_study_masks(file.run, options, workspace))


def test_heads_of_a_study_share_tokens_and_use_the_label_budget_of_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_methods, "_backbone", lambda inputs: colour_model())
    inputs = study_inputs(tmp_path, [0])
    segmenters = [*token_heads(inputs), *token_heads_pseudo(inputs)]
    assert [each.training_masks for each in segmenters] == [2, 16, 2]
    assert len(list((tmp_path / "out").glob("**/token_store-*/manifest.json"))) == 1
    image, truth = inputs.masks.read(len(inputs.masks) - 1)
    assert truth.any() and (segmenters[1].probabilities(image, 1.0).argmax(axis=0) == truth).mean() > 0.95
    kept = inputs.workspace.tiles(0).of_split("train")
    assert (kept.labels >= 0).sum() == 8
    images = int(str(segmenters[2].facts["pseudo_images"]))
    assert 0 < images <= 8  # images with a drawn mask are excluded
