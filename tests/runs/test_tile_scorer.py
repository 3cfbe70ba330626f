"""Which tiles of a slide a model gets, and what is said about their resolution."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from slide_files import picture, write_slide
from tiny_classifier import save_classifier

import clipit
from clipit.config.data import SlidesConfig
from clipit.models.classifier_spec import read_spec
from clipit.runs.tile_scorer import choose_tiling, classifier_scorer


@pytest.fixture(scope="module")
def stated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose training tiles stated their resolution, 1 um/px."""
    return save_classifier(tmp_path_factory.mktemp("stated")) / "run/classifier"


@pytest.fixture(scope="module")
def assumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same classifier, trained on tiles without a resolution."""
    return save_classifier(tmp_path_factory.mktemp("assumed"), mpp=None, backbone_mpp=2.0) / "run/classifier"


def test_the_resolution_of_the_backbone_is_marked_as_assumed(stated: Path, assumed: Path) -> None:
    assert not read_spec(stated).mpp_assumed
    spec = read_spec(assumed)
    assert (spec.mpp, spec.mpp_assumed) == (2.0, True)
    scorer = classifier_scorer(clipit.load_classifier(assumed))
    tiles, (warning,) = choose_tiling(scorer, SlidesConfig(), [])
    assert tiles.mpp == 2.0
    assert "the resolution of the training tiles is unknown" in warning and "--tile-mpp" in warning
    assert choose_tiling(scorer, SlidesConfig(mpp=2.0), ["mpp"])[1] == []
    assert choose_tiling(replace(scorer, mpp_assumed=False), SlidesConfig(), [])[1] == []


def test_predicting_a_slide_warns_of_an_assumed_resolution(
    stated: Path, assumed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_slide(tmp_path / "s.tiff", picture(300, 300), levels=2)
    with caplog.at_level(logging.WARNING):
        clipit.predict(stated, tmp_path / "s.tiff", tmp_path / "stated.csv")
        assert "the resolution of the training tiles is unknown" not in caplog.text
        clipit.predict(assumed, tmp_path / "s.tiff", tmp_path / "assumed.csv")
    assert "the resolution of the training tiles is unknown" in caplog.text
    assert "assumed from the backbone" in (tmp_path / "assumed.html").read_text()
