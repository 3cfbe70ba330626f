"""Test uploading classifiers to the Hub and downloading them, with a local server that imitates the Hub."""

import base64
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import clipit
from clipit.cli.main import main
from clipit.config.run import BackboneConfig, LoraConfig, StudentConfig
from clipit.errors import ModelError
from clipit.models import loading
from clipit.models.backbones import load_backbone
from clipit.models.export_classifier import export_classifier
from clipit.models.student import build_student


@dataclass
class Hub:
    """Requests and files of the imitated Hub."""

    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    address: str = ""
    commit: str = "c" * 40


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Length": str(len(content)),
            "X-Repo-Commit": self.hub.commit,
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            self.answer({"url": f"{self.hub.address}/me/tiles"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [entry["path"] for entry in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {"success": True, "commitOid": self.hub.commit, "commitUrl": f"{self.hub.address}/me/tiles/commit/c"}
            )
        else:
            self.answer({"error": "unexpected"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        if "/resolve/" in path and path.startswith("/me/tiles/"):
            name = path.split("/resolve/")[1].partition("/")[2]
            if name not in self.hub.files:
                self.answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            content = self.hub.files[name]
            self.answer(content, headers={"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        elif path.startswith("/api/models/me/tiles"):
            siblings = [{"rfilename": name} for name in self.hub.files]
            tree = [{"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in self.hub.files.items()]
            self.answer(tree if "/tree/" in path else {"id": "me/tiles", "sha": self.hub.commit, "siblings": siblings})
        elif path == "/":
            self.answer({})
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})


@pytest.fixture
def hub(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_standin")
    loading.hub_is_reachable.cache_clear()
    yield hub
    server.shutdown()
    server.server_close()
    loading.hub_is_reachable.cache_clear()


@pytest.fixture(scope="module")
def exported(timm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=str(timm_folder)))
    student = build_student(backbone, StudentConfig(), LoraConfig(rank=2), "lora", n_classes=3, joint_dim=24)
    folder = tmp_path_factory.mktemp("run") / "classifier"
    export_classifier(student.eval(), backbone, folder, classes=("a", "b", "c"), provenance={"vlms": ["conch"]})
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(exported, tmp_path / "classifier"))


def push(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["clipit", "push", str(folder), "me/tiles", *options])
    main()


def test_a_pushed_classifier_can_be_loaded_by_name(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "notes.txt").write_text("patient-17")
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    push(monkeypatch, folder, "--private", "--i-have-permission")
    printed = capsys.readouterr().out
    assert "licence of the VLM conch: CC-BY-NC-ND-4.0" in printed and "(private, if it is new)" in printed
    assert "model.safetensors" in printed and "notes.txt" not in printed
    assert [entry["name"] for entry in hub.created] == ["tiles"] and hub.created[0]["visibility"] == "private"
    expected_files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {
        "notes.txt"
    }
    assert {name for name in hub.files if name != ".gitattributes"} == expected_files
    assert all(hub.files[name] == (folder / name).read_bytes() for name in expected_files)

    hub.files |= {"weights.bin": b"not of the classifier"}
    pixels = torch.randn(2, 3, 32, 32)
    expected = clipit.load_classifier(folder, "cpu").forward(pixels)[0]
    for revision in (None, "main"):
        logits = clipit.load_classifier("me/tiles", "cpu", revision=revision).forward(pixels)[0]
        torch.testing.assert_close(logits, expected, atol=0, rtol=0)
    assert not any("weights.bin" in request for request in hub.requests)
    # A local folder with the same name takes precedence.
    shutil.copytree(folder, Path("me/tiles"))
    before = len(hub.requests)
    clipit.load_classifier("me/tiles", "cpu")
    assert len(hub.requests) == before
    with pytest.raises(ModelError, match="revision applies only to repositories"):
        clipit.load_classifier("me/tiles", "cpu", revision="main")


def test_the_folder_of_a_run_can_be_used_for_its_classifier(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder.parent
    push(monkeypatch, run, "--yes", "--i-have-permission")
    assert f"  {'model.safetensors'}" in capsys.readouterr().out
    assert {"clipit.json", "model.safetensors", "README.md"} <= {*hub.files}
    assert not any(name.startswith("classifier/") for name in hub.files)
    assert clipit.load_classifier(run, "cpu").classes == clipit.load_classifier(str(folder), "cpu").classes
    hub.files.clear()
    with pytest.raises(ModelError, match=r"forbids sharing derivatives(?s:.*)permitted=True"):
        clipit.push_classifier(run, "me/tiles")
    assert clipit.push_classifier(run, "me/tiles", permitted=True) == f"{hub.address}/me/tiles"
    assert {"clipit.json", "model.safetensors", "README.md"} <= {*hub.files}
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(sys, "argv", ["clipit", "export", str(run), "--out", str(run / "model.onnx")])
    main()
    assert (run / "model.onnx").is_file()
    assert clipit.export_program(run, str(run / "model.pt2"), "torch_export").path == run / "model.pt2"


def test_other_models_and_changed_files_of_a_repository_are_errors(hub: Hub, folder: Path) -> None:
    hub.files["README.md"] = b"a different model"
    with pytest.raises(ModelError, match=r"no classifier in this repository: clipit\.json is missing"):
        clipit.load_classifier("me/tiles", "cpu")
    hub.commit = "d" * 40
    hub.files |= {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    weights = hub.files["model.safetensors"]
    hub.files["model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(ModelError, match=r"damaged or changed files: model\.safetensors"):
        clipit.load_classifier("me/tiles", "cpu")


def test_a_damaged_peft_adapter_is_not_uploaded(hub: Hub, folder: Path) -> None:
    weights = folder / "adapter" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    clipit.load_classifier(folder, "cpu")  # does not read the adapter
    with pytest.raises(ModelError, match=r"damaged or changed files: adapter/adapter_model\.safetensors"):
        clipit.push_classifier(folder, "me/tiles", permitted=True)
    assert not hub.files


def test_missing_repositories_and_an_unreachable_hub_are_errors(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        ModelError, match=r"(?s)no such folder.*does not exist on the Hub.*local folder, correct its path"
    ):
        clipit.load_classifier("me/nothing", "cpu")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="Hub cannot be reached"):
        clipit.load_classifier("me/tiles", "cpu")
    with pytest.raises(ModelError, match="no such folder"):
        clipit.load_classifier("me/tiles/classifier", "cpu")
    with pytest.raises(SystemExit, match="2"):
        push(monkeypatch, folder, "--yes", "--i-have-permission")
    assert "Hub cannot be reached" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(Handler, "do_POST", lambda handler: handler.answer({"error": "no write access"}, 403))
    with pytest.raises(SystemExit, match="2"):
        push(monkeypatch, folder, "--yes", "--i-have-permission")
    error = capsys.readouterr().err
    assert "the Hub rejected the upload" in error and "hf auth login" in error


def test_a_licence_that_forbids_derivatives_prevents_the_push(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        push(monkeypatch, folder, "--yes")
    error = capsys.readouterr().err
    assert "VLM conch, CC-BY-NC-ND-4.0, forbids sharing derivatives" in error and "--i-have-permission" in error
    monkeypatch.setattr("builtins.input", lambda _: "no")
    with pytest.raises(SystemExit, match="2"):
        push(monkeypatch, folder, "--i-have-permission")
    assert "you did not agree" in capsys.readouterr().err
    (folder / "README.md").unlink()
    with pytest.raises(SystemExit, match="2"):
        push(monkeypatch, folder, "--yes", "--i-have-permission")
    assert "no card" in capsys.readouterr().err
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SystemExit, match="2"):
        push(monkeypatch, folder, "--yes", "--i-have-permission")
    assert "damaged or changed" in capsys.readouterr().err
    assert not hub.files and not hub.created
