"""The doctor: each trouble is found and comes with what to do; what is well is not complained of."""

import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.doctor import machine, packages
from clipit.doctor.configs import data_findings, examine, gpu_findings, run_findings
from clipit.doctor.data import reports_finding, tiles_finding
from clipit.doctor.findings import Finding, Section, from_error, rendered
from clipit.doctor.hub import Access, Hub, hub_findings, in_cache
from clipit.doctor.models import (
    Place,
    backbone_findings,
    backbone_place,
    model_findings,
    place_finding,
    vlm_findings,
    vlm_place,
)
from clipit.errors import DataError, explain
from clipit.models.backbone_specs import BACKBONES

MakeConfig = Callable[..., RunConfig]
ROOT = Path(__file__).parents[1]


# Findings ---------------------------------------------------------------------------------------------------------


def test_lines_are_aligned_and_counted() -> None:
    sections = [
        Section("One", [Finding("PASS", "a", "well"), Finding("FAIL", "longer", "ill " * 60, "do this")]),
        Section("Two", [Finding("WARN", "b", "so so")]),
    ]
    lines = rendered(sections).splitlines()
    assert lines[:2] == ["One", "  PASS  a       well"]
    assert lines[2].startswith("  FAIL  longer  ill ill") and lines[3].startswith("                ill")
    assert "                to do: do this" in lines
    assert lines[-1] == "1 PASS, 1 WARN, 1 FAIL"
    assert max(map(len, lines)) <= 120


def test_colours_only_when_asked_for() -> None:
    sections = [Section("One", [Finding("FAIL", "a", "ill")])]
    assert "\033[" not in rendered(sections)
    assert "\033[31mFAIL\033[0m" in rendered(sections, colour=True)


def test_an_error_of_the_package_becomes_a_finding() -> None:
    finding = from_error("tiles", DataError(explain("the folder is empty", where="/data", fix="fill it")))
    assert finding == Finding("FAIL", "tiles", "the folder is empty (/data)", "fill it")
    assert from_error("x", DataError("short")).found == "short"


# Machine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "status"), [((3, 10, 14), "FAIL"), ((3, 11, 0), "PASS"), ((3, 14, 1), "PASS")])
def test_python(version: tuple[int, ...], status: str) -> None:
    assert machine.python_finding(version).status == status


@pytest.mark.parametrize(
    ("code", "output", "error", "status", "match"),
    [
        (0, "0.28.0 True", "", "PASS", "0.28.0"),
        (0, "0.28.0 False", "", "PASS", "site hook"),
        (1, "", "Traceback\nRuntimeError: operator torchvision::nms does not exist", "FAIL", "tools.torchvision_hook"),
        (1, "", "ModuleNotFoundError: No module named 'torchvision'", "FAIL", "belongs to this torch"),
        (1, "", "", "FAIL", "no message"),
    ],
)
def test_torchvision(
    monkeypatch: pytest.MonkeyPatch, code: int, output: str, error: str, status: str, match: str
) -> None:
    done = SimpleNamespace(returncode=code, stdout=output + "\n", stderr=error)
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    finding = machine.torchvision_finding()
    assert finding.status == status and match in finding.found + finding.fix


def test_threads_that_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    (cpu,) = [finding for finding in machine.device_findings() if finding.what == "CPU"]
    assert cpu.status == "WARN" and cpu.fix == "unset OMP_WAIT_POLICY"
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    (cpu,) = [finding for finding in machine.device_findings() if finding.what == "CPU"]
    assert cpu.status == "PASS"


def test_gpus_are_listed_and_a_hidden_one_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    facts = {0: SimpleNamespace(name="H200", total_memory=139 * 2**30, major=9)}
    facts[1] = SimpleNamespace(name="T4", total_memory=15 * 2**30, major=7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", facts.__getitem__)
    found = [finding.found for finding in machine.device_findings()]
    assert found[:2] == ["H200, 139 GiB, bf16", "T4, 15 GiB, no bf16: use fp16 or fp32"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert (machine.device_findings()[0].status, "nvidia-smi" in machine.device_findings()[0].fix) == ("WARN", True)


@pytest.mark.parametrize(("free", "status"), [(2**29, "FAIL"), (5 * 2**30, "WARN"), (50 * 2**30, "PASS")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert machine.disk_finding(tmp_path / "not" / "yet").status == status


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = machine.disk_finding(tmp_path / "file" / "out")
    assert finding.status == "FAIL" and "--output" in finding.fix


@pytest.mark.parametrize(
    ("kind", "count", "cpu", "gpus", "status", "match"),
    [
        ("NO", 1, False, 0, "PASS", "1 process, NO, on CPUs"),
        ("MULTI_CPU", 2, True, 0, "WARN", "ACCELERATE_USE_CPU=1 accelerate launch --multi_gpu"),
        ("NO", 2, True, 0, "WARN", "one process only"),
        ("MULTI_GPU", 2, False, 0, "WARN", "do not know of each other"),
        ("MULTI_GPU", 4, False, 2, "FAIL", "num_processes: 2"),
        ("NO", 1, False, 2, "WARN", "1 of 2 GPUs stay idle"),
        ("MULTI_GPU", 2, False, 2, "PASS", "2 processes, MULTI_GPU"),
    ],
)
def test_launcher(kind: str, count: int, cpu: bool, gpus: int, status: str, match: str) -> None:
    finding = machine.launch_finding({"kind": kind, "count": count, "cpu": cpu, "path": "file"}, gpus)
    assert finding.status == status and match in finding.found + finding.fix


def test_default_file_of_the_launcher_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import accelerate.commands.config.config_args as arguments

    path = tmp_path / "default_config.yaml"
    monkeypatch.setattr(arguments, "default_config_file", str(path))
    assert "no default configuration" in machine.accelerate_findings()[0].found
    path.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    assert machine.accelerate_findings()[0].status == "WARN"
    path.write_text("compute_environment: LOCAL_MACHINE\nno_such_key: 1\n")
    finding = machine.accelerate_findings()[0]
    assert finding.status == "FAIL" and str(path) in finding.fix


# Packages ---------------------------------------------------------------------------------------------------------


def test_two_faiss_packages_overwrite_each_other() -> None:
    finding = packages.faiss_finding({"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"})
    assert finding.status == "FAIL" and "faiss-cpu 1.15.1 and faiss-gpu 1.15.1" in finding.found
    assert finding.fix == "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-cpu"


def test_two_faiss_packages_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_has_gpu", lambda: True)
    finding = packages.faiss_finding({"faiss-cpu": "1.15.1", "faiss-gpu-cuvs": "1.15.1"})
    assert finding.fix == "pip uninstall -y faiss-cpu faiss-gpu-cuvs && pip install faiss-gpu-cuvs"


def test_no_faiss_and_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.faiss_finding({}).status == "WARN"
    monkeypatch.setitem(sys.modules, "faiss", None)
    finding = packages.faiss_finding({"faiss-cpu": "1.15.1"})
    assert finding.status == "FAIL" and finding.fix == "pip install --force-reinstall --no-deps faiss-cpu"


@pytest.mark.parametrize(
    ("kernel", "flags", "fix"),
    [
        ("Barcelona", {"avx2", "avx512f"}, "export OPENBLAS_CORETYPE=SKYLAKEX"),
        ("Prescott", {"avx2"}, "export OPENBLAS_CORETYPE=Haswell"),
        ("Haswell", {"avx2", "avx512f"}, ""),
        ("SkylakeX", {"avx2", "avx512f"}, ""),
        ("Nehalem", {"sse4_2"}, ""),
    ],
)
def test_openblas_kernel(kernel: str, flags: set[str], fix: str) -> None:
    finding = packages.kernel_finding(kernel, flags)
    assert finding.fix == fix and finding.status == ("WARN" if fix else "PASS")


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=99", "numpy>=1", "absent-one>=1", 'absent-two>=1; extra == "more"', 'pytest>=1; extra == "dev"']
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda _: asked)
    first, extras = packages.requirement_findings()
    assert first.status == "FAIL" and "torch>=99" in first.found and "absent-one>=1 (absent)" in first.found
    assert "numpy" not in first.found
    assert extras.status == "PASS" and "installed: dev; not installed: more" in extras.found


def test_this_environment_has_what_it_needs() -> None:
    assert packages.requirement_findings()[0].status == "PASS"


# Hub --------------------------------------------------------------------------------------------------------------


def test_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shown = rendered([Section("Hub", hub_findings())])
    assert "present" in shown and "hf_secret" not in shown


def test_a_silent_hub_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = Hub(ask=lambda _: "unreachable")
    assert hub_findings(hub)[0].status == "PASS" and "not asked" in hub_findings(hub)[0].found
    hub.access("a/b")
    assert hub_findings(hub)[0].status == "WARN" and "does not answer" in hub_findings(hub)[0].found
    hub = Hub(ask=lambda _: "gated")
    hub.access("a/b")
    assert hub_findings(hub)[0].status == "PASS" and "answers" in hub_findings(hub)[0].found


def test_a_hub_that_hangs_is_asked_once() -> None:
    asked = []

    def hang(name: str) -> Access:
        asked.append(name)
        time.sleep(30)
        return "granted"

    hub = Hub(ask=hang, patience=0.05)
    start = time.monotonic()
    assert [hub.access(name) for name in ("a/b", "c/d", "a/b")] == ["unreachable"] * 3
    assert asked == ["a/b"] and time.monotonic() - start < 25


def test_cached_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert not in_cache("owner/name")
    (snapshot / "model.safetensors").write_text("")
    assert in_cache("owner/name") and in_cache("owner/name@main") and not in_cache("owner/other")


# Models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("hf-hub:wisdomik/QuiltNet-B-32", "wisdomik/QuiltNet-B-32"),
        ("clip:vinid/plip", "vinid/plip"),
        ("plip", "vinid/plip"),
        ("quiltnet-b-32", "wisdomik/QuiltNet-B-32"),
        ("clip-vit-b-32", "timm/vit_base_patch32_clip_224.openai"),
        ("open_clip:ViT-B-32/openai", "timm/vit_base_patch32_clip_224.openai"),
    ],
)
def test_where_a_vlm_comes_from(name: str, hub_id: str) -> None:
    assert vlm_place(VLMConfig(name=name)).hub_id == hub_id


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("uni", "MahmoodLab/UNI"),
        ("phikon", "owkin/phikon"),
        ("hf-hub:owner/name", "owner/name"),
        ("transformers:owner/name", "owner/name"),
        ("imagenet-vits16", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_where_a_backbone_comes_from(name: str, hub_id: str) -> None:
    assert backbone_place(BackboneConfig(name=name), BACKBONES).hub_id == hub_id


@pytest.mark.parametrize(
    ("access", "status", "match"),
    [
        ("granted", "PASS", "will be fetched"),
        ("gated", "FAIL", "https://huggingface.co/MahmoodLab/UNI, then hf auth login"),
        ("absent", "FAIL", "check the spelling"),
        ("offline", "FAIL", "unset HF_HUB_OFFLINE"),
        ("unreachable", "WARN", "access could not be checked"),
    ],
)
def test_a_gated_model_that_is_not_here(access: Access, status: str, match: str) -> None:
    place = Place(hub_id="MahmoodLab/UNI", spec=BACKBONES["uni"])
    finding = place_finding("backbone", "uni", place, Hub(ask=lambda _: access), _never_loaded)
    assert finding.status == status and match in finding.found + finding.fix


def _never_loaded() -> None:
    raise AssertionError("no loader is called")


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (VLMConfig(name="titan"), "cannot pair"),
        (VLMConfig(name="keep"), "set vlm.trust_remote_code"),
        (VLMConfig(name="pathgen-clip-b-16"), "set vlm.path to the file"),
        (VLMConfig(name="/no/such/folder"), "hf-hub:ID (open_clip)"),
        (VLMConfig(name="quilt-b-32"), "similar names: quiltnet-b-32"),
        (VLMConfig(name="plip", path="/no/such/folder"), "vlm.path does not exist"),
        (VLMConfig(name="open_clip:ViT-X/openai"), "similar names"),
        (VLMConfig(name="open_clip:ViT-B-32/nothing"), "with one of: openai"),
    ],
)
def test_vlms_that_cannot_be_used_as_they_are(config: VLMConfig, match: str) -> None:
    (finding,) = vlm_findings("VLM", config, Hub(ask=lambda _: "granted"))
    assert finding.status == "FAIL" and match in finding.found + finding.fix and finding.fix


@pytest.mark.parametrize(
    ("name", "match"), [("uni3", "similar: uni"), ("hibou-l", "set backbone.trust_remote_code"), ("/no", "table")]
)
def test_backbones_that_cannot_be_used_as_they_are(name: str, match: str) -> None:
    (finding,) = backbone_findings(BackboneConfig(name=name), Hub(ask=lambda _: "granted"))
    assert finding.status == "FAIL" and match in finding.found + finding.fix


def test_the_weights_are_spoken_of_though_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "conch" else find(name))
    package, weights = vlm_findings("VLM", VLMConfig(name="conch"), Hub(ask=lambda _: "gated"))
    assert (package.status, weights.status) == ("FAIL", "FAIL")
    assert "pip install git+https://github.com/mahmoodlab/CONCH.git" in package.fix
    assert "gated, and this user has no access" in weights.found
    with_path = VLMConfig(name="conch", path="/no/such/folder")
    package, weights = vlm_findings("VLM", with_path, Hub(ask=lambda _: "gated"))
    assert "needs its own package" in package.found and "/no/such/folder lacks its files" in weights.found


@pytest.mark.parametrize("name", ["", "plip", "quiltnet-b-32"])
def test_an_empty_folder_is_no_vlm(tmp_path: Path, name: str) -> None:
    config = VLMConfig(name=name, path=str(tmp_path)) if name else VLMConfig(name=str(tmp_path))
    (finding,) = vlm_findings("VLM", config, Hub())
    assert finding.status == "FAIL" and str(tmp_path) in finding.found and finding.fix


@pytest.mark.parametrize("name", ["", "uni", "phikon"])
def test_an_empty_folder_is_no_backbone(tmp_path: Path, name: str) -> None:
    config = BackboneConfig(name=name, path=str(tmp_path)) if name else BackboneConfig(name=str(tmp_path))
    (finding,) = backbone_findings(config, Hub())
    assert finding.status == "FAIL" and str(tmp_path) in finding.found and finding.fix


def test_folders_without_weights(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure()
    for name, of in (("vlm", config.vlm.name), ("backbone", config.backbone.name)):
        shutil.copytree(of, tmp_path / name)
        weights = list((tmp_path / name).glob("*.safetensors"))
        assert weights
        for file in weights:
            file.unlink()
    vlm = vlm_findings("VLM", VLMConfig(name=str(tmp_path / "vlm")), Hub())[0]
    backbone = backbone_findings(BackboneConfig(name=str(tmp_path / "backbone")), Hub())[0]
    assert vlm.status == "FAIL" and "weights (" in vlm.found
    assert backbone.status == "FAIL" and "no weights" in backbone.found


def test_local_folders_and_embedded_models_need_no_hub(configure: MakeConfig) -> None:
    def never(name: str) -> Access:
        raise AssertionError(name)

    assert {f.status for f in model_findings(configure(), Hub(ask=never))} == {"PASS"}
    embedded = configure(**{"vlm.name": "embedded", "backbone.name": "embedded"})
    assert {f.status for f in model_findings(embedded, Hub(ask=never))} == {"PASS"}


# Configurations ---------------------------------------------------------------------------------------------------


def test_a_whole_configuration(configure: MakeConfig) -> None:
    section = examine(configure(), Hub(), Path("small.yaml"))
    assert {finding.status for finding in section.findings} == {"PASS"}
    assert [finding.what for finding in section.findings] == ["VLM", "backbone", "tiles", "reports", "prompts"]
    assert "72 train, 24 validation, 24 test" in section.findings[2].found


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"tiles.path": "/nowhere/tiles.csv"}, "tiles"),
        ({"reports.path": "/nowhere/reports.jsonl"}, "reports"),
        ({"reports.text_column": "words"}, "reports"),
        ({"prompts": "/nowhere/prompts.yaml"}, "prompts"),
        (
            {"reports.morphology_prompts": "/nowhere/a.yaml", "reports.boilerplate_prompts": "/b.yaml"},
            "morphology prompts",
        ),
    ],
)
def test_data_that_are_not_in_place(configure: MakeConfig, keys: dict[str, Any], what: str) -> None:
    failed = [finding for finding in data_findings(configure(keys), "") if finding.status == "FAIL"]
    assert what in [finding.what for finding in failed]
    assert all(finding.fix for finding in failed)


def test_a_published_set_that_is_not_there(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure(**{"tiles.source": "pcam", "tiles.path": str(tmp_path)})
    finding = tiles_finding("tiles", config.tiles)
    assert finding.status == "FAIL" and "zenodo.org/records/2546921" in finding.fix
    assert "python scripts/download.py pcam --to data/pcam" in finding.fix


def test_reports_of_tcga_that_are_not_there(configure: MakeConfig) -> None:
    finding = reports_finding(configure(**{"reports.path": "/nowhere/TCGA_Reports.csv", "reports.format": "tcga"}))
    assert finding.status == "FAIL"
    assert "data_cards/tcga_reports.md" in finding.fix and "github.com/tatonetti-lab" in finding.fix


@pytest.mark.parametrize(
    ("gpu", "precision", "needs", "match"),
    [
        (0, "bf16", "", "torch sees none"),
        (0, "fp16", "a GPU", "torch sees none"),
        (0, "no", "a GPU and 20 minutes", "needs a GPU and 20 minutes"),
        (0, "no", "2 cores", ""),
        (7, "bf16", "a GPU", "which this GPU has not"),
        (7, "fp16", "a GPU", ""),
        (9, "bf16", "a GPU", ""),
    ],
)
def test_a_gpu_that_is_asked_for(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, gpu: int, precision: str, needs: str, match: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu > 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=gpu))
    found = gpu_findings(configure(**{"training.precision": precision}), needs)
    assert [finding.status for finding in found] == ["WARN"] * bool(match)
    assert match in "".join(finding.found for finding in found)


def test_every_data_set_and_backbone_of_a_comparison_is_looked_at(configure: MakeConfig) -> None:
    config = configure(
        {
            "comparison.arms": ["image_only"],
            "comparison.backbones": ["embedded", "uni"],
            "comparison.data_sets": {"own": {}, "other": {"tiles.source": "bach", "tiles.path": "/nowhere/bach"}},
        }
    )
    found = run_findings(config, Hub(ask=lambda _: "gated"), Path("compare.yaml"))
    assert [(f.what, f.status) for f in found] == [
        ("VLM", "PASS"), ("backbone", "PASS"), ("backbone", "FAIL"), ("tiles", "PASS"), ("reports", "PASS"),
        ("prompts", "PASS"), ("tiles", "FAIL"),
    ]  # fmt: skip
    assert "/nowhere/bach" in found[-1].found


def test_what_an_earlier_command_writes(configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = configure(
        **{"tiles.path": "outputs/w/tiles.csv", "reports.path": "outputs/w/r.jsonl", "vlm.name": "outputs/w/vlm"}
    )
    (tmp_path / "own.yaml").write_text("# command   python scripts/other.py --now\nname: a\n")
    found = run_findings(config, Hub(), tmp_path / "own.yaml")
    (data,) = [finding for finding in found if finding.status == "FAIL"]
    assert "outputs/w/tiles.csv, outputs/w/vlm, outputs/w/r.jsonl" in data.found
    assert data.fix == "first: python scripts/other.py --now"
    (tmp_path / "own.yaml").write_text("# command   make worlds\nname: a\n")
    found = run_findings(config, Hub(), tmp_path / "own.yaml")
    assert {finding.status for finding in found} == {"PASS"}


def test_a_data_set_of_the_hub_is_not_fetched(configure: MakeConfig) -> None:
    finding = tiles_finding("tiles", configure(**{"tiles.source": "huggingface", "tiles.path": "owner/set"}).tiles)
    assert finding.status == "WARN" and "fetched when first used" in finding.fix


def test_the_script(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_config({"tiles.path": "/nowhere/tiles.csv"}))
    status = {}
    for name, arguments in {"one": ["--config", path], "wrong": ["--lora.rank=8"], "models": ["--models"]}.items():
        monkeypatch.setattr(sys, "argv", ["doctor.py", *arguments])
        try:
            runpy.run_path(str(ROOT / "scripts" / "doctor.py"), run_name="__main__")
        except SystemExit as end:
            status[name] = end.code
    shown = capsys.readouterr()
    assert (int(status["one"]), status["wrong"]) == (1, 2) and "models" not in status
    assert "FAIL  tiles" in shown.out and "PASS  VLM" in shown.out and "\033[" not in shown.out
    assert "keys go with --config" in shown.err
    assert "MahmoodLab/UNI2-h" in shown.out and "quiltnet-b-32" in shown.out
