"""Tests that the doctor reports each problem with a fix, and nothing for a working setup."""

import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from PIL import Image

from clipit.config.file import ConfigFile
from clipit.config.run import BackboneConfig, RunConfig, VLMConfig
from clipit.doctor import diagnose as package_checks
from clipit.doctor import machine, model_checks
from clipit.doctor.check_results import Check, failed_check, format_checks, record_error
from clipit.doctor.configs import check_config, check_precision
from clipit.doctor.data_checks import check_prompts, check_reports, check_tiles
from clipit.doctor.diagnose import diagnose
from clipit.doctor.model_checks import cached_bytes, check_backbone, check_vlm
from clipit.errors import DataError, ModelError, explain
from clipit.models.backbones import backbone_repository
from clipit.models.vlm_sources import vlm_repository

MakeConfig = Callable[..., RunConfig]
MakeFile = Callable[..., ConfigFile]
SetHub = Callable[[str], None]
_RESPONSE = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
ROOT = Path(__file__).parents[1]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SetHub:
    """Function that sets the Hub's error message ("" for none); without a call, any Hub request fails the test."""

    def unexpected(name: str, *_: str) -> None:
        raise AssertionError(f"unexpected Hub request for {name}")

    def set_answer(problem: str) -> None:
        def ask(name: str, hub_id: str, hint: str) -> None:
            if problem:
                raise ModelError(problem, where=hub_id, fix=hint)

        monkeypatch.setattr(model_checks, "ask_hub", ask)

    monkeypatch.setattr(model_checks, "ask_hub", unexpected)
    return set_answer


def run_check(subject: str, check: Callable[..., list[Check]], *arguments: Any) -> list[Check]:
    """Run a check as the doctor does: an error becomes a failed check."""
    checks: list[Check] = []
    with record_error(subject, checks):
        checks += check(*arguments)
    return checks


def check_config_reports(config: RunConfig) -> list[Check]:
    assert config.reports is not None
    return run_check("reports", check_reports, config.reports)


# Checks -----------------------------------------------------------------------------------------------------------


def test_formatted_checks_are_aligned_counted_and_sorted_by_severity() -> None:
    groups = {
        "One": [Check("PASS", "a", "well"), Check("FAIL", "longer", "ill " * 60, "do this")],
        "Two": [Check("WARN", "b", "so so")],
    }
    lines = format_checks(groups).splitlines()
    assert lines[0] == "Problems"
    assert lines[1].startswith("  FAIL  longer  ill ill") and lines[2].startswith("                ill")
    assert "                fix: do this" in lines
    assert lines.index("  WARN  b       so so") > lines.index("                fix: do this")
    assert lines[lines.index("One") + 1] == "  PASS  a  well" and "Two" not in lines
    assert lines[-1] == "1 FAIL, 1 WARN, 1 PASS"
    assert max(map(len, lines)) <= 120


def test_colours_are_opt_in() -> None:
    groups = {"One": [Check("FAIL", "a", "ill")]}
    assert "\033[" not in format_checks(groups)
    assert "\033[31mFAIL\033[0m" in format_checks(groups, colour=True)


def test_clipit_error_becomes_a_failed_check() -> None:
    check = failed_check("tiles", DataError(explain("the folder is empty", where="/data", fix="fill it")))
    assert check == Check("FAIL", "tiles", "The folder is empty (/data).", "fill it")
    assert failed_check("x", DataError("CONCH is missing.")).message == "CONCH is missing."


def test_system_error_becomes_a_failed_check() -> None:
    def read() -> None:
        raise PermissionError("cannot open /data/tiles.csv")

    checks: list[Check] = []
    with record_error("tiles", checks):
        read()
    with record_error("tiles", checks):
        pass
    (check,) = checks
    assert (check.status, check.message) == ("FAIL", "Cannot open /data/tiles.csv.") and check.fix


# Machine ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["torch", "torchvision"])
def test_broken_torch_import_is_the_only_problem_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    (tmp_path / "wrong.yaml").write_text("tiles: {source: table, path: a, colour: red}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    ((torch, requirements),) = diagnose().values()
    assert torch.status == "FAIL" and module in torch.message and requirements.status == "PASS"
    assert "https://download.pytorch.org/whl/cpu" in torch.fix and "make -B env" in torch.fix


def test_installed_torch_passes() -> None:
    import torchvision

    check = package_checks.check_torch()
    assert check.status == "PASS" and check.message.endswith(torchvision.__version__)


def test_spinning_threads_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    (cpu,) = machine.check_threads()
    assert cpu.status == "WARN" and cpu.fix == "unset OMP_WAIT_POLICY"
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert machine.check_threads() == []


def test_gpus_are_listed_and_a_hidden_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    facts = [SimpleNamespace(name="H200"), SimpleNamespace(name="T4")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", facts.__getitem__)
    assert [check.message for check in machine.check_gpus()] == ["H200, T4"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    (gpu,) = machine.check_gpus()
    assert gpu.status == "WARN" and "nvidia-smi" in gpu.fix


@pytest.mark.parametrize(("free", "status"), [(2**29, "FAIL"), (5 * 2**30, "WARN"), (50 * 2**30, "PASS")])
def test_disk_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: str) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    (check,) = machine.check_disk(tmp_path / "not" / "yet")
    assert check.status == status


def test_output_inside_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (check,) = machine.check_disk(tmp_path / "file" / "out")
    assert check.status == "FAIL" and "--output" in check.fix


@pytest.mark.parametrize(
    ("count", "cpu", "gpus", "status"),
    [
        (1, False, 0, ""),
        (2, True, 0, ""),
        (2, True, 1, ""),
        (2, False, 1, "FAIL"),
        (4, False, 2, "FAIL"),
        (1, False, 2, "WARN"),
        (2, False, 2, ""),
    ],
)
def test_default_launch_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, cpu: bool, gpus: int, status: str
) -> None:
    import torch

    path = tmp_path / "default_config.yaml"
    monkeypatch.setattr(machine, "default_config_file", str(path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert machine.check_default_launch() == []
    kind = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU"
    path.write_text(f"{kind}\nnum_processes: {count}\nuse_cpu: {str(cpu).lower()}\n")
    checks = machine.check_default_launch()
    assert [check.status for check in checks] == [status] * bool(status)
    assert all(f"num_processes: {gpus}" in check.fix and str(path) in check.message for check in checks)
    path.write_text("compute_environment: LOCAL_MACHINE\nno_such_key: 1\n")
    (check,) = machine.check_default_launch()
    assert check.status == "FAIL" and str(path) in check.fix


# Packages ---------------------------------------------------------------------------------------------------------


def test_conflicting_faiss_packages_fail() -> None:
    check = machine.check_faiss({"faiss-cpu": "1.15.1", "faiss-gpu": "1.15.1"})
    assert check.status == "FAIL" and "faiss-cpu 1.15.1 and faiss-gpu 1.15.1" in check.message
    assert check.fix == "pip uninstall -y faiss-cpu faiss-gpu && pip install faiss-cpu"


def test_conflicting_faiss_packages_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    check = machine.check_faiss({"faiss-cpu": "1.15.1", "faiss-gpu-cuvs": "1.15.1"})
    assert check.fix == "pip uninstall -y faiss-cpu faiss-gpu-cuvs && pip install faiss-gpu-cuvs"


def test_missing_and_broken_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_faiss({}).status == "WARN"
    monkeypatch.setitem(sys.modules, "faiss", None)
    check = machine.check_faiss({"faiss-cpu": "1.15.1"})
    assert check.status == "FAIL" and check.fix == "pip install --force-reinstall --no-deps faiss-cpu"


@pytest.mark.parametrize(
    ("kernel", "capability", "fix"),
    [
        ("Barcelona", "AVX512", "export OPENBLAS_CORETYPE=SKYLAKEX"),
        ("Prescott", "AVX512_BF16", "export OPENBLAS_CORETYPE=SKYLAKEX"),
        ("Prescott", "AVX2", "export OPENBLAS_CORETYPE=Haswell"),
        ("Haswell", "AVX512", ""),
        ("SkylakeX", "AVX512", ""),
        ("Nehalem", "DEFAULT", ""),
    ],
)
def test_openblas_kernel(monkeypatch: pytest.MonkeyPatch, kernel: str, capability: str, fix: str) -> None:
    libraries = [
        {"internal_api": "openblas", "filepath": f"/site/{package}.libs/libopenblas.so", "architecture": architecture}
        for package, architecture in (("faiss_cpu", kernel), ("numpy", "Prescott"))
    ]
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: libraries)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    check = machine.check_faiss({"faiss-cpu": "1.15.1"})
    assert check.fix == fix and check.status == ("WARN" if fix else "PASS") and (kernel in check.message) == bool(fix)


def test_missing_and_outdated_packages_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = [
        "torch>=99",
        "numpy>=1",
        "absent-one>=1",
        'absent-two>=1; extra == "more"',
        'pytest>=1; extra == "dev"',
    ]
    monkeypatch.setattr(package_checks.importlib.metadata, "requires", lambda _: requirements)
    check = package_checks.check_requirements()
    assert check.status == "FAIL" and "torch>=99" in check.message and "absent-one>=1 (absent)" in check.message
    assert "numpy" not in check.message and "absent-two" not in check.message


def test_installed_requirements_pass() -> None:
    assert package_checks.check_requirements().status == "PASS"


# Hub --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (
            GatedRepoError("403", response=_RESPONSE),
            "is gated.*accept its licence at .*MahmoodLab/UNI",
        ),
        (
            RepositoryNotFoundError("404", response=_RESPONSE),
            "does not exist.*check the spelling",
        ),
        (None, "Hub cannot be reached.*--backbone.path=FOLDER"),
    ],
)
def test_gated_missing_and_unreachable_models_fail(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, match: str
) -> None:
    def refuse(self: object, repository: str) -> None:
        assert error is not None and repository == "MahmoodLab/UNI"
        raise error

    if error is not None:
        monkeypatch.setattr("huggingface_hub.HfApi.auth_check", refuse)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("clipit.models.loading.hub_is_reachable", lambda: error is not None)
    (check,) = run_check("backbone", check_backbone, BackboneConfig(name="uni"))
    assert check.status == "FAIL" and re.search(match, f"{check.message} {check.fix}")


def test_hub_mirror_without_permission_check_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, repository: str) -> None:
        raise RepositoryNotFoundError("404", response=_RESPONSE)

    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, repository: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (check,) = run_check("backbone", check_backbone, BackboneConfig(name="uni"))
    assert check.status == "PASS"


def test_accessible_model_passes(hub: SetHub) -> None:
    hub("")
    assert run_check("backbone", check_backbone, BackboneConfig(name="uni")) == [
        Check("PASS", "backbone", "uni (MahmoodLab/UNI) is downloaded on first use")
    ]


def test_cached_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert cached_bytes("owner/name") == 0
    (snapshot / "model.safetensors").write_text("weights")
    assert [cached_bytes(f"owner/{name}") for name in ("name", "name@main", "other")] == [7, 7, 0]


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
def test_vlm_repository(name: str, hub_id: str) -> None:
    assert vlm_repository(VLMConfig(name=name)) == hub_id


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("uni", "MahmoodLab/UNI"),
        ("phikon", "owkin/phikon"),
        ("hibou-l", "histai/hibou-L"),
        ("hf-hub:owner/name", "owner/name"),
        ("transformers:owner/name", "owner/name"),
        ("imagenet-vits16", "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"),
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("resnet18", "timm/resnet18.a1_in1k"),
    ],
)
def test_backbone_repository(name: str, hub_id: str) -> None:
    assert backbone_repository(BackboneConfig(name=name)) == hub_id


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (VLMConfig(name="titan"), "cannot pair"),
        (VLMConfig(name="keep"), "set vlm.trust_remote_code"),
        (VLMConfig(name="pathgen-clip-b-16"), "set vlm.path to the file"),
        (VLMConfig(name="/no/such/folder"), "hf-hub:ID (open_clip)"),
        (VLMConfig(name="quilt-b-32"), "similar names: quiltnet-b-32"),
        (VLMConfig(name="plip", path="/no/such/folder"), "vlm.path does not exist"),
        (VLMConfig(name="open_clip:ViT-X/openai"), "one of open_clip's architectures, such as ViT-"),
        (VLMConfig(name="open_clip:ViT-B-32/nothing"), "with a published tag (openai"),
    ],
)
def test_unusable_vlms_fail(hub: SetHub, config: VLMConfig, match: str) -> None:
    hub("")
    (check,) = check_vlm("vlm", config)
    assert check.status == "FAIL" and match in check.message + check.fix and check.fix


@pytest.mark.parametrize(("name", "match"), [("uni3", "similar: uni"), ("/no", "table")])
def test_unusable_backbones_fail(hub: SetHub, name: str, match: str) -> None:
    hub("")
    (check,) = run_check("backbone", check_backbone, BackboneConfig(name=name))
    assert check.status == "FAIL" and match in check.message + check.fix


def test_access_to_weights_is_checked_even_without_the_package(hub: SetHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    hub("this model is gated")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "conch" else find(name))
    package, weights = check_vlm("vlm", VLMConfig(name="conch"))
    assert (package.status, weights.status) == ("FAIL", "FAIL")
    assert "pip install git+https://github.com/mahmoodlab/CONCH.git" in package.fix
    assert "gated" in weights.message
    with_path = VLMConfig(name="conch", path="/no/such/folder")
    package, weights = check_vlm("vlm", with_path)
    assert "needs its own package" in package.message and "does not exist (/no/such/folder)" in weights.message


def test_missing_adapter_fails(hub: SetHub) -> None:
    hub("")
    adapter, weights = check_vlm("vlm", VLMConfig(name="plip", adapter="/no/such/folder"))
    assert (adapter.status, weights.status) == ("FAIL", "PASS") and "/no/such/folder" in adapter.message


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["", "plip", "quiltnet-b-32"])
def test_empty_folder_is_not_a_vlm(tmp_path: Path, name: str) -> None:
    config = VLMConfig(name=name, path=str(tmp_path)) if name else VLMConfig(name=str(tmp_path))
    (check,) = check_vlm("vlm", config)
    assert check.status == "FAIL" and str(tmp_path) in check.message and check.fix


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["", "uni", "phikon"])
def test_empty_folder_is_not_a_backbone(tmp_path: Path, name: str) -> None:
    config = BackboneConfig(name=name, path=str(tmp_path)) if name else BackboneConfig(name=str(tmp_path))
    (check,) = run_check("backbone", check_backbone, config)
    assert check.status == "FAIL" and str(tmp_path) in check.message and check.fix


@pytest.mark.usefixtures("hub")
def test_folders_without_weights_fail(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure()
    for name, source in (("vlm", config.vlm.name), ("backbone", config.backbone.name)):
        shutil.copytree(source, tmp_path / name)
        weights = list((tmp_path / name).glob("*.safetensors"))
        assert weights
        for file in weights:
            file.unlink()
    vlm = check_vlm("vlm", VLMConfig(name=str(tmp_path / "vlm")))[0]
    backbone = run_check("backbone", check_backbone, BackboneConfig(name=str(tmp_path / "backbone")))[0]
    assert vlm.status == "FAIL" and "eights (" in vlm.message
    assert backbone.status == "FAIL" and "No weights" in backbone.message


@pytest.mark.usefixtures("hub")
def test_local_folders_and_embedded_models_need_no_hub(configure: MakeConfig) -> None:
    for config in (configure(), configure(**{"vlm.name": "embedded", "backbone.name": "embedded"})):
        checks = [*check_vlm("vlm", config.vlm), *run_check("backbone", check_backbone, config.backbone)]
        assert [check.status for check in checks] == ["PASS", "PASS"]


# Configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hub")
def test_complete_configuration_passes(configure_file: MakeFile) -> None:
    checks = check_config(configure_file(), [], Path("small.yaml"))
    assert {check.status for check in checks} == {"PASS"}
    assert [check.subject for check in checks] == ["vlm", "backbone", "tiles", "reports", "prompts", "memory"]
    assert "72 train, 24 validation, 24 test" in checks[2].message


@pytest.mark.parametrize(
    ("keys", "subject"),
    [
        ({"tiles.path": "/nowhere/tiles.csv"}, "tiles"),
        ({"reports.path": "/nowhere/reports.jsonl"}, "reports"),
        ({"reports.text_column": "words"}, "reports"),
        ({"prompts": "/nowhere/prompts.yaml"}, "prompts"),
        (
            {"reports.morphology_prompts": "/nowhere/a.yaml", "reports.boilerplate_prompts": "/b.yaml"},
            "prompts",
        ),
    ],
)
def test_missing_data_fail(configure: MakeConfig, keys: dict[str, Any], subject: str) -> None:
    config = configure(keys)
    checks = [
        *run_check("tiles", check_tiles, "tiles", config.tiles, config),
        *check_config_reports(config),
        *check_prompts(config),
    ]
    failed = [check for check in checks if check.status == "FAIL"]
    assert subject in [check.subject for check in failed]
    assert all(check.fix for check in failed)


def test_missing_published_data_set_has_download_instructions(configure: MakeConfig, tmp_path: Path) -> None:
    config = configure(**{"tiles.source": "pcam", "tiles.path": str(tmp_path)})
    (check,) = run_check("tiles", check_tiles, "tiles", config.tiles, config)
    assert check.status == "FAIL" and "zenodo.org/records/2546921" in check.fix
    assert "clipit download pcam --to data/pcam" in check.fix


def test_report_problems_are_counted(configure: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Colon.\n\n\n")
    columns = {f"reports.{name}_column": None for name in ("id", "organ", "group", "label", "date")}
    (check,) = check_config_reports(configure(**{"reports.path": str(tmp_path / "a.txt"), **columns}))
    assert check.message.endswith(
        "1 report with text; 2 problems, first: " + str(tmp_path / "a.txt") + ", line 2: empty report"
    )


@pytest.mark.usefixtures("hub")
def test_patients_own_reports_are_joined_if_an_arm_uses_them(configure_file: MakeFile, tmp_path: Path) -> None:
    rows = [f'{{"id": "{i}", "text": "A tumour.", "patient": "train-{i}", "finding": "tumour"}}' for i in range(4)]
    reports = tmp_path / "own.jsonl"
    reports.write_text("\n".join(rows), encoding="utf-8")
    keys = {"reports.path": str(reports), "reports.group_column": "patient", "reports.organ_column": None}

    def check_own_reports(arms: list[str]) -> list[Check]:
        file = configure_file({**keys, "comparison.arms": arms, "comparison.baseline": arms[0]})
        return [c for c in check_config(file, [], Path("own.yaml")) if c.subject == "patients' own reports"]

    assert check_own_reports(["image_only", "clip_it_all"]) == []
    for arm in ("own_label", "own_snippet"):
        (check,) = check_own_reports(["image_only", arm])
        assert check.status == "PASS" and check.message.startswith("4 of 18 training patients have a report of their")
    reports.write_text("\n".join(rows).replace("train-", "P"), encoding="utf-8")
    (check,) = check_own_reports(["image_only", "own_case"])
    assert check.status == "FAIL" and check.message.startswith("No training patient has a report; the tile groups are")


def test_missing_tcga_reports_have_download_instructions(configure: MakeConfig) -> None:
    (check,) = check_config_reports(
        configure(**{"reports.path": "/nowhere/TCGA_Reports.csv", "reports.format": "tcga"})
    )
    assert check.status == "FAIL"
    assert "data_cards/tcga_reports.md" in check.fix and "github.com/tatonetti-lab" in check.fix


@pytest.mark.parametrize(
    ("gpu", "precision", "match"),
    [
        (0, "bf16", "No GPU is available"),
        (0, "fp16", "No GPU"),
        (0, "no", ""),
        (0, "auto", ""),
        (7, "bf16", "This GPU only emulates"),
        (7, "fp16", ""),
        (9, "bf16", ""),
    ],
)
def test_precision_unsupported_by_the_hardware_is_a_warning(
    configure: MakeConfig, monkeypatch: pytest.MonkeyPatch, gpu: int, precision: str, match: str
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu > 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=gpu))
    checks = check_precision(configure(**{"training.precision": precision}))
    assert [check.status for check in checks] == ["WARN"] * bool(match)
    assert match in "".join(check.message for check in checks)


@pytest.mark.usefixtures("hub")
def test_approximate_index_needs_faiss(configure_file: MakeFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_index(**keys: str) -> list[Check]:
        return [c for c in check_config(configure_file(keys), [], Path("own.yaml")) if c.subject == "index"]

    assert check_index(**{"pairing.index": "HNSW32"}) == []
    monkeypatch.setattr("clipit.stores.index.has_faiss", lambda: False)
    (check,) = check_index(**{"pairing.index": "HNSW32"})
    assert check.status == "FAIL" and "'HNSW32' needs faiss" in check.message and "faiss-cpu" in check.fix
    (check,) = check_index(**{"pairing.backend": "faiss"})
    assert "aiss is not installed" in check.message
    assert check_index() == []


def test_all_data_sets_and_backbones_of_a_comparison_are_checked(hub: SetHub, configure_file: MakeFile) -> None:
    hub("this model is gated")
    file = configure_file(
        {
            "comparison.arms": ["image_only"],
            "comparison.backbones": ["embedded", "uni"],
            "comparison.data_sets": {"own": {}, "other": {"tiles.source": "bach", "tiles.path": "/nowhere/bach"}},
        }
    )
    checks = check_config(file, [], Path("compare.yaml"))
    assert sorted((check.subject, check.status) for check in checks if check.subject != "memory") == [
        ("backbone", "FAIL"), ("backbone", "PASS"), ("prompts", "PASS"), ("reports", "PASS"), ("tiles", "FAIL"),
        ("tiles", "PASS"), ("vlm", "PASS"),
    ]  # fmt: skip
    assert any("/nowhere/bach" in check.message for check in checks)


@pytest.mark.usefixtures("hub")
def test_outputs_of_an_earlier_command_are_reported_together(
    configure_file: MakeFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {"tiles.path": "outputs/Dünn/tiles.csv", "reports.path": "outputs/w/r.jsonl", "vlm.name": "outputs/w/vlm"}
    file = configure_file(keys, output="outputs/runs")
    (data,) = [check for check in check_config(file, [], tmp_path / "own.yaml") if check.status == "FAIL"]
    assert all(path in data.message for path in keys.values()) and "outputs/runs" not in data.message
    assert data.fix.startswith("run the command that writes them first")
    shards = configure_file({"tiles.source": "webdataset", "tiles.path": "outputs/w/{0..1}.tar", "tiles.images": None})
    assert "data" not in [check.subject for check in check_config(shards, [], tmp_path / "own.yaml")]


def test_hub_data_set_is_not_downloaded(configure: MakeConfig) -> None:
    config = configure(**{"tiles.source": "huggingface", "tiles.path": "hf:owner/set"})
    (check,) = run_check("tiles", check_tiles, "tiles", config.tiles, config)
    assert check.status == "PASS" and "downloaded on first use" in check.message
    (check,) = check_config_reports(configure(**{"reports.path": "hf:owner/set"}))
    assert check.status == "PASS" and "downloaded on first use" in check.message


def test_missing_folder_is_not_mistaken_for_a_hub_data_set(configure: MakeConfig) -> None:
    keys = {"tiles.source": "huggingface", "tiles.path": "dta/tiles", "reports.path": "dta/reports"}
    config = configure(**keys)
    for check in (*run_check("tiles", check_tiles, "tiles", config.tiles, config), *check_config_reports(config)):
        assert check.status == "FAIL" and "hf:owner/name" in check.fix


def test_doctor_script(
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
    printed = capsys.readouterr()
    assert (int(status["one"]), status["wrong"]) == (1, 2) and "models" not in status
    assert "FAIL  tiles" in printed.out and "PASS  vlm" in printed.out and "\033[" not in printed.out
    assert "configuration keys need --config" in printed.err
    announcements = [line for line in printed.err.splitlines() if line.endswith(" ...")]
    assert announcements[0] == "starting ..." and announcements[-1] == "checking this machine ..."
    assert (
        f"checking {path}: its models, tiles, reports, prompts and memory ..." in announcements
        and "checking" not in printed.out
    )
    assert "MahmoodLab/UNI2-h" in printed.out and "quiltnet-b-32" in printed.out


def test_tiles_without_a_train_split_fail(configure: MakeConfig, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label,split\na.png,mucin,test\n")
    config = configure(**{"tiles.path": str(tmp_path / "t.csv"), "tiles.images": None})
    (check,) = run_check("tiles", check_tiles, "tiles", config.tiles, config)
    assert check.status == "FAIL" and "no train split" in check.message and "tiles.splits" in check.fix
