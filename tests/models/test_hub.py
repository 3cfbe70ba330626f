"""Test loading from an unreachable Hub: one short request, one error, and no messages about retries."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from clipit.config.run import BackboneConfig, VLMConfig
from clipit.errors import ModelError
from clipit.models import loading
from clipit.models.backbones import load_backbone
from clipit.models.vlm import load_vlm


@pytest.fixture(autouse=True)
def online(offline: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Switch the client online, with a local endpoint that refuses connections."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    loading.hub_is_reachable.cache_clear()
    yield
    loading.hub_is_reachable.cache_clear()


@pytest.mark.parametrize("name", ["phikon", "h-optimus-0", "test_vit"])
def test_loading_a_backbone_without_a_network_is_an_error(
    name: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = time.monotonic()
    with pytest.raises(ModelError, match="Hub cannot be reached"):
        load_backbone(BackboneConfig(name=name))
    assert time.monotonic() - before < 30
    assert "Retry" not in capfd.readouterr().err + caplog.text
    assert constants.HF_HUB_OFFLINE is False


def test_loading_a_vlm_without_a_network_is_an_error() -> None:
    before = time.monotonic()
    with pytest.raises(ModelError, match=r"Hub cannot be reached"):
        load_vlm(VLMConfig(name="plip"))
    assert time.monotonic() - before < 30


def test_the_hub_is_requested_once_and_any_status_counts_as_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            requests.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        for _ in range(2):
            with loading.hub_access():
                assert constants.HF_HUB_OFFLINE is False
                assert logging.getLogger("huggingface_hub").level == logging.ERROR
    finally:
        server.shutdown()
        server.server_close()
    assert len(requests) == 1


def test_a_hub_that_does_not_respond_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(loading, "_HUB_TIMEOUT_S", 0.2)
        before = time.monotonic()
        with loading.hub_access():
            assert constants.HF_HUB_OFFLINE is True
        assert time.monotonic() - before < 2 and constants.HF_HUB_OFFLINE is False
