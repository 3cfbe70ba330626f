"""Tiling of slides for a model, and warnings about the resolution."""

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
def known_mpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier trained on tiles with a known resolution of 1 um/px."""
    return save_classifier(tmp_path_factory.mktemp("known_mpp")) / "run/classifier"


@pytest.fixture(scope="module")
def assumed_mpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same classifier, trained on tiles of unknown resolution."""
    return save_classifier(tmp_path_factory.mktemp("assumed_mpp"), mpp=None, backbone_mpp=2.0) / "run/classifier"


def test_resolution_taken_from_the_backbone_is_marked_as_assumed(known_mpp: Path, assumed_mpp: Path) -> None:
    assert not read_spec(known_mpp).mpp_assumed
    spec = read_spec(assumed_mpp)
    assert (spec.mpp, spec.mpp_assumed) == (2.0, True)
    scorer = classifier_scorer(clipit.load_classifier(assumed_mpp))
    tiles, (warning,) = choose_tiling(scorer, SlidesConfig(), [])
    assert tiles.mpp == 2.0
    assert "the resolution of the training tiles is unknown" in warning and "--tile-mpp" in warning
    assert choose_tiling(scorer, SlidesConfig(mpp=2.0), ["mpp"])[1] == []
    assert choose_tiling(replace(scorer, mpp_assumed=False), SlidesConfig(), [])[1] == []


def test_predicting_a_slide_warns_about_an_assumed_resolution(
    known_mpp: Path, assumed_mpp: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_slide(tmp_path / "s.tiff", picture(300, 300), levels=2)
    with caplog.at_level(logging.WARNING):
        clipit.predict(known_mpp, tmp_path / "s.tiff", tmp_path / "stated.csv")
        assert "the resolution of the training tiles is unknown" not in caplog.text
        clipit.predict(assumed_mpp, tmp_path / "s.tiff", tmp_path / "assumed.csv")
    assert "the resolution of the training tiles is unknown" in caplog.text
    assert "assumed from the backbone" in (tmp_path / "assumed.html").read_text()
