"""Test VLMs from a user's Python function that is named in the configuration."""

from pathlib import Path

import pytest
from tiny_models import save_clip

from clipit.config.run import VLMConfig
from clipit.errors import ConfigError, ModelError
from clipit.models.vlm import load_vlm
from clipit.models.vlm_sources import check_vlm_name

CODE = """
from clipit.models.clip_vlm import clip_towers

def load():
    return clip_towers({folder!r})

def nothing():
    return "towers"
"""


def test_a_vlm_from_a_python_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_clip(tmp_path / "clip")
    (tmp_path / "outside_vlm.py").write_text(CODE.format(folder=str(folder)), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    check_vlm_name(VLMConfig(name="python:outside_vlm:load"))  # run before a command starts
    vlm = load_vlm(VLMConfig(name="python:outside_vlm:load"))
    assert vlm.fingerprint == load_vlm(VLMConfig(name=str(folder))).fingerprint
    assert vlm.encode_texts(["a gland"]).shape == (1, vlm.joint_dim)
    with pytest.raises(ModelError, match="returns str, not the towers of a VLM"):
        load_vlm(VLMConfig(name="python:outside_vlm:nothing"))
    for name in ("python:outside_vlm:other", "python:no_such_module:load", "python:outside_vlm"):
        with pytest.raises(ModelError, match=r"(?s)cannot import the VLM's function.*package\.module:function"):
            load_vlm(VLMConfig(name=name))
    with pytest.raises(ConfigError, match="quick_gelu"):
        load_vlm(VLMConfig(name="python:outside_vlm:load", quick_gelu=True))
